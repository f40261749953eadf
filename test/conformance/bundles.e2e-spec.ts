import { createHash, createPublicKey, generateKeyPairSync, type JsonWebKey, verify } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { SettingsError } from '../../src/settings';
import type { BodyOf } from '../helpers/api';
import {
  type Answer,
  type Credentials,
  credentialsOf,
  onPostgres,
  removeDatabaseIn,
  TestClock,
  TestServer,
} from '../helpers/harness';

const HOUR_S = 3_600;
const DAY_S = 24 * HOUR_S;
const HOUR_MS = HOUR_S * 1_000;
const KEY_FILE = 'test.signing-key.pem';

let clock: TestClock;
let server: TestServer;
let agent: Credentials;

const start = async () => {
  clock = new TestClock();
  server = await TestServer.start({}, { clock });
  agent = await server.register('probe');
};
const stop = () => server.stop();

type Bundle = BodyOf<'POST', '/v1/configs'>;

/** Publishes as an operator does. */
async function publish(config: object, expires_in?: number, on = server): Promise<Bundle> {
  const { status, body } = await on.operator('POST', '/v1/configs', { config, expires_in });
  if (status !== 201) throw new Error(`publish: ${status} ${JSON.stringify(body)}`);
  return body;
}

function fetchConfig(ifNoneMatch?: string, path = '/config', from = server): Promise<Answer> {
  return from.request('GET', path, {
    headers: {
      ...credentialsOf(agent),
      ...(ifNoneMatch === undefined ? {} : { 'if-none-match': ifNoneMatch }),
    },
  });
}

/** RFC 8785 in its own words, apart from the library that the server uses. */
function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  const members = Object.keys(value)
    .sort((a, b) => (a < b ? -1 : 1))
    .map((name) => `${JSON.stringify(name)}:${canonical((value as Record<string, unknown>)[name])}`);
  return `{${members.join(',')}}`;
}

/** What an agent does that knows the contract and the published keys only. */
async function isGenuine(
  bundle: Pick<Bundle, 'revision' | 'seq' | 'issued_at' | 'expires_at' | 'config' | 'signature'>,
  from = server,
): Promise<boolean> {
  const { body } = await from.request('GET', '/.well-known/jwks.json');
  const [header, payload, signature] = String(bundle.signature).split('.');
  expect(payload).toBe('');
  const { alg, kid } = JSON.parse(Buffer.from(header, 'base64url').toString('utf8'));
  expect(alg).toBe('EdDSA');
  const jwk: JsonWebKey & { kid: string } = body.keys.find((key: { kid: string }) => key.kid === kid);
  const { revision, seq, issued_at, expires_at, config } = bundle;
  const text = canonical({ revision, seq, issued_at, expires_at, config });
  return verify(
    null,
    Buffer.from(`${header}.${Buffer.from(text).toString('base64url')}`),
    createPublicKey({ key: jwk, format: 'jwk' }),
    Buffer.from(signature, 'base64url'),
  );
}

describe('without a bundle', () => {
  beforeEach(start);
  afterEach(stop);

  test('there is nothing to fetch yet, and the heartbeat names no revision', async () => {
    const { status, body } = await fetchConfig('*');
    expect(status).toBe(404);
    expect(body).toMatchObject({ error: 'ERR_NOT_FOUND', retryable: true });
    expect((await server.agent(agent, '/heartbeat')).body).not.toHaveProperty('config_revision');
  });
});

const CONFIG = {
  zeta: [1, 0.1, -5e-7, 2 ** 53 - 1],
  alpha: { '€': 'ü\u2028"\\\n', '😀': null, ﬃ: true },
  a: [],
};

