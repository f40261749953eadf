import {
  ADMIN_TOKEN,
  type Answer,
  type Credentials,
  credentialsOf,
  dnsTask,
  TestServer,
} from '../helpers/harness';

/** The largest id that there may be, and the first that is too large for a double and for a bigint. */
const LARGEST = Number.MAX_SAFE_INTEGER;
const LARGEST_CURSOR = '9'.repeat(15);
const TOO_LARGE = ['9007199254740992', '9223372036854775808', '99999999999999999999'];
/** PostgreSQL takes no U+0000 in a text, and neither database half of a surrogate pair. */
const NO_TEXT = ['a\0b', '\0', 'a\ud800', '\udc00b'];

describe('what one database would take and another refuse', () => {
  let server: TestServer;
  let agent: Credentials;

  beforeAll(async () => {
    server = await TestServer.start();
    agent = await server.register('probe-1');
  });
  afterAll(() => server.stop());

  const refused = (answer: Answer, what: unknown) => {
    expect([what, answer.status, answer.body.error]).toEqual([what, 400, 'ERR_VALIDATION']);
    return Object.keys(answer.body.details);
  };

  it.each<[string, string, (text: string) => object, string]>([
    ['POST', '/v1/tasks', (text) => ({ tasks: [dnsTask({ unique_key: text })] }), 'tasks.0.unique_key'],
    ['POST', '/v1/tasks', (text) => ({ tasks: [dnsTask({}, { query: text })] }), 'tasks.0.spec.query'],
    ['POST', '/v1/tasks', (text) => ({ tasks: [{ kind: text, spec: {} }] }), 'tasks.0.kind'],
    ['POST', '/v1/agents', (text) => ({ hostname: text }), 'hostname'],
    ['POST', '/register', (text) => ({ hostname: text }), 'hostname'],
    ['POST', '/v1/operator-tokens', (text) => ({ name: text, role: 'viewer' }), 'name'],
    ['POST', '/v1/enrollment-tokens', (text) => ({ name: text }), 'name'],
    ['PUT', '/v1/concurrency/limits', (text) => ({ limits: [{ kind: text, limit: 1 }] }), 'limits.0.kind'],
    [
      'PUT',
      '/v1/concurrency/limits',
      (text) => ({ limits: [{ kind: 'dns', target: text, limit: 1 }] }),
      'limits.0.target',
    ],
  ])('is no text: %s %s %#', async (method, path, bodyOf, field) => {
    for (const text of NO_TEXT)
      expect(refused(await server.operator(method, path, bodyOf(text)), text)).toContain(field);
  });

  it.each(TOO_LARGE)('is no id: %s', async (id) => {
    for (const path of [`/v1/tasks/${id}`, `/v1/agents/${id}`, `/v1/agents/${id}/metrics`])
      expect(refused(await server.operator('GET', path), path)).toEqual(['id']);
    for (const path of [
      '/v1/tasks?cursor=',
      '/v1/agents?cursor=',
      '/v1/audit?cursor=',
      '/v1/configs?cursor=',
      '/v1/operator-tokens?cursor=',
      '/v1/enrollment-tokens?cursor=',
    ])
      expect(refused(await server.operator('GET', path + id), path)).toEqual(['cursor']);
    for (const path of ['/v1/audit?operator_token_id=', '/v1/agents?enrollment_token_id='])
      expect(refused(await server.operator('GET', path + id), path)).toHaveLength(1);
    for (const [path, more, field] of [
      ['/heartbeat', `"agent_id":${id}`, 'agent_id'],
      ['/claim', `"agent_id":1,"capacities":{"dns":${id}}`, 'capacities.dns'],
      ['/v1/tasks', `"tasks":[{"kind":"dns","spec":{"query":"a"},"priority":${id}}]`, 'tasks.0.priority'],
      ['/extend', `"agent_id":1,"lease_ids":[${id}],"extend_by_ms":1`, 'lease_ids.0'],
    ] as const) {
      const headers = {
        ...credentialsOf(agent),
        authorization: `Bearer ${ADMIN_TOKEN}`,
        'content-type': 'application/json',
      };
      expect(refused(await server.request('POST', path, { headers, body: `{${more}}` }), path)).toEqual([
        field,
      ]);
    }
    const headers = { ...credentialsOf(agent), 'x-agent-id': id, 'content-type': 'application/json' };
    expect(refused(await server.request('POST', '/heartbeat', { headers, body: {} }), 'x-agent-id')).toEqual([
      'x-agent-id',
    ]);
  });

  it('is the largest id, of which there is nothing', async () => {
    for (const path of [`/v1/tasks/${LARGEST}`, `/v1/agents/${LARGEST}`])
      expect([path, (await server.operator('GET', path)).status]).toEqual([path, 404]);
    for (const path of [
      ...['tasks', 'agents', 'audit', 'configs'].map((list) => `/v1/${list}?cursor=${LARGEST_CURSOR}`),
      `/v1/audit?operator_token_id=${LARGEST}`,
      `/v1/agents?enrollment_token_id=${LARGEST}`,
    ])
      expect([path, (await server.operator('GET', path)).status]).toEqual([path, 200]);
    expect(
      (await server.agent(agent, '/extend', { lease_ids: [LARGEST], extend_by_ms: LARGEST })).body,
    ).toEqual({ outcomes: [], revoked: [LARGEST] });
    const reported = await server.agent(agent, '/report', {
      completed: [{ lease_id: LARGEST }],
      cancelled: [],
    });
    expect(reported.body.rejected).toEqual([{ lease_id: LARGEST, reason: 'unknown' }]);
    const stranger = { agent_id: LARGEST, auth_token: agent.auth_token };
    expect((await server.agent(stranger, '/heartbeat')).status).toBe(401);
  });

  it('is the longest text of the widest characters, which is kept, found and unique', async () => {
    const host = `${'h'.repeat(63)}.`.repeat(3) + 'h'.repeat(61);
    const key = '\u5b57'.repeat(255);
    const task = dnsTask({ unique_key: key }, { query: key, server: host });
    const [id] = await server.enqueue(task);
    expect((await server.operator('GET', `/v1/tasks/${id}`)).body).toMatchObject({ unique_key: key });
    expect(await server.enqueue(task)).toEqual([id]);
    const found = await server.operator('GET', `/v1/tasks?target=${host}`);
    expect(found.body.items.map((item: { id: number }) => item.id)).toEqual([id]);
    const hostname = '\u5b57'.repeat(255);
    const who = await server.register(hostname);
    const listed = await server.operator('GET', `/v1/agents?hostname=${encodeURIComponent(hostname)}`);
    expect(listed.body.items).toMatchObject([{ id: who.agent_id, hostname }]);
    const headers = { authorization: `Bearer ${ADMIN_TOKEN}`, 'idempotency-key': 'k'.repeat(255) };
    const body = { tasks: [dnsTask()] };
    const first = await server.request('POST', '/v1/tasks', { headers, body });
    expect((await server.request('POST', '/v1/tasks', { headers, body })).body).toEqual(first.body);
  });
});
