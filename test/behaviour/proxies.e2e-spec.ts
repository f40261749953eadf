import { Writable } from 'node:stream';
import { createLogger } from '../../src/telemetry/logger';
import { TestClock, TestServer } from '../helpers/harness';

const HOUR_MS = 3_600_000;
const clock = new TestClock();
const servers = new Map<string, ReturnType<typeof start>>();

/** A server that trusts these, each address one call in an hour that needs no credentials, and the addresses in the lines of its log. */
async function start(env: Record<string, string>) {
  let text = '';
  const to = new Writable({
    write(chunk, _encoding, done) {
      text += chunk;
      done();
    },
  });
  const logger = createLogger({ logLevel: 'info' }, to);
  const server = await TestServer.start(
    { QUOTA_PUBLIC: '1/1h,1', LOG_REQUESTS: 'all', ...env },
    { clock, logger },
  );
  /** Those since it was last asked. */
  const addresses = (): string[] => {
    const lines = text.split('\n').filter(Boolean);
    text = '';
    return lines
      .map((line) => JSON.parse(line))
      .filter((line) => line.message === 'request')
      .map((line) => line.address);
  };
  return { server, addresses };
}

/** The server of all the cases that trust the same, after an hour in which nothing happened. */
function trusting(trust: string | undefined): ReturnType<typeof start> {
  clock.advance(HOUR_MS);
  const name = trust ?? '';
  const started = servers.get(name) ?? start(trust === undefined ? {} : { TRUST_PROXY: trust });
  servers.set(name, started);
  return started;
}

afterAll(async () => {
  for (const started of servers.values()) await (await started).server.stop();
});

/** Calls a path that nobody serves, which an address may once an hour. */
const call = async (server: TestServer, forwarded?: string) =>
  (
    await server.request('GET', '/nobody-serves-this', {
      headers: forwarded === undefined ? {} : { 'x-forwarded-for': forwarded },
    })
  ).status;

/** The test's own connections come from 127.0.0.1. */
const CASES: [what: string, trust: string | undefined, forwarded: string, address: string][] = [
  ['nobody is trusted', undefined, '192.0.2.1', '127.0.0.1'],
  ['the peer is not trusted', '10.0.0.0/8,::1', '192.0.2.1', '127.0.0.1'],
  ['the peer is not trusted, and names one that is', '10.0.0.0/8', '192.0.2.1, 10.0.0.1', '127.0.0.1'],
  ['one proxy', '127.0.0.1', '192.0.2.1', '192.0.2.1'],
  ['one proxy, and what the client forged', '127.0.0.0/8', '198.51.100.1, 192.0.2.1', '192.0.2.1'],
  ['several proxies', '127.0.0.1,10.0.0.0/8', '192.0.2.1, 10.1.2.3,10.0.0.1', '192.0.2.1'],
  ['several, and what was forged', '127.0.0.1,10.0.0.0/8', '10.9.9.9, 192.0.2.1, 10.1.2.3', '192.0.2.1'],
  ['a stranger between them', '127.0.0.1,10.0.0.0/8', '10.9.9.9, 192.0.2.1, 10.1.2.3, 11.0.0.1', '11.0.0.1'],
  ['only proxies', '127.0.0.1,10.0.0.0/8', '10.1.2.3, 10.0.0.1', '10.1.2.3'],
  ['IPv6', '127.0.0.1,2001:db8::/32', '2001:db9::7, 2001:db8::1', '2001:db9::7'],
  ['a proxy as IPv4 in IPv6', '127.0.0.1,10.0.0.0/8', '192.0.2.1, ::ffff:10.0.0.1', '192.0.2.1'],
  ['a range as IPv4 in IPv6', '127.0.0.1,::ffff:10.0.0.0/104', '192.0.2.1, 10.0.0.1', '192.0.2.1'],
  ['a client as IPv4 in IPv6', '127.0.0.1', '::ffff:192.0.2.1', '::ffff:192.0.2.1'],
  ['garbage', '127.0.0.1', 'garbage', '127.0.0.1'],
  ['garbage before a proxy', '127.0.0.1,10.0.0.0/8', 'unknown, 10.0.0.1', '10.0.0.1'],
  ['garbage before the client', '127.0.0.1', "'; DROP TABLE agents, 192.0.2.1", '192.0.2.1'],
  ['garbage instead of a proxy', '127.0.0.1,10.0.0.0/8', '192.0.2.1, 10.0.0.300, 10.0.0.1', '10.0.0.1'],
  ['nothing but commas', '127.0.0.1', ' , ,,', '127.0.0.1'],
  ['a port', '127.0.0.1', '192.0.2.1:4711', '127.0.0.1'],
  ['octets that some read as octal', '127.0.0.1', '0177.0.0.1', '127.0.0.1'],
  ['a number', '127.0.0.1', '3221225985', '127.0.0.1'],
  ['a great deal', '127.0.0.1', 'x'.repeat(4_000), '127.0.0.1'],
];

