import { AgentOutcomes } from '../../src/agents/agent-outcomes';
import { HeartbeatsService } from '../../src/agents/heartbeats.service';
import { RegistrationService } from '../../src/agents/registration.service';
import { HangUpSignal } from '../../src/http/hang-up';
import { ClaimsService } from '../../src/leases/claims.service';
import { LeasesService } from '../../src/leases/leases.service';
import { MetricsService } from '../../src/metrics/metrics.service';
import { Continuity } from '../../src/scheduling/continuity';
import {
  type Answer,
  type Credentials,
  credentialsOf,
  dnsTask,
  identityOf,
  TestClock,
  TestServer,
} from '../helpers/harness';

const TIMEOUT_MS = 45_000;
const MINUTE_MS = 60_000;
const DAY_MS = 86_400_000;
const ENROLLMENT = 'an-enrollment-token-for-tests';

let clock: TestClock;
let server: TestServer;
let names = 0;

/** One server for the tests of a describe, which use hostnames of their own. */
function serverWith(env: Record<string, string> = {}): void {
  beforeAll(async () => {
    clock = new TestClock();
    server = await TestServer.start({ ENROLLMENT_TOKENS: ENROLLMENT, ...env }, { clock });
  });
  afterAll(() => server.stop());
}

const newName = (): string => `Probe-${++names}.Example`;
const register = (hostname?: string, headers: Record<string, string> = {}): Promise<Answer> =>
  server.request('POST', '/register', { headers, body: hostname === undefined ? {} : { hostname } });
const view = async ({ agent_id }: Credentials): Promise<Answer['body']> =>
  (await server.operator('GET', `/v1/agents/${agent_id}`)).body;
const change = (who: Credentials, verb: string, body?: object): Promise<Answer> =>
  server.operator('POST', `/v1/agents/${who.agent_id}/${verb}`, body);
const label = (who: Credentials, labels: object): Promise<Answer> =>
  server.operator('PUT', `/v1/agents/${who.agent_id}/labels`, { labels });
const heartbeat = async (who: Credentials): Promise<number> => (await server.agent(who, '/heartbeat')).status;
const claim = async (who: Credentials, capacity = 1): Promise<Answer['body'][]> =>
  (await server.agent(who, '/claim', { capacities: { dns: capacity } })).body.leases;
const retryAfter = (answer: Answer): number => Number(answer.headers.get('retry-after'));
const silence = (): Promise<void> => server.pass(TIMEOUT_MS, { reaps: false });

/** A hostname that somebody has, silent long enough for anyone to take it. */
async function silent(): Promise<{ hostname: string; old: Credentials }> {
  const hostname = newName();
  const old = await server.register(hostname);
  await silence();
  return { hostname, old };
}

describe('a hostname', () => {
  serverWith();

  it('is one in every spelling, and shown as it was sent', async () => {
    const agent = await server.register('Café-1.Example.');
    for (const spelling of ['café-1.example', 'CAFE\u0301-1.EXAMPLE', 'Cafe\u0301-1.Example.']) {
      expect([spelling, (await register(spelling)).status]).toEqual([spelling, 409]);
      const again = await register(spelling, credentialsOf(agent));
      expect([spelling, again.body.agent_id]).toEqual([spelling, agent.agent_id]);
      agent.auth_token = again.body.auth_token;
      const made = await server.operator('POST', '/v1/agents', { hostname: spelling });
      expect([spelling, made.status]).toEqual([spelling, 409]);
      const found = await server.operator('GET', `/v1/agents?hostname=${encodeURIComponent(spelling)}`);
      expect(found.body.items).toMatchObject([{ id: agent.agent_id, hostname: 'Café-1.Example.' }]);
    }
  });

  it('is one agent, however many register it at once', async () => {
    const hostname = newName();
    const spellings = [hostname, hostname.toLowerCase(), `${hostname}.`];
    const answers = await Promise.all(Array.from({ length: 6 }, (_, i) => register(spellings[i % 3])));
    expect(answers.map(({ status }) => status).sort()).toEqual([200, 409, 409, 409, 409, 409]);
  });

  it.each(['a\u202eb', 'a\u200bb', '\ufeffa', 'a\nb', ' a', 'a\u00a0'])('is not %j', async (hostname) => {
    const query = `/v1/agents?hostname=${encodeURIComponent(hostname)}`;
    for (const refused of [
      await register(hostname),
      await server.operator('POST', '/v1/agents', { hostname }),
      await server.operator('GET', query),
    ])
      expect([refused.status, Object.keys(refused.body.details)]).toEqual([400, ['hostname']]);
    const { body } = await server.operator('POST', '/v1/agents', { labels: { a: hostname } });
    expect(Object.keys(body.details)).toEqual(['labels.a']);
  });
});

