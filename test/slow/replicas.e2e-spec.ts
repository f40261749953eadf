import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { hasPostgres } from '../../scripts/postgres-process.mjs';
import { dnsTask } from '../helpers/harness';
import { readHistory } from '../helpers/history-checker';
import { PostgresServer } from '../helpers/postgres-server';
import { endAll, Program, type ServerProcess } from '../helpers/processes';
import {
  clockOff,
  judge,
  LEASE_MS,
  Load,
  mutant,
  observe,
  replicaEnv,
  startReplica,
  triesOf,
} from '../helpers/replicas';
import { until } from '../helpers/until';

const HOUR_MS = 3_600_000;
/** For machines with much else to do. */
const PATIENCE_MS = 180_000;
/** How long replicas may take to be themselves again. */
const OUTAGE_MS = 60_000;

/** A way to PostgreSQL that can become silent: nothing is closed, and nothing comes through any more. */
class Wire {
  private readonly sockets = new Set<Socket>();
  private silent = false;

  private constructor(
    private readonly server: Server,
    readonly port: number,
  ) {}

  static async to(port: number): Promise<Wire> {
    const server = createServer();
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const wire = new Wire(server, (server.address() as AddressInfo).port);
    server.on('connection', (near) => wire.accept(near, port));
    return wire;
  }

  private accept(near: Socket, port: number): void {
    this.keep(near);
    if (this.silent) return void near.pause();
    const far = this.keep(connect(port, '127.0.0.1'));
    near.pipe(far).pipe(near);
  }

  private keep(socket: Socket): Socket {
    this.sockets.add(socket);
    return socket.on('error', () => undefined).on('close', () => this.sockets.delete(socket));
  }

  fallSilent(): void {
    this.silent = true;
    for (const socket of this.sockets) socket.unpipe().pause();
  }

  /** New connections come through again; the silent ones stay so. */
  recover(): void {
    this.silent = false;
  }

  async close(): Promise<void> {
    for (const socket of this.sockets) socket.destroy();
    this.server.close();
    await once(this.server, 'close');
  }
}

/** Adds a task. @returns the status of the answer */
const enqueueAt = async (replica: ServerProcess): Promise<number> =>
  (await replica.operator('POST', '/v1/tasks', { tasks: [dnsTask()] })).status;

const describeWherePostgresIs = hasPostgres ? describe : describe.skip;

