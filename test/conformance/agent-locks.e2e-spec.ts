import { SchedulerRegistry } from '@nestjs/schedule';
import { RegistrationService } from '../../src/agents/registration.service';
import { LIMITS_LOCK } from '../../src/concurrency/windows';
import { Continuity } from '../../src/scheduling/continuity';
import {
  type Answer,
  type Credentials,
  dnsTask,
  onPostgres,
  TestClock,
  TestServer,
} from '../helpers/harness';
import { freeRows, holdLocks, untilBlocked } from '../helpers/locks';

const DAY_MS = 86_400_000;

/** What takes an agent out of service, or its token from its holder; with what it is answered. */
const CHANGES: Record<string, (agent: Credentials) => Promise<Answer>> = {
  disable: (agent) => server.operator('POST', `/v1/agents/${agent.agent_id}/disable`),
  revoke: (agent) => server.operator('POST', `/v1/agents/${agent.agent_id}/revoke`),
  delete: (agent) => server.operator('DELETE', `/v1/agents/${agent.agent_id}`),
  'rotate with revoke_old': (agent) =>
    server.operator('POST', `/v1/agents/${agent.agent_id}/rotate`, { revoke_old: true }),
  'hand over': () => server.request('POST', '/register', { body: { hostname: 'probe-1' } }),
};

let server: TestServer;
let clock: TestClock;
let agent: Credentials;

// On SQLite units of work come one after the other.
(onPostgres ? describe : describe.skip)('units of work about one agent', () => {
  beforeEach(async () => {
    clock = new TestClock();
    server = await TestServer.start({}, { clock });
    // Nothing but what the test does waits for a lock.
    const schedule = server.app.get(SchedulerRegistry);
    for (const name of schedule.getIntervals()) schedule.deleteInterval(name);
    agent = await server.register('probe-1');
    // So long silent that its name can be taken, and its lease is live.
    await server.pass(20_000);
    await server.enqueue(dnsTask(), dnsTask());
    expect((await server.agent(agent, '/claim', { capacities: { dns: 1 } })).body.leases).toHaveLength(1);
    await server.pass(25_000);
  });
  afterEach(() => server.stop());

  describe('lock the limits before the agent:', () => {
    const expectLimitsFirst = async (call: () => Promise<unknown>) => {
      const release = await holdLocks(server, (tx) => tx.lockName(LIMITS_LOCK, 'exclusive'));
      const called = call();
      await untilBlocked(server);
      const free = await freeRows(server, 'agents');
      await release();
      await called;
      expect(free).toContain(agent.agent_id);
    };

    it.each(Object.keys(CHANGES))('%s', (change) =>
      expectLimitsFirst(async () => {
        const { status } = await (CHANGES[change] as (typeof CHANGES)[string])(agent);
        expect(status).toBe(change === 'delete' ? 204 : 200);
      }),
    );

    it('the end of a trial', async () => {
      jest.spyOn(server.app.get(Continuity), 'runningSince').mockReturnValue(0);
      clock.advance(DAY_MS);
      await expectLimitsFirst(async () =>
        expect(await server.app.get(RegistrationService).endTrials()).toBe(1),
      );
    });
  });
});
