import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';
import { SchedulerRegistry } from '@nestjs/schedule';
import { selectMovingWindows } from '../../src/concurrency/windows.queries';
import { QueueMaintainer } from '../../src/queue/maintenance';
import { TaskTransitions } from '../../src/queue/transitions';
import type { Json, Lease } from '../helpers/api';
import {
  type Answer,
  type Credentials,
  dnsTask,
  onPostgres,
  TestClock,
  TestServer,
} from '../helpers/harness';
import { brokenPromises } from '../helpers/queue-tables';

const LEASE_MS = 60_000;

let server: TestServer;
let clock: TestClock;

const limit = (...limits: object[]): Promise<Answer> =>
  server.operator('PUT', '/v1/concurrency/limits', { limits });
const windows = (query = ''): Promise<Answer> => server.operator('GET', `/v1/concurrency/windows${query}`);
const at = (target: string, fields: object = {}) => dnsTask(fields, { server: target });
const ping = (host: string, fields: object = {}) => ({ kind: 'ping', spec: { host }, ...fields });
const cancel = (id: unknown): Promise<Answer> => server.operator('POST', `/v1/tasks/${id}/cancel`);
const report = (who: Credentials, completed: Lease[], cancelled: Lease[] = []): Promise<Answer> =>
  server.agent(who, '/report', {
    completed: completed.map(({ lease_id }) => ({ lease_id })),
    cancelled: cancelled.map(({ lease_id }) => ({ lease_id })),
  });

async function claim(who: Credentials, capacities: Record<string, number> = { dns: 100 }): Promise<Lease[]> {
  const { status, body } = await server.agent(who, '/claim', { capacities });
  expect([status, body]).toEqual([200, { leases: expect.any(Array) }]);
  return body.leases;
}

const tasksOf = (leases: Lease[]): number[] => leases.map((lease) => lease.task_id);
const pass = (ms: number): Promise<void> => server.pass(ms);
const moveTasks = (): Promise<void> => server.app.get(QueueMaintainer).moveTasks();
const many = <T>(count: number, make: (i: number) => T): T[] =>
  Array.from({ length: count }, (_, i) => make(i));

/** A window's leased and queued. */
async function counts(query: string): Promise<[number, number]> {
  const { body } = await windows(query);
  expect(body.items).toHaveLength(1);
  return [body.items[0].leased, body.items[0].queued];
}