// Each test publishes its own, so one server will do.
describe('a bundle', () => {
  beforeAll(start);
  afterAll(stop);

  test('is the same under both paths, and named by the heartbeat', async () => {
    const { revision } = await publish(CONFIG);
    expect((await fetchConfig(undefined, '/v1/agents/config')).body).toEqual((await fetchConfig()).body);
    expect((await server.agent(agent, '/heartbeat')).body).toMatchObject({ config_revision: revision });
  });

  test('is for agents; the keys that verify it are for anyone', async () => {
    await publish(CONFIG);
    expect((await server.request('GET', '/config')).status).toBe(401);
    const { status, body } = await server.request('GET', '/.well-known/jwks.json');
    expect(status).toBe(200);
    const [{ x }] = body.keys;
    const thumbprint = createHash('sha256')
      .update(`{"crv":"Ed25519","kty":"OKP","x":"${x}"}`)
      .digest('base64url');
    expect(body.keys).toEqual([{ kty: 'OKP', crv: 'Ed25519', x, kid: thumbprint, alg: 'EdDSA', use: 'sig' }]);
  });

  test.each([
    ['the tag', (etag: string) => etag],
    ['the tag, weak', (etag: string) => `W/${etag}`],
    ['a list with it', (etag: string) => `"other", W/"third" ,${etag}`],
    ['anything', () => '*'],
  ])('is not sent again where If-None-Match has %s', async (_, header) => {
    const { revision } = await publish(CONFIG);
    const { status, headers, body } = await fetchConfig(header(`"${revision}"`));
    expect(status).toBe(304);
    expect(body).toBe('');
    expect(headers.get('etag')).toBe(`"${revision}"`);
    expect(headers.get('cache-control')).toBe('private, no-cache');
    expect(headers.get('content-type')).toBeNull();
  });

  test.each([
    ['another tag', () => '"other"'],
    ['another revision without quotes', () => 'a3f1c2d4e5b60718'],
    ['the tag and rubbish', (etag: string) => `${etag} rubbish`],
    ['an unfinished tag', (etag: string) => etag.slice(0, -1)],
  ])('is sent where If-None-Match has %s', async (_, header) => {
    const { revision } = await publish(CONFIG);
    const { status, body } = await fetchConfig(header(`"${revision}"`));
    expect(status).toBe(200);
    expect(body.revision).toBe(revision);
  });

  test('is not sent again to one that sends its revision without quotes', async () => {
    const { revision } = await publish(CONFIG);
    expect((await fetchConfig(revision)).status).toBe(304);
  });

  test('is replaced by the next, whose seq is greater; the old tag no longer matches', async () => {
    const first = await publish({ version: 1 });
    const second = await publish({ version: 1 });
    expect(second.seq).toBeGreaterThan(first.seq);
    expect(second.revision).not.toBe(first.revision);
    const { status, body } = await fetchConfig(`"${first.revision}"`);
    expect(status).toBe(200);
    expect(body).toEqual(second);
  });
});

describe('a published bundle', () => {
  beforeEach(start);
  afterEach(stop);

  test('is what was published, signed, and verified by the published key', async () => {
    await publish(CONFIG);
    const { status, headers, body } = await fetchConfig();
    expect(status).toBe(200);
    expect(headers.get('content-type')).toBe('application/json; charset=utf-8');
    expect(body).toEqual({
      revision: expect.stringMatching(/^[0-9a-f]{16}$/),
      seq: 1,
      issued_at: '2026-01-01T00:00:00.000Z',
      expires_at: '2026-01-31T00:00:00.000Z',
      config: CONFIG,
      signature: expect.any(String),
    });
    expect(headers.get('etag')).toBe(`"${body.revision}"`);
    expect(headers.get('cache-control')).toBe('private, no-cache');
    expect(await isGenuine(body)).toBe(true);
    for (const change of [
      { seq: 2 },
      { revision: 'x' },
      { expires_at: '2027-01-01T00:00:00.000Z' },
      { config: {} },
    ])
      expect(await isGenuine({ ...body, ...change })).toBe(false);
  });

  test('has a seq of its own when many are published at once, and the greatest is in force', async () => {
    const bundles = await Promise.all(Array.from({ length: 8 }, (_, i) => publish({ version: i })));
    expect(bundles.map(({ seq }) => seq).sort()).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    const { body } = await fetchConfig();
    expect(body).toEqual(bundles.find(({ seq }) => seq === 8));
    expect(await isGenuine(body)).toBe(true);
  });

  test('is served until it expires; then none is, though an older one would still be good', async () => {
    await publish({ version: 1 }, 30 * DAY_S);
    const { revision } = await publish({ version: 2 }, HOUR_S);
    clock.advance(HOUR_MS - 1);
    expect((await fetchConfig()).body.config).toEqual({ version: 2 });
    expect((await server.agent(agent, '/heartbeat')).body.config_revision).toBe(revision);
    clock.advance(1);
    for (const ifNoneMatch of [undefined, '*', `"${revision}"`]) {
      const { status, body } = await fetchConfig(ifNoneMatch);
      expect(status).toBe(404);
      expect(body).toMatchObject({ error: 'ERR_NOT_FOUND', retryable: true });
    }
    expect((await server.agent(agent, '/heartbeat')).body).not.toHaveProperty('config_revision');
    const { seq } = await publish({ version: 3 });
    expect(seq).toBe(3);
    expect((await fetchConfig()).body.config).toEqual({ version: 3 });
  });
});

test('a 304 costs as much of the quota as a 200', async () => {
  const limited = await TestServer.start({ QUOTA_CONFIG: 'default' });
  try {
    agent = await limited.register('probe');
    await publish({}, undefined, limited);
    const statuses = [];
    for (const ifNoneMatch of ['*', undefined, '*'])
      statuses.push((await fetchConfig(ifNoneMatch, '/config', limited)).status);
    expect(statuses).toEqual([304, 200, 429]);
  } finally {
    await limited.stop();
  }
});

