import type { Json, Lease } from '../helpers/api';
import { type Answer, type Credentials, dnsTask, TestClock, TestServer } from '../helpers/harness';
import { brokenPromises } from '../helpers/queue-tables';

let server: TestServer;
let clock: TestClock;
let agents: [Credentials, Credentials];

const limit = (...limits: object[]): Promise<Answer> =>
  server.operator('PUT', '/v1/concurrency/limits', { limits });
const at = (target: string, fields: object = {}) => dnsTask(fields, { server: target });
const enqueue = (count: number, target = 'a'): Promise<number[]> =>
  server.enqueue(...Array.from({ length: count }, () => at(target)));

async function claim(who: Credentials, capacity = 1_000): Promise<Lease[]> {
  return (await server.agent(who, '/claim', { capacities: { dns: capacity } })).body.leases;
}

const report = (who: Credentials, leases: readonly Lease[], fields: object): Promise<Answer> =>
  server.agent(who, '/report', {
    completed: leases.map(({ lease_id }) => ({ lease_id, ...fields })),
    cancelled: [],
  });

const ANSWERED = { outcome: 'success', rtt_ms: 20 };
const FAILED = { outcome: 'timeout', failure: 'timeout' };

async function windowOf(target = 'a'): Promise<Json> {
  const { body } = await server.operator('GET', `/v1/concurrency/windows?kind=dns&target=${target}`);
  return body.items[0];
}

async function history(target = 'a'): Promise<Json[]> {
  const { id } = await windowOf(target);
  return (await server.operator('GET', `/v1/concurrency/windows/${id}/history`)).body.items;
}

/** Claims, and reports what each agent has a second later, for some seconds. */
async function work(
  seconds: number,
  outcomeOf: (lease: Lease, agent: number) => object,
  capacity = 40,
): Promise<void> {
  for (let second = 0; second < seconds; second++) {
    const held = [await claim(agents[0], capacity), await claim(agents[1], 40)];
    await server.pass(1_000);
    for (const [i, leases] of held.entries())
      for (const outcome of new Set(leases.map((lease) => JSON.stringify(outcomeOf(lease, i)))))
        await report(
          agents[i] as Credentials,
          leases.filter((lease) => JSON.stringify(outcomeOf(lease, i)) === outcome),
          JSON.parse(outcome),
        );
  }
}

beforeEach(async () => {
  clock = new TestClock();
  server = await TestServer.start({}, { clock });
  agents = [await server.register('probe-1'), await server.register('probe-2')];
});
afterEach(async () => {
  expect(await brokenPromises(server)).toEqual([]);
  await server.stop();
});

