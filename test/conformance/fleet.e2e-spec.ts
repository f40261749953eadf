import { AgentAbout } from '../../src/agents/agent-about';
import { NONE } from '../../src/agents/agent-outcomes';
import type { Lease } from '../helpers/api';
import {
  type Answer,
  type Credentials,
  credentialsOf,
  dnsTask,
  onPostgres,
  TestClock,
  TestServer,
} from '../helpers/harness';
import { brokenPromises } from '../helpers/queue-tables';

const TIMEOUT_MS = 45_000;
const VERBS = ['disable', 'enable', 'drain', 'revoke'] as const;

describe('the fleet', () => {
  let server: TestServer;
  let clock: TestClock;

  const start = async () => {
    clock = new TestClock();
    server = await TestServer.start({}, { clock });
  };
  const stop = () => server.stop();

  const path = (who: Credentials, verb = ''): string => `/v1/agents/${who.agent_id}${verb && `/${verb}`}`;
  const view = (who: Credentials): Promise<Answer> => server.operator('GET', path(who));
  const change = (who: Credentials, verb: string): Promise<Answer> =>
    server.operator('POST', path(who, verb));
  const create = (body: object): Promise<Answer> => server.operator('POST', '/v1/agents', body);
  const remove = (who: Credentials): Promise<Answer> => server.operator('DELETE', path(who));
  const statusOf = async (who: Credentials): Promise<string> => (await view(who)).body.status;
  const list = (query = ''): Promise<Answer> => server.operator('GET', `/v1/agents${query}`);
  const listed = async (query = ''): Promise<number[]> =>
    (await list(query)).body.items.map((item: { id: number }) => item.id);

  async function restart(afterMs: number): Promise<void> {
    await server.stop({ keep: true });
    clock.advance(afterMs);
    server = await TestServer.start({}, { clock, folder: server.folder });
  }

  async function claim(who: Credentials): Promise<Lease[]> {
    return (await server.agent(who, '/claim', { capacities: { dns: 10 } })).body.leases;
  }

  describe('an agent', () => {
    beforeEach(start);
    afterEach(stop);

    it('is shown as it registered', async () => {
      const named = await server.register('probe-1');
      const nameless = await server.register();
      await server.pass(1_500);
      await server.agent(named, '/heartbeat');
      await server.enqueue(dnsTask(), dnsTask(), dnsTask());
      await server.agent(named, '/claim', { capacities: { dns: 2 } });
      await server.app.get(AgentAbout).flush();
      const shown = {
        id: named.agent_id,
        hostname: 'probe-1',
        labels: {},
        status: 'online',
        origin: 'open',
        registered_at: '2026-01-01T00:00:00.000Z',
        handed_over_at: null,
        enrollment_token_id: null,
        last_heartbeat_at: '2026-01-01T00:00:01.500Z',
        token_expires_at: null,
        config: null,
        version: 'node',
        outcomes: { hour: NONE, day: NONE },
        last_error: null,
        live_leases: 2,
        kinds: ['dns'],
      };
      expect(await view(named)).toMatchObject({ status: 200, body: shown });
      const second = {
        ...shown,
        id: nameless.agent_id,
        hostname: null,
        last_heartbeat_at: shown.registered_at,
        live_leases: 0,
        version: null,
        kinds: [],
      };
      expect((await list()).body).toEqual({ items: [second, shown], next_cursor: null });
    });

    it('shows when its token expires', async () => {
      await server.stop();
      server = await TestServer.start({ AGENT_TOKEN_LIFETIME_MS: '60000' }, { clock });
      const agent = await server.register('probe-1');
      expect((await view(agent)).body.token_expires_at).toBe('2026-01-01T00:01:00.000Z');
    });

    it('counts the leases that it holds now', async () => {
      const agent = await server.register('probe-1');
      await server.enqueue(dnsTask(), dnsTask(), dnsTask());
      const [done, given] = await claim(agent);
      expect((await view(agent)).body.live_leases).toBe(3);
      await server.agent(agent, '/report', {
        completed: [{ lease_id: done.lease_id }],
        cancelled: [{ lease_id: given.lease_id }],
      });
      expect((await view(agent)).body.live_leases).toBe(1);
      await server.pass(60_000);
      expect((await view(agent)).body.live_leases).toBe(0);
    });
  });

  // Nothing of this is stored, so one server will do.
  describe('refused', () => {
    beforeAll(start);
    afterAll(stop);

    it.each(['0', '-1', 'abc', '1.5', '9007199254740992'])('is an agent with the id %s', async (id) => {
      const calls = [
        server.operator('GET', `/v1/agents/${id}`),
        server.operator('DELETE', `/v1/agents/${id}`),
        ...VERBS.map((verb) => server.operator('POST', `/v1/agents/${id}/${verb}`)),
      ];
      for (const answer of await Promise.all(calls)) {
        expect(answer).toMatchObject({ status: 400, body: { error: 'ERR_VALIDATION' } });
        expect(answer.body.details).toHaveProperty('id');
      }
    });

    it('is an agent that there is not', async () => {
      const nobody = { agent_id: 999, auth_token: '' };
      const calls = [view(nobody), remove(nobody), ...VERBS.map((verb) => change(nobody, verb))];
      for (const answer of await Promise.all(calls)) {
        expect(answer).toMatchObject({
          status: 404,
          body: { error: 'ERR_NOT_FOUND', retryable: false, details: { agent_id: 999 } },
        });
      }
    });
    it.each([
      ['status=deleted', 'status'],
      ['status=active', 'status'],
      ['status=', 'status'],
      ['status=online&status=offline', 'status'],
      [`hostname=${'h'.repeat(256)}`, 'hostname'],
      ['limit=0', 'limit'],
      ['limit=501', 'limit'],
      ['cursor=x', 'cursor'],
      ['state=online', 'state'],
    ])('is a list with ?%s', async (query, field) => {
      const answer = await list(`?${query}`);
      expect(answer).toMatchObject({ status: 400, body: { error: 'ERR_VALIDATION' } });
      expect(Object.keys(answer.body.details)).toEqual([field]);
    });
    it('is an agent made by hand from what is no good', async () => {
      for (const [body, field] of [
        [{ hostname: '' }, 'hostname'],
        [{ hostname: 'a\n' }, 'hostname'],
        [{ hostname: 'h'.repeat(256) }, 'hostname'],
        [{ hostname: 7 }, 'hostname'],
        [{ labels: { 'no name': 'a' } }, 'labels'],
        [{ auth_token: 'mine' }, 'auth_token'],
      ] as const) {
        const refused = await create(body);
        expect([body, refused.status, Object.keys(refused.body.details)]).toEqual([body, 400, [field]]);
      }
      expect(await listed()).toEqual([]);
    });
  });

  describe('status', () => {
    beforeEach(start);
    afterEach(stop);

    it('is offline from the missed heartbeat on, and online again with the next', async () => {
      const agent = await server.register('probe-1');
      await server.pass(TIMEOUT_MS - 1);
      expect(await statusOf(agent)).toBe('online');
      await server.pass(1);
      expect(await statusOf(agent)).toBe('offline');
      expect((await server.agent(agent, '/heartbeat')).status).toBe(200);
      expect(await statusOf(agent)).toBe('online');
      await server.pass(TIMEOUT_MS);
      expect(await statusOf(agent)).toBe('offline');
    });

    it('follows the setting', async () => {
      await server.stop();
      server = await TestServer.start({ HEARTBEAT_TIMEOUT_MS: '2000' }, { clock });
      const agent = await server.register('probe-1');
      await server.pass(1_999);
      expect(await statusOf(agent)).toBe('online');
      await server.pass(1);
      expect(await statusOf(agent)).toBe('offline');
    });

    it('does not count the time in which no server ran', async () => {
      const agent = await server.register('probe-1');
      await restart(3_600_000);
      expect(await statusOf(agent)).toBe('online');
      expect(await listed('?status=online')).toEqual([agent.agent_id]);
      expect(await listed('?status=offline')).toEqual([]);
      await server.pass(TIMEOUT_MS - 1);
      expect(await statusOf(agent)).toBe('online');
      await server.pass(1);
      expect(await statusOf(agent)).toBe('offline');
      expect(await listed('?status=online')).toEqual([]);
      expect(await listed('?status=offline')).toEqual([agent.agent_id]);
    });

    // On PostgreSQL another replica may have served meanwhile: what counts is a gap in which none did.
    (onPostgres ? it.skip : it)(
      'takes an agent that was offline for online after a restart, until it misses the next',
      async () => {
        const agent = await server.register('probe-1');
        await server.pass(TIMEOUT_MS);
        expect(await statusOf(agent)).toBe('offline');
        await restart(0);
        expect(await statusOf(agent)).toBe('online');
        await server.pass(TIMEOUT_MS);
        expect(await statusOf(agent)).toBe('offline');
      },
    );

    it('counts a clock that jumps as time in which no server ran', async () => {
      const agent = await server.register('probe-1');
      await server.pass(1_000);
      clock.advance(3_600_000);
      expect(await statusOf(agent)).toBe('online');
    });

    it('is what an operator decided, whatever the heartbeat', async () => {
      const agent = await server.register('probe-1');
      await server.pass(TIMEOUT_MS);
      for (const [verb, status] of [
        ['drain', 'draining'],
        ['disable', 'disabled'],
        ['enable', 'offline'],
        ['revoke', 'revoked'],
      ] as const) {
        expect((await change(agent, verb)).body.status).toBe(status);
        expect(await statusOf(agent)).toBe(status);
      }
    });
  });

  describe('list', () => {
    beforeEach(start);
    afterEach(stop);

    /** One agent of each status, by its status. */
    async function oneOfEach(): Promise<Record<string, Credentials>> {
      const agents: Record<string, Credentials> = { offline: await server.register('offline-1') };
      await server.pass(TIMEOUT_MS);
      for (const status of ['online', 'draining', 'disabled', 'revoked', 'deleted'])
        agents[status] = await server.register(`${status}-1`);
      await change(agents.draining as Credentials, 'drain');
      await change(agents.disabled as Credentials, 'disable');
      await change(agents.revoked as Credentials, 'revoke');
      await remove(agents.deleted as Credentials);
      return agents;
    }

    it('filters by status, and leaves the deleted out', async () => {
      const { deleted, ...agents } = await oneOfEach();
      for (const [status, { agent_id }] of Object.entries(agents)) {
        expect([status, await listed(`?status=${status}`)]).toEqual([status, [agent_id]]);
      }
      const all = Object.values(agents).map(({ agent_id }) => agent_id);
      expect(await listed()).toEqual(all.sort((a, b) => b - a));
      expect(all).not.toContain(deleted?.agent_id);
    });

    it('filters by hostname, by the whole of it', async () => {
      const { online } = await oneOfEach();
      await server.register('online-10');
      expect(await listed('?hostname=online-1')).toEqual([online?.agent_id]);
      expect(await listed('?hostname=online-1&status=online')).toEqual([online?.agent_id]);
      expect(await listed('?hostname=online-1&status=offline')).toEqual([]);
      for (const hostname of ['online-', 'online%25', 'online-_', 'deleted-1']) {
        expect([hostname, await listed(`?hostname=${hostname}`)]).toEqual([hostname, []]);
      }
    });

    it.each(['', '&status=online', '&status=draining'])(
      'gives every agent once on pages of any size: %j',
      async (filter) => {
        const agents = await Promise.all(Array.from({ length: 9 }, (_, i) => server.register(`probe-${i}`)));
        for (const i of [0, 3, 4, 8]) await change(agents[i] as Credentials, 'drain');
        const all = await listed(`?limit=500${filter}`);
        expect(all).toHaveLength(filter === '' ? 9 : filter.endsWith('online') ? 5 : 4);
        for (const limit of [1, 2, 3, all.length, all.length + 1]) {
          const seen: number[] = [];
          for (let cursor: string | null = ''; cursor !== null; ) {
            const { body }: Answer = await list(`?limit=${limit}${filter}${cursor && `&cursor=${cursor}`}`);
            expect(body.items.length).toBeLessThanOrEqual(limit);
            seen.push(...body.items.map((item: { id: number }) => item.id));
            cursor = body.next_cursor;
          }
          expect(seen).toEqual(all);
        }
      },
    );
  });

  // Each test has an agent of its own, so one server will do.
  describe('a decision', () => {
    beforeAll(start);
    afterAll(stop);

    /** From where each decision leads where; what is not here is refused. */
    const LEADS: Record<string, Partial<Record<(typeof VERBS)[number], string>>> = {
      online: { disable: 'disabled', enable: 'online', drain: 'draining', revoke: 'revoked' },
      draining: { disable: 'disabled', enable: 'online', drain: 'draining', revoke: 'revoked' },
      disabled: { disable: 'disabled', enable: 'online', revoke: 'revoked' },
      revoked: { revoke: 'revoked' },
    };
    const TO_REACH: Record<string, string[]> = {
      online: [],
      draining: ['drain'],
      disabled: ['disable'],
      revoked: ['revoke'],
    };
    const CASES = Object.keys(LEADS).flatMap((from) => VERBS.map((verb) => [from, verb] as const));

    it.each(CASES)('an agent that is %s: %s', async (from, verb) => {
      const agent = await server.register(`${from}-${verb}`);
      for (const step of TO_REACH[from] as string[]) await change(agent, step);
      const before = (await view(agent)).body;
      const to = LEADS[from]?.[verb];
      // The same decision again changes nothing.
      for (let times = 0; times < 2; times++) {
        const answer = await change(agent, verb);
        if (to === undefined) {
          const state = from === 'online' ? 'active' : from;
          expect(answer).toMatchObject({
            status: 409,
            body: { error: 'ERR_CONFLICT', retryable: false, details: { state } },
          });
        } else {
          expect([answer.status, answer.body]).toEqual([200, { ...before, status: to }]);
        }
        expect((await view(agent)).body).toEqual({ ...before, status: to ?? from });
      }
    });

    it.each(CASES.filter(([, verb]) => verb === 'enable'))(
      'an agent that is %s can be deleted',
      async (from) => {
        const agent = await server.register(`${from}-deleted`);
        for (const step of TO_REACH[from] as string[]) await change(agent, step);
        const answer = await remove(agent);
        expect([answer.status, answer.body]).toEqual([204, '']);
        expect((await view(agent)).status).toBe(404);
      },
    );
  });

  describe('decisions', () => {
    beforeEach(start);
    afterEach(stop);

    it('let an agent in or out, with the token that it has', async () => {
      const agent = await server.register('probe-1');
      const heartbeat = async () => (await server.agent(agent, '/heartbeat')).status;
      expect(await heartbeat()).toBe(200);
      await change(agent, 'disable');
      expect(await server.agent(agent, '/heartbeat')).toMatchObject({
        status: 403,
        body: { error: 'ERR_FORBIDDEN', details: { state: 'disabled' } },
      });
      await change(agent, 'enable');
      expect(await heartbeat()).toBe(200);
      await change(agent, 'drain');
      expect(await heartbeat()).toBe(200);
      await change(agent, 'revoke');
      expect(await heartbeat()).toBe(403);
      await remove(agent);
      expect(await server.agent(agent, '/heartbeat')).toMatchObject({
        status: 401,
        body: { error: 'ERR_UNAUTHORIZED' },
      });
    });

    it('of the same kind at once are all answered, and one that came late finds nothing', async () => {
      const agent = await server.register('probe-1');
      const [id] = await server.enqueue(dnsTask());
      await claim(agent);
      const disabled = await Promise.all(Array.from({ length: 5 }, () => change(agent, 'disable')));
      expect(disabled.map(({ status }) => status)).toEqual([200, 200, 200, 200, 200]);
      // Their leases were revoked once.
      expect((await server.operator('GET', `/v1/tasks/${id}`)).body).toMatchObject({
        ...{ state: 'queued', attempts: 0, leases: [{ state: 'revoked' }] },
      });
      expect(await server.database.read(brokenPromises)).toEqual([]);
      const removed = await Promise.all(Array.from({ length: 5 }, () => remove(agent)));
      expect(removed.map(({ status }) => status).sort()).toEqual([204, 404, 404, 404, 404]);
    });

    it('to delete an agent leave its results', async () => {
      const agent = await server.register('probe-1');
      const [id] = await server.enqueue(dnsTask());
      const [{ lease_id }] = await claim(agent);
      const observations = [{ name: 'rtt', value: 3 }];
      await server.agent(agent, '/report', { completed: [{ lease_id, observations }], cancelled: [] });
      const before = (await server.operator('GET', `/v1/tasks/${id}`)).body;
      expect(before.leases).toMatchObject([{ agent_id: agent.agent_id, result: { observations } }]);
      await remove(agent);
      expect((await server.operator('GET', `/v1/tasks/${id}`)).body).toEqual(before);
    });

    it('about other agents leave this one alone', async () => {
      const [one, two] = [await server.register('probe-1'), await server.register('probe-2')];
      await server.enqueue(dnsTask(), dnsTask());
      await server.agent(one, '/claim', { capacities: { dns: 1 } });
      await server.agent(two, '/claim', { capacities: { dns: 1 } });
      await remove(one);
      expect((await view(two)).body).toMatchObject({ status: 'online', live_leases: 1 });
    });

    it('hold after a restart', async () => {
      const agents = await Promise.all(VERBS.map((verb) => server.register(verb)));
      for (const [i, verb] of VERBS.entries()) await change(agents[i] as Credentials, verb);
      await restart(1_000);
      const statuses = await Promise.all(agents.map(statusOf));
      expect(statuses).toEqual(['disabled', 'online', 'draining', 'revoked']);
    });
  });

  describe('a hostname', () => {
    beforeEach(start);
    afterEach(stop);

    const register = (hostname: string, headers = {}): Promise<Answer> =>
      server.request('POST', '/register', { headers, body: { hostname } });

    it.each(['disable', 'revoke'])('stays taken after %s', async (verb) => {
      const agent = await server.register('probe-1');
      await change(agent, verb);
      await server.pass(TIMEOUT_MS);
      expect((await register('probe-1')).status).toBe(403);
      expect((await register('probe-1', credentialsOf(agent))).status).toBe(403);
    });

    it('is free when its agent is deleted, and the id is never given again', async () => {
      const first = await server.register('probe-1');
      await remove(first);
      const second = await server.register('probe-1');
      expect(second.agent_id).toBeGreaterThan(first.agent_id);
      // The last one, and after a restart: where a counter would start again from what is there.
      await remove(second);
      await restart(1_000);
      const third = await server.register('probe-1');
      expect(third.agent_id).toBeGreaterThan(second.agent_id);
      expect(await listed('?hostname=probe-1')).toEqual([third.agent_id]);
      for (const gone of [first, second]) expect((await server.agent(gone, '/heartbeat')).status).toBe(401);
    });

    it('is not handed back by what a deleted agent still has', async () => {
      const agent = await server.register('probe-1');
      await remove(agent);
      const next = await register('probe-1', credentialsOf(agent));
      expect(next.status).toBe(200);
      expect(next.body.agent_id).not.toBe(agent.agent_id);
    });
  });

  describe('an agent made by hand', () => {
    beforeEach(start);
    afterEach(stop);

    it('has credentials that are shown once and work, with no registration', async () => {
      const made = await create({ hostname: 'probe-1', labels: { region: 'fra' } });
      expect([made.status, made.headers.get('cache-control'), made.body]).toEqual([
        201,
        'no-store',
        { agent_id: expect.any(Number), auth_token: expect.stringMatching(/^dcpa_[0-9A-Za-z]{49}$/) },
      ]);
      expect((await view(made.body)).body).toMatchObject({
        hostname: 'probe-1',
        labels: { region: 'fra' },
        enrollment_token_id: null,
        status: 'online',
      });
      expect((await server.agent(made.body, '/heartbeat')).status).toBe(200);
      await server.enqueue(dnsTask());
      expect(await claim(made.body)).toHaveLength(1);
      const stored = JSON.stringify([
        await server.rows('SELECT * FROM agents'),
        await server.rows('SELECT * FROM audit_log'),
      ]);
      expect(stored).not.toContain(made.body.auth_token);
      const { body } = await server.operator('GET', '/v1/audit?action=agent.create');
      expect(body.items).toMatchObject([
        {
          subject: `agent/${made.body.agent_id}`,
          before: null,
          after: { hostname: 'probe-1', labels: { region: 'fra' } },
        },
      ]);
    });

    it('may have no hostname, as often as one likes', async () => {
      const made = [await create({}), await create({ hostname: null, labels: null })];
      expect(new Set(made.map(({ status, body }) => `${status} ${body.agent_id}`)).size).toBe(2);
      for (const { body } of made)
        expect((await view(body)).body).toMatchObject({ hostname: null, labels: {} });
    });

    it('keeps its identity when it registers with its credentials', async () => {
      const { body: who } = await create({ hostname: 'probe-1', labels: { region: 'fra' } });
      expect((await server.request('POST', '/register', { body: { hostname: 'probe-1' } })).status).toBe(409);
      const again = await server.request('POST', '/register', {
        headers: credentialsOf(who),
        body: { hostname: 'probe-1' },
      });
      expect([again.status, again.body.agent_id]).toEqual([200, who.agent_id]);
      expect((await view(who)).body.labels).toEqual({ region: 'fra' });
    });

    it.each(['', 'drain', 'disable', 'revoke'])(
      'can not have the hostname of another one: %j',
      async (verb) => {
        const other = await server.register('probe-1');
        if (verb) await change(other, verb);
        // Neither is it free because that one is silent.
        await server.pass(TIMEOUT_MS);
        const before = await server.rows('SELECT * FROM agents');
        const refused = await create({ hostname: 'probe-1' });
        expect(refused).toMatchObject({ status: 409, body: { error: 'ERR_CONFLICT', retryable: false } });
        expect(Object.keys(refused.body.details)).toEqual(['hostname']);
        expect(await server.rows('SELECT * FROM agents')).toEqual(before);
        await remove(other);
        expect((await create({ hostname: 'probe-1' })).status).toBe(201);
      },
    );

    it('is one where many are made of the same name at once', async () => {
      const made = await Promise.all(Array.from({ length: 5 }, () => create({ hostname: 'probe-1' })));
      expect(made.map(({ status }) => status).sort()).toEqual([201, 409, 409, 409, 409]);
    });
  });

  describe('a rotation', () => {
    beforeEach(start);
    afterEach(stop);

    const rotate = (who: Credentials, body: object = {}): Promise<Answer> =>
      server.operator('POST', path(who, 'rotate'), body);
    const heartbeat = async (who: Credentials): Promise<number> =>
      (await server.agent(who, '/heartbeat')).status;

    it('gives a new token; the old one works until that is first used, and the leases run on', async () => {
      const old = await server.register('probe-1');
      await server.enqueue(dnsTask());
      const [{ lease_id }] = await claim(old);
      const before = (await view(old)).body;
      await server.pass(1_000);
      const answer = await rotate(old);
      expect([answer.status, answer.headers.get('cache-control'), answer.body]).toEqual([
        200,
        'no-store',
        { agent_id: old.agent_id, auth_token: expect.stringMatching(/^dcpa_[0-9A-Za-z]{49}$/) },
      ]);
      // It is no sign of life of the agent.
      expect((await view(old)).body).toEqual(before);
      expect([await heartbeat(old), await heartbeat(answer.body), await heartbeat(old)]).toEqual([
        200, 200, 401,
      ]);
      const completed = [{ lease_id }];
      const report = await server.agent(answer.body, '/report', { completed, cancelled: [] });
      expect(report.body).toEqual({ acknowledged: 1 });
      const { body } = await server.operator('GET', '/v1/audit?action=agent.rotate');
      expect(body.items).toMatchObject([
        { subject: `agent/${old.agent_id}`, before: null, after: { revoke_old: false } },
      ]);
      const stored = JSON.stringify([await server.rows('SELECT * FROM agents'), body]);
      expect(stored).not.toContain(answer.body.auth_token);
    });

    it('leaves the old token 10 minutes at most, also when it is sent again', async () => {
      const old = await server.register('probe-1');
      const lost = (await rotate(old)).body;
      clock.advance(300_000);
      const fresh = (await rotate(old)).body;
      expect([await heartbeat(old), await heartbeat(lost)]).toEqual([200, 401]);
      clock.advance(299_999);
      expect(await heartbeat(old)).toBe(200);
      clock.advance(1);
      expect([await heartbeat(old), await heartbeat(fresh)]).toEqual([401, 200]);
    });

    it('with revoke_old voids the old token at once and revokes the leases, without a lost attempt', async () => {
      const old = await server.register('probe-1');
      const [id] = await server.enqueue(dnsTask());
      const [{ lease_id }] = await claim(old);
      expect(await heartbeat(old)).toBe(200);
      const { status, body: fresh } = await rotate(old, { revoke_old: true });
      expect(status).toBe(200);
      expect((await server.operator('GET', `/v1/tasks/${id}`)).body).toMatchObject({
        state: 'queued',
        attempts: 0,
        leases: [{ lease_id, state: 'revoked' }],
      });
      expect(await heartbeat(old)).toBe(401);
      const completed = [{ lease_id }];
      expect((await server.agent(old, '/report', { completed, cancelled: [] })).status).toBe(401);
      // What the old token could still do is to prove its holder: no more.
      const registered = await server.request('POST', '/register', {
        headers: credentialsOf(old),
        body: { hostname: 'probe-1' },
      });
      expect(registered.status).toBe(409);
      expect(await heartbeat(fresh)).toBe(200);
      const again = await claim(fresh);
      expect(again).toMatchObject([{ task_id: id }]);
      expect(again[0].lease_id).toBeGreaterThan(lease_id);
    });

    it('with revoke_old also voids what a rotation before left', async () => {
      const old = await server.register('probe-1');
      const first = (await rotate(old)).body;
      const second = (await rotate(old, { revoke_old: true })).body;
      expect([await heartbeat(old), await heartbeat(first), await heartbeat(second)]).toEqual([
        401, 401, 200,
      ]);
    });

    it('does not give the old token longer than it had', async () => {
      await server.stop();
      server = await TestServer.start({ AGENT_TOKEN_LIFETIME_MS: '60000' }, { clock });
      const old = await server.register('probe-1');
      clock.advance(30_000);
      const fresh = (await rotate(old)).body;
      expect((await view(old)).body.token_expires_at).toBe('2026-01-01T00:01:30.000Z');
      clock.advance(30_000);
      expect([await heartbeat(old), await heartbeat(fresh)]).toEqual([401, 200]);
    });

    it('brings an agent whose token had expired back', async () => {
      await server.stop();
      server = await TestServer.start({ AGENT_TOKEN_LIFETIME_MS: '60000' }, { clock });
      const old = await server.register('probe-1');
      clock.advance(60_000);
      const fresh = (await rotate(old)).body;
      expect([await heartbeat(old), await heartbeat(fresh)]).toEqual([401, 200]);
    });

    it('leaves the state as it is, and is not for a revoked or deleted agent', async () => {
      for (const [verb, status] of [
        ['drain', 200],
        ['disable', 200],
        ['revoke', 409],
      ] as const) {
        const who = await server.register(verb);
        const before = (await change(who, verb)).body;
        const answer = await rotate(who);
        expect([verb, answer.status]).toEqual([verb, status]);
        expect((await view(who)).body).toEqual(before);
        if (status === 409) expect(answer.body.details).toEqual({ state: 'revoked' });
        else expect(await heartbeat(answer.body)).toBe(verb === 'drain' ? 200 : 403);
        await remove(who);
        expect((await rotate(who)).status).toBe(404);
      }
    });

    it('of many at once leaves one new token', async () => {
      const old = await server.register('probe-1');
      const fresh = await Promise.all(Array.from({ length: 5 }, () => rotate(old)));
      expect(await heartbeat(old)).toBe(200);
      const works = await Promise.all(fresh.map(({ body }) => heartbeat(body)));
      expect(works.sort()).toEqual([200, 401, 401, 401, 401]);
    });

    it('is not done by a body that is not understood', async () => {
      const who = await server.register('probe-1');
      for (const body of [{ revoke_old: 'yes' }, { revoke_old: 1 }, { revoke: true }, []]) {
        const answer = await rotate(who, body);
        expect([body, answer.status, answer.body.error]).toEqual([body, 400, 'ERR_VALIDATION']);
      }
      expect(await server.rows('SELECT previous_token_hash FROM agents')).toEqual([
        { previous_token_hash: null },
      ]);
    });
  });
});
