import { AgentsService } from '../../src/agents/agents.service';
import { HeartbeatsService } from '../../src/agents/heartbeats.service';
import { Liveness } from '../../src/agents/liveness';
import { JobRunner } from '../../src/scheduling/job-runner';
import {
  type Answer,
  type Credentials,
  identityOf,
  onPostgres,
  serviceRuns,
  TestClock,
  TestServer,
} from '../helpers/harness';
import { until } from '../helpers/until';

const TIMEOUT_MS = 45_000;
const START = Date.UTC(2026, 0, 1);

describe('heartbeats', () => {
  let server: TestServer;
  let clock: TestClock;

  beforeEach(async () => {
    clock = new TestClock(START);
    server = await TestServer.start({}, { clock });
  });
  afterEach(() => server.stop());

  const liveness = () => server.app.get(Liveness);
  const beat = (who: Credentials, body: object = {}): Promise<Answer> =>
    server.agent(who, '/heartbeat', body);
  const view = async (who: Credentials): Promise<Answer['body']> =>
    (await server.operator('GET', `/v1/agents/${who.agent_id}`)).body;
  const change = (who: Credentials, verb: string): Promise<Answer> =>
    server.operator('POST', `/v1/agents/${who.agent_id}/${verb}`, {});
  /** The stored heartbeats in ms after the start, by agent. */
  const stored = async (): Promise<Record<number, number>> =>
    Object.fromEntries(
      (await server.rows('SELECT * FROM agent_heartbeats')).map((row) => [
        row.agent_id,
        row.last_heartbeat_at - START,
      ]),
    );
  const store = (who: Credentials, at: number): Promise<number> =>
    server.database.write((tx) =>
      tx.run('UPDATE agent_heartbeats SET last_heartbeat_at = $2 WHERE agent_id = $1', who.agent_id, at),
    );
  /** Keeps the job from writing, so that a test decides when that happens. */
  const holdFlush = (): void => {
    const jobs = server.app.get(JobRunner);
    const run = jobs.run.bind(jobs);
    jest
      .spyOn(jobs, 'run')
      .mockImplementation((name, ...rest) =>
        name === 'heartbeats' ? Promise.resolve() : run(name, ...rest),
      );
  };
  /** How many units of work are begun meanwhile. */
  async function unitsOf(work: () => Promise<unknown>): Promise<number> {
    const spy = jest.spyOn(server.database, 'write');
    try {
      await work();
      return spy.mock.calls.length;
    } finally {
      spy.mockRestore();
    }
  }
  async function kill(): Promise<void> {
    // What a killed process does not do: the hook that writes the last heartbeats.
    jest.spyOn(liveness(), 'onApplicationShutdown').mockResolvedValue();
    await server.stop({ keep: true });
  }

  it('are answered without a unit of work, shown at once, and written by the job', async () => {
    const agent = await server.register();
    clock.advance(500);
    const answers: Answer[] = [];
    expect(await unitsOf(async () => answers.push(await beat(agent), await beat(agent)))).toBe(0);
    expect(answers.map(({ status, body }) => [status, body])).toEqual(
      Array(2).fill([200, { agent_id: agent.agent_id, next_deadline_ms: TIMEOUT_MS }]),
    );
    expect((await view(agent)).last_heartbeat_at).toBe('2026-01-01T00:00:00.500Z');
    await until('the heartbeat is written', async () => (await stored())[agent.agent_id] === 500);
  });

  it('are answered while the writer is held, and written in one unit for all agents', async () => {
    const agents = await Promise.all(Array.from({ length: 10 }, () => server.register()));
    holdFlush();
    // On PostgreSQL reads wait too.
    if (!onPostgres) {
      const release = await server.holdWriter();
      const statuses = await Promise.all(agents.map(async (agent) => (await beat(agent)).status));
      expect(statuses).toEqual(Array(10).fill(200));
      await release();
    }
    await liveness().flush();
    clock.advance(700);
    await Promise.all(agents.map((agent) => beat(agent)));
    expect(await unitsOf(() => liveness().flush())).toBe(1);
    expect(Object.values(await stored())).toEqual(Array(10).fill(700));
    // There is nothing left to write.
    expect(await unitsOf(() => liveness().flush())).toBe(0);
  });

  it('are written when the server stops', async () => {
    const agent = await server.register();
    holdFlush();
    clock.advance(900);
    expect((await beat(agent)).status).toBe(200);
    await server.stop({ keep: true });
    server = await TestServer.start({}, { clock, folder: server.folder });
    expect(await stored()).toEqual({ [agent.agent_id]: 900 });
  });

  it('that were lost with the process cost no live agent its name, nor its status', async () => {
    const agent = await server.register('probe-1');
    holdFlush();
    for (let at = 0; at < 30_000; at += 1_000) {
      clock.advance(1_000);
      await serviceRuns(server.app);
    }
    // If other replicas may go on, it is written by then, or it could look dead there.
    expect((await beat(agent)).status).toBe(200);
    clock.advance(500);
    expect((await beat(agent)).status).toBe(200);
    await kill();
    clock.advance(3_000);
    server = await TestServer.start({}, { clock, folder: server.folder });
    expect((await stored())[agent.agent_id]).toBe(onPostgres ? 30_000 : 0);
    for (let at = 0; at < 41_000; at += 1_000) {
      clock.advance(1_000);
      await serviceRuns(server.app);
    }
    expect((await view(agent)).status).toBe('online');
    const listed = await server.operator('GET', '/v1/agents?status=online');
    expect(listed.body.items).toHaveLength(1);
    const stranger = await server.request('POST', '/register', { body: { hostname: 'probe-1' } });
    expect([stranger.status, stranger.body.retryable]).toEqual([409, true]);
    expect((await beat(agent)).status).toBe(200);
  });

  it('never leave what is stored so old that the agent counts as offline by it', async () => {
    const agent = await server.register();
    holdFlush();
    for (let second = 1; second <= 120; second++) {
      clock.advance(1_000);
      await serviceRuns(server.app);
      if (second % 10 === 0) expect((await beat(agent)).status).toBe(200);
      const online = await server.operator('GET', '/v1/agents?status=online');
      expect([second, online.body.items.length]).toEqual([second, 1]);
    }
    // By the stored one alone, as a replica sees it that was not asked.
    const heard = (await stored())[agent.agent_id] as number;
    expect(120_000 - heard).toBeLessThan(TIMEOUT_MS);
  });

  it('are refused at once to an agent that was disabled, revoked, deleted or whose token is void', async () => {
    const [disabled, revoked, deleted, rotated] = (await Promise.all(
      Array.from({ length: 4 }, () => server.register()),
    )) as [Credentials, Credentials, Credentials, Credentials];
    const all = [disabled, revoked, deleted, rotated];
    for (const agent of all) expect((await beat(agent)).status).toBe(200);
    await liveness().flush();
    await change(disabled, 'disable');
    await change(revoked, 'revoke');
    await server.operator('DELETE', `/v1/agents/${deleted.agent_id}`);
    await server.operator('POST', `/v1/agents/${rotated.agent_id}/rotate`, { revoke_old: true });
    const before = await stored();
    clock.advance(100);
    const codes = await Promise.all(all.map(async (agent) => (await beat(agent)).status));
    expect(codes).toEqual([403, 403, 401, 401]);
    // Also where the call is past the guards.
    const late = server.app.get(HeartbeatsService);
    for (const [i, code] of [
      'ERR_FORBIDDEN',
      'ERR_FORBIDDEN',
      'ERR_UNAUTHORIZED',
      'ERR_UNAUTHORIZED',
    ].entries()) {
      const agent = all[i] as Credentials;
      await expect(late.heartbeat(identityOf(agent), { agent_id: agent.agent_id })).rejects.toMatchObject({
        code,
      });
    }
    await liveness().flush();
    expect(await stored()).toEqual(before);
    // A draining agent finishes what it has.
    await change(disabled, 'enable');
    await change(disabled, 'drain');
    expect((await beat(disabled)).status).toBe(200);
  });

  it('never set the stored instant back, and are never of the future', async () => {
    const [one, two] = [await server.register(), await server.register()];
    holdFlush();
    clock.advance(800);
    await beat(one);
    await beat(two);
    // Another replica has heard of it since.
    await store(one, START + 900);
    await liveness().flush();
    expect(await stored()).toEqual({ [one.agent_id]: 900, [two.agent_id]: 800 });
    clock.advance(200);
    await beat(two);
    clock.advance(-150);
    await liveness().flush();
    expect((await stored())[two.agent_id]).toBe(850);
  });

  it('of agents that are gone by then leave the others', async () => {
    const [gone, stays] = [await server.register(), await server.register()];
    holdFlush();
    clock.advance(600);
    await beat(gone);
    await beat(stays);
    await server.database.write((tx) => server.app.get(AgentsService).erase(tx, [gone.agent_id]));
    await liveness().flush();
    expect(await stored()).toEqual({ [stays.agent_id]: 600 });
  });

  it('that could not be written are kept, and the newest is written the next time', async () => {
    const [one, two] = [await server.register(), await server.register()];
    holdFlush();
    clock.advance(300);
    await beat(one);
    await beat(two);
    await server.forbid('UPDATE', 'agent_heartbeats');
    await expect(liveness().flush()).rejects.toThrow(/forbidden/);
    expect(await stored()).toEqual({ [one.agent_id]: 0, [two.agent_id]: 0 });
    clock.advance(400);
    expect((await beat(one)).status).toBe(200);
    await expect(liveness().flush()).rejects.toThrow(/forbidden/);
    expect((await view(one)).last_heartbeat_at).toBe('2026-01-01T00:00:00.700Z');
    await server.allow();
    await liveness().flush();
    expect(await stored()).toEqual({ [one.agent_id]: 700, [two.agent_id]: 300 });
  });

  it('that can not be written for long are refused before their agent could look dead', async () => {
    const agent = await server.register();
    holdFlush();
    await server.forbid('UPDATE', 'agent_heartbeats');
    const statuses = new Set<number>();
    for (let second = 1; second < 45; second++) {
      clock.advance(1_000);
      await serviceRuns(server.app);
      const { status } = await beat(agent);
      statuses.add(status);
      // An agent that was told 200 has another timeout; what is stored must not end before.
      if (second > 37) expect([second, status]).toEqual([second, 500]);
    }
    expect(statuses).toEqual(new Set([200, 500]));
    await server.allow();
    expect((await beat(agent)).status).toBe(200);
    expect((await stored())[agent.agent_id]).toBe(44_000);
  });

  it('with news of the configuration wait until they are written, and are lost for none', async () => {
    const agent = await server.register();
    const said = { config_revision: 'a', config_status: 'applied' };
    expect(await unitsOf(() => beat(agent, said))).toBe(1);
    expect(await server.rows('SELECT revision, status FROM agent_config_states')).toEqual([
      { revision: 'a', status: 'applied' },
    ]);
    expect(await unitsOf(() => beat(agent, said))).toBe(0);
    expect(await unitsOf(() => beat(agent, { ...said, config_status: 'failed' }))).toBe(1);
    await server.forbid('UPDATE', 'agent_config_states');
    expect((await beat(agent, said)).status).toBe(500);
    await server.allow();
    expect((await beat(agent, said)).status).toBe(200);
    expect((await view(agent)).config).toMatchObject({ status: 'applied' });
  });
});