describe('a hand-over without proof', () => {
  serverWith();
  const audited = async (who: Credentials): Promise<Answer['body'][]> =>
    (await server.operator('GET', `/v1/audit?action=agent.hand-over&subject=agent/${who.agent_id}`)).body
      .items;

  it('does not show what the old holder did last as what the new one did', async () => {
    const hostname = newName();
    const old = await server.register(hostname);
    await server.enqueue(dnsTask());
    const [{ lease_id }] = await claim(old);
    await silence();
    const completed = [
      { lease_id, outcome: 'error', observations: [{ name: 'error', value: 'of the old' }] },
    ];
    await server.agent(old, '/report', { completed, cancelled: [] });
    const fresh = (await register(hostname)).body;
    expect(fresh.agent_id).toBe(old.agent_id);
    await server.app.get(AgentOutcomes).flush();
    expect(await view(fresh)).toMatchObject({ last_error: null, outcomes: { hour: { error: 0 } } });
  });

  it('takes leases and labels from the old holder, is recorded, and shown', async () => {
    const hostname = newName();
    const old = await server.register(hostname);
    await label(old, { region: 'fra' });
    const [task] = await server.enqueue(dnsTask());
    expect(await claim(old)).toHaveLength(1);
    const silentSince = (await view(old)).last_heartbeat_at;
    await silence();
    const fresh = (await register(hostname)).body;
    expect(fresh.agent_id).toBe(old.agent_id);
    expect([await heartbeat(old), await heartbeat(fresh)]).toEqual([401, 200]);
    const now = new Date(clock.now()).toISOString();
    expect(await view(fresh)).toMatchObject({
      labels: {},
      handed_over_at: now,
      live_leases: 0,
      origin: 'open',
    });
    expect((await server.operator('GET', `/v1/tasks/${task}`)).body).toMatchObject({
      state: 'queued',
      attempts: 0,
    });
    expect(await audited(old)).toMatchObject([
      {
        operator_token_id: null,
        operator_name: 'control-plane',
        address: '127.0.0.1',
        before: { labels: { region: 'fra' }, last_heartbeat_at: silentSince },
        after: { proof: false },
      },
    ]);
    await server.operator('POST', `/v1/tasks/${task}/cancel`);
  });

  it('leaves the owner a proof, and nothing else: the name comes back, and who had it loses all', async () => {
    const { hostname, old } = await silent();
    const stranger = (await register(hostname)).body;
    const [task] = await server.enqueue(dnsTask());
    expect(await claim(stranger)).toHaveLength(1);
    expect(await heartbeat(old)).toBe(401);
    const back = (await register(hostname, credentialsOf(old))).body;
    expect(back.agent_id).toBe(old.agent_id);
    expect([await heartbeat(stranger), await heartbeat(back), await heartbeat(old)]).toEqual([401, 200, 401]);
    expect(await view(back)).toMatchObject({ handed_over_at: null, live_leases: 0 });
    expect((await audited(back))[0]).toMatchObject({ after: { proof: true } });
    expect((await register(hostname, credentialsOf(stranger))).status).toBe(409);
    await server.operator('POST', `/v1/tasks/${task}/cancel`);
  });

  it('of several in a row leaves the proof to the first holder alone', async () => {
    const { hostname, old } = await silent();
    const second = (await register(hostname)).body;
    await silence();
    const third = (await register(hostname)).body;
    expect((await register(hostname, credentialsOf(second))).status).toBe(409);
    expect(await heartbeat(third)).toBe(200);
    expect((await register(hostname, credentialsOf(old))).status).toBe(200);
    expect(await heartbeat(third)).toBe(401);
  });

  it.each([0, 1])('leaves the proof to both tokens that the owner may have: %i', async (which) => {
    const hostname = newName();
    const first = await server.register(hostname);
    const tokens = [first, (await register(hostname, credentialsOf(first))).body];
    await silence();
    expect((await register(hostname)).status).toBe(200);
    expect((await register(hostname, credentialsOf(tokens[which]))).status).toBe(200);
  });

  it('ends at once by an enrollment token, and then for good', async () => {
    const { hostname } = await silent();
    const stranger = (await register(hostname)).body;
    const { status, body } = await register(hostname, { 'x-enrollment-token': ENROLLMENT });
    expect([status, await heartbeat(stranger), await heartbeat(body)]).toEqual([200, 401, 200]);
    expect(await view(body)).toMatchObject({ handed_over_at: null, origin: 'enrolled' });
    await silence();
    expect(await register(hostname)).toMatchObject({ status: 409, body: { retryable: false } });
  });

  it('leaves the old holder no proof once an operator has said whose the agent is', async () => {
    const { hostname, old } = await silent();
    await register(hostname);
    expect((await change(old, 'rotate')).status).toBe(200);
    expect((await register(hostname, credentialsOf(old))).status).toBe(409);
  });

  it('never happens to an agent that an operator made, or that was enrolled', async () => {
    const token = (await server.operator('POST', '/v1/enrollment-tokens', { name: 'a' })).body.token;
    const [byHand, bySetting, issued, later] = [newName(), newName(), newName(), newName()];
    await server.operator('POST', '/v1/agents', { hostname: byHand });
    await register(bySetting, { 'x-enrollment-token': ENROLLMENT });
    await register(issued, { 'x-enrollment-token': token });
    await server.register(later);
    await register(later, { 'x-enrollment-token': token });
    await server.pass(3 * TIMEOUT_MS, { reaps: false });
    const before = await server.rows('SELECT * FROM agents ORDER BY id');
    for (const hostname of [byHand, bySetting, issued, later]) {
      const refused = await register(hostname);
      expect(refused).toMatchObject({ status: 409, body: { error: 'ERR_CONFLICT', retryable: false } });
      expect(refused.headers.get('retry-after')).toBeNull();
    }
    expect(await server.rows('SELECT * FROM agents ORDER BY id')).toEqual(before);
    expect((await register(byHand, { 'x-enrollment-token': ENROLLMENT })).status).toBe(200);
  });

  it('happens to one of many callers at the same instant', async () => {
    for (let round = 0; round < 5; round++) {
      const { hostname } = await silent();
      const answers = await Promise.all(Array.from({ length: 6 }, () => register(hostname)));
      expect(answers.map(({ status }) => status).sort()).toEqual([200, 409, 409, 409, 409, 409]);
    }
  });
});

