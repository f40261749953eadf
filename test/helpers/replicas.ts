import { randomUUID } from 'node:crypto';
import { cpSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { FailoverClient } from './failover-client';
import { dnsTask } from './harness';
import { type Ended, type Entry, readHistory, readTables, type Sent, violationsOf } from './history-checker';
import type { PostgresServer } from './postgres-server';
import { type ProgramOptions, ServerProcess } from './processes';
import { brokenPromises, grantsBeyondLimits, watchLimits } from './queue-tables';
import { until } from './until';

const ROOT = join(__dirname, '../..');

/** How long a lease is. */
export const LEASE_MS = 1_000;
/** How long an agent sits on a lease whose end it wants to miss. */
const DAWDLE_MS = 1_400;
const AGENTS = 9;

/** Starts a replica on a database; its files are in the folder. */
export const startReplica = (
  folder: string,
  database: string,
  { env, ...options }: ProgramOptions = {},
): Promise<ServerProcess> =>
  ServerProcess.start(folder, { env: replicaEnv(folder, database, env), ...options });

/** The settings of a replica. */
export const replicaEnv = (
  folder: string,
  database: string,
  env: ProgramOptions['env'] = {},
): Record<string, string> => ({
  DATABASE_URL: database,
  POOL_SIZE: '6',
  SIGNING_KEY_FILE: join(folder, 'signing-key.pem'),
  LOG_LEVEL: 'warn',
  LEASE_DURATION_MS: String(LEASE_MS),
  RETRY_BACKOFF_MS: '1',
  RETRY_BACKOFF_MAX_MS: '20',
  MAX_EVENT_LOOP_DELAY_MS: '60000',
  ...env,
});

/** What makes a process's own clock wrong, to be loaded before it; its monotonic one goes on as it is. */
export function clockOff(folder: string, byMs: number): string {
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

/** A piece of the build, and what is there instead. */
export type Change = readonly [file: string, from: string, to: string];

/** Makes a copy of the program with pieces changed. @returns its entry point */
export function mutant(folder: string, name: string, changes: readonly Change[]): string {
  const home = join(folder, name);
  mkdirSync(home);
  cpSync(join(ROOT, 'dist'), join(home, 'dist'), { recursive: true });
  cpSync(join(ROOT, 'package.json'), join(home, 'package.json'));
  symlinkSync(join(ROOT, 'node_modules'), join(home, 'node_modules'));
  for (const [file, from, to] of changes) {
    const path = join(home, 'dist', file);
    const text = readFileSync(path, 'utf8');
    if (text.split(from).length !== 2) throw new Error(`${file} does not have this once: ${from}`);
    writeFileSync(
      path,
      text.replace(from, () => to),
    );
  }
  return join(home, 'dist/main.js');
}

/** Limits that the operator of a load sets over and over again, as they come. */
const LIMITS: readonly { kind: string | null; target: string | null; choices: readonly (number | null)[] }[] =
  [
    { kind: 'dns', target: '192.0.2.1:53', choices: [2, 1, 3] },
    { kind: 'dns', target: '192.0.2.2:53', choices: [5, 3, 4] },
    { kind: 'dns', target: '192.0.2.3:53', choices: [null, 4, null, 6] },
    { kind: 'dns', target: null, choices: [null, 9, 12] },
    { kind: null, target: null, choices: [null, 14, 10] },
  ];
const TARGETS = ['192.0.2.1', '192.0.2.2', '192.0.2.3'];
/** Between two changes of limits. */
const LIMIT_PAUSE_MS = 60;

/** How long {@link Load.more} waits at most: with outages, and on a machine that has much else to do. */
const MORE_MS = 120_000;

/** Agents and operators that do all there is to do at several replicas, and log it to a file. */
export class Load {
  private stopping = false;
  private finished: Promise<unknown> | undefined;
  reports = 0;

  private constructor(
    readonly file: string,
    readonly urls: string[],
  ) {}

  /** @param replicas which the clients ask; they begin at different ones */
  static async start(folder: string, replicas: readonly ServerProcess[]): Promise<Load> {
    const load = new Load(
      join(folder, `history-${randomUUID()}.jsonl`),
      replicas.map((replica) => replica.url),
    );
    const agents = await Promise.all(
      Array.from({ length: AGENTS + 1 }, (_, i) =>
        (replicas[i % replicas.length] as ServerProcess).register(`${randomUUID()}-${i}`),
      ),
    );
    const [operator, ...clients] = agents.map(
      (who) =>
        new FailoverClient(
          () => load.urls,
          load.file,
          () => !load.stopping,
          who,
        ),
    );
    load.finished = Promise.all([
      load.changeLimits(operator as FailoverClient),
      ...clients.map((client) => load.work(client)),
    ]);
    return load;
  }

  /** Waits until this number of reports more was acknowledged. */
  async more(reports: number): Promise<void> {
    const enough = this.reports + reports;
    const withinMs = MORE_MS;
    await until(`${reports} reports more are acknowledged`, () => this.reports >= enough, { withinMs });
  }

  async stop(): Promise<void> {
    this.stopping = true;
    await this.finished;
  }

  private async changeLimits(client: FailoverClient): Promise<void> {
    for (let round = 0; !this.stopping; round++) {
      for (const { choices, ...window } of LIMITS) {
        if (this.stopping) return;
        await client.call('limit', { ...window, limit: choices[round % choices.length] ?? null });
        await sleep(LIMIT_PAUSE_MS);
      }
    }
  }

  private async work(client: FailoverClient): Promise<void> {
    const { agent_id } = client.who;
    let late: { lease_id: number; at: number }[] = [];
    for (let round = 0; !this.stopping; round++) {
      const tasks = TARGETS.map((server) => dnsTask({ max_attempts: 100 }, { server }));
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

/** Has a database note what {@link judge} can't see afterwards; to be called before its replicas have work. */
export const observe = (server: PostgresServer, database: string): Promise<void> =>
  server.session(database, watchLimits);

/** What was broken in a load: by what its clients saw, and by the tables as they are now. */
export async function judge(load: Load, server: PostgresServer, database: string): Promise<string[]> {
  // Before the tables: what was acknowledged by now must be in them.
  const history = readHistory(load.file);
  const { tables, broken } = await server.session(database, async (rows) => ({
    tables: await readTables(rows),
    broken: [...(await brokenPromises({ rows })), ...(await grantsBeyondLimits(rows))],
  }));
  return [...violationsOf(history, tables), ...broken];
}

/** Tries of a log, each with how it ended. */
export function triesOf(history: readonly Entry[]): { sent: Sent; ended: Ended }[] {
  const ended = new Map(history.flatMap((entry) => (entry.type === 'ended' ? [[entry.id, entry]] : [])));
  return history.flatMap((entry) =>
    entry.type === 'sent' ? [{ sent: entry, ended: ended.get(entry.id) as Ended }] : [],
  );
}
