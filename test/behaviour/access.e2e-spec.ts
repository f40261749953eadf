import crypto from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { Clock } from '../../src/clock';
import type { SqlValue } from '../../src/database/statements';
import type { Role } from '../../src/http/control-plane-request';
import { hashSecret, hashToken, mintToken } from '../../src/http/tokens';
import {
  ADMIN_TOKEN,
  besideDatabase,
  type Credentials,
  credentialsOf,
  TestClock,
  TestServer,
  withTypo,
} from '../helpers/harness';

const UNAUTHORIZED = {
  error: 'ERR_UNAUTHORIZED',
  message: 'Credentials are missing or not accepted.',
  retryable: false,
};
const ENROLLMENT = 'an-enrollment-token-for-tests';

let clock: TestClock;
let server: TestServer;

/** Starts the server of one test; the one before is stopped. */
async function start(env: Record<string, string> = {}): Promise<void> {
  clock = new TestClock();
  server = await TestServer.start(env, { clock });
}

afterEach(() => server.stop());

const register = (body: object, headers: Record<string, string> = {}) =>
  server.request('POST', '/register', { body, headers });
const heartbeat = (who: Credentials, path = '/heartbeat') => server.agent(who, path);

/** Stores an operator's token. */
async function issue(role: Role, expiresAt: number | null = null): Promise<Record<string, string>> {
  const token = mintToken('dcpo_');
  await server.database.write((tx) =>
    tx.run(
      `INSERT INTO operator_tokens (name, role, origin, token_hash, created_at, expires_at)
       VALUES ('test', $1, 'issued', $2, $3, $4)`,
      role,
      hashToken(token),
      clock.now(),
      expiresAt,
    ),
  );
  return { authorization: `Bearer ${token}` };
}

/** Stores an agent as another replica would, so that this one knows nothing of it. */
async function addAgent(): Promise<Credentials> {
  const token = mintToken('dcpa_');
  const [row] = await server.database.write((tx) =>
    tx.rows<{ id: number }>(
      `INSERT INTO agents (origin, state, token_hash, registered_at) VALUES ('open', 'active', $1, $2) RETURNING id`,
      hashToken(token),
      clock.now(),
    ),
  );
  const id = row?.id as number;
  await server.database.write((tx) =>
    tx.run('INSERT INTO agent_heartbeats (agent_id, last_heartbeat_at) VALUES ($1, $2)', id, clock.now()),
  );
  return { agent_id: id, auth_token: token };
}

/** How often a request has agents or operators read from the database; jobs that read other tables meanwhile don't count. */
async function readsOf(request: () => Promise<unknown>): Promise<number> {
  let count = 0;
  const { database } = server;
  const read = database.read.bind(database);
  const counted = (sql: string) => {
    if (/FROM (agents|operator_tokens)\b/.test(sql)) count++;
  };
  const spy = jest.spyOn(database, 'read').mockImplementation((work) =>
    read((statements) =>
      work(
        Object.create(statements, {
          first: {
            value: (sql: string, ...values: SqlValue[]) => {
              counted(sql);
              return statements.first(sql, ...values);
            },
          },
          rows: {
            value: (sql: string, ...values: SqlValue[]) => {
              counted(sql);
              return statements.rows(sql, ...values);
            },
          },
        }),
      ),
    ),
  );
  try {
    await request();
    return count;
  } finally {
    spy.mockRestore();
  }
}

/** Another token of the same form: one that was minted and is nobody's. */
const strangersToken = () => mintToken('dcpa_');

