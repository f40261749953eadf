import { type ChildProcess, spawn } from 'node:child_process';
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import {
  chmodSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { hasPostgres, PostgresProcess } from '../../scripts/postgres-process.mjs';
import { FailoverClient } from '../helpers/failover-client';
import { ADMIN_TOKEN, CHILD_ENV, type Credentials, credentialsOf, dnsTask } from '../helpers/harness';
import {
  type Ended,
  type Entry,
  readHistory,
  readTables,
  type Sent,
  violationsOf,
} from '../helpers/history-checker';
import { end, endAll, track } from '../helpers/processes';

const ROOT = join(__dirname, '../..');
const OPERATOR = { authorization: `Bearer ${ADMIN_TOKEN}`, 'content-type': 'application/json' };

const LEASE_MS = 1_000;
/** How long an agent sits on a lease whose end it wants to miss. */
const DAWDLE_MS = 1_400;
const AGENTS = 9;
const HOUR_MS = 3_600_000;
/** As the build has it. */
const SKIP_LOCKED = '`FOR UPDATE$' + '{of(tables)} SKIP LOCKED`';
/** For machines with much else to do. */
const PATIENCE_MS = 180_000;

/** The machine stays up, so what the kernel has is as good as on the disk. */
const POSTGRES = { fsync: 'off', jit: 'off', shared_buffers: '32MB', max_connections: '150' };

/** A PostgreSQL server of this test's own, which it may treat badly. */
class PostgresServer {
  private constructor(private readonly process: PostgresProcess) {}

  static async start(folder: string): Promise<PostgresServer> {
    return new PostgresServer(await PostgresProcess.start(folder, POSTGRES));
  }

  get port(): number {
    return this.process.port;
  }

  /** Starts it again. */
  run(): Promise<void> {
    return this.process.run();
  }

  /** Stops it: with SIGQUIT in immediate mode, in which no transaction is ended, no client told, nothing written. */
  stop(signal: 'SIGINT' | 'SIGQUIT'): Promise<void> {
    return this.process.stop(signal);
  }

  url(database: string, port = this.port): string {
    return this.process.url(database, port);
  }

  /** Does something on a connection, in one snapshot. */
  async session<T>(
    database: string,
    work: (rows: (sql: string) => Promise<any[]>) => Promise<T>,
  ): Promise<T> {
    const client = new pg.Client({
      connectionString: this.url(database),
      types: {
        getTypeParser: (oid: number, format: any) =>
          oid === pg.types.builtins.INT8 ? Number : pg.types.getTypeParser(oid, format),
      } as pg.CustomTypesConfig,
    });
    await client.connect();
    try {
      await client.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
      const value = await work(async (sql) => (await client.query(sql)).rows);
      await client.query('COMMIT');
      return value;
    } finally {
      await client.end();
    }
  }

  async create(database: string): Promise<string> {
    const client = new pg.Client(this.url('postgres'));
    await client.connect();
    await client.query(`CREATE DATABASE ${database}`);
    await client.end();
    return this.url(database);
  }
}

/** A way to PostgreSQL that can fall silent: nothing is closed, and nothing comes through any more. */
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

/** A process of the built program. */
class Replica {
  private constructor(
    readonly child: ChildProcess,
    readonly url: string,
    readonly log: () => string,
  ) {}

  static spawn(
    folder: string,
    database: string,
    { env = {}, main = join(ROOT, 'dist/main.js'), args = [], preload = [] }: Spawn = {},
  ): { child: ChildProcess; output: () => string } {
    const child = spawn(
      process.execPath,
      [...preload.flatMap((file) => ['--require', file]), main, ...args],
      {
        cwd: folder,
        env: {
          ...CHILD_ENV,
          ...Object.fromEntries(
            Object.entries({
              BIND: '127.0.0.1:0',
              DATABASE_URL: database,
              POOL_SIZE: '6',
              ADMIN_TOKEN,
              SIGNING_KEY_FILE: join(folder, 'signing-key.pem'),
              LOG_LEVEL: 'warn',
              // The tests take the replica from the list themselves.
              DRAIN_MS: '0',
              LEASE_DURATION_MS: String(LEASE_MS),
              RETRY_BACKOFF_MS: '1',
              RETRY_BACKOFF_MAX_MS: '20',
              MAX_EVENT_LOOP_DELAY_MS: '60000',
              REGISTER_PER_IP: 'off',
              REGISTER_TOTAL: 'off',
              ...Object.fromEntries(
                ['REGISTER', 'HEARTBEAT', 'CLAIM', 'EXTEND', 'REPORT', 'METRICS', 'PUBLIC', 'OPERATOR'].map(
                  (route) => [`QUOTA_${route}`, 'off'],
                ),
              ),
              ...env,
            }).map(([name, value]) => [`CONTROL_PLANE_${name}`, value]),
          ),
        },
        stdio: ['ignore', 'pipe', 'pipe'],
      },
    );
    track(child);
    let output = '';
    const hear = (chunk: Buffer) => {
      output += chunk;
    };
    child.stdout?.on('data', hear);
    child.stderr?.on('data', hear);
    return { child, output: () => output };
  }

  static async start(folder: string, database: string, options: Spawn = {}): Promise<Replica> {
    const { child, output } = Replica.spawn(folder, database, options);
    for (;;) {
      const [, url] = /The control plane answers at (\S+)/.exec(output()) ?? [];
      if (url) return new Replica(child, url, output);
      if (child.exitCode !== null) throw new Error(`a replica did not start: ${output()}`);
      await sleep(20);
    }
  }

  get runs(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  async status(path: string): Promise<number> {
    const response = await fetch(this.url + path);
    await response.arrayBuffer();
    return response.status;
  }

  async kill(signal: NodeJS.Signals): Promise<void> {
    await end(this.child, signal);
  }
}

interface Spawn {
  env?: Record<string, string>;
  main?: string;
  args?: string[];
  preload?: string[];
}

/** Targets of tasks; all but the last have a ceiling. */
const CEILINGS: [server: string, ceiling: number | null][] = [
  ['192.0.2.1', 2],
  ['192.0.2.2', 5],
  ['192.0.2.3', null],
];

async function setCeilings(replica: Replica): Promise<void> {
  const response = await fetch(`${replica.url}/v1/concurrency/limits`, {
    method: 'PUT',
    headers: OPERATOR,
    body: JSON.stringify({
      limits: CEILINGS.flatMap(([target, ceiling]) =>
        ceiling === null ? [] : [{ kind: 'dns', target, limit: ceiling }],
      ),
    }),
  });
  expect(response.status).toBe(200);
}

async function register(replica: Replica, hostname: string): Promise<Credentials> {
  const response = await fetch(`${replica.url}/register`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ hostname }),
  });
  expect(response.status).toBe(200);
  return (await response.json()) as Credentials;
}

