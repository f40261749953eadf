import { ConcurrencyService } from '../../src/concurrency/concurrency.service';
import { Lanes } from '../../src/queue/lanes';
import { QueueMaintainer } from '../../src/queue/maintenance';
import { Continuity } from '../../src/scheduling/continuity';
import type { Json, Lease } from '../helpers/api';
import {
  type Answer,
  type Credentials,
  dnsTask,
  onPostgres,
  TestClock,
  TestServer,
} from '../helpers/harness';
import { Chance } from '../helpers/hostile-requests';
import { brokenPromises } from '../helpers/queue-tables';

let server: TestServer;
let clock: TestClock;
let agent: Credentials;

const limit = (...limits: object[]): Promise<Answer> =>
  server.operator('PUT', '/v1/concurrency/limits', { limits });
const windows = async (query = ''): Promise<Json[]> =>
  (await server.operator('GET', `/v1/concurrency/windows${query}`)).body.items;
const at = (target: string, fields: object = {}) => dnsTask(fields, { server: target });
const many = <T>(count: number, make: (i: number) => T): T[] =>
  Array.from({ length: count }, (_, i) => make(i));

async function claim(who = agent, capacity = 1_000): Promise<Lease[]> {
  const { status, body } = await server.agent(who, '/claim', {
    capacities: { dns: capacity, ping: capacity },
  });
  expect(status).toBe(200);
  return body.leases;
}

const report = (who: Credentials, completed: readonly Lease[], fields: object = {}): Promise<Answer> =>
  server.agent(who, '/report', {
    completed: completed.map(({ lease_id }) => ({ lease_id, outcome: 'success', ...fields })),
    cancelled: [],
  });

const moveTasks = (): Promise<void> => server.app.get(QueueMaintainer).moveTasks();

/** The starts that agents were told, in ms since the epoch. */
async function starts(target?: string): Promise<number[]> {
  const rows = await server.rows<{ at: number; target: string }>(
    'SELECT coalesce(l.start_at, l.granted_at) AS at, t.target FROM leases l JOIN tasks t ON t.id = l.task_id ORDER BY 1',
  );
  return rows.filter((row) => target === undefined || row.target === target).map((row) => Number(row.at));
}

/** The most starts in any second. */
function mostInASecond(instants: readonly number[]): number {
  let most = 0;
  for (let first = 0, last = 0; last < instants.length; last++) {
    while ((instants[last] as number) - (instants[first] as number) >= 1_000) first++;
    most = Math.max(most, last - first + 1);
  }
  return most;
}

/** Claims every 100 ms, and reports at once. */
async function work(ms: number): Promise<void> {
  for (let passed = 0; passed < ms; passed += 100) {
    const leases = await claim();
    if (leases.length > 0) await report(agent, leases);
    await server.pass(100);
  }
}

beforeEach(async () => {
  clock = new TestClock();
  server = await TestServer.start({}, { clock });
  agent = await server.register('probe-1');
});
afterEach(async () => {
  expect(await brokenPromises(server)).toEqual([]);
  await server.stop();
});