describe('an agent', () => {
  it('is let in with its credentials, at both paths', async () => {
    await start();
    const agent = await server.register('a');
    for (const path of ['/heartbeat', '/v1/agents/heartbeat']) {
      const { status, body } = await heartbeat(agent, path);
      expect([status, body.agent_id]).toEqual([200, agent.agent_id]);
    }
  });

  it('gets one and the same answer for missing, unknown and wrong credentials', async () => {
    await start();
    const agent = await server.register('a');
    const id = String(agent.agent_id);
    const refused: Record<string, string>[] = [
      {},
      { 'x-agent-id': id },
      { 'x-agent-token': agent.auth_token },
      { 'x-agent-id': '', 'x-agent-token': agent.auth_token },
      { 'x-agent-id': id, 'x-agent-token': '' },
      { 'x-agent-id': '999', 'x-agent-token': agent.auth_token },
      { 'x-agent-id': '999', 'x-agent-token': strangersToken() },
      { 'x-agent-id': id, 'x-agent-token': strangersToken() },
      { 'x-agent-id': id, 'x-agent-token': withTypo(agent.auth_token) },
      { 'x-agent-id': id, 'x-agent-token': 'x' },
      { authorization: `Bearer ${ADMIN_TOKEN}` },
    ];
    for (const headers of refused) {
      const answer = await server.request('POST', '/heartbeat', {
        headers,
        body: { agent_id: agent.agent_id },
      });
      expect([headers, answer.status, answer.body]).toEqual([headers, 401, UNAUTHORIZED]);
    }
  });

  it.each([
    ['x-agent-id', 'one'],
    ['x-agent-id', '0'],
    ['x-agent-id', '-1'],
    ['x-agent-id', '1, 2'],
    ['x-agent-token', 'with space'],
    ['x-agent-token', 'x'.repeat(513)],
    ['x-agent-token', 'caf\u00e9'],
  ])('is told which header is malformed: %s: %s', async (header, value) => {
    await start();
    const agent = await server.register('a');
    const answer = await server.request('POST', '/heartbeat', {
      headers: { ...credentialsOf(agent), [header]: value },
      body: { agent_id: agent.agent_id },
    });
    expect(answer.status).toBe(400);
    expect(answer.body).toMatchObject({ error: 'ERR_VALIDATION', retryable: false });
    expect(Object.keys(answer.body.details)).toEqual([header]);
  });

  it('may not speak for another one', async () => {
    await start();
    const [agent, other] = [await server.register('a'), await server.register('b')];
    for (const path of ['/heartbeat', '/claim', '/extend', '/report', '/v1/agents/heartbeat']) {
      const answer = await server.agent(agent, path, { agent_id: other.agent_id });
      expect([path, answer.status, answer.body.error]).toEqual([path, 403, 'ERR_FORBIDDEN']);
    }
    const malformed = await server.agent(agent, '/heartbeat', { agent_id: 'other' });
    expect([malformed.status, malformed.body.error]).toEqual([400, 'ERR_VALIDATION']);
  });

  it('costs no read of the database once it is known, nor with a typo in the token', async () => {
    await start();
    const agent = await server.register('a');
    expect(await readsOf(() => heartbeat({ ...agent, auth_token: withTypo(agent.auth_token) }))).toBe(0);
    expect(await readsOf(() => heartbeat(agent))).toBe(0);
  });

  it('costs one read with a wrong token, whether there is such an agent, known or not, or none', async () => {
    await start();
    const [known, unknown] = [await server.register('a'), await server.register('b')];
    await heartbeat(known);
    for (const id of [known.agent_id, unknown.agent_id, 999]) {
      const wrong = { agent_id: id, auth_token: strangersToken() };
      expect([id, await readsOf(() => heartbeat(wrong))]).toEqual([id, 1]);
      // The same again is known to be wrong.
      expect([id, await readsOf(() => heartbeat(wrong))]).toEqual([id, 0]);
      const typo = { agent_id: id, auth_token: withTypo(strangersToken()) };
      expect([id, await readsOf(() => heartbeat(typo))]).toEqual([id, 0]);
    }
    expect(await readsOf(() => heartbeat(known))).toBe(0);
  });

  it('is told that its token has expired, if it was the right one', async () => {
    await start({ AGENT_TOKEN_LIFETIME_MS: '60000' });
    const agent = await server.register('a');
    clock.advance(59_999);
    expect((await heartbeat(agent)).status).toBe(200);
    clock.advance(1);
    const expired = await heartbeat(agent);
    expect([expired.status, expired.body.error]).toEqual([401, 'ERR_TOKEN_EXPIRED']);
    expect((await heartbeat({ ...agent, auth_token: strangersToken() })).body).toEqual(UNAUTHORIZED);
  });

  it('is out at once when it is disabled, revoked or deleted, and in again when enabled', async () => {
    await start();
    const agent = await server.register('a');
    const decide = (decision: string) => server.operator('POST', `/v1/agents/${agent.agent_id}/${decision}`);
    expect((await heartbeat(agent)).status).toBe(200);

    expect((await decide('disable')).status).toBe(200);
    const disabled = await heartbeat(agent);
    expect([disabled.status, disabled.body.error]).toEqual([403, 'ERR_FORBIDDEN']);
    // A caller without the token does not learn the state.
    expect((await heartbeat({ ...agent, auth_token: strangersToken() })).body).toEqual(UNAUTHORIZED);

    await decide('enable');
    expect((await heartbeat(agent)).status).toBe(200);
    await decide('drain');
    expect((await heartbeat(agent)).status).toBe(200);
    await decide('revoke');
    expect((await heartbeat(agent)).status).toBe(403);
    expect((await server.operator('DELETE', `/v1/agents/${agent.agent_id}`)).status).toBe(204);
    expect((await heartbeat(agent)).body).toEqual(UNAUTHORIZED);
  });
});

describe('a rotated token', () => {
  const rotate = async (agent: Credentials): Promise<Credentials> => {
    const { status, body } = await register({ hostname: 'a' }, credentialsOf(agent));
    expect([status, body.agent_id]).toEqual([200, agent.agent_id]);
    return body;
  };

  it('works on until the new one is first used', async () => {
    await start();
    const old = await server.register('a');
    const fresh = await rotate(old);
    expect(fresh.auth_token).not.toBe(old.auth_token);
    expect((await heartbeat(old)).status).toBe(200);
    expect((await heartbeat(old)).status).toBe(200);
    expect((await heartbeat(fresh)).status).toBe(200);
    expect((await heartbeat(old)).body).toEqual(UNAUTHORIZED);
    expect((await heartbeat(fresh)).status).toBe(200);
  });

  it('works on for 10 minutes at most', async () => {
    await start();
    const old = await server.register('a');
    const fresh = await rotate(old);
    clock.advance(599_999);
    expect((await heartbeat(old)).status).toBe(200);
    clock.advance(1);
    const expired = await heartbeat(old);
    expect([expired.status, expired.body.error]).toEqual([401, 'ERR_TOKEN_EXPIRED']);
    expect((await heartbeat(fresh)).status).toBe(200);
  });

  it('is not given longer than it had', async () => {
    await start({ AGENT_TOKEN_LIFETIME_MS: '60000' });
    const old = await server.register('a');
    clock.advance(30_000);
    await rotate(old);
    clock.advance(30_000);
    expect((await heartbeat(old)).body.error).toBe('ERR_TOKEN_EXPIRED');
  });

  it('proves its holder again when the answer with the new one was lost, within the same 10 minutes', async () => {
    await start();
    const old = await server.register('a');
    const lost = await rotate(old);
    clock.advance(300_000);
    const again = await rotate(old);
    expect((await heartbeat(lost)).body).toEqual(UNAUTHORIZED);
    expect((await heartbeat(old)).status).toBe(200);
    clock.advance(300_000);
    expect((await heartbeat(old)).body.error).toBe('ERR_TOKEN_EXPIRED');
    expect((await heartbeat(again)).status).toBe(200);
  });
});