/** Adds a task. @returns the status of the answer */
async function enqueueAt(replica: Replica): Promise<number> {
  const response = await fetch(`${replica.url}/v1/tasks`, {
    method: 'POST',
    headers: OPERATOR,
    body: JSON.stringify({ tasks: [dnsTask()] }),
  });
  await response.arrayBuffer();
  return response.status;
}

/** Agents and operators that do all there is to do at several replicas, and log it to a file. */
class Load {
  private stopping = false;
  private finished: Promise<unknown> | undefined;
  reports = 0;

  private constructor(
    readonly file: string,
    readonly urls: string[],
  ) {}

  /** @param replicas whom the clients ask; they begin at different ones */
  static async start(folder: string, replicas: readonly Replica[]): Promise<Load> {
    const load = new Load(
      join(folder, `history-${randomUUID()}.jsonl`),
      replicas.map((replica) => replica.url),
    );
    await setCeilings(replicas[0] as Replica);
    const agents = await Promise.all(
      Array.from({ length: AGENTS }, (_, i) =>
        register(replicas[i % replicas.length] as Replica, `${randomUUID()}-${i}`),
      ),
    );
    load.finished = Promise.all(
      agents.map((who) =>
        load.work(
          new FailoverClient(
            () => load.urls,
            load.file,
            () => !load.stopping,
            who,
          ),
        ),
      ),
    );
    return load;
  }

  /** Waits until so many more reports were acknowledged. */
  async more(reports: number): Promise<void> {
    const enough = this.reports + reports;
    while (this.reports < enough) await sleep(10);
  }

  async stop(): Promise<void> {
    this.stopping = true;
    await this.finished;
  }

