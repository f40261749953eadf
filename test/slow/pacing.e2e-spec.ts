import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Sqlite from 'better-sqlite3';
import { hasPostgres } from '../../scripts/postgres-process.mjs';
import { sqliteDialect } from '../../src/database/dialect';
import type { Json } from '../helpers/api';
import { type Arrival, DnsSink } from '../helpers/dns-sink';
import { dnsTask } from '../helpers/harness';
import { PacedFleet } from '../helpers/paced-fleet';
import { PostgresServer } from '../helpers/postgres-server';
import { endAll, ServerProcess } from '../helpers/processes';
import { brokenPromises } from '../helpers/queue-tables';
import { startReplica } from '../helpers/replicas';
import { mostInASecond, perSecond, type ToldStart, toldStarts } from '../helpers/starts';
import { until } from '../helpers/until';

/** For machines with much else to do. */
const PATIENCE_MS = 180_000;
const withinMs = 120_000;

/** How late a check may begin and still count as in time: what timers and the loopback take. */
const JITTER_MS = 100;
/** How much two clocks of one machine may differ. */
const CLOCKS_MS = 50;

/** Starts a second, and how many tasks there are, by the server. */
const FAST = { index: 0, rate: 40, tasks: 280 } as const;
const SLOW = { index: 1, rate: 2, tasks: 14 } as const;
const ADAPTIVE = { index: 2, rate: 30 } as const;

/** The settings of a server whose agents' leases outlive its end. */
const SETTINGS = { LEASE_DURATION_MS: '10000' };

const many = <T>(count: number, make: (i: number) => T): T[] =>
  Array.from({ length: count }, (_, i) => make(i));

let folder: string;
let sink: DnsSink;

const targetOf = ({ index }: { index: number }): string => `127.0.0.1:${sink.ports[index]}`;
const tasksOf = (of: { index: number }, count: number): object[] =>
  many(count, () => dnsTask({ max_attempts: 100 }, { server: targetOf(of) }));

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
  // PostgreSQL runs as another user if this is root.
  chmodSync(folder, 0o755);
  sink = await DnsSink.start(3);
});
afterAll(async () => {
  await endAll();
  await sink.stop();
  rmSync(folder, { recursive: true, force: true });
});

/** Has a server pace both targets, and adds their tasks. */
async function begin(server: ServerProcess): Promise<void> {
  const limits = [FAST, SLOW].map((of) => ({ kind: 'dns', target: targetOf(of), rate: of.rate }));
  expect((await server.operator('PUT', '/v1/concurrency/limits', { limits })).status).toBe(200);
  await server.enqueue(...tasksOf(SLOW, SLOW.tasks), ...tasksOf(FAST, FAST.tasks));
}

const isDone = async (server: ServerProcess): Promise<boolean> => {
  const { status, body } = await server.operator('GET', '/v1/tasks/stats');
  expect(status).toBe(200);
  return body.depths.every(({ state, count }) => count === 0 || state === 'completed');
};

/** Has agents work while something is done, and afterwards until nothing is left. */
async function withFleet(
  servers: readonly ServerProcess[],
  count: number,
  work: (fleet: PacedFleet) => Promise<void>,
): Promise<PacedFleet> {
  const fleet = await PacedFleet.start(servers, count);
  try {
    await work(fleet);
    const [server] = servers as [ServerProcess];
    await until('all is done', () => isDone(server), { withinMs, everyMs: 100 });
  } finally {
    await fleet.stop();
  }
  return fleet;
}

/** Waits until a third of the tasks of the fast target was asked for since. */
const third = (before: number): Promise<boolean> =>
  until('a third was asked for', async () => (await sink.arrivals()).length > before + FAST.tasks / 3, {
    withinMs,
  });

/** The starts that were told, with the arrivals that came of them. */
interface Seen {
  readonly told: readonly ToldStart[];
  readonly arrivals: readonly Arrival[];
}

/** What does not hold of a target with a rate. */
function broken(of: typeof FAST | typeof SLOW, seen: Seen): string[] {
  const target = targetOf(of);
  const told = seen.told.filter((start) => start.target === target);
  const startOf = new Map(told.map((start) => [`lease-${start.lease_id}.example`, start.at]));
  const arrivals = seen.arrivals
    .filter(({ index, name }) => index === of.index && startOf.has(name))
    .map(({ at, name }) => ({ at, lateMs: at - (startOf.get(name) as number) }))
    .sort((a, b) => a.at - b.at);
  // Every task was asked for.
  expect(arrivals.length).toBeGreaterThanOrEqual(of.tasks);
  const most = mostInASecond(told.map(({ at }) => at));
  // Those that arrive in time in a second were told in one, and the jitter before it.
  const inTime = Math.floor(of.rate * (1 + JITTER_MS / 1_000)) + 1;
  return [
    ...(most > of.rate + 1 ? [`${most} starts in a second were told for ${target}`] : []),
    ...arrivals
      .filter(({ lateMs }) => lateMs < -CLOCKS_MS)
      .map(({ lateMs }) => `a query arrived at ${target} ${-lateMs} ms early`),
    ...perSecond(arrivals.map(({ at }) => at)).flatMap(({ at, count }, i) => {
      const late = arrivals.slice(i, i + count).filter(({ lateMs }) => lateMs > JITTER_MS).length;
      return count > inTime + late
        ? [`${count} queries, ${late} of them late, arrived at ${target} in the second from ${at}`]
        : [];
    }),
  ];
}

