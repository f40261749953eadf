import { generateKeyPairSync } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Json } from '../helpers/api';
import { type Answer, type Credentials, credentialsOf, TestClock, TestServer } from '../helpers/harness';
import { type Ended, endAll, Program } from '../helpers/processes';

const ROOT = join(__dirname, '../..');
const DAY_S = 86_400;

let clock: TestClock;
let server: TestServer;

const start = async () => {
  clock = new TestClock();
  server = await TestServer.start({}, { clock });
};
const stop = () => server.stop();

const operator = (method: string, path: string, body?: unknown, headers?: Record<string, string>) =>
  server.operator(method, `/v1/configs${path}`, body, headers);

/** Publishes, and gives the bundle. */
async function publish(config: object, expires_in?: number): Promise<Json> {
  const { status, body } = await operator('POST', '', { config, expires_in });
  expect([status, body]).toEqual([201, expect.objectContaining({ config })]);
  return body;
}

const fetched = async (agent: Credentials): Promise<Answer> =>
  server.request('GET', '/config', { headers: credentialsOf(agent) });

/** What there is of published configuration. */
const stored = () => server.rows<{ seq: number }>('SELECT seq FROM agent_configs ORDER BY seq');

describe('publishing', () => {
  beforeEach(start);
  afterEach(stop);

  test('puts the answered bundle in force', async () => {
    const agent = await server.register();
    const bundle = await publish({ resolvers: ['192.0.2.53'] });
    expect(bundle).toMatchObject({
      seq: 1,
      issued_at: '2026-01-01T00:00:00.000Z',
      expires_at: '2026-01-31T00:00:00.000Z',
    });
    expect((await fetched(agent)).body).toEqual(bundle);
  });

  test('takes how long it is good for in seconds, from a minute to five years', async () => {
    expect((await publish({}, 60)).expires_at).toBe('2026-01-01T00:01:00.000Z');
    expect((await publish({}, 5 * 365 * DAY_S)).expires_at).toBe('2030-12-31T00:00:00.000Z');
    expect((await operator('POST', '', { config: {}, expires_in: null })).body.expires_at).toBe(
      '2026-01-31T00:00:00.000Z',
    );
    for (const expires_in of [59, 5 * 365 * DAY_S + 1, 60.5, -60, '3600', '30d', [60], true]) {
      const { status, body } = await operator('POST', '', { config: {}, expires_in });
      expect([expires_in, status, body.details]).toEqual([
        expires_in,
        400,
        { expires_in: expect.any(String) },
      ]);
    }
    expect(await stored()).toHaveLength(3);
  });

  test('twice under one Idempotency-Key is once, however the fields are ordered', async () => {
    const key = { 'idempotency-key': 'rollout-7' };
    const first = await operator('POST', '', { config: { a: 1, b: 2 }, expires_in: 60 }, key);
    await publish({ version: 2 });
    clock.advance(120_000);
    const again = await operator('POST', '', '{"expires_in":60,"config":{"b":2,"a":1}}', {
      ...key,
      'content-type': 'application/json',
    });
    expect([again.status, again.body]).toEqual([201, first.body]);
    const together = await Promise.all(
      Array.from({ length: 4 }, () => operator('POST', '', { config: {} }, { 'idempotency-key': 'at-once' })),
    );
    expect(new Set(together.map(({ body }) => body.seq))).toEqual(new Set([3]));
    expect(await stored()).toHaveLength(3);
    for (const body of [{ config: { a: 1, b: 3 }, expires_in: 60 }, { config: { a: 1, b: 2 } }])
      expect(await operator('POST', '', body, key)).toMatchObject({
        status: 409,
        body: { error: 'ERR_CONFLICT', retryable: false },
      });
    expect((await operator('POST', '', { config: {} }, { 'idempotency-key': 'with space' })).status).toBe(
      400,
    );
    expect(await stored()).toHaveLength(3);
  });

  test('many times at once gives each a seq of its own, in the order they are stored', async () => {
    const bundles = await Promise.all(Array.from({ length: 6 }, (_, version) => publish({ version })));
    expect(bundles.map(({ seq }) => seq).sort()).toEqual([1, 2, 3, 4, 5, 6]);
    const { items } = (await operator('GET', '')).body;
    expect(items.map(({ seq, in_force }: Json) => [seq, in_force])).toEqual([
      [6, true],
      ...[5, 4, 3, 2, 1].map((seq) => [seq, false]),
    ]);
    expect(items[0].revision).toBe(bundles.find(({ seq }) => seq === 6).revision);
  });

  test('that can not be stored leaves nothing, neither bundle nor key', async () => {
    const agent = await server.register();
    const { revision } = await publish({ version: 1 });
    const key = { 'idempotency-key': 'k' };
    await server.forbid('INSERT', 'idempotency_keys');
    expect((await operator('POST', '', { config: { version: 2 } }, key)).status).toBe(500);
    expect(await stored()).toHaveLength(1);
    expect((await fetched(agent)).body.revision).toBe(revision);
    expect((await server.agent(agent, '/heartbeat')).body.config_revision).toBe(revision);
    await server.allow();
    expect((await operator('POST', '', { config: { version: 2 } }, key)).body.seq).toBe(2);
  });
});

