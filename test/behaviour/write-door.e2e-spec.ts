import { AsyncLocalStorage } from 'node:async_hooks';
import { mkdtemp, readdir, rename, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { DataSource } from 'typeorm';
import { backUp } from '../../src/database/backup';
import { Batcher } from '../../src/database/batcher';
import type { Database } from '../../src/database/database';
import { UnitConflict } from '../../src/database/database-error';
import { inspectDatabase, openDatabase } from '../../src/database/open-database';
import { takeGeneration, writerOptions } from '../../src/database/sqlite';
import type { Transaction } from '../../src/database/statements';
import { fail } from '../../src/errors';
import type { SqliteTarget } from '../../src/settings';
import { Program } from '../helpers/processes';

/** Runs something as if it came from elsewhere: what comes out of a unit of work is refused at the door. */
const outside = AsyncLocalStorage.snapshot();

/** Opens a database as a server does, says so, and keeps it open until its standard input ends. */
const OPEN = `
  const db = new (require('better-sqlite3'))(process.argv[1]);
  db.pragma('journal_mode = wal');
  db.exec('CREATE TABLE IF NOT EXISTS notes (text text)');
  console.log('open');
  process.stdin.resume().on('end', () => process.exit());
`;

const UNAVAILABLE = { code: 'ERR_UNAVAILABLE', status: 503, retryable: true };

describe('the write door', () => {
  let folder: string;
  let target: SqliteTarget;
  let database: Database;
  /** Another connection to the file, as another program would have it. */
  let other: DataSource;

  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'control-plane-door-'));
    target = { type: 'sqlite', path: join(folder, 'test.db') };
    database = await openDatabase({ database: target, migrateOnStart: true, poolSize: 1 }, [], [], {
      lockWaitMs: 300,
    });
    await database.write(async (tx) => {
      await tx.run('CREATE TABLE notes (id integer PRIMARY KEY, text text NOT NULL UNIQUE)');
      await tx.run('CREATE TABLE counters (id integer PRIMARY KEY, value integer NOT NULL)');
      await tx.run('CREATE TABLE pages (note_id integer NOT NULL REFERENCES notes (id))');
      await tx.run('INSERT INTO counters (id, value) VALUES (1, 0)');
    });
    other = await new DataSource(writerOptions(target)).initialize();
    // The queue's stopwatch stands still: what is asked for at once shares a commit on a slow machine too.
    jest.spyOn(performance, 'now').mockReturnValue(0);
  });

  afterEach(async () => {
    jest.restoreAllMocks();
    if (other.isInitialized) await other.destroy();
    await database.close();
    await rm(folder, { recursive: true, force: true });
  });

  const note = (text: string) => (tx: Transaction) => tx.run('INSERT INTO notes (text) VALUES ($1)', text);

  /** What is committed, as everybody else sees it. */
  const stored = async (): Promise<string[]> => {
    const rows: { text: string }[] = await other.query('SELECT text FROM notes ORDER BY id');
    return rows.map((row) => row.text);
  };

  /** A unit whose commit fails: the reference that leads nowhere is looked at then, and not before. */
  const poison = async (tx: Transaction): Promise<void> => {
    await tx.run('PRAGMA defer_foreign_keys = ON');
    await tx.run('INSERT INTO pages (note_id) VALUES (4711)');
  };

  describe('a unit of work', () => {
    it('never loses what another one writes at the same time', async () => {
      await Promise.all(
        Array.from({ length: 300 }, (_, i) =>
          database
            .write(async (tx) => {
              const row = await tx.first<{ value: number }>('SELECT value FROM counters WHERE id = 1');
              await tx.run('UPDATE counters SET value = $1 WHERE id = 1', (row?.value ?? Number.NaN) + 1);
              if (i % 3 === 0) throw new Error('thought better of it');
            })
            .catch(() => undefined),
        ),
      );
      expect(await other.query('SELECT value FROM counters')).toEqual([{ value: 200 }]);
    });

    it('is undone alone when it throws; its neighbours in the same commit stand', async () => {
      const settled = await Promise.allSettled([
        database.write(note('first')),
        database.write(async (tx) => {
          await note('undone')(tx);
          throw new Error('changed my mind');
        }),
        database.write(async (tx) => {
          await note('undone too')(tx);
          await note('first')(tx);
        }),
        database.write(() => {
          throw new Error('threw at once');
        }),
        database.write(note('last')),
      ]);
      expect(settled.map((outcome) => outcome.status)).toEqual([
        'fulfilled',
        'rejected',
        'rejected',
        'rejected',
        'fulfilled',
      ]);
      expect(settled[1]).toMatchObject({ reason: { message: 'changed my mind' } });
      expect(settled[2]).toMatchObject({ reason: { message: expect.stringContaining('UNIQUE') } });
      expect(settled[3]).toMatchObject({ reason: { message: 'threw at once' } });
      expect(await stored()).toEqual(['first', 'last']);
    });

    it('sees what its neighbours before it wrote, and not what was undone', async () => {
      const texts = (tx: Transaction) => tx.rows<{ text: string }>('SELECT text FROM notes ORDER BY id');
      const [, , seen] = await Promise.all([
        database.write(note('kept')),
        database
          .write(async (tx) => {
            await note('undone')(tx);
            throw new Error('no');
          })
          .catch(() => undefined),
        database.write(texts),
      ]);
      expect(seen).toEqual([{ text: 'kept' }]);
    });

    it('is answered when its commit is there for everybody, and no sooner', async () => {
      let answered = 0;
      const answeredBefore: number[] = [];
      const storedWhenAnswered: boolean[] = [];
      const names = Array.from({ length: 40 }, (_, i) => `note ${i}`);
      await Promise.all(
        names.map(async (name) => {
          await database.write(async (tx) => {
            answeredBefore.push(answered);
            await note(name)(tx);
          });
          answered++;
          storedWhenAnswered.push((await stored()).includes(name));
        }),
      );
      // They shared a commit, so the last of them ran before the first was answered.
      expect(answeredBefore).toEqual(names.map(() => 0));
      expect(storedWhenAnswered).toEqual(names.map(() => true));
    });

    it('that fails is answered with the others of its commit', async () => {
      const order: string[] = [];
      const said = (name: string) => () => void order.push(name);
      await Promise.all([
        database.write(() => Promise.reject(new Error('no'))).catch(said('failure answered')),
        database
          .write(async (tx) => {
            await note('a')(tx);
            said('second unit ran')();
          })
          .then(said('success answered')),
      ]);
      expect(order).toEqual(['second unit ran', 'failure answered', 'success answered']);
    });

    it('may not ask for another one inside', async () => {
      await database.write(async (tx) => {
        await note('outer')(tx);
        await expect(database.write(note('inner'))).rejects.toThrow('inside a unit of work');
      });
      expect(await stored()).toEqual(['outer']);
    });

    it('may be followed by another one from the code that awaited it', async () => {
      await database.write(note('one'));
      await database.write(note('two'));
      expect(await stored()).toEqual(['one', 'two']);
    });
  });

  describe('a part of a unit', () => {
    it('that throws is undone alone, and what was to be done after the commit for it', async () => {
      const effects: string[] = [];
      const part = (tx: Transaction, text: string, error?: Error) =>
        tx.attempt(async () => {
          tx.afterCommit(() => effects.push(text));
          await note(text)(tx);
          if (error) throw error;
          return text;
        });
      const outcomes = await database.write(async (tx) => {
        await note('before')(tx);
        const parts = [await part(tx, 'kept'), await part(tx, 'undone', new Error('on its own'))];
        await note('after')(tx);
        return parts;
      });
      expect(outcomes).toEqual([
        { status: 'fulfilled', value: 'kept' },
        { status: 'rejected', reason: new Error('on its own') },
      ]);
      expect(await stored()).toEqual(['before', 'kept', 'after']);
      expect(effects).toEqual(['kept']);
    });

    it('is undone with its unit', async () => {
      const unit = database.write(async (tx) => {
        await tx.attempt(() => note('part')(tx));
        throw new Error('all of it');
      });
      await expect(unit).rejects.toThrow('all of it');
      expect(await stored()).toEqual([]);
    });

    it('that can not be undone takes the whole unit with it, and nothing is written after it', async () => {
      await database.write(note('taken'));
      const unit = database.write(async (tx) => {
        await note('before')(tx);
        await tx.attempt(() => tx.run(`INSERT OR ROLLBACK INTO notes (text) VALUES ('taken')`));
        await tx.attempt(() => note('after')(tx));
      });
      await expect(unit).rejects.toMatchObject(UNAVAILABLE);
      expect(await stored()).toEqual(['taken']);
    });
  });

  describe('a read', () => {
    it('sees nothing that is not committed', async () => {
      const count = () =>
        database.read((statements) => statements.first<{ n: number }>('SELECT count(*) AS n FROM notes'));
      await database.write(async (tx) => {
        await note('a')(tx);
        expect(await tx.first('SELECT count(*) AS n FROM notes')).toEqual({ n: 1 });
        expect(await count()).toEqual({ n: 0 });
      });
      expect(await count()).toEqual({ n: 1 });
    });

    it('can not write, neither by a statement nor by the source that is injected', async () => {
      await expect(
        database.read((statements) => statements.run(`INSERT INTO notes (text) VALUES ('a')`)),
      ).rejects.toThrow(/readonly/);
      await expect(database.source.query(`INSERT INTO notes (text) VALUES ('a')`)).rejects.toThrow(
        /readonly/,
      );
    });
  });

  describe('what is to be done after the commit', () => {
    it('is done before the caller is answered, and dropped where the unit is undone', async () => {
      const order: string[] = [];
      const kept = database
        .write(async (tx) => {
          tx.afterCommit(() => order.push('first effect'));
          tx.afterCommit(() => order.push('second effect'));
          await note('a')(tx);
        })
        .then(() => order.push('answered'));
      const undone = database
        .write((tx) => {
          tx.afterCommit(() => order.push('effect of nothing'));
          return note('a')(tx);
        })
        .catch(() => undefined);
      await Promise.all([kept, undone]);
      expect(order).toEqual(['first effect', 'second effect', 'answered']);
    });

    it('is dropped where the commit fails', async () => {
      const effects: string[] = [];
      const outcomes = await Promise.allSettled([
        database.write((tx) => {
          tx.afterCommit(() => effects.push('of a unit that was lost'));
          return note('a')(tx);
        }),
        database.write(poison),
      ]);
      expect(outcomes.map((outcome) => outcome.status)).toEqual(['rejected', 'rejected']);
      expect(effects).toEqual([]);
    });

    it('harms nobody else when it throws: all are answered, and the door stays open', async () => {
      const effects: string[] = [];
      const outcomes = await Promise.allSettled([
        database.write((tx) => {
          tx.afterCommit(() => {
            throw new Error('a broken effect');
          });
          tx.afterCommit(() => effects.push('the next effect'));
          return note('with a broken effect')(tx);
        }),
        database.write(note('neighbour')),
      ]);
      expect(outcomes).toMatchObject([
        { status: 'rejected', reason: { message: 'a broken effect' } },
        { status: 'fulfilled' },
      ]);
      expect(effects).toEqual(['the next effect']);
      await database.write(note('later'));
      expect(await stored()).toEqual(['with a broken effect', 'neighbour', 'later']);
    });
  });

  describe('a commit that fails', () => {
    it('keeps nothing of any unit in it, says so to each, and the next one works', async () => {
      const outcomes = await Promise.allSettled([
        database.write(note('before')),
        database.write(() => Promise.reject(new Error('a mistake of its own'))),
        database.write(poison),
        database.write(note('after')),
      ]);
      for (const outcome of outcomes) {
        expect(outcome).toMatchObject({ status: 'rejected', reason: UNAVAILABLE });
      }
      expect(await stored()).toEqual([]);
      await database.write(note('later'));
      expect(await stored()).toEqual(['later']);
    });

    it('is not made up for by SQLite having rolled back already', async () => {
      await database.write(note('taken'));
      const outcomes = await Promise.allSettled([
        database.write(note('before')),
        database.write((tx) => tx.run(`INSERT OR ROLLBACK INTO notes (text) VALUES ('taken')`)),
        database.write(note('after')),
      ]);
      expect(outcomes[0]).toMatchObject({ status: 'rejected', reason: UNAVAILABLE });
      expect(outcomes[1]).toMatchObject({ status: 'rejected', reason: UNAVAILABLE });
      // It had not begun, so it goes into the next commit.
      expect(outcomes[2]).toMatchObject({ status: 'fulfilled' });
      expect(await stored()).toEqual(['taken', 'after']);
    });

    it('answers all who wait where it could not even begin, and later writes work', async () => {
      await other.query('BEGIN IMMEDIATE');
      const outcomes = await Promise.allSettled(['a', 'b', 'c'].map((text) => database.write(note(text))));
      await other.query('ROLLBACK');
      for (const outcome of outcomes) {
        expect(outcome).toMatchObject({ status: 'rejected', reason: UNAVAILABLE });
      }
      await database.write(note('later'));
      expect(await stored()).toEqual(['later']);
    });
  });

  describe('another program that holds the lock of the file', () => {
    it('holds up those who write and nothing else; they are stored when it lets go', async () => {
      await other.query('BEGIN IMMEDIATE');
      let isStored = false;
      const writing = database.write(note('waits')).then(() => {
        isStored = true;
      });
      // SQLite's own waiting would hold up the event loop, and these with it.
      for (let turns = 0; turns < 20; turns++) await new Promise((resolve) => setTimeout(resolve, 5));
      expect(isStored).toBe(false);
      await other.query('ROLLBACK');
      await writing;
      expect(await stored()).toEqual(['waits']);
    });

    it('shows in readiness once writes have timed out, until it lets go', async () => {
      await other.query('BEGIN IMMEDIATE');
      await expect(database.ready()).resolves.toBeUndefined();
      await expect(database.write(note('refused'))).rejects.toMatchObject(UNAVAILABLE);
      await expect(database.ready()).rejects.toThrow();
      await other.query('ROLLBACK');
      await expect(database.ready()).resolves.toBeUndefined();
      expect(await stored()).toEqual([]);
    });
  });

  describe('another process that has opened the file to write', () => {
    it('fences this one off: it stores nothing any more, and says so once', async () => {
      await database.write(note('acknowledged'));
      const lost: Error[] = [];
      database.onLost((reason) => lost.push(reason));
      // As its start does, under whatever name it found the file.
      await takeGeneration(other);
      const refused = await Promise.allSettled([database.write(note('a')), database.write(note('b'))]);
      for (const outcome of [...refused, ...(await Promise.allSettled([database.write(note('c'))]))])
        expect(outcome).toMatchObject({ status: 'rejected', reason: UNAVAILABLE });
      await expect(database.ready()).rejects.toThrow();
      expect(await stored()).toEqual(['acknowledged']);
      expect(lost).toEqual([
        expect.objectContaining({ message: expect.stringContaining('Another process') }),
      ]);
    });

    it('is not one that reads: a backup, a look at the file', async () => {
      await inspectDatabase(target, (statements) => statements.rows('SELECT 1'));
      await backUp(target, join(folder, 'backup.db'), {
        replace: false,
        settings: { signingKeyFile: undefined },
        signal: AbortSignal.timeout(60_000),
      });
      await database.write(note('goes on'));
      expect(await stored()).toEqual(['goes on']);
    });
  });

  describe('a file that loses its name while it is open', () => {
    const moved = () => join(folder, 'moved.db');

    it('is written no more, also once it has its name back', async () => {
      await database.write(note('acknowledged'));
      const lost: Error[] = [];
      database.onLost((reason) => lost.push(reason));
      await rename(target.path, moved());
      await expect(database.write(note('a'))).rejects.toMatchObject(UNAVAILABLE);
      await rename(moved(), target.path);
      await expect(database.write(note('b'))).rejects.toMatchObject(UNAVAILABLE);
      expect(await stored()).toEqual(['acknowledged']);
      expect(lost).toEqual([expect.objectContaining({ message: expect.stringContaining('was moved') })]);
    });

    it('is not opened by another one by a second process, until the first has ended', async () => {
      const path = join(folder, 'first.db');
      const first = Program.spawn(process.execPath, ['-e', OPEN, path], { input: null });
      try {
        await first.printed(/./);
        await rename(path, moved());
        const second = () =>
          openDatabase(
            { database: { type: 'sqlite', path: moved() }, migrateOnStart: true, poolSize: 1 },
            [],
            [],
          );
        for (let attempt = 0; attempt < 2; attempt++)
          await expect(second()).rejects.toThrow(/by another name/);
        expect((await readdir(folder)).filter((name) => name.startsWith('moved'))).toEqual(['moved.db']);
        first.child.stdin?.end();
        await first.ended();
        await (await second()).close();
      } finally {
        await first.end('SIGKILL');
      }
    });
  });

  it('gives each unit one instant, read after it began', async () => {
    const instants = await database.write(async (tx) => [tx.now, tx.now]);
    expect(instants[0]).toBe(instants[1]);
    expect(instants[0]).toBeLessThanOrEqual(database.clock.now());
  });

  describe('the queue', () => {
    it('counts those who wait', async () => {
      const depths: number[] = [];
      await Promise.all(
        [1, 2, 3].map(() => database.write(() => Promise.resolve(depths.push(database.writeQueueDepth)))),
      );
      expect(depths).toEqual([2, 1, 0]);
      expect(database.writeQueueDepth).toBe(0);
    });

    it('takes more units than fit in one commit', async () => {
      await Promise.all(Array.from({ length: 1_500 }, (_, i) => database.write(note(`note ${i}`))));
      expect(await other.query('SELECT count(*) AS n FROM notes')).toEqual([{ n: 1_500 }]);
    });

    it('is emptied before the database closes; a later unit is turned away', async () => {
      const written = Promise.all(['a', 'b'].map((text) => database.write(note(text))));
      await database.close();
      await written;
      expect(await stored()).toEqual(['a', 'b']);
      await expect(database.write(note('late'))).rejects.toMatchObject(UNAVAILABLE);
      expect(await stored()).toEqual(['a', 'b']);
    });
  });

  it('writes with a log that it syncs and copies itself, beside the event loop, and with foreign keys on', async () => {
    const pragma = (name: string) => database.write((tx) => tx.first(`PRAGMA ${name}`));
    expect(await pragma('journal_mode')).toEqual({ journal_mode: 'wal' });
    // NORMAL: the queue syncs, see power-cut.e2e-spec.ts.
    expect(await pragma('synchronous')).toEqual({ synchronous: 1 });
    expect(await pragma('wal_autocheckpoint')).toEqual({ wal_autocheckpoint: 0 });
    expect(await pragma('foreign_keys')).toEqual({ foreign_keys: 1 });
    // It waits for others itself, beside the event loop.
    expect(await pragma('busy_timeout')).toEqual({ timeout: 0 });
    await expect(database.write((tx) => tx.run('INSERT INTO pages (note_id) VALUES (1)'))).rejects.toThrow(
      /FOREIGN KEY/,
    );
  });

  it('is held by one process at a time, and released', async () => {
    const again = () => openDatabase({ database: target, migrateOnStart: true, poolSize: 1 });
    await expect(again()).rejects.toThrow('Another process is using');
    await database.close();
    database = await again();
    expect(database.applied).toEqual([]);
  });

  it('lets more units share a commit after one that had units of many sorts, and no others wait', async () => {
    // A commit that a unit waited for is over when the unit is answered.
    const commitsOf = async (together: number): Promise<number> => {
      const name = (i: number) => `${together} at once, then ${i}`;
      await Promise.all(Array.from({ length: together }, (_, i) => database.write(note(name(i)))));
      const before = database.writes;
      const first = database.write(note(name(together)));
      await sleep(3);
      await Promise.all([first, database.write(note(name(together + 1)))]);
      return database.writes - before;
    };
    expect(await commitsOf(4)).toBe(1);
    expect(await commitsOf(3)).toBe(2);
  });

  describe('calls that are gathered', () => {
    interface Gathered {
      write: Batcher<string, string>;
      /** The requests of each unit of work that ran. */
      units: string[][];
    }

    /**
     * Stores each request as a note and answers it in capitals; a unit with `bad` in it fails after it has written.
     * @param during done in each unit after it has written
     */
    const gather = (during: (units: number) => void = () => undefined): Gathered => {
      const units: string[][] = [];
      const write = new Batcher<string, string>(database, async (tx, requests) => {
        units.push([...requests]);
        for (const request of requests) await note(request)(tx);
        outside(() => during(units.length));
        if (requests.includes('bad')) throw new Error('a bad one');
        return requests.map((request) => request.toUpperCase());
      });
      return { write, units };
    };

    /** What each call was answered, by its request; a list, because it must be one answer. */
    let answers: Record<string, string[]>;
    beforeEach(() => {
      answers = {};
    });

    const ask = async ({ write }: Gathered, request: string): Promise<void> => {
      const list: string[] = [];
      answers[request] = list;
      await write.run(request).then(
        (answer) => list.push(answer),
        (error: { code?: string; message: string }) => list.push(error.code ?? error.message),
      );
    };

    it('share one unit, and each gets its own answer', async () => {
      const gathered = gather();
      const names = Array.from({ length: 100 }, (_, i) => `note ${i}`);
      expect(await Promise.all(names.map((name) => gathered.write.run(name)))).toEqual(
        names.map((name) => name.toUpperCase()),
      );
      expect(gathered.units).toEqual([names]);
      expect(await stored()).toEqual(names);
    });

    it('join the unit that waits until it runs, and the next one from then on', async () => {
      const all: Promise<void>[] = [];
      const gathered: Gathered = gather((units) => {
        if (units === 1) all.push(ask(gathered, 'while the first unit runs'));
      });
      all.push(ask(gathered, 'one'));
      const between = database.write((tx) => {
        outside(() => all.push(ask(gathered, 'while a unit before it runs')));
        return note('in between')(tx);
      });
      await ask(gathered, 'two');
      await between;
      await Promise.all(all);
      expect(gathered.units).toEqual([
        ['one', 'two'],
        ['while the first unit runs', 'while a unit before it runs'],
      ]);
      expect(answers).toEqual(
        Object.fromEntries(Object.keys(answers).map((name) => [name, [name.toUpperCase()]])),
      );
    });

    it('are run each alone when their unit fails, so that one at fault fails nobody else', async () => {
      const all: Promise<void>[] = [];
      const gathered: Gathered = gather((units) => {
        if (units > 1) return;
        for (const name of ['meanwhile', 'meanwhile too']) all.push(ask(gathered, name));
      });
      await Promise.all(['good', 'bad', 'good too'].map((name) => ask(gathered, name)));
      await Promise.all(all);
      expect(gathered.units).toEqual([
        ['good', 'bad', 'good too'],
        ['meanwhile', 'meanwhile too'],
        ['good'],
        ['bad'],
        ['good too'],
      ]);
      expect(answers).toEqual({
        good: ['GOOD'],
        bad: ['a bad one'],
        'good too': ['GOOD TOO'],
        meanwhile: ['MEANWHILE'],
        'meanwhile too': ['MEANWHILE TOO'],
      });
      expect(await stored()).toEqual(['meanwhile', 'meanwhile too', 'good', 'good too']);
    });

    it('are each told once when their commit fails after they ran', async () => {
      const gathered = gather();
      await Promise.all([
        ask(gathered, 'one'),
        ask(gathered, 'two'),
        database.write(poison).catch(() => undefined),
      ]);
      await ask(gathered, 'three');
      expect(answers).toEqual({
        one: ['ERR_UNAVAILABLE'],
        two: ['ERR_UNAVAILABLE'],
        three: ['THREE'],
      });
      expect(await stored()).toEqual(['three']);
    });

    it('are each told once when their unit never ran, and so are those who ask again at once', async () => {
      const gathered = gather();
      await database.write((tx) => tx.rows('PRAGMA busy_timeout = 1'));
      await other.query('BEGIN IMMEDIATE');
      await Promise.all(
        ['one', 'two'].map(async (name) => {
          await ask(gathered, name);
          await ask(gathered, `${name} again`);
        }),
      );
      await other.query('ROLLBACK');
      await ask(gathered, 'three');
      expect(answers).toEqual({
        one: ['ERR_UNAVAILABLE'],
        two: ['ERR_UNAVAILABLE'],
        'one again': ['ERR_UNAVAILABLE'],
        'two again': ['ERR_UNAVAILABLE'],
        three: ['THREE'],
      });
      expect(gathered.units).toEqual([['three']]);
    });

    it('are each answered where their transaction is run again', async () => {
      const units: string[][] = [];
      // Another database may undo a transaction that met another, and have it run once more.
      const retrying: Pick<Database, 'write' | 'insideWrite' | 'maxGatheredUnits'> = {
        insideWrite: false,
        maxGatheredUnits: 1,
        write: (work) =>
          database.write(async (tx) => {
            await work(tx);
            await tx.run('DELETE FROM notes');
            return work(tx);
          }),
      };
      const write = new Batcher<string, string>(retrying, async (tx, requests) => {
        units.push([...requests]);
        for (const request of requests) await note(request)(tx);
        return requests.map((request) => request.toUpperCase());
      });
      expect(await Promise.all(['one', 'two'].map((name) => write.run(name)))).toEqual(['ONE', 'TWO']);
      expect(units).toEqual([
        ['one', 'two'],
        ['one', 'two'],
      ]);
      expect(await stored()).toEqual(['one', 'two']);
    });

    describe('by weight', () => {
      const units: string[][] = [];
      const weighing = (): Batcher<string, string> =>
        new Batcher<string, string>(
          database,
          async (_, requests) => {
            units.push([...requests]);
            return [...requests];
          },
          {
            weightOf: (request) => (request.startsWith('heavy') ? 8 : 3),
            maxWeight: 10,
            keyOf: (request) => request.split(' of ')[1],
          },
        );
      beforeEach(() => units.splice(0));

      it.each([
        [
          'as many as fit, in their order',
          ['a', 'b', 'c', 'd', 'e'],
          [
            ['a', 'b', 'c'],
            ['d', 'e'],
          ],
        ],
        [
          'one heavy one, and light ones that overtake the others',
          ['heavy 1', 'a', 'heavy 2', 'b', 'heavy 3'],
          [['heavy 1', 'a', 'b'], ['heavy 2'], ['heavy 3']],
        ],
        [
          'none that overtakes what came before it with its key',
          ['heavy 1', 'heavy 2 of x', 'a of x', 'b of y'],
          [['heavy 1', 'b of y'], ['heavy 2 of x'], ['a of x']],
        ],
      ])('share a unit: %s', async (_, requests, expected) => {
        const batcher = weighing();
        expect(await Promise.all(requests.map((request) => batcher.run(request)))).toEqual(requests);
        expect(units).toEqual(expected);
      });
    });

    it('are run alone if others kept undoing their unit, so that one of them fails alone', async () => {
      const units: string[][] = [];
      const conflicting: Pick<Database, 'write' | 'insideWrite' | 'maxGatheredUnits'> = {
        insideWrite: false,
        maxGatheredUnits: 1,
        write: (work) =>
          database.write(work).catch((error: unknown) => {
            throw error instanceof UnitConflict
              ? fail('ERR_UNAVAILABLE', undefined, { cause: error })
              : error;
          }),
      };
      const write = new Batcher<string, string>(conflicting, async (_, requests) => {
        units.push([...requests]);
        if (requests.includes('gone')) throw new UnitConflict('it hung up');
        return [...requests];
      });
      const answers = await Promise.allSettled(['one', 'gone', 'two'].map((request) => write.run(request)));
      expect(answers.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled']);
      expect(units).toEqual([['one', 'gone', 'two'], ['one'], ['gone'], ['two']]);
    });

    it('may not come from inside a unit of work, also where others wait to be gathered', async () => {
      const gathered = gather();
      const inner: Promise<void>[] = [];
      const outer = database.write(async () => {
        outside(() => inner.push(ask(gathered, 'from outside')));
        await expect(gathered.write.run('inner')).rejects.toThrow('inside a unit of work');
      });
      await outer;
      await Promise.all(inner);
      expect(answers).toEqual({ 'from outside': ['FROM OUTSIDE'] });
    });
  });
});
