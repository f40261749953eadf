import { AgentAbout } from '../../src/agents/agent-about';
import { AgentOutcomes } from '../../src/agents/agent-outcomes';
import type { Transaction } from '../../src/database/statements';
import type { Json } from '../helpers/api';
import {
  type Answer,
  type Credentials,
  dnsTask,
  onPostgres,
  TestClock,
  TestServer,
} from '../helpers/harness';

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;
const NONE = { success: 0, timeout: 0, error: 0, unsaid: 0, cancelled: 0, expired: 0 };

let server: TestServer;
let clock: TestClock;
let agent: Credentials;

const start = async (): Promise<void> => {
  clock = new TestClock();
  server = await TestServer.start({ RETRY_BACKOFF_MS: '1000' }, { clock });
  agent = await server.register('probe-1');
};
const stop = (): Promise<void> => server.stop();

/** What one attempt is to come to. */
type Ending = 'success' | 'timeout' | 'error' | 'unsaid' | 'cancelled';

const claim = async (
  who: Credentials,
  dns = 1,
  from = server,
): Promise<{ lease_id: number; task_id: number }[]> =>
  (await from.agent(who, '/claim', { capacities: { dns } })).body.leases;

const reportOf = (lease_id: number, as: Ending, observations: object[] = []) => {
  const outcome = as === 'unsaid' || as === 'cancelled' ? undefined : as;
  const list = [{ lease_id, outcome, observations }];
  return as === 'cancelled' ? { completed: [], cancelled: list } : { completed: list, cancelled: [] };
};

/** Has an agent end an attempt at a new task. @returns the task's id */
async function attempt(
  who: Credentials,
  as: Ending,
  observations: object[] = [],
  { spec = {}, from = server }: { spec?: object; from?: TestServer } = {},
): Promise<number> {
  const [id] = await server.enqueue(dnsTask({ priority: 9 }, spec));
  const leases = await claim(who, 1, from);
  expect(leases.map(({ task_id }) => task_id)).toEqual([id]);
  const body = reportOf(leases[0]?.lease_id as number, as, observations);
  expect((await from.agent(who, '/report', body)).body).toEqual({ acknowledged: 1 });
  return id as number;
}

/** Writes what is counted, as it happens by itself within about a second. */
const flush = async (of = server): Promise<void> => {
  await of.app.get(AgentOutcomes).flush();
  await of.app.get(AgentAbout).flush();
};
const agentView = async (who = agent): Promise<Json> => {
  await flush();
  return (await server.operator('GET', `/v1/agents/${who.agent_id}`)).body;
};
const agents = async (query: string): Promise<number[]> => {
  await flush();
  const { status, body } = await server.operator('GET', `/v1/agents?${query}`);
  expect([status, body.details]).toEqual([200, undefined]);
  return body.items.map((item: { id: number }) => item.id);
};
const list = (query: string): Promise<Answer> => server.operator('GET', `/v1/tasks?${query}`);
const tasks = async (query: string): Promise<number[]> => {
  const { status, body } = await list(query);
  expect([status, body.details]).toEqual([200, undefined]);
  return body.items.map((item: { id: number }) => item.id);
};
const task = async (id: number): Promise<Json> => (await server.operator('GET', `/v1/tasks/${id}`)).body;
const iso = (instant: number): string => new Date(instant).toISOString();