describe('concurrency windows', () => {
  let agent: Credentials;

  beforeEach(async () => {
    clock = new TestClock();
    server = await TestServer.start({}, { clock });
    // Tasks are moved when the test says so: a claim leaves out what is being moved at that moment.
    server.app.get(SchedulerRegistry).deleteInterval('lane-moves');
    agent = await server.register('probe-1');
  });
  afterEach(async () => {
    expect(await brokenPromises(server)).toEqual([]);
    await server.stop();
  });

  describe('a limit', () => {
    it.each([
      ['everything', {}, 2],
      ['a kind', { kind: 'dns' }, 3],
      ['a target', { kind: 'dns', target: 'a' }, 4],
    ])('on %s is what may be leased of it at once; all is queued', async (_, window, more) => {
      await limit({ ...window, limit: 2 });
      const { body } = await server.operator('POST', '/v1/tasks', {
        tasks: [at('a'), at('a'), at('a'), at('a'), at('a'), at('b'), ping('a')],
      });
      expect(new Set(body.tasks.map((task: { state: string }) => task.state))).toEqual(new Set(['queued']));
      expect(await claim(agent, { dns: 100, ping: 100 })).toHaveLength(more);
      expect(await claim(agent, { dns: 100, ping: 100 })).toEqual([]);
    });

    it('of zero lets nothing begin', async () => {
      await limit({ kind: 'dns', limit: 0 });
      await server.enqueue(at('a'), ping('a'));
      expect(await claim(agent, { dns: 10, ping: 10 })).toMatchObject([{ kind: 'ping' }]);
    });

    it('holds in every window that a task is in', async () => {
      await limit({ limit: 5 }, { kind: 'dns', limit: 4 }, { kind: 'dns', target: 'a', limit: 3 });
      await server.enqueue(...many(5, () => at('a')), ...many(5, () => at('b')), ...many(5, () => ping('a')));
      expect(await claim(agent, { dns: 100, ping: 100 })).toHaveLength(5);
      expect(await counts('?scope=target&kind=dns&target=a')).toEqual([3, 2]);
      expect(await counts('?scope=kind&kind=dns')).toEqual([4, 6]);
      expect(await counts('?scope=global')).toEqual([5, 10]);
    });

    it('takes the best of all that it lets begin, whatever lane they are in', async () => {
      await limit({ kind: 'dns', target: 'a', limit: 1 }, { kind: 'dns', target: 'b', limit: 2 });
      const [a1, a2, b1, b2, c1, c2] = await server.enqueue(
        ...[at('a', { priority: 3 }), at('a', { priority: 9 }), at('b', { priority: 5 }), at('b')],
        ...[at('c', { priority: 4 }), at('c', { priority: 7 })],
      );
      expect(tasksOf(await claim(agent, { dns: 4 }))).toEqual([a2, c2, b1, c1]);
      expect(tasksOf(await claim(agent, { dns: 100 }))).toEqual([b2]);
      expect(a1).toBeDefined();
    });

    it('hides no other target behind tasks whose time to begin is over', async () => {
      const targets = many(40, (i) => `target-${i}`);
      await limit(...targets.map((target) => ({ kind: 'dns', target, limit: 1 })));
      const not_after = new Date(clock.now() + 1_000).toISOString();
      const ids = await server.enqueue(
        ...targets.slice(0, 30).map((target) => at(target, { not_after, priority: 9 })),
        at('target-0', { priority: -1 }),
        ...targets.slice(30).map((target) => at(target, { priority: 1 })),
      );
      await server.pass(2_000, { reaps: false });
      expect(tasksOf(await claim(agent, { dns: 1 }))).toEqual(ids.slice(31, 32));
      expect(tasksOf(await claim(agent, { dns: 11 }))).toEqual([...ids.slice(32), ids[30]]);
    });

    it('has a waiting claim get a task that was being moved while it looked', async () => {
      const [id] = await server.enqueue(at('a'));
      await limit({ kind: 'dns', target: 'a', limit: 1 });
      const transitions = server.app.get(TaskTransitions);
      const [moving] = await server.database.read((statements) => selectMovingWindows(statements));
      let claimed: Promise<Answer> | undefined;
      await server.database.write(async (tx) => {
        await transitions.moveNext(tx, moving?.id as number, 100);
        claimed = server.agent(agent, '/claim', { capacities: { dns: 1 }, wait_ms: 20_000 });
        // On SQLite it looks after this unit, on PostgreSQL beside it: until it waits.
        if (onPostgres) await sleep(300);
      });
      expect(tasksOf((await claimed)?.body.leases)).toEqual([id]);
    });

    it('goes for what was queued before it was set, before and after that is in its lane', async () => {
      const ids = await server.enqueue(...many(40, (i) => at(i % 2 ? 'a' : 'b')));
      await limit({ kind: 'dns', target: 'a', limit: 3 });
      const of = (leases: Lease[], odd: number) =>
        tasksOf(leases).filter((id) => ids.indexOf(id) % 2 === odd);
      const first = await claim(agent, { dns: 10 });
      expect([of(first, 1).length, of(first, 0).length]).toEqual([3, 7]);
      await moveTasks();
      expect(await counts('?target=a')).toEqual([3, 17]);
      expect(of(await claim(agent, { dns: 100 }), 1)).toEqual([]);
      await report(
        agent,
        first.filter((lease) => of([lease], 1).length > 0),
      );
      expect(of(await claim(agent, { dns: 100 }), 1)).toEqual(ids.filter((_, i) => i % 2 === 1).slice(3, 6));
    });

    it('lets others by in the claim that moves what was queued before it was set', async () => {
      const [early, other] = await server.enqueue(at('a'), at('b', { priority: -1 }));
      await limit({ kind: 'dns', target: 'a', limit: 1 });
      const [late] = await server.enqueue(at('a', { priority: 1 }));
      const first = await claim(agent, { dns: 2 });
      expect(tasksOf(first)).toEqual([late, other]);
      await report(agent, first);
      expect(tasksOf(await claim(agent, { dns: 2 }))).toEqual([early]);
    });

    it('goes by age in the claim that moves what was queued before it was set', async () => {
      const [first, old] = await server.enqueue(at('a'), at('a'));
      const [lease] = await claim(agent, { dns: 1 });
      await limit({ kind: 'dns', target: 'a', limit: 2 });
      const [young] = await server.enqueue(at('a'));
      expect(tasksOf(await claim(agent, { dns: 3 }))).toEqual([old]);
      await report(agent, [lease]);
      expect(tasksOf(await claim(agent, { dns: 3 }))).toEqual([young]);
      expect(lease.task_id).toBe(first);
    });

    it('lets others by while what it holds back heads the queue', async () => {
      await server.enqueue(...many(3_000, () => at('full', { priority: 9 })));
      const others = await server.enqueue(...many(5, () => at('free')));
      await limit({ kind: 'dns', target: 'full', limit: 0 });
      // A claim moves what is in its way, a bounded number at a time.
      const got: number[] = [];
      for (let i = 0; i < 10 && got.length < 5; i++) got.push(...tasksOf(await claim(agent, { dns: 100 })));
      expect(got).toEqual(others);
    });

    it('has a waiting claim look on past what it holds back, until there is a task or nothing is in the way', async () => {
      await server.enqueue(...many(3_000, () => at('full', { priority: 9 })));
      const [other] = await server.enqueue(at('free'));
      await limit({ kind: 'dns', target: 'full', limit: 0 });
      const { body } = await server.agent(agent, '/claim', { capacities: { dns: 1 }, wait_ms: 20_000 });
      expect(tasksOf(body.leases)).toEqual([other]);
    });

    it('goes for a scheduled task when it comes due, and for one that is retried', async () => {
      await limit({ kind: 'dns', target: 'a', limit: 1 });
      const [later] = await server.enqueue(at('a', { run_at: new Date(clock.now() + 2_000).toISOString() }));
      const [first, other] = await server.enqueue(at('a'), at('a'));
      await cancel(other);
      expect(tasksOf(await claim(agent))).toEqual([first]);
      await pass(2_000);
      expect((await server.operator('GET', `/v1/tasks/${later}`)).body.state).toBe('queued');
      expect((await server.operator('POST', `/v1/tasks/${other}/retry`)).body.state).toBe('queued');
      expect(await claim(agent)).toEqual([]);
      expect(await counts('?target=a')).toEqual([1, 2]);
    });

    it('holds after a restart', async () => {
      await limit({ kind: 'dns', limit: 1 });
      await server.stop({ keep: true });
      server = await TestServer.start({}, { clock, folder: server.folder });
      await server.enqueue(at('a'), at('a'));
      expect(await claim(agent)).toHaveLength(1);
      expect(await claim(agent)).toEqual([]);
    });
  });

  describe('a slot that frees', () => {
    it.each<[string, (held: number, lease: Lease) => Promise<unknown>]>([
      ['by a completed report', (_, lease) => report(agent, [lease])],
      ['by a cancelled report', (_, lease) => report(agent, [], [lease])],
      ['by an expired lease', () => pass(LEASE_MS)],
      ['by a cancelled task that is leased', (held) => cancel(held)],
      [
        'by an agent that is disabled',
        async (held) => {
          await server.operator('POST', `/v1/agents/${agent.agent_id}/disable`);
          await cancel(held);
        },
      ],
    ])('%s goes to the best that is queued, in each of its windows', async (_, free) => {
      await limit({ limit: 1 }, { kind: 'dns', limit: 1 }, { kind: 'dns', target: 'a', limit: 1 });
      const [held] = (await server.enqueue(at('a'))) as [number];
      const [lease] = await claim(agent);
      const ids = await server.enqueue(
        ...[at('a'), at('b', { priority: -5 }), at('c', { priority: 5 }), at('d', { priority: 5 })],
        at('a', { priority: 4 }),
      );
      const other = await server.register('probe-2');
      expect(await claim(other)).toEqual([]);
      await free(held, lease);
      // And so on, best first, to the last.
      for (const id of [ids[2], ids[3], ids[4], ids[0], ids[1]]) {
        const next = await claim(other);
        expect(tasksOf(next)).toEqual([id]);
        expect(await claim(other)).toEqual([]);
        await report(other, next);
      }
    });

    it('wakes a claim that waits, and only for as many as there is room', async () => {
      await limit({ kind: 'dns', target: 'a', limit: 1 });
      const [first, second] = await server.enqueue(at('a'), at('a'), at('a'));
      const [lease] = await claim(agent);
      expect(lease.task_id).toBe(first);
      const others = await Promise.all([server.register('probe-2'), server.register('probe-3')]);
      const waiting = others.map((who) =>
        server.agent(who, '/claim', { capacities: { dns: 9 }, wait_ms: 2_000 }),
      );
      await report(agent, [lease]);
      const answers = await Promise.all(waiting);
      expect(answers.flatMap(({ body }) => tasksOf(body.leases))).toEqual([second]);
    });

    it('of one target is not used for another', async () => {
      await limit({ kind: 'dns', target: 'a', limit: 1 }, { kind: 'dns', target: 'b', limit: 1 });
      const [a1, a2, b1] = await server.enqueue(at('a'), at('a'), at('b'), at('b', { priority: -1 }));
      const leases = await claim(agent);
      expect(tasksOf(leases)).toEqual([a1, b1]);
      await report(agent, leases.slice(0, 1));
      expect(tasksOf(await claim(agent))).toEqual([a2]);
    });
  });

  describe('a change of limits', () => {
    it('that lowers one lets leases run on, and nothing begin until enough have ended', async () => {
      await server.enqueue(...many(4, () => at('a')));
      const leases = await claim(agent, { dns: 3 });
      const answer = await limit({ kind: 'dns', limit: 1 }, { kind: 'dns', target: 'a', limit: 2 });
      expect(answer).toMatchObject({
        status: 200,
        body: {
          windows: [
            { scope: 'kind', kind: 'dns', limit: 1, leased: 3, queued: 1, available: 0 },
            { scope: 'target', kind: 'dns', target: 'a:53', limit: 2, leased: 3, available: 0 },
          ],
        },
      });
      for (const lease of leases.slice(0, 2)) {
        await report(agent, [lease]);
        expect(await claim(agent)).toEqual([]);
      }
      expect(
        (await server.agent(agent, '/extend', { lease_ids: [leases[2].lease_id], extend_by_ms: 10_000 }))
          .body,
      ).toMatchObject({ outcomes: [{ lease_id: leases[2].lease_id }], revoked: [] });
      await report(agent, [leases[2]]);
      expect(await claim(agent)).toHaveLength(1);
    });

    it('that raises or lifts one lets more begin', async () => {
      await limit({ kind: 'dns', target: 'a', limit: 0 });
      const ids = await server.enqueue(at('a'), at('a', { priority: 2 }), at('a', { priority: 1 }), at('a'));
      expect(await claim(agent)).toEqual([]);
      await limit({ kind: 'dns', target: 'a', limit: 2 });
      expect(tasksOf(await claim(agent))).toEqual([ids[1], ids[2]]);
      const lifted = await limit({ kind: 'dns', target: 'a', limit: null });
      expect(lifted.body.windows).toEqual([
        {
          ...{ id: null, inherited: false, max_limit: null, rate: null, max_rate: null, adaptive: false },
          hold_until: null,
          scope: 'target',
          kind: 'dns',
          target: 'a:53',
          limit: null,
          leased: null,
          queued: 2,
          available: null,
        },
      ]);
      expect((await windows()).body.items).toEqual([]);
      // What is enqueued now is in the lane of its kind again; the best of both goes first.
      const [better] = await server.enqueue(at('a', { priority: 1 }));
      expect(tasksOf(await claim(agent))).toEqual([better, ids[0], ids[3]]);
    });

    it('counts what is leased when a limit is set again', async () => {
      await limit({ kind: 'dns', target: 'a', limit: 5 });
      await server.enqueue(...many(4, () => at('a')));
      await claim(agent, { dns: 2 });
      await limit({ kind: 'dns', target: 'a', limit: null });
      await claim(agent, { dns: 3 });
      expect((await limit({ kind: 'dns', target: 'a', limit: 3 })).body.windows).toMatchObject([
        { limit: 3, leased: 3, available: 0 },
      ]);
      expect(await claim(agent)).toEqual([]);
    });

    it.each([
      ['everything', {}],
      ['a kind', { kind: 'dns' }],
      ['a target', { kind: 'dns', target: 'a' }],
    ])('of %s that raises or lifts it wakes a claim that waits', async (_, window) => {
      for (const raised of [1, null]) {
        await limit({ ...window, limit: 0 });
        await server.enqueue(at('a'));
        const waiting = server.agent(agent, '/claim', { capacities: { dns: 9 }, wait_ms: 30_000 });
        await limit({ ...window, limit: raised });
        const { leases } = (await waiting).body;
        expect(leases).toHaveLength(1);
        await report(agent, leases);
      }
    });

    it('is in force when it is answered, whatever is under way', async () => {
      await server.enqueue(...many(400, (i) => at(`t${i % 4}`)));
      const agents = await Promise.all(many(8, (i) => server.register(`storm-${i}`)));
      let isSet = false;
      let late = 0;
      const claims = agents.map(async (who) => {
        for (let i = 0; i < 12; i++) {
          const begunLate = isSet;
          const leases = await claim(who, { dns: 100 });
          if (begunLate) late += leases.length;
          await report(who, leases.slice(1));
        }
      });
      await limit(
        { kind: 'dns', target: 't0', limit: 0 },
        { kind: 'dns', target: 't1', limit: 0 },
        { kind: 'dns', limit: 0 },
      );
      isSet = true;
      await Promise.all(claims);
      expect(late).toBe(0);
    });

    it('answers with the windows in the order given', async () => {
      const none = { inherited: false, rate: null, max_rate: null, adaptive: false, hold_until: null };
      const { status, body } = await limit(
        { limit: 1_000_000 },
        { kind: 'dns', target: null, limit: 0 },
        { kind: 'tcp', target: 'a:53', limit: 7 },
      );
      expect([status, body.windows]).toEqual([
        200,
        [
          {
            ...none,
            id: expect.any(Number),
            scope: 'global',
            kind: null,
            target: null,
            limit: 1_000_000,
            max_limit: 1_000_000,
            leased: 0,
            queued: 0,
            available: 1_000_000,
          },
          {
            ...{ ...none, id: expect.any(Number), scope: 'kind', kind: 'dns', target: null, limit: 0 },
            ...{ max_limit: 0, leased: 0, queued: 0, available: 0 },
          },
          {
            ...{ ...none, id: expect.any(Number), scope: 'target', kind: 'tcp', target: 'a:53', limit: 7 },
            ...{ max_limit: 7, leased: 0, queued: 0, available: 7 },
          },
        ],
      ]);
      expect((await windows()).body).toEqual({ items: [...body.windows].reverse(), next_cursor: null });
    });
  });

  it('are listed by filters, each once on pages of any size', async () => {
    const names = ['a', 'b'].map((target) => ({ kind: 'dns', target }));
    await limit(
      ...[{}, { kind: 'dns' }, { kind: 'ping' }, ...names].map((one) => ({ ...one, limit: 1 })),
      ...['a', 'b', 'c'].map((target) => ({ kind: 'ping', target, limit: 1 })),
    );
    const all = (await windows('?limit=500')).body.items;
    expect(all).toHaveLength(8);
    const named = (query: string) =>
      windows(query).then(({ body }) => body.items.map((w: Json) => `${w.scope} ${w.kind} ${w.target}`));
    expect(await named('?scope=global')).toEqual(['global null null']);
    expect((await named('?scope=kind')).sort()).toEqual(['kind dns null', 'kind ping null']);
    expect((await named('?kind=dns')).sort()).toEqual([
      'kind dns null',
      'target dns a:53',
      'target dns b:53',
    ]);
    expect((await named('?target=a')).sort()).toEqual(['target dns a:53', 'target ping a']);
    expect(await named('?scope=target&kind=ping&target=c')).toEqual(['target ping c']);
    expect(await named('?kind=whois')).toEqual([]);
    for (const size of [1, 3, 7, 8]) {
      const seen: Lease[] = [];
      for (let cursor: string | null = ''; cursor !== null; ) {
        const { body }: Answer = await windows(`?limit=${size}${cursor && `&cursor=${cursor}`}`);
        seen.push(...body.items);
        cursor = body.next_cursor;
      }
      expect(seen).toEqual(all);
    }
  });

  it('leave no lane behind once their limit is lifted and all that was in it is done', async () => {
    await limit({ kind: 'dns', target: 'a', limit: 1 }, { kind: 'dns', target: 'b', limit: 1 });
    await server.enqueue(at('a'), at('a'));
    const own = () =>
      server.rows<{ target: string }>(`SELECT target FROM lanes WHERE target <> '' ORDER BY target`);
    await limit({ kind: 'dns', target: 'a', limit: null }, { kind: 'dns', target: 'b', limit: null });
    await server.app.get(QueueMaintainer).purge();
    expect(await own()).toEqual([{ target: 'a:53' }]);
    await claim(agent);
    await server.app.get(QueueMaintainer).purge();
    expect(await own()).toEqual([]);
    // And it can be limited again.
    await limit({ kind: 'dns', target: 'a', limit: 2 });
    expect(await counts('?target=a')).toEqual([2, 0]);
  });

  it('are never over their limits while all come at once, and their counters are true', async () => {
    const TARGETS = ['a', 'b', 'c', 'd'];
    const LIMITS = [
      { limit: 12 },
      { kind: 'dns', limit: 9 },
      { kind: 'ping', limit: 5 },
      { kind: 'dns', target: 'a', limit: 2 },
      { kind: 'dns', target: 'b', limit: 4 },
      { kind: 'ping', target: 'a', limit: 1 },
    ];
    await limit(...LIMITS);
    const agents = await Promise.all(many(6, (i) => server.register(`storm-${i}`)));
    const created: number[] = [];
    let storming = true;

    const producer = async (seed: number) => {
      for (let round = 0; round < 12; round++) {
        const tasks = many(8, (i) => {
          const n = seed * 31 + round * 7 + i;
          const fields = { priority: n % 5, max_attempts: 3 };
          const target = TARGETS[n % TARGETS.length] as string;
          return n % 3 === 0 ? ping(target, fields) : at(target, fields);
        });
        created.push(...(await server.enqueue(...tasks)));
      }
    };
    const worker = async (who: Credentials, seed: number) => {
      for (let round = 0; storming || round < 40; round++) {
        const leases = await claim(who, { dns: 1 + (seed % 4), ping: 2 });
        const done = leases.filter((_, i) => (i + round + seed) % 4 !== 0);
        const given = leases.filter((lease) => !done.includes(lease));
        // Some are kept forever, as by an agent that died.
        const answer = await report(who, done, round % 5 === 0 ? given.slice(1) : given);
        expect(answer.body.rejected?.filter((r: Json) => r.reason !== 'revoked') ?? []).toEqual([]);
        if (round > 200) throw new Error('the storm does not end');
      }
    };
    const canceller = async () => {
      while (storming) {
        const id = created[created.length - 1 - (created.length % 13)];
        if (id !== undefined) expect([200, 409]).toContain((await cancel(id)).status);
        else await limit(LIMITS[0] as object);
      }
    };
    let looks = 0;
    const watcher = async () => {
      while (storming) {
        // Reads answer without the event loop: it would have no turn for anybody else.
        await nextTurn();
        looks++;
        // One statement sees one commit: the leases themselves, not the counters that the limits are kept by.
        const over = await server.rows(
          `SELECT * FROM (
             SELECT w.scope, w.kind, w.target, w.slots, w.leased,
               (SELECT count(*) FROM leases l JOIN tasks t ON t.id = l.task_id WHERE l.state = 'active'
                AND (w.kind = '' OR t.kind = w.kind) AND (w.target = '' OR t.target = w.target)) AS held
             FROM concurrency_windows w) AS w
           WHERE leased > slots OR held > slots OR held <> leased`,
        );
        expect(over).toEqual([]);
      }
    };
    const maintain = async () => {
      while (storming) {
        await nextTurn();
        await pass(500);
      }
    };

    const producers = Promise.all([1, 2, 3, 4].map(producer)).finally(() => {
      storming = false;
    });
    await Promise.all([producers, ...agents.map(worker), canceller(), watcher(), maintain()]);
    expect(looks).toBeGreaterThan(5);
    expect(created).toHaveLength(4 * 12 * 8);
    expect(await brokenPromises(server)).toEqual([]);

    // When it is over nothing has been lost: all that is queued is done, to the last.
    for (let round = 0; round < 2_000; round++) {
      for (const who of agents) await report(who, await claim(who, { dns: 100, ping: 100 }));
      const open = await server.rows<{ n: number }>(`SELECT count(*) AS n FROM tasks WHERE state = 'open'`);
      if (open[0]?.n === 0) break;
      await pass(5_000);
    }
    expect(await server.rows(`SELECT id FROM tasks WHERE state = 'open'`)).toEqual([]);
    expect((await windows('?scope=global')).body.items).toMatchObject([
      { leased: 0, queued: 0, available: 12 },
    ]);
  }, 60_000);
});