// Nothing of this is stored, so one server will do.
describe('what is published', () => {
  let before: { revision: string };
  beforeAll(async () => {
    await start();
    before = await publish({ version: 1 });
  });
  afterAll(stop);

  test.each<[string, unknown, string]>([
    ['an integer that doubles can not hold', '{"config":{"a":[{"b":9007199254740993}]}}', 'config.a.0.b'],
    ['a very large number', '{"config":{"a":1e300}}', 'config.a'],
    ['a number that overflows', '{"config":{"a":1e999}}', 'config.a'],
    ['half a surrogate pair', '{"config":{"a":"\\ud83d"}}', 'config.a'],
    ['half a surrogate pair in a name', '{"config":{"a":{"\\udc00":1}}}', 'config.a.\ufffd'],
    ['a name twice', '{"config":{"a":{"b":1,"b":1}}}', 'config.a.b'],
    ['63 levels', `{"config":${'{"a":'.repeat(63)}{}${'}'.repeat(63)}}`, 'body'],
    ['more than a mebibyte', { config: { a: 'x'.repeat(1_048_576) } }, 'config'],
    ['a list', { config: [] }, 'config'],
    ['a text', { config: '{}' }, 'config'],
    ['null', { config: null }, 'config'],
    ['nothing', {}, 'config'],
    ['another field', { config: {}, expires_at: '2027-01-01T00:00:00Z' }, 'expires_at'],
  ])('is not %s, and the answer names where', async (_, body, field) => {
    const refused = await operator('POST', '', body);
    expect(refused.status).toBe(400);
    expect(refused.body).toMatchObject({ error: 'ERR_VALIDATION', details: { [field]: expect.any(String) } });
    expect((await operator('GET', '')).body.items).toMatchObject([
      { revision: before.revision, in_force: true },
    ]);
    expect(await stored()).toHaveLength(1);
  });
});

describe('the audit log', () => {
  beforeEach(start);
  afterEach(stop);

  test('tells what was published, its author and its address, and nothing of what was refused', async () => {
    const first = await publish({ secret: 'not for the log' }, 60);
    const key = { 'idempotency-key': 'back' };
    const { body: back } = await operator('POST', `/${first.revision}/rollback`, {}, key);
    await operator('POST', `/${first.revision}/rollback`, {}, key);
    await operator('POST', '', { config: { a: 1e300 } });
    await operator('POST', '/0123456789abcdef/rollback');
    const before = await server.operator('GET', '/v1/audit');
    const entries = before.body.items.filter(({ action }) => action.startsWith('config.'));
    expect(entries).toMatchObject([
      {
        action: 'config.rollback',
        subject: `config/${back.revision}`,
        operator_token_id: expect.any(Number),
        after: { seq: 2, expires_at: back.expires_at, from: first.revision },
      },
      {
        action: 'config.publish',
        subject: `config/${first.revision}`,
        before: null,
        after: { seq: 1, expires_at: first.expires_at },
      },
    ]);
    expect(JSON.stringify(entries)).not.toContain('not for the log');
  });
});