describe('a rate', () => {
  it.each([
    ['everything', {}],
    ['a kind', { kind: 'dns' }],
    ['a target', { kind: 'dns', target: 'a' }],
    ['every target of a kind', { kind: 'dns', target: '*' }],
  ])(
    'of %s bounds the starts of every second, and nothing is granted more than a second ahead',
    async (_, window) => {
      await limit({ ...window, rate: 5 });
      await server.enqueue(...many(100, () => at('a')));
      const first = await claim();
      expect(first.length).toBeGreaterThanOrEqual(5);
      expect(first.length).toBeLessThanOrEqual(6);
      expect(first.map(({ start_in_ms: ms }) => ms as number).every((ms) => ms >= 0 && ms <= 1_000)).toBe(
        true,
      );
      expect(await claim()).toEqual([]);
      await report(agent, first);
      await work(4_000);
      const told = await starts();
      expect(mostInASecond(told)).toBeLessThanOrEqual(6);
      // It is used, too.
      expect(told.length).toBeGreaterThanOrEqual(20);
      expect(told.at(-1)).toBeLessThanOrEqual(clock.now() + 1_000);
    },
  );

  it('below one a second keeps starts apart', async () => {
    await limit({ kind: 'dns', target: 'a', rate: 0.25 }, { kind: 'ping', rate: 0.5 });
    await server.enqueue(
      ...many(5, () => at('a')),
      ...many(5, () => ({ kind: 'ping', spec: { host: 'h' } })),
    );
    await work(13_000);
    const [first, ...others] = await starts('a:53');
    expect(others.map((instant) => instant - (first as number))).toEqual([4_000, 8_000, 12_000]);
    const pings = await starts('h');
    expect(pings.map((instant) => instant - (pings[0] as number))).toEqual([
      ...[0, 2_000, 4_000, 6_000, 8_000],
    ]);
  });

  it('is told by start_in_ms, and of what has none nothing is told', async () => {
    await limit({ kind: 'dns', target: 'a', rate: 2 });
    await server.enqueue(at('b'), at('a'), at('a'), at('a'), at('a'));
    const leases = await claim();
    expect(leases).toHaveLength(4);
    const [free, ...paced] = leases as [Lease, ...Lease[]];
    expect(free).not.toHaveProperty('start_in_ms');
    expect(await starts('a:53')).toEqual([0, 500, 1_000].map((ms) => clock.now() + ms));
    // What the commit took has passed of it.
    for (const [i, { start_in_ms: ms }] of paced.entries()) {
      expect(ms).toBeLessThanOrEqual(i * 500);
      expect(ms).toBeGreaterThan(i * 500 - 400);
    }
  });

  it('that a claim under a key asks for again is told again, as far apart', async () => {
    await limit({ kind: 'dns', target: 'a', rate: 1 });
    await server.enqueue(at('a'), at('a'));
    const call = () =>
      server.agent(agent, '/claim', { capacities: { dns: 5 } }, { 'idempotency-key': 'k'.repeat(20) });
    const first = (await call()).body.leases;
    expect(first).toHaveLength(2);
    clock.advance(700);
    const again = (await call()).body.leases;
    expect(again.map(({ lease_id }: Lease) => lease_id)).toEqual(
      first.map(({ lease_id }: Lease) => lease_id),
    );
    expect(again[0].start_in_ms).toBe(0);
    expect(again[1].start_in_ms).toBeGreaterThan(600);
    expect(again[1].start_in_ms).toBeLessThanOrEqual(1_000);
  });

  it('opens the lane by itself for a claim that waits', async () => {
    await limit({ kind: 'dns', target: 'a', rate: 1 });
    await server.enqueue(...many(3, () => at('a')));
    expect(await claim()).toHaveLength(2);
    const waiting = server.agent(agent, '/claim', { capacities: { dns: 9 }, wait_ms: 30_000 });
    await server.pass(2_000);
    expect((await waiting).body.leases).toHaveLength(1);
  });

  it.each([
    ['everything', {}],
    ['a kind', { kind: 'dns' }],
  ])('of %s lets a claim that waits begin when there is room again', async (_, window) => {
    await limit({ ...window, rate: 1 });
    await server.enqueue(...many(3, () => at('a')));
    expect(await claim()).toHaveLength(2);
    const waiting = server.agent(agent, '/claim', { capacities: { dns: 9 }, wait_ms: 30_000 });
    await server.pass(2_000);
    expect((await waiting).body.leases).toHaveLength(1);
  });

  it('that waits costs others nothing: their tasks are granted meanwhile', async () => {
    await limit({ kind: 'dns', target: 'a', rate: 0.001 });
    await server.enqueue(...many(300, () => at('a', { priority: 9 })), ...many(3, () => at('b')));
    expect(await claim()).toHaveLength(4);
    const [lane] = await server.rows("SELECT is_open, opens_at FROM lanes WHERE target = 'a:53'");
    expect(lane).toMatchObject({ is_open: 0, opens_at: expect.anything() });
  });

  it('that is raised is in force at once, and so is one that is lifted', async () => {
    await limit({ kind: 'dns', target: 'a', rate: 0.001 });
    await server.enqueue(...many(50, () => at('a')));
    expect(await claim()).toHaveLength(1);
    await limit({ kind: 'dns', target: 'a', rate: 10 });
    await server.pass(1_000);
    expect((await claim()).length).toBeGreaterThan(5);
    await limit({ kind: 'dns', target: 'a', rate: null });
    expect((await claim()).length).toBeGreaterThan(30);
    expect(await windows()).toEqual([]);
  });

  it('and a limit hold together; what is left out of a change stays', async () => {
    await limit({ kind: 'dns', target: 'a', rate: 100, limit: 3 });
    await server.enqueue(...many(50, () => at('a')));
    expect(await claim()).toHaveLength(3);
    const [window] = (await limit({ kind: 'dns', target: 'a', limit: 5 })).body.windows;
    expect(window).toMatchObject({
      limit: 5,
      max_limit: 5,
      rate: 100,
      max_rate: 100,
      adaptive: false,
      leased: 3,
    });
    expect(await claim()).toHaveLength(2);
    expect((await limit({ kind: 'dns', target: 'a', limit: null })).body.windows[0]).toMatchObject({
      limit: null,
      rate: 100,
    });
    expect((await claim()).length).toBeGreaterThan(40);
  });

  it('holds across units and replicas in random order: in no second more than rate + 1 of any window', async () => {
    const chance = new Chance(13);
    const others = await Promise.all(many(3, (i) => server.register(`other-${i}`)));
    const rates = { all: 30, kind: 20, a: 7.5, b: 0.4, c: 3 };
    await limit(
      { rate: rates.all },
      { kind: 'dns', rate: rates.kind },
      { kind: 'dns', target: 'a', rate: rates.a },
      { kind: 'dns', target: 'b', rate: rates.b },
      { kind: 'dns', target: '*', rate: rates.c },
    );
    await server.enqueue(
      ...many(200, (i) => at(['a', 'b', 'c', 'd', 'e'][i % 5] as string, { priority: i % 3 })),
      ...many(150, (i) => ({ kind: 'ping', spec: { host: `h${i % 7}` } })),
    );
    for (let round = 0; round < 60; round++) {
      await Promise.all(
        [agent, ...others].map(async (who) => {
          if (chance.is(1 / 3)) return;
          const leases = await claim(who, chance.int(1, 20));
          if (leases.length > 0 && chance.is(0.5)) await report(who, leases);
        }),
      );
      await server.pass(chance.int(1, 400));
    }
    const rows = await server.rows<{ at: number; kind: string; target: string }>(
      'SELECT l.start_at AS at, t.kind, t.target FROM leases l JOIN tasks t ON t.id = l.task_id ORDER BY 1',
    );
    const most = (filter: (row: { kind: string; target: string }) => boolean) =>
      mostInASecond(rows.filter(filter).map((row) => Number(row.at)));
    expect(most(() => true)).toBeLessThanOrEqual(rates.all + 1);
    expect(most(({ kind }) => kind === 'dns')).toBeLessThanOrEqual(rates.kind + 1);
    expect(most(({ target }) => target === 'a:53')).toBeLessThanOrEqual(8);
    expect(most(({ target }) => target === 'b:53')).toBe(1);
    for (const target of ['c:53', 'd:53', 'e:53'])
      expect(most((row) => row.target === target)).toBeLessThanOrEqual(4);
    expect(rows.length).toBeGreaterThan(200);
  });
});

