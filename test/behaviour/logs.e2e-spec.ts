import { Writable } from 'node:stream';
import { createLogger } from '../../src/telemetry/logger';
import type { Json } from '../helpers/api';
import { ADMIN_TOKEN, credentialsOf, dnsTask, TestClock, TestServer } from '../helpers/harness';
import { until } from '../helpers/until';

/** A logger whose lines a test reads. */
function recordingLogger(logLevel: 'info' | 'trace' = 'trace') {
  let text = '';
  const to = new Writable({
    write(chunk, _encoding, done) {
      text += chunk;
      done();
    },
  });
  const lines = (message: string) =>
    text
      .split('\n')
      .filter(Boolean)
      .map((line) => JSON.parse(line))
      .filter((line) => line.message === message);
  return { logger: createLogger({ logLevel }, to), text: () => text, lines };
}

describe('the log of all requests', () => {
  const { logger, text, lines } = recordingLogger();
  const requests = () => lines('request');
  let server: TestServer;

  beforeAll(async () => {
    server = await TestServer.start({ LOG_REQUESTS: 'all' }, { logger });
  });
  afterAll(() => server.stop());

  it('has a line for each request: its id, agent, route, status and duration', async () => {
    const agent = await server.register('probe-1');
    const given = await server.agent(
      agent,
      '/v1/agents/heartbeat',
      {},
      { 'x-request-id': 'from-the-client-1' },
    );
    expect(given.headers.get('x-request-id')).toBe('from-the-client-1');
    const made = await server.request('GET', '/nowhere?secret=yes', {
      headers: { 'x-request-id': 'not fit\tfor a log' },
    });
    expect(made.headers.get('x-request-id')).toMatch(/^[0-9a-f-]{36}$/);
    await server.operator('GET', '/v1/tasks/7');
    const [register, heartbeat, unknown, task] = requests();
    expect(register).toMatchObject({ method: 'POST', route: '/register', status: 200 });
    expect(heartbeat).toMatchObject({
      request_id: 'from-the-client-1',
      agent_id: agent.agent_id,
      route: '/v1/agents/heartbeat',
      status: 200,
      duration_ms: expect.any(Number),
    });
    expect(unknown).toMatchObject({ request_id: made.headers.get('x-request-id'), status: 404 });
    expect(task).toMatchObject({ route: '/v1/tasks/:id', status: 404, operator: 'bootstrap' });
  });

  it('names the trace of a caller that is known, and not what a stranger says', async () => {
    const trace = '4bf92f3577b34da6a3ce929d0e0e4736';
    const headers = { traceparent: `00-${trace}-00f067aa0ba902b7-01` };
    const before = requests().length;
    await server.request('GET', '/v1/tasks', { headers });
    await server.operator('GET', '/v1/tasks', undefined, headers);
    const [strangers, known] = requests().slice(before);
    expect([strangers?.status, strangers?.trace_id]).toEqual([401, undefined]);
    expect([known?.status, known?.trace_id]).toEqual([200, trace]);
  });

  it('says of a request that it was not answered, if its caller gave up before', async () => {
    const agent = await server.register('probe-2');
    const claim = { capacities: { dns: 1 }, wait_ms: 5_000 };
    await expect(server.abandon(agent, '/claim', claim, 100)).rejects.toThrow('aborted');
    const line = () => requests().find(({ route }) => route === '/claim');
    expect(await until('the claim is in the log', line)).toMatchObject({
      ...{ status: 'unanswered', agent_id: agent.agent_id },
    });
  });

  it('never holds a token, a header or a body', async () => {
    const agent = await server.register('canary-hostname');
    await server.enqueue(dnsTask({}, { query: 'canary-query.example' }));
    const claimed = await server.agent(
      agent,
      '/claim',
      { capacities: { dns: 1 } },
      { 'x-canary': 'canary-header' },
    );
    const [{ lease_id }] = claimed.body.leases;
    await server.agent(agent, '/report', {
      completed: [{ lease_id, observations: [{ name: 'canary-name', value: 'canary-value' }] }],
      cancelled: [],
    });
    await server.request('POST', '/heartbeat', {
      headers: { ...credentialsOf(agent), 'x-agent-token': `${agent.auth_token}canary-wrong` },
      body: { agent_id: agent.agent_id },
    });
    await server.request('POST', '/report', {
      headers: { ...credentialsOf(agent), 'content-type': 'application/json' },
      body: '{"canary-broken',
    });
    expect(requests().length).toBeGreaterThan(5);
    expect(text()).not.toContain('canary-');
    expect(text()).not.toContain(agent.auth_token);
    expect(text()).not.toContain(ADMIN_TOKEN);
  });
});