describeWherePostgresIs('replicas on PostgreSQL', () => {
  let folder: string;
  let server: PostgresServer;
  let replicas: ServerProcess[];

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
    // The server runs as another user where this is root.
    chmodSync(folder, 0o755);
    const { privateKey } = generateKeyPairSync('ed25519');
    writeFileSync(
      join(folder, 'signing-key.pem'),
      privateKey.export({ type: 'pkcs8', format: 'pem' }) as string,
      { mode: 0o600 },
    );
    server = await PostgresServer.start(folder);
    const database = await server.create('plane');
    // All at once, on a database with nothing in it.
    replicas = await Promise.all([1, 2, 3].map(() => startReplica(folder, database)));
    await observe(server, 'plane');
  }, PATIENCE_MS);

  afterAll(async () => {
    await endAll();
    await server?.stop('SIGINT');
    rmSync(folder, { recursive: true, force: true });
  }, PATIENCE_MS);

  it('migrates once, if several start at once', async () => {
    for (const replica of replicas) expect(await replica.status('/readyz')).toBe(200);
    const migrations = await server.session('plane', (rows) => rows('SELECT name FROM migrations'));
    expect(migrations.map(({ name }) => name)).toEqual([...new Set(migrations.map(({ name }) => name))]);
    expect(migrations.length).toBeGreaterThan(0);
    expect(
      await server.session('plane', (rows) => rows('SELECT count(*) AS count FROM service_continuity')),
    ).toEqual([{ count: 1 }]);
  });

  it(
    'keeps a version off a database that is older than it may migrate, or newer than it knows',
    async () => {
      const database = await server.create('versions');
      const env = replicaEnv(folder, database);
      const older = Program.run(folder, { env: { ...env, MIGRATE_ON_START: 'false' } });
      expect(await older.ended()).toBe(1);
      expect(older.errors).toMatch(/control-plane migrate/);
      expect(await Program.run(folder, { env, args: ['migrate'] }).ended()).toBe(0);
      await server.session('versions', (rows) =>
        rows(`INSERT INTO migrations (timestamp, name) VALUES (9999999999999, 'FromTheFuture9999999999999')`),
      );
      const newer = Program.run(folder, { env });
      expect(await newer.ended()).toBe(1);
      expect(newer.errors).toMatch(/newer version.*FromTheFuture9999999999999/);
    },
    PATIENCE_MS,
  );

  it(
    'loses nothing when a replica is killed, and the others go on answering',
    async () => {
      const load = await Load.start(folder, replicas);
      await load.more(60);
      const victim = replicas[1] as ServerProcess;
      await victim.end('SIGKILL');
      await load.more(60);
      replicas[1] = await startReplica(folder, server.url('plane'));
      load.urls[1] = replicas[1].url;
      await load.more(40);
      await load.stop();
      expect(await judge(load, server, 'plane')).toEqual([]);
      const tries = triesOf(readHistory(load.file));
      const unanswered = tries.filter(({ ended }) => ended.status === null || ended.status >= 500);
      expect(unanswered.filter(({ sent }) => sent.replica !== victim.url)).toEqual([]);
      expect(unanswered.length).toBeGreaterThan(0);
    },
    PATIENCE_MS,
  );

  it(
    'answers 503 with Retry-After while PostgreSQL is away, and is back within 5 s of it',
    async () => {
      const load = await Load.start(folder, replicas);
      await load.more(40);
      await server.stop('SIGQUIT');
      for (const replica of replicas) {
        expect(await replica.status('/readyz')).toBe(503);
        expect(await replica.status('/healthz')).toBe(200);
      }
      // Long enough for a few ticks of every job.
      await sleep(1_000);
      await server.run();
      const since = performance.now();
      const backAfter = await Promise.all(
        replicas.map(async (replica) => {
          await until('the replica takes tasks again', async () => (await enqueueAt(replica)) === 201);
          return performance.now() - since;
        }),
      );
      expect(Math.max(...backAfter)).toBeLessThan(5_000);
      await load.more(30);
      await load.stop();
      expect(await judge(load, server, 'plane')).toEqual([]);
      const tries = triesOf(readHistory(load.file));
      expect(
        new Set(tries.map(({ ended }) => ended.status).filter((status) => Number(status) >= 500)),
      ).toEqual(new Set([503]));
      expect(tries.filter(({ ended }) => ended.status === null)).toEqual([]);
      for (const replica of replicas) {
        expect(replica.runs).toBe(true);
        expect(await replica.status('/readyz')).toBe(200);
        // Once, and not at each of its ticks.
        const failed = replica.program.output.match(/"job":"reaper".*a job failed/g) ?? [];
        expect(failed.length).toBeLessThanOrEqual(3);
      }
    },
    PATIENCE_MS,
  );

  it(
    'does not wait longer than its timeouts for a connection that has gone silent',
    async () => {
      const proxy = await Wire.to(server.port);
      const cutOff = await startReplica(folder, server.url('plane', proxy.port));
      const load = await Load.start(folder, [cutOff, ...replicas.slice(0, 2)]);
      await load.more(40);
      const scrape = async () => {
        const answer = await cutOff.operator('GET', '/metrics');
        return [answer.status, /^control_plane_metrics_read_failures_total (\d+)$/m.exec(answer.body)?.[1]];
      };
      expect(await scrape()).toEqual([200, '0']);
      proxy.fallSilent();
      const since = performance.now();
      const silentTries = () =>
        triesOf(readHistory(load.file)).filter(
          ({ sent, ended }) => sent.replica === cutOff.url && (!ended || ended.at > since),
        );
      await load.more(40);
      expect(await cutOff.status('/healthz')).toBe(200);
      expect(await cutOff.status('/readyz')).toBe(503);
      // An observer sees the outage: also when the token is no longer known to be right.
      await sleep(Math.max(0, since + 6_000 - performance.now()));
      const [seen, failures] = await scrape();
      expect([seen, Number(failures) > 0]).toEqual([200, true]);
      const asked = performance.now();
      await until(
        'nothing that was sent before is unanswered',
        () => !silentTries().some(({ sent, ended }) => sent.at < asked && !ended),
        { everyMs: 100, withinMs: OUTAGE_MS },
      );
      proxy.recover();
      const recovered = performance.now();
      await until(
        'the replica does again what it is asked',
        () => silentTries().some(({ sent, ended }) => sent.at > recovered && Number(ended?.status) < 300),
        { everyMs: 100, withinMs: OUTAGE_MS },
      );
      await load.stop();
      expect(await judge(load, server, 'plane')).toEqual([]);
      const tries = triesOf(readHistory(load.file));
      // 503, and not silence: a client waits longer than the replica does.
      expect(tries.filter(({ ended }) => ended.status === null)).toEqual([]);
      expect(
        tries.filter(({ sent, ended }) => sent.replica !== cutOff.url && Number(ended.status) >= 500),
      ).toEqual([]);
      expect(silentTries().some(({ ended }) => ended.status === 503)).toBe(true);
      expect(cutOff.runs).toBe(true);
      await cutOff.end('SIGKILL');
      await proxy.close();
    },
    PATIENCE_MS,
  );

  it(
    'goes by the clock of the database where those of replicas are an hour ahead and an hour behind',
    async () => {
      const database = await server.create('clocks');
      const env = { AGENT_TOKEN_LIFETIME_MS: '60000' };
      const ahead = await startReplica(folder, database, {
        env,
        nodeArgs: ['--require', clockOff(folder, HOUR_MS)],
      });
      const behind = await startReplica(folder, database, {
        env,
        nodeArgs: ['--require', clockOff(folder, -HOUR_MS)],
      });
      await observe(server, 'clocks');
      const load = await Load.start(folder, [ahead, behind]);
      await load.more(120);
      // Its agents sit on some leases; until one of them has expired, the test has shown nothing.
      const expired = () =>
        server.session('clocks', (rows) => rows(`SELECT 1 FROM leases WHERE state = 'expired' LIMIT 1`));
      await until('a lease has expired', expired, {
        isDone: ({ length }) => length > 0,
        everyMs: 100,
        withinMs: OUTAGE_MS,
      });
      await load.stop();
      expect(await judge(load, server, 'clocks')).toEqual([]);
      const NOW = '(extract(epoch FROM clock_timestamp()) * 1000)';
      expect(
        await server.session('clocks', (rows) =>
          rows(
            `SELECT id FROM agents WHERE token_expires_at - ${NOW} NOT BETWEEN 0 AND 60000
           UNION ALL SELECT id FROM leases WHERE ${NOW} - granted_at NOT BETWEEN -1000 AND 60000
           UNION ALL SELECT id FROM leases WHERE deadline_at - granted_at NOT BETWEEN ${LEASE_MS} AND 60000`,
          ),
        ),
      ).toEqual([]);
      for (const [here, there] of [
        [ahead, behind],
        [behind, ahead],
      ] as const) {
        const who = await here.register(randomUUID());
        expect((await there.agent(who, '/heartbeat')).status).toBe(200);
      }
      await Promise.all([ahead.end('SIGKILL'), behind.end('SIGKILL')]);
    },
    PATIENCE_MS,
  );

  it(
    'answers every request while a version is replaced by the next, one replica after the other',
    async () => {
      const next = mutant(folder, 'next', []);
      const added = [
        ...['agents', 'leases', 'tasks', 'operator_tokens', 'agent_configs'].flatMap((table) => [
          `ALTER TABLE ${table} ADD COLUMN of_next text`,
          `ALTER TABLE ${table} ADD COLUMN counted_by_next bigint NOT NULL DEFAULT 0`,
        ]),
        'CREATE TABLE for_next (id bigint PRIMARY KEY)',
      ];
      writeFileSync(
        join(next, '../migrations/9000000000000-next.js'),
        `exports.Next9000000000000 = class {
           name = 'Next9000000000000';
           async up(runner) { for (const statement of ${JSON.stringify(added)}) await runner.query(statement); }
         };`,
      );
      const database = await server.create('rolling');
      const old = await Promise.all([1, 2].map(() => startReplica(folder, database)));
      await observe(server, 'rolling');
      const load = await Load.start(folder, old);
      await load.more(40);
      let since = 0;
      for (const replica of old) {
        // As a load balancer does with one that says that it is not ready.
        load.urls.splice(load.urls.indexOf(replica.url), 1);
        expect(await replica.end('SIGTERM')).toBe(0);
        const { url } = await startReplica(folder, database, { main: next });
        since ||= performance.now();
        load.urls.push(url);
        await load.more(60);
      }
      await load.stop();
      expect(await judge(load, server, 'rolling')).toEqual([]);
      const tries = triesOf(readHistory(load.file));
      expect(tries.filter(({ ended }) => ended.status === null || ended.status >= 500)).toEqual([]);
      // The old version goes on with what the next one made of the database.
      expect(tries.some(({ sent }) => sent.at > since && sent.replica === old[1]?.url)).toBe(true);
      const migrations = await server.session('rolling', (rows) => rows('SELECT name FROM migrations'));
      expect(migrations.map(({ name }) => name)).toContain('Next9000000000000');
    },
    PATIENCE_MS,
  );
});