describe('POST /register in open mode', () => {
  it('gives a new identity to each that names no host', async () => {
    await start();
    const first = await register({});
    const second = await register({ hostname: null });
    expect([first.status, second.status]).toEqual([200, 200]);
    expect(first.body.agent_id).not.toBe(second.body.agent_id);
    expect(first.body).toEqual({
      agent_id: expect.any(Number),
      auth_token: expect.stringMatching(/^dcpa_[0-9A-Za-z]{49}$/),
      lease_duration_ms: 60_000,
      heartbeat_timeout_ms: 45_000,
    });
  });

  it("refuses a live agent's hostname to a caller that does not prove to be it, and leaves the agent alone", async () => {
    await start();
    const agent = await server.register('a');
    const other = await server.register('b');
    await server.pass(10_500, { reaps: false });
    for (const headers of [
      {},
      credentialsOf(other),
      credentialsOf({ ...agent, auth_token: strangersToken() }),
    ]) {
      const answer = await register({ hostname: 'a' }, headers);
      expect(answer.status).toBe(409);
      expect(answer.body).toEqual({
        error: 'ERR_CONFLICT',
        message:
          'The hostname a belongs to an agent that is online. Register with its token to replace it, or wait until it is offline.',
        retryable: true,
        details: { hostname: 'belongs to an agent that is alive' },
      });
      expect(answer.headers.get('retry-after')).toBe('35');
    }
    expect((await heartbeat(agent)).status).toBe(200);
    // A sign of life starts the wait again.
    expect((await register({ hostname: 'a' })).headers.get('retry-after')).toBe('45');
  });

  it('hands the hostname over once the agent has missed its heartbeat, and the old token is void', async () => {
    await start();
    const agent = await server.register('a');
    await server.pass(44_999, { reaps: false });
    expect((await register({ hostname: 'a' })).headers.get('retry-after')).toBe('1');
    await server.pass(1, { reaps: false });
    const { status, body } = await register({ hostname: 'a' });
    expect([status, body.agent_id]).toEqual([200, agent.agent_id]);
    expect((await heartbeat(agent)).body).toEqual(UNAUTHORIZED);
    expect((await heartbeat(body)).status).toBe(200);
  });

  it('takes an enrollment token for a proof, in a header or in the body', async () => {
    await start({ ENROLLMENT_TOKENS: `${ENROLLMENT},another-enrollment-token-here` });
    const agent = await server.register('a');
    const byHeader = await register({ hostname: 'a' }, { 'x-enrollment-token': ENROLLMENT });
    expect([byHeader.status, byHeader.body.agent_id]).toEqual([200, agent.agent_id]);
    expect((await heartbeat(agent)).status).toBe(200);
    const byBody = await register({ hostname: 'a', enrollment_token: 'another-enrollment-token-here' });
    expect([byBody.status, byBody.body.agent_id]).toEqual([200, agent.agent_id]);
  });

  it('refuses a wrong enrollment token, also for a new hostname', async () => {
    await start({ ENROLLMENT_TOKENS: ENROLLMENT });
    const answer = await register({ hostname: 'new' }, { 'x-enrollment-token': `${ENROLLMENT}x` });
    expect([answer.status, answer.body.error]).toEqual([401, 'ERR_UNAUTHORIZED']);
  });

  it('refuses the hostname of an agent that is out of service, until that is deleted', async () => {
    await start();
    const agent = await server.register('a');
    await server.operator('POST', `/v1/agents/${agent.agent_id}/revoke`);
    const refused = await register({ hostname: 'a' }, credentialsOf(agent));
    expect([refused.status, refused.body.error]).toEqual([403, 'ERR_FORBIDDEN']);
    await server.operator('DELETE', `/v1/agents/${agent.agent_id}`);
    const fresh = await register({ hostname: 'a' });
    expect(fresh.status).toBe(200);
    expect(fresh.body.agent_id).not.toBe(agent.agent_id);
  });

  it('names the malformed proof', async () => {
    await start();
    const answer = await register({ hostname: 'a' }, { 'x-agent-id': 'one' });
    expect([answer.status, answer.body.error]).toEqual([400, 'ERR_VALIDATION']);
    expect(answer.body.details).toHaveProperty('x-agent-id');
  });
});

describe('POST /register in token mode', () => {
  it('wants an enrollment token for every registration', async () => {
    await start({ REGISTRATION: 'token', ENROLLMENT_TOKENS: ENROLLMENT });
    const { status, body } = await register({ hostname: 'a' }, { 'x-enrollment-token': ENROLLMENT });
    expect(status).toBe(200);
    for (const headers of [{}, { 'x-enrollment-token': 'wrong' }, credentialsOf(body)]) {
      const answer = await register({ hostname: 'a' }, headers);
      expect([answer.status, answer.body.error]).toEqual([401, 'ERR_UNAUTHORIZED']);
    }
    expect((await register({}, { 'x-enrollment-token': ENROLLMENT })).status).toBe(200);
  });

  it('charges those that were looked up to the address, and not those that are missing or no tokens of ours', async () => {
    await start({
      REGISTRATION: 'token',
      ENROLLMENT_TOKENS: ENROLLMENT,
      FAILED_AUTH_PER_IP: '30/1m,2',
    });
    const withToken = (token: string) => register({ hostname: 'a' }, { 'x-enrollment-token': token });
    for (let i = 0; i < 25; i++) {
      expect((await register({ hostname: 'a' })).status).toBe(401);
      expect((await withToken('wrong')).status).toBe(401);
    }
    // Two, and ten times as many of callers that have not failed.
    for (let i = 0; i < 22; i++) expect((await withToken(mintToken('dcpe_'))).status).toBe(401);
    const refused = await withToken(mintToken('dcpe_'));
    expect([refused.status, refused.headers.get('retry-after')]).toEqual([429, '2']);
    expect((await withToken(ENROLLMENT)).status).toBe(200);
  });
});

