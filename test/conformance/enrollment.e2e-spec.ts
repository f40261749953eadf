import { hashToken, mintToken } from '../../src/http/tokens';
import type { BodyOf } from '../helpers/api';
import {
  type Answer,
  type Credentials,
  credentialsOf,
  dnsTask,
  TestClock,
  TestServer,
  withTypo,
} from '../helpers/harness';

const TOKENS = '/v1/enrollment-tokens';
const SETTING = 'an-enrollment-token-for-tests';
const REFUSED = {
  error: 'ERR_UNAUTHORIZED',
  message: 'A valid enrollment token is needed.',
  retryable: false,
};

let clock: TestClock;
let server: TestServer;

/** Starts the server of one test. */
async function start(env: Record<string, string> = {}): Promise<void> {
  clock = new TestClock();
  server = await TestServer.start(env, { clock });
}

afterEach(() => server.stop());

/** Makes a token through the API. */
async function issue(body: object = {}): Promise<Answer['body']> {
  const answer = await server.operator('POST', TOKENS, { name: 'a', ...body });
  expect([answer.status, answer.headers.get('cache-control')]).toEqual([201, 'no-store']);
  return answer.body;
}

const tokens = async (): Promise<Answer['body'][]> => (await server.operator('GET', TOKENS)).body.items;
const usesOf = async (id: number): Promise<number> => (await tokens()).find((one) => one.id === id).uses;
const revoke = (id: number): Promise<Answer> => server.operator('DELETE', `${TOKENS}/${id}`);
const register = (hostname?: string, token?: string, headers: Record<string, string> = {}): Promise<Answer> =>
  server.request('POST', '/register', {
    headers: token === undefined ? headers : { 'x-enrollment-token': token, ...headers },
    body: hostname === undefined ? {} : { hostname },
  });
const agent = async (id: number): Promise<Answer['body']> =>
  (await server.operator('GET', `/v1/agents/${id}`)).body;
const heartbeat = async (who: Credentials): Promise<number> => (await server.agent(who, '/heartbeat')).status;
const label = (id: number, labels: unknown): Promise<Answer> =>
  server.operator('PUT', `/v1/agents/${id}/labels`, { labels });
const audit = async (action: string): Promise<Answer['body'][]> =>
  (await server.operator('GET', `/v1/audit?action=${action}`)).body.items;