describe("an agent's outcomes", () => {
  beforeEach(start);
  afterEach(stop);

  it('are none at first', async () => {
    expect(await agentView()).toMatchObject({ outcomes: { hour: NONE, day: NONE }, last_error: null });
  });

  it('count every attempt by how it ended, in the list as well', async () => {
    for (const as of ['success', 'success', 'timeout', 'error', 'unsaid', 'cancelled'] as const)
      await attempt(agent, as);
    await server.operator('POST', '/v1/tasks/cancel', { all: true });
    await server.enqueue(dnsTask());
    await claim(agent);
    await server.pass(61_000);
    const counts = { success: 2, timeout: 1, error: 1, unsaid: 1, cancelled: 1, expired: 1 };
    expect((await agentView()).outcomes).toEqual({ hour: counts, day: counts });
    const { body } = await server.operator('GET', '/v1/agents');
    expect(body.items[0].outcomes.hour).toEqual(counts);
  });

  it('count a report once, however often it is sent, and none that is rejected', async () => {
    const [id] = await server.enqueue(dnsTask());
    const [lease] = await claim(agent);
    const body = reportOf(lease?.lease_id as number, 'error');
    for (let i = 0; i < 3; i++) await server.agent(agent, '/report', body);
    const other = reportOf(lease?.lease_id as number, 'success');
    expect((await server.agent(agent, '/report', other)).body.rejected[0].reason).toBe('conflict');
    expect((await agentView()).outcomes.hour).toEqual({ ...NONE, error: 1 });
    expect((await task(id as number)).last_outcome).toBe('error');
  });

  it('do not count what came too late, nor revoked attempts', async () => {
    const [late, cut] = await server.enqueue(dnsTask({ max_attempts: 1 }), dnsTask({ priority: -1 }));
    const [first] = await claim(agent);
    await server.pass(61_000);
    await server.agent(agent, '/report', reportOf(first?.lease_id as number, 'error'));
    const [second] = await claim(agent);
    expect(second?.task_id).toBe(cut);
    await server.operator('POST', `/v1/agents/${agent.agent_id}/disable`);
    await server.agent(agent, '/report', reportOf(second?.lease_id as number, 'success'));
    expect((await agentView()).outcomes.day).toEqual({ ...NONE, expired: 1 });
    expect(await task(late as number)).toMatchObject({ state: 'dead', last_outcome: 'expired' });
    expect(await task(cut as number)).toMatchObject({
      state: 'queued',
      last_outcome: null,
      last_agent_id: null,
    });
  });

  it('are not counted of a report that is undone', async () => {
    await server.enqueue(dnsTask());
    const [lease] = await claim(agent);
    await server.forbid('UPDATE', 'tasks');
    expect((await server.agent(agent, '/report', reportOf(lease?.lease_id as number, 'error'))).status).toBe(
      500,
    );
    await server.allow();
    expect((await agentView()).outcomes.day).toEqual(NONE);
  });

  it('leave the hour and then the day, whether or not they were rolled up', async () => {
    await attempt(agent, 'success');
    const counts = async () => {
      const { hour, day } = (await agentView()).outcomes;
      return [hour.success, day.success];
    };
    expect(await counts()).toEqual([1, 1]);
    await server.pass(59 * MINUTE_MS, { reaps: false });
    expect(await counts()).toEqual([1, 1]);
    await server.pass(11 * MINUTE_MS, { reaps: false });
    expect(await counts()).toEqual([0, 1]);
    await server.app.get(AgentOutcomes).compact();
    expect(await server.rows('SELECT span_ms, success FROM agent_outcomes')).toEqual([
      { span_ms: HOUR_MS, success: 1 },
    ]);
    expect(await counts()).toEqual([0, 1]);
    clock.advance(DAY_MS - 71 * MINUTE_MS);
    expect(await counts()).toEqual([0, 1]);
    clock.advance(61 * MINUTE_MS);
    expect(await counts()).toEqual([0, 0]);
    await server.app.get(AgentOutcomes).compact();
    expect(await server.rows('SELECT * FROM agent_outcomes')).toEqual([]);
  });

  it('are rolled up hour by hour, and what is of the last hour stays', async () => {
    for (let i = 0; i < 3; i++) {
      await attempt(agent, 'success');
      await attempt(agent, 'error');
      await flush();
      await server.pass(30 * MINUTE_MS, { reaps: false });
    }
    await server.app.get(AgentOutcomes).compact();
    await server.app.get(AgentOutcomes).compact();
    expect(
      await server.rows('SELECT span_ms, success, error FROM agent_outcomes ORDER BY starts_at'),
    ).toEqual([
      { span_ms: HOUR_MS, success: 1, error: 1 },
      { span_ms: 10 * MINUTE_MS, success: 1, error: 1 },
      { span_ms: 10 * MINUTE_MS, success: 1, error: 1 },
    ]);
    expect((await agentView()).outcomes).toMatchObject({
      hour: { success: 2, error: 2 },
      day: { success: 3, error: 3 },
    });
  });

  it('wait in memory while they can not be written, and are written at the next time', async () => {
    await attempt(agent, 'error');
    await flush();
    await attempt(agent, 'error');
    await server.forbid('UPDATE', 'agent_outcomes');
    await expect(flush()).rejects.toThrow();
    await attempt(agent, 'success');
    await server.allow();
    expect((await agentView()).outcomes.hour).toEqual({ ...NONE, error: 2, success: 1 });
  });

  it('are written when the server stops', async () => {
    await attempt(agent, 'timeout');
    await server.stop({ keep: true });
    server = await TestServer.start({}, { clock, folder: server.folder });
    expect((await agentView()).outcomes.hour).toEqual({ ...NONE, timeout: 1 });
  });

  it('are forgotten where the clock was set back behind them', async () => {
    clock.advance(2 * HOUR_MS);
    await server.pass(1_000, { reaps: false });
    await attempt(agent, 'error');
    await flush();
    clock.advance(-HOUR_MS);
    await server.pass(1_000, { reaps: false });
    expect((await agentView()).outcomes.day).toEqual(NONE);
    await attempt(agent, 'timeout');
    expect((await agentView()).last_error.outcome).toBe('timeout');
  });

  // Two processes can serve one database on PostgreSQL only.
  (onPostgres ? it : it.skip)('of two replicas add up', async () => {
    const other = await TestServer.start({}, { clock, folder: server.folder });
    try {
      await attempt(agent, 'error');
      await attempt(agent, 'error', [], { from: other });
      await attempt(agent, 'success', [], { from: other });
      await Promise.all([flush(), flush(other)]);
      expect((await agentView()).outcomes.hour).toEqual({ ...NONE, error: 2, success: 1 });
    } finally {
      await other.stop({ keep: true });
    }
  });
});