describe('a refusal', () => {
  serverWith({ QUOTA_REGISTER: '1/2m,1' });

  it('says when the same call can succeed: when the deadline has passed and the quota lets it in', async () => {
    const hostname = newName();
    await server.register(hostname);
    const refused = await register(hostname.toUpperCase());
    expect([refused.status, refused.body.retryable, retryAfter(refused)]).toEqual([409, true, 120]);
    await server.pass(90_000, { reaps: false });
    expect((await register(hostname)).status).toBe(429);
    await server.pass(30_000, { reaps: false });
    expect((await register(hostname)).status).toBe(200);
  });

  it('says the deadline, if that is later', async () => {
    const hostname = newName();
    const agent = await server.register(hostname);
    await server.pass(100_000, { reaps: false });
    await heartbeat(agent);
    const refused = await register(hostname);
    expect([refused.status, retryAfter(refused)]).toEqual([409, 45]);
  });
});

describe('a registration under a key', () => {
  serverWith({ QUOTA_REGISTER: '1/10m,1' });
  let keys = 0;
  const newKey = (): Record<string, string> => ({ 'idempotency-key': `a-secret-of-the-caller-${++keys}` });

  it('is answered for the same agent again, with a new token and without a charge', async () => {
    const hostname = newName();
    const key = newKey();
    const first = (await register(hostname, key)).body;
    const second = await register(hostname, key);
    expect([second.status, second.body.agent_id]).toEqual([200, first.agent_id]);
    clock.advance(599_999);
    const third = (await register(hostname, key)).body;
    expect(new Set([first, second.body, third].map((one) => one.auth_token)).size).toBe(3);
    expect([await heartbeat(second.body), await heartbeat(third), await heartbeat(second.body)]).toEqual([
      200, 200, 401,
    ]);
    // Then the key proves nothing, and was not charged: the quota has just been filled.
    clock.advance(1);
    expect((await register(hostname, key)).status).toBe(409);
    expect((await register(hostname, credentialsOf(third))).status).toBe(200);
  });

  it('is one agent without a hostname too, however many calls come at once', async () => {
    for (const hostname of [undefined, newName()]) {
      const key = newKey();
      clock.advance(10 * MINUTE_MS);
      const answers = await Promise.all(Array.from({ length: 4 }, () => register(hostname, key)));
      expect(new Set(answers.map(({ status, body }) => `${status} ${body.agent_id}`)).size).toBe(1);
      expect(answers[0]?.status).toBe(200);
    }
  });

  it('is not another one: the key is refused with another body, or where it is too short', async () => {
    const hostname = newName();
    const key = newKey();
    expect((await register(hostname, key)).status).toBe(200);
    for (const answer of [await register(newName(), key), await register(undefined, key)])
      expect([answer.status, Object.keys(answer.body.details)]).toEqual([409, ['idempotency-key']]);
    const enrolled = await register(hostname, { ...key, 'x-enrollment-token': ENROLLMENT });
    expect(enrolled.status).toBe(409);
    for (const bad of ['fifteen-letters', 'x'.repeat(256), 'with a space inside it']) {
      const answer = await register(newName(), { 'idempotency-key': bad });
      expect([answer.status, Object.keys(answer.body.details)]).toEqual([400, ['idempotency-key']]);
    }
  });

  it('is kept by the hash of the key and of the token', async () => {
    const key = newKey();
    const { auth_token: token } = (await register(newName(), key)).body;
    const stored = JSON.stringify(await server.rows('SELECT * FROM idempotency_keys'));
    expect(stored).not.toContain(key['idempotency-key']);
    expect(stored).not.toContain(token);
  });

  it.each([
    ['rotate', 409],
    ['revoke', 403],
    ['disable', 403],
  ] as const)('is not answered again after an operator’s %s', async (verb, status) => {
    const key = newKey();
    const hostname = newName();
    const agent = (await register(hostname, key)).body;
    await change(agent, verb);
    expect((await register(hostname, key)).status).toBe(status);
  });

  it('is not answered again for an agent that was deleted, or registered again since', async () => {
    const key = newKey();
    const hostname = newName();
    const agent = (await register(hostname, key)).body;
    clock.advance(10 * MINUTE_MS - 1);
    const other = newKey();
    const taken = newName();
    const first = (await register(taken, other)).body;
    expect((await register(hostname, { ...credentialsOf(agent), ...newKey() })).status).toBe(429);
    await server.operator('DELETE', `/v1/agents/${first.agent_id}`);
    expect((await register(taken, other)).status).toBe(409);
  });

  it('is not answered again for an agent that was handed over', async () => {
    const key = newKey();
    const hostname = newName();
    await register(hostname, key);
    await server.pass(TIMEOUT_MS, { reaps: false });
    const stranger = await register(hostname, { 'x-enrollment-token': ENROLLMENT });
    expect(stranger.status).toBe(429);
    expect((await register(hostname, key)).status).toBe(200);
  });
});

