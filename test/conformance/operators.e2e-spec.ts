import { AuditLog } from '../../src/operators/audit-log';
import type { BodyOf, Json } from '../helpers/api';
import {
  ADMIN_TOKEN,
  type Answer,
  dnsTask,
  OPERATOR,
  onPostgres,
  TestClock,
  TestServer,
} from '../helpers/harness';
import { until } from '../helpers/until';

let clock: TestClock;
let server: TestServer;

const start = async () => {
  clock = new TestClock();
  server = await TestServer.start({}, { clock });
};
const stop = () => server.stop();

const TOKENS = '/v1/operator-tokens';
const ROLES = ['viewer', 'operator', 'admin'] as const;

/** Makes a token through the API. */
async function issue(body: object): Promise<Answer['body']> {
  const answer = await server.operator('POST', TOKENS, body);
  expect([answer.status, answer.headers.get('cache-control')]).toEqual([201, 'no-store']);
  return answer.body;
}

const as = (token: string, method: string, path: string, body?: unknown) =>
  server.request(method, path, { headers: { authorization: `Bearer ${token}` }, body });
const tokens = async (): Promise<Answer['body'][]> => (await server.operator('GET', TOKENS)).body.items;
const audit = async (query = ''): Promise<Answer['body'][]> =>
  (await server.operator('GET', `/v1/audit${query}`)).body.items;
const verification = async () => (await server.operator('GET', '/v1/audit/verification')).body;

describe("operators' tokens", () => {
  beforeEach(start);
  afterEach(stop);

  it('are shown once, kept as a hash, and listed without their secret', async () => {
    const made = await issue({ name: 'alice', role: 'operator', expires_in: 3_600 });
    expect(made).toEqual({
      id: expect.any(Number),
      name: 'alice',
      role: 'operator',
      origin: 'issued',
      created_at: '2026-01-01T00:00:00.000Z',
      expires_at: '2026-01-01T01:00:00.000Z',
      revoked_at: null,
      last_used_at: null,
      token: expect.stringMatching(/^dcpo_[0-9A-Za-z]{49}$/),
    });
    const listed = await tokens();
    const { token, ...view } = made;
    expect(listed[0]).toEqual(view);
    expect(listed[1]).toMatchObject({ name: 'bootstrap', role: 'admin', origin: 'setting' });
    const stored = JSON.stringify([
      await server.rows('SELECT * FROM operator_tokens'),
      await server.rows('SELECT * FROM audit_log'),
    ]);
    expect(stored).not.toContain(token);
  });

  it('let their holder do what the role may, until they expire', async () => {
    const { token } = await issue({ name: 'a', role: 'operator', expires_in: 60 });
    expect((await as(token, 'POST', '/v1/tasks', { tasks: [dnsTask()] })).status).toBe(201);
    expect((await as(token, 'POST', TOKENS, { name: 'b', role: 'viewer' })).status).toBe(403);
    clock.advance(60_000);
    expect((await as(token, 'GET', '/v1/tasks')).body.error).toBe('ERR_TOKEN_EXPIRED');
  });

  it('are out once they are revoked, also when they were in use', async () => {
    const { id, token } = await issue({ name: 'a', role: 'admin' });
    expect((await as(token, 'GET', TOKENS)).status).toBe(200);
    expect((await server.operator('DELETE', `${TOKENS}/${id}`)).status).toBe(204);
    expect((await as(token, 'GET', TOKENS)).body.error).toBe('ERR_UNAUTHORIZED');
    expect((await server.operator('DELETE', `${TOKENS}/${id}`)).status).toBe(204);
    expect((await tokens())[0]).toMatchObject({ id, revoked_at: '2026-01-01T00:00:00.000Z' });
    // The second revocation changed nothing.
    expect(await audit('?action=operator-token.withdraw')).toHaveLength(1);
  });

  it('of the setting can not be revoked while the server has it', async () => {
    const [setting] = await tokens();
    const refused = await server.operator('DELETE', `${TOKENS}/${setting.id}`);
    expect([refused.status, refused.body.error]).toEqual([409, 'ERR_CONFLICT']);
    expect(refused.body.message).toContain('CONTROL_PLANE_ADMIN_TOKEN');
    expect((await server.operator('DELETE', `${TOKENS}/4711`)).status).toBe(404);
  });

  it('leave one admin who works: of two revocations at once one is refused', async () => {
    const [first, second] = [
      await issue({ name: 'a', role: 'admin' }),
      await issue({ name: 'b', role: 'admin' }),
    ];
    await issue({ name: 'expired', role: 'admin', expires_in: 1 });
    clock.advance(1_000);
    // Without the setting's token these two are all there is.
    await server.database.write((tx) => tx.run(`DELETE FROM operator_tokens WHERE origin = 'setting'`));
    const answers = await Promise.all([
      as(first.token, 'DELETE', `${TOKENS}/${second.id}`),
      as(second.token, 'DELETE', `${TOKENS}/${first.id}`),
    ]);
    expect(answers.map(({ status }) => status).sort()).toEqual([204, 409]);
  });

  it('tell when they were last used, to the minute', async () => {
    const { id, token } = await issue({ name: 'a', role: 'viewer' });
    const lastUse = async () => (await tokens()).find((one) => one.id === id).last_used_at;
    const use = async (expected: string) => {
      expect((await as(token, 'GET', '/v1/tasks/stats')).status).toBe(200);
      // Nobody waits for it to be written.
      await until('its use is written', lastUse, { isDone: (at) => at === expected });
    };
    expect(await lastUse()).toBeNull();
    clock.advance(1_000);
    await use('2026-01-01T00:00:01.000Z');
    clock.advance(59_000);
    await use('2026-01-01T00:00:01.000Z');
    clock.advance(1_000);
    await use('2026-01-01T00:01:01.000Z');
  });
});