describe('an enrollment token', () => {
  it('is shown once, kept as a hash, and listed without its secret', async () => {
    await start();
    const made = await issue({ labels: { region: 'fra' }, max_uses: 2, expires_in: 60 });
    expect(made).toEqual({
      id: expect.any(Number),
      name: 'a',
      labels: { region: 'fra' },
      max_uses: 2,
      uses: 0,
      created_at: '2026-01-01T00:00:00.000Z',
      expires_at: '2026-01-01T00:01:00.000Z',
      revoked_at: null,
      token: expect.stringMatching(/^dcpe_[0-9A-Za-z]{49}$/),
    });
    const endless = await issue({ labels: null, max_uses: null, expires_in: null });
    expect(endless).toMatchObject({ labels: {}, max_uses: null, expires_at: null });
    const { token, ...view } = made;
    const { token: _, ...second } = endless;
    expect(await tokens()).toEqual([second, view]);
    await register('a', token);
    const stored = JSON.stringify([
      await server.rows('SELECT * FROM enrollment_tokens'),
      await server.rows('SELECT * FROM audit_log'),
      await server.rows('SELECT * FROM agents'),
    ]);
    expect(stored).not.toContain(token);
  });

  it('enrolls agents with its labels, and is recorded with them', async () => {
    await start();
    const { id, token } = await issue({ labels: { region: 'fra', tier: '1' } });
    const { id: otherId, token: other } = await issue();
    const named = (await register('a', token)).body.agent_id;
    const nameless = (await register(undefined, token)).body.agent_id;
    const without = (await register('b')).body.agent_id;
    const byOther = (await register('c', other)).body.agent_id;
    const given = { labels: { region: 'fra', tier: '1' }, enrollment_token_id: id };
    expect(await agent(named)).toMatchObject(given);
    expect(await agent(nameless)).toMatchObject(given);
    expect(await agent(without)).toMatchObject({ labels: {}, enrollment_token_id: null });
    expect(await agent(byOther)).toMatchObject({ labels: {}, enrollment_token_id: otherId });
    const listed = await server.operator('GET', `/v1/agents?enrollment_token_id=${id}`);
    expect(listed.body.items.map((one: { id: number }) => one.id)).toEqual([nameless, named]);
    expect(await usesOf(id)).toBe(2);
  });

  it('is needed where registration is so set, and one that was issued is enough', async () => {
    await start({ REGISTRATION: 'token' });
    const refused = await register('a');
    expect([refused.status, refused.body]).toEqual([401, REFUSED]);
    const { token } = await issue({ max_uses: 1 });
    const { status, body } = await register('a', token);
    expect([status, await heartbeat(body)]).toEqual([200, 200]);
    const inBody = await server.request('POST', '/register', {
      body: { hostname: 'a', enrollment_token: token },
    });
    expect([inBody.status, inBody.body.agent_id]).toEqual([200, body.agent_id]);
  });

  it('is refused in the same words when it is unknown, mistyped, expired, revoked or used up', async () => {
    await start();
    const live = await server.register('live');
    const expired = await issue({ expires_in: 60 });
    const revoked = await issue();
    const usedUp = await issue({ max_uses: 1 });
    expect((await register('one', usedUp.token)).status).toBe(200);
    expect((await revoke(revoked.id)).status).toBe(204);
    clock.advance(59_999);
    expect((await register('two', expired.token)).status).toBe(200);
    clock.advance(1);
    const before = await server.rows('SELECT * FROM agents');
    const good = await issue();
    const shown = [
      expired.token,
      revoked.token,
      usedUp.token,
      mintToken('dcpe_'),
      mintToken('dcpa_'),
      live.auth_token,
      withTypo(good.token),
      `${good.token}0`,
      good.token.toLowerCase(),
      '',
      'wrong',
    ];
    for (const token of shown) {
      for (const hostname of ['new', 'live', undefined]) {
        const answer = await register(hostname, token, credentialsOf(live));
        expect([token, hostname, answer.status, answer.body]).toEqual([token, hostname, 401, REFUSED]);
      }
    }
    // Expired and revoked ones are not accepted either from agents that used them before.
    expect((await register('two', expired.token)).status).toBe(401);
    expect(await server.rows('SELECT * FROM agents')).toEqual(before);
  });

  it('that is revoked or expired leaves its agents in service', async () => {
    await start();
    const { id, token } = await issue({ expires_in: 60 });
    const { body } = await register('a', token);
    await revoke(id);
    clock.advance(60_000);
    expect(await heartbeat(body)).toBe(200);
    expect((await tokens())[0]).toMatchObject({ id, uses: 1, revoked_at: '2026-01-01T00:00:00.000Z' });
  });

  it('is charged to the address if it was looked up and is wrong, and is not looked up if that has failed too often', async () => {
    await start({ FAILED_AUTH_PER_IP: '30/1m,1' });
    const { token } = await issue();
    // One, and ten in reserve; a typo costs no look-up.
    for (let i = 0; i < 11; i++) {
      expect((await register('a', mintToken('dcpe_'))).status).toBe(401);
      expect((await register('a', withTypo(token))).status).toBe(401);
    }
    // Made by another replica: this one knows of its own that they are right.
    const elsewhere = mintToken('dcpe_');
    await server.database.write((tx) =>
      tx.run(
        `INSERT INTO enrollment_tokens (name, labels, token_hash, uses, created_at) VALUES ('b', '{}', $1, 0, $2)`,
        hashToken(elsewhere),
        clock.now(),
      ),
    );
    for (const shown of [mintToken('dcpe_'), elsewhere]) {
      const answer = await register('a', shown);
      expect([answer.status, answer.body.error]).toEqual([429, 'ERR_RATE_LIMITED']);
    }
    expect((await register('a', withTypo(token))).status).toBe(401);
    expect(await server.rows('SELECT * FROM agents')).toEqual([]);
    expect((await register('b', token)).status).toBe(200);
    clock.advance(2_000);
    expect((await register('a', elsewhere)).status).toBe(200);
  });

  it('is revoked once, however often it is sent, and only if there is one', async () => {
    await start();
    const { id } = await issue({ labels: { a: 'b' }, max_uses: 3 });
    expect((await revoke(id)).status).toBe(204);
    clock.advance(1_000);
    expect((await revoke(id)).status).toBe(204);
    expect((await tokens())[0].revoked_at).toBe('2026-01-01T00:00:00.000Z');
    const missing = await revoke(4711);
    expect([missing.status, missing.body.details]).toEqual([404, { enrollment_token_id: 4711 }]);
    expect(await audit('enrollment-token.create')).toMatchObject([
      {
        subject: `enrollment-token/${id}`,
        before: null,
        after: { name: 'a', labels: { a: 'b' }, max_uses: 3, expires_at: null },
      },
    ]);
    expect(await audit('enrollment-token.withdraw')).toMatchObject([
      { subject: `enrollment-token/${id}`, before: { name: 'a', uses: 0 }, after: null },
    ]);
  });

  it('is not made from what is no good', async () => {
    await start();
    for (const [fields, field] of [
      [{ name: '' }, 'name'],
      [{ name: 'a\n' }, 'name'],
      [{ name: 'x'.repeat(101) }, 'name'],
      [{ name: null }, 'name'],
      [{ max_uses: 0 }, 'max_uses'],
      [{ max_uses: 1.5 }, 'max_uses'],
      [{ max_uses: '1' }, 'max_uses'],
      [{ max_uses: 1e10 }, 'max_uses'],
      [{ expires_in: 0 }, 'expires_in'],
      [{ expires_in: 1e12 }, 'expires_in'],
      [{ labels: [] }, 'labels'],
      [{ labels: { a: 1 } }, 'labels.a'],
      [{ uses: 1 }, 'uses'],
    ] as const) {
      const { status, body } = await server.operator('POST', TOKENS, { name: 'a', ...fields });
      expect([fields, status, Object.keys(body.details)]).toEqual([fields, 400, [field]]);
    }
    expect(await tokens()).toEqual([]);
  });
});