describe('a registration under a key, where enrollment is needed', () => {
  serverWith({ REGISTRATION: 'token' });

  it('needs the token again, and uses it once', async () => {
    const key = { 'idempotency-key': 'a-secret-of-the-caller' };
    const { token } = (await server.operator('POST', '/v1/enrollment-tokens', { name: 'a', max_uses: 1 }))
      .body;
    const enrolled = { ...key, 'x-enrollment-token': token };
    const answers = [await register(undefined, enrolled), await register(undefined, enrolled)];
    expect(answers.map(({ status }) => status)).toEqual([200, 200]);
    expect(new Set(answers.map(({ body }) => body.agent_id)).size).toBe(1);
    expect((await register(undefined, key)).status).toBe(401);
  });

  it('is void when somebody else got the agent by proof', async () => {
    const key = { 'idempotency-key': 'another-secret-of-a-caller', 'x-enrollment-token': ENROLLMENT };
    const hostname = newName();
    await register(hostname, key);
    await register(hostname, { 'x-enrollment-token': ENROLLMENT });
    expect((await register(hostname, key)).status).toBe(409);
  });
});

describe('new identities', () => {
  serverWith({ REGISTER_TOTAL: '60/1m,2', QUOTA_REGISTER: 'default' });

  it('have a limit in all, which those that come again do not meet', async () => {
    const first = await server.register(newName());
    const hostname = newName();
    const agent = await server.register(hostname);
    const enrolled: Record<string, string> = { 'x-enrollment-token': ENROLLMENT };
    for (const headers of [{}, enrolled]) {
      const refused = await register(newName(), headers);
      expect([refused.status, refused.body.details, retryAfter(refused)]).toEqual([
        429,
        { quota: 'register-total' },
        1,
      ]);
    }
    expect(await server.rows('SELECT id FROM agents')).toHaveLength(2);
    expect((await server.operator('POST', '/v1/agents', {})).status).toBe(201);
    clock.advance(10 * MINUTE_MS);
    const again = await register(hostname, credentialsOf(agent));
    expect(again.status).toBe(200);
    // Nor does what the hostname's own quota refuses count.
    expect((await register(hostname, credentialsOf(agent))).status).toBe(429);
    expect(await heartbeat(first)).toBe(200);
    expect((await register(newName())).status).toBe(200);
    expect((await register(newName())).status).toBe(200);
    expect((await register(newName())).status).toBe(429);
    clock.advance(1_000);
    expect((await register(newName())).status).toBe(200);
  });
});

