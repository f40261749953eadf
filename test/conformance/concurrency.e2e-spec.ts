import { setImmediate as nextTurn } from 'node:timers/promises';
import { ConcurrencyService } from '../../src/concurrency/concurrency.service';
import { type Answer, type Credentials, dnsTask, TestClock, TestServer } from '../helpers/harness';

const DAY_MS = 86_400_000;
const LEASE_MS = 60_000;

let server: TestServer;
let clock: TestClock;

const limit = (...limits: object[]): Promise<Answer> =>
  server.operator('PUT', '/v1/concurrency/limits', { limits });
const windows = (query = ''): Promise<Answer> => server.operator('GET', `/v1/concurrency/windows${query}`);
const at = (target: string, fields: object = {}) => dnsTask(fields, { server: target });
const ping = (host: string, fields: object = {}) => ({ kind: 'ping', spec: { host }, ...fields });
const cancel = (id: unknown): Promise<Answer> => server.operator('POST', `/v1/tasks/${id}/cancel`);
const report = (who: Credentials, completed: any[], cancelled: any[] = []): Promise<Answer> =>
  server.agent(who, '/report', {
    completed: completed.map(({ lease_id }) => ({ lease_id })),
    cancelled: cancelled.map(({ lease_id }) => ({ lease_id })),
  });

async function claim(who: Credentials, capacities: Record<string, number> = { dns: 100 }): Promise<any[]> {
  const { status, body } = await server.agent(who, '/claim', { capacities });
  expect([status, body]).toEqual([200, { leases: expect.any(Array) }]);
  return body.leases;
}

const pass = (ms: number): Promise<void> => server.passKept(clock, ms);

/** The ids of tasks in a state, oldest first. */
async function inState(state: string): Promise<number[]> {
  const { body } = await server.operator('GET', `/v1/tasks?state=${state}&limit=500`);
  return body.items.map((item: { id: number }) => item.id).reverse();
}

/** A window's ready, leased and waiting: how many of the queued are ready is in no answer. */
async function counts(query: string): Promise<[number, number, number]> {
  const { body } = await windows(query);
  expect(body.items).toHaveLength(1);
  const { scope, kind, target, leased, queued } = body.items[0];
  const rows = await server.rows<{ ready: number; leased: number; waiting: number }>(
    `SELECT ready, leased, waiting FROM concurrency_windows
     WHERE scope = '${scope}' AND kind = '${kind ?? ''}' AND target = '${target ?? ''}'`,
  );
  expect(rows).toMatchObject([{ leased }]);
  const { ready, waiting } = rows[0] as (typeof rows)[0];
  expect(ready + waiting).toBe(queued);
  return [ready, leased, waiting];
}

/** Every counter is what a count of the tasks gives. */
async function expectCountersToMatch(): Promise<void> {
  const recounted = (scope: string, kind: string, target: string) =>
    `SELECT '${scope}' AS scope, ${kind} AS kind, ${target} AS target,
       count(CASE state WHEN 'queued' THEN 1 END) AS ready, count(CASE state WHEN 'leased' THEN 1 END) AS leased,
       count(CASE state WHEN 'waiting' THEN 1 END) AS waiting
     FROM tasks WHERE state IN ('queued', 'leased', 'waiting') GROUP BY 1, 2, 3`;
  const [wanted, kept, depths, recountedDepths] = await Promise.all([
    server.rows(
      `${recounted('global', "''", "''")} UNION ALL ${recounted('kind', 'kind', "''")}
       UNION ALL ${recounted('target', 'kind', 'target')} ORDER BY 1, 2, 3`,
    ),
    server.rows(
      `SELECT scope, kind, target, ready, leased, waiting FROM concurrency_windows
       WHERE ready <> 0 OR leased <> 0 OR waiting <> 0 ORDER BY 1, 2, 3`,
    ),
    server.rows('SELECT kind, state, count FROM task_counts WHERE count <> 0 ORDER BY 1, 2'),
    server.rows('SELECT kind, state, count(*) AS count FROM tasks GROUP BY 1, 2 ORDER BY 1, 2'),
  ]);
  expect(kept).toEqual(wanted);
  expect(depths).toEqual(recountedDepths);
}