// Nothing of this is stored, so one server will do.
describe('refused', () => {
  beforeAll(async () => {
    clock = new TestClock();
    server = await TestServer.start({}, { clock });
  });
  afterAll(async () => {
    expect(await brokenPromises(server)).toEqual([]);
    await server.stop();
  });

  it.each<[string, unknown, string]>([
    ['nothing', undefined, 'limits'],
    ['an empty list', [], 'limits'],
    ['1,001', Array.from({ length: 1_001 }, (_, i) => ({ kind: `k${i}`, limit: 1 })), 'limits'],
    ['no object', [{ limit: 1 }, 5], 'limits.1'],
    ['no limit', [{ kind: 'dns' }], 'limits.0.limit'],
    ['a negative limit', [{ kind: 'dns', limit: -1 }], 'limits.0.limit'],
    ['a fraction', [{ kind: 'dns', limit: 1.5 }], 'limits.0.limit'],
    ['a limit too high', [{ kind: 'dns', limit: 1_000_001 }], 'limits.0.limit'],
    ['a text', [{ kind: 'dns', limit: '5' }], 'limits.0.limit'],
    ['a target without a kind', [{ target: 'a', limit: 1 }], 'limits.0.target'],
    ['an empty kind', [{ kind: '', limit: 1 }], 'limits.0.kind'],
    ['an empty target', [{ kind: 'dns', target: '', limit: 1 }], 'limits.0.target'],
    ['a target too long', [{ kind: 'dns', target: 't'.repeat(513), limit: 1 }], 'limits.0.target'],
    ['a kind that is no text', [{ kind: 5, limit: 1 }], 'limits.0.kind'],
    ['another field', [{ kind: 'dns', limit: 1, scope: 'kind' }], 'limits.0.scope'],
    [
      'a window twice',
      [
        { kind: 'dns', limit: 1 },
        { kind: 'dns', target: null, limit: 2 },
      ],
      'limits.1',
    ],
  ])('%s', async (_, limits, field) => {
    const answer = await server.operator('PUT', '/v1/concurrency/limits', { limits });
    expect(answer).toMatchObject({ status: 400, body: { error: 'ERR_VALIDATION' } });
    expect(Object.keys(answer.body.details)).toEqual([field]);
    // All or nothing.
    expect((await windows()).body.items).toEqual([]);
  });

  it.each([
    ['scope=all', 'scope'],
    [`kind=${'k'.repeat(65)}`, 'kind'],
    [`target=${'t'.repeat(513)}`, 'target'],
    ['limit=0', 'limit'],
    ['limit=501', 'limit'],
    ['cursor=x', 'cursor'],
    ['full=true', 'full'],
  ])('a list with ?%s', async (query, field) => {
    const answer = await windows(`?${query}`);
    expect(answer).toMatchObject({ status: 400, body: { error: 'ERR_VALIDATION' } });
    expect(Object.keys(answer.body.details)).toEqual([field]);
  });
});