const pemOf = () =>
  generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' }) as string;

describe('the signing key', () => {
  beforeEach(start);
  afterEach(stop);

  const restart = async (): Promise<void> => {
    const { folder } = server;
    await server.stop({ keep: true });
    server = await TestServer.start({}, { clock, folder });
  };

  test('is made at first start, for its owner only, and kept with the bundle over a restart', async () => {
    const file = join(server.folder, KEY_FILE);
    expect(statSync(file).mode & 0o777).toBe(0o600);
    const pem = readFileSync(file, 'utf8');
    await publish({ version: 1 });
    const before = await fetchConfig();
    await restart();
    const after = await fetchConfig(undefined, '/v1/agents/config');
    expect(after.body).toEqual(before.body);
    expect(await isGenuine(after.body)).toBe(true);
    expect((await fetchConfig(before.headers.get('etag') as string)).status).toBe(304);
    expect(readFileSync(file, 'utf8')).toBe(pem);
  });

  (onPostgres ? test : test.skip)(
    'that was replaced keeps a replica from starting, for others have it',
    async () => {
      await publish({ version: 1 });
      const { folder } = server;
      const file = join(folder, KEY_FILE);
      const pem = readFileSync(file, 'utf8');
      await server.stop({ keep: true });
      rmSync(file);
      const error = await failureOf(TestServer.start({}, { clock, folder }));
      expect(error).toBeInstanceOf(SettingsError);
      expect(error.message).toContain('CONTROL_PLANE_SIGNING_KEY_FILE lacks the key');
      writeFileSync(file, pem);
      server = await TestServer.start({}, { clock, folder });
      expect((await server.operator('GET', '/v1/audit?action=config.re-sign')).body.items).toEqual([]);
    },
  );

  (onPostgres ? test.skip : test)(
    'that was replaced signs the bundle in force again, under the next seq and with the same end',
    async () => {
      await publish({ version: 1 }, DAY_S);
      const before = (await fetchConfig()).body;
      rmSync(join(server.folder, KEY_FILE));
      clock.advance(HOUR_MS);
      await restart();
      const after = (await fetchConfig()).body;
      expect(after).toMatchObject({
        seq: before.seq + 1,
        expires_at: before.expires_at,
        config: before.config,
      });
      expect(await isGenuine(after)).toBe(true);
      expect((await server.operator('GET', '/v1/audit?action=config.re-sign')).body.items).toMatchObject([
        { subject: `config/${after.revision}`, operator_token_id: null, after: { from: before.revision } },
      ]);
    },
  );

  const kids = async (): Promise<string[]> =>
    (await server.request('GET', '/.well-known/jwks.json')).body.keys.map(({ kid }: { kid: string }) => kid);
  const kidOf = ({ signature }: Pick<Bundle, 'signature'>): string =>
    JSON.parse(Buffer.from(String(signature).split('.')[0] as string, 'base64url').toString()).kid;

  test('is rotated with an overlap: a new one is known before it signs, the old one verifies after it signed', async () => {
    const file = join(server.folder, KEY_FILE);
    const oldPem = readFileSync(file, 'utf8');
    const newPem = pemOf();
    const first = await publish({ version: 1 });
    const [oldKid] = await kids();

    // Known, and does not sign yet.
    writeFileSync(file, `${oldPem}${newPem}`);
    await restart();
    const [, newKid] = await kids();
    expect(await kids()).toEqual([oldKid, newKid]);
    expect((await fetchConfig()).body).toEqual(first);
    expect(kidOf(await publish({ version: 2 }))).toBe(oldKid);
    const second = (await fetchConfig()).body;

    // Signs. What the old one signed stays as it is, and verifies.
    writeFileSync(file, `# the new one\n${newPem}# until 2026-01-31\n${oldPem}`);
    await restart();
    expect(await kids()).toEqual([newKid, oldKid]);
    expect((await fetchConfig()).body).toEqual(second);
    expect(await isGenuine(second)).toBe(true);
    expect(await isGenuine(first)).toBe(true);
    const third = await publish({ version: 3 });
    expect(kidOf(third)).toBe(newKid);
    expect(await isGenuine(third)).toBe(true);

    // Gone. What is in force is signed by a key that is still there, so it stays too.
    writeFileSync(file, newPem);
    await restart();
    expect(await kids()).toEqual([newKid]);
    expect((await fetchConfig()).body).toEqual(third);
    expect((await server.operator('GET', '/v1/configs')).body.items.map(({ kid }) => kid)).toEqual([
      newKid,
      oldKid,
      oldKid,
    ]);
  });

  test('is not taken twice', async () => {
    const file = join(server.folder, KEY_FILE);
    const pem = readFileSync(file, 'utf8');
    const { folder } = server;
    await server.stop({ keep: true });
    writeFileSync(file, pem + pem);
    expect((await failureOf(TestServer.start({}, { folder }))).message).toContain('twice');
    writeFileSync(file, pem);
    server = await TestServer.start({}, { clock, folder });
  });

  test('can be one that a setting names', async () => {
    const { privateKey, publicKey } = generateKeyPairSync('ed25519');
    const file = join(server.folder, 'mine.pem');
    writeFileSync(file, privateKey.export({ type: 'pkcs8', format: 'pem' }));
    const other = await TestServer.start({ SIGNING_KEY_FILE: file }, { clock });
    try {
      const { body } = await other.request('GET', '/.well-known/jwks.json');
      expect(body.keys[0].x).toBe(publicKey.export({ format: 'jwk' }).x);
      expect(existsSync(join(other.folder, KEY_FILE))).toBe(false);
    } finally {
      await other.stop();
    }
  });
});

