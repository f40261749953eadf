import { hashToken, mintToken } from '../../src/http/tokens';
import { QueueMaintainer } from '../../src/queue/maintenance';
import type { Json, Lease } from '../helpers/api';
import {
  ADMIN_TOKEN,
  type Answer,
  type Credentials,
  dnsTask,
  TestClock,
  TestServer,
} from '../helpers/harness';
import { ALL_TASKS } from '../helpers/queue-tables';

const NEW_YEAR = '2026-01-01T00:00:00.000Z';

let server: TestServer;
let clock: TestClock;

const post = (tasks: unknown, headers: Record<string, string> = {}): Promise<Answer> =>
  server.operator('POST', '/v1/tasks', { tasks }, headers);
const get = (path: string): Promise<Answer> => server.operator('GET', path);
const idsOf = ({ body }: Answer): number[] => body.tasks.map((task: { id: number }) => task.id);
const stored = async (): Promise<number> =>
  (await server.rows<{ n: number }>('SELECT count(*) AS n FROM tasks'))[0]?.n as number;
const instant = (fromNowMs: number): string => new Date(clock.now() + fromNowMs).toISOString();

async function claim(who: Credentials, capacities: Record<string, number>): Promise<Lease[]> {
  return (await server.agent(who, '/claim', { capacities })).body.leases;
}

/** Refused as the contract says, naming exactly these fields, and nothing stored. */
async function expectRefused(answer: Answer, ...fields: string[]): Promise<void> {
  expect(answer).toMatchObject({ status: 400, body: { error: 'ERR_VALIDATION', retryable: false } });
  expect(Object.keys(answer.body.details).sort()).toEqual([...fields].sort());
  expect(await stored()).toBe(0);
}

const start = async () => {
  clock = new TestClock();
  server = await TestServer.start({}, { clock });
};
const stop = () => server.stop();