describe("a registration's quota", () => {
  it('is one success in 10 minutes for a hostname', async () => {
    await start({ QUOTA_REGISTER: 'default' });
    const first = await register({ hostname: 'a' });
    expect(first.status).toBe(200);
    expect(first.headers.get('ratelimit-policy')).toBe('"register";q=1;w=600');
    expect(first.headers.get('ratelimit')).toBe('"register";r=0;t=600');
    const again = await register({ hostname: 'a' }, credentialsOf(first.body));
    expect(again.status).toBe(429);
    expect(again.body).toEqual({
      error: 'ERR_RATE_LIMITED',
      message: 'Too many requests; wait for Retry-After.',
      retryable: true,
      details: { quota: 'register' },
    });
    expect(again.headers.get('retry-after')).toBe('600');
    expect((await register({ hostname: 'b' })).status).toBe(200);
    // The refused registration changed nothing.
    expect((await heartbeat(first.body)).status).toBe(200);

    clock.advance(599_999);
    expect((await register({ hostname: 'a' }, credentialsOf(first.body))).status).toBe(429);
    clock.advance(1);
    expect((await register({ hostname: 'a' }, credentialsOf(first.body))).status).toBe(200);
  });

  it('is not used up by others who fail, so nobody can lock a host out', async () => {
    await start({ QUOTA_REGISTER: 'default' });
    const agent = await server.register('a');
    await server.pass(600_000, { reaps: false });
    await heartbeat(agent);
    for (let i = 0; i < 5; i++) {
      const answer = await register({ hostname: 'a' });
      expect([answer.status, answer.headers.get('ratelimit')]).toEqual([409, '"register";r=1;t=0']);
    }
    expect((await register({ hostname: 'a', enrollment_token: 7 })).status).toBe(400);
    expect((await register({ hostname: 'a' }, credentialsOf(agent))).status).toBe(200);
  });

  it('is counted by address where no hostname is given', async () => {
    await start({ QUOTA_REGISTER: 'default', TRUST_PROXY: '127.0.0.1' });
    const from = (address: string) => ({ 'x-forwarded-for': address });
    expect((await register({}, from('192.0.2.1'))).status).toBe(200);
    expect((await register({ hostname: null }, from('192.0.2.1'))).status).toBe(429);
    expect((await register({}, from('192.0.2.2'))).status).toBe(200);
    expect((await register({ hostname: 'a' }, from('192.0.2.1'))).status).toBe(200);
  });

  it('has a limit for one address over all attempts, whatever comes of them', async () => {
    await start({ REGISTER_PER_IP: '60/1m,3' });
    expect((await register({ hostname: 'a' })).status).toBe(200);
    expect((await register({ hostname: 'a' })).status).toBe(409);
    expect((await register({ hostname: 7 })).status).toBe(400);
    const fourth = await register({ hostname: 'b' });
    expect([fourth.status, fourth.headers.get('retry-after')]).toEqual([429, '1']);
    expect(fourth.headers.get('ratelimit-policy')).toBe('"register-per-ip";q=3;w=3');
    clock.advance(1_000);
    expect((await register({ hostname: 'b' })).status).toBe(200);
  });
});