// Nothing of this is stored, so one server will do.
describe("an operator's token", () => {
  beforeAll(start);
  afterAll(stop);

  it.each([
    [{ role: 'viewer' }, 'name'],
    [{ name: '', role: 'viewer' }, 'name'],
    [{ name: 'a\n', role: 'viewer' }, 'name'],
    [{ name: 'x'.repeat(101), role: 'viewer' }, 'name'],
    [{ name: 'a', role: 'root' }, 'role'],
    [{ name: 'a' }, 'role'],
    [{ name: 'a', role: 'viewer', expires_in: 0 }, 'expires_in'],
    [{ name: 'a', role: 'viewer', expires_in: 1.5 }, 'expires_in'],
    [{ name: 'a', role: 'viewer', expires_in: 1e12 }, 'expires_in'],
    [{ name: 'a', role: 'viewer', token: 'x' }, 'token'],
  ])('is not made from %j', async (body, field) => {
    const before = (await tokens()).length;
    const refused = await server.operator('POST', TOKENS, body);
    expect([refused.status, Object.keys(refused.body.details)]).toEqual([400, [field]]);
    expect(await tokens()).toHaveLength(before);
  });
});

describe('roles', () => {
  beforeEach(start);
  afterEach(stop);

  it('are declared by every route of operators, and each refuses the roles below its own', async () => {
    const { body: document } = await server.request('GET', '/docs-json');
    const routes = Object.entries<Json>(document.paths).flatMap(([path, methods]) =>
      Object.entries<Json>(methods).flatMap(([method, operation]) =>
        operation.security?.some((one: object) => 'operator' in one)
          ? [{ method: method.toUpperCase(), path, role: operation['x-role'] as (typeof ROLES)[number] }]
          : [],
      ),
    );
    expect(routes.length).toBeGreaterThan(15);
    for (const role of ROLES) {
      const { token } = await issue({ name: role, role });
      for (const route of routes) {
        // A body that no route takes and ids that nobody has: a caller that is let in gets no further than that.
        const path = route.path.replace(/\{\w+\}/g, '4711');
        const body = route.method === 'GET' || route.method === 'DELETE' ? undefined : { nonsense: true };
        const { status } = await as(token, route.method, path, body);
        const letIn = ROLES.indexOf(role) >= ROLES.indexOf(route.role);
        expect([role, route, status === 403]).toEqual([role, route, !letIn]);
        expect([route, status >= 500 || status === 401]).toEqual([route, false]);
      }
    }
  });
});