describe("an agent's last error", () => {
  beforeEach(start);
  afterEach(stop);

  it('names the task, how it ended and what the agent said; a success leaves it', async () => {
    const id = await attempt(agent, 'error', [
      { name: 'message', value: 'less telling' },
      { name: 'error', value: 'ECONNREFUSED' },
    ]);
    const at = iso(clock.now());
    await server.pass(1_000, { reaps: false });
    await attempt(agent, 'success', [{ name: 'error', value: 'none' }]);
    await attempt(agent, 'unsaid');
    const error = { at, task_id: id, outcome: 'error', message: 'ECONNREFUSED' };
    expect((await agentView()).last_error).toEqual(error);
    await server.pass(1_000, { reaps: false });
    const next = await attempt(agent, 'timeout', [{ name: 'error', value: 'no answer' }]);
    expect((await agentView()).last_error).toMatchObject({
      task_id: next,
      outcome: 'timeout',
      message: 'no answer',
    });
  });

  it('says what went wrong, even if later attempts end without a message', async () => {
    const telling = await attempt(agent, 'error', [{ name: 'error', value: 'disk full' }]);
    await flush();
    await server.pass(1_000, { reaps: false });
    await attempt(agent, 'timeout', [{ name: 'error', value: 7 }]);
    expect((await agentView()).last_error).toMatchObject({ task_id: telling, message: 'disk full' });
  });

  describe('of several that are written in any order', () => {
    const NOON = Date.UTC(2026, 0, 1, 12);
    const speaks = (afterMs: number) => ({ at: NOON + afterMs, message: '"disk full"' });
    const silent = (afterMs: number) => ({ at: NOON + afterMs, message: null });
    const orders = <Item>(items: readonly Item[]): Item[][] =>
      items.length < 2
        ? [[...items]]
        : items.flatMap((first, i) => orders(items.toSpliced(i, 1)).map((rest) => [first, ...rest]));

    it.each([
      ['the later of two that speak', [speaks(0), speaks(5)], 1],
      ['the later of two that do not', [silent(0), silent(5)], 1],
      ['the one that speaks, before', [speaks(0), silent(HOUR_MS - 1)], 0],
      ['the one that speaks, after', [silent(0), speaks(5)], 1],
      ['the one that does not, an hour later', [speaks(0), silent(HOUR_MS)], 1],
      ['the last that speaks of three', [speaks(0), silent(HOUR_MS), speaks(HOUR_MS + 1)], 2],
      ['the last of three', [speaks(0), silent(HOUR_MS - 1), silent(HOUR_MS + 1)], 2],
    ] as const)('is %s', async (_, errors, expected) => {
      clock.advance(NOON + 2 * HOUR_MS - clock.now());
      const outcomes = server.app.get(AgentOutcomes);
      const write = jest.spyOn(server.database, 'write');
      const between = {
        nothing: async () => {},
        'a write': () => outcomes.flush(),
        'a write that fails': async () => {
          write.mockRejectedValueOnce(new Error('it is away'));
          await outcomes.flush().catch(() => undefined);
        },
      };
      for (const order of orders([...errors.keys()]))
        for (const [name, happens] of Object.entries(between)) {
          const { agent_id } = await server.register();
          for (const i of order) {
            const { at, message } = errors[i] as (typeof errors)[number];
            const unit = { now: at, afterCommit: (work: () => void) => work() } as Transaction;
            outcomes.count(unit, [{ agentId: agent_id, taskId: i, outcome: 'error', message }]);
            await happens();
          }
          const { last_error } = await agentView({ agent_id } as Credentials);
          expect([name, order, last_error?.task_id]).toEqual([name, order, expected]);
        }
      write.mockRestore();
    });
  });

  it.each([
    ['U+0000 and an escape', 'a\0b\u001b[31m'],
    ['half a character', 'x\ud800y'],
    ['quotes', `'";--\\`],
  ])('keeps what the agent said as it is: %s', async (_, value) => {
    const id = await attempt(agent, 'error', [{ name: 'error', value }]);
    expect((await agentView()).last_error.message).toBe(value);
    expect((await task(id)).last_error).toBe(value);
    expect((await list('outcome=error')).body.items[0].last_error).toBe(value);
  });

  it('keeps no more than 300 characters, and cuts none in half', async () => {
    await attempt(agent, 'cancelled', [{ name: 'error', value: `${'a'.repeat(299)}😀b` }]);
    expect((await agentView()).last_error.message).toBe('a'.repeat(299));
  });
});