describe('the uses of an enrollment token', () => {
  it('let in exactly as many agents as they are for, however many ask at once', async () => {
    await start();
    const { id, token } = await issue({ max_uses: 5 });
    const answers = await Promise.all(
      Array.from({ length: 40 }, (_, i) => register(i % 2 ? `host-${i}` : undefined, token)),
    );
    expect(answers.filter(({ status }) => status === 200)).toHaveLength(5);
    expect(answers.filter(({ status }) => status === 401)).toHaveLength(35);
    expect(await server.rows('SELECT id FROM agents')).toHaveLength(5);
    expect(await usesOf(id)).toBe(5);
  });

  it('are counted once for an agent, so that a lost answer can be asked for again', async () => {
    await start({ REGISTRATION: 'token' });
    const { id, token } = await issue({ max_uses: 1 });
    const answers = await Promise.all(Array.from({ length: 5 }, () => register('a', token)));
    expect(new Set(answers.map(({ status, body }) => `${status} ${body.agent_id}`)).size).toBe(1);
    expect(await usesOf(id)).toBe(1);
    expect((await register('b', token)).status).toBe(401);
    // A new agent of the same name is another one.
    await server.operator('DELETE', `/v1/agents/${answers[0]?.body.agent_id}`);
    expect((await register('a', token)).status).toBe(401);
  });

  it('are not taken by a registration that is refused', async () => {
    await start({ QUOTA_REGISTER: 'default' });
    const { id, token } = await issue({ max_uses: 2, labels: { a: 'b' } });
    const disabled = (await register('disabled')).body;
    await server.operator('POST', `/v1/agents/${disabled.agent_id}/disable`);
    const limited = (await register('limited')).body;
    expect((await register('disabled', token)).status).toBe(403);
    expect((await register('limited', token)).status).toBe(429);
    expect((await register('', token)).status).toBe(400);
    expect(await usesOf(id)).toBe(0);
    for (const { agent_id } of [disabled, limited])
      expect(await agent(agent_id)).toMatchObject({ labels: {}, enrollment_token_id: null });
  });

  it("that are used up are no proof for another agent's hostname", async () => {
    await start();
    const { token } = await issue({ max_uses: 1 });
    await register('a', token);
    const other = await server.register('b');
    expect((await register('b', token)).status).toBe(401);
    // Nor does it enroll one that needs no proof.
    expect((await register('b', token, credentialsOf(other))).status).toBe(401);
    expect(await heartbeat(other)).toBe(200);
  });

  it('can not exceed the limit, whatever the code does', async () => {
    await start();
    await issue({ max_uses: 1 });
    const change = server.database.write((tx) => tx.run('UPDATE enrollment_tokens SET uses = 2'));
    await expect(change).rejects.toThrow(/check constraint/i);
  });
});