  private async work(client: FailoverClient): Promise<void> {
    const { agent_id } = client.who;
    let late: { lease_id: number; at: number }[] = [];
    for (let round = 0; !this.stopping; round++) {
      const tasks = CEILINGS.map(([server]) => dnsTask({ max_attempts: 100 }, { server }));
      const added = await client.call('enqueue', { tasks }, randomUUID());
      const claimed = await client.call('claim', { agent_id, capacities: { dns: 4 } }, randomUUID());
      const leases: number[] = (claimed?.leases ?? []).map((lease: { lease_id: number }) => lease.lease_id);
      if (round % 4 === 1 && added) await client.call('cancel', { task_id: added.tasks[1].id });
      if (round % 4 === 2)
        await client.call('extend', { agent_id, lease_ids: leases, extend_by_ms: LEASE_MS });
      if (round % 4 === 3 && late.length < 3)
        late.push(
          ...leases.splice(0, 1).map((lease_id) => ({ lease_id, at: performance.now() + DAWDLE_MS })),
        );
      const due = late.filter(({ at }) => at <= performance.now()).map(({ lease_id }) => lease_id);
      late = late.filter(({ lease_id }) => !due.includes(lease_id));
      const reports = [...leases, ...due].map((lease_id) => ({
        lease_id,
        observations: [{ name: 'value', value: randomUUID() }],
      }));
      const answer = await client.call('report', {
        agent_id,
        completed: reports.filter(({ lease_id }) => lease_id % 7 > 0),
        cancelled: reports.filter(({ lease_id }) => lease_id % 7 === 0),
      });
      this.reports += answer?.acknowledged ?? 0;
      const gauges = [{ name: randomUUID(), value: round }];
      await client.call('metrics', { agent_id, timestamp: new Date().toISOString(), gauges });
    }
  }
}

/** Tries of a log, each with how it ended. */
function triesOf(history: readonly Entry[]): { sent: Sent; ended: Ended }[] {
  const ended = new Map(history.flatMap((entry) => (entry.type === 'ended' ? [[entry.id, entry]] : [])));
  return history.flatMap((entry) =>
    entry.type === 'sent' ? [{ sent: entry, ended: ended.get(entry.id) as Ended }] : [],
  );
}

const describeWherePostgresIs = hasPostgres ? describe : describe.skip;