describe('failing agents', () => {
  beforeEach(start);
  afterEach(stop);

  const run = async (who: Credentials, ...endings: Ending[]): Promise<void> => {
    for (const as of endings) await attempt(who, as);
    await server.operator('POST', '/v1/tasks/cancel', { all: true });
  };

  it('are those of which more than half of at least 5 attempts failed in the last hour', async () => {
    const [bad, half, few, slow] = await Promise.all(
      ['bad', 'half', 'few', 'slow'].map((name) => server.register(name)),
    );
    await run(bad as Credentials, 'error', 'error', 'cancelled', 'success', 'timeout');
    await run(half as Credentials, 'error', 'error', 'error', 'success', 'success', 'unsaid');
    await run(few as Credentials, 'error', 'error', 'error', 'error');
    await run(slow as Credentials, 'timeout', 'timeout', 'timeout', 'timeout', 'timeout', 'timeout');
    expect(await agents('failing=true')).toEqual([bad?.agent_id]);
    const others = [half, few, slow, agent].map((who) => who?.agent_id as number).sort((a, b) => b - a);
    expect(await agents('failing=false')).toEqual(others);
    expect(await agents('failing=true&status=disabled')).toEqual([]);
    expect(await agents('failing=true&hostname=bad&status=online')).toEqual([bad?.agent_id]);
    const count = () => server.database.read((tx) => server.app.get(AgentOutcomes).countFailing(tx));
    expect(await count()).toBe(1);
    await server.operator('POST', `/v1/agents/${bad?.agent_id}/disable`);
    expect([await agents('failing=true'), await count()]).toEqual([[bad?.agent_id], 0]);
    await server.pass(71 * MINUTE_MS, { reaps: false });
    expect(await agents('failing=true')).toEqual([]);
  });

  it('go through pages', async () => {
    const failing: number[] = [];
    for (const name of ['a', 'b', 'c']) {
      const who = await server.register(name);
      await run(who, 'error', 'error', 'error', 'error', 'error');
      failing.unshift(who.agent_id);
    }
    await flush();
    const { body } = await server.operator('GET', '/v1/agents?failing=true&limit=2');
    expect(body.items.map((item) => item.id)).toEqual(failing.slice(0, 2));
    expect(await agents(`failing=true&limit=2&cursor=${body.next_cursor}`)).toEqual(failing.slice(2));
  });

  it.each([
    ['failing=maybe', 'failing'],
    ['failing=', 'failing'],
    ['config_status=fine', 'config_status'],
    ['version=a%00', 'url'],
    [`kind=${'k'.repeat(65)}`, 'kind'],
  ])('are not asked for by %s', async (query, field) => {
    const { status, body } = await server.operator('GET', `/v1/agents?${query}`);
    expect([status, Object.keys(body.details ?? {})]).toEqual([400, [field]]);
  });
});

describe("an agent's version", () => {
  beforeEach(start);
  afterEach(stop);

  const beat = (who: Credentials, version: string) =>
    server.agent(who, '/heartbeat', {}, { 'user-agent': version });

  it('is the User-Agent of its heartbeats and claims', async () => {
    await beat(agent, 'dns-agent/1.4 (linux)');
    expect((await agentView()).version).toBe('dns-agent/1.4 (linux)');
    await server.pass(MINUTE_MS, { reaps: false });
    await server.agent(agent, '/claim', { capacities: { dns: 1 } }, { 'user-agent': 'dns-agent/1.5' });
    expect((await agentView()).version).toBe('dns-agent/1.5');
  });

  it.each([
    ['too long', 'x'.repeat(129)],
    ['not ASCII', 'caf\u00e9'],
  ])('is none that is %s', async (_, version) => {
    await beat(agent, version);
    expect((await agentView()).version).toBeNull();
  });

  it('is not learned from a call that is refused', async () => {
    await server.operator('POST', `/v1/agents/${agent.agent_id}/disable`);
    expect((await beat(agent, 'a/1')).status).toBe(403);
    expect((await agentView()).version).toBeNull();
  });

  it('is written once a minute at most, and when it changes only', async () => {
    const stored = async () => {
      await flush();
      return server.rows('SELECT version, said_at FROM agent_about');
    };
    const from = clock.now();
    await beat(agent, 'a/1');
    expect(await stored()).toEqual([{ version: 'a/1', said_at: from }]);
    await beat(agent, 'a/2');
    expect(await stored()).toEqual([{ version: 'a/1', said_at: from }]);
    await server.pass(MINUTE_MS, { reaps: false });
    await beat(agent, 'a/1');
    expect(await stored()).toEqual([{ version: 'a/1', said_at: from }]);
    await beat(agent, 'a/2');
    expect(await stored()).toEqual([{ version: 'a/2', said_at: from + MINUTE_MS }]);
  });

  it('finds agents, and so do the kinds that they take', async () => {
    const [b, c] = [await server.register('b'), await server.register('c')];
    for (const [who, version, kind] of [
      [agent, 'v1', 'dns'],
      [b, 'v1', 'http'],
      [c, 'v2', 'dns'],
    ] as const) {
      await server.agent(who, '/claim', { capacities: { [kind]: 1 } }, { 'user-agent': version });
    }
    expect(await agents('version=v1')).toEqual([b.agent_id, agent.agent_id]);
    expect(await agents('version=v')).toEqual([]);
    expect(await agents('kind=dns')).toEqual([c.agent_id, agent.agent_id]);
    expect(await agents('kind=dns&version=v1')).toEqual([agent.agent_id]);
    expect(await agents('kind=tcp')).toEqual([]);
    expect(await agents('version=v1&limit=1')).toEqual([b.agent_id]);
    expect(await agents(`version=v1&cursor=${b.agent_id}`)).toEqual([agent.agent_id]);
    // A kind that was not asked for in a day is none that the agent takes.
    await server.pass(MINUTE_MS, { reaps: false });
    clock.advance(DAY_MS);
    expect(await agents('kind=dns')).toEqual([]);
  });
});