describe('a hand-over by an enrollment token', () => {
  it('is one with proof: the token before works on and the leases stay', async () => {
    await start();
    const old = await server.register('a');
    await server.enqueue(dnsTask());
    await server.agent(old, '/claim', { capacities: { dns: 1 } });
    const { id, token } = await issue({ max_uses: 1 });
    expect((await register('a')).status).toBe(409);
    const { status, body } = await register('a', token);
    expect([status, body.agent_id]).toEqual([200, old.agent_id]);
    expect(await agent(old.agent_id)).toMatchObject({ enrollment_token_id: id, live_leases: 1 });
    expect([await heartbeat(old), await heartbeat(body), await heartbeat(old)]).toEqual([200, 200, 401]);
    expect(await usesOf(id)).toBe(1);
  });

  it("lays the token's labels over those of the agent the first time, and leaves them alone after", async () => {
    await start();
    const first = await issue({ labels: { region: 'fra', tier: '1' } });
    const second = await issue({ labels: { region: 'ams', site: 'x' } });
    const { agent_id: id } = (await register('a', first.token)).body;
    await label(id, { region: 'lon', note: 'moved' });
    await register('a', first.token);
    expect((await agent(id)).labels).toEqual({ region: 'lon', note: 'moved' });
    await register('a', second.token);
    expect(await agent(id)).toMatchObject({
      labels: { region: 'ams', note: 'moved', site: 'x' },
      enrollment_token_id: second.id,
    });
    // By its own token, what was recorded stays.
    const last = (await register('a', second.token)).body;
    expect((await register('a', undefined, credentialsOf(last))).status).toBe(200);
    expect(await agent(id)).toMatchObject({
      labels: { region: 'ams', note: 'moved', site: 'x' },
      enrollment_token_id: second.id,
    });
  });

  it("of the setting's goes on as before and records none", async () => {
    await start({ REGISTRATION: 'token', ENROLLMENT_TOKENS: SETTING });
    const { body } = await register('a', SETTING);
    expect((await register('a', SETTING)).body.agent_id).toBe(body.agent_id);
    expect(await agent(body.agent_id)).toMatchObject({ labels: {}, enrollment_token_id: null });
  });
});

