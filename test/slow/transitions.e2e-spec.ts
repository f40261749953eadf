import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import Sqlite from 'better-sqlite3';
import type { Json } from '../helpers/api';
import {
  type Answer,
  type Credentials,
  databaseIn,
  onPostgres,
  removeDatabaseIn,
  type ServerClient,
} from '../helpers/harness';
import { Chance } from '../helpers/hostile-requests';
import { connected } from '../helpers/postgres-server';
import { endAll, type ServerProcess } from '../helpers/processes';
import { brokenPromises, DIALECT, grantsBeyondLimits, watchLimits } from '../helpers/queue-tables';
import { LEASE_MS, startReplica } from '../helpers/replicas';

/** `TRANSITIONS_MS=600000 TRANSITIONS_SEED=1` for a longer search, and for the same plan of calls again. */
const STORM_MS = Number(process.env.TRANSITIONS_MS ?? 22_000);
const SEED = Number(process.env.TRANSITIONS_SEED ?? Date.now() % 2 ** 31);
/** How long the storm may go on until each thing happened: on a machine that has much else to do some are rare. */
const MAX_STORM_MS = STORM_MS + 240_000;
const PATIENCE_MS = MAX_STORM_MS + 120_000;

const REPLICAS = onPostgres ? 2 : 1;
const CLIENTS = 14;
const AGENTS = 6;
/** No more open tasks than this, so that what is looked at stays small enough to be looked at often. */
const MAX_OPEN = 250;
const PAUSE_MS = 80;
/** Of the last calls, what is shown if something is wrong. */
const SHOWN_CALLS = 150;

const KINDS = ['dns', 'tcp'] as const;
type Kind = (typeof KINDS)[number];
const HOSTS = [1, 2, 3].map((i) => `192.0.2.${i}`);
const specOf = (kind: Kind, host: string) =>
  kind === 'dns' ? { query: 'a.example', server: host } : { host, port: 53 };
const WINDOWS: readonly { kind?: Kind; target?: string }[] = [
  {},
  ...KINDS.map((kind) => ({ kind })),
  ...KINDS.flatMap((kind) => HOSTS.map((host) => ({ kind, target: `${host}:53` }))),
];

/** How often each call must have succeeded at least. */
const CALLS: Readonly<Record<string, number>> = {
  ...Object.fromEntries(
    ['enqueue', 'claim', 'extend', 'report', 'limits', 'cancel', 'retry'].map((call) => [call, 11]),
  ),
  ...Object.fromEntries(
    ['bulk-cancel', 'bulk-retry', 'disable', 'enable', 'drain', 'revoke', 'delete'].map((call) => [call, 1]),
  ),
};
/** The states that leases must have ended in. */
const ENDINGS = ['cancelled', 'completed', 'expired', 'revoked'];

interface Lease {
  readonly id: number;
  readonly agent: Credentials;
}

/** Everything that agents and operators do, at random, at every replica. */
class Storm {
  readonly problems: string[] = [];
  /** How often each call was answered with each status. */
  readonly answers = new Map<string, number>();
  /** Tasks that were acknowledged. */
  readonly tasks = new Set<number>();
  /** Tasks whose completion was acknowledged. */
  readonly completed = new Set<number>();
  private readonly calls: string[] = [];
  private readonly agents: Credentials[] = [];
  private leases: Lease[] = [];
  /** Some that ended, or that nobody had. */
  private readonly old: Lease[] = [];
  private readonly taskOf = new Map<number, number>();
  private open = 0;
  stopping = false;

  constructor(private readonly servers: () => readonly ServerProcess[]) {}

  async start(): Promise<void> {
    for (let i = 0; i < AGENTS; i++)
      this.agents.push(await (this.servers()[0] as ServerProcess).register(`storm-${i}`));
  }