describe('an openly registered agent', () => {
  serverWith();

  it('that was never heard of again after its first day is deleted, and no other', async () => {
    const trials = server.app.get(RegistrationService);
    const ids = async (): Promise<number[]> =>
      (await server.rows(`SELECT id FROM agents WHERE state <> 'deleted' ORDER BY id`)).map(({ id }) => id);
    const nameless = await server.register();
    const hostname = newName();
    const named = await server.register(hostname);
    const worked = await server.register();
    await server.enqueue(dnsTask());
    expect(await claim(worked)).toHaveLength(1);
    const measured = await server.register();
    const envelope = { timestamp: new Date(clock.now()).toISOString(), gauges: [{ name: 'a', value: 1 }] };
    expect((await server.agent(measured, '/metrics', envelope)).status).toBe(202);
    const [early, late] = [await server.register(), await server.register()];
    const enrolled = (await register(undefined, { 'x-enrollment-token': ENROLLMENT })).body;
    const byHand = (await server.operator('POST', '/v1/agents', {})).body;
    const disabled = await server.register();
    await change(disabled, 'disable');
    await label(nameless, { a: 'b' });
    const all = await ids();

    // Nothing is held against agents before the service has run for a while.
    clock.advance(DAY_MS);
    expect([await trials.endTrials(), await ids()]).toEqual([0, all]);
    const running = jest.spyOn(server.app.get(Continuity), 'runningSince').mockReturnValue(0);
    try {
      clock.advance(-MINUTE_MS);
      expect(await heartbeat(early)).toBe(200);
      clock.advance(2 * MINUTE_MS);
      expect(await heartbeat(late)).toBe(200);
      await trials.endTrials();
      const stays = [early, late, enrolled, byHand, disabled].map((one) => one.agent_id);
      expect(await ids()).toEqual(stays);
      for (const gone of [nameless, named, worked, measured]) expect(await heartbeat(gone)).toBe(401);
      // Without a trace, but for those that something names.
      const left = await server.rows(`SELECT id FROM agents WHERE state = 'deleted' ORDER BY id`);
      expect(left.map(({ id }) => id)).toEqual([worked.agent_id, measured.agent_id]);
      expect((await server.operator('GET', '/v1/tasks?state=queued')).body.items).toHaveLength(1);
      const { body } = await server.operator('GET', '/v1/audit?action=agent.expire');
      expect(body.items).toMatchObject([
        { before: { ids: [nameless, named, worked, measured].map((one) => one.agent_id) } },
      ]);
      expect((await register(hostname)).body.agent_id).toBeGreaterThan(disabled.agent_id);

      clock.advance(DAY_MS);
      expect(await heartbeat(late)).toBe(200);
      await trials.endTrials();
      expect((await ids()).includes(early.agent_id)).toBe(false);
      expect((await ids()).includes(late.agent_id)).toBe(true);
      // As many as strangers can register, in more than one batch.
      await server.database.write(async (tx) => {
        const ids = JSON.stringify(Array.from({ length: 1_200 }, (_, i) => ({ id: 1_000_000 + i })));
        const from = `FROM ${tx.dialect.rowset('$1', { id: 'integer' })} AS r`;
        await tx.run(
          `INSERT INTO agents (id, origin, state, token_hash, registered_at, trial_ends_at)
           SELECT id, 'open', 'active', '-', 0, 0 ${from}`,
          ids,
        );
        await tx.run(`INSERT INTO agent_heartbeats (agent_id, last_heartbeat_at) SELECT id, 0 ${from}`, ids);
      });
      clock.advance(30 * DAY_MS);
      await trials.endTrials();
      expect(await ids()).toEqual([late, enrolled, byHand, disabled].map((one) => one.agent_id));
    } finally {
      running.mockRestore();
    }
  });
});

