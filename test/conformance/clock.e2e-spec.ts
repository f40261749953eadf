import { QueueMaintainer } from '../../src/queue/maintenance';
import { type Credentials, dnsTask, serviceRuns, TestClock, TestServer } from '../helpers/harness';
import { until } from '../helpers/until';

const HOUR_MS = 3_600_000;
const LEASE_MS = 60_000;
const BACKOFF_MS = 20_000;
const SETTINGS = { RETRY_BACKOFF_MS: String(BACKOFF_MS), RETRY_BACKOFF_MAX_MS: String(BACKOFF_MS) };

describe.each(['while the service runs', 'at a restart'])(
  'a clock that is set back by an hour %s',
  (when) => {
    let clock: TestClock;
    let server: TestServer;
    let agent: Credentials;

    beforeEach(async () => {
      clock = new TestClock();
      server = await TestServer.start(SETTINGS, { clock });
      agent = await server.register('probe');
    });
    afterEach(() => server.stop());

    const claim = async (who: Credentials): Promise<{ lease_id: number; task_id: number }[]> =>
      (await server.agent(who, '/claim', { capacities: { dns: 10 } })).body.leases;

    async function setBack(): Promise<void> {
      // What was written is recorded with its instant within a second; the last of it may come after that.
      await serviceRuns(server.app);
      if (when === 'at a restart') await server.stop({ keep: true });
      clock.advance(-HOUR_MS);
      if (when === 'at a restart')
        server = await TestServer.start(SETTINGS, { clock, folder: server.folder });
      await server.app.get(QueueMaintainer).reap();
    }

    const reap = async (ms: number): Promise<void> => {
      await server.pass(ms, { reaps: false });
      await server.app.get(QueueMaintainer).reap();
    };

    it('holds a lease for one more duration, and no shorter than its holder was told', async () => {
      const [id] = await server.enqueue(dnsTask());
      const [lease] = await claim(agent);
      expect(lease?.task_id).toBe(id);
      await server.pass(20_000, { reaps: false });
      await setBack();
      await reap(LEASE_MS - 1_000);
      expect((await server.rows('SELECT state FROM leases'))[0]).toEqual({ state: 'active' });
      await reap(2_000);
      expect((await server.rows('SELECT state FROM leases'))[0]).toEqual({ state: 'expired' });
    });

    it('does not let a lease be extended beyond its lifetime', async () => {
      await server.enqueue(dnsTask());
      await claim(agent);
      const [before] = await server.rows('SELECT granted_at, lifetime_ends_at FROM leases');
      await setBack();
      const [after] = await server.rows('SELECT lifetime_ends_at FROM leases');
      expect(after.lifetime_ends_at).toBeLessThanOrEqual(before.lifetime_ends_at - HOUR_MS + 5_000);
    });

    it('holds a task for its backoff, and one with an instant of its operator until that', async () => {
      const [failed] = await server.enqueue(dnsTask());
      const [lease] = await claim(agent);
      await server.agent(agent, '/report', { completed: [], cancelled: [{ lease_id: lease?.lease_id }] });
      const runAt = new Date(clock.now() + 2 * HOUR_MS).toISOString();
      const [planned] = await server.enqueue(dnsTask({ run_at: runAt }));
      await setBack();
      await reap(BACKOFF_MS + 1_000);
      const stateOf = async (id: number | undefined) =>
        (await server.operator('GET', `/v1/tasks/${id}`)).body;
      // The server's own reaper may be about to queue it.
      await until('the task is queued', () => stateOf(failed), { isDone: ({ state }) => state === 'queued' });
      expect(await stateOf(planned)).toMatchObject({ state: 'scheduled', run_at: runAt });
    });

    it('holds a hostname for its heartbeat deadline', async () => {
      await setBack();
      expect((await server.request('POST', '/register', { body: { hostname: 'probe' } })).status).toBe(409);
      await server.pass(46_000, { reaps: false });
      expect((await server.operator('GET', `/v1/agents/${agent.agent_id}`)).body.status).toBe('offline');
      expect((await server.request('POST', '/register', { body: { hostname: 'probe' } })).status).toBe(200);
    });

    it('does not make the token before a rotation work longer', async () => {
      await server.operator('POST', `/v1/agents/${agent.agent_id}/rotate`, {});
      await setBack();
      await server.pass(601_000, { reaps: false });
      const [row] = await server.rows('SELECT previous_token_expires_at AS at FROM agents');
      expect(row.at).toBeLessThanOrEqual(clock.now());
    });
  },
);

it('expires nothing in a process that was suspended in the middle of its job', async () => {
  const clock = new TestClock();
  const server = await TestServer.start({}, { clock });
  try {
    const agent = await server.register();
    await server.enqueue(dnsTask());
    await server.agent(agent, '/claim', { capacities: { dns: 1 } });
    await serviceRuns(server.app);
    const maintainer = server.app.get(QueueMaintainer) as unknown as {
      continuity: { refresh(): Promise<void> };
    };
    const { continuity } = maintainer;
    const { refresh } = continuity;
    // After it has looked whether the service ran without a gap, and before it judges by that.
    continuity.refresh = async () => {
      await refresh.call(continuity);
      continuity.refresh = refresh;
      clock.advance(120_000);
    };
    await server.app.get(QueueMaintainer).reap();
    expect((await server.rows('SELECT state FROM leases'))[0]).toEqual({ state: 'active' });
    await server.app.get(QueueMaintainer).reap();
    expect((await server.rows('SELECT state, deadline_at FROM leases'))[0]).toEqual({
      state: 'active',
      deadline_at: clock.now() + 60_000,
    });
  } finally {
    await server.stop();
  }
});