describe('wrong credentials', () => {
  const guess = (headers: Record<string, string> = {}) =>
    server.request('POST', '/heartbeat', {
      headers: { 'x-agent-id': '1', 'x-agent-token': strangersToken(), ...headers },
      body: { agent_id: 1 },
    });

  /** Guesses for one agent until an address is told to wait. @returns how often it was let in */
  const guesses = async (headers: Record<string, string> = {}): Promise<number> => {
    let count = 0;
    while ((await guess(headers)).status === 401) count++;
    return count;
  };

  it('are looked up 30 times a minute from one address, and then 3 times for one agent', async () => {
    await start({ FAILED_AUTH_PER_IP: 'default' });
    expect(await guesses()).toBe(33);
    const refused = await guess();
    expect(refused.status).toBe(429);
    expect(refused.body).toMatchObject({ error: 'ERR_RATE_LIMITED', retryable: true });
    expect(refused.headers.get('retry-after')).toBe('2');
    clock.advance(2_000);
    expect((await guess()).status).toBe(401);
    expect((await guess()).status).toBe(429);
  });

  it('are charged only if they cost a look-up: what is missing, malformed or mistyped is not', async () => {
    await start({ FAILED_AUTH_PER_IP: '30/1m,1' });
    const agent = await server.register('a');
    const same = { 'x-agent-token': strangersToken() };
    expect((await guess(same)).status).toBe(401);
    for (let i = 0; i < 35; i++) {
      expect((await server.request('POST', '/heartbeat', { body: {} })).status).toBe(401);
      expect((await guess({ 'x-agent-id': 'one' })).status).toBe(400);
      expect((await guess({ 'x-agent-token': withTypo(agent.auth_token) })).status).toBe(401);
      expect((await server.request('GET', '/v1/agents')).status).toBe(401);
      // Known to be wrong since it was looked up.
      expect((await guess(same)).status).toBe(401);
    }
    expect(await readsOf(async () => expect((await heartbeat(agent)).status).toBe(200))).toBe(0);
  });

  it('are charged as calls of a stranger if they cost none', async () => {
    await start({ QUOTA_PUBLIC: '60/1m,3' });
    const agent = await server.register('a');
    const missing = () => server.request('POST', '/heartbeat', { body: {} });
    for (let i = 0; i < 3; i++) expect((await missing()).status).toBe(401);
    const refused = await missing();
    expect([refused.status, refused.body.details]).toEqual([429, { quota: 'public' }]);
    expect((await server.request('GET', '/v1/agents')).status).toBe(429);
    expect((await heartbeat(agent)).status).toBe(200);
    expect((await server.operator('GET', '/v1/agents')).status).toBe(200);
  });

  it('keep no neighbour out that has not failed itself, and cost no read once nothing is left', async () => {
    await start({ FAILED_AUTH_PER_IP: '30/1m,2' });
    const [known, unknown] = [await server.register('a'), await server.register('b')];
    const operator = await issue('viewer');
    await heartbeat(known);
    expect(await guesses({ 'x-agent-id': '99' })).toBe(5);
    // Nobody knows yet that these are right.
    expect((await heartbeat(unknown)).status).toBe(200);
    expect((await server.request('GET', '/v1/agents', { headers: operator })).status).toBe(200);
    // What is left of the twenty that there are beside: right ones cost none of them.
    let left = 0;
    while ((await guess({ 'x-agent-id': String(1_000 + left) })).status === 401) left++;
    expect(left).toBe(17);
    // Made by another replica: nobody here knows yet that it is right.
    const cold = await addAgent();
    const made = await server.register('c');
    expect(
      await readsOf(async () => {
        expect((await guess({ 'x-agent-id': '99' })).status).toBe(429);
        expect((await guess({ 'x-agent-id': String(known.agent_id) })).status).toBe(429);
        const headers = { authorization: `Bearer ${mintToken('dcpo_')}` };
        expect((await server.request('GET', '/v1/agents', { headers })).status).toBe(429);
        expect((await heartbeat(cold)).status).toBe(429);
        expect((await heartbeat(known)).status).toBe(200);
        expect((await heartbeat(unknown)).status).toBe(200);
        expect((await heartbeat(made)).status).toBe(200);
      }),
    ).toBe(0);
    clock.advance(2_000);
    expect((await heartbeat(cold)).status).toBe(200);
  });

  it('keep nobody out whose credentials are right, also after a restart', async () => {
    const env = { FAILED_AUTH_PER_IP: '30/1m,1', REGISTRATION: 'token' };
    await start(env);
    const create = (path: string, body: object) => server.operator('POST', path, body);
    const agent: Credentials = (await create('/v1/agents', { hostname: 'a' })).body;
    const viewer = (await create('/v1/operator-tokens', { name: 'v', role: 'viewer' })).body.token;
    const enrollment = (await create('/v1/enrollment-tokens', { name: 'e' })).body.token;
    await server.stop({ keep: true });
    server = await TestServer.start(env, { clock, folder: server.folder });
    // The first look-ups of an agent's own id teach what is right; those of other ids leave nothing for anybody.
    for (let i = 0; i < 5; i++) await guess({ 'x-agent-id': String(agent.agent_id) });
    let id = 1_000;
    while ((await guess({ 'x-agent-id': String(id) })).status === 401) id++;
    expect((await heartbeat(agent)).status).toBe(200);
    const list = (token: string) =>
      server.request('GET', '/v1/agents', { headers: { authorization: `Bearer ${token}` } });
    expect((await list(viewer)).status).toBe(200);
    expect((await list(ADMIN_TOKEN)).status).toBe(200);
    expect((await list(mintToken('dcpo_'))).status).toBe(429);
    expect((await register({ hostname: 'b' }, { 'x-enrollment-token': enrollment })).status).toBe(200);
    expect((await register({ hostname: 'c' }, { 'x-enrollment-token': mintToken('dcpe_') })).status).toBe(
      429,
    );
  });

  it('are counted by address: IPv6 by its /64', async () => {
    await start({ FAILED_AUTH_PER_IP: '30/1m,1', TRUST_PROXY: '127.0.0.1' });
    const from = (address: string) => guesses({ 'x-forwarded-for': address });
    expect(await from('192.0.2.1')).toBe(4);
    expect(await from('192.0.2.1')).toBe(0);
    expect(await from('::ffff:192.0.2.1')).toBe(0);
    expect(await from('192.0.2.2')).toBe(4);
    expect(await from('2001:db8::1')).toBe(4);
    expect(await from('2001:db8::ffff:2')).toBe(0);
    expect(await from('2001:db8:0:1::1')).toBe(4);
  });

  it('do not hide behind a header if no proxy is trusted', async () => {
    await start({ FAILED_AUTH_PER_IP: '30/1m,1' });
    expect(await guesses({ 'x-forwarded-for': '192.0.2.1' })).toBe(4);
    expect(await guesses({ 'x-forwarded-for': '192.0.2.2' })).toBe(0);
  });

  it('are not limited where the setting says so', async () => {
    await start({ FAILED_AUTH_PER_IP: 'off' });
    for (let i = 0; i < 40; i++) expect((await guess()).status).toBe(401);
  });
});