describe('a budget of stored bytes', () => {
  serverWith({ METRICS_BYTES_PER_DAY: '500', OBSERVATIONS_BYTES_PER_DAY: '500' });
  const envelopeOf = (n: number, length = 100) => ({
    timestamp: new Date(clock.now()).toISOString(),
    gauges: [{ name: `${n}`.padStart(length, 'x'), value: 1 }],
  });

  it('bounds the metrics of an agent in a day, and no repeat counts', async () => {
    const [agent, other] = [await server.register(), await server.register()];
    const push = (n: number, who = agent) => server.agent(who, '/metrics', envelopeOf(n));
    const answers: Answer[] = [];
    for (let n = 0; n < 5; n++) answers.push(await push(n));
    const accepted = answers.filter(({ status }) => status === 202);
    expect(accepted).toHaveLength(4);
    const refused = answers.at(-1) as Answer;
    expect([refused.status, refused.body.details, retryAfter(refused)]).toEqual([
      429,
      { budget: 'metrics_bytes_per_day', limit: 500 },
      DAY_MS / 1_000,
    ]);
    for (const [n, { body }] of accepted.entries()) expect((await push(n)).body).toEqual(body);
    expect((await push(0, other)).status).toBe(202);
    // What is refused does not take those with it that come at the same time.
    const together = await Promise.all([push(0), push(9), push(7, other), push(1)]);
    expect(together.map(({ status }) => status)).toEqual([202, 429, 202, 202]);
    clock.advance(DAY_MS - 1);
    expect((await push(5)).status).toBe(429);
    clock.advance(1);
    expect((await push(5)).status).toBe(202);
  });

  it('holds back no envelope forever: the first of a day fits, however large', async () => {
    const agent = await server.register();
    const push = (length: number) => server.agent(agent, '/metrics', envelopeOf(1, length));
    expect((await push(255)).status).toBe(202);
    const gauges = Array.from({ length: 10 }, () => ({ name: 'x'.repeat(200), value: 1 }));
    const large = () =>
      server.agent(agent, '/metrics', { timestamp: new Date(clock.now()).toISOString(), gauges });
    expect((await large()).status).toBe(429);
    clock.advance(DAY_MS);
    expect([(await large()).status, (await push(10)).status]).toEqual([202, 429]);
  });

  it('bounds the observations of an agent in a day, of those that are stored', async () => {
    const agent = await server.register();
    await server.enqueue(...Array.from({ length: 4 }, () => dnsTask()));
    const leases = await claim(agent, 4);
    const report = (i: number, length: number) =>
      server.agent(agent, '/report', {
        completed: [
          {
            lease_id: leases[i].lease_id,
            ...(length > 0 ? { observations: [{ name: 'a', value: 'x'.repeat(length) }] } : {}),
          },
        ],
        cancelled: [],
      });
    expect((await report(0, 300)).body).toEqual({ acknowledged: 1 });
    expect((await report(0, 300)).body).toEqual({ acknowledged: 1 });
    const refused = await report(1, 300);
    expect([refused.status, refused.body.details.budget]).toEqual([429, 'observations_bytes_per_day']);
    expect(await view(agent)).toMatchObject({ live_leases: 3 });
    // What brings nothing to store is taken.
    expect((await report(2, 0)).body).toEqual({ acknowledged: 1 });
    expect((await report(1, 100)).body).toEqual({ acknowledged: 1 });
    expect((await server.agent(agent, '/metrics', envelopeOf(1))).status).toBe(202);
  });
});