  /** A client that does one thing after the other. */
  async run(chance: Chance): Promise<void> {
    type Step = (chance: Chance) => Promise<void>;
    const often: readonly (readonly [weight: number, step: Step])[] = [
      [8, (c) => this.enqueue(c)],
      [12, (c) => this.claim(c)],
      [4, (c) => this.extend(c)],
      [12, (c) => this.report(c)],
      [2, (c) => this.changeTask(c)],
      [1, (c) => this.changeTasks(c)],
      [1, (c) => this.changeAgent(c)],
      [4, (c) => this.setLimits(c)],
    ];
    const steps = often.flatMap(([weight, step]) => Array<Step>(weight).fill(step));
    while (!this.stopping) {
      await chance.pick(steps)(chance);
      await sleep(chance.int(0, 10));
    }
  }

  /** Some of the last calls, with what was answered. */
  get log(): string {
    return this.calls.slice(-SHOWN_CALLS).join('\n');
  }

  /** How often a call succeeded. */
  private count(call: string): number {
    return [...this.answers]
      .filter(([name]) => {
        const [of = '', status] = name.split(' ');
        return of === call && Number(status) >= 200 && Number(status) <= 299;
      })
      .reduce((total, [, count]) => total + count, 0);
  }

  /** The calls that have not succeeded often enough yet. */
  get missing(): string[] {
    return Object.entries(CALLS).flatMap(([call, least]) => {
      const count = this.count(call);
      return count >= least ? [] : [`${call} succeeded ${count} times`];
    });
  }

  /** @returns undefined if there was no answer: a replica was killed, or is not there yet */
  private async call(
    name: string,
    chance: Chance,
    send: (server: ServerClient) => Promise<Answer>,
    ...allowed: number[]
  ): Promise<Answer | undefined> {
    const running = this.servers().filter((server) => server.runs);
    if (running.length === 0) {
      await sleep(50);
      return undefined;
    }
    const server = chance.pick(running);
    const answer = await send(server).catch(() => undefined);
    const status = answer?.status ?? 0;
    this.answers.set(`${name} ${status}`, (this.answers.get(`${name} ${status}`) ?? 0) + 1);
    this.calls.push(
      `${Math.round(performance.now())} ${server.url.slice(-5)} ${name} ${status} ${JSON.stringify(answer?.body ?? null).slice(0, 300)}`,
    );
    if (answer && status >= 300 && status !== 503 && !allowed.includes(status))
      this.problems.push(`${name}: answered ${status} ${JSON.stringify(answer.body)}`);
    if (answer === undefined && server.runs) await sleep(20);
    return answer && status < 300 ? answer : undefined;
  }

  private agent(
    name: string,
    chance: Chance,
    who: Credentials,
    body: object,
    headers?: Record<string, string>,
    ...allowed: number[]
  ): Promise<Answer | undefined> {
    const send = (server: ServerClient) => server.agent(who, `/${name}`, body, headers);
    // It may have been disabled, revoked or deleted.
    return this.call(name, chance, send, 401, 403, ...allowed);
  }

  private async enqueue(chance: Chance): Promise<void> {
    if (this.open > MAX_OPEN) return;
    const soon = (from: number, to: number) => new Date(Date.now() + chance.int(from, to)).toISOString();
    const tasks = Array.from({ length: chance.int(1, 5) }, () => {
      const [kind, host] = [chance.pick(KINDS), chance.pick(HOSTS)];
      return {
        ...{ kind, spec: specOf(kind, host), priority: chance.int(-1, 1), max_attempts: chance.int(1, 4) },
        ...(chance.is(0.2) ? { run_at: soon(-100, 1_500) } : {}),
        ...(chance.is(0.15) ? { not_after: soon(1_600, 4_000) } : {}),
        ...(chance.is(0.2) ? { unique_key: `${kind} ${host} ${chance.int(1, 3)}` } : {}),
      };
    });
    const answer = await this.call('enqueue', chance, (server) =>
      server.operator('POST', '/v1/tasks', { tasks }),
    );
    for (const { id } of answer?.body.tasks ?? []) this.tasks.add(id);
  }

  private async claim(chance: Chance): Promise<void> {
    const who = chance.pick(this.agents);
    const answer = await this.agent(
      'claim',
      chance,
      who,
      {
        capacities: { dns: chance.int(0, 6), tcp: chance.int(0, 4) },
        ...(chance.is(0.3) ? { wait_ms: chance.int(1, 400) } : {}),
      },
      chance.is(0.3) ? { 'idempotency-key': `key-${chance.int(1, 1_000)}-of-a-claim` } : {},
      // Of two calls with one key, the second is told to wait; or it asks for something else.
      409,
    );
    for (const { lease_id: id, task_id: task } of answer?.body.leases ?? []) {
      if (!this.taskOf.has(id)) this.leases.push({ id, agent: who });
      this.taskOf.set(id, task);
    }
  }