describe("an agent's quota", () => {
  const TABLE = [
    { route: 'heartbeat', burst: 3, intervalS: 10, body: {} },
    { route: 'claim', burst: 6, intervalS: 5, body: { capacities: {} } },
    { route: 'extend', burst: 10, intervalS: 2, body: { lease_ids: [], extend_by_ms: 1_000 } },
    { route: 'report', burst: 6, intervalS: 5, body: { completed: [], cancelled: [] } },
  ];

  it.each(TABLE)(
    'of $route is $burst at once and one in $intervalS s after, at both paths together',
    async ({ route, burst, intervalS, body }) => {
      await start({ [`QUOTA_${route.toUpperCase()}`]: 'default' });
      const [agent, other] = [await server.register('a'), await server.register('b')];
      const call = (i: number) => server.agent(agent, i % 2 ? `/${route}` : `/v1/agents/${route}`, body);
      for (let i = 0; i < burst; i++) {
        const answer = await call(i);
        expect(answer.status).toBe(200);
        expect(answer.headers.get('ratelimit-policy')).toBe(`"${route}";q=${burst};w=${burst * intervalS}`);
        expect(answer.headers.get('ratelimit')).toBe(`"${route}";r=${burst - 1 - i};t=${intervalS}`);
      }
      clock.advance(1_500);
      const left = Math.ceil(intervalS - 1.5);
      for (let i = 0; i < 3; i++) {
        const refused = await call(i);
        expect(refused.status).toBe(429);
        expect(refused.body).toEqual({
          error: 'ERR_RATE_LIMITED',
          message: 'Too many requests; wait for Retry-After.',
          retryable: true,
          details: { quota: route },
        });
        expect(refused.headers.get('retry-after')).toBe(String(left));
        expect(refused.headers.get('ratelimit')).toBe(`"${route}";r=0;t=${left}`);
        expect(refused.headers.get('ratelimit-policy')).toBe(`"${route}";q=${burst};w=${burst * intervalS}`);
      }
      expect((await server.agent(other, `/${route}`, body)).status).toBe(200);

      // To the millisecond; the refused ones cost nothing.
      clock.advance(intervalS * 1_000 - 1_501);
      expect((await call(0)).status).toBe(429);
      clock.advance(1);
      expect((await call(0)).status).toBe(200);
      expect((await call(1)).status).toBe(429);
    },
  );

  it.each(TABLE)('of $route lets a caller in that waits for Retry-After', async ({ route, body }) => {
    await start({ [`QUOTA_${route.toUpperCase()}`]: 'default' });
    const agent = await server.register('a');
    for (let round = 0; round < 5; round++) {
      let answer = await server.agent(agent, `/${route}`, body);
      while (answer.status === 200) answer = await server.agent(agent, `/${route}`, body);
      clock.advance(Number(answer.headers.get('retry-after')) * 1_000);
      expect((await server.agent(agent, `/${route}`, body)).status).toBe(200);
      clock.advance(777);
    }
  });

  it('admits exactly the burst and the rate to one who never stops trying', async () => {
    await start({ QUOTA_HEARTBEAT: 'default' });
    const agent = await server.register('a');
    let admitted = 0;
    for (let second = 0; second < 300; second++) {
      if ((await heartbeat(agent)).status === 200) admitted++;
      clock.advance(1_000);
    }
    // The last one comes at 299 s: 3 at once and one in each 10 s of these.
    expect(admitted).toBe(3 + 29);
  });

  it('counts what fails after it was admitted, and not what was never the caller', async () => {
    await start({ QUOTA_HEARTBEAT: 'default' });
    const [agent, other] = [await server.register('a'), await server.register('b')];
    for (let i = 0; i < 5; i++)
      expect((await heartbeat({ ...agent, auth_token: strangersToken() })).status).toBe(401);
    // It is charged before the body is read, so before it is known which hostname it is for.
    expect((await server.agent(agent, '/heartbeat', { agent_id: other.agent_id })).status).toBe(403);
    for (let i = 0; i < 2; i++)
      expect((await server.agent(agent, '/heartbeat', { config_status: 'applied' })).status).toBe(400);
    expect((await heartbeat(agent)).status).toBe(429);
    expect((await heartbeat(other)).status).toBe(200);
  });

  it('follows its setting', async () => {
    await start({ QUOTA_HEARTBEAT: '7/1m,2' });
    const agent = await server.register('a');
    const first = await heartbeat(agent);
    // 60 s / 7 is no whole number: the interval is 8.57 s, the window 17.1 s.
    expect(first.headers.get('ratelimit-policy')).toBe('"heartbeat";q=2;w=18');
    expect((await heartbeat(agent)).status).toBe(200);
    expect((await heartbeat(agent)).headers.get('retry-after')).toBe('9');
    clock.advance(8_571);
    expect((await heartbeat(agent)).headers.get('retry-after')).toBe('1');
    clock.advance(1);
    expect((await heartbeat(agent)).status).toBe(200);
  });

  it('can be switched off, and says nothing then', async () => {
    await start({ QUOTA_HEARTBEAT: 'off' });
    const agent = await server.register('a');
    for (let i = 0; i < 10; i++) {
      const answer = await heartbeat(agent);
      expect(answer.status).toBe(200);
      expect(answer.headers.has('ratelimit') || answer.headers.has('ratelimit-policy')).toBe(false);
    }
  });
});

describe('an operator', () => {
  const list = (headers: Record<string, string>) => server.request('GET', '/v1/agents', { headers });
  const setLimits = (headers: Record<string, string>) =>
    server.request('PUT', '/v1/concurrency/limits', {
      headers,
      body: { limits: [{ kind: 'dns', limit: 5 }] },
    });

  it('may do what its role and those below may', async () => {
    await start();
    for (const role of ['operator', 'admin'] as const) {
      const headers = await issue(role);
      expect([(await list(headers)).status, (await setLimits(headers)).status]).toEqual([200, 200]);
    }
    const viewer = await issue('viewer');
    expect((await list(viewer)).status).toBe(200);
    const refused = await setLimits(viewer);
    expect([refused.status, refused.body.error]).toEqual([403, 'ERR_FORBIDDEN']);
    const agent = await server.register('a');
    expect(
      (await server.request('POST', `/v1/agents/${agent.agent_id}/disable`, { headers: viewer })).status,
    ).toBe(403);
    expect((await heartbeat(agent)).status).toBe(200);
  });

  it('gets one answer for missing, unknown and malformed tokens, which names the scheme', async () => {
    await start();
    const agent = await server.register('a');
    const refused: Record<string, string>[] = [
      {},
      { authorization: '' },
      { authorization: 'Bearer' },
      { authorization: `Basic ${ADMIN_TOKEN}` },
      { authorization: ADMIN_TOKEN },
      { authorization: `Bearer ${ADMIN_TOKEN}x` },
      { authorization: `Bearer ${ADMIN_TOKEN} ${ADMIN_TOKEN}` },
      { authorization: `Bearer ${mintToken('dcpo_')}` },
      { authorization: `Bearer ${withTypo(mintToken('dcpo_'))}` },
      { authorization: `Bearer ${agent.auth_token}` },
      credentialsOf(agent),
    ];
    for (const headers of refused) {
      const answer = await list(headers);
      expect([headers, answer.status, answer.body]).toEqual([headers, 401, UNAUTHORIZED]);
      expect(answer.headers.get('www-authenticate')).toBe('Bearer');
    }
    expect((await list({ authorization: `bearer ${ADMIN_TOKEN}` })).status).toBe(200);
  });

  it('costs no read of the database once it is known, nor with a typo in the token', async () => {
    await start();
    const headers = await issue('operator');
    const path = `/v1/agents/${(await server.register('a')).agent_id}`;
    const get = (sent: Record<string, string>) => server.request('GET', path, { headers: sent });
    // One read is the answer itself.
    expect(await readsOf(() => get(headers))).toBe(2);
    expect(await readsOf(() => get(headers))).toBe(1);
    expect(await readsOf(() => get({ authorization: `Bearer ${withTypo(mintToken('dcpo_'))}` }))).toBe(0);
    expect(await readsOf(() => get({ authorization: 'Bearer dcpo_short' }))).toBe(0);
    expect(await readsOf(() => get({ authorization: `Bearer ${mintToken('dcpo_')}` }))).toBe(1);
  });

  it('is told that its token has expired, also when it was in use', async () => {
    await start();
    const headers = await issue('viewer', clock.now() + 1_000);
    expect((await list(headers)).status).toBe(200);
    clock.advance(1_000);
    const expired = await list(headers);
    expect(expired.status).toBe(401);
    expect(expired.body).toEqual({
      error: 'ERR_TOKEN_EXPIRED',
      message: 'The token has expired.',
      retryable: false,
    });
    expect(expired.headers.get('www-authenticate')).toBe('Bearer');
  });
});

