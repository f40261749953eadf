import { createPrivateKey } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { Writable } from 'node:stream';
import { hashToken, mintToken } from '../../src/http/tokens';
import { createLogger } from '../../src/telemetry/logger';
import type { Json } from '../helpers/api';
import { ApiDocument, jsonOf } from '../helpers/api-document';
import {
  type Answer,
  besideDatabase,
  type Call,
  type Credentials,
  credentialsOf,
  onPostgres,
  TestClock,
  TestServer,
} from '../helpers/harness';

/** What clients send that is no secret but is theirs: it must not be in the log. */
const DATA = 'canary-data';
const TOKEN = /\bdcp[a-z]_[0-9A-Za-z]{49}\b/g;

const KEY_FILE = 'test.signing-key.pem';
const folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
const beside = besideDatabase(folder);
const ADMIN_FILE = basename(beside.path('admin-token'));

describe('a secret', () => {
  let log = '';
  let server: TestServer;
  let api: ApiDocument;
  let agent: Credentials;
  let operator: string;
  /** By what they are. */
  const secrets = new Map<string, string>();
  /** Where one was found that should not be there. */
  const leaks: string[] = [];
  const logger = createLogger(
    { logLevel: 'trace' },
    new Writable({
      write(chunk, _encoding, done) {
        log += chunk;
        done();
      },
    }),
  );
  const file = (name: string) => readFileSync(join(folder, name), 'utf8').trim();

  const clock = new TestClock();
  const start = (env: Record<string, string>) =>
    TestServer.start(
      {
        ENROLLMENT_TOKENS: secrets.get('enrollment token') as string,
        LOG_LEVEL: 'trace',
        LOG_REQUESTS: 'all',
        ...env,
      },
      { folder, logger, clock },
    );

  beforeAll(async () => {
    secrets.set('enrollment token', `enrollment-${mintToken('dcpa_')}`);
    server = await start({ ADMIN_TOKEN: 'default' });
    api = new ApiDocument((await server.request('GET', '/docs-json')).body, () => clock.now());
    secrets.set('admin token', file(ADMIN_FILE));
    // An operator's, as it is stored when it was issued.
    operator = mintToken('dcpo_');
    secrets.set('operator token', operator);
    await server.database.write((tx) =>
      tx.run(
        `INSERT INTO operator_tokens (name, role, origin, token_hash, created_at)
         VALUES ('test', 'admin', 'issued', $1, 1)`,
        hashToken(operator),
      ),
    );
    const first = await server.register('probe-1');
    secrets.set('replaced agent token', first.auth_token);
    const again = await server.request('POST', '/register', {
      headers: credentialsOf(first),
      body: { hostname: 'probe-1' },
    });
    agent = again.body;
    secrets.set('agent token', agent.auth_token);
    secrets.set("nobody's agent token", mintToken('dcpa_'));
    secrets.set("nobody's operator token", mintToken('dcpo_'));
  });
  afterAll(async () => {
    beside.leave();
    await server.stop();
  });

  /** Looks for every secret, as it is and as it may have been written. */
  function search(where: string, text: string | Buffer): void {
    for (const [what, secret] of secrets) {
      const forms = [
        secret,
        ...(['base64', 'hex'] as const).map((form) => Buffer.from(secret).toString(form)),
      ];
      for (const form of forms) if (text.includes(form)) leaks.push(`${what} in ${where}`);
    }
  }

  /** Sends a call and searches its answer; a token that it shows for the first time is a secret from now on. */
  async function send(method: string, path: string, call: Call): Promise<Answer> {
    const answer = await server.request(method, path, call);
    const text = JSON.stringify([[...answer.headers], answer.body]);
    search(`the answer ${answer.status} of ${method} ${path}`, text);
    // The document has an example of one.
    if (!path.startsWith('/docs'))
      for (const [token] of text.matchAll(TOKEN))
        secrets.set(`token ${secrets.size} of ${method} ${path}`, token);
    return answer;
  }

  /** Everything on the disk but the two files that are there to hold a secret. */
  function searchFiles(when: string): void {
    const names = readdirSync(folder, { recursive: true }) as string[];
    expect(names).toEqual(expect.arrayContaining([ADMIN_FILE, KEY_FILE, ...(onPostgres ? [] : ['test.db'])]));
    for (const name of names) {
      if (name !== ADMIN_FILE && name !== KEY_FILE)
        search(`${name} ${when}`, readFileSync(join(folder, name)));
    }
  }

  /** Every row that is stored. */
  async function searchRows(when: string): Promise<void> {
    for (const table of await server.tables())
      search(`${table} ${when}`, JSON.stringify(await server.rows(`SELECT * FROM ${table}`)));
  }

  /** What an operation needs to be let in. */
  function credentials(operation: Json): Record<string, string> {
    const names = Object.keys(operation.security?.[0] ?? {});
    if (names.includes('operator')) return { authorization: `Bearer ${operator}` };
    return names.length > 0 ? credentialsOf(agent) : {};
  }

  function exampleOf(operation: Json): Json {
    const content = jsonOf(operation.requestBody?.content);
    if (!content) return undefined;
    const body: Json = structuredClone(content.example ?? api.exampleOf(content.schema, '', []));
    if ('agent_id' in body) body.agent_id = agent.agent_id;
    if ('wait_ms' in body) body.wait_ms = 0;
    return body;
  }

  /** A secret in every place of a request that it may get into by mistake. */
  function* misplaced(name: string, operation: Json, secret: string): Generator<[string, string, Call]> {
    const [method, template] = name.split(' ') as [string, string];
    // Of nobody that is needed.
    const path = template.replace(/\{\w+\}/g, '999');
    const good = credentials(operation);
    const body = exampleOf(operation);
    const headers: Record<string, string> = {
      authorization: `Bearer ${secret}`,
      'x-agent-id': secret,
      'x-agent-token': secret,
      'x-enrollment-token': secret,
      cookie: `token=${secret}`,
      referer: `http://a/?token=${secret}`,
      'user-agent': secret,
      'if-none-match': `"${secret}"`,
      'x-forwarded-for': secret,
      'content-type': `text/plain; token=${secret}`,
    };
    for (const [header, value] of Object.entries(headers))
      yield [method, path, { headers: { ...good, [header]: value }, body }];
    yield [method, path, { headers: { ...good, authorization: `Basic ${btoa(`a:${secret}`)}` }, body }];
    yield [method, path, { headers: { authorization: secret }, body }];
    yield [method, template.replace(/\{\w+\}|$/, secret), { headers: good, body }];
    yield [method, `${path}/${secret}`, { headers: good, body }];
    yield ['PATCH', `${path}?token=${secret}`, { headers: good, body }];
    const queries = (operation.parameters ?? []).filter((parameter: Json) => parameter.in === 'query');
    for (const query of ['token', 'access_token', ...queries.map((parameter: Json) => parameter.name)])
      yield [method, `${path}?${query}=${secret}`, { headers: good, body }];
    if (body === undefined) return;
    // What may be any text is not among them: a name is kept as the name that it is, whatever was chosen for it.
    const { properties = {} } = api.deref(jsonOf(operation.requestBody.content).schema);
    const fields = Object.keys(properties).filter((field) => properties[field].type !== 'string');
    for (const field of [...fields, 'enrollment_token', 'auth_token', 'token'])
      yield [method, path, { headers: good, body: { ...body, [field]: secret } }];
    yield [method, path, { headers: good, body: `"${secret}"` }];
    yield [method, path, { headers: good, body: `{"token": "${secret}"` }];
    yield [method, path, { headers: good, body: `{"token": "${secret}", "token": "${secret}"}` }];
  }

  it('is in no answer, log or file, wherever clients put it', async () => {
    const statuses = new Set<number>();
    let count = 0;
    for (const [name, operation] of api.operations) {
      const given = [...secrets.values()].slice(0, 7);
      const places = [...misplaced(name, operation, '')].length;
      for (let place = 0; place < places; place++) {
        const secret = given[count++ % given.length] as string;
        const [method, path, call] = [...misplaced(name, operation, secret)][place] as [string, string, Call];
        statuses.add((await send(method, path, call)).status);
      }
    }
    for (const path of ['/docs', '/docs-json', '/docs-yaml', '/docs/start.js']) {
      for (const secret of [...secrets.values()].slice(0, 7)) {
        await send('GET', path, { headers: { authorization: `Bearer ${secret}` } });
        await send('GET', `${path}?token=${secret}`, {});
        await send('GET', `${path}/${secret}`, {});
      }
    }
    // It got as far as it should: some were let in, some turned away at each stage.
    expect([...statuses].sort()).toEqual(expect.arrayContaining([200, 400, 401, 404, 405, 415]));
    expect(log.length).toBeGreaterThan(100_000);
    search('the log', log);
    searchFiles('while it runs');
    await searchRows('while it runs');
    expect(leaks).toEqual([]);
  });

  it('is in no answer, log or file where the server fails, and neither is what clients sent', async () => {
    const tables = (await server.tables()).filter((name) => name !== 'migrations');
    const rename = (from: (name: string) => string, to: (name: string) => string) =>
      server.database.write(async (tx) => {
        for (const name of tables) await tx.run(`ALTER TABLE ${from(name)} RENAME TO ${to(name)}`);
      });
    // Everything that writes or reads fails now, with its parameters.
    await rename(
      (name) => name,
      (name) => `${name}_gone`,
    );
    const failed = new Set<string>();
    const fill = (value: Json): Json => {
      if (typeof value === 'string' && /^[a-z-]+$/.test(value)) return DATA;
      if (typeof value !== 'object' || value === null) return value;
      const filled = Object.entries(value).map(([key, part]) => [
        key,
        /kind|outcome/.test(key) ? part : fill(part),
      ]);
      return Array.isArray(value) ? filled.map(([, part]) => part) : Object.fromEntries(filled);
    };
    for (const [name, operation] of api.operations) {
      const [method, template] = name.split(' ') as [string, string];
      const body = exampleOf(operation);
      for (const given of [
        body,
        { ...fill(body), ...(name.endsWith('register') ? { hostname: DATA } : {}) },
      ]) {
        const answer = await send(method, template.replace(/\{\w+\}/g, '1'), {
          headers: {
            ...credentials(operation),
            'x-enrollment-token': secrets.get('enrollment token') as string,
          },
          body: body === undefined ? undefined : given,
        });
        if (answer.status === 500) failed.add(name);
        expect(JSON.stringify(answer.body)).not.toMatch(
          /SQL|_gone|no such table|relation|\.ts\b|(?<!Node)\.js\b|node_modules/,
        );
      }
    }
    await rename(
      (name) => `${name}_gone`,
      (name) => name,
    );
    expect([...failed]).toEqual(
      expect.arrayContaining(['POST /register', 'POST /v1/tasks', 'POST /metrics']),
    );
    expect(log.includes(onPostgres ? 'does not exist' : 'no such table')).toBe(true);
    expect(log.includes(DATA)).toBe(false);
    search('the log', log);
    expect(leaks).toEqual([]);
  });

  it('is in one file of its own where it has to be kept, which nobody else may read', async () => {
    for (const name of [ADMIN_FILE, KEY_FILE])
      expect([name, statSync(join(folder, name)).mode & 0o777]).toEqual([name, 0o600]);
    const key = file(KEY_FILE);
    secrets.set('signing key', key.split('\n')[1] as string);
    secrets.set('signing key as JWK', createPrivateKey(key).export({ format: 'jwk' }).d as string);
    // The same database under a token of the setting.
    const given = 'admin-token-of-the-setting-canary';
    secrets.set("the setting's admin token", given);
    await server.stop({ keep: true });
    searchFiles('after it stopped');
    server = await start({ ADMIN_TOKEN: given, REGISTRATION: 'token' });
    const bearer = { authorization: `Bearer ${given}` };
    expect((await send('GET', '/v1/tasks', { headers: bearer })).status).toBe(200);
    expect(
      (await send('GET', '/v1/tasks', { headers: { authorization: `${bearer.authorization}x` } })).status,
    ).toBe(401);
    await send('GET', '/.well-known/jwks.json', {});
    search('the log', log);
    searchFiles('under the setting');
    await searchRows('under the setting');
    expect(leaks).toEqual([]);
  });
});
