import { setTimeout as sleep } from 'node:timers/promises';
import { SchedulerRegistry } from '@nestjs/schedule';
import { Windows } from '../../src/concurrency/windows';
import type { SqlValue, Statements, Transaction } from '../../src/database/statements';
import { ClaimWaiters } from '../../src/queue/claim-waiters';
import { Lanes } from '../../src/queue/lanes';
import { QueueMaintainer } from '../../src/queue/maintenance';
import { TaskTransitions } from '../../src/queue/transitions';
import type { Lease } from '../helpers/api';
import { type Credentials, dnsTask, onPostgres, TestClock, TestServer } from '../helpers/harness';
import { freeRows, holdLocks, untilBlocked } from '../helpers/locks';
import { brokenPromises } from '../helpers/queue-tables';
import { until } from '../helpers/until';

/** What one unit of work did. */
interface Unit {
  readonly statements: { readonly sql: string; readonly values: SqlValue[] }[];
  /** How many rows it added, changed and deleted; of each table, where the database tells. */
  readonly changes: Record<string, number>;
  /** How many rows it locked or read by statements that lock. */
  locked: number;
}

let server: TestServer;
let clock: TestClock;
let agent: Credentials;

const many = <T>(count: number, make: (i: number) => T): T[] =>
  Array.from({ length: count }, (_, i) => make(i));
const at = (target: string, fields: object = {}) => dnsTask(fields, { server: target });
const limit = (...limits: object[]) => server.operator('PUT', '/v1/concurrency/limits', { limits });
const claim = (who: Credentials, capacities: Record<string, number>) =>
  server.agent(who, '/claim', { capacities }).then(({ body }) => body.leases as Lease[]);
const report = (who: Credentials, leases: Lease[]) =>
  server.agent(who, '/report', {
    completed: leases.map(({ lease_id }) => ({
      lease_id,
      outcome: 'success',
      observations: [{ name: 'rtt_ms', value: 1 }],
    })),
    cancelled: [],
  });

/** Rows that a transaction has changed so far, by table; SQLite tells only how many in all. */
async function changesIn(tx: Transaction): Promise<Record<string, number>> {
  if (!onPostgres) {
    const [row] = await tx.rows<{ all: number }>('SELECT total_changes() AS "all"');
    return { all: row?.all ?? 0 };
  }
  const rows = await tx.rows<{ name: string; count: number; updates: number; hot: number }>(
    `SELECT relname AS name, n_tup_ins + n_tup_upd + n_tup_del AS count, n_tup_upd AS updates, n_tup_hot_upd AS hot
     FROM pg_stat_xact_user_tables WHERE n_tup_ins + n_tup_upd + n_tup_del > 0`,
  );
  return Object.fromEntries([
    ['all', rows.reduce((sum, { count }) => sum + count, 0)],
    ...rows.flatMap(({ name, count, updates, hot }) => [
      [name, count],
      [`${name} cold`, updates - hot],
    ]),
  ]);
}

/** Statements that record what they run. */
function recorded<T extends Statements>(statements: T, seen: Unit): T {
  return new Proxy(statements, {
    get(target, name) {
      const value = Reflect.get(target as object, name);
      if (name !== 'rows' && name !== 'run' && name !== 'first')
        return typeof value === 'function' ? value.bind(target) : value;
      return async (sql: string, ...values: SqlValue[]) => {
        seen.statements.push({ sql, values });
        const answer = await value.call(target, sql, ...values);
        if (name === 'rows' && / FOR (?:NO KEY )?UPDATE/.test(sql)) seen.locked += answer.length;
        return answer;
      };
    },
  });
}

/** Does something, and tells what the units of work did that ran meanwhile and wrote something. */
async function unitsOf(work: () => Promise<unknown>): Promise<Unit[]> {
  const units: Unit[] = [];
  const { database } = server;
  const write = database.write.bind(database);
  const spy = jest.spyOn(database, 'write').mockImplementation((unit) =>
    write(async (tx) => {
      const seen: Unit = { statements: [], changes: {}, locked: 0 };
      const before = await changesIn(tx);
      const answer = await unit(recorded(tx, seen));
      for (const [table, count] of Object.entries(await changesIn(tx)))
        seen.changes[table] = count - (before[table] ?? 0);
      units.push(seen);
      return answer;
    }),
  );
  try {
    await work();
  } finally {
    spy.mockRestore();
  }
  return units.filter(({ statements }) => statements.length > 0);
}