describe('agents by their configuration', () => {
  beforeEach(start);
  afterEach(stop);

  it('are found by whether they have the one in force', async () => {
    const [b, c, d] = [await server.register('b'), await server.register('c'), await server.register('d')];
    const say = (who: Credentials, config_revision: string, config_status: string) =>
      server.agent(who, '/heartbeat', { config_revision, config_status });
    await say(agent, 'before', 'applied');
    expect(await agents('config_status=applied')).toEqual([]);
    expect(await agents('config_status=other')).toEqual([agent.agent_id]);
    const { body } = await server.operator('POST', '/v1/configs', { config: { a: 1 } });
    await say(b, body.revision, 'applied');
    await say(c, body.revision, 'failed');
    expect(await agents('config_status=applied')).toEqual([b.agent_id]);
    expect(await agents('config_status=failed')).toEqual([c.agent_id]);
    expect(await agents('config_status=other')).toEqual([agent.agent_id]);
    expect(await agents('config_status=unsaid')).toEqual([d.agent_id]);
    expect(await agents('config_status=failed&failing=true')).toEqual([]);
    expect(await agents('config_status=failed&failing=false&status=online')).toEqual([c.agent_id]);
  });
});

describe('tasks by their last attempt', () => {
  beforeEach(start);
  afterEach(stop);

  it('show how it ended, and keep it through a retry and a claim', async () => {
    const at = iso(clock.now());
    const id = await attempt(agent, 'cancelled', [{ name: 'error', value: 'no route' }]);
    const shown = {
      last_outcome: 'cancelled',
      last_error: 'no route',
      last_agent_id: agent.agent_id,
      last_ended_at: at,
    };
    expect(await task(id)).toMatchObject({ state: 'scheduled', ...shown });
    expect((await list('')).body.items[0]).toMatchObject(shown);
    await server.operator('POST', `/v1/tasks/${id}/cancel`);
    await server.operator('POST', `/v1/tasks/${id}/retry`);
    await server.pass(1_000, { reaps: false });
    const other = await server.register('b');
    const [lease] = await claim(other);
    expect(await task(id)).toMatchObject({ state: 'leased', ...shown });
    await server.agent(other, '/report', reportOf(lease?.lease_id as number, 'success'));
    expect(await task(id)).toMatchObject({
      ...{ state: 'completed', last_outcome: 'success', last_error: null },
      ...{ last_agent_id: other.agent_id, last_ended_at: iso(clock.now()) },
    });
  });

  it('are found by outcome, agent, time, state, kind and target, the latest first', async () => {
    const other = await server.register('b');
    const began = clock.now();
    const done: Record<string, number> = {};
    for (const [name, who, as] of [
      ['s1', agent, 'success'],
      ['e1', agent, 'error'],
      ['t2', other, 'timeout'],
      ['u2', other, 'unsaid'],
      ['g1', agent, 'cancelled'],
      ['s2', other, 'success'],
    ] as const) {
      done[name] = await attempt(who, as, [], {
        spec: { server: name === 'e1' ? '192.0.2.1' : '192.0.2.2' },
      });
      clock.advance(1_000);
      await server.operator('POST', '/v1/tasks/cancel', { state: 'scheduled' });
    }
    const never = await server.enqueue(dnsTask());
    const of = (...names: string[]) => names.map((name) => done[name]);
    expect(await tasks('outcome=error')).toEqual(of('e1'));
    expect(await tasks('outcome=success')).toEqual(of('s2', 's1'));
    expect(await tasks('outcome=expired')).toEqual([]);
    expect(await tasks(`agent_id=${agent.agent_id}`)).toEqual(of('g1', 'e1', 's1'));
    expect(await tasks(`agent_id=${other.agent_id}&outcome=timeout`)).toEqual(of('t2'));
    expect(await tasks(`agent_id=${other.agent_id}&outcome=error`)).toEqual([]);
    expect(await tasks('agent_id=99')).toEqual([]);
    expect(await tasks(`from=${iso(began)}`)).toEqual(of('s2', 'g1', 'u2', 't2', 'e1', 's1'));
    expect(await tasks(`from=${iso(began + 1_000)}&to=${iso(began + 3_000)}`)).toEqual(of('t2', 'e1'));
    expect(await tasks(`from=${iso(began)}&kind=http`)).toEqual([]);
    expect(await tasks(`from=${iso(began)}&kind=dns&state=cancelled`)).toEqual(of('g1'));
    expect(await tasks('outcome=cancelled&state=dead')).toEqual([]);
    expect(await tasks(`target=192.0.2.1:53&from=${iso(began)}`)).toEqual(of('e1'));
    expect(await tasks(`target=192.0.2.2:53&agent_id=${agent.agent_id}`)).toEqual(of('g1', 's1'));
    expect(await tasks('target=192.0.2.2:53&outcome=success&kind=dns')).toEqual(of('s2', 's1'));
    expect(await tasks(`from=${iso(clock.now() + 1)}`)).toEqual([]);
    expect(await tasks('state=queued')).toEqual(never);
  });

  it('are found once, whatever attempts they had before', async () => {
    const other = await server.register('b');
    const id = await attempt(agent, 'cancelled');
    // Tried again and cancelled at the same instant.
    await server.operator('POST', `/v1/tasks/${id}/cancel`);
    await server.operator('POST', `/v1/tasks/${id}/retry`);
    const [again] = await claim(agent);
    await server.agent(agent, '/report', reportOf(again?.lease_id as number, 'cancelled'));
    for (const query of ['outcome=cancelled', `agent_id=${agent.agent_id}`, 'from=2026-01-01T00:00:00Z'])
      expect(await tasks(query)).toEqual([id]);
    await server.pass(2_000);
    const [last] = await claim(other);
    await server.agent(other, '/report', reportOf(last?.lease_id as number, 'error'));
    for (const query of ['outcome=error', `agent_id=${other.agent_id}`, 'from=2026-01-01T00:00:00Z'])
      expect(await tasks(query)).toEqual([id]);
    for (const query of ['outcome=cancelled', `agent_id=${agent.agent_id}`])
      expect(await tasks(query)).toEqual([]);
    expect((await list('outcome=error')).body.items[0]).toMatchObject({ last_agent_id: other.agent_id });
  });

  it('belong to who holds them now, whatever else is asked for', async () => {
    const other = await server.register('b');
    const id = await attempt(agent, 'cancelled');
    expect(await tasks(`agent_id=${agent.agent_id}&outcome=cancelled`)).toEqual([id]);
    await server.pass(2_000);
    expect(await claim(other)).toMatchObject([{ task_id: id }]);
    for (const query of ['', '&outcome=cancelled', '&from=2026-01-01T00:00:00Z'])
      expect(await tasks(`agent_id=${agent.agent_id}${query}`)).toEqual([]);
    expect(await tasks(`agent_id=${other.agent_id}`)).toEqual([id]);
    // A bulk cancel of the tasks that one agent returned does not take them from the one that works on them.
    const filter = { agent_id: agent.agent_id, outcome: 'cancelled' };
    const { body } = await server.operator('POST', '/v1/tasks/cancel', filter);
    expect(body).toEqual({ matched: 0, changed: 0 });
  });

  it('are found behind any number of others, a bounded number looked at for each page', async () => {
    const [http] = await server.enqueue({ kind: 'http', spec: { url: 'http://a.example/' } });
    const [lease] = (await server.agent(agent, '/claim', { capacities: { http: 1 } })).body.leases;
    await server.agent(agent, '/report', reportOf(lease.lease_id, 'success'));
    clock.advance(1);
    const wanted = await attempt(agent, 'success', [], { spec: { server: '192.0.2.9' } });
    await server.enqueue(...Array.from({ length: 2_050 }, () => dnsTask()));
    for (let leases = await claim(agent, 256); leases.length > 0; leases = await claim(agent, 256)) {
      const completed = leases.map(({ lease_id }) => ({ lease_id, outcome: 'success' }));
      await server.agent(agent, '/report', { completed, cancelled: [] });
      clock.advance(1);
    }
    const pagesOf = async (query: string): Promise<number[][]> => {
      const pages: number[][] = [];
      let cursor: string | null = '';
      while (cursor !== null) {
        const { body } = await list(`${query}${cursor && `&cursor=${cursor}`}`);
        pages.push(body.items.map((task: { id: number }) => task.id));
        cursor = body.next_cursor as string | null;
      }
      return pages;
    };
    expect(await pagesOf(`agent_id=${agent.agent_id + 1}&target=resolver&outcome=success`)).toEqual([[], []]);
    expect(await pagesOf(`target=192.0.2.9:53&agent_id=${agent.agent_id}`)).toEqual([[wanted]]);
    expect(await pagesOf('target=resolver&state=dead')).toEqual([[], []]);
    expect(await pagesOf('target=resolver&outcome=error')).toEqual([[], []]);
    // Also if the newest leave what is looked at between two of its statements.
    const read = server.database.read.bind(server.database);
    let isDone = false;
    const spy = jest.spyOn(server.database, 'read').mockImplementation((work) =>
      read((statements) => {
        const disturbed =
          (name: 'rows' | 'first') =>
          async (sql: string, ...values: never[]) => {
            const result = await statements[name](sql, ...values);
            if (/ended_at/.test(sql) && !isDone) {
              isDone = true;
              await server.database.write((tx) =>
                tx.run(`UPDATE leases SET agent_id = 99 WHERE id IN (
                  SELECT id FROM leases WHERE kind = 'dns' ORDER BY id DESC LIMIT 500)`),
              );
            }
            return result;
          };
        return work(
          Object.assign(Object.create(statements), { rows: disturbed('rows'), first: disturbed('first') }),
        );
      }),
    );
    expect((await pagesOf(`agent_id=${agent.agent_id}&kind=http`)).flat()).toEqual([http]);
    spy.mockRestore();
    expect(isDone).toBe(true);
  });

  it('are of a target in the order of their ids, whatever else is asked for', async () => {
    const [other, slow] = [await server.register('b'), await server.register('c')];
    const to = { spec: { server: '192.0.2.7' } };
    const [first] = await server.enqueue(dnsTask({}, to.spec));
    const [lease] = await claim(slow);
    const began = clock.now();
    const second = await attempt(other, 'error', [], to);
    const third = await attempt(agent, 'success', [], to);
    const [held, free] = await server.enqueue(dnsTask({}, to.spec), dnsTask({}, to.spec));
    await claim(other);
    clock.advance(1_000);
    await server.agent(slow, '/report', reportOf(lease?.lease_id as number, 'success'));
    const target = 'target=192.0.2.7:53';
    expect(await tasks(target)).toEqual([free, held, third, second, first]);
    expect(await tasks(`${target}&outcome=success`)).toEqual([third, first]);
    expect(await tasks(`${target}&outcome=success&cursor=${third}`)).toEqual([first]);
    expect(await tasks(`${target}&outcome=success&from=${iso(began + 1)}`)).toEqual([first]);
    expect(await tasks(`${target}&to=${iso(began + 1)}`)).toEqual([third, second]);
    expect(await tasks(`${target}&outcome=error`)).toEqual([second]);
    expect(await tasks(`${target}&outcome=error&agent_id=${agent.agent_id}`)).toEqual([]);
    expect(await tasks(`${target}&agent_id=${other.agent_id}`)).toEqual([held, second]);
    expect(await tasks(`${target}&agent_id=${other.agent_id}&state=leased`)).toEqual([held]);
    expect(await tasks(`${target}&agent_id=${agent.agent_id}`)).toEqual([third]);
    expect(await tasks(`${target}&state=queued`)).toEqual([free]);
  });

  it('begin with those that the agent holds', async () => {
    const ended = await attempt(agent, 'success');
    const held = await server.enqueue(dnsTask(), dnsTask());
    await claim(agent, 2);
    await server.enqueue(dnsTask());
    expect(await tasks(`agent_id=${agent.agent_id}`)).toEqual([...held.toReversed(), ended]);
    expect(await tasks(`agent_id=${agent.agent_id}&state=leased`)).toEqual(held.toReversed());
    expect(await tasks(`agent_id=${agent.agent_id}&state=leased&kind=http`)).toEqual([]);
    expect(await tasks(`agent_id=${agent.agent_id}&state=completed`)).toEqual([ended]);
    expect(await tasks(`agent_id=${agent.agent_id}&outcome=success`)).toEqual([ended]);
  });

  it('go through pages, over tasks that ended at one instant too', async () => {
    const ids: number[] = [];
    for (let i = 0; i < 5; i++) ids.unshift(await attempt(agent, i % 2 ? 'success' : 'error'));
    ids.unshift(...(await server.enqueue(dnsTask())));
    await claim(agent);
    const seen: number[] = [];
    let cursor = '';
    do {
      const { body } = await list(`agent_id=${agent.agent_id}&limit=2${cursor && `&cursor=${cursor}`}`);
      seen.push(...body.items.map((item: { id: number }) => item.id));
      cursor = body.next_cursor;
    } while (cursor);
    expect(seen).toEqual(ids);
  });

  it.each([
    ['outcome=fine', 'outcome'],
    ['agent_id=0', 'agent_id'],
    ['from=yesterday', 'from'],
    ['to=2026-01-01', 'to'],
    ['from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z', 'from'],
    ['outcome=error&cursor=7', 'cursor'],
    ['state=queued&cursor=1767225600000-7', 'cursor'],
    ['state=dead&cursor=7', 'cursor'],
    ['outcome=error&cursor=7-', 'cursor'],
  ])('are not asked for by %s', async (query, field) => {
    const { status, body } = await list(query);
    expect([status, Object.keys(body.details ?? {})]).toEqual([400, [field]]);
  });
});