describe('reading', () => {
  beforeEach(start);
  afterEach(stop);

  test('pages newest first, without the content', async () => {
    for (let version = 1; version <= 5; version++) await publish({ version });
    const seqs: number[] = [];
    let cursor = '';
    for (let page = 0; page < 3; page++) {
      const { body } = await operator('GET', `?limit=2${cursor}`);
      seqs.push(...body.items.map(({ seq }: Json) => seq));
      for (const item of body.items) {
        expect(item).not.toHaveProperty('config');
        expect(item).not.toHaveProperty('signature');
      }
      cursor = `&cursor=${body.next_cursor}`;
    }
    expect(seqs).toEqual([5, 4, 3, 2, 1]);
    expect(cursor).toBe('&cursor=null');
    for (const query of ['?limit=0', '?cursor=x', '?revision=1'])
      expect((await operator('GET', query)).status).toBe(400);
  });

  test('shows one whole, and whether it is in force', async () => {
    const first = await publish({ version: 1 });
    const second = await publish({ version: 2 }, 60);
    const shown = async ({ revision }: Json) => (await operator('GET', `/${revision}`)).body;
    const { jwks } = { jwks: (await server.request('GET', '/.well-known/jwks.json')).body.keys };
    expect(await shown(first)).toEqual({
      ...first,
      kid: jwks[0].kid,
      in_force: false,
      rollout: { applied: 0, failed: 0, in_service: 0 },
    });
    expect((await shown(second)).in_force).toBe(true);
    clock.advance(60_000);
    expect((await shown(second)).in_force).toBe(false);
    expect((await shown(first)).in_force).toBe(false);
  });

  test('compares one with the one before', async () => {
    const first = await publish({ resolvers: ['192.0.2.1'], limits: { dns: 5 } });
    const second = await publish({ resolvers: ['192.0.2.0', '192.0.2.1'], limits: {}, 'a/b': null });
    const diff = async ({ revision }: Json) => (await operator('GET', `/${revision}/diff`)).body;
    expect(await diff(first)).toEqual({
      revision: first.revision,
      previous_revision: null,
      changes: [
        { op: 'add', path: '/limits', value: { dns: 5 } },
        { op: 'add', path: '/resolvers', value: ['192.0.2.1'] },
      ],
    });
    expect(await diff(second)).toEqual({
      revision: second.revision,
      previous_revision: first.revision,
      changes: [
        { op: 'remove', path: '/limits/dns' },
        { op: 'add', path: '/resolvers/0', value: '192.0.2.0' },
        { op: 'add', path: '/a~1b', value: null },
      ],
    });
    expect((await diff(await publish(second.config))).changes).toEqual([]);
  });

  test('of a revision that there is not is 404', async () => {
    await publish({});
    for (const revision of ['0123456789abcdef', '1', 'x'.repeat(90)])
      for (const [method, path] of [
        ['GET', ''],
        ['GET', '/diff'],
        ['POST', '/rollback'],
      ] as const)
        expect(await operator(method, `/${revision}${path}`)).toMatchObject({
          status: 404,
          body: { error: 'ERR_NOT_FOUND', retryable: false },
        });
  });
});

