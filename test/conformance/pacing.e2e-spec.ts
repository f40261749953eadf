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
import { brokenPromises, DIALECT, grantsBeyondLimits, watchLimits } from '../helpers/queue-tables';
import { perSecond, type ToldStart, toldStarts } from '../helpers/starts';

/** The lowest rate of a target that is dead, in starts a second. */
const LOWEST = 1 / 32;
const SEEDS = [1, 2];

let clock: TestClock;
/** Two replicas on PostgreSQL; SQLite serves one process. */
let servers: [TestServer, ...TestServer[]];
let server: TestServer;
let agents: Credentials[];

const many = <T>(count: number, make: (i: number) => T): T[] =>
  Array.from({ length: count }, (_, i) => make(i));
const at = (target: string, fields: object = {}) =>
  dnsTask({ max_attempts: 50, ...fields }, { server: target });
const limit = (...limits: object[]): Promise<Answer> =>
  server.operator('PUT', '/v1/concurrency/limits', { limits });
/** Some replica. */
const one = (chance: Chance): TestServer => chance.pick(servers);

beforeEach(async () => {
  clock = new TestClock();
  const env = { LEASE_DURATION_MS: '5000', RETRY_BACKOFF_MS: '1', RETRY_BACKOFF_MAX_MS: '50' };
  server = await TestServer.start(env, { clock });
  servers = [server];
  if (onPostgres) servers.push(await TestServer.start(env, { clock, folder: server.folder }));
  agents = await Promise.all(many(4, (i) => server.register(`probe-${i}`)));
});
afterEach(async () => {
  expect(await brokenPromises(server)).toEqual([]);
  for (const other of servers.slice(1)) await other.stop({ keep: true });
  await server.stop();
});