/** The same, of what does one unit. */
async function unitOf(work: () => Promise<unknown>): Promise<Unit> {
  const units = await unitsOf(work);
  expect(units).toHaveLength(1);
  return units[0] as Unit;
}

/** How many pages a statement reads or changes; nothing of it stays. For PostgreSQL. */
async function pagesRead(sql: string, values: readonly SqlValue[]): Promise<number> {
  let pages = Number.NaN;
  const undone = new Error('rolled back');
  await server.database
    .write(async (tx) => {
      const [plan] = await tx.rows<{ 'QUERY PLAN': [{ Plan: Record<string, number> }] }>(
        `EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ${sql}`,
        ...values,
      );
      const top = plan?.['QUERY PLAN'][0].Plan ?? {};
      pages = (top['Shared Hit Blocks'] ?? 0) + (top['Shared Read Blocks'] ?? 0);
      throw undone;
    })
    .catch((error: unknown) => {
      if (error !== undone) throw error;
    });
  return pages;
}

// What the queue costs, by numbers of statements, rows and locks: each is what an old design got wrong.
describe('the queue', () => {
  beforeEach(async () => {
    clock = new TestClock();
    server = await TestServer.start({}, { clock });
    // What the server does by itself happens here when the test says so.
    const schedule = server.app.get(SchedulerRegistry);
    for (const name of schedule.getIntervals()) schedule.deleteInterval(name);
    agent = await server.register('probe-1');
    // What is learnt once and remembered is none of what is counted.
    await server.enqueue(at('warm'));
    await report(agent, await claim(agent, { dns: 1_000 }));
    await server.app.get(QueueMaintainer).foldCounts();
  });
  afterEach(async () => {
    expect(await brokenPromises(server)).toEqual([]);
    await server.stop();
  });

  it('changes few rows for a task: one leaves the queue and a lease is added; then the lease and the task change once', async () => {
    await server.enqueue(...many(256, (i) => at(`t${i}`)));
    let leases: Lease[] = [];
    const claimed = await unitOf(async () => {
      leases = await claim(agent, { dns: 1_000 });
    });
    expect(leases).toHaveLength(256);
    // And one for the depth.
    expect(claimed.changes.all).toBe(2 * 256 + 1);
    const reported = await unitOf(() => report(agent, leases));
    // The lease, the task, its line among the finished ones; one for the depth, one for the agent's budget.
    expect(reported.changes.all).toBe(3 * 256 + 2);
    if (!onPostgres) return;
    // The new version of a task's row goes into its page, and no index is written.
    expect(reported.changes['tasks cold']).toBeLessThan(256 / 4);
    expect(claimed.changes.tasks ?? 0).toBe(0);
  });

  it('has claims and reports cost the same number of statements, however many tasks they are for', async () => {
    await server.enqueue(...many(257, (i) => at(`t${i}`)));
    const seen: number[][] = [];
    for (const count of [1, 256]) {
      let leases: Lease[] = [];
      const claimed = await unitOf(async () => {
        leases = await claim(agent, { dns: count });
      });
      const reported = await unitOf(() => report(agent, leases));
      seen.push([claimed.statements.length, reported.statements.length]);
    }
    expect(seen[1]).toEqual(seen[0]);
    expect((seen[0] as number[])[0]).toBeLessThanOrEqual(12);
    expect((seen[0] as number[])[1]).toBeLessThanOrEqual(12);
  });

  it('shares units of work between calls that come together', async () => {
    const agents = await Promise.all(many(64, (i) => server.register(`caller-${i}`)));
    await server.enqueue(...many(64, (i) => at(`t${i}`)));
    for (const who of agents) await claim(who, { dns: 0, tcp: 1 });
    let got: Lease[][] = [];
    const claims = await unitsOf(async () => {
      got = await Promise.all(agents.map((who) => claim(who, { dns: 1 })));
    });
    expect(got.map((leases) => leases.length)).toEqual(agents.map(() => 1));
    expect(new Set(got.flat().map(({ task_id }) => task_id)).size).toBe(64);
    const reports = await unitsOf(() => Promise.all(agents.map((who, i) => report(who, got[i] as Lease[]))));
    // How many come together is the machine's business; not one each.
    for (const units of [claims, reports]) expect(units.length).toBeLessThan(32);
  });

  it('locks, counts and changes nothing for what has no limit', async () => {
    await limit({ kind: 'tcp', limit: 5 }, { kind: 'tcp', target: 'a:1', limit: 5 });
    await server.enqueue(at('a'), at('b'));
    let leases: Lease[] = [];
    const units = await unitsOf(async () => {
      leases = await claim(agent, { dns: 2 });
      await report(agent, leases);
      await server.enqueue(at('c'));
    });
    expect(leases).toHaveLength(2);
    const written = units
      .flatMap(({ statements }) => statements)
      .filter(({ sql }) => /UPDATE (?:lanes|concurrency_windows)/.test(sql));
    expect(written).toEqual([]);
  });

  // On SQLite units come one after the other.
  (onPostgres ? it : it.skip)(
    'has no row that two units wait for each other at, if nothing is limited',
    async () => {
      const [one, two] = await Promise.all([server.register('one'), server.register('two')]);
      await server.enqueue(...many(6, (i) => at(`t${i}`)));
      const held = await claim(two, { dns: 1 });
      const gate = Promise.withResolvers<void>();
      const claimed = Promise.withResolvers<void>();
      const { database } = server;
      const write = database.write.bind(database);
      const spy = jest.spyOn(database, 'write').mockImplementationOnce((unit) =>
        write(async (tx) => {
          const answer = await unit(tx);
          claimed.resolve();
          await gate.promise;
          return answer;
        }),
      );
      const waits = claim(one, { dns: 2 });
      await claimed.promise;
      spy.mockRestore();
      // While that claim is not committed: others report, enqueue, cancel, and the maintainer does its work.
      expect((await report(two, held)).body).toEqual({ acknowledged: 1 });
      const [added] = await server.enqueue(at('new', { priority: -1 }));
      expect((await server.operator('POST', `/v1/tasks/${added}/cancel`)).status).toBe(200);
      await server.app.get(QueueMaintainer).reap();
      await server.app.get(QueueMaintainer).foldCounts();
      gate.resolve();
      expect(await waits).toHaveLength(2);
    },
  );

  (onPostgres ? it : it.skip).each<[string, (ids: number[]) => [path: string, body: object]]>([
    ['extend', (ids) => ['/extend', { lease_ids: ids, extend_by_ms: 10_000 }]],
    ['report', (ids) => ['/report', { completed: ids.map((lease_id) => ({ lease_id })), cancelled: [] }]],
  ])('has %s lock leases by ascending ids, in whatever order an agent names them', async (_, callOf) => {
    await server.enqueue(...many(3, (i) => at(`t${i}`)));
    const [first, ...others] = (await claim(agent, { dns: 3 })).map(({ lease_id }) => lease_id);
    const release = await holdLocks(server, (tx) => tx.lockRows('leases', [first as number]));
    const [path, body] = callOf([...others.toReversed(), first as number]);
    const call = server.agent(agent, path, body);
    await untilBlocked(server);
    const free = await freeRows(server, 'leases');
    await release();
    expect((await call).status).toBe(200);
    expect(free).toEqual(expect.arrayContaining(others));
  });

  it.each<[string, (target: string) => object]>([
    ['everything', () => ({})],
    ['a kind', () => ({ kind: 'dns' })],
    ['a target', (target) => ({ kind: 'dns', target })],
  ])(
    'sets, lowers and lifts a limit of %s at one cost, whatever is queued behind it',
    async (_, windowOf) => {
      const costs: number[][] = [];
      for (const backlog of [1, 2_000]) {
        await server.enqueue(...many(backlog, () => at(`t${backlog}`)));
        const units: Unit[] = [];
        for (const slots of [5, 0, null])
          units.push(await unitOf(() => limit({ ...windowOf(`t${backlog}`), limit: slots })));
        costs.push(
          units.flatMap(({ statements, changes, locked }) => [statements.length, changes.all ?? 0, locked]),
        );
        // Rows of the window, its lane, its history, the audit log and its head.
        for (const { changes } of units) expect(changes.all).toBeLessThanOrEqual(7);
      }
      expect(costs[1]).toEqual(costs[0]);
    },
  );

  it('sets limits with the same number of statements, and reads live leases in one, however many limits a call sets', async () => {
    await server.enqueue(...many(120, (i) => at(`t${i % 60}`)));
    await claim(agent, { dns: 120 });
    const setAndLift = async (targets: string[]) => {
      const windows = [
        {},
        { kind: 'dns' },
        { kind: 'tcp' },
        ...targets.map((target) => ({ kind: 'dns', target })),
      ];
      const set = await unitOf(async () => {
        const { body } = await limit(...windows.map((window) => ({ ...window, limit: 200 })));
        expect(body.windows.map(({ leased }: { leased: number }) => leased)).toEqual([
          ...[120, 120, 0],
          ...targets.map((target) => (target === 'idle' ? 0 : 2)),
        ]);
      });
      const lifted = await unitOf(() => limit(...windows.map((window) => ({ ...window, limit: null }))));
      return [set, lifted].map(({ statements }) => statements.map(({ sql }) => sql));
    };
    const [set, lifted] = (await setAndLift(['t7'])) as [string[], string[]];
    expect(set.filter((sql) => /\bleases\b/.test(sql))).toHaveLength(1);
    expect(await setAndLift(['idle', ...many(60, (i) => `t${i}`)])).toEqual([set, lifted]);
  });

  it('has claims and reports cost the same with 2,000 tasks behind 50 full targets as without', async () => {
    const work = () => server.enqueue(...many(20, (i) => at(`free${i}`)));
    const measure = async (): Promise<number[]> => {
      let leases: Lease[] = [];
      const claimed = await unitOf(async () => {
        leases = await claim(agent, { dns: 20 });
      });
      expect(leases).toHaveLength(20);
      const reported = await unitOf(() => report(agent, leases));
      return [claimed, reported].flatMap(({ statements, changes }) => [statements.length, changes.all ?? 0]);
    };
    // One limited target that is open and empty, so that both ways look for lanes.
    await limit({ kind: 'dns', target: 'open', limit: 5 });
    await server.app.get(QueueMaintainer).moveTasks();
    await work();
    const before = await measure();
    await limit(...many(50, (i) => ({ kind: 'dns', target: `full${i}`, limit: 0 })));
    await server.enqueue(...many(2_000, (i) => at(`full${i % 50}`, { priority: 9 })));
    await server.app.get(QueueMaintainer).moveTasks();
    await work();
    expect(await measure()).toEqual(before);
  });

  it('does not take the lane of a target for that of a kind which a unit added and rolled back', async () => {
    await server.forbid('INSERT', 'task_count_deltas');
    const tasks = [{ kind: 'tcp', spec: { host: 'a.example', port: 1 } }];
    expect((await server.operator('POST', '/v1/tasks', { tasks })).status).toBe(500);
    await server.allow();
    // SQLite gives this lane the id of the one that was rolled back.
    await limit({ kind: 'dns', target: 'a', limit: 1 });
    await server.enqueue(at('a'), at('a'));
    expect(await claim(agent, { dns: 5 })).toHaveLength(1);
    const lanes = await server.rows(`SELECT queued FROM lanes WHERE target <> ''`);
    expect(lanes).toEqual([{ queued: 1 }]);
  });

  it('lets other kinds go on while a kind that nobody does fills a limit of everything', async () => {
    await limit({ limit: 10 });
    await server.enqueue(...many(500, () => ({ kind: 'ping', spec: { host: 'a.example' }, priority: 9 })));
    await server.enqueue(...many(30, (i) => at(`t${i}`)));
    for (let i = 0; i < 3; i++) {
      const leases = await claim(agent, { dns: 100 });
      expect(leases).toHaveLength(10);
      await report(agent, leases);
    }
  });

  (onPostgres ? it : it.skip)('sets limits and grants leases while tables are vacuumed', async () => {
    await server.enqueue(...many(3, () => at('a')));
    const gate = Promise.withResolvers<void>();
    const locked = Promise.withResolvers<void>();
    // The lock of VACUUM, which itself can't run inside a transaction.
    const vacuum = server.database.write(async (tx) => {
      for (const table of ['tasks', 'leases', 'ready', 'concurrency_windows', 'lanes'])
        await tx.run(`LOCK TABLE ${table} IN SHARE UPDATE EXCLUSIVE MODE`);
      locked.resolve();
      await gate.promise;
    });
    await locked.promise;
    expect((await limit({ kind: 'dns', limit: 2 }, { kind: 'dns', target: 'a', limit: 1 })).status).toBe(200);
    expect(await claim(agent, { dns: 3 })).toHaveLength(1);
    gate.resolve();
    await vacuum;
  });

  (onPostgres ? it : it.skip)('sets limits although there are always units that take long', async () => {
    const windows = server.app.get(Windows);
    let isOver = false;
    /** One unit after the other, each with the lock that units share. */
    const keepBusy = async (): Promise<void> => {
      while (!isOver)
        await server.database.write(async (tx) => {
          await windows.of(tx);
          await sleep(400);
        });
    };
    // The second begins in the middle of the first's, and so on.
    const busy = [keepBusy(), sleep(200).then(keepBusy)];
    const { status } = await limit({ kind: 'dns', limit: 2 });
    isOver = true;
    await Promise.all(busy);
    expect(status).toBe(200);
  });

  it('begins a search behind what was claimed, and finds what comes before that', async () => {
    await server.enqueue(...many(20, () => at('a')));
    await claim(agent, { dns: 20 });
    await server.enqueue(...many(3, () => at('a')));
    const fromOf = (unit: Unit): SqlValue[] => {
      const taken = unit.statements.find(({ sql }) => sql.startsWith('DELETE FROM ready'));
      // The rank and the id from which on it looks.
      return taken?.values.slice(2, 4) ?? [];
    };
    const first = await unitOf(() => claim(agent, { dns: 21 }));
    expect(fromOf(first)[1]).toBeGreaterThan(0);
    // Better than where the next search would begin, and put back to before it.
    const [better] = await server.enqueue(at('b', { priority: 5 }));
    expect((await claim(agent, { dns: 22 })).map(({ task_id }) => task_id)).toEqual([better]);
  });

  // SQLite reuses the space of deleted rows: it has no entries that only an open snapshot needs.
  (onPostgres ? it : it.skip)('reads no more for what ended while a snapshot is open', async () => {
    const maintainer = server.app.get(QueueMaintainer);
    const release = await holdLocks(server, (tx) => tx.run('SELECT pg_current_xact_id()'));
    try {
      for (let i = 0; i < 8; i++) {
        await server.enqueue(...many(250, (n) => at(`t${n}`)));
        // As the server does four times a second.
        await maintainer.reap();
        await report(agent, await claim(agent, { dns: 250 }));
      }
      await server.enqueue(at('last'), at('last-but-one'));
      const reads: Unit = { statements: [], changes: {}, locked: 0 };
      const { database } = server;
      const read = database.read.bind(database);
      const units = await unitsOf(async () => {
        const [first, second] = [...(await claim(agent, { dns: 1 })), ...(await claim(agent, { dns: 2 }))];
        await report(agent, [second as Lease]);
        // In steps: a longer one counts as an outage of the service.
        for (let i = 0; i < 15; i++) {
          clock.advance(4_000);
          await maintainer.reap();
        }
        clock.advance(1);
        const spy = jest
          .spyOn(database, 'read')
          .mockImplementation((look) => read((statements) => look(recorded(statements, reads))));
        await maintainer.reap();
        spy.mockRestore();
        expect(await server.rows('SELECT state FROM leases WHERE id = $1', first?.lease_id)).toEqual([
          { state: 'expired' },
        ]);
      });
      const searches = [...units, reads]
        .flatMap(({ statements }) => statements)
        .filter(({ sql }) => /^(?:SELECT|DELETE)/.test(sql) && !/task_count_deltas|advisory/.test(sql));
      expect(searches.map(({ sql }) => sql)).toEqual(
        expect.arrayContaining([
          expect.stringContaining('k.oldest'),
          expect.stringContaining('FROM ready'),
          expect.stringContaining('SELECT deadline_at'),
          expect.stringContaining('l.deadline_at <= '),
        ]),
      );
      const pages = await Promise.all(
        searches.map(async ({ sql, values }) => [sql, await pagesRead(sql, values)] as const),
      );
      // 2,000 leases have ended, and each left an entry in each index.
      expect(pages.filter(([, count]) => !(count < 100))).toEqual([]);
      // The agent's bytes were charged in advance.
      expect(units.flatMap(({ statements }) => statements).map(({ sql }) => sql)).not.toContainEqual(
        expect.stringContaining('agent_usage'),
      );
    } finally {
      await release();
    }
  });

  it('searches the lane of a target from its best task, too', async () => {
    await limit({ kind: 'dns', target: 'a', limit: 50 });
    const ids = await server.enqueue(...many(30, () => at('a')));
    await claim(agent, { dns: 20 });
    const next = await unitOf(() => claim(agent, { dns: 25 }));
    const [lane] = await server.rows(`SELECT id FROM lanes WHERE target = 'a:53'`);
    const searches = next.statements
      .flatMap(({ values }) => values)
      .filter((value) => String(value).includes('"from_id"'))
      .flatMap((value): { lane_id: number; from_id: number }[] => JSON.parse(value as string))
      .filter(({ lane_id }) => lane_id === Number(lane.id));
    expect(searches.length).toBeGreaterThan(0);
    expect(Math.min(...searches.map(({ from_id }) => from_id))).toBe(ids[20]);
  });

  it('does not pass over what is added to a lane while it looks for other kinds', async () => {
    await limit({ kind: 'tcp', target: 'x:1', limit: 5 });
    await server.enqueue(at('a'), at('a'));
    await claim(agent, { dns: 1 });
    const [{ id: laneId }] = await server.rows(`SELECT id FROM lanes WHERE kind = 'dns' AND target = ''`);
    const better = { rank: -5, id: 1 };
    const [lanes, transitions] = [server.app.get(Lanes), server.app.get(TaskTransitions)];
    await server.database.write(async (tx) => {
      const watched = new Proxy(tx, {
        get(target, name) {
          const value = Reflect.get(target, name, target);
          if (name !== 'rows') return typeof value === 'function' ? value.bind(target) : value;
          return (sql: string, ...values: SqlValue[]) => {
            // As another unit that commits a better task does.
            if (values.includes('tcp')) lanes.setBack(Number(laneId), better);
            return value.call(target, sql, ...values);
          };
        },
      });
      const taken = await transitions.takeForClaim(
        watched,
        new Map([
          ['dns', 1],
          ['tcp', 1],
        ]),
      );
      expect(taken).toHaveLength(1);
      const { written } = await transitions.lease(watched, [], taken);
      await written;
    });
    expect(lanes.positionOf(Number(laneId))).toEqual(better);
  });

  it('has a claim that nobody woke find its task within a second or so', async () => {
    const waiters = server.app.get(ClaimWaiters);
    const waiting = server.agent(agent, '/claim', { capacities: { dns: 1 }, wait_ms: 20_000 });
    await until('the claim waits', () => waiters.waiting === 1);
    const deaf = jest.spyOn(waiters, 'wake').mockImplementation(() => undefined);
    const [id] = await server.enqueue(at('a'));
    deaf.mockRestore();
    const looks = setInterval(() => void server.app.get(QueueMaintainer).reap(), 100);
    expect((await waiting).body.leases).toMatchObject([{ task_id: id }]);
    clearInterval(looks);
  });

  (onPostgres ? it : it.skip)('grants no lease before the last one of its task ended', async () => {
    const [holder, late] = [agent, await server.register('probe-2')];
    const [id] = await server.enqueue(at('a'));
    await claim(holder, { dns: 1 });
    let claimed: Promise<Lease[]> | undefined;
    await server.database.write(async (tx) => {
      await tx.lockRows('agents', [late.agent_id]);
      // Its unit begins now, and waits for the lock.
      claimed = claim(late, { dns: 1 });
      await untilBlocked(server);
      clock.advance(5_000);
      await server.operator('POST', `/v1/agents/${holder.agent_id}/disable`);
    });
    expect(await claimed).toMatchObject([{ task_id: id }]);
    const [first, second] = await server.rows(
      'SELECT * FROM leases WHERE task_id = $1 ORDER BY id',
      id as number,
    );
    expect(second.granted_at).toBeGreaterThanOrEqual(first.ended_at);
    expect(second.deadline_at - second.granted_at).toBe(60_000);
  });

  (onPostgres ? it : it.skip)(
    'has plans that do not change with statistics, however wrong they are',
    async () => {
      const analyze = () => server.database.write((tx) => tx.run('ANALYZE'));
      const plansOf = async (): Promise<Map<string, string>> => {
        const units = await unitsOf(async () => {
          await server.enqueue(...many(5, (i) => at(i % 2 ? 'a' : 'b', { max_attempts: 2 })));
          const leases = await claim(agent, { dns: 5 });
          await report(agent, leases.slice(1));
          await server.agent(agent, '/extend', { lease_ids: [leases[0].lease_id], extend_by_ms: 10_000 });
          await server.agent(agent, '/report', {
            completed: [],
            cancelled: [{ lease_id: leases[0].lease_id }],
          });
          await server.pass(30_000);
          await limit(
            { kind: 'tcp', limit: 9 },
            ...many(3, (i) => ({ kind: 'dns', target: `t${i}`, limit: 9 })),
          );
          await limit(
            { kind: 'tcp', limit: null },
            ...many(3, (i) => ({ kind: 'dns', target: `t${i}`, limit: null })),
          );
        });
        const plans = new Map<string, string>();
        for (const { sql, values } of units.flatMap(({ statements }) => statements)) {
          if (!HOT.test(sql)) continue;
          const rows = await server.database.write((tx) =>
            tx.rows<Record<string, string>>(`EXPLAIN (COSTS OFF) ${sql}`, ...values),
          );
          // By what rows are found, and not in which order small parts are put together.
          const scans = rows
            .map((row) => (Object.values(row)[0] as string).replace(/^[\s>-]*/, ''))
            .filter((line) => /Scan/.test(line));
          plans.set(sql.replaceAll(/\s+/g, ' '), scans.sort().join('; '));
        }
        return plans;
      };
      await limit({ kind: 'dns', target: 'b', limit: 100 });
      await analyze();
      const small = await plansOf();
      expect(small.size).toBeGreaterThan(15);
      for (const [sql, plan] of small)
        expect([sql, plan]).toEqual([sql, expect.not.stringMatching(READS_ALL)]);
      const expectTheSame = async () => {
        for (const [sql, plan] of await plansOf()) expect([sql, plan]).toEqual([sql, small.get(sql) ?? plan]);
      };
      // Now the tables are large, and the statistics are of when they were empty; then the other way round.
      await server.enqueue(...many(4_000, (i) => at(`t${i % 100}`)));
      await expectTheSame();
      await analyze();
      await expectTheSame();
    },
    60_000,
  );
});

/** Statements on the tables of the queue. */
const HOT = /\b(?:tasks|leases|ready|scheduled|task_expiries|finished_tasks|unique_keys|lanes)\b/;
const READS_ALL = /Seq Scan on (?:tasks|leases|ready|scheduled|task_expiries|finished_tasks|unique_keys)\b/;