describe('rolling back', () => {
  beforeEach(start);
  afterEach(stop);

  test('publishes the old content under a new revision and a higher seq', async () => {
    const agent = await server.register();
    const first = await publish({ version: 1 }, 60);
    await publish({ version: 2 });
    clock.advance(3_600_000);
    const { status, body } = await operator('POST', `/${first.revision}/rollback`);
    expect(status).toBe(201);
    expect(body).toMatchObject({
      seq: 3,
      config: { version: 1 },
      issued_at: '2026-01-01T01:00:00.000Z',
      expires_at: '2026-01-31T01:00:00.000Z',
    });
    expect(body.revision).not.toBe(first.revision);
    expect((await fetched(agent)).body).toEqual(body);
    expect((await operator('POST', `/${first.revision}/rollback`, { expires_in: 60 })).body).toMatchObject({
      seq: 4,
      expires_at: '2026-01-01T01:01:00.000Z',
    });
  });

  test('twice under one key is once; what is wrong is refused', async () => {
    const first = await publish({ version: 1 });
    const second = await publish({ version: 2 });
    const key = { 'idempotency-key': 'back' };
    const rolled = await operator('POST', `/${first.revision}/rollback`, undefined, key);
    expect((await operator('POST', `/${first.revision}/rollback`, {}, key)).body).toEqual(rolled.body);
    expect((await operator('POST', `/${second.revision}/rollback`, undefined, key)).status).toBe(409);
    expect((await operator('POST', '', { config: { version: 1 } }, key)).status).toBe(409);
    for (const body of [{ expires_in: 0 }, { config: {} }, []])
      expect((await operator('POST', `/${first.revision}/rollback`, body)).status).toBe(400);
    expect(await stored()).toHaveLength(3);
  });
});

const beat = (agent: Credentials, fields: object = {}) => server.agent(agent, '/heartbeat', fields);
const configOf = async ({ agent_id }: Credentials) =>
  (await server.operator('GET', `/v1/agents/${agent_id}`)).body.config;

describe('a roll-out', () => {
  beforeEach(start);
  afterEach(stop);

  const rolloutOf = async (revision: string) => (await operator('GET', `/${revision}`)).body.rollout;

  test('shows at each agent and is counted at each revision', async () => {
    const agents: Credentials[] = [];
    for (let i = 0; i < 5; i++) agents.push(await server.register());
    const [a, b, c, d] = agents as [Credentials, Credentials, Credentials, Credentials];
    const old = await publish({ version: 1 });
    await beat(c, { config_revision: old.revision, config_status: 'applied' });
    const { revision } = await publish({ version: 2 });
    const applied = { config_revision: revision, config_status: 'applied' };
    await beat(a, applied);
    clock.advance(1_000);
    await beat(b, { ...applied, config_status: 'failed', config_message: 'no such resolver' });
    await beat(d, applied);
    expect(await rolloutOf(revision)).toEqual({ applied: 2, failed: 1, in_service: 5 });
    const { items } = (await operator('GET', '')).body;
    expect(items.map(({ rollout }: Json) => rollout)).toEqual([
      { applied: 2, failed: 1, in_service: 5 },
      { applied: 1, failed: 0, in_service: 5 },
    ]);
    expect(await configOf(b)).toEqual({
      revision,
      status: 'failed',
      message: 'no such resolver',
      reported_at: '2026-01-01T00:00:01.000Z',
    });
    const listed = (await server.operator('GET', '/v1/agents')).body.items;
    expect(listed.map(({ config }) => config?.status ?? null)).toEqual([
      null,
      'applied',
      'applied',
      'failed',
      'applied',
    ]);

    // An agent that changes its mind is counted once, one that is out of service not at all.
    await beat(b, applied);
    expect(await configOf(b)).toMatchObject({ status: 'applied', message: null });
    await beat(c, applied);
    await server.operator('POST', `/v1/agents/${d.agent_id}/disable`);
    await server.operator('DELETE', `/v1/agents/${a.agent_id}`);
    expect(await rolloutOf(revision)).toEqual({ applied: 2, failed: 0, in_service: 3 });
    expect(await rolloutOf(old.revision)).toEqual({ applied: 0, failed: 0, in_service: 3 });
  });

  test('is told with each heartbeat and written where it is new, also by many at once and after a restart', async () => {
    const agents = await Promise.all(Array.from({ length: 20 }, () => server.register()));
    const report = { config_revision: 'one-of-before', config_status: 'applied' };
    await Promise.all(agents.map((agent) => beat(agent, report)));
    const states = () => server.rows('SELECT * FROM agent_config_states ORDER BY agent_id');
    const before = await states();
    expect(before).toHaveLength(20);
    clock.advance(1_000);
    // Known to memory: the table is not even asked.
    await server.forbid('INSERT', 'agent_config_states');
    for (const { status } of await Promise.all(agents.map((agent) => beat(agent, report))))
      expect(status).toBe(200);
    await server.allow();
    // Known to the table only: nothing is written.
    await server.forbid('UPDATE', 'agent_config_states');
    const { folder } = server;
    await server.stop({ keep: true });
    server = await TestServer.start({}, { clock, folder });
    for (const { status } of await Promise.all(agents.map((agent) => beat(agent, report))))
      expect(status).toBe(200);
    expect(await states()).toEqual(before);
    const [first] = agents as [Credentials];
    expect((await beat(first, { ...report, config_status: 'failed' })).status).toBe(500);
    await server.allow();
    // What was not stored is not taken for stored.
    await beat(first, { ...report, config_status: 'failed' });
    expect(await configOf(first)).toMatchObject({ status: 'failed' });
    await beat(first);
    expect(await configOf(first)).toMatchObject({ status: 'failed' });
  });
});

