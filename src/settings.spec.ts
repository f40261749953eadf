import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { hasPublicRegistration, parseQuota, readSettings, SettingsError } from './settings';

const read = (named: Record<string, string>) =>
  readSettings(
    Object.fromEntries(Object.entries(named).map(([name, value]) => [`CONTROL_PLANE_${name}`, value])),
  );

/** What reading says of a setting that it refuses. */
function refusal(named: Record<string, string>): string {
  try {
    read(named);
  } catch (error) {
    expect(error).toBeInstanceOf(SettingsError);
    return (error as Error).message;
  }
  throw new Error(`${JSON.stringify(named)} was accepted`);
}

const documented = [
  ...(readFileSync(join(__dirname, '..', 'docs', 'control-plane-deploy.md'), 'utf8')
    .split('## Settings')[1]
    ?.split('\n## ')[0]
    ?.matchAll(/^\| `([A-Z_]+)`/gm) ?? []),
].map((match) => match[1] as string);

/** Names whose value is a path or a free text: nearly anything will do. */
const FREE = ['SIGNING_KEY_FILE', 'EXTENSIONS'];

describe('the settings', () => {
  it('have the defaults of the contract', () => {
    expect(read({})).toMatchObject({
      host: '127.0.0.1',
      port: 8080,
      registration: 'open',
      leaseDurationMs: 60_000,
      leaseLifetimeMs: 3_600_000,
      heartbeatTimeoutMs: 45_000,
      metricsRetentionMs: 30 * 86_400_000,
      taskRetentionMs: 30 * 86_400_000,
      registerPerIp: { limit: 600, periodMs: 60_000, burst: 600 },
      failedAuthPerIp: { limit: 30, periodMs: 60_000, burst: 30 },
      publicPerIp: { limit: 600, periodMs: 60_000, burst: 200 },
      operatorQuota: { limit: 1_200, periodMs: 60_000, burst: 300 },
      parseFailures: { limit: 120, periodMs: 60_000, burst: 120 },
      trustProxy: false,
      quotas: {},
    });
    expect(read({}).database).toMatchObject({ path: expect.stringMatching(/\/control-plane\.db$/) });
    expect(Object.isFrozen(read({}))).toBe(true);
  });

  it('are those of the documented table, each known and each checked', () => {
    expect(documented.length).toBeGreaterThan(25);
    const source = readFileSync(join(__dirname, 'settings.ts'), 'utf8');
    const asked = [...source.matchAll(/(?:reader|this)\.\w+\(\s*'([A-Z_]+)'/g)].map(
      (match) => match[1] as string,
    );
    const routes = documented.filter((name) => name.startsWith('QUOTA_'));
    expect([...new Set([...asked, ...routes])].sort()).toEqual([...documented].sort());
    for (const name of documented.filter((one) => !FREE.includes(one))) {
      const value = 'sécret value \u0000';
      const message = refusal({ [name]: value });
      expect(message).toContain(`CONTROL_PLANE_${name} `);
      expect(message).not.toContain(value);
    }
  });

  it('take empty for unset', () => {
    expect(read(Object.fromEntries(documented.map((name) => [name, ''])))).toEqual(read({}));
  });

  it.each([
    ['BIND', ['8080', ':8080', '0.0.0.0', '0.0.0.0:65536', '0.0.0.0:-1', '::1:8080', 'a b:80']],
    [
      'DATABASE_URL',
      ['control-plane.db', 'sqlite:', 'sqlite://', 'sqlite://a?mode=memory', 'mysql://user:password@host/db'],
    ],
    ['METRICS_LABELS', ['name', 'Region', 'a,a', 'a,b,c,d', 'a-b', '1a']],
    ['METRICS_PUBLIC', ['yes', '1']],
    ['POOL_SIZE', ['0', '-1', '1.5', '1e3', '0x10', ' 5', '1001']],
    ['MIGRATE_ON_START', ['yes', '1', 'TRUE']],
    ['ADMIN_TOKEN', ['x'.repeat(23), 'x'.repeat(513), `${'x'.repeat(30)} `, `${'x'.repeat(30)}é`]],
    ['ENROLLMENT_TOKENS', ['short', `${'x'.repeat(24)},`, `${'x'.repeat(24)},short`]],
    ['LEASE_DURATION_MS', ['999', '86400001', '60s']],
    ['LEASE_LIFETIME_MS', ['59999']],
    ['RETRY_BACKOFF_MAX_MS', ['999']],
    [
      'QUOTA_HEARTBEAT',
      [
        '6',
        '6/1m',
        '6/1m,',
        '0/1m,3',
        '6/0m,3',
        '6/1m,0',
        '6/1w,3',
        '6/1m,3,off',
        'OFF',
        '1/999999d,999999999',
      ],
    ],
    [
      'TRUST_PROXY',
      ['true', '*', 'proxy.example.com', '10.0.0.0/33', '10.0.0.0/', '::1/129', '10.0.0.0/8,,'],
    ],
    ['EXTENSIONS', [',', 'a,,b', 'a,a']],
    ['LOG_LEVEL', ['verbose', 'INFO']],
    ['LOG_REQUESTS', ['none', 'ALL']],
    ['DRAIN_MS', ['-1', '8001', '600001', '3s']],
  ])('refuse %s where it can not be meant', (name, values) => {
    for (const value of values)
      expect([value, refusal({ [name]: value })]).toEqual([value, expect.stringContaining(name)]);
  });

  it.each([
    [{ BIND: '[::1]:0' }, { host: '::1', port: 0 }],
    [{ BIND: 'localhost:80' }, { host: 'localhost', port: 80 }],
    [{ DATABASE_URL: 'sqlite:///var/lib/x.db' }, { database: { type: 'sqlite', path: '/var/lib/x.db' } }],
    [{ DATABASE_URL: 'sqlite::memory:' }, { database: { type: 'sqlite', path: ':memory:' } }],
    [{ LEASE_DURATION_MS: '7200000' }, { leaseDurationMs: 7_200_000, leaseLifetimeMs: 7_200_000 }],
    [{ QUOTA_CLAIM: 'off' }, { quotas: { claim: null } }],
    [{ QUOTA_CONFIG: '6/h,2' }, { quotas: { config: { limit: 6, periodMs: 3_600_000, burst: 2 } } }],
    [{ REGISTER_PER_IP: 'off' }, { registerPerIp: null }],
    [{}, { logRequests: 'errors', shutdownTimeoutMs: 9_000, drainMs: 3_000 }],
    [{ DRAIN_MS: '8000' }, { drainMs: 8_000 }],
    [{ DRAIN_MS: '0' }, { drainMs: 0 }],
    // The default never prevents a short stop.
    [{ SHUTDOWN_TIMEOUT_MS: '1000' }, { drainMs: 0 }],
    [{ SHUTDOWN_TIMEOUT_MS: '2500' }, { drainMs: 1_500 }],
  ] as [Record<string, string>, object][])('take %j', (named, wanted) => {
    expect(read(named)).toMatchObject(wanted);
  });

  it('trust the proxies that are named, and nobody else', () => {
    const trusts = read({ TRUST_PROXY: '10.0.0.0/8, 192.0.2.7, fd00::/8' }).trustProxy as (
      address: string,
    ) => boolean;
    const verdicts = ['10.1.2.3', '192.0.2.7', 'fd12::1', '11.0.0.1', '192.0.2.8', '::1', 'unix', ''].map(
      trusts,
    );
    expect(verdicts).toEqual([true, true, true, false, false, false, false, false]);
  });

  it('name what is unknown, and leave what is meant for tests alone', () => {
    expect(refusal({ DATABSE_URL: 'sqlite://x.db' })).toContain('CONTROL_PLANE_DATABSE_URL');
    expect(() => read({ TEST_POSTGRES_URL: 'postgres://somewhere' })).not.toThrow();
  });
});

describe('open registration', () => {
  it.each([
    ['127.0.0.1:8080', false],
    ['127.1.2.3:1', false],
    ['localhost:8080', false],
    ['[::1]:8080', false],
    ['[::ffff:127.0.0.1]:8080', false],
    ['0.0.0.0:8080', true],
    ['[::]:8080', true],
    ['192.0.2.7:8080', true],
    ['plane.example.com:8080', true],
  ])('at %s is open to strangers: %s', (BIND, open) => {
    expect(hasPublicRegistration(read({ BIND }))).toBe(open);
    expect(hasPublicRegistration(read({ BIND, REGISTRATION: 'token' }))).toBe(false);
  });
});

describe('a quota', () => {
  it.each([
    ['6/1m,3', { limit: 6, periodMs: 60_000, burst: 3 }],
    ['1/10m,1', { limit: 1, periodMs: 600_000, burst: 1 }],
    ['12/minute,6', { limit: 12, periodMs: 60_000, burst: 6 }],
    ['5/d,1', { limit: 5, periodMs: 86_400_000, burst: 1 }],
    ['', undefined],
    ['6/1m', undefined],
    ['1/1minutes,1', undefined],
  ])('%s', (text, quota) => {
    expect(parseQuota(text)).toEqual(quota);
  });

  it('ignore what is set for the original control plane, and say so', () => {
    const settings = readSettings({ CONTROL_PLANE_BASE_URL: 'http://127.0.0.1:8088/v1/agents' });
    expect(settings.ignored).toEqual(['CONTROL_PLANE_BASE_URL']);
    expect(readSettings({}).ignored).toEqual([]);
    expect(() => readSettings({ CONTROL_PLANE_BASE_URI: '' })).toThrow(
      /CONTROL_PLANE_BASE_URI is not a setting/,
    );
  });
});