describe('the audit log', () => {
  beforeEach(start);
  afterEach(stop);

  it('tells who changed what from where, newest first, and nothing of what was refused', async () => {
    const { id: tokenId, token } = await issue({ name: 'alice', role: 'operator' });
    const agent = await server.register('probe');
    const [task] = (await as(token, 'POST', '/v1/tasks', { tasks: [dnsTask()] })).body.tasks;
    await as(token, 'POST', `/v1/agents/${agent.agent_id}/disable`);
    await as(token, 'POST', `/v1/agents/${agent.agent_id}/disable`);
    await as(token, 'POST', `/v1/tasks/${task.id}/cancel`);
    await as(token, 'POST', `/v1/tasks/${task.id}/retry`);
    await as(token, 'POST', `/v1/tasks/${task.id}/retry`);
    await as(token, 'PUT', '/v1/concurrency/limits', { limits: [{ kind: 'dns', limit: 5 }] });
    await as(token, 'PUT', '/v1/concurrency/limits', { limits: [{ kind: 'dns', limit: null }] });
    await as(token, 'DELETE', `/v1/agents/${agent.agent_id}`);
    await as(token, 'DELETE', `/v1/agents/${agent.agent_id}`);
    const entries = await audit(`?operator_token_id=${tokenId}`);
    expect(
      entries.map(({ action, subject, before, after }) => [action, subject, before, after]).reverse(),
    ).toEqual([
      ['task.enqueue', `task/${task.id}`, null, { count: 1, first_id: task.id, last_id: task.id }],
      ['agent.disable', `agent/${agent.agent_id}`, { state: 'active' }, { state: 'disabled' }],
      ['task.cancel', `task/${task.id}`, { state: 'queued' }, { state: 'cancelled' }],
      ['task.retry', `task/${task.id}`, { state: 'cancelled' }, { state: 'queued' }],
      [
        'concurrency-limits.set',
        'concurrency-limits',
        { limits: [] },
        { limits: [{ kind: 'dns', limit: 5 }] },
      ],
      [
        'concurrency-limits.set',
        'concurrency-limits',
        { limits: [{ kind: 'dns', limit: 5 }] },
        { limits: [{ kind: 'dns', limit: null }] },
      ],
      ['agent.delete', `agent/${agent.agent_id}`, { state: 'disabled', hostname: 'probe' }, null],
    ]);
    expect(new Set(entries.map((entry) => `${entry.operator_name} ${entry.address} ${entry.at}`))).toEqual(
      new Set(['alice 127.0.0.1 2026-01-01T00:00:00.000Z']),
    );
  });

  it('records one enqueue for a key, however often it is sent', async () => {
    const headers = { 'idempotency-key': 'k' };
    for (let i = 0; i < 3; i++) await server.operator('POST', '/v1/tasks', { tasks: [dnsTask()] }, headers);
    expect(await audit('?action=task.enqueue')).toHaveLength(1);
  });

  it('is filtered by action, subject, token and time, and paginated', async () => {
    const [id] = await server.enqueue(dnsTask());
    clock.advance(1_000);
    await server.operator('POST', `/v1/tasks/${id}/cancel`);
    const actions = async (query: string) => (await audit(query)).map(({ action }) => action);
    expect(await actions(`?subject=task/${id}`)).toEqual(['task.cancel', 'task.enqueue']);
    expect(await actions('?action=task.cancel')).toEqual(['task.cancel']);
    expect(await actions(`?subject=task/${id}&since=2026-01-01T00:00:01Z`)).toEqual(['task.cancel']);
    expect(await actions(`?subject=task/${id}&until=2026-01-01T00:00:01Z`)).toEqual(['task.enqueue']);
    expect(await actions('?operator_token_id=4711')).toEqual([]);
    // The admin's token of the setting was recorded at the start, by nobody's token.
    const all = await audit();
    expect(all.at(-1)).toMatchObject({ id: 1, operator_token_id: null, operator_name: 'control-plane' });
    const paged: number[] = [];
    for (let cursor: string | null = ''; cursor !== null; ) {
      const { body }: Answer<BodyOf<'GET', '/v1/audit'>> = await server.operator(
        'GET',
        `/v1/audit?limit=1${cursor && `&cursor=${cursor}`}`,
      );
      paged.push(...body.items.map((entry: { id: number }) => entry.id));
      cursor = body.next_cursor;
    }
    expect(paged).toEqual(all.map((entry) => entry.id));
    for (const query of [
      'operator_token_id=0',
      'operator_token_id=x',
      'since=yesterday',
      'limit=501',
      'who=me',
    ])
      expect([query, (await server.operator('GET', `/v1/audit?${query}`)).status]).toEqual([query, 400]);
  });

  it('goes with the change: where one is undone, so is the other', async () => {
    const before = await server.rows('SELECT * FROM audit_head');
    const held = dnsTask({ unique_key: 'k' });
    await server.enqueue(held);
    const conflict = dnsTask({ unique_key: 'k' }, { query: 'other.example.com' });
    expect((await server.operator('POST', '/v1/tasks', { tasks: [dnsTask(), conflict] })).status).toBe(409);
    const [head] = await server.rows('SELECT * FROM audit_head');
    expect(head.last_id).toBe(before[0].last_id + 1);
    expect(await verification()).toMatchObject({ intact: true, last_id: head.last_id });
  });

  it('keeps its chain when many changes are made at once', async () => {
    await Promise.all(Array.from({ length: 50 }, () => server.enqueue(dnsTask())));
    const entries = await audit('?limit=500');
    expect(entries.map(({ id }) => id)).toEqual(entries.map((_, i) => entries.length - i));
    expect(await verification()).toEqual({
      intact: true,
      last_id: entries.length,
      last_hash: entries[0].hash,
      broken_at: null,
      problem: null,
    });
  });

  it.each([
    ['altered', `UPDATE audit_log SET operator_name = 'bob' WHERE id = 3`, 3],
    ['altered with its hash', `UPDATE audit_log SET hash = 'f00' WHERE id = 3`, 3],
    ['removed', 'DELETE FROM audit_log WHERE id = 3', 3],
    ['removed from the end', 'DELETE FROM audit_log WHERE id >= 5', 5],
    ['all removed', 'DELETE FROM audit_log', 1],
    ['moved', 'UPDATE audit_log SET id = 99 WHERE id = 5', 5],
    [
      'slipped in at the end',
      `INSERT INTO audit_log SELECT 99, at, operator_token_id, operator_name, address, action, subject, "before", "after", hash
         FROM audit_log WHERE id = 2`,
      99,
    ],
    ['all removed with their end', 'DELETE FROM audit_head', null],
    ['cut off with its end', 'UPDATE audit_head SET last_id = last_id - 1', 5],
  ])('shows an entry that was %s', async (_what, tampering, brokenAt) => {
    for (let i = 0; i < 4; i++) await server.enqueue(dnsTask());
    expect(await verification()).toMatchObject({ intact: true, last_id: 5 });
    await server.database.write((tx) => tx.run(tampering));
    const verdict = await verification();
    expect([verdict.intact, verdict.problem !== null]).toEqual([false, true]);
    if (!tampering.startsWith('UPDATE audit_head')) expect(verdict.broken_at).toBe(brokenAt);
  });

  it.each([
    ['emptied with its end', ['DELETE FROM audit_log', `UPDATE audit_head SET last_id = 0, last_hash = ''`]],
    [
      'cut back to where it was before a token was made',
      [
        'DELETE FROM audit_log WHERE id > 1',
        'UPDATE audit_head SET last_id = 1, last_hash = (SELECT hash FROM audit_log WHERE id = 1)',
      ],
    ],
  ])('shows a log that was %s, though its chain is whole', async (_what, tampering) => {
    await issue({ name: 'alice', role: 'viewer' });
    expect(await verification()).toMatchObject({ intact: true, last_id: 2 });
    await server.database.write(async (tx) => {
      for (const sql of tampering) await tx.run(sql);
    });
    expect(await verification()).toMatchObject({
      intact: false,
      problem: expect.stringContaining('entries are missing'),
    });
  });

  it.each([
    ['configuration', () => server.operator('POST', '/v1/configs', { config: { a: 1 } })],
    [
      'a limit',
      () => server.operator('PUT', '/v1/concurrency/limits', { limits: [{ kind: 'dns', limit: 1 }] }),
    ],
    ['an enrollment token', () => server.operator('POST', '/v1/enrollment-tokens', { name: 'a' })],
  ])('shows a log that tells nothing of %s that is there', async (_what, make) => {
    expect((await make()).status).toBeLessThan(300);
    expect(await verification()).toMatchObject({ intact: true, last_id: 2 });
    await server.database.write(async (tx) => {
      await tx.run('DELETE FROM audit_log WHERE id = 2');
      await tx.run(
        'UPDATE audit_head SET last_id = 1, last_hash = (SELECT hash FROM audit_log WHERE id = 1)',
      );
    });
    expect((await verification()).intact).toBe(false);
  });

  it('must hold an entry that was kept elsewhere', async () => {
    const { last_id: id, last_hash: hash } = await verification();
    await server.enqueue(dnsTask());
    const verify = async (known: string) =>
      (await server.operator('GET', `/v1/audit/verification?known=${known}`)).body;
    expect(await verify(`${id}:${hash}`)).toMatchObject({ intact: true, last_id: 2 });
    const other = { intact: false, broken_at: 1, problem: expect.stringContaining('known from elsewhere') };
    expect(await verify(`1:${'0'.repeat(64)}`)).toMatchObject(other);
    expect(await verify(`99:${hash}`)).toMatchObject({ ...other, broken_at: 99 });
    for (const known of ['1', hash, `0:${hash}`, `1:${hash}0`, ''])
      expect([known, (await server.operator('GET', `/v1/audit/verification?known=${known}`)).status]).toEqual(
        [known, 400],
      );
  });

  it('follows more entries than are read at once', async () => {
    const audit = server.app.get(AuditLog);
    await server.database.write(async (tx) => {
      for (let i = 0; i < 1_100; i++)
        await audit.record(tx, OPERATOR, { action: 'test', subject: `test/${i}` });
    });
    expect(await verification()).toMatchObject({ intact: true, last_id: 1_101 });
    await server.database.write((tx) => tx.run(`UPDATE audit_log SET address = 'x' WHERE id = 1000`));
    expect(await verification()).toMatchObject({ intact: false, broken_at: 1_000 });
  });

  // SQLite reads without a pause; on PostgreSQL each read waits for the server.
  (onPostgres ? it.skip : it)('is verified while others are answered', async () => {
    const audit = server.app.get(AuditLog);
    await server.database.write(async (tx) => {
      for (let i = 0; i < 5_000; i++)
        await audit.record(tx, OPERATOR, { action: 'test', subject: `test/${i}` });
    });
    // Opens the connection, so that the next request takes few turns of the event loop.
    await server.operator('GET', '/v1/tasks');
    const order: unknown[] = [];
    await Promise.all([
      // Begins to read before the request is sent.
      audit.verify().then(({ last_id, problem }) => order.push({ last_id, problem })),
      server.operator('GET', '/v1/tasks').then(({ status }) => order.push({ status })),
    ]);
    expect(order).toEqual([{ status: 200 }, { last_id: 5_001, problem: null }]);
  });

  it('is for admins', async () => {
    const { token } = await issue({ name: 'a', role: 'operator' });
    for (const path of ['/v1/audit', '/v1/audit/verification'])
      expect((await as(token, 'GET', path)).status).toBe(403);
    expect((await as(ADMIN_TOKEN, 'GET', '/v1/audit')).status).toBe(200);
  });
});