describe('the address that a request counts for', () => {
  it.each(CASES)('with %s', async (_what, trust, forwarded, address) => {
    const { server, addresses } = await trusting(trust);
    addresses();
    expect(await call(server, forwarded)).toBe(404);
    // The same caller, by whatever it is called.
    expect(await call(server, forwarded)).toBe(429);
    expect(addresses()).toEqual([address, address]);
    const believed = trust?.includes('127.0.0.') ?? false;
    expect(await call(server)).toBe(address === '127.0.0.1' ? 429 : 404);
    if (believed) expect(await call(server, address)).toBe(429);
  });

  it.each([
    ['::ffff:10.0.0.1', '10.0.0.0/8', '192.0.2.1'],
    ['::ffff:a00:1', '10.0.0.0/8', '192.0.2.1'],
    ['::ffff:11.0.0.1', '10.0.0.0/8', '::ffff:11.0.0.1'],
    ['2001:db8::1', '2001:db8::/64', '192.0.2.1'],
    ['2001:db8:0:1::1', '2001:db8::/64', '2001:db8:0:1::1'],
    ['::1', '::1', '192.0.2.1'],
    ['fe80::1%eth0', '10.0.0.0/8', 'fe80::1%eth0'],
  ])('where the peer is %s and %s is trusted', async (remoteAddress, trust, address) => {
    const { server, addresses } = await trusting(trust);
    addresses();
    await server.app.inject({ url: '/v1/tasks', remoteAddress, headers: { 'x-forwarded-for': '192.0.2.1' } });
    expect(addresses()).toEqual([address]);
  });

  it('is the same after a claim has waited', async () => {
    const { server, addresses } = await trusting('127.0.0.1');
    const agent = await server.register('waits');
    addresses();
    const claim = { capacities: { dns: 1 }, wait_ms: 30 };
    const answer = await server.agent(agent, '/claim', claim, { 'x-forwarded-for': '192.0.2.44' });
    expect(answer.body).toEqual({ leases: [] });
    expect(addresses()).toEqual(['192.0.2.44']);
  });

  it('is that of registrations without a hostname too', async () => {
    const { server } = await start({
      QUOTA_PUBLIC: 'off',
      QUOTA_REGISTER: '1/1h,1',
      TRUST_PROXY: '127.0.0.1',
    });
    const from = async (address: string) =>
      (await server.request('POST', '/register', { headers: { 'x-forwarded-for': address }, body: {} }))
        .status;
    try {
      expect(await from('198.51.100.1, 192.0.2.1')).toBe(200);
      expect(await from('198.51.100.2, 192.0.2.1')).toBe(429);
      expect(await from('::ffff:192.0.2.1')).toBe(429);
      expect(await from('192.0.2.2')).toBe(200);
      // What is no address is the proxy, however it is spelt.
      expect(await from('garbage')).toBe(200);
      expect(await from('other garbage')).toBe(429);
    } finally {
      await server.stop();
    }
  });

  it.each([
    '10.0.0.0/33',
    '10.0.0.0/',
    '10.0.0/8',
    'localhost',
    'loopback',
    'true',
    '1',
    '2001:db8::/129',
    ',',
  ])('can not be left to %s', async (trust) => {
    await expect(start({ TRUST_PROXY: trust })).rejects.toThrow('CONTROL_PLANE_TRUST_PROXY must be');
  });
});