describe('a single server on SQLite', () => {
  it(
    'keeps rates while it is killed and started again',
    async () => {
      const home = mkdtempSync(join(folder, 'single-'));
      const start = () => ServerProcess.start(home, { env: SETTINGS });
      const server = await start();
      await begin(server);
      const before = (await sink.arrivals()).length;
      const servers = [server];
      await withFleet(servers, 12, async (fleet) => {
        await third(before);
        await server.end('SIGKILL');
        servers[0] = await start();
        fleet.urls[0] = servers[0].url;
      });
      expect(await servers[0]?.end('SIGTERM')).toBe(0);
      const file = new Sqlite(join(home, 'control-plane.db'), { readonly: true });
      const rows = async (sql: string) => file.prepare(sql).all() as Json[];
      const seen = { told: await toldStarts(rows), arrivals: (await sink.arrivals()).slice(before) };
      expect([...broken(FAST, seen), ...broken(SLOW, seen)]).toEqual([]);
      expect(await brokenPromises({ rows, dialect: sqliteDialect })).toEqual([]);
      file.close();
    },
    PATIENCE_MS,
  );
});

(hasPostgres ? describe : describe.skip)('three replicas on PostgreSQL', () => {
  let postgres: PostgresServer;
  let replicas: ServerProcess[];

  beforeAll(async () => {
    postgres = await PostgresServer.start(folder);
    const database = await postgres.create('plane');
    replicas = await Promise.all([1, 2, 3].map(() => startReplica(folder, database, { env: SETTINGS })));
  }, PATIENCE_MS);
  afterAll(async () => {
    await endAll();
    await postgres?.stop('SIGINT');
  }, PATIENCE_MS);

  const startsNow = (): Promise<ToldStart[]> => postgres.session('plane', (rows) => toldStarts(rows));
  const brokenNow = (): Promise<string[]> => postgres.session('plane', (rows) => brokenPromises({ rows }));

  it(
    'keep rates for 50 agents, as told and as it arrives at the targets, while one of them is killed and started again',
    async () => {
      const [first, second] = replicas as [ServerProcess, ServerProcess];
      await begin(first);
      const before = (await sink.arrivals()).length;
      const fleet = await withFleet(replicas, 50, async ({ urls }) => {
        await third(before);
        await second.end('SIGKILL');
        const again = await startReplica(folder, postgres.url('plane'), { env: SETTINGS });
        replicas[1] = again;
        urls[1] = again.url;
      });
      const seen = { told: await startsNow(), arrivals: (await sink.arrivals()).slice(before) };
      expect([...broken(FAST, seen), ...broken(SLOW, seen)]).toEqual([]);
      expect(await brokenNow()).toEqual([]);
      expect(fleet.repeated).toBeGreaterThan(0);
    },
    PATIENCE_MS,
  );

  it(
    'adapt to a target that drops what is too much, dies, and comes back',
    async () => {
      const [server] = replicas as [ServerProcess];
      const target = targetOf(ADAPTIVE);
      const { body } = await server.operator('PUT', '/v1/concurrency/limits', {
        limits: [{ kind: 'dns', target, rate: ADAPTIVE.rate, adaptive: true }],
      });
      const { id } = body.windows[0];
      const history = async (): Promise<Json[]> =>
        (await server.operator('GET', `/v1/concurrency/windows/${id}/history`)).body.items.reverse();
      /** Keeps tasks queued until the rate was changed for one of these reasons since the last time. */
      let known = 0;
      const changed = (...reasons: string[]): Promise<boolean> =>
        until(
          `the rate was changed: ${reasons}`,
          async () => {
            const { body: page } = await server.operator('GET', `/v1/tasks?kind=dns&state=queued&limit=20`);
            if (page.items.length < 10) await server.enqueue(...tasksOf(ADAPTIVE, 10));
            const changes = await history();
            const found = changes.findIndex(({ reason }, i) => i >= known && reasons.includes(reason));
            if (found >= 0) known = found + 1;
            return found >= 0;
          },
          { withinMs, everyMs: 200 },
        );
      sink.answer(ADAPTIVE.index, 4);
      await withFleet(replicas, 10, async () => {
        await changed('failures', 'pushed_back');
        sink.answer(ADAPTIVE.index, 0);
        await changed('dead');
        sink.answer(ADAPTIVE.index, null);
        await changed('alive');
      });
      const changes = await history();
      expect(changes[0]).toMatchObject({ reason: 'operator' });
      for (const { rate_after } of changes) {
        expect(rate_after).toBeGreaterThan(0);
        expect(rate_after).toBeLessThanOrEqual(ADAPTIVE.rate);
      }
      for (const [i, { rate_before, reason, rate_after }] of changes.entries()) {
        if (['failures', 'pushed_back', 'dead'].includes(reason) && changes[i - 1]?.reason !== 'dead')
          expect(rate_after).toBeLessThan(rate_before);
      }
      const told = (await startsNow()).filter((start) => start.target === target);
      expect(mostInASecond(told.map(({ at }) => at))).toBeLessThanOrEqual(ADAPTIVE.rate + 1);
      expect(await brokenNow()).toEqual([]);
    },
    PATIENCE_MS,
  );
});