describe('the tasks of operators', () => {
  beforeEach(start);
  afterEach(stop);

  describe('enqueue', () => {
    it('takes 10,000 at once, and gives ids in the order sent', async () => {
      const answer = await post(
        Array.from({ length: 10_000 }, (_, i) => dnsTask({ priority: i % 7 }, { query: `q${i}` })),
      );
      expect(answer.status).toBe(201);
      const ids = idsOf(answer);
      expect(ids).toHaveLength(10_000);
      const rows = await server.rows<{ id: number; spec: string }>('SELECT id, spec FROM tasks ORDER BY id');
      expect(rows.map((row) => row.id)).toEqual(ids);
      expect(rows.map((row) => JSON.parse(row.spec).query)).toEqual(
        Array.from({ length: 10_000 }, (_, i) => `q${i}`),
      );
    });

    it('answers with the state that each task is in', async () => {
      await server.operator('PUT', '/v1/concurrency/limits', {
        limits: [{ kind: 'dns', target: 'full', limit: 0 }],
      });
      const { body } = await post([
        dnsTask(),
        dnsTask({ run_at: instant(1) }),
        dnsTask({}, { server: 'FULL' }),
        dnsTask({ run_at: instant(0) }),
      ]);
      // Queued behind a limit, too: what is over it is decided when it is claimed.
      expect(body.tasks.map((task: Json) => task.state)).toEqual(['queued', 'scheduled', 'queued', 'queued']);
      expect((await get(`/v1/tasks/${body.tasks[2].id}`)).body.state).toBe('queued');
    });
  });

  describe('an idempotency key', () => {
    const KEY = { 'idempotency-key': 'nightly-1' };

    it('gives the same answer again and adds nothing', async () => {
      const first = await post([dnsTask(), dnsTask()], KEY);
      expect(first.status).toBe(201);
      const again = await post([dnsTask(), dnsTask()], KEY);
      expect([again.status, again.body]).toEqual([201, first.body]);
      expect(await stored()).toBe(2);
      // As it was answered then, whatever became of the tasks.
      await server.operator('POST', `/v1/tasks/${idsOf(first)[0]}/cancel`);
      expect((await post([dnsTask(), dnsTask()], KEY)).body).toEqual(first.body);
    });

    it('holds for calls at once', async () => {
      const answers = await Promise.all(Array.from({ length: 10 }, () => post([dnsTask(), dnsTask()], KEY)));
      for (const { status, body } of answers) expect([status, body]).toEqual([201, answers[0]?.body]);
      expect(await stored()).toBe(2);
    });

    it('holds after a restart', async () => {
      const first = await post([dnsTask()], KEY);
      await server.stop({ keep: true });
      server = await TestServer.start({}, { clock, folder: server.folder });
      expect((await post([dnsTask()], KEY)).body).toEqual(first.body);
      expect(await stored()).toBe(1);
    });

    it('holds when the time of a task is up meanwhile', async () => {
      const tasks = [dnsTask({ not_after: instant(5_000) })];
      const first = await post(tasks, KEY);
      await server.pass(6_000);
      expect((await post(tasks, KEY)).body).toEqual(first.body);
      expect((await post(tasks)).status).toBe(400);
    });

    it.each([
      ['another task', [dnsTask({}, { query: 'other.example' })]],
      ['one task more', [dnsTask(), dnsTask()]],
    ])('refuses another body: %s', async (_, tasks) => {
      await post([dnsTask()], KEY);
      expect(await post(tasks, KEY)).toMatchObject({
        status: 409,
        body: { error: 'ERR_CONFLICT', retryable: false, details: { 'idempotency-key': expect.any(String) } },
      });
      expect(await stored()).toBe(1);
    });

    it('is for the same JSON, in whatever order its fields are', async () => {
      const first = await post([{ kind: 'dns', spec: { query: 'example.com', server: '192.0.2.1' } }], KEY);
      const again = await post([{ spec: { server: '192.0.2.1', query: 'example.com' }, kind: 'dns' }], KEY);
      expect([again.status, again.body]).toEqual([201, first.body]);
      expect(await stored()).toBe(1);
    });

    it('is not used up by a call that was refused', async () => {
      expect((await post([{ kind: 'no', spec: {} }], KEY)).status).toBe(400);
      await server.enqueue(dnsTask({ unique_key: 'k' }));
      expect((await post([dnsTask({ unique_key: 'k' }, { query: 'b' })], KEY)).status).toBe(409);
      expect((await post([dnsTask()], KEY)).status).toBe(201);
    });

    it("is its token's own", async () => {
      const token = mintToken('dcpo_');
      await server.database.write((tx) =>
        tx.run(
          `INSERT INTO operator_tokens (name, role, origin, token_hash, created_at) VALUES ('ops', 'operator', 'issued', $1, 0)`,
          hashToken(token),
        ),
      );
      const first = await post([dnsTask()], KEY);
      const other = await server.request('POST', '/v1/tasks', {
        headers: { authorization: `Bearer ${token}`, ...KEY },
        body: { tasks: [dnsTask({}, { query: 'other.example' })] },
      });
      expect(other.status).toBe(201);
      expect(idsOf(other)).not.toEqual(idsOf(first));
      // And it is the token that counts, not how it is sent.
      const lower = await server.request('POST', '/v1/tasks', {
        headers: { authorization: `bearer ${ADMIN_TOKEN}`, ...KEY },
        body: { tasks: [dnsTask()] },
      });
      expect(lower.body).toEqual(first.body);
    });

    it('does not meet a key of another call', async () => {
      const agent = await server.register('probe-1');
      await post([dnsTask()], KEY);
      expect((await server.agent(agent, '/claim', { capacities: { dns: 1 } }, KEY)).body.leases).toHaveLength(
        1,
      );
    });
  });

  describe('a unique key', () => {
    it('gives the task that is there where kind and spec are the same', async () => {
      const [id] = await server.enqueue(dnsTask({ unique_key: 'k', priority: 1 }));
      const again = await post([dnsTask({ unique_key: 'k', priority: 9, max_attempts: 1 }), dnsTask()]);
      expect(again.status).toBe(201);
      expect(again.body.tasks[0]).toEqual({ id, state: 'queued' });
      expect(again.body.tasks[1].id).not.toBe(id);
      // Its other fields stay as they are, and repeating the kind in the spec is no difference.
      expect((await get(`/v1/tasks/${id}`)).body).toMatchObject({ priority: 1, max_attempts: 5 });
      expect((await post([dnsTask({ unique_key: 'k' }, { kind: 'dns' })])).body.tasks).toEqual([
        { id, state: 'queued' },
      ]);
      expect(await stored()).toBe(2);
      // Nor is another order of the fields.
      const [ordered] = await server.enqueue(dnsTask({ unique_key: 'o' }, { server: '192.0.2.1' }));
      const turned = { kind: 'dns', spec: { server: '192.0.2.1', query: 'example.com' }, unique_key: 'o' };
      expect((await post([turned])).body.tasks).toEqual([{ id: ordered, state: 'queued' }]);
    });

    it.each([
      ['spec', dnsTask({ unique_key: 'k' }, { query: 'other.example' })],
      ['spelling of the spec', dnsTask({ unique_key: 'k' }, { server: null })],
      ['kind', { kind: 'ping', spec: { host: 'example.com' }, unique_key: 'k' }],
    ])('refuses another %s, and stores nothing of the request', async (_, task) => {
      await server.enqueue(dnsTask({ unique_key: 'k' }));
      expect(await post([dnsTask(), task, dnsTask()])).toMatchObject({
        status: 409,
        body: { error: 'ERR_CONFLICT', details: { 'tasks.1.unique_key': expect.any(String) } },
      });
      expect(await stored()).toBe(1);
    });

    it('holds within one request', async () => {
      const same = await post([dnsTask({ unique_key: 'k' }), dnsTask(), dnsTask({ unique_key: 'k' })]);
      const [first, second, third] = idsOf(same);
      expect(third).toBe(first);
      expect(second).not.toBe(first);
      expect(await stored()).toBe(2);
      const differ = await post([
        dnsTask({ unique_key: 'm' }),
        dnsTask({ unique_key: 'm' }, { query: 'other.example' }),
      ]);
      expect(differ).toMatchObject({
        status: 409,
        body: { details: { 'tasks.1.unique_key': expect.any(String) } },
      });
      expect(await stored()).toBe(2);
    });

    it('holds for requests at once', async () => {
      const answers = await Promise.all(
        Array.from({ length: 20 }, (_, i) =>
          post([dnsTask({ unique_key: 'k' }, { query: i % 2 === 0 ? 'a.example' : 'b.example' })]),
        ),
      );
      const taken = answers.filter(({ status }) => status === 201);
      expect(taken).toHaveLength(10);
      expect(answers.filter(({ status }) => status === 409)).toHaveLength(10);
      expect(new Set(taken.flatMap(idsOf)).size).toBe(1);
      expect(await stored()).toBe(1);
    });

    it('is held in every unfinished state, and free when the task has ended', async () => {
      const agent = await server.register('probe-1');
      const enqueue = async () => (await post([dnsTask({ unique_key: 'k', max_attempts: 1 })])).body.tasks[0];
      const first = await enqueue();
      const [lease] = await claim(agent, { dns: 1 });
      expect(await enqueue()).toEqual({ id: first.id, state: 'leased' });
      await server.agent(agent, '/report', { completed: [{ lease_id: lease.lease_id }], cancelled: [] });

      const second = await enqueue();
      expect(second.id).toBeGreaterThan(first.id);
      await server.operator('POST', `/v1/tasks/${second.id}/cancel`);

      const third = await enqueue();
      expect(third.id).toBeGreaterThan(second.id);
      const [last] = await claim(agent, { dns: 1 });
      await server.agent(agent, '/report', { completed: [], cancelled: [{ lease_id: last.lease_id }] });
      expect((await get(`/v1/tasks/${third.id}`)).body.state).toBe('dead');

      const fourth = await enqueue();
      expect(fourth.id).toBeGreaterThan(third.id);
      // The key has a new holder, so the old one can't come back to life.
      expect(await server.operator('POST', `/v1/tasks/${third.id}/retry`)).toMatchObject({
        status: 409,
        body: { error: 'ERR_CONFLICT', details: { unique_key: expect.stringContaining(String(fourth.id)) } },
      });
      await server.operator('POST', `/v1/tasks/${fourth.id}/cancel`);
      expect((await server.operator('POST', `/v1/tasks/${third.id}/retry`)).body.state).toBe('queued');
    });

    it('is held while the task is scheduled, or queued behind a limit', async () => {
      const agent = await server.register('probe-1');
      await server.operator('PUT', '/v1/concurrency/limits', { limits: [{ kind: 'dns', limit: 0 }] });
      const later = await post([dnsTask({ unique_key: 'later', run_at: instant(60_000) })]);
      expect((await post([dnsTask({ unique_key: 'later' })])).body).toEqual(later.body);
      const behind = await post([dnsTask({ unique_key: 'behind' })]);
      expect(behind.body.tasks[0].state).toBe('queued');
      expect(await claim(agent, { dns: 5 })).toEqual([]);
      expect((await post([dnsTask({ unique_key: 'behind' })])).body).toEqual(behind.body);
      expect(await stored()).toBe(2);
    });
  });

  describe('fields', () => {
    it('of the spec may repeat the kind, and must not contradict it', async () => {
      expect((await post([dnsTask({}, { kind: 'ping' })])).body.details).toEqual({
        'tasks.0.spec.kind': expect.any(String),
      });
      await expectRefused(await post([dnsTask({}, { kind: 7 })]), 'tasks.0.spec.kind');
      // Null is the same as left out, as for every optional field.
      const ids = await server.enqueue(dnsTask({}, { kind: 'dns' }), dnsTask({}, { kind: null }), dnsTask());
      for (const id of ids)
        expect((await get(`/v1/tasks/${id}`)).body.spec).toEqual({ kind: 'dns', query: 'example.com' });
    });

    it('run_at holds a task back until then, and one in the past does not', async () => {
      const agent = await server.register('probe-1');
      const [past, soon] = await server.enqueue(
        dnsTask({ run_at: '2020-06-01T12:00:00.123456+02:00' }),
        dnsTask({ run_at: instant(3_000), priority: 9 }),
      );
      expect((await get(`/v1/tasks/${past}`)).body).toMatchObject({
        state: 'queued',
        run_at: '2020-06-01T10:00:00.123Z',
      });
      expect((await claim(agent, { dns: 5 })).map((lease) => lease.task_id)).toEqual([past]);
      await server.pass(2_999);
      expect(await claim(agent, { dns: 5 })).toEqual([]);
      await server.pass(1);
      expect((await claim(agent, { dns: 5 })).map((lease) => lease.task_id)).toEqual([soon]);
    });
  });

  describe('list', () => {
    it('neither repeats nor skips what was there when tasks are added between pages', async () => {
      const before = await server.enqueue(...Array.from({ length: 9 }, () => dnsTask()));
      const seen: number[] = [];
      for (let cursor: string | null = ''; cursor !== null; ) {
        const { body }: Answer = await get(`/v1/tasks?kind=dns&limit=2${cursor && `&cursor=${cursor}`}`);
        seen.push(...body.items.map((item: { id: number }) => item.id));
        cursor = body.next_cursor;
        await server.enqueue(dnsTask(), dnsTask());
      }
      expect(seen).toEqual([...before].reverse());
    });

    it('has 50 items where no limit is given', async () => {
      await server.enqueue(...Array.from({ length: 51 }, () => dnsTask()));
      const { body } = await get('/v1/tasks');
      expect(body.items).toHaveLength(50);
      expect(body.next_cursor).toBe(String(body.items[49].id));
    });

    it('is empty if there is nothing', async () => {
      for (const filter of ['', '?kind=dns', '?state=queued', '?target=x']) {
        expect((await get(`/v1/tasks${filter}`)).body).toEqual({ items: [], next_cursor: null });
      }
    });

    it('takes the largest limit', async () => {
      await server.enqueue(...Array.from({ length: 501 }, () => dnsTask()));
      expect((await get('/v1/tasks?limit=500')).body.items).toHaveLength(500);
    });

    it('takes filters as they are written, not as patterns or SQL', async () => {
      await server.enqueue(dnsTask());
      for (const target of ['resolve_', 'RESOLVER'])
        expect((await get(`/v1/tasks?target=${encodeURIComponent(target)}`)).body.items).toEqual([]);
      for (const target of ['%25', "' OR 1=1 --"])
        expect((await get(`/v1/tasks?target=${encodeURIComponent(target)}`)).status).toBe(400);
    });
  });

  describe('stats', () => {
    it('counts by kind and state and tells the ages of the oldest', async () => {
      expect((await get('/v1/tasks/stats')).body).toEqual({ depths: [], oldest_queued_age_ms: null });
      const agent = await server.register('probe-1');
      await server.enqueue(dnsTask());
      await server.pass(1_000);
      const [cancelled] = await server.enqueue(
        dnsTask({ priority: -1 }),
        dnsTask({ run_at: instant(3_600_000) }),
        { kind: 'ping', spec: { host: 'a' } },
        { kind: 'ping', spec: { host: 'b' } },
      );
      await server.pass(2_000);
      await claim(agent, { dns: 1 });
      await server.pass(500);
      expect((await get('/v1/tasks/stats')).body).toEqual({
        depths: [
          { kind: 'dns', state: 'scheduled', count: 1, oldest_age_ms: 2_500 },
          { kind: 'dns', state: 'queued', count: 1, oldest_age_ms: 2_500 },
          { kind: 'dns', state: 'leased', count: 1, oldest_age_ms: 3_500 },
          { kind: 'ping', state: 'queued', count: 2, oldest_age_ms: 2_500 },
        ],
        oldest_queued_age_ms: 2_500,
      });
      await server.operator('POST', `/v1/tasks/${cancelled}/cancel`);
      const { depths } = (await get('/v1/tasks/stats')).body;
      expect(depths.filter((depth: Json) => depth.kind === 'dns')).toEqual([
        { kind: 'dns', state: 'scheduled', count: 1, oldest_age_ms: 2_500 },
        { kind: 'dns', state: 'leased', count: 1, oldest_age_ms: 3_500 },
        { kind: 'dns', state: 'cancelled', count: 1, oldest_age_ms: null },
      ]);
      // The same once what units of work have left is added up.
      await server.app.get(QueueMaintainer).foldCounts();
      expect((await get('/v1/tasks/stats')).body.depths).toEqual(depths);
      expect(await server.rows('SELECT * FROM task_count_deltas')).toEqual([]);
    });
  });

  describe('one task', () => {
    it('is shown with every attempt and what was observed', async () => {
      const agent = await server.register('probe-1');
      const fields = { priority: 3, not_after: '2026-01-02T00:00:00.000Z', max_attempts: 3, unique_key: 'k' };
      const [id] = await server.enqueue(dnsTask(fields, { server: '192.0.2.53' }));
      const plain = {
        id,
        kind: 'dns',
        target: '192.0.2.53:53',
        spec: { kind: 'dns', query: 'example.com', server: '192.0.2.53' },
        state: 'queued',
        reason: null,
        run_at: null,
        attempts: 0,
        ...fields,
        created_at: NEW_YEAR,
        updated_at: NEW_YEAR,
        finished_at: null,
        last_outcome: null,
        last_error: null,
        last_agent_id: null,
        last_ended_at: null,
      };
      expect((await get(`/v1/tasks/${id}`)).body).toEqual({ ...plain, leases: [], next_cursor: null });
      expect((await get('/v1/tasks')).body).toEqual({ items: [plain], next_cursor: null });

      const [first] = await claim(agent, { dns: 1 });
      const tried = [{ name: 'error', value: { code: 'SERVFAIL' } }];
      clock.advance(1_000);
      await server.agent(agent, '/report', {
        completed: [],
        cancelled: [{ lease_id: first.lease_id, outcome: 'error', observations: tried }],
      });
      const again = (await get(`/v1/tasks/${id}`)).body;
      expect(again).toMatchObject({ state: 'scheduled', attempts: 1, run_at: expect.any(String) });
      await server.pass(1_000);
      const [second] = await claim(agent, { dns: 1 });
      const seen = [{ name: 'rtt', value: 1.25, unit: 'ms' }];
      await server.agent(agent, '/report', {
        completed: [{ lease_id: second.lease_id, observations: seen }],
        cancelled: [],
      });
      expect((await get(`/v1/tasks/${id}`)).body).toEqual({
        ...plain,
        state: 'completed',
        attempts: 2,
        run_at: again.run_at,
        updated_at: '2026-01-01T00:00:02.000Z',
        finished_at: '2026-01-01T00:00:02.000Z',
        last_outcome: 'unsaid',
        last_agent_id: agent.agent_id,
        last_ended_at: '2026-01-01T00:00:02.000Z',
        leases: [
          {
            lease_id: first.lease_id,
            agent_id: agent.agent_id,
            attempt: 1,
            state: 'cancelled',
            granted_at: NEW_YEAR,
            start_at: null,
            deadline_at: '2026-01-01T00:01:00.000Z',
            ended_at: '2026-01-01T00:00:01.000Z',
            result: {
              standing: 'attempt',
              report: 'cancelled',
              outcome: 'error',
              failure: null,
              rtt_ms: null,
              observations: tried,
              received_at: '2026-01-01T00:00:01.000Z',
            },
          },
          {
            lease_id: second.lease_id,
            agent_id: agent.agent_id,
            attempt: 2,
            state: 'completed',
            granted_at: '2026-01-01T00:00:02.000Z',
            start_at: null,
            deadline_at: '2026-01-01T00:01:02.000Z',
            ended_at: '2026-01-01T00:00:02.000Z',
            result: {
              standing: 'final',
              report: 'completed',
              outcome: null,
              failure: null,
              rtt_ms: null,
              observations: seen,
              received_at: '2026-01-01T00:00:02.000Z',
            },
          },
        ],
        next_cursor: null,
      });
    });

    it('is shown with its newest attempts where all would be too much, and then with those before', async () => {
      const agent = await server.register('probe-1');
      const [id] = await server.enqueue(dnsTask());
      const tried: number[] = [];
      for (let i = 0; i < 3; i++) {
        const [{ lease_id }] = (await claim(agent, { dns: 1 })) as [Lease];
        tried.push(lease_id);
        const observations = [{ name: 'log', value: 'x'.repeat(3_500_000) }];
        await server.agent(agent, '/report', { completed: [], cancelled: [{ lease_id, observations }] });
        await server.pass(10_000);
      }
      const leasesOf = ({ body }: Answer) => body.leases.map((lease: Json) => lease.lease_id);
      const newest = await get(`/v1/tasks/${id}`);
      expect(leasesOf(newest)).toEqual(tried.slice(1));
      const before = await get(`/v1/tasks/${id}?cursor=${newest.body.next_cursor}`);
      expect(leasesOf(before)).toEqual(tried.slice(0, 1));
      expect(before.body).toMatchObject({ id, attempts: 3, next_cursor: null });
      expect(leasesOf(await server.operator('POST', `/v1/tasks/${id}/cancel`))).toEqual(tried.slice(1));
    });

    it.each(['cursor=0', 'limit=1', 'nonsense=1'])('refuses ?%s', async (query) => {
      const [id] = await server.enqueue(dnsTask());
      expect((await get(`/v1/tasks/${id}?${query}`)).status).toBe(400);
    });
  });
});

