import { execFileSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Sqlite from 'better-sqlite3';
import { Checkpointer } from '../../src/database/checkpointer';
import type { Commit, Database } from '../../src/database/database';
import { openDatabase } from '../../src/database/open-database';
import type { DatabaseReplacements } from '../../src/database/sqlite-database';
import type { Transaction } from '../../src/database/statements';
import { until } from '../helpers/until';

const PAGE = 4_096;
const WAL_HEADER = 32;

/** Resolves after this number of turns of the event loop: what could happen by then has happened. */
const turns = async (count = 20): Promise<void> => {
  for (let turn = 0; turn < count; turn++) await new Promise((resolve) => setImmediate(resolve));
};

describe('a commit on SQLite', () => {
  let folder: string;
  let path: string;
  let database: Database;

  const open = (replacements: DatabaseReplacements = {}): Promise<Database> =>
    openDatabase(
      { database: { type: 'sqlite', path }, migrateOnStart: true, poolSize: 1 },
      [],
      [],
      replacements,
    );

  const start = async (replacements: DatabaseReplacements = {}): Promise<void> => {
    database = await open(replacements);
    await database.write((tx) => tx.run('CREATE TABLE notes (id integer PRIMARY KEY, text text NOT NULL)'));
  };

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-power-'));
    path = join(folder, 'test.db');
  });
  afterEach(async () => {
    await database.close();
    rmSync(folder, { recursive: true });
  });

  const note = (text: string) => (tx: Transaction) => tx.run('INSERT INTO notes (text) VALUES ($1)', text);
  const seen = async (): Promise<string[]> =>
    (await database.read((s) => s.rows<{ text: string }>('SELECT text FROM notes ORDER BY id'))).map(
      ({ text }) => text,
    );

  describe('whose sync takes its time', () => {
    /** The syncs that run, to be ended by the test. */
    let syncs: { end: () => void; fail: (error: Error) => void }[];
    let isHeld: boolean;
    let commits: Commit[];

    beforeEach(async () => {
      syncs = [];
      commits = [];
      isHeld = false;
      await start({
        sync: () =>
          isHeld
            ? new Promise((resolve, reject) => syncs.push({ end: resolve, fail: reject }))
            : Promise.resolve(),
      });
      database.onCommit((commit) => commits.push(commit));
      isHeld = true;
    });
    afterEach(() => {
      isHeld = false;
      for (const { end } of syncs) end();
    });

    it('is seen, has its effects, and is not answered before', async () => {
      const order: string[] = [];
      const answers = ['a', 'b'].map((text) =>
        database
          .write((tx) => {
            tx.afterCommit(() => order.push(`effect of ${text}`));
            return note(text)(tx);
          })
          .then(() => order.push(`answer to ${text}`)),
      );
      const refusal = database
        .write(() => Promise.reject(new Error('no')))
        .catch(() => order.push('refusal'));
      await turns();
      expect(await seen()).toEqual(['a', 'b']);
      expect(order).toEqual(['effect of a', 'effect of b']);
      expect(commits).toEqual([]);
      syncs[0]?.end();
      await Promise.all([...answers, refusal]);
      expect(order.slice(2)).toEqual(['answer to a', 'answer to b', 'refusal']);
      expect(commits).toMatchObject([{ units: 3, failed: false }]);
    });

    it('lets others gather, who share the next sync; one runs at a time, and covers only what was committed before it', async () => {
      const answered: string[] = [];
      const write = (text: string) => database.write(note(text)).then(() => void answered.push(text));
      const all = [write('first')];
      await turns();
      all.push(...['second', 'third'].map(write));
      await turns();
      expect(syncs).toHaveLength(1);
      expect(answered).toEqual([]);
      expect(await seen()).toEqual(['first']);
      syncs[0]?.end();
      await turns();
      expect(answered).toEqual(['first']);
      expect(await seen()).toEqual(['first', 'second', 'third']);
      expect(syncs).toHaveLength(2);
      syncs[1]?.end();
      await Promise.all(all);
      expect(answered).toEqual(['first', 'second', 'third']);
    });

    it('does not hold up a crowd: it is committed meanwhile, and answered by the next sync', async () => {
      const answered: string[] = [];
      const write = (text: string) => database.write(note(text)).then(() => void answered.push(text));
      const all = [write('first')];
      await turns();
      all.push(...Array.from({ length: 500 }, (_, i) => write(`note ${i}`)));
      await until('the crowd is committed', seen, { isDone: (notes) => notes.length > 1 });
      expect(syncs).toHaveLength(1);
      expect(answered).toEqual([]);
      syncs[0]?.end();
      await until('the next sync begins', () => syncs.length >= 2);
      expect(answered).toEqual(['first']);
      isHeld = false;
      syncs[1]?.end();
      await Promise.all(all);
      expect(answered).toHaveLength(501);
    });

    it('is waited for by who closes the database', async () => {
      let isClosed = false;
      const written = database.write(note('a'));
      await turns();
      const closed = database.close().then(() => {
        isClosed = true;
      });
      await turns();
      expect(isClosed).toBe(false);
      syncs[0]?.end();
      await Promise.all([written, closed]);
    });

    it('ends the process if that fails: nobody is told that it is stored, and no sync is tried again', async () => {
      const lost: Error[] = [];
      database.onLost((reason) => lost.push(reason));
      const unknown = database.write(note('a'));
      await turns();
      const later = [database.write(note('b')), database.write(note('c'))];
      await turns();
      syncs[0]?.fail(Object.assign(new Error('EIO: i/o error, fdatasync'), { code: 'EIO' }));
      await expect(unknown).rejects.toMatchObject({
        code: 'ERR_UNAVAILABLE',
        retryable: true,
        message: expect.stringContaining('may be stored or not'),
      });
      for (const write of later) await expect(write).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' });
      await expect(database.write(note('d'))).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' });
      await expect(database.ready()).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' });
      expect(lost).toEqual([expect.objectContaining({ message: expect.stringContaining('EIO') })]);
      expect(syncs).toHaveLength(1);
      expect(commits).toMatchObject([
        { failed: true, units: 1 },
        { failed: true, units: 0 },
      ]);
      // To close it would copy the log, of which nobody knows what is on the disk, into the database.
      const before = readFileSync(path);
      await database.close();
      expect(statSync(`${path}-wal`).size).toBeGreaterThan(0);
      expect(readFileSync(path).equals(before)).toBe(true);
    });
  });

  /** The notes in copies of a database's file and log, as a start after a power cut finds them. */
  function notesIn(copy: string): Set<string> {
    const file = new Sqlite(join(copy, 'test.db'));
    try {
      expect(file.pragma('integrity_check', { simple: true })).toBe('ok');
      return new Set(file.prepare('SELECT text FROM notes').pluck().all() as string[]);
    } finally {
      file.close();
    }
  }

  it.each([
    { while: 'few write', writers: 8, writes: 12 },
    {
      while: 'the log is copied, and begun again, all the time',
      writers: 8,
      writes: 12,
      checkpointPages: 40,
    },
    {
      while: 'more units wait than one commit takes, and commits do not wait for syncs',
      writers: 1_000,
      writes: 1,
    },
  ])('keeps what was answered when the power is cut at any time, while $while', async (load) => {
    const { writers, writes, checkpointPages } = load;
    /** The files as they were when each sync began. The disk has no less once it has ended. */
    const copies: string[] = [];
    /** How many of these syncs have ended. */
    let ended = 0;
    let logs = 0;
    const take = (): string => {
      const copy = join(folder, `copy-${copies.length}`);
      mkdirSync(copy);
      // By another process: a descriptor that is closed in this one ends SQLite's locks. The file before its log, for the
      // log has all that a checkpoint copies meanwhile.
      execFileSync('cp', [path, `${path}-wal`, copy]);
      return copy;
    };
    await start({
      checkpointPages,
      sync: async () => {
        copies.push(take());
        await new Promise((resolve) => setTimeout(resolve, Math.random() * 3));
        ended++;
      },
    });
    const headOf = (copy: string): string =>
      readFileSync(join(copy, 'test.db-wal')).toString('hex', 0, WAL_HEADER);
    /** By the number of syncs that had ended when it was answered. */
    const answered = new Map<number, string[]>();
    await Promise.all(
      Array.from({ length: writers }, async (_, writer) => {
        await new Promise((resolve) => setTimeout(resolve, Math.random() * (writers / 20)));
        for (let i = 0; i < writes; i++) {
          const text = `${writer}-${i}-${'x'.repeat(Math.random() * 3 * PAGE)}`;
          await database.write(note(text));
          answered.set(ended, [...(answered.get(ended) ?? []), text]);
        }
      }),
    );
    copies.push(take());
    const expected: string[] = [];
    for (let syncs = 1; syncs <= ended; syncs++) {
      expected.push(...(answered.get(syncs) ?? []));
      const onDisk = copies[syncs - 1] as string;
      const next = copies[syncs] as string;
      // Some of what was written after it may have reached the disk too, up to anywhere.
      const synced = statSync(join(onDisk, 'test.db-wal')).size;
      const written = statSync(join(next, 'test.db-wal')).size;
      if (headOf(onDisk) === headOf(next) && written > synced) {
        const torn = join(folder, 'torn');
        cpSync(next, torn, { recursive: true });
        truncateSync(join(torn, 'test.db-wal'), synced + Math.floor(Math.random() * (written - synced)));
        const notes = notesIn(torn);
        expect(expected.filter((text) => !notes.has(text))).toEqual([]);
        rmSync(torn, { recursive: true });
      } else logs++;
      const notes = notesIn(onDisk);
      expect(expected.filter((text) => !notes.has(text))).toEqual([]);
    }
    expect(expected).toHaveLength(writers * writes);
    if (checkpointPages !== undefined) expect(logs).toBeGreaterThan(0);
  });

  describe('log', () => {
    it('is begun again and again under steady load, while reads and a commit at a time go on', async () => {
      await start({ checkpointPages: 200 });
      const text = 'x'.repeat(PAGE);
      let largest = 0;
      let done = false;
      const write = async (): Promise<void> => {
        for (let i = 0; i < 1_500; i++) {
          await database.write(note(text));
          largest = Math.max(largest, statSync(`${path}-wal`).size);
        }
      };
      const read = async (): Promise<void> => {
        while (!done) {
          await database.read((statements) => statements.first('SELECT count(*) AS n FROM notes'));
          await turns(1);
        }
      };
      const reading = read();
      await Promise.all([write(), write(), write(), write()]);
      done = true;
      await reading;
      // 12,000 pages and more went through it.
      expect(largest).toBeLessThan(2_500 * PAGE);
      expect(await database.read((s) => s.first('SELECT count(*) AS n FROM notes'))).toEqual({ n: 6_000 });
      expect(await database.read((s) => s.rows('PRAGMA integrity_check'))).toEqual([
        { integrity_check: 'ok' },
      ]);
    });

    it('of an earlier process is in the database before anything depends on it', async () => {
      await start();
      await database.write(note('kept'));
      const copy = join(folder, 'copy');
      mkdirSync(copy);
      execFileSync('cp', [path, `${path}-wal`, copy]);
      await database.close();
      expect(statSync(join(copy, 'test.db-wal')).size).toBeGreaterThan(0);
      path = join(copy, 'test.db');
      database = await open();
      expect(statSync(`${path}-wal`).size).toBe(0);
      expect(await seen()).toEqual(['kept']);
    });

    it('that is removed while it is in use has the process stop', async () => {
      await start();
      const lost: Error[] = [];
      database.onLost((reason) => lost.push(reason));
      rmSync(`${path}-wal`);
      await expect(database.write(note('a'))).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' });
      expect(lost).toEqual([
        expect.objectContaining({ message: expect.stringContaining('the log beside it') }),
      ]);
    });

    it('has none, in memory: it is answered at once', async () => {
      path = ':memory:';
      await start({ sync: () => Promise.reject(new Error('there is no file')) });
      await database.write(note('a'));
      expect(await seen()).toEqual(['a']);
      expect(existsSync(':memory:-wal')).toBe(false);
    });
  });

  it('whose file can not be synced by a checkpoint has the process stop', async () => {
    await start();
    const failures: Error[] = [];
    // A file that takes every write and can't be synced.
    const checkpointer = new Checkpointer(
      '/dev/null',
      async () => ({ log: 1, checkpointed: 0 }),
      (error) => failures.push(error),
      1,
    );
    await checkpointer.afterCommit();
    await checkpointer.stop();
    expect(failures).toEqual([expect.objectContaining({ message: expect.stringContaining('fdatasync') })]);
  });
});