  private async extend(chance: Chance): Promise<void> {
    if (this.leases.length === 0) return;
    const { agent } = chance.pick(this.leases);
    const own = this.leases.filter((lease) => lease.agent === agent).slice(0, chance.int(1, 5));
    const lease_ids = own.map(({ id }) => id);
    await this.agent('extend', chance, agent, { lease_ids, extend_by_ms: LEASE_MS });
  }

  private async report(chance: Chance): Promise<void> {
    const from = chance.is(0.1) && this.old.length > 0 ? this.old : this.leases;
    if (from.length === 0) return;
    // Some sit on their leases until these expire.
    if (chance.is(0.15)) {
      this.old.push(...this.leases.splice(chance.int(0, this.leases.length), chance.int(1, 3)));
      return;
    }
    const { agent } = chance.pick(from);
    const named = from.filter((lease) => lease.agent === agent).slice(0, chance.int(1, 8));
    if (from === this.leases) {
      this.leases = this.leases.filter((lease) => !named.includes(lease));
      this.old.push(...named.filter(() => chance.is(0.1)));
    }
    // Now and then by an agent that holds none of them.
    const by = chance.is(0.03) ? chance.pick(this.agents) : agent;
    const items = named.map(({ id }) => ({ lease_id: id, observations: [{ name: 'lease', value: id }] }));
    const isCompleted = items.map(() => chance.is(0.75));
    const report = {
      completed: items.filter((_, i) => isCompleted[i]),
      cancelled: items.filter((_, i) => !isCompleted[i]),
    };
    const answer = await this.agent('report', chance, by, report);
    if (!answer) return;
    const rejected = new Map<number, string>(
      (answer.body.rejected ?? []).map((one: { lease_id: number; reason: string }) => [
        one.lease_id,
        one.reason,
      ]),
    );
    for (const { lease_id } of report.completed)
      if (!rejected.has(lease_id)) this.completed.add(this.taskOf.get(lease_id) as number);
    for (const reason of rejected.values())
      this.answers.set(`rejected ${reason}`, (this.answers.get(`rejected ${reason}`) ?? 0) + 1);
  }

  private async changeTask(chance: Chance): Promise<void> {
    if (this.tasks.size === 0) return;
    const newest = [...this.tasks].slice(-60);
    const verb = chance.pick(['cancel', 'retry']);
    const path = `/v1/tasks/${chance.pick(newest)}/${verb}`;
    await this.call(verb, chance, (server) => server.operator('POST', path), 409);
  }

  private async changeTasks(chance: Chance): Promise<void> {
    const verb = chance.pick(['cancel', 'retry']);
    const kind = chance.pick(KINDS);
    const states = verb === 'cancel' ? ['scheduled', 'queued', 'leased'] : ['dead', 'cancelled'];
    const filter = chance.pick([
      { kind, target: `${chance.pick(HOSTS)}:53` },
      { kind, target: `${chance.pick(HOSTS)}:53`, state: chance.pick(states) },
      { state: chance.pick(states) },
      { agent_id: chance.pick(this.agents).agent_id },
    ]);
    await this.call(`bulk-${verb}`, chance, (server) => server.operator('POST', `/v1/tasks/${verb}`, filter));
  }

  private async changeAgent(chance: Chance): Promise<void> {
    const place = chance.int(0, AGENTS - 1);
    const { agent_id: id } = this.agents[place] as Credentials;
    const change = chance.pick(['disable', 'drain', 'revoke', 'delete', ...Array(8).fill('enable')]);
    await this.call(
      change,
      chance,
      (server) =>
        change === 'delete'
          ? server.operator('DELETE', `/v1/agents/${id}`)
          : server.operator('POST', `/v1/agents/${id}/${change}`),
      ...[404, 409],
    );
    // Nobody comes back from these.
    if (change !== 'revoke' && change !== 'delete') return;
    const answer = await this.call('register', chance, (server) =>
      server.request('POST', '/register', { body: {} }),
    );
    if (answer) this.agents[place] = answer.body;
  }