describe('rates on every scope at once', () => {
  const TARGETS = ['a', 'b', 'c', 'd'];
  /** What an operator sets: of a window that is named by a kind and a target. */
  type Named = 'all' | 'dns' | 'ping' | 'every' | 'a' | 'b';
  const NAMES: Record<Named, object> = {
    all: {},
    dns: { kind: 'dns' },
    ping: { kind: 'ping' },
    every: { kind: 'dns', target: '*' },
    a: { kind: 'dns', target: 'a' },
    b: { kind: 'dns', target: 'b' },
  };
  /** Across one a second, and with targets that have bounds of their own only now and then. */
  const RATES: Record<Named, readonly (number | null)[]> = {
    all: [30, 18, 45],
    dns: [20, 12, 0.8],
    ping: [9, 0.5, 15],
    every: [3, 5, 0.5],
    a: [7.5, 3, 0.4, 12],
    b: [0.4, 2, null],
  };
  const LIMITS: Partial<Record<Named, readonly (number | null)[]>> = {
    all: [null, 25],
    dns: [null, 12],
    every: [null, 4],
    a: [6, 2, 9],
  };
  type State = Record<Named, number | null>;

  /** What is wrong with the starts of a window: in no second are there more than the highest rate that counted for it + 1. */
  function excess(
    name: string,
    starts: readonly ToldStart[],
    states: readonly { at: number; state: State }[],
    rateIn: (state: State) => number | null,
  ): string[] {
    return perSecond(starts.map((start) => start.at)).flatMap(({ at: from, count }) => {
      // A start is granted a second before at most.
      const begin = states.findLastIndex((one) => one.at <= from - 1_000);
      const inForce = states.slice(Math.max(0, begin)).filter((one) => one.at < from + 1_000);
      const rates = inForce.map(({ state }) => rateIn(state));
      if (rates.includes(null)) return [];
      const most = Math.floor(Math.max(...(rates as number[]))) + 1;
      return count <= most ? [] : [`${name}: ${count} starts from ${from}, not ${most}`];
    });
  }

  it.each(SEEDS)(
    'bound the starts of every second, whatever is claimed, reported, extended, cancelled, expires and is set meanwhile: %i',
    async (seed) => {
      await watchLimits((sql) => server.database.write((tx) => tx.run(sql)), DIALECT);
      const chance = new Chance(seed);
      const state: State = { all: 30, dns: 20, ping: 9, every: 3, a: 7.5, b: null };
      const set = (changed: readonly Named[]): Promise<Answer> =>
        limit(
          ...changed.map((name) => ({
            ...NAMES[name],
            rate: state[name],
            ...(LIMITS[name] ? { limit: chance.pick(LIMITS[name]) } : {}),
          })),
        );
      await set(Object.keys(state).filter((name) => name !== 'b') as Named[]);
      const states = [{ at: clock.now(), state: { ...state } }];
      await server.enqueue(...many(400, (i) => at(TARGETS[i % 4] as string, { priority: i % 3 })));
      await server.enqueue(...many(200, (i) => ({ kind: 'ping', spec: { host: `h${i % 5}` } })));

      const held = new Map(agents.map((who) => [who, [] as Lease[]]));
      const take = (who: Credentials, count: number) => held.get(who)?.splice(0, count) ?? [];
      const claim = async (who: Credentials): Promise<void> => {
        const capacities = { dns: chance.int(0, 20), ping: chance.int(0, 20) };
        const headers = { 'idempotency-key': `key-${chance.int(1, 1e9)}-${'k'.repeat(10)}` };
        for (let tries = chance.is(0.2) ? 2 : 1; tries > 0; tries--) {
          const { status, body } = await one(chance).agent(who, '/claim', { capacities }, headers);
          expect(status).toBe(200);
          if (tries === 1) held.get(who)?.push(...body.leases);
        }
      };
      const act = async (who: Credentials): Promise<unknown> => {
        const some = take(who, chance.int(0, 12));
        const ids = some.map(({ lease_id }) => ({ lease_id, outcome: 'success' }));
        switch (chance.int(0, 5)) {
          case 0:
            return one(chance).agent(who, '/report', { completed: ids, cancelled: [] });
          case 1:
            return one(chance).agent(who, '/report', { completed: [], cancelled: ids });
          case 2:
            held.get(who)?.push(...some);
            return one(chance).agent(who, '/extend', {
              lease_ids: some.map(({ lease_id }) => lease_id),
              extend_by_ms: 2_000,
            });
          case 3:
            // It is forgotten, and expires.
            return undefined;
          case 4:
            return some[0] && one(chance).operator('POST', `/v1/tasks/${some[0].task_id}/cancel`);
          default:
            return claim(who);
        }
      };
      for (let round = 0; round < 50; round++) {
        // At one instant: a rate that is set counts from then on.
        const changes = chance.is(0.3) ? many(chance.int(1, 2), () => chance.pick(Object.keys(NAMES))) : [];
        const changed = [...new Set(changes)] as Named[];
        for (const name of changed) state[name] = chance.pick(RATES[name]);
        states.push({ at: clock.now(), state: { ...state } });
        const setting = changed.length > 0 ? set(changed) : undefined;
        await Promise.all([...agents.map(claim), setting]);
        expect((await setting)?.status ?? 200).toBe(200);
        // While time passes: units that wait for locks go by earlier instants than others before them.
        await Promise.all([...agents.map(act), ...agents.map(claim), server.pass(chance.int(1, 400))]);
      }

      const told = await toldStarts((sql) => server.rows(sql));
      const of = (target: string) => told.filter((start) => start.target === `${target}:53`);
      const kindOf = (kind: string) => told.filter((start) => start.kind === kind);
      expect([
        ...excess('everything', told, states, ({ all }) => all),
        ...excess('dns', kindOf('dns'), states, ({ dns }) => dns),
        ...excess('ping', kindOf('ping'), states, ({ ping }) => ping),
        ...excess('a', of('a'), states, ({ a, every }) => a ?? every),
        ...excess('b', of('b'), states, ({ b, every }) => b ?? every),
        ...['c', 'd'].flatMap((target) => excess(target, of(target), states, ({ every }) => every)),
      ]).toEqual([]);
      expect(told.filter((start) => start.at > start.granted_at + 1_100)).toEqual([]);
      expect(await grantsBeyondLimits((sql) => server.rows(sql))).toEqual([]);
      // It has shown something: a window was at its rate, and leases ended in every way.
      expect(told.length).toBeGreaterThan(60);
      const ends = await server.rows("SELECT DISTINCT state FROM leases WHERE state <> 'active' ORDER BY 1");
      expect(ends.map((row) => row.state)).toEqual(['cancelled', 'completed', 'expired', 'revoked']);
    },
  );
});