describe('concurrency windows', () => {
  let agent: Credentials;

  beforeEach(async () => {
    clock = new TestClock();
    server = await TestServer.start({}, { clock });
    agent = await server.register('probe-1');
  });
  afterEach(async () => {
    await expectCountersToMatch();
    await server.stop();
  });

  describe('a ceiling', () => {
    it.each([
      ['everything', {}, 2],
      ['a kind', { kind: 'dns' }, 3],
      ['a target', { kind: 'dns', target: 'a' }, 4],
    ])('on %s holds the rest back', async (_, window, more) => {
      await limit({ ...window, limit: 2 });
      // The five of dns at a count in all three windows; the other two are each out of one.
      const { body } = await server.operator('POST', '/v1/tasks', {
        tasks: [at('a'), at('a'), at('a'), at('a'), at('a'), at('b'), ping('a')],
      });
      const states = body.tasks.map((task: { state: string }) => task.state);
      expect(states.slice(0, 5)).toEqual(['queued', 'queued', 'waiting', 'waiting', 'waiting']);
      expect(states.filter((state: string) => state === 'queued')).toHaveLength(more);
      expect(await claim(agent, { dns: 100, ping: 100 })).toHaveLength(more);
      expect(await claim(agent, { dns: 100, ping: 100 })).toEqual([]);
    });

    it('of zero lets nothing in', async () => {
      await limit({ kind: 'dns', limit: 0 });
      await server.enqueue(at('a'), ping('a'));
      expect(await claim(agent, { dns: 10, ping: 10 })).toMatchObject([{ kind: 'ping' }]);
    });

    it('holds in every window that a task is in, the narrowest first to be full', async () => {
      await limit({ limit: 5 }, { kind: 'dns', limit: 4 }, { kind: 'dns', target: 'a', limit: 3 });
      await server.enqueue(
        ...Array.from({ length: 5 }, () => at('a')),
        ...Array.from({ length: 5 }, () => at('b')),
        ...Array.from({ length: 5 }, () => ping('a')),
      );
      expect(await counts('?scope=target&kind=dns&target=a')).toEqual([3, 0, 2]);
      expect(await counts('?scope=target&kind=dns&target=b')).toEqual([1, 0, 4]);
      expect(await counts('?scope=kind&kind=dns')).toEqual([4, 0, 6]);
      expect(await counts('?scope=kind&kind=ping')).toEqual([1, 0, 4]);
      expect(await counts('?scope=global')).toEqual([5, 0, 10]);
    });

    it('goes for a scheduled task when it comes due, and for one that is retried', async () => {
      await limit({ kind: 'dns', limit: 1 });
      const [later] = await server.enqueue(at('a', { run_at: new Date(clock.now() + 2_000).toISOString() }));
      const [first] = await server.enqueue(at('a'));
      const [other] = await server.enqueue(at('a'));
      await cancel(other);
      await pass(2_000);
      expect((await server.operator('GET', `/v1/tasks/${later}`)).body.state).toBe('waiting');
      expect((await server.operator('POST', `/v1/tasks/${other}/retry`)).body.state).toBe('waiting');
      expect(await inState('queued')).toEqual([first]);
    });

    it('does not take the slot of a task from it that goes back because its agent went out', async () => {
      await limit({ kind: 'dns', limit: 1 });
      const [held, next] = await server.enqueue(at('a'), at('a', { priority: 1 }));
      await cancel(next);
      await claim(agent);
      await server.enqueue(at('a', { priority: 9 }));
      await server.operator('POST', `/v1/agents/${agent.agent_id}/disable`);
      expect(await inState('queued')).toEqual([held]);
    });

    it('holds after a restart', async () => {
      await limit({ kind: 'dns', limit: 1 });
      await server.stop({ keep: true });
      server = await TestServer.start({}, { clock, folder: server.folder });
      await server.enqueue(at('a'), at('a'));
      expect(await counts('?scope=kind')).toEqual([1, 0, 1]);
    });
  });

  describe('a slot that frees', () => {
    let held: number;
    let best: number;
    let rest: number[];
    let lease: any;

    /** One task leased, and others waiting for its slot; the best of them is neither the first nor the last. */
    async function fill(): Promise<void> {
      await limit({ kind: 'dns', limit: 1 });
      [held] = (await server.enqueue(at('a'))) as [number];
      [lease] = await claim(agent);
      const ids = await server.enqueue(
        at('a'),
        at('b', { priority: -5 }),
        at('c', { priority: 5 }),
        at('d', { priority: 5 }),
        at('a', { priority: 4 }),
      );
      best = ids[2] as number;
      rest = [ids[3], ids[4], ids[0], ids[1]] as number[];
      expect(await inState('queued')).toEqual([]);
    }

    it.each<[string, () => Promise<unknown>]>([
      ['by a completed report', () => report(agent, [lease])],
      ['by a cancelled report', () => report(agent, [], [lease])],
      ['by an expired lease', () => pass(LEASE_MS)],
      ['by a cancelled task that is leased', () => cancel(held)],
    ])('%s goes to the best that waits', async (_, free) => {
      await fill();
      await free();
      expect(await inState('queued')).toEqual([best]);
      // And so on, best first, to the last.
      for (const id of rest) {
        const [next] = await claim(agent);
        await report(agent, [next]);
        expect(await inState('queued')).toEqual([id]);
      }
    });

    it('by a cancelled task that is queued goes to the best that waits', async () => {
      await limit({ kind: 'dns', limit: 1 });
      const [queued, , better] = await server.enqueue(at('a'), at('a'), at('b', { priority: 1 }));
      await cancel(queued);
      expect(await inState('queued')).toEqual([better]);
    });

    it('by a task whose time is up goes to the best that waits', async () => {
      await limit({ kind: 'dns', limit: 1 });
      const not_after = new Date(clock.now() + 2_000).toISOString();
      // One that waits can run out of time too, and is let in by nobody.
      const [, , better] = await server.enqueue(
        at('a', { not_after }),
        at('a', { not_after, priority: 9 }),
        at('b', { priority: 1 }),
        at('b'),
      );
      await pass(2_000);
      expect(await inState('queued')).toEqual([better]);
      expect(await inState('dead')).toHaveLength(2);
    });

    it('in one target is of no use to another, and goes to its own', async () => {
      await limit({ kind: 'dns', target: 'a', limit: 1 }, { kind: 'dns', target: 'b', limit: 1 });
      const [a1, a2, b1] = await server.enqueue(at('a'), at('a'), at('b'), at('b', { priority: 9 }));
      await cancel(a1);
      expect(await inState('queued')).toEqual([a2, b1]);
    });

    it('in a kind goes past targets that are full', async () => {
      await limit({ kind: 'dns', limit: 2 }, { kind: 'dns', target: 'a', limit: 1 });
      const [a1, b1, a2, b2] = await server.enqueue(at('a'), at('b'), at('a', { priority: 9 }), at('b'));
      await cancel(b1);
      expect(await inState('queued')).toEqual([a1, b2]);
      await cancel(a1);
      expect(await inState('queued')).toEqual([a2, b2]);
    });

    it('goes to the best of very many targets', async () => {
      await limit({ kind: 'dns', limit: 1 });
      const [first] = await server.enqueue(at('x'));
      const targets = Array.from({ length: 250 }, (_, i) => `t${String(i).padStart(3, '0')}`);
      const ids = await server.enqueue(...targets.map((target, i) => at(target, { priority: i })));
      await cancel(first);
      expect(await inState('queued')).toEqual([ids.at(-1)]);
      await cancel(ids.at(-1));
      expect(await inState('queued')).toEqual([ids.at(-2)]);
    });

    it('goes to the oldest of very many that are equally urgent', async () => {
      await limit({ limit: 1 });
      const [first] = await server.enqueue(at('x'));
      const targets = Array.from({ length: 250 }, (_, i) => `t${String(249 - i).padStart(3, '0')}`);
      const ids = await server.enqueue(...targets.map((target) => at(target)));
      await cancel(first);
      expect(await inState('queued')).toEqual([ids[0]]);
    });

    it('goes past very many tasks of targets that are full, to the best of the others', async () => {
      await limit(
        { limit: 3 },
        { kind: 'dns', target: 'full', limit: 1 },
        { kind: 'ping', target: 'full', limit: 1 },
      );
      const [, , first] = await server.enqueue(at('full'), ping('full'), at('x'));
      await server.enqueue(
        ...Array.from({ length: 150 }, () => at('full', { priority: 99 })),
        ...Array.from({ length: 150 }, () => ping('full', { priority: 99 })),
      );
      const others = await server.enqueue(
        ...Array.from({ length: 130 }, (_, i) => at(`t${i}`, { priority: i % 50 })),
        ping('last', { priority: 49 }),
        ping('last', { priority: 60 }),
        ping('last', { priority: 60 }),
      );
      const wanted = others
        .map((id, i) => ({ id, priority: i < 130 ? i % 50 : i === 130 ? 49 : 60 }))
        .sort((a, b) => b.priority - a.priority || a.id - b.id)
        .slice(0, 10);
      let freed = first;
      for (const { id } of wanted) {
        await cancel(freed);
        expect((await inState('queued')).slice(2)).toEqual([id]);
        freed = id;
      }
    });

    it('wakes a claim that waits', async () => {
      await limit({ kind: 'dns', limit: 1 });
      const [first, second] = await server.enqueue(at('a'), at('a'));
      await claim(agent);
      const other = await server.register('probe-2');
      const waiting = server.agent(other, '/claim', { capacities: { dns: 1 }, wait_ms: 30_000 });
      await cancel(first);
      expect((await waiting).body.leases).toMatchObject([{ task_id: second }]);
    });
  });

  describe('a change of ceilings', () => {
    it('that lowers one puts the worst of the queued back, and leaves leases alone', async () => {
      await server.enqueue(at('a', { priority: 9 }), at('a', { priority: 9 }));
      const leases = await claim(agent, { dns: 2 });
      const [low, mid, high, mid2] = await server.enqueue(
        at('a', { priority: -1 }),
        at('b'),
        at('c', { priority: 1 }),
        at('d'),
      );
      const answer = await limit({ kind: 'dns', limit: 4 });
      expect(answer).toMatchObject({
        status: 200,
        body: { windows: [{ scope: 'kind', kind: 'dns', limit: 4, leased: 2, queued: 4, available: 2 }] },
      });
      expect(await inState('queued')).toEqual([mid, high]);
      expect(await inState('waiting')).toEqual([low, mid2]);

      // Lower than what is leased: nothing is let in until enough have ended.
      await limit({ kind: 'dns', limit: 1 });
      expect(await counts('?scope=kind')).toEqual([0, 2, 4]);
      expect((await windows('?scope=kind')).body.items).toMatchObject([{ limit: 1, available: 0 }]);
      await report(agent, [leases[0]]);
      expect(await counts('?scope=kind')).toEqual([0, 1, 4]);
      await report(agent, [leases[1]]);
      expect(await inState('queued')).toEqual([high]);
    });

    it('that raises or lifts one lets the best in', async () => {
      await limit({ kind: 'dns', limit: 0 });
      const ids = await server.enqueue(at('a'), at('b', { priority: 2 }), at('c', { priority: 1 }), at('d'));
      expect(await inState('queued')).toEqual([]);
      await limit({ kind: 'dns', limit: 2 });
      expect(await inState('queued')).toEqual([ids[1], ids[2]]);
      const lifted = await limit({ kind: 'dns', limit: null });
      expect(lifted.body.windows).toMatchObject([{ limit: null, leased: 0, queued: 4, available: null }]);
      expect(await inState('queued')).toEqual(ids);
    });

    it('that lifts a wide one leaves the narrow ones in force', async () => {
      await limit({ limit: 1 }, { kind: 'dns', limit: 3 }, { kind: 'dns', target: 'a', limit: 2 });
      await server.enqueue(...Array.from({ length: 4 }, () => at('a')), at('b'), at('b'), ping('a'));
      expect(await counts('?scope=global')).toEqual([1, 0, 6]);
      await limit({ limit: null });
      expect(await counts('?scope=target&kind=dns&target=a')).toEqual([2, 0, 2]);
      expect(await counts('?scope=kind&kind=dns')).toEqual([3, 0, 3]);
      expect(await counts('?scope=global')).toEqual([4, 0, 3]);
    });

    it('fits many tasks at once, over many targets', async () => {
      await server.enqueue(...Array.from({ length: 600 }, (_, i) => at(`t${i % 300}`, { priority: i })));
      await limit({ limit: 10 });
      expect(await counts('?scope=global')).toEqual([10, 0, 590]);
      const best = await server.rows('SELECT min(priority) AS least FROM tasks WHERE state = $1', 'queued');
      expect(best).toEqual([{ least: 590 }]);
      await limit({ limit: 500 });
      expect(await counts('?scope=global')).toEqual([500, 0, 100]);
      const next = await server.rows('SELECT min(priority) AS least FROM tasks WHERE state = $1', 'queued');
      expect(next).toEqual([{ least: 100 }]);
    });

    it('wakes a claim that waits', async () => {
      await limit({ kind: 'dns', limit: 0 });
      await server.enqueue(at('a'));
      const waiting = server.agent(agent, '/claim', { capacities: { dns: 1 }, wait_ms: 30_000 });
      await limit({ kind: 'dns', limit: 1 });
      expect((await waiting).body.leases).toHaveLength(1);
    });

    it('answers with the windows in the form of the list', async () => {
      const { status, body } = await limit(
        { limit: 1_000_000 },
        { kind: 'dns', target: null, limit: 0 },
        { kind: 'tcp', target: 'a:53', limit: 7 },
      );
      const fresh = { leased: 0, queued: 0 };
      expect([status, body.windows]).toEqual([
        200,
        [
          { scope: 'global', kind: null, target: null, limit: 1_000_000, available: 1_000_000, ...fresh },
          { scope: 'kind', kind: 'dns', target: null, limit: 0, available: 0, ...fresh },
          { scope: 'target', kind: 'tcp', target: 'a:53', limit: 7, available: 7, ...fresh },
        ],
      ]);
      expect((await windows()).body).toEqual({ items: [...body.windows].reverse(), next_cursor: null });
    });
  });

  describe('the list', () => {
    it('filters, and gives every window once on pages of any size', async () => {
      await server.enqueue(at('a'), at('b'), ping('a'), ping('b'), ping('c'));
      const all = (await windows('?limit=500')).body.items;
      expect(all).toHaveLength(8);
      const named = (query: string) =>
        windows(query).then(({ body }) => body.items.map((w: any) => `${w.scope} ${w.kind} ${w.target}`));
      expect((await named('?scope=global')).sort()).toEqual(['global null null']);
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
        const seen: any[] = [];
        for (let cursor: string | null = ''; cursor !== null; ) {
          const { body }: Answer = await windows(`?limit=${size}${cursor && `&cursor=${cursor}`}`);
          seen.push(...body.items);
          cursor = body.next_cursor;
        }
        expect(seen).toEqual(all);
      }
    });

    it('forgets an empty window after its time, and the purge deletes it', async () => {
      const purge = () => server.app.get(ConcurrencyService).purge();
      const kept = async () =>
        (
          await server.rows<{ name: string }>(
            `SELECT scope || ' ' || kind || ' ' || target AS name FROM concurrency_windows ORDER BY 1`,
          )
        ).map(({ name }) => name.trim());
      const [busy, idle] = await server.enqueue(at('busy'), at('idle'));
      await limit({ kind: 'tcp', limit: 3 }, { kind: 'http', limit: 3 });
      await limit({ kind: 'http', limit: null });
      await cancel(idle);
      const six = ['global', 'kind dns', 'kind http', 'kind tcp', 'target dns busy:53', 'target dns idle:53'];
      clock.advance(DAY_MS - 1);
      expect(await purge()).toBe(0);
      expect(await kept()).toEqual(six);
      expect((await windows('?target=idle')).body.items).toHaveLength(1);
      clock.advance(1);
      // What counts something or has a ceiling stays, however old.
      expect((await windows('?target=idle')).body.items).toEqual([]);
      expect((await windows()).body.items).toHaveLength(4);
      expect(await purge()).toBe(2);
      expect(await kept()).toEqual(six.filter((name) => !/http|idle/.test(name)));
      await cancel(busy);
      clock.advance(DAY_MS);
      expect(await purge()).toBe(2);
      expect(await kept()).toEqual(['global', 'kind tcp']);
    });

    it('keeps counting in a window that was purged', async () => {
      const [id] = await server.enqueue(at('a'));
      await cancel(id);
      clock.advance(DAY_MS);
      expect(await server.app.get(ConcurrencyService).purge()).toBe(2);
      await server.enqueue(at('a'), at('a'));
      expect(await counts('?target=a')).toEqual([2, 0, 0]);
    });
  });

  it('is never over its ceilings while all come at once, and its counters are true', async () => {
    const TARGETS = ['a', 'b', 'c', 'd'];
    const CEILINGS = [
      { limit: 12 },
      { kind: 'dns', limit: 9 },
      { kind: 'ping', limit: 5 },
      { kind: 'dns', target: 'a', limit: 2 },
      { kind: 'dns', target: 'b', limit: 4 },
      { kind: 'ping', target: 'a', limit: 1 },
    ];
    await limit(...CEILINGS);
    const agents = await Promise.all(Array.from({ length: 6 }, (_, i) => server.register(`storm-${i}`)));
    const created: number[] = [];
    let storming = true;

    const producer = async (seed: number) => {
      for (let round = 0; round < 12; round++) {
        const tasks = Array.from({ length: 8 }, (_, i) => {
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
        expect(answer.body.rejected?.filter((r: any) => r.reason !== 'revoked') ?? []).toEqual([]);
        if (round > 200) throw new Error('the storm does not end');
      }
    };
    const canceller = async () => {
      while (storming) {
        const id = created[created.length - 1 - (created.length % 13)];
        if (id !== undefined) expect([200, 409]).toContain((await cancel(id)).status);
        else await limit(CEILINGS[0] as object);
      }
    };
    let looks = 0;
    const watcher = async () => {
      while (storming) {
        // Reads answer without the event loop: it would have no turn for anybody else.
        await nextTurn();
        looks++;
        // One statement sees one commit: the tasks themselves, not the counters that the ceilings are kept by.
        const over = await server.rows(
          `SELECT * FROM (
             SELECT w.scope, w.kind, w.target, w.ceiling, w.ready, w.leased,
               (SELECT count(*) FROM tasks t WHERE t.state IN ('queued', 'leased')
                AND (w.kind = '' OR t.kind = w.kind) AND (w.target = '' OR t.target = w.target)) AS held
             FROM concurrency_windows w WHERE w.ceiling IS NOT NULL) AS w
           WHERE ready + leased > ceiling OR held > ceiling OR held <> ready + leased`,
        );
        expect(over).toEqual([]);
      }
    };
    const upkeep = async () => {
      while (storming) {
        await nextTurn();
        await pass(500);
      }
    };

    const producers = Promise.all([1, 2, 3, 4].map(producer)).finally(() => {
      storming = false;
    });
    await Promise.all([producers, ...agents.map(worker), canceller(), watcher(), upkeep()]);
    expect(looks).toBeGreaterThan(5);
    expect(created).toHaveLength(4 * 12 * 8);
    await expectCountersToMatch();

    // When it is over nothing has been lost: all that waits is let in, to the last.
    for (let round = 0; round < 2_000; round++) {
      for (const who of agents) await report(who, await claim(who, { dns: 100, ping: 100 }));
      const open = await server.rows<{ n: number }>(
        `SELECT count(*) AS n FROM tasks WHERE state IN ('scheduled', 'waiting', 'queued', 'leased')`,
      );
      if (open[0]?.n === 0) break;
      await pass(5_000);
    }
    const ended = await server.rows<{ state: string }>('SELECT DISTINCT state FROM tasks ORDER BY 1');
    for (const { state } of ended) expect(['completed', 'cancelled', 'dead']).toContain(state);
    expect((await windows('?scope=global')).body.items).toMatchObject([{ leased: 0, queued: 0 }]);
  }, 60_000);
});

// Nothing of this is stored, so one server will do.
describe('refused', () => {
  beforeAll(async () => {
    clock = new TestClock();
    server = await TestServer.start({}, { clock });
  });
  afterAll(async () => {
    await expectCountersToMatch();
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