describe("the admin's token", () => {
  let folder: string;
  let beside: ReturnType<typeof besideDatabase>;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
    beside = besideDatabase(folder);
  });
  afterEach(() => beside.leave());

  const works = async (token: string): Promise<boolean> =>
    (await server.request('GET', '/v1/agents', { headers: { authorization: `Bearer ${token}` } })).status ===
    200;
  const restart = async (token: string): Promise<void> => {
    await server.stop({ keep: true });
    server = await TestServer.start({ ADMIN_TOKEN: token }, { folder });
  };
  const readFile = () => readFileSync(beside.path('admin-token'), 'utf8').trim();

  it('is the one of the setting; one that it was before works until it is revoked, and never again', async () => {
    server = await TestServer.start({ ADMIN_TOKEN: 'the-first-token-of-the-admin' }, { folder });
    expect(await works('the-first-token-of-the-admin')).toBe(true);
    await restart('the-first-token-of-the-admin');
    expect(await works('the-first-token-of-the-admin')).toBe(true);
    await restart('the-second-token-of-the-admin');
    expect(await works('the-second-token-of-the-admin')).toBe(true);
    // Other replicas may still have it as their setting.
    expect(await works('the-first-token-of-the-admin')).toBe(true);
    const revoke = (id: number) =>
      server.request('DELETE', `/v1/operator-tokens/${id}`, {
        headers: { authorization: 'Bearer the-second-token-of-the-admin' },
      });
    const rows = await server.rows<{ id: number }>('SELECT id FROM operator_tokens ORDER BY id');
    const [first, second] = rows.map(({ id }) => id) as [number, number];
    const own = await revoke(second);
    expect([own.status, own.body.message]).toEqual([
      409,
      expect.stringContaining('CONTROL_PLANE_ADMIN_TOKEN'),
    ]);
    expect((await revoke(first)).status).toBe(204);
    expect(await works('the-first-token-of-the-admin')).toBe(false);
    // A replica that was forgotten starts again with the old setting: that brings nothing back.
    await restart('the-first-token-of-the-admin');
    expect(await works('the-first-token-of-the-admin')).toBe(false);
    expect(await works('the-second-token-of-the-admin')).toBe(true);
  });

  it('is known by its slow hash where the setting is not; that is worked out once, and strangers wait their turn', async () => {
    const token = 'a-token-of-another-replica';
    server = await TestServer.start(
      { ADMIN_TOKEN: 'default', FAILED_AUTH_PER_IP: '30/1m,1' },
      { folder, clock: new TestClock() },
    );
    const stored = await hashSecret(token);
    await server.database.write((tx) =>
      tx.run(
        `INSERT INTO operator_tokens (name, role, origin, token_hash, created_at) VALUES ('a', 'admin', 'setting', $1, 1)`,
        stored,
      ),
    );
    const slow = jest.spyOn(crypto, 'scrypt');
    try {
      // There is no reserve for what costs so much.
      for (let i = 0; i < 40; i++) await works(`guess-of-at-least-24-chars-${i}`);
      expect(slow).toHaveBeenCalledTimes(1);
      expect(await works(token)).toBe(false);
      (server.app.get(Clock) as TestClock).advance(2_000);
      expect(await works(token)).toBe(true);
      expect(slow).toHaveBeenCalledTimes(2);
      expect(await works(token)).toBe(true);
      (server.app.get(Clock) as TestClock).advance(2_000);
      expect(await works('a-guess-that-costs-nothing-now')).toBe(false);
      expect(slow).toHaveBeenCalledTimes(2);
    } finally {
      slow.mockRestore();
    }
  });

  it('is stored slowly hashed, and worked out once for each process', async () => {
    const token = 'the-first-token-of-the-admin';
    server = await TestServer.start({ ADMIN_TOKEN: token }, { folder });
    const [row] = await server.rows('SELECT token_hash FROM operator_tokens');
    expect(row.token_hash).toMatch(/^scrypt\$[\w-]{22}\$[\w-]{43}$/);
    expect(JSON.stringify(row)).not.toContain(hashToken(token));
    // The setting is there: what it is not costs no slow hash, and what it is costs none.
    const slow = jest.spyOn(crypto, 'scrypt');
    try {
      expect(await works(token)).toBe(true);
      expect(await works('another-token-of-somebody')).toBe(false);
      expect(slow).not.toHaveBeenCalled();
    } finally {
      slow.mockRestore();
    }
    await restart(token);
    expect(await server.rows('SELECT id, token_hash FROM operator_tokens')).toEqual([
      { id: expect.any(Number), token_hash: row.token_hash },
    ]);
    expect(await works(token)).toBe(true);
  });

  it('may look like one of ours without being one', async () => {
    server = await TestServer.start({ ADMIN_TOKEN: 'dcpo_not-made-by-this-program' }, { folder });
    expect(await works('dcpo_not-made-by-this-program')).toBe(true);
  });

  it('is made at the first start, in a file that only its owner can read, and never logged', async () => {
    const lines: string[] = [];
    const logger = pino({ level: 'trace' }, { write: (line: string) => lines.push(line) });
    server = await TestServer.start({ ADMIN_TOKEN: 'default' }, { folder, logger });
    const path = beside.path('admin-token');
    const token = readFile();
    expect(token).toMatch(/^dcpo_[0-9A-Za-z]{49}$/);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(await works(token)).toBe(true);
    const log = lines.join('');
    expect(log).toContain(path);
    expect(log).not.toContain(token);
    expect(JSON.stringify(await server.rows('SELECT * FROM operator_tokens'))).not.toContain(token);

    await restart('default');
    expect(readFile()).toBe(token);
    expect(await works(token)).toBe(true);
  });

  it('replaces what a start that was cut short left, never through a link or with its rights', async () => {
    const path = beside.path('admin-token');
    const elsewhere = join(folder, 'elsewhere');
    writeFileSync(elsewhere, 'untouched', { mode: 0o644 });
    symlinkSync(elsewhere, path);
    writeFileSync(`${path}.new`, 'half', { mode: 0o666 });
    server = await TestServer.start({ ADMIN_TOKEN: 'default' }, { folder });
    expect(readFileSync(elsewhere, 'utf8')).toBe('untouched');
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(await works(readFile())).toBe(true);
  });

  it('can go from the file into the setting', async () => {
    server = await TestServer.start({ ADMIN_TOKEN: 'default' }, { folder });
    const token = readFile();
    await restart(token);
    expect(await works(token)).toBe(true);
    expect(await server.rows('SELECT origin, role FROM operator_tokens')).toEqual([
      { origin: 'setting', role: 'admin' },
    ]);
  });

  it('goes on working after a start without the setting, and no other is made', async () => {
    server = await TestServer.start({ ADMIN_TOKEN: 'the-first-token-of-the-admin' }, { folder });
    await restart('default');
    expect(await works('the-first-token-of-the-admin')).toBe(true);
    expect(existsSync(beside.path('admin-token'))).toBe(false);
  });

  it('is made again if no admin is left', async () => {
    server = await TestServer.start({ ADMIN_TOKEN: 'the-first-token-of-the-admin' }, { folder });
    await server.database.write((tx) => tx.run('UPDATE operator_tokens SET revoked_at = 1'));
    await restart('the-first-token-of-the-admin');
    expect(await works('the-first-token-of-the-admin')).toBe(false);
    expect(await works(readFile())).toBe(true);
  });

  it('set to one that could do less is an admin', async () => {
    server = await TestServer.start({ ADMIN_TOKEN: 'the-first-token-of-the-admin' }, { folder });
    await server.database.write((tx) =>
      tx.run(`UPDATE operator_tokens SET origin = 'issued', role = 'viewer'`),
    );
    await restart('the-first-token-of-the-admin');
    expect(await works('the-first-token-of-the-admin')).toBe(true);
  });
});