describe('many tasks by their last attempt', () => {
  beforeEach(start);
  afterEach(stop);

  const cancel = (body: object) => server.operator('POST', '/v1/tasks/cancel', body);
  const retry = (body: object) => server.operator('POST', '/v1/tasks/retry', body);

  it('are cancelled: those that an agent holds, and those that it returned', async () => {
    const other = await server.register('b');
    const theirs = await attempt(other, 'cancelled');
    const given = await attempt(agent, 'cancelled');
    const [held, free] = await server.enqueue(dnsTask(), dnsTask());
    await claim(agent);
    expect((await cancel({ agent_id: agent.agent_id, dry_run: true })).body).toEqual({
      matched: 2,
      changed: 0,
    });
    expect((await cancel({ agent_id: agent.agent_id })).body).toEqual({ matched: 2, changed: 2 });
    const states = await Promise.all(
      [held, given, free, theirs].map(async (id) => (await task(id as number)).state),
    );
    expect(states).toEqual(['cancelled', 'cancelled', 'queued', 'scheduled']);
    expect((await cancel({ agent_id: agent.agent_id })).body).toEqual({ matched: 0, changed: 0 });
    const [entry] = (await server.operator('GET', '/v1/audit?action=task.cancel-many')).body.items;
    expect(entry.after).toEqual({ agent_id: agent.agent_id, matched: 2, changed: 2 });
  });

  it('are cancelled at a target: those that the agent holds there, and not what another does', async () => {
    const other = await server.register('b');
    const to = { spec: { server: '192.0.2.7' } };
    const given = await attempt(agent, 'cancelled', [], to);
    const elsewhere = await attempt(agent, 'cancelled');
    const [mine, theirs] = await server.enqueue(dnsTask({}, to.spec), dnsTask({}, to.spec));
    await claim(agent);
    await claim(other);
    const filter = { target: '192.0.2.7:53', agent_id: agent.agent_id };
    expect((await cancel({ ...filter, outcome: 'expired' })).body).toEqual({ matched: 0, changed: 0 });
    expect((await cancel({ ...filter, dry_run: true })).body).toEqual({ matched: 2, changed: 0 });
    expect((await cancel(filter)).body).toEqual({ matched: 2, changed: 2 });
    const states = await Promise.all(
      [given, mine, theirs, elsewhere].map(async (id) => (await task(id as number)).state),
    );
    expect(states).toEqual(['cancelled', 'cancelled', 'leased', 'scheduled']);
    expect((await retry({ target: '192.0.2.7:53', outcome: 'cancelled' })).body).toEqual({
      matched: 1,
      changed: 1,
    });
  });

  it('are counted once if two kinds share a target', async () => {
    const dns = dnsTask({}, { server: '192.0.2.7' });
    await server.enqueue(dns, { kind: 'tcp', spec: { host: '192.0.2.7', port: 53 } });
    expect((await cancel({ target: '192.0.2.7:53', dry_run: true })).body).toEqual({
      matched: 2,
      changed: 0,
    });
    expect((await list('target=192.0.2.7:53')).body.items).toHaveLength(2);
    expect((await list('target=192.0.2.7:53&kind=tcp')).body.items).toHaveLength(1);
  });

  it('are not those in other states: what succeeded is neither cancelled nor retried', async () => {
    await attempt(agent, 'success');
    const given = await attempt(agent, 'cancelled');
    await server.operator('POST', `/v1/tasks/${given}/cancel`);
    await server.enqueue(dnsTask());
    for (const ask of [cancel, retry])
      expect((await ask({ outcome: 'success' })).body).toEqual({ matched: 0, changed: 0 });
  });

  it('are retried by outcome and time', async () => {
    const began = clock.now();
    const [early] = await server.enqueue(dnsTask({ max_attempts: 1 }));
    await claim(agent);
    await server.pass(61_000);
    const [late] = await server.enqueue(dnsTask({ max_attempts: 1 }), dnsTask({ max_attempts: 1 }));
    const leases = await claim(agent, 2);
    await server.agent(agent, '/report', {
      completed: [],
      cancelled: leases.map(({ lease_id }) => ({ lease_id })),
    });
    const filter = { outcome: 'cancelled', from: iso(began), to: iso(clock.now()), state: 'dead' };
    expect((await retry(filter)).body).toEqual({ matched: 0, changed: 0 });
    expect((await retry({ outcome: 'expired', kind: 'http' })).body).toEqual({ matched: 0, changed: 0 });
    expect((await retry({ ...filter, to: iso(clock.now() + 1) })).body).toEqual({ matched: 2, changed: 2 });
    expect(await task(late as number)).toMatchObject({ state: 'queued', last_outcome: 'cancelled' });
    expect((await task(early as number)).state).toBe('dead');
    expect((await retry({ outcome: 'expired', agent_id: agent.agent_id })).body).toEqual({
      matched: 1,
      changed: 1,
    });
  });

  it('go on in more batches than one', async () => {
    const many = Array.from({ length: 450 }, () => dnsTask({ max_attempts: 1 }));
    await server.enqueue(...many);
    for (let left = many.length; left > 0; ) {
      const leases = await claim(agent, 256);
      left -= leases.length;
      const body = { completed: [], cancelled: leases.map(({ lease_id }) => ({ lease_id })) };
      expect((await server.agent(agent, '/report', body)).body.acknowledged).toBe(leases.length);
    }
    expect((await retry({ outcome: 'cancelled' })).body).toEqual({ matched: 450, changed: 450 });
    expect((await cancel({ outcome: 'cancelled', state: 'queued' })).body).toEqual({
      matched: 450,
      changed: 450,
    });
  });

  it.each([
    [{ outcome: 'fine' }, 'outcome'],
    [{ agent_id: '12' }, 'agent_id'],
    [{ from: 'now' }, 'from'],
    [{ from: '2026-01-02T00:00:00Z', to: '2026-01-01T00:00:00Z' }, 'from'],
    [{ all: true, outcome: 'error' }, 'all'],
  ])('are not asked for by %j', async (body, field) => {
    const answer = await cancel(body);
    expect([answer.status, Object.keys(answer.body.details ?? {})]).toEqual([400, [field]]);
  });
});