describeWherePostgresIs('replicas on PostgreSQL', () => {
  let folder: string;
  let server: PostgresServer;
  let replicas: Replica[];

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
    replicas = await Promise.all([1, 2, 3].map(() => Replica.start(folder, database)));
  }, PATIENCE_MS);

  afterAll(async () => {
    await endAll();
    await server?.stop('SIGINT');
    rmSync(folder, { recursive: true, force: true });
  }, PATIENCE_MS);

  const judge = async (load: Load, database = 'plane') =>
    violationsOf(readHistory(load.file), await server.session(database, readTables));

  it('migrates once, whoever of those that start at once comes first', async () => {
    for (const replica of replicas) expect(await replica.status('/readyz')).toBe(200);
    const migrations = await server.session('plane', (rows) => rows('SELECT name FROM migrations'));
    expect(migrations.map(({ name }) => name)).toEqual([...new Set(migrations.map(({ name }) => name))]);
    expect(migrations.length).toBeGreaterThan(0);
    expect(
      await server.session('plane', (rows) =>
        rows(`SELECT count(*) FROM concurrency_windows WHERE scope = 'global'`),
      ),
    ).toEqual([{ count: 1 }]);
  });

  it(
    'keeps a version off a database that is older than it may migrate, or newer than it knows',
    async () => {
      const database = await server.create('versions');
      const older = Replica.spawn(folder, database, { env: { MIGRATE_ON_START: 'false' } });
      expect((await once(older.child, 'exit'))[0]).toBe(1);
      expect(older.output()).toMatch(/control-plane migrate/);
      const migrated = Replica.spawn(folder, database, { args: ['migrate'] });
      expect((await once(migrated.child, 'exit'))[0]).toBe(0);
      await server.session('versions', (rows) =>
        rows(`INSERT INTO migrations (timestamp, name) VALUES (9999999999999, 'FromTheFuture9999999999999')`),
      );
      const newer = Replica.spawn(folder, database);
      expect((await once(newer.child, 'exit'))[0]).toBe(1);
      expect(newer.output()).toMatch(/newer version.*FromTheFuture9999999999999/);
    },
    PATIENCE_MS,
  );

  it(
    'loses nothing when a replica is killed, and the others go on answering',
    async () => {
      const load = await Load.start(folder, replicas);
      await load.more(60);
      const victim = replicas[1] as Replica;
      await victim.kill('SIGKILL');
      await load.more(60);
      replicas[1] = await Replica.start(folder, server.url('plane'));
      load.urls[1] = replicas[1].url;
      await load.more(40);
      await load.stop();
      expect(await judge(load)).toEqual([]);
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
          while ((await enqueueAt(replica)) !== 201) await sleep(20);
          return performance.now() - since;
        }),
      );
      expect(Math.max(...backAfter)).toBeLessThan(5_000);
      await load.more(30);
      await load.stop();
      expect(await judge(load)).toEqual([]);
      const tries = triesOf(readHistory(load.file));
      expect(
        new Set(tries.map(({ ended }) => ended.status).filter((status) => Number(status) >= 500)),
      ).toEqual(new Set([503]));
      expect(tries.filter(({ ended }) => ended.status === null)).toEqual([]);
      for (const replica of replicas) {
        expect(replica.runs).toBe(true);
        expect(await replica.status('/readyz')).toBe(200);
        // Once, and not at each of its ticks.
        const failed = replica.log().match(/"job":"reaper".*a job failed/g) ?? [];
        expect(failed.length).toBeLessThanOrEqual(3);
      }
    },
    PATIENCE_MS,
  );

  it(
    'does not wait longer than its timeouts for a connection that has gone silent',
    async () => {
      const proxy = await Wire.to(server.port);
      const cutOff = await Replica.start(folder, server.url('plane', proxy.port));
      const load = await Load.start(folder, [cutOff, ...replicas.slice(0, 2)]);
      await load.more(40);
      const scrape = async () => {
        const headers = { authorization: `Bearer ${ADMIN_TOKEN}` };
        const answer = await fetch(`${cutOff.url}/metrics`, { headers });
        return [
          answer.status,
          /^control_plane_metrics_read_failures_total (\d+)$/m.exec(await answer.text())?.[1],
        ];
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
      // Whoever watches sees the outage: also when the token is no longer known to be right.
      while (performance.now() - since < 6_000) await sleep(100);
      const [seen, failures] = await scrape();
      expect([seen, Number(failures) > 0]).toEqual([200, true]);
      const asked = performance.now();
      while (silentTries().some(({ sent, ended }) => sent.at < asked && !ended)) await sleep(100);
      proxy.recover();
      const recovered = performance.now();
      while (
        !silentTries().some(({ sent, ended }) => sent.at > recovered && ended && Number(ended.status) < 300)
      )
        await sleep(100);
      await load.stop();
      expect(await judge(load)).toEqual([]);
      const tries = triesOf(readHistory(load.file));
      // 503, and not silence: a client waits longer than the replica does.
      expect(tries.filter(({ ended }) => ended.status === null)).toEqual([]);
      expect(
        tries.filter(({ sent, ended }) => sent.replica !== cutOff.url && Number(ended.status) >= 500),
      ).toEqual([]);
      expect(silentTries().some(({ ended }) => ended.status === 503)).toBe(true);
      expect(cutOff.runs).toBe(true);
      await cutOff.kill('SIGKILL');
      await proxy.close();
    },
    PATIENCE_MS,
  );

  /** What makes a process's own clock wrong; its monotonic one goes on as it is. */
  function clockOff(byMs: number): string {
    const file = join(folder, `clock-${byMs}.cjs`);
    writeFileSync(
      file,
      `const { now } = Date;
       Date.now = () => now() + ${byMs};
       globalThis.Date = new Proxy(Date, {
         construct: (target, args, self) => Reflect.construct(target, args.length ? args : [Date.now()], self),
       });`,
    );
    return file;
  }

  it(
    'goes by the clock of the database where those of replicas are an hour ahead and an hour behind',
    async () => {
      const database = await server.create('clocks');
      const env = { AGENT_TOKEN_LIFETIME_MS: '60000' };
      const ahead = await Replica.start(folder, database, { env, preload: [clockOff(HOUR_MS)] });
      const behind = await Replica.start(folder, database, { env, preload: [clockOff(-HOUR_MS)] });
      const load = await Load.start(folder, [ahead, behind]);
      await load.more(120);
      await load.stop();
      expect(await judge(load, 'clocks')).toEqual([]);
      // Some leases were to expire, and did.
      expect(
        await server.session('clocks', (rows) =>
          rows(`SELECT 1 FROM leases WHERE state = 'expired' LIMIT 1`),
        ),
      ).toHaveLength(1);
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
        const who = await register(here, randomUUID());
        const response = await fetch(`${there.url}/heartbeat`, {
          method: 'POST',
          headers: { ...credentialsOf(who), 'content-type': 'application/json' },
          body: JSON.stringify({ agent_id: who.agent_id }),
        });
        expect(response.status).toBe(200);
      }
      await Promise.all([ahead.kill('SIGKILL'), behind.kill('SIGKILL')]);
    },
    PATIENCE_MS,
  );

  /** The program with something taken out. */
  function mutant(
    name: string,
    changes: readonly (readonly [file: string, from: string, to: string])[],
  ): string {
    const home = join(folder, name);
    mkdirSync(home);
    cpSync(join(ROOT, 'dist'), join(home, 'dist'), { recursive: true });
    cpSync(join(ROOT, 'package.json'), join(home, 'package.json'));
    symlinkSync(join(ROOT, 'node_modules'), join(home, 'node_modules'));
    for (const [file, from, to] of changes) {
      const path = join(home, 'dist', file);
      const text = readFileSync(path, 'utf8');
      expect(text).toContain(from);
      writeFileSync(path, text.replace(from, to));
    }
    return join(home, 'dist/main.js');
  }

  it(
    'answers every request while a version is replaced by the next, one replica after the other',
    async () => {
      const next = mutant('next', []);
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
      const old = await Promise.all([1, 2].map(() => Replica.start(folder, database)));
      const load = await Load.start(folder, old);
      await load.more(40);
      let since = 0;
      for (const replica of old) {
        // As a load balancer does with one that says that it is not ready.
        load.urls.splice(load.urls.indexOf(replica.url), 1);
        await replica.kill('SIGTERM');
        expect(replica.child.exitCode).toBe(0);
        const { url } = await Replica.start(folder, database, { main: next });
        since ||= performance.now();
        load.urls.push(url);
        await load.more(60);
      }
      await load.stop();
      expect(await judge(load, 'rolling')).toEqual([]);
      const tries = triesOf(readHistory(load.file));
      expect(tries.filter(({ ended }) => ended.status === null || ended.status >= 500)).toEqual([]);
      // The old version goes on with what the next one made of the database.
      expect(tries.some(({ sent }) => sent.at > since && sent.replica === old[1]?.url)).toBe(true);
      const migrations = await server.session('rolling', (rows) => rows('SELECT name FROM migrations'));
      expect(migrations.map(({ name }) => name)).toContain('Next9000000000000');
    },
    PATIENCE_MS,
  );

  it.each([
    {
      without: 'the fence',
      changes: [
        ['leases/leases.service.js', `if (lease.state === 'active')`, 'if (true)'],
        ['leases/leases.service.js', `isAmong('id', '$1')} AND state = 'active'`, `isAmong('id', '$1')}`],
      ],
      // Either the double shows, or the database's own constraints stop it: that is a 500, and a violation too.
      seen: /^report \d+: answered 500|^lease \d+: its report as \w+ was acknowledged|^task \d+: \w+ (?:with 2|under)/,
    },
    {
      without: 'SKIP LOCKED',
      changes: [['database/dialect.js', SKIP_LOCKED, `''`]],
      seen: /^claim \d+: answered 500|^lease \d+: granted/,
    },
    {
      without: "the database's clock",
      changes: [
        [
          'database/postgres-database.js',
          'this.clock === this.serverClock ? now : this.clock.now()',
          'Date.now()',
        ],
      ],
      // Less than what counts as an interruption, after which nobody is held to a deadline.
      offMs: 3_000,
      seen: /^lease \d+: (?:ended \d+ ms early|expired before)/,
    },
  ] as const)(
    'would be found out without $without',
    async ({ without, changes, seen, ...rest }) => {
      const { offMs = HOUR_MS } = rest as { offMs?: number };
      const name = `without_${without.replaceAll(/\W/g, '_').toLowerCase()}`;
      const main = mutant(name, changes);
      const database = await server.create(name);
      const mutants = [
        await Replica.start(folder, database, { main, preload: [clockOff(offMs)] }),
        await Replica.start(folder, database, { main, preload: [clockOff(-offMs)] }),
      ];
      const load = await Load.start(folder, mutants);
      const found = async () => (await judge(load, name)).some((violation) => seen.test(violation));
      const until = performance.now() + 20_000;
      while (!(await found()) && performance.now() < until) await sleep(500);
      await load.stop();
      expect(await judge(load, name)).toContainEqual(expect.stringMatching(seen));
      await Promise.all(mutants.map((replica) => replica.kill('SIGKILL')));
    },
    PATIENCE_MS,
  );
});