describe('what is public', () => {
  const get = (path: string, from?: string) =>
    server.request('GET', path, { headers: from === undefined ? {} : { 'x-forwarded-for': from } });

  it('needs no credentials and charges nobody if its quota is off', async () => {
    await start({ FAILED_AUTH_PER_IP: '30/1m,1' });
    for (const path of ['/healthz', '/readyz', '/docs', '/docs-json', '/docs-yaml']) {
      const answer = await get(path);
      expect([path, answer.status, answer.headers.has('ratelimit')]).toEqual([path, 200, false]);
    }
    expect((await get('/v1/agents')).status).toBe(401);
  });

  it('has one quota for each address over all of it, unknown paths and methods included', async () => {
    await start({ QUOTA_PUBLIC: '60/1m,4', TRUST_PROXY: '127.0.0.1' });
    const paths = ['/docs-json', '/.well-known/jwks.json', '/nobody-serves-this', '/claim'];
    const statuses = [200, 200, 404, 405];
    for (const [i, path] of paths.entries()) {
      const answer = await get(path, '192.0.2.1');
      expect([path, answer.status]).toEqual([path, statuses[i]]);
      expect(answer.headers.get('ratelimit-policy')).toBe('"public";q=4;w=4');
      expect(answer.headers.get('ratelimit')).toBe(`"public";r=${3 - i};t=1`);
    }
    for (const path of paths) {
      const refused = await get(path, '192.0.2.1');
      expect([path, refused.status, refused.headers.get('retry-after')]).toEqual([path, 429, '1']);
    }
    expect((await get('/docs-json', '192.0.2.2')).status).toBe(200);
    // A caller that has credentials, or registers, is not counted there.
    const { status } = await register({ hostname: 'a' }, { 'x-forwarded-for': '192.0.2.1' });
    expect(status).toBe(200);
    clock.advance(1_000);
    expect((await get('/docs-json', '192.0.2.1')).status).toBe(200);
  });

  it('tells load balancers of its health, whatever else was asked; strangers have a quota for that too', async () => {
    await start({ QUOTA_PUBLIC: '60/1m,2', TRUST_PROXY: '127.0.0.1' });
    for (let i = 0; i < 3; i++) await get('/nobody-serves-this', '192.0.2.1');
    expect((await get('/healthz', '192.0.2.1')).status).toBe(200);
    expect((await get('/readyz', '192.0.2.1')).status).toBe(200);
    expect((await get('/readyz', '192.0.2.1')).status).toBe(429);
    for (let i = 0; i < 10; i++) expect((await get('/readyz')).status).toBe(200);
  });
});

describe("an operator's quota", () => {
  it('is of its token, and comes before its role and the body', async () => {
    await start({ QUOTA_OPERATOR: '60/1m,2' });
    const [viewer, other] = [await issue('viewer'), await issue('viewer')];
    const enqueue = (headers: Record<string, string>) =>
      server.request('POST', '/v1/tasks', { headers, body: '{' });
    const list = (headers: Record<string, string>) => server.request('GET', '/v1/agents', { headers });
    const answer = await list(viewer);
    expect(answer.headers.get('ratelimit-policy')).toBe('"operator";q=2;w=2');
    expect(answer.headers.get('ratelimit')).toBe('"operator";r=1;t=1');
    expect((await enqueue(viewer)).status).toBe(403);
    const refused = await list(viewer);
    expect([refused.status, refused.headers.get('retry-after'), refused.body.details]).toEqual([
      429,
      '1',
      { quota: 'operator' },
    ]);
    expect((await list(other)).status).toBe(200);
    clock.advance(1_000);
    expect((await list(viewer)).status).toBe(200);
  });
});
