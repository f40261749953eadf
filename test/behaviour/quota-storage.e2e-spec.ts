import { getStorageToken, type ThrottlerStorage } from '@nestjs/throttler';
import { QuotaStorage } from '../../src/access/quota-storage';
import { ADMIN_TOKEN, type Credentials, credentialsOf, TestClock, TestServer } from '../helpers/harness';

const NAMES = [
  'REGISTER',
  'HEARTBEAT',
  'CLAIM',
  'EXTEND',
  'REPORT',
  'METRICS',
  'CONFIG',
  'PUBLIC',
  'OPERATOR',
];
const ALL_ON = {
  ...Object.fromEntries(NAMES.map((name) => [`QUOTA_${name}`, 'default'])),
  ...{ REGISTER_PER_IP: 'default', REGISTER_TOTAL: 'default', TRUST_PROXY: '127.0.0.1' },
};
/** A client of the proxy that this machine is: the quota of health checks is not for proxies themselves. */
const FROM = { 'x-forwarded-for': '192.0.2.1' };

type Call = Parameters<ThrottlerStorage['increment']>;

describe('the storage of @nestjs/throttler', () => {
  let server: TestServer;
  let storage: QuotaStorage;
  let agent: Credentials;
  let operations: { path: string; method: string; quota: string; headers: Record<string, string> }[];

  beforeAll(async () => {
    server = await TestServer.start(ALL_ON, { clock: new TestClock() });
    storage = server.app.get(getStorageToken(), { strict: false });
    agent = await server.register('a');
    const { body: document } = await server.request('GET', '/docs-json');
    operations = Object.entries<Record<string, { security?: object[] }>>(document.paths).flatMap(
      ([path, item]) =>
        Object.entries(item).map(([method, { security = [] }]) => {
          const schemes = security.flatMap((scheme) => Object.keys(scheme));
          return {
            path: path.replaceAll(/\{\w+\}/g, '1'),
            method: method.toUpperCase(),
            ...(schemes.includes('agentId') && !path.endsWith('/register')
              ? { quota: path.split('/').pop() as string, headers: credentialsOf(agent) }
              : schemes.includes('operator')
                ? { quota: 'operator', headers: { authorization: `Bearer ${ADMIN_TOKEN}` } }
                : { quota: publicQuota(path), headers: FROM }),
          };
        }),
    );
  });
  afterAll(() => server.stop());
  afterEach(() => jest.restoreAllMocks());

  const publicQuota = (path: string): string => {
    if (path.endsWith('/register')) return 'register-per-ip';
    return ['/healthz', '/livez', '/readyz'].includes(path) ? 'health' : 'public';
  };

  /** Has the storage answer so to every request. @returns what it was asked */
  function answer(isBlocked: boolean): Call[] {
    const calls: Call[] = [];
    jest.spyOn(storage, 'increment').mockImplementation(async (...call) => {
      calls.push(call as unknown as Call);
      const totalHits = isBlocked ? call[2] + 1 : call[2];
      return { totalHits, timeToExpire: 7, isBlocked, timeToBlockExpire: isBlocked ? 7 : 0 };
    });
    return calls;
  }

  it('is ours, by the token that Nest injects it by', () => {
    expect(storage).toBeInstanceOf(QuotaStorage);
  });

  it('decides about every route there is, once, before the body is read', async () => {
    const calls = answer(true);
    expect(operations.length).toBeGreaterThan(50);
    for (const { path, method, quota, headers } of operations) {
      calls.length = 0;
      const body = method === 'GET' || method === 'DELETE' ? {} : { body: '{' };
      const {
        status,
        headers: answered,
        body: error,
      } = await server.request(method, path, { headers, ...body });
      const name = `${method} ${path}`;
      expect([name, status, error.error]).toEqual([name, 429, 'ERR_RATE_LIMITED']);
      expect([name, error.details]).toEqual([name, { quota }]);
      expect([name, answered.get('retry-after')]).toEqual([name, '7']);
      expect([name, answered.get('ratelimit')]).toEqual([name, `"${quota}";r=0;t=7`]);
      expect([name, calls.map(([, , , , throttler]) => throttler)]).toEqual([name, [quota]]);
    }
  });

  it('lets a call in if it says so, and its answer is told', async () => {
    answer(false);
    const { status, headers } = await server.agent(agent, '/heartbeat');
    expect([status, headers.get('ratelimit')]).toEqual([200, '"heartbeat";r=0;t=7']);
    expect(headers.get('ratelimit-policy')).toBe('"heartbeat";q=3;w=30');
  });

  it('is asked by who calls, and by the burst and the time in which that comes back', async () => {
    const calls = answer(false);
    await server.agent(agent, '/claim', { capacities: {} });
    await server.agent(agent, '/v1/agents/claim', { capacities: {} });
    await server.operator('GET', '/v1/agents');
    for (const path of ['/docs-json', '/nobody-serves-this', '/v1/tasks']) await server.request('GET', path);
    const claim = [`agent:${agent.agent_id}:claim`, 30_000, 6, 0, 'claim'];
    const stranger = ['address:127.0.0.1:public', 20_000, 200, 0, 'public'];
    const [first, second, operator, ...strangers] = calls;
    expect([first, second]).toEqual([claim, claim]);
    expect(operator?.[0]).toMatch(/^operator:\d+:operator$/);
    expect(strangers).toEqual([stranger, stranger, stranger]);
  });

  it('is asked by a registration for its address, all callers and its hostname', async () => {
    const calls = answer(false);
    expect(
      (await server.request('POST', '/register', { body: { hostname: 'B' }, headers: FROM })).status,
    ).toBe(200);
    expect(calls.map(([key]) => key)).toEqual([
      'address:192.0.2.1:register-per-ip',
      'all:register-total',
      'host:b:register',
    ]);
  });
});
