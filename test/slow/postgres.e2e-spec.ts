import { execFileSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import type { Database } from '../../src/database/database';
import { openDatabase } from '../../src/database/open-database';
import type { Transaction } from '../../src/database/statements';
import { LeaseEndings } from '../../src/leases/lease-endings';
import { parseDatabaseUrl } from '../../src/settings';
import { dnsTask, onPostgres, TestServer } from '../helpers/harness';
import { databaseAt, rowsAt, ScratchDatabases } from '../helpers/postgres-server';
import { endAll, freePort, Program, type ProgramOptions, ServerProcess } from '../helpers/processes';
import { until } from '../helpers/until';

const SERVER = process.env.CONTROL_PLANE_TEST_POSTGRES_URL as string;
/** Part of every password here; it must never be shown. */
const MARKER = 'MARKER';

const onShared = onPostgres ? describe : describe.skip;

/** The address of a database on the tests' server. */
const addressOf = (name: string, fields: Partial<Pick<URL, 'username' | 'password' | 'port'>> = {}): string =>
  databaseAt(SERVER, name, fields);

/** The way to a server: counts what the client sends, and can be cut. */
class Way {
  /** How often the direction changed from answers to requests: each is a round trip. */
  flights = 0;
  private readonly sockets = new Set<Socket>();
  private isAnswering = true;

  private constructor(
    private readonly server: Server,
    readonly port: number,
  ) {}

  static async to(url: string): Promise<Way> {
    const { hostname, port } = new URL(url);
    const server = createServer();
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const way = new Way(server, (server.address() as AddressInfo).port);
    server.on('connection', (socket) => way.join(socket, connect(Number(port), hostname)));
    return way;
  }

  private join(client: Socket, upstream: Socket): void {
    let isAnswered = true;
    for (const [from, to] of [
      [client, upstream],
      [upstream, client],
    ] as const) {
      this.sockets.add(from);
      from.on('error', () => undefined).on('close', () => to.destroy());
    }
    client.on('data', (chunk) => {
      if (isAnswered) this.flights++;
      isAnswered = false;
      upstream.write(chunk);
    });
    upstream.on('data', (chunk) => {
      isAnswered = true;
      if (this.isAnswering) client.write(chunk);
    });
  }

  stopAnswers(): void {
    this.isAnswering = false;
  }

  /** Ends all connections; new ones can be made. */
  cut(): void {
    this.isAnswering = true;
    for (const socket of this.sockets) socket.destroy();
    this.sockets.clear();
  }

  end(): void {
    this.server.close();
    this.cut();
  }
}

onShared('a server of PostgreSQL', () => {
  const databases = new ScratchDatabases();
  const roles: string[] = [];
  let folder: string;

  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
  });
  afterAll(async () => {
    await endAll();
    await databases.drop();
    for (const name of roles) await rowsAt(SERVER, `DROP ROLE IF EXISTS "${name}"`);
    rmSync(folder, { recursive: true, force: true });
  });

  const onDatabase = (url: string, args?: string[]): ProgramOptions => ({
    env: { LEASE_DURATION_MS: '2000', DATABASE_URL: url },
    args,
    nodeArgs: ['--throw-deprecation'],
  });

  async function finish(url: string, args?: string[]): Promise<{ code: number | null; output: string }> {
    const program = Program.run(folder, onDatabase(url, args));
    const code = await program.ended();
    return { code, output: program.output + program.errors };
  }

  const start = (url: string): Promise<ServerProcess> => ServerProcess.start(folder, onDatabase(url));

  describe('that takes no writes any more', () => {
    let server: TestServer;
    let name: string;
    beforeEach(async () => {
      server = await TestServer.start();
      [{ name }] = await server.rows('SELECT current_database() AS name');
    });
    afterEach(() => server.stop());

    const ready = async () => (await server.request('GET', '/readyz')).status;

    it('loses its connections, and the change is made on others', async () => {
      // As after a failover: each connection of the pool leads to a server that is a standby now.
      const count = 4;
      const arrived = Promise.withResolvers<void>();
      let waiting = 0;
      await Promise.all(
        Array.from({ length: count }, () =>
          server.database.write(async (tx) => {
            await tx.rows('SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY');
            if (++waiting === count) arrived.resolve();
            await arrived.promise;
          }),
        ),
      );
      const [id] = await server.enqueue(dnsTask());
      expect(id).toBeGreaterThan(0);
      expect(await server.rows('SHOW transaction_read_only')).toEqual([{ transaction_read_only: 'off' }]);
    });

    it('is not ready until it does again', async () => {
      expect(await ready()).toBe(200);
      await rowsAt(SERVER, `ALTER DATABASE "${name}" SET default_transaction_read_only = on`);
      await rowsAt(
        SERVER,
        `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '${name}' AND pid <> pg_backend_pid()`,
      );
      await until('the server is not ready', async () => (await ready()) === 503);
      await rowsAt(SERVER, `ALTER DATABASE "${name}" RESET default_transaction_read_only`);
      await until('the server is ready again', async () => (await ready()) === 200);
      await server.enqueue(dnsTask());
    });

    it('is ready while all the connections of the pool are taken', async () => {
      const release = await server.holdWriter();
      try {
        expect(await ready()).toBe(200);
      } finally {
        await release();
      }
    });
  });

  it('is told how to isolate, and waits for no lock forever', async () => {
    const server = await TestServer.start();
    try {
      const [{ name }] = await server.rows('SELECT current_database() AS name');
      await rowsAt(SERVER, `ALTER DATABASE "${name}" SET default_transaction_isolation = 'serializable'`);
      const url = addressOf(name);
      const target = parseDatabaseUrl(url);
      if (typeof target === 'string') throw new Error(target);
      const database = await openDatabase({ database: target, migrateOnStart: false, poolSize: 2 });
      try {
        const said = await database.write(async (tx) => ({
          ...(await tx.first<object>('SHOW transaction_isolation')),
          ...(await tx.first<object>('SHOW lock_timeout')),
          ...(await tx.first<object>('SHOW statement_timeout')),
        }));
        expect(said).toEqual({
          transaction_isolation: 'read committed',
          lock_timeout: '9s',
          statement_timeout: '10s',
        });
        const holder = new pg.Client(url);
        await holder.connect();
        await holder.query('BEGIN; LOCK TABLE agents');
        await expect(
          database.write((tx) => tx.rows('UPDATE agents SET state = state')),
        ).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE', retryable: true });
        await holder.end();
      } finally {
        await database.close();
        await rowsAt(SERVER, `ALTER DATABASE "${name}" RESET default_transaction_isolation`);
      }
    } finally {
      await server.stop();
    }
  });

  it('gives each unit one instant, its own', async () => {
    const server = await TestServer.start();
    try {
      const [before, now, after] = await server.database.write(async (tx) => {
        const ask = `SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS at,
          (extract(epoch FROM transaction_timestamp()) * 1000)::bigint AS began`;
        const first = await tx.first<{ at: number; began: number }>(ask);
        return [first?.began ?? 0, tx.now, first?.at ?? 0];
      });
      expect(now).toBeGreaterThanOrEqual((before as number) - 1);
      expect(now).toBeLessThanOrEqual(after as number);
    } finally {
      await server.stop();
    }
  });

  describe('a unit of work that sends statements without awaiting between them', () => {
    let server: TestServer;
    let way: Way;
    let database: Database;

    beforeEach(async () => {
      server = await TestServer.start();
      const [{ name }] = await server.rows('SELECT current_database() AS name');
      way = await Way.to(SERVER);
      const target = parseDatabaseUrl(addressOf(name, { port: String(way.port) }));
      if (typeof target === 'string') throw new Error(target);
      database = await openDatabase({ database: target, migrateOnStart: false, poolSize: 2 });
      await server.rows('CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY, text text UNIQUE)');
      await server.rows(
        'CREATE TABLE pages (note text REFERENCES notes (text) DEFERRABLE INITIALLY DEFERRED)',
      );
    });
    afterEach(async () => {
      await database.close();
      way.end();
      await server.rows('DROP TABLE pages, notes');
      await server.stop();
    });

    const note = (tx: Transaction, text: string) =>
      tx.first<{ id: number }>('INSERT INTO notes (text) VALUES ($1) RETURNING id', text);
    const stored = async () =>
      (await server.rows('SELECT text FROM notes ORDER BY id')).map(({ text }: { text: string }) => text);

    it('sends them together, in their order, and announcements with the commit', async () => {
      const texts = ['a', 'b', 'c', 'd'];
      const one = () =>
        database.write(async (tx) => {
          tx.announce('topic', 'heard');
          const ids = await Promise.all(texts.map((text) => note(tx, text)));
          await tx.run('DELETE FROM notes WHERE text = $1', 'd');
          return ids.map((row) => row?.id);
        });
      await one();
      await server.rows('DELETE FROM notes');
      const before = way.flights;
      expect(await one()).toEqual([5, 6, 7, 8]);
      expect(await stored()).toEqual(['a', 'b', 'c']);
      // BEGIN, the four, the DELETE, the notification with COMMIT; and on the way back as many.
      expect(way.flights - before).toEqual(4);
    });

    it('is undone by one that fails, and told of that one; the connection serves the next', async () => {
      await database.write((tx) => note(tx, 'taken'));
      for (let attempt = 0; attempt < 3; attempt++) {
        const unit = database.write((tx) =>
          // Statements that this connection has not prepared yet, so that the server refuses to parse them too.
          Promise.all([
            note(tx, 'before'),
            tx.first(`SELECT $1::int / 0 AS attempt_${attempt}`, 1),
            tx.run(`SELECT $1::int AS again_${attempt}`, 1),
            tx.run(`SELECT $1::int AS again_${attempt}`, 2),
          ]),
        );
        await expect(unit).rejects.toMatchObject({ code: '22012' });
      }
      const parts = await database.write(async (tx) => {
        const part = await tx.attempt(() =>
          Promise.all([note(tx, 'undone'), note(tx, 'taken'), tx.run('SELECT $1::int AS later', 1)]),
        );
        await Promise.all([note(tx, 'after'), tx.run('SELECT $1::int AS later', 1)]);
        return part;
      });
      expect(parts).toMatchObject({ status: 'rejected', reason: { code: '23505' } });
      expect(await stored()).toEqual(['taken', 'after']);
    });

    it('is told that nothing is stored if the commit is refused, and announces nothing', async () => {
      const heard: string[] = [];
      server.database.onAnnouncement('topic', (message) => heard.push(message));
      const unit = database.write((tx) => {
        tx.announce('topic', 'of nothing');
        return Promise.all([note(tx, 'a'), tx.run('INSERT INTO pages (note) VALUES ($1)', 'missing')]);
      });
      await expect(unit).rejects.toMatchObject({ code: '23503' });
      await database.write(async (tx) => tx.announce('topic', 'of something'));
      await until('an announcement is heard', () => heard.length > 0);
      expect(heard).toEqual(['of something']);
      expect(await stored()).toEqual([]);
    });

    it('is told that the database is away, all of them, if the connection is cut', async () => {
      const outcomes = database.write((tx) => {
        const sent = ['a', 'b', 'c'].map((text) => note(tx, text));
        way.cut();
        return Promise.allSettled(sent).then((settled) => {
          expect(settled.map(({ status }) => status)).toEqual(['rejected', 'rejected', 'rejected']);
          throw (settled[0] as PromiseRejectedResult).reason;
        });
      });
      await expect(outcomes).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE', retryable: true });
      expect(await stored()).toEqual([]);
    });

    it('is told that its effect is unknown if the connection is cut while it commits', async () => {
      const unit = database.write(async (tx) => {
        tx.announce('topic', 'heard');
        await note(tx, 'a');
        way.stopAnswers();
        // The server has the commit, and its answer does not come.
        setTimeout(() => way.cut(), 300);
      });
      await expect(unit).rejects.toMatchObject({
        code: 'ERR_UNAVAILABLE',
        message: expect.stringContaining('may be stored or not'),
      });
      expect(await stored()).toEqual(['a']);
    });

    it('waits for a lock by name as long as it is told, and for others as long as ever', async () => {
      const holds = Promise.withResolvers<void>();
      const release = Promise.withResolvers<void>();
      const holder = database.write(async (tx) => {
        await tx.lockName('a', 'exclusive', 50);
        holds.resolve();
        await release.promise;
        return tx.first<object>('SHOW lock_timeout');
      });
      await holds.promise;
      await expect(database.write((tx) => tx.lockName('a', 'shared', 50))).rejects.toMatchObject({
        code: 'ERR_UNAVAILABLE',
      });
      release.resolve();
      expect(await holder).toEqual({ lock_timeout: '9s' });
    });
  });

  it('prints nothing of deprecated calls, in the server and in what an operator runs', async () => {
    const url = addressOf(await databases.make());
    const server = await start(url);
    await server.register();
    const doctor = await finish(url, ['doctor']);
    expect(doctor.output).toMatch(/ok {4}database/);
    expect(await server.end('SIGTERM')).toBe(0);
    expect([server.program.errors, doctor.output].join()).not.toMatch(/Deprecation/);
  });

  it('takes nothing from live leases after a replica was suspended', async () => {
    const url = addressOf(await databases.make());
    const replica = await start(url);
    const agent = await replica.register();
    await replica.enqueue(dnsTask(), dnsTask(), dnsTask());
    const claimed = await replica.agent(agent, '/claim', { capacities: { dns: 3 } });
    const lease_ids = claimed.body.leases.map(({ lease_id }: { lease_id: number }) => lease_id);
    expect(lease_ids).toHaveLength(3);
    replica.program.child.kill('SIGSTOP');
    // Longer than the leases, and than a pause that is no outage.
    await new Promise((resolve) => setTimeout(resolve, 7_000));
    replica.program.child.kill('SIGCONT');
    const extended = await replica.agent(agent, '/extend', { lease_ids, extend_by_ms: 2_000 });
    expect(extended.body).toMatchObject({ revoked: [] });
    expect(await replica.end('SIGTERM')).toBe(0);
  });

  it('takes nothing from live leases by what a replica knew before it was suspended', async () => {
    const server = await TestServer.start({ LEASE_DURATION_MS: '1000' });
    try {
      const agent = await server.register();
      await server.enqueue(dnsTask());
      await server.agent(agent, '/claim', { capacities: { dns: 1 } });
      // Nobody served since: the row says so, whatever this process remembers.
      await server.rows(
        `UPDATE service_continuity SET last_seen_at = last_seen_at - 60000 WHERE id = 1 RETURNING id`,
      );
      await server.rows(`UPDATE leases SET deadline_at = deadline_at - 60000 RETURNING id`);
      expect(await server.app.get(LeaseEndings).expireOverdue(10)).toBe(0);
    } finally {
      await server.stop();
    }
  });

  describe('on the first day', () => {
    /** Starts on a database that can't be used. @returns what is said, which is one line without any of a password */
    async function refused(url: string): Promise<string> {
      const { code, output } = await finish(url);
      expect(output).not.toContain(MARKER);
      expect(output.trimEnd()).not.toContain('\n');
      expect([1, 2]).toContain(code);
      return output;
    }

    it.each([
      ['a raw %', `postgres://me:${MARKER}%zz@127.0.0.1:1/name`],
      ['a raw #', `postgres://me:12#${MARKER}@127.0.0.1:1/name`],
      ['a raw /', `postgres://me:12/${MARKER}@127.0.0.1:1/name`],
      ['a raw / and no database', `postgres://me:12/${MARKER}@127.0.0.1`],
      ['a raw ?', `postgres://me:12?${MARKER}@127.0.0.1:1/name`],
    ])('says of a password with %s how to write it', async (_, url) => {
      expect(parseDatabaseUrl(url)).toMatch(/%25/);
      expect(await refused(url)).toMatch(/^CONTROL_PLANE_DATABASE_URL must name a host and a database/);
    });

    it('says in a line that the password is wrong, that nobody answers, and that the database is not there', async () => {
      const { port } = new URL(SERVER);
      expect(await refused(`postgres://nobody:${MARKER}@127.0.0.1:${port}/name`)).toMatch(
        /^The PostgreSQL server can't be used: .*nobody/,
      );
      expect(await refused(`postgres://me:${MARKER}@127.0.0.1:1/name`)).toMatch(/ECONNREFUSED/);
      expect(await refused(addressOf('no_such_database'))).toMatch(/no_such_database/);
    });

    it('says in a line that the user may not make tables', async () => {
      const name = await databases.make();
      const role = `control_plane_${randomUUID()}`;
      await rowsAt(SERVER, `CREATE ROLE "${role}" LOGIN PASSWORD '${MARKER}'`);
      roles.push(role);
      expect(await refused(addressOf(name, { username: role, password: MARKER }))).toMatch(
        /^The database's user lacks a right \(permission denied for schema public\): .*GRANT|grant/,
      );
    });

    it('refuses an encoding that can not hold every text, and doctor says the same', async () => {
      const url = addressOf(
        await databases.make(`ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0`),
      );
      expect(await refused(url)).toMatch(/^The encoding of the database .* is SQL_ASCII/);
      const doctor = await finish(url, ['doctor']);
      expect(doctor).toMatchObject({
        code: 1,
        output: expect.stringMatching(/FAIL {2}database .*SQL_ASCII/),
      });
    });
  });

  describe('behind a pooler', () => {
    const found = ['/usr/sbin/pgbouncer', '/usr/bin/pgbouncer'].find((path) => {
      try {
        execFileSync(path, ['--version'], { stdio: 'ignore' });
        return true;
      } catch {
        return false;
      }
    });
    const withPooler = found ? it : it.skip;

    async function pooler(mode: string, roundRobin: number): Promise<string> {
      const port = await freePort();
      const { hostname, port: behind, username, password } = new URL(SERVER);
      const config = join(folder, `pooler-${port}.ini`);
      writeFileSync(join(folder, 'users.txt'), `"${username}" "${password}"\n`);
      writeFileSync(
        config,
        `[databases]\n* = host=${hostname} port=${behind}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = ${port}\n` +
          `unix_socket_dir =\nauth_type = plain\nauth_file = ${join(folder, 'users.txt')}\npool_mode = ${mode}\n` +
          `server_round_robin = ${roundRobin}\n`,
      );
      const asRoot = process.getuid?.() === 0;
      if (asRoot) execFileSync('chmod', ['-R', 'a+rX', folder]);
      const program = Program.spawn(found as string, asRoot ? ['-u', 'nobody', config] : [config]);
      await until('the pooler takes connections', () => {
        if (!program.runs) throw new Error(`the pooler did not start: ${program.output}${program.errors}`);
        return new Promise<boolean>((resolve) => {
          const socket = connect(port, '127.0.0.1', () => socket.end(() => resolve(true)));
          socket.on('error', () => resolve(false));
        });
      });
      return String(port);
    }

    withPooler.each([0, 1])('refuses one that pools transactions (round robin: %d)', async (roundRobin) => {
      const name = await databases.make();
      const port = await pooler('transaction', roundRobin);
      const { code, output } = await finish(addressOf(name, { port }));
      expect([code, output]).toEqual([
        1,
        expect.stringMatching(/^The connection to PostgreSQL goes through a pooler .*session mode.*\n$/),
      ]);
    });

    withPooler('takes one that pools sessions', async () => {
      const name = await databases.make();
      const port = await pooler('session', 0);
      const server = await start(addressOf(name, { port }));
      expect(await server.status('/readyz')).toBe(200);
      expect(await server.end('SIGTERM')).toBe(0);
    });
  });
});