describe("an agent's labels", () => {
  it('are replaced as a whole, and recorded where they change', async () => {
    await start();
    const { agent_id: id } = await server.register('a');
    const answer = await label(id, { region: 'fra', 'k8s.io/zone_1-a': '', note: 'ä: b' });
    expect(answer.status).toBe(200);
    expect(answer.body).toEqual(await agent(id));
    expect(answer.body.labels).toEqual({ region: 'fra', 'k8s.io/zone_1-a': '', note: 'ä: b' });
    await label(id, { tier: '2', region: 'ams' });
    await label(id, { region: 'ams', tier: '2' });
    expect((await label(id, {})).body.labels).toEqual({});
    const last = { region: 'ams', tier: '2' };
    expect(await audit('agent.label')).toMatchObject([
      { subject: `agent/${id}`, before: { labels: last }, after: { labels: {} } },
      { before: { labels: { region: 'fra', 'k8s.io/zone_1-a': '', note: 'ä: b' } }, after: { labels: last } },
      { before: { labels: {} } },
    ]);
  });

  it('find it, alone and with other filters, on pages of any size', async () => {
    await start();
    const ids: number[] = [];
    for (let i = 0; i < 6; i++) {
      const { agent_id: id } = await server.register(`host-${i}`);
      await label(id, { region: i % 2 ? 'fra' : 'ams', rack: `r:${i % 3}`, note: '' });
      ids.unshift(id);
    }
    const all = [...ids];
    const [newest] = ids;
    await server.operator('POST', `/v1/agents/${newest}/drain`);
    const find = async (query: string): Promise<number[]> => {
      const found: number[] = [];
      for (let cursor: string | null = ''; cursor !== null; ) {
        const path: string = `/v1/agents?limit=2&${query}${cursor && `&cursor=${cursor}`}`;
        const { body }: Answer<BodyOf<'GET', '/v1/agents'>> = await server.operator('GET', path);
        found.push(...body.items.map((one: { id: number }) => one.id));
        cursor = body.next_cursor;
      }
      return found;
    };
    expect(await find('label=region:fra')).toEqual([all[0], all[2], all[4]]);
    expect(await find('label=rack:r:1')).toEqual([all[1], all[4]]);
    expect(await find('label=region:fra&label=rack:r:1')).toEqual([all[4]]);
    expect(await find('label=region:fra&status=online&hostname=host-1')).toEqual([all[4]]);
    expect(await find('label=region:fra&status=draining')).toEqual([newest]);
    expect(await find('label=note:')).toEqual(all);
    for (const nothing of [
      'region:Fra',
      'region:fr',
      'region:%25',
      'other:fra',
      'region:fra&label=region:ams',
    ])
      expect([nothing, await find(`label=${nothing}`)]).toEqual([nothing, []]);
    await server.operator('DELETE', `/v1/agents/${newest}`);
    expect(await find('label=region:fra')).toEqual([all[2], all[4]]);
  });

  it('are not looked for by what can be none', async () => {
    await start();
    const long = [`a:${'x'.repeat(256)}`, `${'x'.repeat(64)}:a`];
    const many = Array.from({ length: 33 }, () => 'a:b').join('&label=');
    for (const filter of ['', 'region', ':fra', '_a:b', 'a b:c', 'a:%0A', 'a:b&label=', many, ...long]) {
      const { status, body } = await server.operator('GET', `/v1/agents?label=${filter}`);
      expect([filter, status, Object.keys(body.details)]).toEqual([filter, 400, ['label']]);
    }
    for (const filter of ['0', 'x', '']) {
      const { status, body } = await server.operator('GET', `/v1/agents?enrollment_token_id=${filter}`);
      expect([status, Object.keys(body.details)]).toEqual([400, ['enrollment_token_id']]);
    }
  });

  it('are not made from what is no good', async () => {
    await start();
    const { agent_id: id } = await server.register('a');
    await label(id, { a: 'b' });
    const many = Object.fromEntries(Array.from({ length: 33 }, (_, i) => [`n${i}`, '']));
    for (const [labels, field] of [
      [undefined, 'labels'],
      [null, 'labels'],
      [[], 'labels'],
      ['a', 'labels'],
      [{ a: 1 }, 'labels.a'],
      [{ a: null }, 'labels.a'],
      [{ a: 'x'.repeat(256) }, 'labels.a'],
      [{ a: 'b\n' }, 'labels.a'],
      [{ '': 'a' }, 'labels'],
      [{ 'a:b': 'c' }, 'labels'],
      [{ 'a\nb': 'c' }, 'labels'],
      [{ ['x'.repeat(64)]: 'a' }, 'labels'],
      [many, 'labels'],
    ] as const) {
      const { status, body } = await label(id, labels);
      expect([labels, status, Object.keys(body.details)]).toEqual([labels, 400, [field]]);
    }
    expect((await agent(id)).labels).toEqual({ a: 'b' });
  });

  it('are taken up to the limits', async () => {
    await start();
    const { agent_id: id } = await server.register('a');
    const most = Object.fromEntries(
      Array.from({ length: 32 }, (_, i) => [`${'n'.repeat(61)}${10 + i}`, 'v'.repeat(255)]),
    );
    expect((await label(id, most)).body.labels).toEqual(most);
  });

  it('of nobody are not there to change', async () => {
    await start();
    expect((await label(4711, {})).status).toBe(404);
  });
});