describe('an adaptive target', () => {
  const ANSWERED = { outcome: 'success', rtt_ms: 20 };
  const FAILED = { outcome: 'timeout', failure: 'timeout' };
  type Held = { readonly who: Credentials; readonly lease_id: number };

  async function windowOf(target: string): Promise<Json> {
    const { body } = await server.operator('GET', `/v1/concurrency/windows?kind=dns&target=${target}`);
    return body.items[0];
  }
  const history = async (target: string): Promise<Json[]> =>
    (await server.operator('GET', `/v1/concurrency/windows/${(await windowOf(target)).id}/history`)).body
      .items;
  /** All that is stored of a window. */
  /** The window's row, but for how far a job has moved its tasks. */
  const rowOf = async (target: string): Promise<Json> => {
    const sql = 'SELECT * FROM concurrency_windows WHERE target = $1';
    const [row] = await server.rows(sql, `${target}:53`);
    return { ...row, moved_through: null };
  };

  async function claimAll(count: number): Promise<Held[]> {
    const claimed: Held[] = [];
    for (const who of agents.slice(0, 2)) {
      const { body } = await server.agent(who, '/claim', { capacities: { dns: count } });
      claimed.push(...body.leases.map(({ lease_id }: Lease) => ({ who, lease_id })));
    }
    return claimed;
  }
  const report = (at: TestServer, who: Credentials, reports: readonly object[]): Promise<Answer> =>
    at.agent(who, '/report', { completed: reports, cancelled: [] });
  const reportOne = ({ who, lease_id }: Held, fields: object): Promise<Answer> =>
    report(server, who, [{ lease_id, ...fields }]);

  /** Has two agents hold leases of a target that answered so far, all of which were granted since the last decision about its rate. */
  async function hold(target: string, enough: number): Promise<Held[]> {
    await limit({ kind: 'dns', target, rate: 40, adaptive: true });
    await server.enqueue(...many(600, () => at(target)));
    for (let rounds = 0, isDecided = false; !isDecided; rounds++) {
      expect(rounds).toBeLessThan(20);
      const held = await claimAll(30);
      // So long that the rate needs many leases at once.
      await server.pass(3_000);
      for (const who of agents.slice(0, 2))
        await report(
          server,
          who,
          held.flatMap(({ who: by, lease_id }) => (by === who ? [{ lease_id, ...ANSWERED }] : [])),
        );
      const { slots, starts } = await rowOf(target);
      isDecided = Number(slots) > enough && Number(starts) === 0;
    }
    const held: Held[] = [];
    for (let tries = 0; held.length < enough; tries++) {
      expect(tries).toBeLessThan(80);
      held.push(...(await claimAll(enough / 2)));
      await server.pass(100);
      for (const who of agents.slice(0, 2))
        await server.agent(who, '/extend', {
          lease_ids: held.flatMap(({ who: by, lease_id }) => (by === who ? [lease_id] : [])),
          extend_by_ms: 5_000,
        });
    }
    return held;
  }

  it.each(SEEDS)(
    'is cut at most once for the leases of an epoch, in whatever order, parts and repeats they are reported: %i',
    async (seed) => {
      const chance = new Chance(seed);
      const held = await hold('a', 50);
      const cutsBefore = (await history('a')).filter(({ reason }) => reason !== 'room').length;
      const { rate } = await windowOf('a');
      // Two thirds fail: the target is not dead.
      const said = held.map((lease, i) => ({ lease, fields: i % 3 === 0 ? ANSWERED : FAILED }));
      const reports = [...said, ...said, ...said.slice(0, 10)]
        .map((one) => ({ one, place: chance.next() }))
        .sort((a, b) => a.place - b.place)
        .map(({ one }) => one);
      while (reports.length > 0) {
        const parts = reports.splice(0, chance.int(1, 12));
        await Promise.all(
          agents.slice(0, 2).map((who) =>
            report(
              one(chance),
              who,
              parts.flatMap(({ lease, fields }) =>
                lease.who === who ? [{ lease_id: lease.lease_id, ...fields }] : [],
              ),
            ),
          ),
        );
        if (chance.is(0.3)) await server.pass(chance.int(1, 120));
      }
      const cuts = (await history('a')).filter(({ reason }) => reason !== 'room');
      expect(cuts.length - cutsBefore).toBe(1);
      expect(cuts[0]).toMatchObject({ reason: 'failures', rate_before: rate });
      expect((await windowOf('a')).rate).toBe(cuts[0]?.rate_after);
    },
  );

  it('is not cut for an agent that only fails, though another fails now and then', async () => {
    await limit({ kind: 'dns', target: 'a', rate: 40, adaptive: true });
    await server.enqueue(...many(900, () => at('a')));
    let failed = 0;
    for (let round = 0; round < 24; round++) {
      const held: [Credentials, Lease[]][] = [];
      // The one that fails asks first and for little, until it is known.
      for (const [i, who] of agents.entries()) {
        const capacities = { dns: i === 0 ? (round < 8 ? 1 : 4) : 4 };
        held.push([who, (await server.agent(who, '/claim', { capacities })).body.leases]);
      }
      await server.pass(1_000);
      for (const [i, [who, leases]] of held.entries()) {
        const fails = (first: boolean) => i === 0 || (i === 1 && first && round >= 8 && round % 2 === 0);
        if (i === 0) failed += leases.length;
        await report(
          server,
          who,
          leases.map(({ lease_id }, n) => ({ lease_id, ...(fails(n === 0) ? FAILED : ANSWERED) })),
        );
      }
    }
    expect(failed).toBeGreaterThan(50);
    expect((await history('a')).filter(({ reason }) => ['failures', 'dead'].includes(reason))).toEqual([]);
  });

  it('counts a lease once, however often and wherever it is reported', async () => {
    const held = await hold('a', 20);
    const [last, ...others] = held as [Held, ...Held[]];
    // Each agent has an answer, so that failures are not taken to be its own.
    const answered = others.find(({ who }) => who !== last.who);
    const before = await windowOf('a');
    const cuts = async () => (await history('a')).filter(({ reason }) => reason !== 'room').length;
    const cutsBefore = await cuts();
    // Of 20 outcomes it decides: these are 19, three times.
    await Promise.all(
      agents.slice(0, 2).flatMap((who) =>
        many(3, (i) =>
          report(
            servers[i % servers.length] as TestServer,
            who,
            others.flatMap((lease) =>
              lease.who === who
                ? [{ lease_id: lease.lease_id, ...(lease === answered ? ANSWERED : FAILED) }]
                : [],
            ),
          ),
        ),
      ),
    );
    expect(await cuts()).toBe(cutsBefore);
    expect((await windowOf('a')).rate).toBe(before.rate);
    const stored = await rowOf('a');
    for (const lease of others.filter((one) => one !== answered).slice(0, 5)) {
      expect((await reportOne(lease, FAILED)).body).toEqual({ acknowledged: 1 });
      expect((await reportOne(lease, { outcome: 'error', failure: 'refused' })).body).toMatchObject({
        rejected: [{ reason: 'conflict' }],
      });
    }
    expect(await rowOf('a')).toEqual(stored);
    await reportOne(last, ANSWERED);
    expect(await cuts()).toBe(cutsBefore + 1);
    expect((await windowOf('a')).rate).toBeLessThan(before.rate);
  });

  it('counts nothing that is reported after its lease has expired', async () => {
    const held = await hold('a', 20);
    const { rate } = await windowOf('a');
    for (let round = 0; round < 6; round++) await server.pass(1_000);
    const stored = await rowOf('a');
    expect(Number(stored.leased)).toBe(0);
    for (const lease of held)
      expect((await reportOne(lease, FAILED)).body).toMatchObject({ rejected: [{ reason: 'expired' }] });
    expect(await rowOf('a')).toEqual(stored);
    expect((await windowOf('a')).rate).toBe(rate);
  });

  it.each(SEEDS)(
    'stays between the lowest rate and the highest, and is never told more starts than its highest rate of late, whatever is reported: %i',
    async (seed) => {
      const chance = new Chance(seed);
      await limit({ kind: 'dns', target: 'a', rate: 12, adaptive: true });
      await server.enqueue(...many(1_000, () => at('a')));
      let highest = 12;
      const rates: { at: number; rate: number }[] = [];
      const SLOW = { outcome: 'success', rtt_ms: 200 };
      const MOODS: readonly (readonly object[])[] = [
        ...[[ANSWERED], [ANSWERED], [ANSWERED, ANSWERED, FAILED], [FAILED], [SLOW], [ANSWERED, SLOW, {}]],
        [...many(30, () => ANSWERED), { outcome: 'error', failure: 'refused' }],
        [FAILED, { outcome: 'error', failure: 'unreachable' }, { outcome: 'error', failure: 'local' }],
      ];
      let mood: readonly object[] = [ANSWERED];
      for (let round = 0; round < 100; round++) {
        if (chance.is(0.05)) {
          highest = chance.pick([6, 15, 40]);
          // What is granted until then goes by the rate before.
          rates.push({ at: clock.now(), rate: (await windowOf('a')).rate });
          await limit({ kind: 'dns', target: 'a', rate: highest });
        }
        if (chance.is(0.08)) mood = chance.pick(MOODS);
        const held = await claimAll(chance.int(1, 20));
        await server.pass(chance.int(1, 900));
        await Promise.all(
          agents.slice(0, 2).map((who) => {
            const reports = held.flatMap(({ who: by, lease_id }) =>
              by === who && !chance.is(0.1) ? [{ lease_id, ...chance.pick(mood) }] : [],
            );
            return report(one(chance), who, reports);
          }),
        );
        const { rate } = await windowOf('a');
        rates.push({ at: clock.now(), rate });
        expect(rate).toBeLessThanOrEqual(highest);
        expect(rate).toBeGreaterThanOrEqual(Math.min(LOWEST, highest) - 0.001);
      }
      for (const { rate_after, rate_before } of await history('a'))
        expect([rate_before ?? 0, rate_after].every((rate) => rate >= 0 && rate <= 40)).toBe(true);
      const told = (await toldStarts((sql) => server.rows(sql))).map((start) => start.at);
      const wrong = perSecond(told).filter(({ at: from, count }) => {
        const begin = rates.findLastIndex((one) => one.at <= from - 1_000);
        const inForce = rates.slice(Math.max(0, begin)).filter((one) => one.at < from + 1_000);
        return count > Math.floor(Math.max(12 * Number(begin < 0), ...inForce.map(({ rate }) => rate))) + 1;
      });
      expect(wrong).toEqual([]);
      // It has shown something.
      expect(told.length).toBeGreaterThan(40);
      expect(new Set((await history('a')).map(({ reason }) => reason)).size).toBeGreaterThan(2);
    },
  );
});