// Each test asks for its own tasks alone, so one server will do.
describe('what a task may be', () => {
  beforeAll(start);
  afterAll(stop);

  describe('specs', () => {
    const LONG_HOST = 'h'.repeat(255);

    it.each<[string, object, string]>([
      ['dns', { query: 'example.com' }, 'resolver'],
      [
        'dns',
        { query: 'q'.repeat(255), server: 'NS1.Example.COM', record_type: 'AAAA' },
        'ns1.example.com:53',
      ],
      ['dns', { query: '例え.jp', server: null, record_type: null }, 'resolver'],
      ['dns', { query: '.', server: '2001:DB8::53', record_type: 'TYPE65534' }, '[2001:db8::53]:53'],
      ['http', { url: 'https://Example.COM/path?q=1#f' }, 'example.com:443'],
      ['http', { url: 'http://example.com:8080', method: 'DELETE' }, 'example.com:8080'],
      ['http', { url: 'https://example.com:443/', method: null }, 'example.com:443'],
      ['http', { url: 'http://[2001:db8::1]:81/' }, '[2001:db8::1]:81'],
      ['http', { url: 'https://bücher.example/' }, 'xn--bcher-kva.example:443'],
      ['tcp', { host: 'Example.COM', port: 443 }, 'example.com:443'],
      ['tcp', { host: '2001:DB8::1', port: 1 }, '[2001:db8::1]:1'],
      ['tcp', { host: '[2001:db8::1]', port: 65_535 }, '[2001:db8::1]:65535'],
      ['ping', { host: LONG_HOST }, LONG_HOST],
      [
        'ping',
        {
          host: '192.0.2.1',
          count: 10_000,
          interval_ms: 1,
          timeout_ms: 3_600_000,
          rate_limit_per_sec: 1,
        },
        '192.0.2.1',
      ],
      [
        'ping',
        { host: 'A.example', count: null, interval_ms: null, timeout_ms: null, rate_limit_per_sec: null },
        'a.example',
      ],
      ['trace', { host: 'Example.com' }, 'example.com'],
      ['trace', { host: 'example.com', max_hops: 255 }, 'example.com'],
      ['trace', { host: 'example.com', max_hops: null }, 'example.com'],
    ])('%s takes %j, aimed at %s', async (kind, spec, target) => {
      const [id] = await server.enqueue({ kind, spec });
      expect((await get(`/v1/tasks/${id}`)).body).toMatchObject({ kind, target });
      // It goes to the agent as it was written, with the kind in it; URLs as the URL standard writes them.
      const agent = await server.register();
      const { host, url } = spec as { host?: string; url?: string };
      const written = {
        ...(url && { url: new URL(url).href }),
        ...(host && { host: host.replace(/^\[|\]$/g, '') }),
      };
      expect((await claim(agent, { [kind]: 1 }))[0].spec).toEqual({ kind, ...spec, ...written });
    });
  });

  describe('the other fields', () => {
    it('may be null, which is the same as left out', async () => {
      const [id] = await server.enqueue(
        dnsTask({ priority: null, run_at: null, not_after: null, max_attempts: null, unique_key: null }),
      );
      expect((await get(`/v1/tasks/${id}`)).body).toMatchObject({
        state: 'queued',
        priority: 0,
        run_at: null,
        not_after: null,
        max_attempts: 5,
        unique_key: null,
      });
    });

    it.each([
      { priority: 2_147_483_647, max_attempts: 100 },
      { priority: -2_147_483_647, max_attempts: 1 },
      { unique_key: 'x'.repeat(255) },
    ])('reach to %j', async (fields) => {
      const [id] = await server.enqueue(dnsTask(fields));
      expect((await get(`/v1/tasks/${id}`)).body).toMatchObject(fields);
    });
  });
});