// Each test has an agent of its own, so one server will do.
describe('the state of a roll-out', () => {
  beforeAll(start);
  afterAll(stop);

  test.each<[object, string[]]>([
    [{ config_revision: 'a' }, ['config_status']],
    [{ config_status: 'applied' }, ['config_revision']],
    [{ config_message: 'x' }, ['config_revision', 'config_status', 'config_message']],
    [{ config_revision: 'a', config_status: 'applied', config_message: 'x' }, ['config_message']],
    [{ config_revision: 'a', config_status: 'ok' }, ['config_status']],
    [{ config_revision: 'a b', config_status: 'applied' }, ['config_revision']],
    [{ config_revision: 'a'.repeat(65), config_status: 'applied' }, ['config_revision']],
    [{ config_revision: 7, config_status: 'applied' }, ['config_revision']],
    [
      { config_revision: 'a', config_status: 'failed', config_message: 'x'.repeat(1_001) },
      ['config_message'],
    ],
  ])('is not told by %j', async (fields, wrong) => {
    const agent = await server.register();
    const { status, body } = await beat(agent, fields);
    expect([status, Object.keys(body.details).sort()]).toEqual([400, wrong.sort()]);
    expect(await configOf(agent)).toBeNull();
    expect((await beat(agent, { config_revision: null, config_status: null })).status).toBe(200);
  });
});