describe('the log as it is by default', () => {
  it('has failures, operators’ changes and slow requests; what repeats is summed up for each caller', async () => {
    const { logger, lines } = recordingLogger();
    const server = await TestServer.start({ TRUST_PROXY: '127.0.0.1' }, { logger });
    const from = (address: string) => ({ headers: { 'x-forwarded-for': address } });
    const agent = await server.register('probe-1');
    await server.agent(agent, '/heartbeat');
    await server.operator('GET', '/v1/tasks');
    // It waits because it asked to, so it is not slow.
    await server.agent(agent, '/claim', { capacities: { dns: 1 }, wait_ms: 1_200 });
    expect(lines('request')).toEqual([]);

    await server.enqueue(dnsTask());
    await server.operator('POST', '/v1/tasks/4711/cancel');
    expect(lines('request')).toMatchObject([
      { route: '/v1/tasks', status: 201, operator: 'bootstrap', task_id: 1 },
      { route: '/v1/tasks/:id/cancel', status: 404, operator: 'bootstrap', task_id: 4711 },
    ]);

    for (let i = 0; i < 30; i++) await server.request('GET', `/nowhere-${i}`, from('192.0.2.1'));
    await server.request('GET', '/elsewhere', from('192.0.2.2'));
    for (let i = 0; i < 3; i++) await server.agent(agent, '/claim', {});
    // One host has many addresses of IPv6.
    for (let i = 0; i < 3; i++) await server.request('GET', '/nowhere', from(`2001:db8::${i + 1}`));
    expect(lines('request').slice(2)).toMatchObject([
      { route: 'unknown', status: 404, address: '192.0.2.1' },
      { route: 'unknown', status: 404, address: '192.0.2.2' },
      { route: '/claim', status: 400, agent_id: agent.agent_id },
      { route: 'unknown', status: 404, address: '2001:db8::1' },
    ]);
    await server.stop();
    expect(lines('requests summed up')).toMatchObject([
      {
        address: '192.0.2.1',
        count: 29,
        requests: [{ method: 'GET', route: 'unknown', status: 404, count: 29 }],
      },
      { agent_id: agent.agent_id, requests: [{ route: '/claim', status: 400, count: 2 }] },
      { address: '2001:db8::/64', count: 2 },
    ]);
  });

  it('has those that were slow until their caller gave up', async () => {
    const { logger, lines } = recordingLogger();
    const server = await TestServer.start({}, { logger });
    const agent = await server.register('probe-1');
    const [locked, released] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    const held = server.database.write(() => {
      locked.resolve();
      return released.promise;
    });
    await locked.promise;
    const isGivenUp = (ms: number) =>
      expect(server.abandon(agent, '/extend', { lease_ids: [], extend_by_ms: 1_000 }, ms)).rejects.toThrow(
        'aborted',
      );
    await Promise.all([isGivenUp(50), isGivenUp(1_200)]).finally(released.resolve);
    await held;
    await server.stop();
    expect(lines('request')).toMatchObject([
      { route: '/extend', status: 'unanswered', agent_id: agent.agent_id },
    ]);
  });

  it('has nothing of a healthy fleet, whatever its size', async () => {
    const { logger, text } = recordingLogger('info');
    const server = await TestServer.start({}, { logger });
    await server.operator('POST', '/v1/configs', { config: { a: 1 } });
    const agents = await Promise.all(Array.from({ length: 20 }, (_, i) => server.register(`probe-${i}`)));
    await server.enqueue(...Array.from({ length: 30 }, () => dnsTask()));
    const before = text();
    await Promise.all(
      agents.map(async (agent) => {
        const config = await server.request('GET', '/config', { headers: credentialsOf(agent) });
        const { revision } = config.body;
        for (let round = 0; round < 3; round++) {
          const said = { config_revision: revision, config_status: 'applied' };
          expect((await server.agent(agent, '/heartbeat', said)).status).toBe(200);
          const { body } = await server.agent(agent, '/claim', { capacities: { dns: 1 }, wait_ms: 50 });
          const ids = body.leases.map(({ lease_id }: { lease_id: number }) => lease_id);
          await server.agent(agent, '/extend', { lease_ids: ids, extend_by_ms: 30_000 });
          const outcomes = ['success', 'timeout', 'error'];
          const completed = ids.map((lease_id: number) => ({ lease_id, outcome: outcomes[round] }));
          expect((await server.agent(agent, '/report', { completed, cancelled: [] })).status).toBe(200);
          const timestamp = new Date().toISOString();
          await server.agent(agent, '/metrics', { timestamp, gauges: [{ name: 'load', value: round }] });
        }
      }),
    );
    // On a machine that is busy some are slow: that is no news of the fleet.
    const isSlow = (line: string) => (JSON.parse(line).duration_ms ?? 0) > 1_000;
    const news = text().slice(before.length).split('\n').filter(Boolean);
    expect(news.filter((line) => !isSlow(line))).toEqual([]);
    await server.stop();
  });

  it('has each step of a task by its id and its trace: all of them in detail, failures as it is', async () => {
    const traceId = '4bf92f3577b34da6a3ce929d0e0e4736';
    const lived = async (level: 'debug' | 'info') => {
      const clock = new TestClock();
      const { logger, text } = recordingLogger(level === 'debug' ? 'trace' : level);
      const server = await TestServer.start({ LOG_LEVEL: level, RETRY_BACKOFF_MS: '1' }, { logger, clock });
      const agent = await server.register('probe-1');
      const traceparent = `00-${traceId}-00f067aa0ba902b7-01`;
      const tasks = [
        dnsTask({ max_attempts: 3 }),
        dnsTask({ not_after: '2026-01-01T00:10:00Z', priority: -1 }),
        dnsTask({ priority: -2 }),
      ];
      await server.operator('POST', '/v1/tasks', { tasks }, { traceparent });
      const claimOne = async () =>
        (await server.agent(agent, '/claim', { capacities: { dns: 1 } })).body.leases[0].lease_id;
      await server.agent(agent, '/report', { completed: [], cancelled: [{ lease_id: await claimOne() }] });
      await server.pass(1_000);
      await claimOne();
      await server.pass(70_000);
      await server.agent(agent, '/report', { completed: [{ lease_id: await claimOne() }], cancelled: [] });
      await server.pass(600_000);
      for (const change of ['cancel', 'retry']) await server.operator('POST', `/v1/tasks/3/${change}`);
      await server.operator('POST', '/v1/tasks/cancel', { all: true });
      await server.operator('POST', '/v1/tasks/retry', { state: 'cancelled' });
      await server.stop();
      return text()
        .split('\n')
        .filter(Boolean)
        .map((line) => JSON.parse(line))
        .filter(({ trace_id, message }) => trace_id === traceId && message !== 'request');
    };
    const of = (lines: Json[], id: number) =>
      lines
        .filter(({ task_id }) => task_id === id)
        .map(({ message, attempt, state, reason }) =>
          [message, attempt, state ?? reason].filter((part) => part !== undefined).join(' '),
        );
    const all = await lived('debug');
    expect(of(all, 1)).toEqual([
      'a task was enqueued',
      'a task was leased 1',
      'a lease ended 1 cancelled',
      'a task was leased 2',
      'a lease expired 2 expired',
      'a task was leased 3',
      'a lease ended 3 completed',
    ]);
    expect(of(all, 2)).toEqual(['a task was enqueued', 'a task is dead not_after']);
    const changed = ['a task was cancelled', 'a task was retried'];
    expect(of(all, 3)).toEqual(['a task was enqueued', ...changed, ...changed]);
    const news = await lived('info');
    expect(of(news, 1)).toEqual(['a lease expired 2 expired']);
    expect(of(news, 2)).toEqual(['a task is dead not_after']);
    expect(of(news, 3)).toEqual([]);
  });

  it('stays small if all that is leased expires', async () => {
    const clock = new TestClock();
    const { logger, lines } = recordingLogger('info');
    const server = await TestServer.start(
      { LOG_LEVEL: 'info', MAX_LEASES_PER_AGENT: '1000' },
      { logger, clock },
    );
    const agent = await server.register('probe-1');
    await server.enqueue(...Array.from({ length: 250 }, () => dnsTask()));
    await server.agent(agent, '/claim', { capacities: { dns: 250 } });
    await server.pass(61_000);
    await server.stop();
    expect(lines('a lease expired').length).toBeGreaterThanOrEqual(100);
    expect(lines('a lease expired').length).toBeLessThan(200);
  });

  it('names the agent that a caller claimed to be without success, and never its credentials', async () => {
    const { logger, text, lines } = recordingLogger();
    const server = await TestServer.start({ FAILED_AUTH_PER_IP: '30/1h,2' }, { logger });
    const agent = await server.register('probe-1');
    const as = (id: string, token = `${agent.auth_token.slice(0, -1)}!`) =>
      server.request('POST', '/heartbeat', {
        headers: { 'x-agent-id': id, 'x-agent-token': token },
        body: {},
      });
    await as(String(agent.agent_id));
    for (const id of ['77', '78', '77', 'canary-id', '1e3', '-5', '', '99999999999999999999']) await as(id);
    // Guesses that are refused before they are looked up are named too.
    for (const id of ['81', '82', '83', '84']) await as(id, agent.auth_token);
    await server.agent(agent, '/heartbeat');
    await server.stop();
    expect(lines('request')).toMatchObject([{ status: 401, claimed_agent_id: agent.agent_id }]);
    expect(lines('requests summed up')).toMatchObject([{ claimed_agent_ids: [77, 78, 81, 82, 83, 84] }]);
    expect(text()).not.toContain(agent.auth_token.slice(5, 40));
    expect(text()).not.toContain('canary-id');
  });

  it('names the tasks that were enqueued: all of a few, the first and the last of many', async () => {
    const { logger, lines } = recordingLogger();
    const server = await TestServer.start({}, { logger });
    await server.enqueue(dnsTask(), dnsTask());
    await server.enqueue(...Array.from({ length: 21 }, () => dnsTask()));
    await server.operator('POST', '/v1/tasks', { tasks: [dnsTask({ priority: 'x' })] });
    await server.stop();
    const [few, many, wrong] = lines('request');
    expect(few.task_ids).toEqual([1, 2]);
    expect(many).toMatchObject({ tasks: 21, first_task_id: 3, last_task_id: 23 });
    expect(wrong).toMatchObject({ status: 400 });
    expect(wrong).not.toHaveProperty('task_ids');
  });

  it('stays small whatever strangers send, from however many addresses, and still has the changes of operators', async () => {
    const { logger, text, lines } = recordingLogger();
    const server = await TestServer.start({ TRUST_PROXY: '127.0.0.1' }, { logger });
    const before = text().length;
    for (let i = 0; i < 60; i++)
      await Promise.all(
        Array.from({ length: 50 }, (_, j) =>
          server.request('GET', '/nowhere', {
            headers: { 'x-forwarded-for': `198.18.${i % 20}.${j}` },
          }),
        ),
      );
    await server.enqueue(dnsTask());
    // 3,000 requests of 1,000 addresses.
    const strangers = lines('request').filter(({ operator }) => operator === undefined);
    expect(strangers.length).toBe(500);
    expect(lines('request').at(-1)).toMatchObject({ route: '/v1/tasks', status: 201 });
    await server.stop();
    const sums = lines('requests summed up');
    expect(sums.length).toBe(501);
    expect(sums.at(-1)).toMatchObject({ callers: 'others', count: 1_500 });
    expect(strangers.length + sums.reduce((total, { count }) => total + count, 0)).toBe(3_000);
    expect(text().length - before).toBeLessThan(500_000);
  });

  it('says that each request fails on a broken database a hundred times, and then how often', async () => {
    const { logger, lines } = recordingLogger();
    const server = await TestServer.start({}, { logger });
    await server.forbid('INSERT', 'tasks');
    for (let i = 0; i < 300; i++)
      expect((await server.operator('POST', '/v1/tasks', { tasks: [dnsTask()] })).status).toBe(500);
    const errors = lines('The server failed; it is safe to try again.').length;
    expect(errors).toBeGreaterThanOrEqual(100);
    expect(errors).toBeLessThan(300);
    await server.stop();
  });
});