describe('a list of tasks in many states', () => {
  let all: Json[];
  beforeAll(async () => {
    await start();
    all = await fill();
  });
  afterAll(stop);

  /** Follows the cursors to the end, and tells the ids of all pages. */
  async function walk(filter: string, limit: number): Promise<number[]> {
    const ids: number[] = [];
    for (let cursor: string | null = ''; cursor !== null; ) {
      const page: Answer = await get(`/v1/tasks?limit=${limit}${filter}${cursor && `&cursor=${cursor}`}`);
      expect(page.status).toBe(200);
      expect(page.body.items.length).toBeLessThanOrEqual(limit);
      // Only the last page may be short, and none is empty but the only one.
      if (page.body.next_cursor !== null) expect(page.body.items).toHaveLength(limit);
      if (cursor !== '') expect(page.body.items.length).toBeGreaterThan(0);
      ids.push(...page.body.items.map((item: { id: number }) => item.id));
      cursor = page.body.next_cursor;
    }
    return ids;
  }

  /** Tasks of some kinds and targets in every state; those that finished did so in another order than that of their ids. */
  async function fill(): Promise<Lease[]> {
    const agent = await server.register('probe-1');
    const [cancelled, early] = await server.enqueue(
      ...Array.from({ length: 5 }, () => dnsTask({}, { server: '192.0.2.1' })),
      ...Array.from({ length: 4 }, () => dnsTask({ run_at: instant(60_000) })),
      ...Array.from({ length: 5 }, () => ({ kind: 'ping', spec: { host: '192.0.2.1' } })),
      ...Array.from({ length: 2 }, () => dnsTask({ priority: 5 }, { server: '192.0.2.2' })),
      ...Array.from({ length: 3 }, () => ({ kind: 'tcp', spec: { host: '192.0.2.1', port: 53 } })),
    );
    await server.enqueue(...Array.from({ length: 2 }, () => dnsTask({ max_attempts: 1, priority: 9 })));
    for (const id of [early, cancelled]) {
      await server.operator('POST', `/v1/tasks/${id}/cancel`);
      clock.advance(1);
    }
    const leases = await claim(agent, { dns: 5, ping: 2, tcp: 2 });
    const idsOfKind = (kind: string) =>
      leases.filter((lease) => lease.kind === kind).map(({ lease_id }) => ({ lease_id }));
    const [firstDead, secondDead, done] = idsOfKind('dns');
    const [first, second] = idsOfKind('ping');
    // The last two at one instant.
    for (const [completed, given] of [
      [[second], [secondDead]],
      [[done], [firstDead]],
      [[first, ...idsOfKind('tcp')], []],
    ]) {
      await server.agent(agent, '/report', { completed, cancelled: given });
      clock.advance(1);
    }
    return server.database.read((statements) =>
      statements.rows(
        `SELECT id, kind, state, target, finished_at FROM (${ALL_TASKS}) AS v ORDER BY id DESC`,
      ),
    );
  }

  /** Those that finished by when they did, the latest first; all others by their ids. */
  const inOrder = (tasks: Json[], { state, target }: { state?: string; target?: string }): Json[] =>
    ['completed', 'cancelled', 'dead'].includes(state ?? '') && target === undefined
      ? tasks.toSorted((a, b) => b.finished_at - a.finished_at || b.id - a.id)
      : tasks;

  it('filters by state, kind and target, alone and together, newest first and complete', async () => {
    expect(new Set(all.map((task) => task.state)).size).toBe(6);
    for (const state of ['completed', 'cancelled', 'dead']) {
      const finished = all.filter((task) => task.state === state);
      expect(inOrder(finished, { state })).not.toEqual(finished);
    }
    const options = {
      state: [undefined, 'queued', 'scheduled', 'leased', 'completed', 'cancelled', 'dead'],
      kind: [undefined, 'dns', 'ping', 'http', 'whois'],
      target: [undefined, '192.0.2.1', '192.0.2.1:53', 'resolver', 'nowhere'],
    };
    for (const state of options.state) {
      for (const kind of options.kind) {
        for (const target of options.target) {
          const filter = { state, kind, target };
          const given = Object.entries(filter).filter(([, value]) => value !== undefined);
          const text = given.map(([name, value]) => `&${name}=${value}`).join('');
          const hasPort = /:\d+$/.test(target ?? ':53');
          if ((kind === 'http' && !hasPort) || (kind === 'ping' && target !== undefined && hasPort)) {
            expect([text, (await get(`/v1/tasks?${text}`)).status]).toEqual([text, 400]);
            continue;
          }
          // A DNS server has its port in its target.
          const targetOf = (task: Json) =>
            task.kind === 'dns' && !hasPort && target !== 'resolver' ? `${target}:53` : target;
          const wanted = all.filter(
            (task) =>
              (state ?? task.state) === task.state &&
              (kind ?? task.kind) === task.kind &&
              (target === undefined || targetOf(task) === task.target),
          );
          expect([text, await walk(text, 500)]).toEqual([
            text,
            inOrder(wanted, filter).map((task) => task.id),
          ]);
        }
      }
    }
  });

  it.each([
    '',
    '&kind=dns',
    '&state=queued',
    '&state=completed',
    '&state=cancelled&kind=dns',
    '&target=192.0.2.1',
    '&state=queued&kind=ping&target=192.0.2.1',
  ])('gives every task once on pages of any size: %j', async (filter) => {
    const ids = await walk(filter, 500);
    expect(new Set(ids).size).toBe(ids.length);
    for (const limit of [1, 2, 3, ids.length - 1, ids.length, ids.length + 1]) {
      expect(await walk(filter, limit)).toEqual(ids);
    }
  });
});

