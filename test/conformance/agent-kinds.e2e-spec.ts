import { AgentKinds } from '../../src/agents/agent-kinds';
import { RegistrationService } from '../../src/agents/registration.service';
import { Continuity } from '../../src/scheduling/continuity';
import { type Answer, type Credentials, dnsTask, TestClock, TestServer } from '../helpers/harness';

const MINUTE_MS = 60_000;
const DAY_MS = 1_440 * MINUTE_MS;

describe('the kinds that an agent takes', () => {
  let server: TestServer;
  let clock: TestClock;
  let agent: Credentials;

  beforeEach(async () => {
    clock = new TestClock();
    server = await TestServer.start({}, { clock });
    agent = await server.register('probe-1');
  });
  afterEach(() => server.stop());

  const claim = (capacities: Record<string, number>, headers = {}): Promise<Answer> =>
    server.agent(agent, '/claim', { capacities }, headers);
  const kinds = async (): Promise<string[]> =>
    (await server.operator('GET', `/v1/agents/${agent.agent_id}`)).body.kinds;
  const stored = () => server.rows('SELECT kind, capacity, asked_at FROM agent_kinds ORDER BY kind');

  it('are learned from claims, also from those that find nothing', async () => {
    expect(await kinds()).toEqual([]);
    await claim({ http: 2, dns: 5 });
    expect(await kinds()).toEqual(['dns', 'http']);
    await claim({ tcp: 1 });
    expect(await kinds()).toEqual(['dns', 'http', 'tcp']);
    const { body } = await server.operator('GET', '/v1/agents');
    expect(body.items[0].kinds).toEqual(['dns', 'http', 'tcp']);
  });

  it('are learned from a claim that is granted something, with a key as well, and while the agent drains', async () => {
    await server.enqueue(dnsTask());
    const { body } = await claim({ dns: 1 }, { 'idempotency-key': 'a-key-of-some-length' });
    expect(body.leases).toHaveLength(1);
    await server.operator('POST', `/v1/agents/${agent.agent_id}/drain`);
    await claim({ http: 1 });
    expect(await kinds()).toEqual(['dns', 'http']);
  });

  it('are not those that it asks none of', async () => {
    await claim({ dns: 5, http: 0 });
    expect(await kinds()).toEqual(['dns']);
    clock.advance(MINUTE_MS);
    await claim({ dns: 0 });
    expect(await kinds()).toEqual([]);
    await claim({ dns: 1 });
    expect(await kinds()).toEqual(['dns']);
    // An agent that asks for none whenever it is full is not written down each time.
    await claim({ dns: 0 });
    expect(await kinds()).toEqual(['dns']);
  });

  it('are not learned from a claim that is refused', async () => {
    expect((await claim({ gopher: 1 })).status).toBe(400);
    await server.operator('POST', `/v1/agents/${agent.agent_id}/disable`);
    expect((await claim({ dns: 1 })).status).toBe(403);
    expect((await claim({ dns: 0 })).status).toBe(403);
    expect(await stored()).toEqual([]);
  });

  it('are not written again by each claim', async () => {
    const from = clock.now();
    await claim({ dns: 5 });
    await server.pass(9 * MINUTE_MS, { reaps: false });
    await claim({ dns: 5 });
    expect(await stored()).toEqual([{ kind: 'dns', capacity: 5, asked_at: from }]);
    await server.pass(MINUTE_MS, { reaps: false });
    await claim({ dns: 5 });
    expect(await stored()).toEqual([{ kind: 'dns', capacity: 5, asked_at: from + 10 * MINUTE_MS }]);
  });

  it('cost no statement if a claim says the same again, also that it asks for none', async () => {
    await claim({ dns: 5, http: 0 });
    const statements: string[] = [];
    const write = server.database.write.bind(server.database);
    const spy = jest.spyOn(server.database, 'write').mockImplementation((work) =>
      write((tx) => {
        const run = (sql: string, ...values: (string | number | null)[]) => {
          statements.push(sql);
          return tx.run(sql, ...values);
        };
        return work(Object.assign(Object.create(tx), { run }));
      }),
    );
    await claim({ dns: 5, http: 0 });
    spy.mockRestore();
    expect(statements.filter((sql) => sql.includes('agent_kinds'))).toEqual([]);
  });

  it('have the capacity of a claim lately, which is bounded', async () => {
    await claim({ dns: 5 });
    await claim({ dns: 4 });
    expect((await stored())[0].capacity).toBe(5);
    await server.pass(MINUTE_MS, { reaps: false });
    await claim({ dns: Number.MAX_SAFE_INTEGER });
    expect((await stored())[0].capacity).toBe(1_000);
  });

  it('are forgotten when it has not asked for a day', async () => {
    await claim({ dns: 1, http: 1 });
    await server.pass(MINUTE_MS, { reaps: false });
    clock.advance(DAY_MS / 2);
    await claim({ http: 1 });
    clock.advance(DAY_MS / 2);
    expect(await kinds()).toEqual(['http']);
    expect(await server.app.get(AgentKinds).purge()).toBe(1);
    expect(await stored()).toMatchObject([{ kind: 'http' }]);
    await claim({ dns: 1 });
    expect(await kinds()).toEqual(['dns', 'http']);
  });

  it('are asked for in the present after the clock was set back', async () => {
    await claim({ dns: 1 });
    clock.advance(-DAY_MS);
    await claim({ dns: 1 });
    await server.pass(1_000, { reaps: false });
    const [{ asked_at }] = await stored();
    expect(asked_at).toBeLessThanOrEqual(clock.now());
  });

  it('go with an agent that leaves no trace', async () => {
    await claim({ dns: 1 });
    expect(await stored()).toHaveLength(1);
    clock.advance(2 * DAY_MS);
    jest.spyOn(server.app.get(Continuity), 'runningSince').mockReturnValue(0);
    expect(await server.app.get(RegistrationService).endTrials()).toBe(1);
    expect(await server.rows('SELECT id FROM agents')).toEqual([]);
    expect(await stored()).toEqual([]);
  });

  it('are known to a server that starts again', async () => {
    await claim({ dns: 1 });
    await server.stop({ keep: true });
    server = await TestServer.start({}, { clock, folder: server.folder });
    expect(await kinds()).toEqual(['dns']);
    await claim({ dns: 2 });
    expect(await stored()).toMatchObject([{ kind: 'dns', capacity: 2 }]);
  });
});