describe('the bounds of every target of a kind', () => {
  it('hold for each target alone, also for those that come later; a target can have its own', async () => {
    await limit({ kind: 'dns', target: '*', limit: 2 }, { kind: 'dns', target: 'own', limit: 4 });
    await server.enqueue(...['a', 'b', 'own'].flatMap((target) => many(6, () => at(target))));
    expect(await claim()).toHaveLength(8);
    await server.enqueue(...many(3, () => at('later')));
    expect(await claim()).toHaveLength(2);
    expect(
      (await windows('?scope=target')).map(({ target, inherited, limit: of }) => [target, inherited, of]),
    ).toEqual(
      expect.arrayContaining([
        ['a:53', true, 2],
        ['later:53', true, 2],
        ['own:53', false, 4],
      ]),
    );
    // Of other kinds they say nothing.
    await server.enqueue(...many(5, () => ({ kind: 'ping', spec: { host: 'a' } })));
    expect(await claim()).toHaveLength(5);
  });

  it('hold at once for tasks that are queued, and count the leases that there are', async () => {
    await server.enqueue(...many(40, (i) => at(`t${i % 4}`)));
    expect(await claim(agent, 8)).toHaveLength(8);
    await limit({ kind: 'dns', target: '*', limit: 3 });
    const granted = await claim();
    const held = await server.rows<{ target: string; n: number }>(
      `SELECT t.target, count(*) AS n FROM leases l JOIN tasks t ON t.id = l.task_id WHERE l.state = 'active' GROUP BY 1`,
    );
    expect(held.map(({ n }) => Number(n))).toEqual([3, 3, 3, 3]);
    expect(granted).toHaveLength(4);
    await moveTasks();
    expect(
      await server.rows("SELECT 1 AS one FROM ready r JOIN lanes l ON l.id = r.lane_id WHERE l.target = ''"),
    ).toEqual([]);
  });

  it('that are changed or lifted are in force at once, however many targets there are', async () => {
    await limit({ kind: 'dns', target: '*', limit: 3 });
    await server.enqueue(...many(30, (i) => at(`t${i % 3}`)));
    expect(await claim()).toHaveLength(9);
    await limit({ kind: 'dns', target: '*', limit: 4 });
    await moveTasks();
    expect(await claim()).toHaveLength(3);
    await limit({ kind: 'dns', target: '*', limit: 1 });
    expect(await claim()).toEqual([]);
    const { body } = await limit({ kind: 'dns', target: '*', limit: null });
    expect(body.windows).toMatchObject([{ scope: 'every_target', target: '*', limit: null }]);
    await moveTasks();
    expect(await windows()).toEqual([]);
    expect(await claim()).toHaveLength(18);
    await server.enqueue(at('t0'));
    expect(await claim()).toHaveLength(1);
  });

  it('lifted and set again at once count what was leased meanwhile', async () => {
    await limit({ kind: 'dns', target: '*', limit: 2 });
    await server.enqueue(...many(20, (i) => at(`t${i % 2}`)));
    const held = await claim();
    expect(held).toHaveLength(4);
    await limit({ kind: 'dns', target: '*', limit: null });
    await server.enqueue(...many(4, (i) => at(`new${i % 2}`)));
    expect((await claim(agent, 8)).length).toBeGreaterThan(0);
    await limit({ kind: 'dns', target: '*', limit: 2 });
    await report(agent, held);
    await moveTasks();
    const live = await server.rows<{ n: number }>(`SELECT count(*) AS n FROM leases WHERE state = 'active'`);
    expect(Number(live[0]?.n)).toBeGreaterThan(0);
  });

  it('come back for a target whose own are lifted', async () => {
    await limit({ kind: 'dns', target: '*', limit: 1 }, { kind: 'dns', target: 'a', limit: 3 });
    await server.enqueue(...many(6, () => at('a')));
    const leases = await claim();
    expect(leases).toHaveLength(3);
    expect((await limit({ kind: 'dns', target: 'a', limit: null })).body.windows).toMatchObject([
      { target: 'a:53', inherited: true, limit: 1, leased: 3 },
    ]);
    await report(agent, leases.slice(0, 2));
    expect(await claim()).toEqual([]);
    await report(agent, leases.slice(2));
    expect(await claim()).toHaveLength(1);
  });

  it('idle windows are deleted after a day, and come again with a task', async () => {
    await limit({ kind: 'dns', target: '*', rate: 5 });
    await server.enqueue(at('a'), at('b'));
    await report(agent, await claim());
    await server.enqueue(at('b'));
    clock.advance(2 * 86_400_000);
    await server.app.get(ConcurrencyService).purge();
    expect((await windows('?scope=target')).map(({ target }) => target)).toEqual(['b:53']);
    await server.enqueue(at('a'));
    expect(await windows('?scope=target')).toHaveLength(2);
  });
});