  private async setLimits(chance: Chance): Promise<void> {
    const windows = Array.from({ length: chance.int(1, 3) }, () => chance.pick(WINDOWS));
    const limits = [...new Set(windows)].map((window) => ({
      ...window,
      limit: chance.pick([null, null, null, 0, 1, 2, 3, 5, 8, 20]),
    }));
    await this.call('limits', chance, (server) =>
      server.operator('PUT', '/v1/concurrency/limits', { limits }),
    );
  }

  /** Looks at how much is open. */
  async notice(): Promise<void> {
    const server = this.servers().find(({ runs }) => runs);
    const answer = await server?.operator('GET', '/v1/tasks/stats').catch(() => undefined);
    if (answer?.status !== 200) return;
    this.open = answer.body.depths
      .filter(({ state }: { state: string }) => ['scheduled', 'queued', 'leased'].includes(state))
      .reduce((sum: number, { count }: { count: number }) => sum + count, 0);
  }

  /** Lets everything run to its end, with limits under which it can. @returns the server that it asked */
  async drain(): Promise<ServerProcess> {
    const server = this.servers()[0] as ServerProcess;
    const limits = WINDOWS.map((window) => ({ ...window, limit: 500 }));
    expect((await server.operator('PUT', '/v1/concurrency/limits', { limits })).status).toBe(200);
    const agent = await server.register('drains');
    do {
      const { leases } = (
        await server.agent(agent, '/claim', { capacities: { dns: 200, tcp: 200 }, wait_ms: 100 })
      ).body;
      const completed = leases.map(({ lease_id }: { lease_id: number }) => ({ lease_id }));
      expect((await server.agent(agent, '/report', { completed, cancelled: [] })).body).toEqual({
        acknowledged: completed.length,
      });
      await this.notice();
    } while (this.open > 0);
    return server;
  }
}

