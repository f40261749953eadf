import { HangUpSignal } from '../../src/http/hang-up';
import { PolitenessReports } from '../../src/tasks/politeness.service';
import type { Json, Lease } from '../helpers/api';
import { ApiDocument } from '../helpers/api-document';
import { type Answer, type Credentials, dnsTask, TestClock, TestServer } from '../helpers/harness';

const DAY_MS = 86_400_000;
const HOUR_MS = 3_600_000;

describe('the politeness report', () => {
  let server: TestServer;
  let clock: TestClock;
  let agent: Credentials;

  beforeEach(async () => {
    clock = new TestClock();
    server = await TestServer.start({}, { clock });
    agent = await server.register('probe-1');
  });
  afterEach(() => server.stop());

  const ask = (query: string): Promise<Answer> =>
    server.operator('GET', `/v1/concurrency/politeness?${query}`);
  /** The report, which is as the API's document says. */
  const report = async (query = 'kind=dns&target=A.'): Promise<Json> => {
    const answer = await ask(query);
    expect(answer.status).toBe(200);
    const document = new ApiDocument((await server.request('GET', '/docs-json')).body);
    expect(document.problemsOfAnswer('GET /v1/concurrency/politeness', answer)).toEqual([]);
    return answer.body;
  };
  const limit = (...limits: object[]): Promise<Answer> =>
    server.operator('PUT', '/v1/concurrency/limits', { limits });
  const at = (target: string, fields: object = {}) => dnsTask(fields, { server: target });
  const claim = async (capacity: number, who = agent): Promise<Lease[]> =>
    (await server.agent(who, '/claim', { capacities: { dns: capacity, tcp: capacity } })).body.leases;
  const finish = (leases: readonly Lease[], fields: object = {}, who = agent): Promise<Answer> =>
    server.agent(who, '/report', {
      completed: leases.map(({ lease_id }) => ({ lease_id, ...fields })),
      cancelled: [],
    });
  const timestamp = (ms = clock.now()): string => new Date(ms).toISOString();
  const dayOf = (ms: number): string => timestamp(ms).slice(0, 10);

  it('counts the checks of the target alone, by outcome and by agent', async () => {
    const other = await server.register('probe-2');
    await server.enqueue(at('a'), at('a'), at('a'), at('a'), at('b'), at('a:54'));
    await server.enqueue({ kind: 'tcp', spec: { host: 'a', port: 53 } });
    const begin = timestamp();
    const first = await claim(2);
    await finish(first.slice(0, 1), { outcome: 'success' });
    await finish(first.slice(1));
    clock.advance(2_000);
    const last = timestamp();
    const [timedOut, live] = (await claim(9, other)).filter(({ spec }) => (spec as Json).server === 'a') as [
      Lease,
      Lease,
    ];
    await finish([timedOut], { outcome: 'timeout' }, other);
    const found = await report();
    expect(found).toMatchObject({
      ...{ kind: 'dns', target: 'a:53', generated_at: timestamp(), is_complete: true, is_exact: true },
      ...{ checks: 4, first_start_at: begin, last_start_at: last },
      most_starts_in_a_second: { count: 2, at: begin },
      peak_concurrent: { count: 2, at: begin },
      outcomes: {
        ...{ success: 1, timeout: 1, error: 0, unsaid: 1, cancelled: 0, expired: 0, revoked: 0 },
        live: 1,
      },
      agents: 2,
      by_agent: [
        { agent_id: agent.agent_id, hostname: 'probe-1', checks: 2 },
        { agent_id: other.agent_id, hostname: 'probe-2', checks: 2 },
      ],
      ...{ rules: [], rules_left_out: 0 },
    });
    expect(live.lease_id).toBeGreaterThan(0);
    // Each attempt is a check.
    await server.agent(other, '/report', {
      completed: [],
      cancelled: [{ lease_id: live.lease_id }],
    });
    await server.pass(10_000);
    await claim(9);
    expect(await report()).toMatchObject({ checks: 5, outcomes: { cancelled: 1, live: 1 } });
  });

  it('takes starts as agents were told, and shows that a rate held', async () => {
    await limit({ kind: 'dns', target: '*', rate: 2 }, { limit: 100 });
    await server.enqueue(...Array.from({ length: 5 }, () => at('a')));
    const began = clock.now();
    expect(await claim(9)).toHaveLength(3);
    expect(await report()).toMatchObject({
      checks: 3,
      first_start_at: timestamp(began),
      last_start_at: timestamp(began + 1_000),
      most_starts_in_a_second: { count: 2, at: timestamp(began) },
      peak_concurrent: { count: 3, at: timestamp(began + 1_000) },
      rules: [
        { scope: 'global', from: timestamp(began), to: null, limit: 100, rate: null, adaptive: false },
        { scope: 'every_target', from: timestamp(began), to: null, limit: null, rate: 2, max_rate: 2 },
      ],
    });
  });

  it('shows the rules of the day as operators changed them', async () => {
    const midnight = Math.ceil((clock.now() + DAY_MS) / DAY_MS) * DAY_MS;
    await limit({ kind: 'dns', target: 'a', rate: 4, adaptive: true });
    clock.advance(midnight + HOUR_MS - clock.now());
    await limit({ kind: 'dns', target: 'a', rate: null, adaptive: false, limit: 0 });
    clock.advance(HOUR_MS);
    await limit({ kind: 'dns', target: 'a', limit: null });
    clock.advance(2 * DAY_MS);
    await limit({ kind: 'dns', target: 'a', rate: 9 });
    const day = `&day=${dayOf(midnight)}`;
    const { rules } = await report(`kind=dns&target=a${day}`);
    const [one, two] = [timestamp(midnight + HOUR_MS), timestamp(midnight + 2 * HOUR_MS)];
    expect(rules).toEqual([
      {
        ...{ scope: 'target', from: timestamp(midnight), to: one, limit: null, rate: 4, max_rate: 4 },
        ...{ adaptive: true, reason: 'operator' },
      },
      {
        ...{ scope: 'target', from: one, to: two, limit: 0, rate: null, max_rate: null },
        ...{ adaptive: false, reason: 'operator' },
      },
    ]);
    expect((await report(`kind=dns&target=b${day}`)).rules).toEqual([]);
  });

  it('shows a limit whose change is no longer kept', async () => {
    await limit({ kind: 'dns', limit: 7 });
    await server.database.write((tx) => tx.run('DELETE FROM concurrency_window_changes'));
    const held = { scope: 'kind', limit: 7, to: null };
    expect((await report()).rules).toMatchObject([held]);
    clock.advance(60_000);
    await limit({ kind: 'dns', limit: 8 });
    expect((await report()).rules).toMatchObject([
      { ...held, to: timestamp() },
      { limit: 8, from: timestamp() },
    ]);
  });

  it('is of one UTC day: what began before midnight counts there, and among those at once', async () => {
    const midnight = Math.ceil((clock.now() + HOUR_MS) / DAY_MS) * DAY_MS;
    await server.enqueue(at('a'), at('a'), at('a'));
    clock.advance(midnight - 1 - clock.now());
    const [early] = await claim(1);
    clock.advance(1);
    expect(await claim(2)).toHaveLength(1);
    await finish([early as Lease], { outcome: 'error' });
    clock.advance(5);
    expect(await claim(2)).toHaveLength(1);
    expect(await report()).toMatchObject({
      ...{ from: timestamp(midnight), to: timestamp(midnight + DAY_MS), checks: 2 },
      // At this instant the first ended, so it no longer ran.
      peak_concurrent: { count: 2, at: timestamp(midnight + 5) },
    });
    expect(await report(`kind=dns&target=a&day=${dayOf(midnight - 1)}`)).toMatchObject({
      checks: 1,
      outcomes: { error: 1, live: 0 },
      most_starts_in_a_second: { count: 1, at: timestamp(midnight - 1) },
      peak_concurrent: { count: 1, at: timestamp(midnight - 1) },
    });
    // Tasks of later days change nothing, and are not read.
    clock.advance(2 * DAY_MS);
    await server.enqueue(...Array.from({ length: 20 }, () => at('a')));
    await claim(9);
    expect((await report()).checks).toBeGreaterThan(2);
    expect(await report(`kind=dns&target=a&day=${dayOf(midnight)}`)).toMatchObject({ checks: 2 });
    expect(await report(`kind=dns&target=a&day=${dayOf(midnight - 3 * DAY_MS)}`)).toMatchObject({
      ...{ checks: 0, first_start_at: null, last_start_at: null, agents: 0 },
      most_starts_in_a_second: { count: 0, at: null },
      peak_concurrent: { count: 0, at: null },
    });
  });

  it('counts the same as the tables have, of more tasks than a page', async () => {
    const others = [agent, await server.register(), await server.register()];
    await server.enqueue(...Array.from({ length: 2_500 }, (_, i) => at(i % 50 === 0 ? 'b' : 'a')));
    for (let i = 0; ; i++) {
      const who = others[i % 3] as Credentials;
      const leases = await claim(400, who);
      if (leases.length === 0) break;
      clock.advance(300);
      await finish(leases.slice(0, -50), { outcome: 'success' }, who);
      await server.agent(who, '/report', {
        completed: [],
        cancelled: leases.slice(-50).map(({ lease_id }) => ({ lease_id })),
      });
      if (i < 12) await server.pass(700);
    }
    const rows = (
      await server.rows<{ started: number; ended: number | null }>(
        `SELECT l.granted_at AS started, l.ended_at AS ended FROM leases l JOIN tasks t ON t.id = l.task_id WHERE t.target = 'a:53'`,
      )
    ).map(({ started, ended }) => ({ started: Number(started), ended: Number(ended) }));
    expect(rows.length).toBeGreaterThan(2_450);
    const inSecond = rows.map(
      ({ started }) => rows.filter((one) => one.started >= started && one.started < started + 1_000).length,
    );
    const atOnce = rows.map(
      ({ started }) => rows.filter((one) => one.started <= started && one.ended > started).length,
    );
    const found = await report();
    expect(found.checks).toBe(rows.length);
    expect(found.most_starts_in_a_second.count).toBe(Math.max(...inSecond));
    expect(found.peak_concurrent.count).toBe(Math.max(...atOnce));
  });

  it('counts each of the attempts at a task, however many they are', async () => {
    const ids = await server.enqueue(at('a'), at('a'), at('a'));
    await claim(9);
    const added = ids.flatMap((taskId) =>
      Array.from({ length: 1_500 }, (_, i) => ({ task_id: taskId, at: clock.now() + 10 * i })),
    );
    await server.database.write((tx) =>
      tx.run(
        `INSERT INTO leases (task_id, agent_id, kind, attempt, state, granted_at, deadline_at, lifetime_ends_at, ended_at, ending)
         SELECT task_id, 1, 'dns', 1, 'expired', at, at, at, at + 5, 'expired'
         FROM ${tx.dialect.rowset('$1', { task_id: 'integer', at: 'integer' })} AS r`,
        JSON.stringify(added),
      ),
    );
    expect(await report()).toMatchObject({
      checks: 4_503,
      outcomes: { expired: 4_500, live: 3 },
      most_starts_in_a_second: { count: 303, at: timestamp() },
      peak_concurrent: { count: 6, at: timestamp() },
    });
  });

  it('says that a day is no longer wholly kept', async () => {
    clock.advance(1);
    expect(await report(`kind=dns&target=a&day=${dayOf(clock.now() - 29 * DAY_MS)}`)).toMatchObject({
      is_complete: true,
    });
    expect(await report(`kind=dns&target=a&day=${dayOf(clock.now() - 30 * DAY_MS)}`)).toMatchObject({
      is_complete: false,
    });
  });

  it.each([
    ['target=a', 'kind'],
    ['kind=dns', 'target'],
    ['kind=&target=a', 'kind'],
    ['kind=dns&target=', 'target'],
    ['kind=dns&target=*', 'target'],
    ['kind=tcp&target=a', 'target'],
    ['kind=dns&target=a&day=2026-02-30', 'day'],
    ['kind=dns&target=a&day=today', 'day'],
    ['kind=dns&target=a&day=9999-01-01', 'day'],
    ['kind=dns&target=a&from=2026-01-01', 'from'],
  ])('refuses %s for its %s', async (query, field) => {
    expect(await ask(query)).toMatchObject({
      status: 400,
      body: { error: 'ERR_VALIDATION', details: { [field]: expect.any(String) } },
    });
  });

  it('is made one after the other; if more than 32 are asked for, others are told to wait', async () => {
    const reports = server.app.get(PolitenessReports);
    const asked = await Promise.allSettled(
      Array.from({ length: 40 }, (_, i) =>
        reports.report({ kind: 'dns', target: `t${i}` }, new HangUpSignal()),
      ),
    );
    const refused = asked.flatMap((one) => (one.status === 'rejected' ? [one.reason] : []));
    expect(refused).toHaveLength(8);
    expect(refused[0]).toMatchObject({ code: 'ERR_UNAVAILABLE', details: { reason: 'in_flight' } });
    await report();
  });
});
