import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { gzipSync } from 'node:zlib';
import {
  ADMIN_TOKEN,
  type Credentials,
  credentialsOf,
  dnsTask,
  exchange,
  TestServer,
} from '../helpers/harness';
import { ALL_TASKS } from '../helpers/queue-tables';

/** Everything that an agent or operator could store by a bad request. */
const COUNTS = `SELECT (SELECT count(*) FROM tasks) AS tasks, (SELECT count(*) FROM leases) AS leases,
  (SELECT count(*) FROM leases WHERE report IS NOT NULL OR ended_at IS NOT NULL) AS reported, (SELECT count(*) FROM agents) AS agents,
  (SELECT count(*) FROM agent_metrics) AS metrics, (SELECT count(*) FROM idempotency_keys) AS keys,
  (SELECT string_agg(state, ' ' ORDER BY id) FROM (${ALL_TASKS}) AS v) AS states`;

/** What may meet SQL, and differs between the databases: test/conformance/values-at-the-edge.e2e-spec.ts. */
describe('bad input', () => {
  let server: TestServer;
  let agent: Credentials;
  let other: Credentials;
  /** A live lease of the other. */
  let foreign: number;
  let before: unknown;

  beforeAll(async () => {
    server = await TestServer.start();
    agent = await server.register('probe-1');
    other = await server.register('probe-2');
    await server.enqueue(dnsTask(), dnsTask());
    foreign = (await server.agent(other, '/claim', { capacities: { dns: 1 } })).body.leases[0].lease_id;
    before = await server.rows(COUNTS);
  });
  afterAll(() => server.stop());
  // The one promise of all that follows: nothing is stored.
  afterEach(async () => expect(await server.rows(COUNTS)).toEqual(before));

  /** Body, and the field that the answer must name. */
  const WRONG: Record<string, [body: unknown, field: string][]> = {
    '/register': [
      [{ hostname: 7 }, 'hostname'],
      [{ hostname: '' }, 'hostname'],
      [{ hostname: 'x'.repeat(256) }, 'hostname'],
      [{ hostname: 'a\nb' }, 'hostname'],
      [{ hostname: ['a'] }, 'hostname'],
      [[], 'body'],
      [null, 'body'],
      ['"text"', 'body'],
    ],
    '/heartbeat': [
      [{}, 'agent_id'],
      [{ agent_id: 'one' }, 'agent_id'],
      [{ agent_id: '1' }, 'agent_id'],
      [{ agent_id: 0 }, 'agent_id'],
      [{ agent_id: -1 }, 'agent_id'],
      [{ agent_id: 1.5 }, 'agent_id'],
      [{ agent_id: null }, 'agent_id'],
    ],
    '/claim': [
      [{ agent_id: 1 }, 'capacities'],
      [{ agent_id: 1, capacities: [] }, 'capacities'],
      [{ agent_id: 1, capacities: 5 }, 'capacities'],
      [{ agent_id: 1, capacities: { dns: -1 } }, 'capacities.dns'],
      [{ agent_id: 1, capacities: { dns: 1.5 } }, 'capacities.dns'],
      [{ agent_id: 1, capacities: { dns: '5' } }, 'capacities.dns'],
      [{ agent_id: 1, capacities: { smtp: 1 } }, 'capacities.smtp'],
      [{ agent_id: 1, capacities: { dns: 1 }, wait_ms: -1 }, 'wait_ms'],
      [{ agent_id: 1, capacities: { dns: 1 }, wait_ms: 30_001 }, 'wait_ms'],
      [{ agent_id: 1, capacities: { dns: 1 }, wait_ms: '5' }, 'wait_ms'],
    ],
    '/extend': [
      [{ agent_id: 1, extend_by_ms: 1_000 }, 'lease_ids'],
      [{ agent_id: 1, lease_ids: 'all', extend_by_ms: 1_000 }, 'lease_ids'],
      [{ agent_id: 1, lease_ids: [1] }, 'extend_by_ms'],
      [{ agent_id: 1, lease_ids: [1], extend_by_ms: -1 }, 'extend_by_ms'],
      [{ agent_id: 1, lease_ids: [1], extend_by_ms: 0.5 }, 'extend_by_ms'],
      [{ agent_id: 1, lease_ids: [1, 1], extend_by_ms: 1_000 }, 'lease_ids.1'],
      [{ agent_id: 1, lease_ids: [0], extend_by_ms: 1_000 }, 'lease_ids.0'],
      [{ agent_id: 1, lease_ids: ['1'], extend_by_ms: 1_000 }, 'lease_ids.0'],
      [
        { agent_id: 1, lease_ids: Array.from({ length: 1_001 }, (_, i) => i + 1), extend_by_ms: 1_000 },
        'lease_ids',
      ],
    ],
    '/report': [
      [{ agent_id: 1, completed: [] }, 'cancelled'],
      [{ agent_id: 1, completed: {}, cancelled: [] }, 'completed'],
      [
        {
          agent_id: 1,
          completed: Array.from({ length: 1_001 }, (_, i) => ({ lease_id: i + 1 })),
          cancelled: [],
        },
        'completed',
      ],
      [
        {
          agent_id: 1,
          completed: Array.from({ length: 600 }, (_, i) => ({ lease_id: i + 1 })),
          cancelled: Array.from({ length: 600 }, (_, i) => ({ lease_id: i + 1_001 })),
        },
        'cancelled',
      ],
    ],
    '/v1/tasks': [
      [{}, 'tasks'],
      [{ tasks: [] }, 'tasks'],
      [{ tasks: {} }, 'tasks'],
      [{ tasks: Array(10_001).fill(0) }, 'tasks'],
      [{ tasks: [5] }, 'tasks.0'],
      [{ tasks: [{ kind: 'smtp', spec: {} }] }, 'tasks.0.kind'],
      [{ tasks: [{ spec: {} }] }, 'tasks.0.kind'],
      [{ tasks: [{ kind: 'constructor', spec: {} }] }, 'tasks.0.kind'],
      [{ tasks: [{ kind: 'dns' }] }, 'tasks.0.spec'],
      [{ tasks: [{ kind: 'dns', spec: [] }] }, 'tasks.0.spec'],
      [{ tasks: [{ kind: 'dns', spec: {} }] }, 'tasks.0.spec.query'],
      [{ tasks: [{ kind: 'dns', spec: { query: 'a', kind: 'tcp' } }] }, 'tasks.0.spec.kind'],
      [{ tasks: [{ kind: 'dns', spec: { query: 'a', port: 1 } }] }, 'tasks.0.spec.port'],
      [{ tasks: [dnsTask(), { kind: 'tcp', spec: { host: 'a', port: 0 } }] }, 'tasks.1.spec.port'],
      [{ tasks: [{ kind: 'http', spec: { url: 'ftp://a' } }] }, 'tasks.0.spec.url'],
      [{ tasks: [dnsTask({ priority: 1.5 })] }, 'tasks.0.priority'],
      [{ tasks: [dnsTask({ max_attempts: 0 })] }, 'tasks.0.max_attempts'],
      [{ tasks: [dnsTask({ run_at: 'tomorrow' })] }, 'tasks.0.run_at'],
      [{ tasks: [dnsTask({ run_at: 5 })] }, 'tasks.0.run_at'],
      [{ tasks: [dnsTask({ not_after: '2020-01-01T00:00:00Z' })] }, 'tasks.0.not_after'],
      [
        { tasks: [dnsTask({ run_at: '2090-01-02T00:00:00Z', not_after: '2090-01-01T00:00:00Z' })] },
        'tasks.0.not_after',
      ],
      [{ tasks: [dnsTask({ unique_key: '' })] }, 'tasks.0.unique_key'],
      [{ tasks: [dnsTask({}, { query: 'a\u202eb' })] }, 'tasks.0.spec.query'],
      ['{"tasks": [{"kind": "dns", "spec": {"query": "a", "__proto__": {}}}]}', 'tasks.0.spec.__proto__'],
      ['{"tasks": [], "__proto__": {}}', '__proto__'],
      [{ tasks: [dnsTask({ state: 'completed' })] }, 'tasks.0.state'],
      [{ tasks: [dnsTask()], dry_run: true }, 'dry_run'],
    ],
  };

  describe.each(Object.entries(WRONG))('%s', (path, cases) => {
    it.each(cases.map(([body, field]) => [field, JSON.stringify(body).slice(0, 60), body] as const))(
      'names %s in %s',
      async (field, _shown, body) => {
        const call = {
          headers: headersFor(path),
          body: typeof body === 'string' ? body : JSON.stringify(body),
        };
        const { status, body: answer } = await server.request('POST', path, call);
        expect({ status, error: answer.error, retryable: answer.retryable }).toEqual({
          status: 400,
          error: 'ERR_VALIDATION',
          retryable: false,
        });
        expect(Object.keys(answer.details)).toContain(field);
      },
    );
  });

  const headersFor = (path: string): Record<string, string> =>
    path === '/v1/tasks'
      ? { authorization: `Bearer ${ADMIN_TOKEN}` }
      : path === '/register'
        ? {}
        : credentialsOf(agent);

  it('refuses a body that names another agent, on every endpoint', async () => {
    const bodies: Record<string, object> = {
      '/heartbeat': {},
      '/claim': { capacities: { dns: 1 } },
      '/extend': { lease_ids: [foreign], extend_by_ms: 1_000 },
      '/report': { completed: [{ lease_id: foreign }], cancelled: [] },
      '/metrics': { timestamp: new Date().toISOString(), gauges: [] },
    };
    for (const [path, body] of Object.entries(bodies)) {
      for (const prefix of ['', '/v1/agents']) {
        const answer = await server.request('POST', prefix + path, {
          headers: credentialsOf(agent),
          body: { ...body, agent_id: other.agent_id },
        });
        expect(answer).toMatchObject({ status: 403, body: { error: 'ERR_FORBIDDEN', retryable: false } });
      }
    }
  });

  it('names the first of many unknown fields, so that no answer grows with what is asked', async () => {
    const many = Object.fromEntries(Array.from({ length: 1_000 }, (_, i) => [`x${i}`, 1]));
    const answers = [
      await server.operator('POST', '/v1/tasks', { tasks: [dnsTask()], ...many }),
      await server.operator('POST', '/v1/tasks', { tasks: [dnsTask({}, many)] }),
    ];
    for (const { status, body } of answers) {
      expect([status, body.error]).toEqual([400, 'ERR_VALIDATION']);
      expect(Object.keys(body.details)).toHaveLength(50);
    }
  });

  it.each([
    ['/register', { hostname: 7 }],
    ['/heartbeat', { agent_id: 'one' }],
    ['/claim', { wait_ms: -1, capacities: {} }],
    ['/extend', { lease_ids: [] }],
    ['/report', { completed: [] }],
    ['/metrics', { counters: 7 }],
  ])("ignores what it does not know in an agent's call of %s", async (path, wrong) => {
    const { status, body } = await server.agent(agent, path, {
      ...wrong,
      version: '2.0',
      location: { ['__proto__']: 1 },
    });
    expect([status, body.error]).toEqual([400, 'ERR_VALIDATION']);
    expect(Object.keys(body.details).filter((field) => /^(version|location)/.test(field))).toEqual([]);
  });

  it('says first that a field is required, then its type, then its range', async () => {
    const tcp = (spec: object) => ({ tasks: [{ kind: 'tcp', spec: { host: 'a', ...spec } }] });
    const problemOf = async (spec: object) =>
      (await server.operator('POST', '/v1/tasks', tcp(spec))).body.details['tasks.0.spec.port'];
    expect(await problemOf({})).toBe('is required');
    expect(await problemOf({ port: null })).toBe('is required');
    expect(await problemOf({ port: '443' })).toBe('must be an integer number');
    expect(await problemOf({ port: 65_536 })).toBe('must not be greater than 65535');
    const claim = async (body: object) => (await server.agent(agent, '/claim', body)).body.details;
    expect(await claim({})).toEqual({ capacities: 'is required' });
    expect(await claim({ capacities: {}, wait_ms: 'soon' })).toEqual({
      wait_ms: 'must be an integer number',
    });
    expect(
      (await server.request('POST', '/heartbeat', { headers: credentialsOf(agent), body: {} })).body.details,
    ).toEqual({
      agent_id: 'is required',
    });
    const ping = { tasks: [{ kind: 'ping', spec: { host: 'a', rate_limit_per_sec: 0.5 } }] };
    expect((await server.operator('POST', '/v1/tasks', ping)).body.details).toEqual({
      'tasks.0.spec.rate_limit_per_sec': 'must be an integer number',
    });
  });

  it('has no effect on a foreign lease', async () => {
    const extended = await server.agent(agent, '/extend', { lease_ids: [foreign], extend_by_ms: 60_000 });
    expect(extended.body).toEqual({ outcomes: [], revoked: [foreign] });
    const reported = await server.agent(agent, '/report', {
      completed: [{ lease_id: foreign }],
      cancelled: [],
    });
    expect(reported.body).toEqual({ acknowledged: 0, rejected: [{ lease_id: foreign, reason: 'unknown' }] });
  });

  it('takes empty lists, which do nothing', async () => {
    expect((await server.agent(agent, '/report', { completed: [], cancelled: [] })).body).toEqual({
      acknowledged: 0,
    });
    expect((await server.agent(agent, '/extend', { lease_ids: [], extend_by_ms: 1_000 })).body).toEqual({
      outcomes: [],
      revoked: [],
    });
    expect((await server.agent(agent, '/claim', { capacities: {} })).body).toEqual({ leases: [] });
  });

  describe('invalid JSON, and JSON that the parser refuses', () => {
    const report = (id: string) => `{"completed":[],"cancelled":[],"agent_id":${id}}`;

    it.each([
      ['no body', () => '', 'body'],
      ['no JSON', () => 'hello', 'body'],
      ['truncated', () => report('1').slice(0, -3), 'body'],
      ['NaN', () => report('NaN'), 'body'],
      ['Infinity by exponent', () => report('1e999'), 'agent_id'],
      ['trailing text', () => `${report('1')}x`, 'body'],
      ['5,000 levels deep', () => report('['.repeat(5_000) + ']'.repeat(5_000)), 'body'],
      ['5,000 objects deep', () => report(`${'{"a":'.repeat(5_000)}1${'}'.repeat(5_000)}`), 'body'],
      ['a key twice', () => '{"agent_id":1,"agent_id":1,"capacities":{}}', 'agent_id'],
      ['a key twice, deep', () => report('{"a":{"b":1,"b":2}}'), 'agent_id.a.b'],
      [
        'a key twice, in a body of more than 64 KiB: the name is not searched for',
        () => `{"agent_id":1,"agent_id":1,"completed":[],"cancelled":[]${' '.repeat(65_536)}}`,
        'body',
      ],
      ['a key twice, once escaped', () => report('{"a":1,"\\u0061":2}'), 'agent_id.a'],
    ])('%s', async (_name, body, field) => {
      const answer = await server.request('POST', '/report', {
        headers: { ...credentialsOf(agent), 'content-type': 'application/json' },
        body: body(),
      });
      expect(answer).toMatchObject({ status: 400, body: { error: 'ERR_VALIDATION', retryable: false } });
      expect(Object.keys(answer.body.details)).toContain(field);
    });

    it('that is not UTF-8', async () => {
      const answer = await server.request('POST', '/report', {
        headers: { ...credentialsOf(agent), 'content-type': 'application/json' },
        body: Buffer.concat([Buffer.from('{"a":"'), Buffer.from([0xff, 0xfe]), Buffer.from('"}')]),
      });
      expect(answer).toMatchObject({
        status: 400,
        body: { error: 'ERR_VALIDATION', details: { body: expect.any(String) } },
      });
    });

    it.each(['text/plain', 'application/x-www-form-urlencoded', 'application/xml', 'nonsense'])(
      'of the media type %s',
      async (type) => {
        const answer = await server.request('POST', '/heartbeat', {
          headers: { ...credentialsOf(agent), 'content-type': type },
          body: '{"agent_id":1}',
        });
        expect(answer).toMatchObject({ status: 415, body: { error: 'ERR_VALIDATION', retryable: false } });
      },
    );

    it.each([
      ['POST', 'application/json', 200],
      ['POST', 'text/plain', 415],
      ['GET', 'application/json', 200],
      ['GET', 'text/plain', 200],
    ])('that is not there: %s with the media type %s', async (method, type, status) => {
      const path = `/v1/agents/${agent.agent_id}${method === 'POST' ? '/enable' : ''}`;
      const headers = { authorization: `Bearer ${ADMIN_TOKEN}`, 'content-type': type };
      expect((await server.request(method, path, { headers })).status).toBe(status);
    });

    it.each(['gzip', 'deflate', 'br', 'identity, gzip'])('packed by %s', async (encoding) => {
      const answer = await server.request('POST', '/heartbeat', {
        headers: {
          ...credentialsOf(agent),
          'content-type': 'application/json',
          'content-encoding': encoding,
        },
        body: gzipSync(`{"agent_id":${agent.agent_id}}`),
      });
      expect(answer).toMatchObject({
        status: 415,
        body: { error: 'ERR_VALIDATION', details: { 'content-encoding': expect.any(String) } },
      });
    });

    it('of more than 4 MiB', async () => {
      const answer = await server.request('POST', '/report', {
        headers: { ...credentialsOf(agent), 'content-type': 'application/json' },
        body: `{"a":"${'x'.repeat(4 * 1024 * 1024)}"}`,
      });
      expect(answer).toMatchObject({ status: 413, body: { error: 'ERR_VALIDATION', retryable: false } });
    });

    it.each([
      ['/register', 16],
      ['/heartbeat', 16],
      ['/claim', 64],
      ['/extend', 64],
      ['/v1/agents/claim', 64],
      ['/v1/operator-tokens', 16],
      ['/v1/enrollment-tokens', 64],
      ['/report', 4_096],
      ['/metrics', 4_096],
      ['/v1/tasks', 4_096],
      ['/v1/configs', 4_096],
    ])('of more than %s takes: %i KiB', async (path, kib) => {
      const send = (bytes: number) =>
        server.request('POST', path, {
          headers: {
            ...credentialsOf(agent),
            authorization: `Bearer ${ADMIN_TOKEN}`,
            'content-type': 'application/json',
          },
          body: `{"hostname":7,"${'x'.repeat(bytes - 19)}":1}`,
        });
      const refused = await send(kib * 1_024 + 1);
      expect(refused).toMatchObject({
        status: 413,
        body: {
          error: 'ERR_VALIDATION',
          details: { body: `must not be larger than ${kib * 1_024} bytes` },
        },
      });
      // Read to its end, and refused for what is in it.
      expect((await send(kib * 1_024)).status).not.toBe(413);
    });

    it('of more than 4 MiB, and lets the client read so that is still sending it', async () => {
      // In a process of its own, as agents are: in this one, client and server never work at the same time.
      const post = `fetch('${server.url}/claim', {
        method: 'POST', body: ' '.repeat(32 * 1024 * 1024),
        headers: ${JSON.stringify({ ...credentialsOf(agent), 'content-type': 'application/json' })},
      }).then(async (answer) => console.log(answer.status, await answer.text()))`;
      const { stdout } = await promisify(execFile)(process.execPath, ['-e', post]);
      expect(stdout).toMatch(/^413 .*"ERR_VALIDATION"/);
    });
  });

  describe('paths and methods', () => {
    it.each([
      ['GET', '/nowhere'],
      ['POST', '/v1/agents/nowhere/at/all'],
      ['GET', '/v1'],
      ['GET', '/%'],
    ])('%s %s is not there', async (method, path) => {
      const { status, body } = await server.request(method, path);
      expect([400, 404]).toContain(status);
      expect(body).toMatchObject({
        error: expect.stringMatching(/^ERR_(NOT_FOUND|VALIDATION)$/),
        message: expect.any(String),
        retryable: false,
      });
    });

    it('a path that is long is not there either', async () => {
      expect(await server.request('GET', `/${'x'.repeat(5_000)}`)).toMatchObject({
        status: 404,
        body: { error: 'ERR_NOT_FOUND' },
      });
    });

    it.each(['/v1/configs/%00', '/v1/agents?hostname=a%00', '/%00'])('%s is refused', async (path) => {
      expect(await server.operator('GET', path)).toMatchObject({
        status: 400,
        body: { error: 'ERR_VALIDATION', details: { url: expect.any(String) } },
      });
    });

    it.each([
      ['GET', '/claim', 'POST'],
      ['DELETE', '/heartbeat', 'POST'],
      ['POST', '/config', 'GET'],
      ['PUT', '/v1/tasks', 'GET'],
      ['GET', '/v1/agents/claim', 'POST'],
      ['PATCH', '/v1/agents/1', 'GET'],
    ])('%s %s is not allowed, and the answer says what is', async (method, path, allowed) => {
      const answer = await server.request(method, path);
      expect(answer).toMatchObject({
        status: 405,
        body: { error: 'ERR_METHOD_NOT_ALLOWED', retryable: false },
      });
      expect(answer.headers.get('allow')).toContain(allowed);
      expect(answer.headers.get('allow')).not.toContain(method);
    });

    it.each(['abc', '0', '-1', '1.5', '1e3'])('the id %s is refused', async (id) => {
      for (const path of [`/v1/tasks/${id}`, `/v1/agents/${id}`]) {
        const { status, body } = await server.operator('GET', path);
        expect([status, body.error]).toEqual([400, 'ERR_VALIDATION']);
      }
    });

    it.each([
      'limit=0',
      'limit=501',
      'limit=x',
      'limit=1&limit=2',
      'cursor=abc',
      'state=asleep',
      'colour=red',
    ])('the query %s is refused', async (query) => {
      const { status, body } = await server.operator('GET', `/v1/tasks?${query}`);
      expect([status, body.error]).toEqual([400, 'ERR_VALIDATION']);
      expect(Object.keys(body.details)).toEqual([query.split('=')[0]]);
    });
  });

  it.each([
    ['no HTTP at all', 'NOT HTTP AT ALL\r\n\r\n', 400],
    ['no host', 'GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n', 400],
    ['an expectation that nobody meets', 'GET /healthz HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\n\r\n', 417],
    ['headers without end', `GET /healthz HTTP/1.1\r\nHost: a\r\nX: ${'x'.repeat(20_000)}\r\n\r\n`, 431],
    ['a length that lies', 'POST /register HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n', 400],
  ])('answers %s in the envelope too', async (_what, text, status) => {
    const answer = await exchange(server.url, text);
    expect(answer).toMatch(new RegExp(`^HTTP/1\\.1 ${status} `));
    const body = answer.slice(answer.indexOf('{'), answer.lastIndexOf('}') + 1);
    expect(JSON.parse(body)).toMatchObject({ error: 'ERR_VALIDATION', retryable: false });
  });

  it('gives a request 30 s to arrive, its headers no longer than all of it', () => {
    const { headersTimeout, requestTimeout } = server.app.getHttpServer();
    expect([headersTimeout, requestTimeout]).toEqual([10_000, 30_000]);
  });

  it('takes a POST that names a type and has no body, if none is needed', async () => {
    const answer = await server.request('POST', '/v1/tasks/999/cancel', {
      headers: { authorization: `Bearer ${ADMIN_TOKEN}`, 'content-type': 'application/json' },
    });
    expect(answer).toMatchObject({ status: 404, body: { error: 'ERR_NOT_FOUND' } });
  });

  it('does not take a path with a slash too many for the path without', async () => {
    expect(await server.request('GET', '/healthz/')).toMatchObject({
      status: 404,
      body: { error: 'ERR_NOT_FOUND' },
    });
  });

  it.each([['a'.repeat(256)], ['with space'], ['']])('refuses a bad Idempotency-Key (%#)', async (key) => {
    const claimed = await server.agent(
      agent,
      '/claim',
      { capacities: { dns: 1 } },
      { 'idempotency-key': key },
    );
    expect(claimed).toMatchObject({
      status: 400,
      body: { details: { 'idempotency-key': expect.any(String) } },
    });
    const enqueued = await server.operator(
      'POST',
      '/v1/tasks',
      { tasks: [dnsTask()] },
      { 'idempotency-key': key },
    );
    expect(enqueued).toMatchObject({
      status: 400,
      body: { details: { 'idempotency-key': expect.any(String) } },
    });
  });
});