describe('a token that is void', () => {
  serverWith();
  const waiting = (who: Credentials): Promise<Answer> =>
    server.agent(who, '/claim', { capacities: { dns: 1 }, wait_ms: 25_000 });
  /** Until the claims wait. */
  const settled = () => new Promise((resolve) => setTimeout(resolve, 200));

  it('ends the claims that wait with it, when its agent is rotated, handed over or revoked', async () => {
    const { hostname, old: lost } = await silent();
    const [rotated, revoked, drained, used, kept] = await Promise.all(
      Array.from({ length: 5 }, () => server.register()),
    );
    await change(drained as Credentials, 'drain');
    const claims = [lost, rotated, revoked, drained, used].map((who) => waiting(who as Credentials));
    const undisturbed = waiting(kept as Credentials);
    await settled();
    await register(hostname);
    await change(rotated as Credentials, 'rotate', { revoke_old: true });
    await change(revoked as Credentials, 'revoke');
    await change(drained as Credentials, 'revoke');
    // Without revoke_old the old one is void when the new one is used.
    await heartbeat((await change(used as Credentials, 'rotate')).body);
    const statuses = (await Promise.all(claims)).map(({ status }) => status);
    expect(statuses).toEqual([401, 401, 403, 403, 401]);
    await server.enqueue(dnsTask());
    expect((await undisturbed).body.leases).toHaveLength(1);
  });

  it('has no effect any more where a call is past the guards', async () => {
    const agent = await server.register();
    await server.enqueue(dnsTask());
    const [{ lease_id }] = await claim(agent);
    const before = identityOf(agent);
    const fresh = (await change(agent, 'rotate', { revoke_old: true })).body;
    const leases = server.app.get(LeasesService);
    const never = new HangUpSignal();
    const heard = (await view(agent)).last_heartbeat_at;
    clock.advance(1_000);
    for (const late of [
      () =>
        server.app
          .get(ClaimsService)
          .claim(before, { agent_id: agent.agent_id, capacities: { dns: 1 } }, undefined, never),
      () => leases.extend(before, { agent_id: agent.agent_id, lease_ids: [lease_id], extend_by_ms: 60_000 }),
      () => leases.report(before, { agent_id: agent.agent_id, completed: [{ lease_id }], cancelled: [] }),
      () => server.app.get(HeartbeatsService).heartbeat(before, { agent_id: agent.agent_id }),
      () =>
        server.app
          .get(MetricsService)
          .ingest(before, { timestamp: new Date(clock.now()).toISOString(), agent_id: agent.agent_id }),
    ])
      await expect(late()).rejects.toMatchObject({ code: 'ERR_UNAUTHORIZED', status: 401 });
    expect(await view(agent)).toMatchObject({ last_heartbeat_at: heard, live_leases: 0 });
    expect(await claim(fresh)).toHaveLength(1);
  });

  it('is one that expired while its call waited', async () => {
    const agent = await server.register();
    const spent = identityOf(agent);
    await server.database.write((tx) =>
      tx.run('UPDATE agents SET token_expires_at = $2 WHERE id = $1', agent.agent_id, clock.now()),
    );
    const late = server.app.get(LeasesService).extend(spent, {
      agent_id: agent.agent_id,
      lease_ids: [],
      extend_by_ms: 1_000,
    });
    await expect(late).rejects.toMatchObject({ code: 'ERR_TOKEN_EXPIRED' });
  });
});