// Nothing of this is stored, so one server will do.
describe('what operators may not ask of tasks', () => {
  const LONG_HOST = 'h'.repeat(255);

  beforeAll(start);
  afterAll(stop);

  describe('lists of tasks', () => {
    it.each([
      ['none', []],
      ['10,001', Array.from({ length: 10_001 }, () => dnsTask())],
      ['an object', { 0: dnsTask() }],
      ['null', null],
      ['nothing', undefined],
    ])('refuses %s', async (_, tasks) => {
      await expectRefused(await post(tasks), 'tasks');
    });

    it.each([
      ['a kind that there is not', { kind: 'whois', spec: {} }, 'kind'],
      ['no kind', { spec: { query: 'example.com' } }, 'kind'],
      ['a kind that is no text', { kind: 7, spec: {} }, 'kind'],
      ['a kind by the name of an inherited field', { kind: 'constructor', spec: {} }, 'kind'],
      ['no spec', { kind: 'dns' }, 'spec'],
      ['a spec that is a list', { kind: 'dns', spec: [] }, 'spec'],
      ['a field of the spec', dnsTask({}, { query: '' }), 'spec.query'],
      ['a priority', dnsTask({ priority: 1.5 }), 'priority'],
      ['a field that no task has', dnsTask({ delay: 1 }), 'delay'],
    ])('one bad among many stores none: %s', async (_, bad, field) => {
      const tasks: object[] = Array.from({ length: 1_000 }, () => dnsTask());
      tasks[617] = bad;
      await expectRefused(await post(tasks), `tasks.617.${field}`);
    });

    it('names a task that is no object', async () => {
      await expectRefused(await post([dnsTask(), 'dns']), 'tasks.1');
    });

    it('names every bad spec, up to 50', async () => {
      await expectRefused(
        await post([dnsTask({}, { query: 1, server: 'a b' }), dnsTask(), { kind: 'no', spec: {} }]),
        'tasks.0.spec.query',
        'tasks.0.spec.server',
        'tasks.2.kind',
      );
      const { body } = await post(Array.from({ length: 500 }, () => ({ kind: 'no', spec: {} })));
      expect(Object.keys(body.details)).toHaveLength(50);
    });
  });

  describe('keys', () => {
    it.each(['', ' ', 'a b', 'x'.repeat(256), 'é'])(
      'must be 1 to 255 visible characters: %j',
      async (key) => {
        await expectRefused(await post([dnsTask()], { 'idempotency-key': key }), 'idempotency-key');
      },
    );

    it.each([
      ['', 'empty'],
      ['x'.repeat(256), 'too long'],
      [7, 'a number'],
    ])('refuses %j: %s', async (unique_key, _why) => {
      await expectRefused(await post([dnsTask({ unique_key })]), 'tasks.0.unique_key');
    });
  });

  describe('specs', () => {
    it.each<[string, object, string]>([
      ['dns', {}, 'query'],
      ['dns', { query: null }, 'query'],
      ['dns', { query: 'q'.repeat(256) }, 'query'],
      ['dns', { query: 5 }, 'query'],
      ['dns', { query: 'a', server: '' }, 'server'],
      ['dns', { query: 'a', server: 'a/b' }, 'server'],
      ['dns', { query: 'a', server: 'user@host' }, 'server'],
      ['dns', { query: 'a', server: ['192.0.2.53'] }, 'server'],
      ['dns', { query: 'a', record_type: 'aaaa' }, 'record_type'],
      ['dns', { query: 'a', record_type: 'A'.repeat(17) }, 'record_type'],
      ['dns', { query: 'a', record_type: 'A\nB' }, 'record_type'],
      ['dns', { query: 'a', record_type: 'A\n' }, 'record_type'],
      ['dns', { query: 'a', port: 53 }, 'port'],
      ['dns', { query: 'a', constructor: 1 }, 'constructor'],
      ['http', {}, 'url'],
      ['http', { url: 'example.com' }, 'url'],
      ['http', { url: '/path' }, 'url'],
      ['http', { url: 'ftp://example.com/' }, 'url'],
      ['http', { url: 'file:///etc/passwd' }, 'url'],
      ['http', { url: 'javascript:alert(1)' }, 'url'],
      ['http', { url: 'https://' }, 'url'],
      ['http', { url: 'https://user:secret@example.com/' }, 'url'],
      ['http', { url: 'https://user@example.com/' }, 'url'],
      ['http', { url: 'https://example.com:65536/' }, 'url'],
      ['http', { url: `https://example.com/${'p'.repeat(2_048)}` }, 'url'],
      ['http', { url: 'https://example.com/', method: 'get' }, 'method'],
      ['http', { url: 'https://example.com/', method: 'TRACE' }, 'method'],
      ['tcp', { host: 'example.com' }, 'port'],
      ['tcp', { port: 443 }, 'host'],
      ['tcp', { host: 'example.com', port: 0 }, 'port'],
      ['tcp', { host: 'example.com', port: 65_536 }, 'port'],
      ['tcp', { host: 'example.com', port: '443' }, 'port'],
      ['tcp', { host: 'example.com', port: 1.5 }, 'port'],
      ['tcp', { host: 'example.com', port: null }, 'port'],
      ['tcp', { host: 'exa mple.com', port: 443 }, 'host'],
      ['ping', { host: '' }, 'host'],
      ['ping', { host: `${LONG_HOST}h` }, 'host'],
      ['ping', { host: 'a', count: 0 }, 'count'],
      ['ping', { host: 'a', count: 10_001 }, 'count'],
      ['ping', { host: 'a', interval_ms: 0 }, 'interval_ms'],
      ['ping', { host: 'a', interval_ms: 3_600_001 }, 'interval_ms'],
      ['ping', { host: 'a', timeout_ms: -1 }, 'timeout_ms'],
      ['ping', { host: 'a', rate_limit_per_sec: 0 }, 'rate_limit_per_sec'],
      ['ping', { host: 'a', rate_limit_per_sec: 1_000_001 }, 'rate_limit_per_sec'],
      ['ping', { host: 'a', rate_limit_per_sec: '1' }, 'rate_limit_per_sec'],
      ['trace', {}, 'host'],
      ['trace', { host: 'a', max_hops: 0 }, 'max_hops'],
      ['trace', { host: 'a', max_hops: 256 }, 'max_hops'],
      ['trace', { host: 'a\n' }, 'host'],
    ])('%s refuses %j for its %s', async (kind, spec, field) => {
      await expectRefused(await post([{ kind, spec }]), `tasks.0.spec.${field}`);
    });
  });

  describe('the other fields', () => {
    it.each<[string, unknown]>([
      ['priority', 2_147_483_648],
      ['priority', -2_147_483_648],
      ['priority', '1'],
      ['priority', true],
      ['max_attempts', 0],
      ['max_attempts', 101],
      ['max_attempts', 2.5],
      ['run_at', 1_767_225_600_000],
      ['run_at', 'tomorrow'],
      ['run_at', '2026-01-02'],
      ['run_at', '2026-01-02T00:00:00'],
      ['run_at', '2026-02-30T00:00:00Z'],
      ['run_at', '2026-01-01T24:00:00Z'],
      ['run_at', '9999-12-31T23:59:59-01:00'],
      ['run_at', '0000-01-01T00:00:00+01:00'],
      ['not_after', '2026-01-02T00:00:00+0100'],
      ['not_after', '2026-01-01T00:00:00Z'],
      ['not_after', '2025-12-31T23:59:59.999Z'],
    ])('%s can not be %j', async (field, value) => {
      await expectRefused(await post([dnsTask(), dnsTask({ [field]: value })]), `tasks.1.${field}`);
    });

    it('not_after must be after run_at', async () => {
      await expectRefused(
        await post([
          dnsTask({ run_at: instant(1_000), not_after: instant(1_000) }),
          dnsTask({ run_at: instant(1_000), not_after: instant(1_001) }),
          dnsTask({ run_at: instant(-1_000), not_after: instant(-1) }),
        ]),
        'tasks.0.not_after',
        'tasks.2.not_after',
      );
    });
  });

  describe('lists', () => {
    it.each([
      ['limit=0', 'limit'],
      ['limit=501', 'limit'],
      ['limit=-1', 'limit'],
      ['limit=1.5', 'limit'],
      ['limit=', 'limit'],
      ['limit=1e2', 'limit'],
      ['limit=0x10', 'limit'],
      ['limit=10&limit=20', 'limit'],
      ['cursor=0', 'cursor'],
      ['cursor=abc', 'cursor'],
      ['cursor=-5', 'cursor'],
      ['cursor=', 'cursor'],
      ['cursor=1&cursor=2', 'cursor'],
      ['state=running', 'state'],
      ['state=waiting', 'state'],
      ['state=queued&state=dead', 'state'],
      [`kind=${'k'.repeat(65)}`, 'kind'],
      [`target=${'t'.repeat(513)}`, 'target'],
      ['order=asc', 'order'],
    ])('refuses ?%s', async (query, field) => {
      expect(await get(`/v1/tasks?${query}`)).toMatchObject({
        status: 400,
        body: { error: 'ERR_VALIDATION', details: { [field]: expect.any(String) } },
      });
    });

    it.each(['__proto__', 'constructor', 'toString'])('refuses ?%s=, as any unknown name', async (name) => {
      const { status, body } = await get(`/v1/tasks?${name}=1`);
      expect([status, Object.keys(body.details)]).toEqual([400, [name]]);
    });
  });

  describe('ids', () => {
    it.each(['0', '-1', '1.5', 'abc', '1e3', '9007199254740992', '00000000000000000001', '%20'])(
      'an id can not be %s',
      async (id) => {
        for (const [method, path] of [
          ['GET', `/v1/tasks/${id}`],
          ['POST', `/v1/tasks/${id}/cancel`],
          ['POST', `/v1/tasks/${id}/retry`],
        ] as const) {
          expect(await server.operator(method, path)).toMatchObject({
            status: 400,
            body: { error: 'ERR_VALIDATION', details: { id: expect.any(String) } },
          });
        }
      },
    );

    it.each(['1', '9007199254740991'])('%s is not found if there is none', async (id) => {
      expect(await get(`/v1/tasks/${id}`)).toMatchObject({
        status: 404,
        body: { error: 'ERR_NOT_FOUND', retryable: false, details: { task_id: Number(id) } },
      });
    });
  });
});