describe('many targets', () => {
  const targetsOf = (leases: readonly Lease[]): Json[] => leases.map(({ spec }) => (spec as Json).server);

  it('the job that moves tasks ends if the bounds of every target are lifted meanwhile', async () => {
    await server.enqueue(...many(1_500, (i) => at(`t${i % 50}`)));
    await limit({ kind: 'dns', target: '*', limit: 2 });
    const moving = server.app.get(QueueMaintainer).moveTasks();
    await limit({ kind: 'dns', target: '*', limit: null });
    const ended = await Promise.race([
      moving.then(() => true),
      new Promise((r) => setTimeout(r, 5_000, false)),
    ]);
    // So that it ends here.
    if (!ended) await limit({ kind: 'dns', target: '*', limit: 2 });
    await moving;
    expect(ended).toBe(true);
  });

  it('a limit of 0 for every target holds up no target with a limit of its own', async () => {
    await limit({ kind: 'dns', target: '*', limit: 0 }, { kind: 'dns', target: 'own', limit: 5 });
    await server.enqueue(...many(600, (i) => at(`t${i}`, { priority: 5 })));
    await server.enqueue(at('own'));
    expect(targetsOf(await claim(agent, 1))).toEqual(['own']);
  });

  it('after an interruption lanes without room hold up no others', async () => {
    await limit({ kind: 'dns', target: '*', rate: 0.001 });
    await server.enqueue(...many(600, (i) => at(`t${i % 600}`, { priority: 5 })));
    await server.enqueue(...many(600, (i) => at(`t${i % 600}`, { priority: 5 })));
    for (let leases = await claim(); leases.length > 0; leases = await claim()) await report(agent, leases);
    clock.advance(10_000);
    await server.app.get(Continuity).refresh();
    await server.app.get(QueueMaintainer).reap();
    await server.enqueue(at('other'));
    expect(targetsOf(await claim(agent, 1))).toEqual(['other']);
    expect(
      await server.rows('SELECT count(*) AS open FROM lanes WHERE is_open = 1 AND head_id IS NOT NULL'),
    ).toEqual([{ open: 0 }]);
  });

  it('a claim under a key that is asked for again is told no burst', async () => {
    await limit({ kind: 'dns', target: 'a', rate: 20 });
    await server.enqueue(...many(100, () => at('a')));
    const call = () =>
      server.agent(agent, '/claim', { capacities: { dns: 50 } }, { 'idempotency-key': 'k'.repeat(20) });
    expect((await call()).body.leases).toHaveLength(21);
    clock.advance(5_000);
    const again = (await call()).body.leases as Lease[];
    expect(again.filter(({ start_in_ms: ms }) => (ms as number) < 500).length).toBeLessThanOrEqual(11);
  });

  it('tasks that a rate holds back do not have a waiting claim look again and again', async () => {
    await limit({ kind: 'dns', target: '*', rate: 1 });
    await server.enqueue(...many(20, (i) => at(`t${i}`)));
    const held = await claim();
    expect(held).toHaveLength(20);
    await limit({ kind: 'dns', rate: 60 });
    await server.enqueue(...many(20, (i) => at(`t${i}`)));
    // All of them could start in exactly a second, but the rate of the kind lets only a few start in the same instant.
    const some = await claim();
    expect(some.length).toBeGreaterThan(0);
    expect(some.length).toBeLessThan(20);
    const before = server.database.writes;
    const waiting = server.agent(agent, '/claim', { capacities: { dns: 1_000 }, wait_ms: 300 });
    expect((await waiting).body.leases).toEqual([]);
    expect(server.database.writes - before).toBeLessThan(10);
  });

  it('a change for every target wakes no claim for idle targets', async () => {
    await limit({ kind: 'dns', target: '*', limit: 2 });
    await server.enqueue(...many(600, (i) => at(`t${i}`)));
    for (let leases = await claim(); leases.length > 0; leases = await claim()) await report(agent, leases);
    await limit({ kind: 'dns', target: '*', limit: 3 });
    const announced: string[] = [];
    server.database.onAnnouncement('ready', (message) => announced.push(message));
    await server.app.get(QueueMaintainer).moveTasks();
    expect(announced).toEqual([]);
  });

  // Units run one at a time on SQLite.
  (onPostgres ? it : it.skip)(
    'tasks are queued for a target whose idle window and lane are deleted at that moment',
    async () => {
      await limit({ kind: 'dns', target: '*', limit: 2 });
      await server.enqueue(at('a'));
      await report(agent, await claim());
      clock.advance(2 * 86_400_000);
      const lanes = server.app.get(Lanes);
      const add = lanes.add.bind(lanes);
      const added = Promise.withResolvers<void>();
      const purged = Promise.withResolvers<void>();
      lanes.add = async (tx, tasks) => {
        const rows = await add(tx, tasks);
        added.resolve();
        await purged.promise;
        return rows;
      };
      const queued = server.enqueue(at('a'));
      await added.promise;
      await server.app.get(ConcurrencyService).purge();
      await server.app.get(QueueMaintainer).purge();
      expect(await server.rows("SELECT 1 AS one FROM lanes WHERE target <> ''")).toEqual([]);
      purged.resolve();
      await queued;
      expect(targetsOf(await claim())).toEqual(['a']);
    },
  );
});

describe('refused', () => {
  it.each<[string, Json, string]>([
    ['a rate of 0', { rate: 0 }, 'limits.0.rate'],
    ['a rate that is too fine', { rate: 0.0001 }, 'limits.0.rate'],
    ['a rate that is no number', { rate: '5' }, 'limits.0.rate'],
    ['an adaptive kind', { kind: 'dns', adaptive: true }, 'limits.0.adaptive'],
    ['adaptive everything', { adaptive: true }, 'limits.0.adaptive'],
    ['adaptive that is not true or false', { kind: 'dns', target: 'a', adaptive: 1 }, 'limits.0.adaptive'],
    ['nothing to set', { kind: 'dns', target: '*' }, 'limits.0.limit'],
    ['every target without a kind', { target: '*', limit: 1 }, 'limits.0.target'],
    ['an unknown kind', { kind: 'nope', target: '*', rate: 1 }, 'limits.0.kind'],
  ])('%s', async (_, wrong, field) => {
    const { status, body } = await limit(wrong);
    expect([status, Object.keys(body.details ?? {})]).toEqual([400, [field]]);
    expect(await windows()).toEqual([]);
  });
});
