import { Writable } from 'node:stream';
import { createLogger } from '../../src/telemetry/logger';
import { ADMIN_TOKEN, credentialsOf, dnsTask, TestServer } from '../helpers/harness';

describe('the log', () => {
  let text = '';
  let server: TestServer;
  const lines = () =>
    text
      .split('\n')
      .filter(Boolean)
      .map((line) => JSON.parse(line));
  const requests = () => lines().filter((line) => line.message === 'request');

  beforeAll(async () => {
    const to = new Writable({
      write(chunk, _encoding, done) {
        text += chunk;
        done();
      },
    });
    server = await TestServer.start({}, { logger: createLogger({ logLevel: 'trace' }, to) });
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
    expect(text).not.toContain('canary-');
    expect(text).not.toContain(agent.auth_token);
    expect(text).not.toContain(ADMIN_TOKEN);
  });
});