describe('a signing key', () => {
  test('beside a database in memory leaves no file', async () => {
    // The folder of the project may have the key of a server that runs in it.
    const before = process.cwd();
    const folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
    process.chdir(folder);
    const inMemory = await TestServer.start(
      { DATABASE_URL: 'sqlite::memory:', SIGNING_KEY_FILE: 'default' },
      { clock: new TestClock() },
    );
    try {
      await publish({ version: 1 }, undefined, inMemory);
      agent = await inMemory.register('probe');
      expect(await isGenuine((await fetchConfig(undefined, '/config', inMemory)).body, inMemory)).toBe(true);
      expect(readdirSync(folder)).toEqual([]);
    } finally {
      process.chdir(before);
      await inMemory.stop();
      rmSync(folder, { recursive: true });
    }
  });
});

describe('a signing key that is no good', () => {
  const PEMS: [string, string][] = [
    ['nothing', ''],
    ['a key and half of another', `${pemOf()}${pemOf().slice(0, 80)}`],
    ['half of a key and another', `${pemOf().slice(0, 80)}\n${pemOf()}`],
    ['something else', 'not-a-key-but-secret'],
    ['damage', '-----BEGIN PRIVATE KEY-----\nbm90LWEta2V5LWJ1dC1zZWNyZXQ=\n-----END PRIVATE KEY-----\n'],
    [
      'a key of another kind',
      generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({
        type: 'pkcs8',
        format: 'pem',
      }) as string,
    ],
    [
      'a public key',
      generateKeyPairSync('ed25519').publicKey.export({ type: 'spki', format: 'pem' }) as string,
    ],
    [
      'an encrypted key',
      generateKeyPairSync('ed25519').privateKey.export({
        type: 'pkcs8',
        format: 'pem',
        cipher: 'aes-256-cbc',
        passphrase: 'secret',
      }) as string,
    ],
  ];

  test.each(PEMS)('stops the start where its file holds %s, and is not printed', async (_, pem) => {
    const folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
    try {
      writeFileSync(join(folder, KEY_FILE), pem);
      const error = await failureOf(TestServer.start({}, { folder }));
      expect(error).toBeInstanceOf(SettingsError);
      expect(error.message).toContain(onPostgres ? 'SIGNING_KEY_FILE' : join(folder, KEY_FILE));
      for (const line of pem.split('\n').filter((text) => text.length > 8 && !text.startsWith('-----')))
        expect(`${error.message} ${error.stack}`).not.toContain(line);
      expect(readFileSync(join(folder, KEY_FILE), 'utf8')).toBe(pem);
    } finally {
      await removeDatabaseIn(folder);
    }
  });

  test('stops the start where its file can be neither read nor made', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
    try {
      mkdirSync(join(folder, KEY_FILE));
      expect((await failureOf(TestServer.start({}, { folder }))).message).toContain('EISDIR');
      const missing = join(folder, 'missing', 'key.pem');
      const error = await failureOf(TestServer.start({ SIGNING_KEY_FILE: missing }, { folder }));
      expect(error).toBeInstanceOf(SettingsError);
      expect(error.message).toContain('CONTROL_PLANE_SIGNING_KEY_FILE');
      expect(error.message).not.toContain(missing);
    } finally {
      await removeDatabaseIn(folder);
    }
  });
});

/** What a start fails with. */
async function failureOf(starting: Promise<TestServer>): Promise<Error> {
  const started = await starting.then(
    (running) => running.stop({ keep: true }),
    (error: Error) => error,
  );
  if (!(started instanceof Error)) throw new Error('it started');
  return started;
}