describe(`whatever happens to tasks, leases and limits (TRANSITIONS_SEED=${SEED})`, () => {
  let folder: string;
  let url: string;
  const servers: ServerProcess[] = [];
  let rows: (sql: string) => Promise<Json[]>;
  let close: () => unknown;

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
    url = await databaseIn(folder);
    if (onPostgres) {
      const over = Promise.withResolvers<void>();
      const ready = Promise.withResolvers<typeof rows>();
      const session = connected(url, (ask) => {
        ready.resolve(ask);
        return over.promise;
      });
      rows = await Promise.race([ready.promise, session.then(() => ready.promise)]);
      close = () => {
        over.resolve();
        return session;
      };
    } else {
      const file = new Sqlite(join(folder, 'test.db'));
      rows = async (sql) => {
        const statement = file.prepare(sql);
        return statement.reader ? statement.all() : [statement.run()];
      };
      close = () => file.close();
    }
    await watchLimits(rows, DIALECT);
    for (let i = 0; i < REPLICAS; i++) servers.push(await startReplica(folder, url));
  }, PATIENCE_MS);

  afterAll(async () => {
    await endAll();
    await close?.();
    await removeDatabaseIn(folder);
    rmSync(folder, { recursive: true, force: true });
  }, PATIENCE_MS);

  it(
    'breaks no promise at any instant, though servers are killed; and at the end nothing is lost',
    async () => {
      const chance = new Chance(SEED);
      const storm = new Storm(() => servers);
      await storm.start();
      const began = performance.now();
      const most = { leased: 0, overLimit: 0, moving: 0, closed: 0 };
      const endings = new Set<string>();
      let kills = 0;
      let looks = 0;
      /** What has not happened yet. */
      const missing = (): string[] => [
        ...storm.missing,
        ...Object.entries({ ...most, kills, looks }).flatMap(([what, count]) => (count > 0 ? [] : [what])),
        ...ENDINGS.filter((state) => !endings.has(state)).map((state) => `a lease was ${state}`),
      ];
      const isOver = (): boolean => {
        const ms = performance.now() - began;
        return storm.problems.length > 0 || ms > MAX_STORM_MS || (ms > STORM_MS && missing().length === 0);
      };

      const look = async () => {
        looks++;
        for (const broken of [
          ...(await brokenPromises({ rows, dialect: DIALECT })),
          ...(await grantsBeyondLimits(rows)),
        ])
          storm.problems.push(broken);
        const [seen] = await rows(
          `SELECT (SELECT count(*) FROM leases WHERE ended_at IS NULL) AS leased,
             (SELECT count(*) FROM concurrency_windows WHERE leased > slots) AS over_limit,
             (SELECT count(*) FROM concurrency_windows WHERE moved_through IS NOT NULL) AS moving,
             (SELECT count(*) FROM lanes WHERE is_open = 0 AND queued > 0) AS closed`,
        );
        most.leased = Math.max(most.leased, seen.leased);
        most.overLimit = Math.max(most.overLimit, seen.over_limit);
        most.moving = Math.max(most.moving, seen.moving);
        most.closed = Math.max(most.closed, seen.closed);
        for (const { state } of await rows('SELECT DISTINCT state FROM leases WHERE ended_at IS NOT NULL'))
          endings.add(state);
      };
      const watch = async () => {
        try {
          while (!isOver()) {
            await look();
            await storm.notice();
            await sleep(PAUSE_MS);
          }
        } finally {
          storm.stopping = true;
        }
      };
      const kill = async () => {
        const own = new Chance(chance.int(0, 2 ** 31));
        while (!isOver()) {
          await sleep(own.int(1_000, 3_000));
          if (isOver()) return;
          const place = own.int(0, REPLICAS - 1);
          kills++;
          await servers[place]?.end('SIGKILL');
          // What its transactions held is free again when PostgreSQL notices, and everything holds at any instant.
          await look();
          await sleep(own.int(0, 500));
          servers[place] = await startReplica(folder, url);
        }
      };
      await Promise.all([
        watch(),
        kill(),
        ...Array.from({ length: CLIENTS }, () => storm.run(new Chance(chance.int(0, 2 ** 31)))),
      ]);
      const fail = () => {
        if (storm.problems.length > 0)
          throw new Error(
            `TRANSITIONS_SEED=${SEED}\n\n${storm.problems.slice(0, 10).join('\n')}\n\nafter:\n${storm.log}`,
          );
      };
      fail();

      const server = await storm.drain();
      await look();
      fail();
      const states = new Map(
        (await rows('SELECT id, state FROM tasks')).map((task) => [task.id as number, task.state as string]),
      );
      expect([...storm.tasks].filter((id) => (states.get(id) ?? 'open') === 'open')).toEqual([]);
      expect([...storm.completed].filter((id) => states.get(id) !== 'completed')).toEqual([]);
      for (const table of ['ready', 'scheduled', 'task_expiries', 'unique_keys'])
        expect([table, await rows(`SELECT * FROM ${table}`)]).toEqual([table, []]);
      expect(
        await rows('SELECT * FROM lanes WHERE queued <> 0 OR is_open = 0 OR head_id IS NOT NULL'),
      ).toEqual([]);
      expect(await rows('SELECT DISTINCT leased FROM concurrency_windows')).toEqual([{ leased: 0 }]);
      const limits = WINDOWS.map((window) => ({ ...window, limit: null }));
      expect((await server.operator('PUT', '/v1/concurrency/limits', { limits })).status).toBe(200);
      expect(await rows('SELECT * FROM concurrency_windows')).toEqual([]);

      // Units lock in one order: none of them has to wait for a second until PostgreSQL finds that two wait for each other.
      if (onPostgres)
        expect(
          await rows('SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()'),
        ).toEqual([{ deadlocks: 0 }]);

      // All of it happened, and no lease ended otherwise.
      if (missing().length > 0)
        throw new Error(
          `TRANSITIONS_SEED=${SEED}: in ${MAX_STORM_MS} ms this did not happen: ${missing().join(', ')}`,
        );
      expect([...endings].sort()).toEqual(ENDINGS);
    },
    PATIENCE_MS,
  );
});