describe('an adaptive target', () => {
  it('begins with few leases at once, and grows while it answers, up to the rate that is set', async () => {
    await limit({ kind: 'dns', target: 'a', rate: 40, adaptive: true });
    await enqueue(2_000);
    expect(await windowOf()).toMatchObject({
      adaptive: true,
      rate: 10,
      max_rate: 40,
      limit: 8,
      max_limit: null,
    });
    const first = await claim(agents[0]);
    expect(first).toHaveLength(8);
    await report(agents[0], first, ANSWERED);
    await work(30, () => ANSWERED);
    expect((await windowOf()).rate).toBeGreaterThan(20);
    expect((await windowOf()).rate).toBeLessThanOrEqual(40);
    expect((await history()).map(({ reason }) => reason)).toContain('room');
  });

  it('slows down if checks fail at two agents, and says by which evidence', async () => {
    await limit({ kind: 'dns', target: 'a', rate: 40, adaptive: true });
    await enqueue(2_000);
    await work(10, () => ANSWERED);
    const { rate } = await windowOf();
    await work(6, ({ lease_id }) => (lease_id % 2 ? FAILED : ANSWERED));
    expect((await windowOf()).rate).toBeLessThan(rate);
    const cut = (await history()).find(({ reason }) => reason === 'failures');
    expect(cut).toMatchObject({ failed: expect.any(Number), message: expect.stringContaining('timed out') });
    expect(cut?.rate_after).toBeLessThan(cut?.rate_before);
  });

  it('does not slow down for an agent that only fails while the other succeeds, nor for the agents’ own trouble', async () => {
    await limit({ kind: 'dns', target: 'a', rate: 10, adaptive: true });
    await enqueue(2_000);
    await work(20, (_, agent) => (agent === 0 ? FAILED : ANSWERED), 3);
    await work(5, () => ({ outcome: 'error', failure: 'local' }));
    expect((await history()).filter(({ reason }) => ['failures', 'dead'].includes(reason))).toEqual([]);
    expect((await windowOf()).rate).toBe(10);
  });

  it('halves its rate if the target pushes back', async () => {
    await limit({ kind: 'dns', target: 'a', rate: 10, adaptive: true });
    await enqueue(100);
    await work(3, () => ANSWERED);
    const leases = await claim(agents[0], 1);
    await report(agents[0], leases, { outcome: 'error', failure: 'refused' });
    expect((await windowOf()).rate).toBe(5);
    // The same report again says nothing new.
    await report(agents[0], leases, { outcome: 'error', failure: 'refused' });
    expect((await windowOf()).rate).toBe(5);
  });

  it('that is dead is asked for one check at a time, ever more rarely; the first answer brings back a quarter', async () => {
    await limit({ kind: 'dns', target: 'a', rate: 20, adaptive: true });
    await enqueue(500);
    await work(4, () => ANSWERED);
    const before = (await windowOf()).rate;
    await work(60, () => FAILED);
    const dead = await windowOf();
    expect(dead).toMatchObject({ limit: 1 });
    expect(dead.rate).toBeLessThan(0.1);
    const [{ n }] = (await server.rows('SELECT count(*) AS n FROM leases')) as [{ n: number }];
    await work(60, () => FAILED);
    const [{ n: later }] = (await server.rows('SELECT count(*) AS n FROM leases')) as [{ n: number }];
    expect(Number(later) - Number(n)).toBeLessThanOrEqual(5);
    await work(40, () => ANSWERED);
    const alive = (await history()).find(({ reason }) => reason === 'alive');
    expect(alive?.rate_after).toBeLessThanOrEqual(before);
    expect((await windowOf()).rate).toBeGreaterThan(1);
  });

  it('stays within bounds that are changed, and keeps what it knows', async () => {
    await limit({ kind: 'dns', target: 'a', rate: 40, adaptive: true });
    await enqueue(2_000);
    await work(20, () => ANSWERED);
    expect((await windowOf()).rate).toBeGreaterThan(12);
    expect((await limit({ kind: 'dns', target: 'a', rate: 6, limit: 3 })).body.windows[0]).toMatchObject({
      rate: 6,
      limit: 3,
      adaptive: true,
    });
    expect((await limit({ kind: 'dns', target: 'a', adaptive: false })).body.windows[0]).toMatchObject({
      rate: 6,
      limit: 3,
      adaptive: false,
      hold_until: null,
    });
  });

  it('can be every target of a kind, by a setting too; each adapts for itself', async () => {
    await server.stop();
    server = await TestServer.start({ ADAPTIVE_KINDS: 'dns, http' }, { clock });
    agents = [await server.register('probe-1'), await server.register('probe-2')];
    const { body } = await server.operator('GET', '/v1/concurrency/windows?scope=every_target');
    expect(body.items).toMatchObject([
      { kind: 'http', target: '*', adaptive: true },
      { kind: 'dns', target: '*', adaptive: true },
    ]);
    await enqueue(800, 'good');
    await enqueue(800, 'bad');
    const bad = new Set(
      (await server.rows("SELECT id FROM tasks WHERE target = 'bad:53'")).map(({ id }) => Number(id)),
    );
    await work(20, ({ task_id }) => (bad.has(task_id) ? FAILED : ANSWERED));
    expect((await windowOf('good')).rate).toBeGreaterThan(10);
    expect((await windowOf('bad')).rate).toBeLessThan(1);
    expect(await windowOf('bad')).toMatchObject({ inherited: true, adaptive: true });
  });

  it('has its snapshot for dashboards in the table', async () => {
    await limit({ kind: 'dns', target: '*', adaptive: true });
    await enqueue(20);
    await claim(agents[0], 2);
    expect(
      await server.rows(
        `SELECT "limit", in_flight, expires_at FROM concurrency_windows WHERE scope = 'target'`,
      ),
    ).toEqual([{ limit: 8, in_flight: 2, expires_at: clock.now() + 86_400_000 }]);
  });
});

describe('why', () => {
  const why = async (id: number | undefined): Promise<Json> =>
    (await server.operator('GET', `/v1/tasks/${id}/why`)).body;

  it('a task waits for the rate of its target: since when, by which evidence, and for how long', async () => {
    await limit({ kind: 'dns', target: 'a', rate: 0.5 });
    const ids = await enqueue(100);
    await claim(agents[0]);
    const { reason, message, changes, window } = await why(ids.at(-1));
    expect([reason, window]).toMatchObject(['paced', { target: 'a:53', rate: 0.5, before: 98, limit: null }]);
    expect(message).toContain('The rate of dns at a:53 is 0.5/s since');
    expect(message).toContain('98 tasks are before it: about 3 minutes.');
    expect(changes).toMatchObject([{ reason: 'paced', action: 'wait_until', is_enough: true }]);
    const until = Date.parse(changes[0].until) - clock.now();
    // One start every 2 s; one was granted now, and those a second ahead may be granted.
    expect(until).toBe(99 * 2_000 - 1_000);
    await server.operator('POST', '/v1/tasks/cancel', { filter: { kind: 'dns', state: 'queued' } });
  });

  it('a task waits for the rate of an adaptive target: after how many failures', async () => {
    await limit({ kind: 'dns', target: 'a', rate: 40, adaptive: true });
    const ids = await enqueue(900);
    await work(10, () => ANSWERED);
    await work(4, ({ lease_id }) => (lease_id % 2 ? FAILED : ANSWERED));
    const { reason, message } = await why(ids.at(-1));
    expect(reason).toBe('paced');
    expect(message).toMatch(/after|% of \d+ checks timed out or could not reach the target/);
  });
});

describe('refused', () => {
  it('the history of a window that there is not', async () => {
    expect(await server.operator('GET', '/v1/concurrency/windows/999/history')).toMatchObject({
      status: 404,
      body: { error: 'ERR_NOT_FOUND' },
    });
  });

  it('a setting that names a kind that there is not', async () => {
    await expect(TestServer.start({ ADAPTIVE_KINDS: 'nope' }, { clock })).rejects.toThrow(
      'CONTROL_PLANE_ADAPTIVE_KINDS names nope; there are dns, http, ping, tcp, trace',
    );
  });
});