describe('the example that verifies a bundle', () => {
  let folder: string;
  let agent: Credentials;
  beforeEach(async () => {
    // The example goes by the machine's clock.
    clock = new TestClock(Date.now());
    server = await TestServer.start({}, { clock });
    agent = await server.register();
    folder = mkdtempSync(join(tmpdir(), 'verify-config-'));
    writeFileSync(join(folder, 'keys.json'), JSON.stringify(await publishedKeys()));
  });
  afterEach(async () => {
    await endAll();
    rmSync(folder, { recursive: true });
    await stop();
  });

  const publishedKeys = async () => (await server.request('GET', '/.well-known/jwks.json')).body;

  /** Runs it on a bundle. */
  const verify = (bundle: unknown): Promise<Ended> =>
    Program.spawn(
      process.execPath,
      [join(ROOT, 'examples/verify-config.mjs'), '--keys', 'keys.json', '--state', 'last.json'],
      { cwd: folder, env: {}, input: typeof bundle === 'string' ? bundle : JSON.stringify(bundle) },
    ).result();
  const accepted = async (bundle: Json) => {
    const { code, stdout, stderr } = await verify(bundle);
    expect([stderr, code]).toEqual(['', 0]);
    expect(JSON.parse(stdout)).toEqual(bundle.config);
  };
  const refused = async (bundle: unknown, why: RegExp) => {
    const { code, stdout, stderr } = await verify(bundle);
    expect([stdout, code]).toEqual(['', 1]);
    expect(stderr).toMatch(why);
  };

  test('takes what agents fetch, and the same again', async () => {
    await publish({ zeta: [1, 0.1, -5e-7], alpha: { '€': 'ü\u2028"\\\n', '😀': null } });
    const { body } = await fetched(agent);
    await accepted(body);
    await accepted(body);
    await publish({ version: 2 });
    await accepted((await fetched(agent)).body);
  });

  test('refuses what was changed', async () => {
    const bundle = await publish({ version: 1, list: [1, 2] });
    const [header, , signature] = bundle.signature.split('.');
    const forged = (fields: object) =>
      `${Buffer.from(JSON.stringify({ ...JSON.parse(Buffer.from(header, 'base64url').toString()), ...fields })).toString('base64url')}..${signature}`;
    for (const change of [
      { config: { version: 2, list: [1, 2] } },
      { config: { version: 1, list: [2, 1] } },
      { config: {} },
      { seq: bundle.seq + 1 },
      { revision: 'other' },
      { expires_at: '2099-01-01T00:00:00.000Z' },
      { issued_at: '2000-01-01T00:00:00.000Z' },
      { signature: forged({ typ: 'x' }) },
    ])
      await refused({ ...bundle, ...change }, /does not fit/);
    for (const fields of [{ alg: 'none' }, { alg: 'HS256' }, { crit: ['b64'], b64: false }])
      await refused({ ...bundle, signature: forged(fields) }, /not a plain EdDSA/);
    await refused({ ...bundle, signature: forged({ kid: 'other' }) }, /not pinned/);
    await refused({ ...bundle, signature: `${header}..` }, /detached/);
    await refused({ ...bundle, signature: `${header}.e30.${signature}` }, /detached/);
    await refused({ error: 'ERR_NOT_FOUND', message: 'There is none.' }, /There is none/);
    await refused('{', /JSON/);
    expect(existsSync(join(folder, 'last.json'))).toBe(false);
  });

  test('refuses a key that is not pinned, whatever it calls itself', async () => {
    const bundle = await publish({ version: 1 });
    const { keys } = await publishedKeys();
    const { x } = generateKeyPairSync('ed25519').publicKey.export({ format: 'jwk' });
    for (const [pinned, why] of [
      [{ keys: [{ ...keys[0], x }] }, /does not fit/],
      [{ keys: [{ ...keys[0], kid: 'other' }] }, /not pinned/],
      [{ keys: [] }, /holds no keys/],
      [{ ...keys[0], crv: 'X25519' }, /not an Ed25519 key/],
    ] as const) {
      writeFileSync(join(folder, 'keys.json'), JSON.stringify(pinned));
      await refused(bundle, why);
    }
    writeFileSync(join(folder, 'keys.json'), JSON.stringify(keys[0]));
    await accepted(bundle);
  });

  test('refuses a lower seq than the one it accepted last, though it is genuine and good', async () => {
    const first = await publish({ version: 1 });
    const second = await publish({ version: 2 });
    await accepted(second);
    await refused(first, /seq 1 is below 2/);
    expect(JSON.parse(readFileSync(join(folder, 'last.json'), 'utf8'))).toEqual(second);
    await accepted((await operator('POST', `/${first.revision}/rollback`)).body);
    writeFileSync(join(folder, 'last.json'), '{');
    await refused(second, /last\.json/);
  });

  test('refuses what has expired', async () => {
    const late = new TestClock(Date.now() - 7_200_000);
    const { folder: kept } = server;
    await server.stop({ keep: true });
    server = await TestServer.start({}, { clock: late, folder: kept });
    await refused(await publish({ version: 1 }, 3_600), /expired/);
    await accepted(await publish({ version: 2 }, 10_800));
  });
});
