import { credentialsOf, exchange, TestServer } from '../helpers/harness';

const API = {
  'content-security-policy': "default-src 'none';frame-ancestors 'none'",
  'x-content-type-options': 'nosniff',
  'x-frame-options': 'DENY',
  'referrer-policy': 'no-referrer',
  'cross-origin-resource-policy': 'same-origin',
};
const NEVER = ['server', 'x-powered-by', 'strict-transport-security'];

describe('the headers of an answer', () => {
  let server: TestServer;
  beforeAll(async () => {
    server = await TestServer.start({ MAX_WAITING_CLAIMS: '0' });
  });
  afterAll(() => server.stop());

  it('let nothing of it be run, framed, guessed at or kept, whatever the status', async () => {
    const agent = await server.register('probe-1');
    const claim = {
      headers: credentialsOf(agent),
      body: { agent_id: 1, capacities: { dns: 1 }, wait_ms: 5_000 },
    };
    const calls: [status: number, method: string, path: string, call?: object][] = [
      [200, 'POST', '/register', { body: {} }],
      [200, 'POST', '/heartbeat', { headers: credentialsOf(agent), body: { agent_id: agent.agent_id } }],
      [200, 'GET', '/healthz'],
      [200, 'GET', '/.well-known/jwks.json'],
      [400, 'POST', '/register', { body: '{' }],
      // Refused before there is a route: by its path, and by the router.
      [400, 'GET', '/v1/tasks/%zz'],
      [401, 'GET', '/v1/tasks'],
      [401, 'POST', '/claim', { body: {} }],
      [404, 'GET', '/nowhere'],
      [404, 'GET', '/docsy'],
      [405, 'DELETE', '/claim'],
      [413, 'POST', '/register', { body: `"${'x'.repeat(4 * 1024 * 1024)}"` }],
      [415, 'POST', '/register', { headers: { 'content-type': 'text/plain' }, body: 'x' }],
      [503, 'POST', '/claim', claim],
    ];
    for (const [status, method, path, call] of calls) {
      const answer = await server.request(method, path, call);
      const headers = Object.fromEntries(answer.headers);
      expect([path, answer.status, headers]).toEqual([
        path,
        status,
        expect.objectContaining({ ...API, 'cache-control': 'no-store' }),
      ]);
      for (const name of NEVER) expect(headers).not.toHaveProperty(name);
    }
  });

  it('let a configuration be kept, which has its entity tag', async () => {
    const agent = await server.register('probe-2');
    await server.operator('POST', '/v1/configs', { config: { resolvers: [] } });
    for (const [status, ifNoneMatch] of [
      [200, '""'],
      [304, '*'],
    ] as const) {
      const answer = await server.request('GET', '/config', {
        headers: { ...credentialsOf(agent), 'if-none-match': ifNoneMatch },
      });
      expect([answer.status, Object.fromEntries(answer.headers)]).toEqual([
        status,
        expect.objectContaining({ ...API, 'cache-control': 'private, no-cache' }),
      ]);
    }
  });

  it.each([
    ['no HTTP at all', 'NOT HTTP AT ALL\r\n\r\n', 400],
    ['an expectation that nobody meets', 'GET /healthz HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\n\r\n', 417],
    ['headers without end', `GET /healthz HTTP/1.1\r\nHost: a\r\nX: ${'x'.repeat(20_000)}\r\n\r\n`, 431],
  ])('are the same where the request is %s', async (_what, text, status) => {
    const answer = await exchange(server.url, text);
    const [line, ...rest] = answer.slice(0, answer.indexOf('\r\n\r\n')).split('\r\n');
    expect(line).toContain(` ${status} `);
    const headers = Object.fromEntries(
      rest.map((header) => [
        header.slice(0, header.indexOf(':')).toLowerCase(),
        header.slice(header.indexOf(':') + 2),
      ]),
    );
    expect(headers).toMatchObject({ ...API, 'cache-control': 'no-store' });
    for (const name of NEVER) expect(headers).not.toHaveProperty(name);
  });

  it('let the page of the documentation run, without TLS too', async () => {
    const page = await server.request('GET', '/docs');
    const assets = [...page.body.matchAll(/(?:src|href)="([^"]+)"/g)].map(
      ([, path]) => new URL(path, `${server.url}/docs`).pathname,
    );
    expect(assets.length).toBeGreaterThan(2);
    for (const path of ['/docs', '/docs-json', '/docs-yaml', ...assets]) {
      const answer = await server.request('GET', path);
      expect([path, answer.status, answer.headers.get('x-content-type-options')]).toEqual([
        path,
        200,
        'nosniff',
      ]);
      const policy = answer.headers.get('content-security-policy') as string;
      expect(policy.split(';').sort()).toEqual([
        "default-src 'self'",
        "frame-ancestors 'none'",
        "img-src 'self' data:",
        "object-src 'none'",
        "style-src 'self' 'unsafe-inline'",
      ]);
      for (const name of NEVER) expect(answer.headers.has(name)).toBe(false);
    }
  });
});
