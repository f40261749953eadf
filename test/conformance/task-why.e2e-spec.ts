import { SchedulerRegistry } from '@nestjs/schedule';
import { QueueMaintainer } from '../../src/queue/maintenance';
import { Overload } from '../../src/telemetry/overload';
import type { Json, Lease } from '../helpers/api';
import { ApiDocument } from '../helpers/api-document';
import { type Answer, type Credentials, dnsTask, TestClock, TestServer } from '../helpers/harness';

const LEASE_MS = 10_000;
const TIMEOUT_MS = 10_000;
const MINUTE_MS = 60_000;
const DAY_MS = 1_440 * MINUTE_MS;

describe('why a task does not run', () => {
  let server: TestServer;
  let clock: TestClock;
  let document: ApiDocument | undefined;

  beforeEach(async () => {
    clock = new TestClock();
    server = await TestServer.start(
      { LEASE_DURATION_MS: String(LEASE_MS), HEARTBEAT_TIMEOUT_MS: String(TIMEOUT_MS) },
      { clock },
    );
  });
  afterEach(() => server.stop());

  const inMs = (ms: number): string => new Date(clock.now() + ms).toISOString();
  const askedAbout = (id: number | string): Promise<Answer> => server.operator('GET', `/v1/tasks/${id}/why`);
  /** The answer, which is as the API's document says. */
  const why = async (id: number | undefined): Promise<Json> => {
    const answer = await askedAbout(id as number);
    document ??= new ApiDocument((await server.request('GET', '/docs-json')).body);
    expect(document.problemsOfAnswer('GET /v1/tasks/{id}/why', answer)).toEqual([]);
    return answer.body;
  };
  const claim = async (who: Credentials, capacities: Record<string, number> = { dns: 1 }): Promise<Lease[]> =>
    (await server.agent(who, '/claim', { capacities })).body.leases;
  const limit = (...limits: object[]): Promise<Answer> =>
    server.operator('PUT', '/v1/concurrency/limits', { limits });
  const change = (who: Credentials, verb: string): Promise<Answer> =>
    server.operator('POST', `/v1/agents/${who.agent_id}/${verb}`);
  const enqueueOne = async (task: object = dnsTask()): Promise<number> =>
    (await server.enqueue(task))[0] as number;
  const aimedAt = (host: string, fields: object = {}) => dnsTask(fields, { server: host });

  /** An agent that has said that it takes some kinds. */
  async function taker(capacities: Record<string, number> = { dns: 5 }): Promise<Credentials> {
    const who = await server.register();
    await claim(who, capacities);
    return who;
  }

  it('is nothing: it is ready, with the number of those before it', async () => {
    const agent = await taker();
    await taker({ http: 1 });
    await server.enqueue(dnsTask({ priority: 2 }), dnsTask(), {
      kind: 'tcp',
      spec: { host: 'a.example', port: 1 },
    });
    const id = await enqueueOne();
    await server.enqueue(dnsTask(), dnsTask({ priority: -1 }));
    expect(await why(id)).toEqual({
      task_id: id,
      kind: 'dns',
      target: 'resolver',
      state: 'queued',
      reason: 'ready',
      message:
        'Nothing holds it: 2 tasks are before it; 1 agent is online and takes dns, 1 with room for more leases. The next claims that ask for enough get it; ' +
        'if none does, look whether the agents still run: a dead one counts as online until its heartbeat is overdue.',
      changes: [],
      until: null,
      attempts: 0,
      max_attempts: 5,
      before: 2,
      before_is_exact: true,
      lease: null,
      last_attempt: null,
      window: null,
      agents: {
        online: 1,
        offline: 0,
        draining: 0,
        disabled: 0,
        with_room: 1,
        last_asked_at: inMs(0),
      },
      load_percent: null,
    });
    expect((await claim(agent, { dns: 3 })).map(({ task_id }) => task_id)).toContain(id);
  });

  it('says that no agent has asked for long, though some are online', async () => {
    const agent = await taker();
    const id = await enqueueOne();
    const since = inMs(0);
    await server.pass(30 * MINUTE_MS, { reaps: false });
    await server.agent(agent, '/heartbeat');
    const answer = await why(id);
    expect(answer).toMatchObject({ reason: 'ready', agents: { online: 1, last_asked_at: since } });
    expect(answer.message).toContain(`None of them has asked for dns since ${since}`);
  });

  it('is its run_at', async () => {
    await taker();
    const run_at = inMs(20_000);
    const id = await enqueueOne(dnsTask({ run_at }));
    expect(await why(id)).toMatchObject({
      reason: 'not_yet',
      state: 'scheduled',
      until: run_at,
      // And the second within which what is due is seen to.
      changes: [{ reason: 'not_yet', action: 'wait_until', until: inMs(21_000) }],
      message: `It is not to run before its run_at; that is at ${run_at}. To let it run: wait until ${inMs(21_000)}.`,
    });
  });

  it('is its backoff, after which failure', async () => {
    const agent = await taker();
    const id = await enqueueOne();
    const [{ lease_id }] = await claim(agent);
    await server.agent(agent, '/report', {
      completed: [],
      cancelled: [{ lease_id, outcome: 'timeout' }],
    });
    const { body: task } = await server.operator('GET', `/v1/tasks/${id}`);
    const answer = await why(id);
    expect(answer).toMatchObject({
      reason: 'backoff',
      until: task.run_at,
      attempts: 1,
      last_attempt: {
        lease_id,
        agent_id: agent.agent_id,
        attempt: 1,
        ended: 'cancelled',
        outcome: 'timeout',
        ended_at: inMs(0),
      },
      changes: [
        {
          ...{ reason: 'backoff', action: 'wait_until' },
          until: new Date(Date.parse(task.run_at) + 1_000).toISOString(),
        },
      ],
    });
    expect(answer.message).toMatch(
      `Agent ${agent.agent_id} cancelled it (timeout), attempt 1 of 5; the next begins at ${task.run_at}.`,
    );
    // The agent of the next attempt is silent.
    await server.pass(3_000);
    const [second] = await claim(agent);
    await server.pass(LEASE_MS + 500);
    expect(await why(id)).toMatchObject({
      reason: 'backoff',
      last_attempt: { lease_id: second.lease_id, attempt: 2, ended: 'expired', outcome: null },
    });
  });

  it('is who holds it', async () => {
    const agent = await taker();
    const id = await enqueueOne(dnsTask({ max_attempts: 2 }));
    const [{ lease_id }] = await claim(agent);
    const answer = await why(id);
    expect(answer).toMatchObject({
      reason: 'leased',
      state: 'leased',
      until: inMs(LEASE_MS),
      lease: { lease_id, agent_id: agent.agent_id },
      attempts: 1,
      max_attempts: 2,
      // The longest backoff after a first attempt, and the second within which expired leases are seen to.
      changes: [{ reason: 'leased', action: 'wait_until', until: inMs(LEASE_MS + 2_000) }],
    });
    expect(answer.message).toMatch(
      `Agent ${agent.agent_id} holds it until ${inMs(LEASE_MS)}, attempt 1 of 2.`,
    );
    await server.pass(LEASE_MS + 2_500);
    await server.agent(agent, '/heartbeat');
    await claim(agent);
    // After the last attempt it is dead.
    expect((await why(id)).changes).toEqual([
      { reason: 'leased', action: 'wait_until', until: inMs(LEASE_MS + 1_000) },
      { reason: 'leased', action: 'retry_task' },
    ]);
  });

  it('is its window, of a target', async () => {
    const agent = await taker({ dns: 20 });
    await limit({ kind: 'dns', target: '192.0.2.1:53', limit: 2 }, { kind: 'dns', limit: 10 });
    await server.enqueue(aimedAt('192.0.2.1'));
    expect(await claim(agent, { dns: 20 })).toHaveLength(1);
    await server.enqueue(aimedAt('192.0.2.1'), aimedAt('192.0.2.1'), aimedAt('192.0.2.1', { priority: 1 }));
    const id = await enqueueOne(aimedAt('192.0.2.1'));
    await server.enqueue(aimedAt('192.0.2.1'), aimedAt('192.0.2.2'));
    const full = {
      reason: 'window_full',
      state: 'queued',
      before: 3,
      before_is_exact: true,
      window: {
        scope: 'target',
        kind: 'dns',
        target: '192.0.2.1:53',
        limit: 2,
        leased: 1,
        queued: 5,
        before: 3,
        before_is_exact: true,
        estimate_ms: null,
      },
      changes: [
        {
          reason: 'window_full',
          action: 'raise_limit',
          scope: 'target',
          kind: 'dns',
          target: '192.0.2.1:53',
          limit: 5,
        },
      ],
    };
    const answer = await why(id);
    expect(answer).toMatchObject(full);
    expect(answer.message).toBe(
      'The window of dns at 192.0.2.1:53 has too few slots left: of 2 slots 1 is leased, and 3 tasks are before it. ' +
        'To let it run: raise the limit of dns at 192.0.2.1:53 to 5.',
    );
    // The one that is claimed first, and the one of another target.
    expect(await claim(agent, { dns: 20 })).toHaveLength(2);
    expect(await why(id)).toMatchObject({
      ...full,
      before: 2,
      window: { ...full.window, leased: 2, queued: 4, before: 2 },
      message: expect.stringContaining('is full: of 2 slots 2 are leased, and 2 tasks are before it.'),
    });
  });

  it('is the window that is furthest from having room; the change names all that lack some', async () => {
    await taker();
    await limit({ limit: 3 }, { kind: 'dns', limit: 2 }, { kind: 'dns', target: '192.0.2.1:53', limit: 1 });
    await server.enqueue(aimedAt('192.0.2.1'), aimedAt('192.0.2.2'), aimedAt('192.0.2.3'));
    const id = await enqueueOne(aimedAt('192.0.2.1'));
    expect(await why(id)).toMatchObject({
      reason: 'window_full',
      window: { scope: 'kind', limit: 2, before: 3 },
      changes: [
        { action: 'raise_limit', scope: 'kind', kind: 'dns', target: null, limit: 4 },
        { action: 'raise_limit', scope: 'target', kind: 'dns', target: '192.0.2.1:53', limit: 2 },
        { action: 'raise_limit', scope: 'global', kind: null, target: null, limit: 4 },
      ],
    });
  });

  it('does not count those before it that another window holds', async () => {
    const agent = await taker({ dns: 20 });
    await limit(
      { kind: 'dns', limit: 1 },
      { kind: 'dns', target: '192.0.2.1:53', limit: 0 },
      { kind: 'dns', target: '192.0.2.2:53', limit: 2 },
    );
    await server.enqueue(aimedAt('192.0.2.9'));
    await server.enqueue(...[1, 1, 1, 2, 2, 2].map((i) => aimedAt(`192.0.2.${i}`, { priority: 1 })));
    const id = await enqueueOne(aimedAt('192.0.2.3'));
    // One that has no limit of its own, and two that their window has room for: the others can't be claimed.
    expect(await why(id)).toMatchObject({
      before: 3,
      window: { scope: 'kind', before: 3 },
      changes: [{ action: 'raise_limit', scope: 'kind', limit: 4 }],
    });
    const claimedWith = async (slots: number) => {
      await limit({ kind: 'dns', limit: slots });
      return (await claim(agent, { dns: 20 })).map(({ task_id }) => task_id);
    };
    expect(await claimedWith(3)).not.toContain(id);
    expect(await claimedWith(4)).toEqual([id]);
  });

  it('counts those of a target that was limited a moment ago by its window, wherever they are queued', async () => {
    // Nothing is moved into the lanes of these targets but when the test says so.
    server.app.get(SchedulerRegistry).deleteInterval('lane-moves');
    const agent = await taker({ dns: 20 });
    await server.enqueue(...[1, 2, 1, 9, 2, 1].map((i) => aimedAt(`192.0.2.${i}`)));
    const [one, two] = await server.enqueue(aimedAt('192.0.2.1'), aimedAt('192.0.2.3'));
    await limit(
      { kind: 'dns', target: '192.0.2.1:53', limit: 1 },
      { kind: 'dns', target: '192.0.2.2:53', limit: 0 },
    );
    await server.enqueue(aimedAt('192.0.2.1', { priority: 1 }));
    expect(await why(one)).toMatchObject({
      before: 1 + 4,
      window: { scope: 'target', target: '192.0.2.1:53', before: 4, queued: 1 },
      changes: [{ action: 'raise_limit', scope: 'target', limit: 5 }],
    });
    // Of the first target one, and the one that has no limit.
    expect(await why(two)).toMatchObject({ reason: 'ready', before: 2 });
    await server.app.get(QueueMaintainer).moveTasks();
    expect(await why(one)).toMatchObject({ before: 5, window: { before: 4, queued: 5 } });
    expect(await why(two)).toMatchObject({ reason: 'ready', before: 2 });
    expect((await claim(agent, { dns: 3 })).map(({ task_id }) => task_id)).toContain(two);
  });

  it('counts those that are left in the lane of a target whose limit was lifted', async () => {
    await taker({ dns: 20 });
    await limit({ kind: 'dns', target: '192.0.2.1:53', limit: 0 });
    const [, second] = await server.enqueue(aimedAt('192.0.2.1'), aimedAt('192.0.2.1'));
    await limit({ kind: 'dns', target: '192.0.2.1:53', limit: null });
    expect(await why(second)).toMatchObject({ reason: 'ready', before: 1, window: null });
    await limit({ kind: 'dns', limit: 2 });
    expect(await why(await enqueueOne(aimedAt('192.0.2.1')))).toMatchObject({
      before: 2,
      changes: [{ scope: 'kind', limit: 3 }],
    });
  });

  it('counts those of other kinds only for a limit of everything, as far as their kinds have room', async () => {
    await taker({ dns: 20 });
    await taker({ http: 20 });
    const http = { kind: 'http', spec: { url: 'http://a.example/' } };
    await server.enqueue(http, http, http, dnsTask());
    const id = await enqueueOne();
    await limit({ kind: 'dns', limit: 1 }, { kind: 'http', limit: 2 });
    expect((await why(id)).changes).toMatchObject([{ scope: 'kind', limit: 2 }]);
    await limit({ limit: 3 });
    expect(await why(id)).toMatchObject({
      window: { scope: 'kind', before: 1 },
      changes: [
        { scope: 'kind', limit: 2 },
        { scope: 'global', limit: 4 },
      ],
    });
  });

  it('is a window that lets nothing begin, and then nobody can say when it may', async () => {
    const agent = await taker();
    await server.enqueue(dnsTask(), dnsTask());
    await clockedCompletions(agent, 2);
    await limit({ kind: 'dns', limit: 0 });
    expect((await why(await enqueueOne())).window).toMatchObject({ limit: 0, estimate_ms: null });
  });

  it('estimates when a window may have room, from what was completed lately', async () => {
    const agent = await taker();
    await server.enqueue(dnsTask(), dnsTask(), dnsTask(), dnsTask());
    await clockedCompletions(agent, 4);
    await limit({ kind: 'dns', limit: 1 });
    await server.enqueue(dnsTask(), dnsTask(), dnsTask());
    const id = await enqueueOne();
    // Four in the 8 s since the first: three slots that must come free take 6 s.
    const { window, message } = await why(id);
    expect(window).toMatchObject({ before: 3, estimate_ms: 6_000 });
    expect(message).toContain('it may have a slot in 6 s');
    // What was completed elsewhere says nothing of it.
    await limit({ kind: 'dns', limit: null }, { kind: 'dns', target: '192.0.2.1:53', limit: 0 });
    expect((await why(await enqueueOne(aimedAt('192.0.2.1')))).window.estimate_ms).toBeNull();
  });

  async function clockedCompletions(agent: Credentials, count: number): Promise<void> {
    for (let i = 0; i < count; i++) {
      const [{ lease_id }] = await claim(agent);
      await server.agent(agent, '/report', { completed: [{ lease_id }], cancelled: [] });
      await server.pass(2_000, { reaps: false });
      await server.agent(agent, '/heartbeat');
    }
  }

  it('is that nobody ever asked for its kind', async () => {
    await taker({ http: 1 });
    const id = await enqueueOne();
    const answer = await why(id);
    expect(answer).toMatchObject({
      reason: 'no_agent',
      agents: { online: 0, offline: 0, draining: 0, disabled: 0, last_asked_at: null },
      changes: [{ reason: 'no_agent', action: 'bring_agent', kind: 'dns', capacity: 1 }],
    });
    expect(answer.message).toBe(
      'No agent has asked for dns in the last day. To let it run: bring an agent that asks for 1 of dns.',
    );
  });

  it('is that no agent that takes its kind is online: how many are offline, draining and disabled', async () => {
    const [silent, draining, disabled, revoked, deleted] = [
      await taker(),
      await taker(),
      await taker(),
      await taker(),
      await taker(),
    ];
    await change(disabled, 'disable');
    await change(revoked, 'revoke');
    await server.operator('DELETE', `/v1/agents/${deleted.agent_id}`);
    await change(draining, 'drain');
    await server.pass(TIMEOUT_MS + 1_000);
    await server.agent(draining, '/heartbeat');
    await server.enqueue(dnsTask());
    const id = await enqueueOne();
    const named = (who: Credentials) => ({ reason: 'no_agent', agent_id: who.agent_id, capacity: 2 });
    const answer = await why(id);
    expect(answer).toMatchObject({
      reason: 'no_agent',
      agents: { online: 0, offline: 1, draining: 1, disabled: 1 },
      changes: [{ ...named(draining), action: 'enable_agent' }],
    });
    expect(answer.message).toMatch('No agent that takes dns is online: 1 offline, 1 draining, 1 disabled.');
    // It is silent now, so that it takes more than the one that is offline.
    await server.pass(TIMEOUT_MS + 1_000);
    expect((await why(id)).changes).toMatchObject([{ ...named(silent), action: 'start_agent' }]);
    await change(silent, 'revoke');
    expect((await why(id)).changes).toEqual([
      { reason: 'no_agent', action: 'enable_agent', agent_id: draining.agent_id },
      expect.objectContaining({ ...named(draining), action: 'start_agent' }),
    ]);
    await change(draining, 'revoke');
    expect((await why(id)).changes).toMatchObject([{ ...named(disabled), action: 'enable_agent' }]);
    await change(disabled, 'enable');
    await server.agent(disabled, '/heartbeat');
    expect((await why(id)).reason).toBe('ready');
    // An agent that has not asked for it for a day takes it no more.
    clock.advance(DAY_MS);
    await server.agent(disabled, '/heartbeat');
    expect(await why(id)).toMatchObject({ reason: 'no_agent', changes: [{ action: 'bring_agent' }] });
  });

  it('is that all agents hold as many leases as they ask for', async () => {
    const [one, two] = [await taker({ dns: 2 }), await taker({ dns: 1, http: 5 })];
    await server.enqueue(dnsTask(), dnsTask(), dnsTask());
    expect([await claim(one, { dns: 2 }), await claim(two, { dns: 1 })]).toMatchObject([
      { length: 2 },
      { length: 1 },
    ]);
    await server.enqueue(dnsTask());
    const id = await enqueueOne();
    expect(await why(id)).toMatchObject({
      reason: 'agents_busy',
      before: 1,
      agents: { online: 2, with_room: 0 },
      changes: [{ reason: 'agents_busy', action: 'bring_agent', kind: 'dns', capacity: 2 }],
      message:
        '2 agents are online and take dns, and none has room for more leases. To let it run: bring an agent that asks for 2 of dns.',
    });
    const another = await server.register();
    expect((await claim(another, { dns: 2 })).map(({ task_id }) => task_id)).toContain(id);
  });

  it('is that agents that are online may not hold as many leases as it takes', async () => {
    await taker({ dns: 1 });
    const ids = await server.enqueue(...Array.from({ length: 1_001 }, () => dnsTask()));
    expect(await why(ids.at(-2))).toMatchObject({ reason: 'ready', before: 999 });
    const last = ids.at(-1) as number;
    expect(await why(last)).toMatchObject({
      reason: 'agents_busy',
      before: 1_000,
      agents: { online: 1, with_room: 1 },
      changes: [{ action: 'bring_agent', capacity: 1, agents: 1 }],
      message:
        '1 agent is online and takes dns, and may hold 1000 more leases in all; 1000 tasks are before it. ' +
        'To let it run: bring an agent that asks for 1 of dns.',
    });
    await taker({ dns: 1 });
    // It was given the one that it asked for.
    expect(await why(last)).toMatchObject({ reason: 'ready', before: 999, agents: { with_room: 1 } });
  });

  it('does not count what comes due meanwhile and is handed out later', async () => {
    const agent = await taker({ dns: 1 });
    await server.enqueue(...Array.from({ length: 1_001 }, () => dnsTask({ run_at: inMs(2_000) })));
    const id = await enqueueOne(dnsTask({ priority: 1, run_at: inMs(4_000) }));
    expect((await why(id)).changes).toMatchObject([{ action: 'wait_until' }]);
    await server.pass(5_000);
    expect((await claim(agent)).map(({ task_id }) => task_id)).toEqual([id]);
  });

  it('counts the slots that those behind it can take while it waits, as far as there is room', async () => {
    const agent = await taker({ dns: 20 });
    await limit({ kind: 'dns', limit: 3 }, { kind: 'dns', target: '192.0.2.1:53', limit: 1 });
    await server.enqueue(
      ...[1, 1, 2, 2].map((i) => aimedAt(`192.0.2.${i}`, { priority: -5 })),
      aimedAt('192.0.2.3', { priority: -5, run_at: inMs(3_000) }),
    );
    const id = await enqueueOne(aimedAt('192.0.2.1', { priority: 5, run_at: inMs(6_000) }));
    const { changes } = await why(id);
    expect(changes).toMatchObject([
      { action: 'wait_until' },
      { action: 'raise_limit', scope: 'target', limit: 2 },
      { action: 'raise_limit', scope: 'kind', limit: 4 },
    ]);
    expect(await claim(agent, { dns: 20 })).toHaveLength(3);
    await server.pass(7_000);
    await limit(
      ...changes.slice(1).map(({ kind, target, limit: slots }: Json) => ({
        ...{ kind, limit: slots },
        ...(target === null ? {} : { target }),
      })),
    );
    expect((await claim(agent, { dns: 20 })).map(({ task_id }) => task_id)).toEqual([id]);
  });

  it('counts the lease that the holder loses as room of it, also while it drains', async () => {
    await server.stop();
    server = await TestServer.start(
      { LEASE_DURATION_MS: String(LEASE_MS), MAX_LEASES_PER_AGENT: '2' },
      { clock },
    );
    const agent = await server.register();
    const [id] = await server.enqueue(dnsTask(), dnsTask({ priority: -1 }));
    expect(await claim(agent, { dns: 2 })).toHaveLength(2);
    expect((await why(id)).changes).toMatchObject([{ action: 'wait_until' }]);
    await change(agent, 'drain');
    expect((await why(id)).changes).toMatchObject([
      { action: 'wait_until' },
      { action: 'enable_agent', agent_id: agent.agent_id, capacity: 1 },
    ]);
  });

  it('is several things at once: the change is all of them, in order', async () => {
    await limit({ kind: 'dns', limit: 1 });
    await server.enqueue(dnsTask());
    const run_at = inMs(5_000);
    const id = await enqueueOne(dnsTask({ run_at }));
    expect(await why(id)).toMatchObject({
      reason: 'not_yet',
      window: { scope: 'kind' },
      changes: [
        { reason: 'not_yet', action: 'wait_until', until: inMs(6_000) },
        { reason: 'no_agent', action: 'bring_agent', kind: 'dns', capacity: 2 },
        { reason: 'window_full', action: 'raise_limit', kind: 'dns', limit: 2 },
      ],
    });
  });

  it('is that its time is up, or will be before it can run', async () => {
    const agent = await taker();
    const not_after = inMs(5_000);
    const id = await enqueueOne(dnsTask({ not_after }));
    await claim(agent);
    expect((await why(id)).changes).toEqual([
      { reason: 'leased', action: 'wait_until', until: inMs(LEASE_MS + 1_000) },
      { reason: 'leased', action: 'retry_task' },
    ]);
  });

  it('is that it is finished', async () => {
    const agent = await taker();
    const done = await enqueueOne();
    const [{ lease_id }] = await claim(agent);
    await server.agent(agent, '/report', { completed: [{ lease_id }], cancelled: [] });
    const given = await enqueueOne();
    await server.operator('POST', `/v1/tasks/${given}/cancel`);
    expect(await why(done)).toMatchObject({
      reason: 'finished',
      state: 'completed',
      changes: [],
      agents: null,
      message: `The task has ended at ${inMs(0)}: it is completed.`,
    });
    expect(await why(given)).toMatchObject({
      reason: 'finished',
      state: 'cancelled',
      changes: [{ reason: 'finished', action: 'retry_task' }],
      message: `The task has ended at ${inMs(0)}: it is cancelled (operator). To let it run: retry it.`,
    });
  });

  it('is that it is finished, and another task has its unique_key by now', async () => {
    const given = await enqueueOne(dnsTask({ unique_key: 'k' }));
    await server.operator('POST', `/v1/tasks/${given}/cancel`);
    const other = await enqueueOne(dnsTask({ unique_key: 'k' }));
    expect(await why(given)).toMatchObject({
      changes: [],
      message: `The task has ended at ${inMs(0)}: it is cancelled (operator). Task ${other} has its unique_key by now.`,
    });
    await server.operator('POST', `/v1/tasks/${other}/cancel`);
    expect((await why(given)).changes).toEqual([{ reason: 'finished', action: 'retry_task' }]);
  });

  it('counts no more of what comes due before it than of what is there, and says that it is not all', async () => {
    await taker();
    await limit({ kind: 'dns', limit: 0 });
    const sooner = dnsTask({ run_at: inMs(1_000) });
    for (const count of [6_000, 4_001]) await server.enqueue(...Array.from({ length: count }, () => sooner));
    const id = await enqueueOne(dnsTask({ run_at: inMs(5_000) }));
    expect(await why(id)).toMatchObject({
      window: { before: expect.any(Number), before_is_exact: false },
      changes: [
        { action: 'wait_until' },
        { action: 'raise_limit', kind: 'dns', limit: null },
        // The agent that is online may hold 1,000.
        { action: 'bring_agent', capacity: 1_000, agents: 10, is_enough: false },
      ],
    });
  });

  it('is this server: it drains, or is overloaded', async () => {
    await taker();
    const id = await enqueueOne();
    const overload = server.app.get(Overload);
    overload.observe(90_000);
    overload.observe(90_000);
    expect(await why(id)).toMatchObject({
      reason: 'overloaded',
      load_percent: 150,
      changes: [{ reason: 'overloaded', action: 'reduce_load' }],
    });
    overload.observe(0);
    const end = new AbortController();
    const drained = server.drain(end.signal);
    expect(await why(id)).toMatchObject({
      reason: 'draining',
      changes: [{ reason: 'draining', action: 'start_server' }],
    });
    end.abort();
    await drained;
  });

  it('is a kind that this server does not know', async () => {
    const id = await enqueueOne();
    await server.database.write((tx) => tx.run(`UPDATE tasks SET kind = 'gopher' WHERE id = $1`, id));
    expect(await why(id)).toMatchObject({
      reason: 'unknown_kind',
      changes: [
        { reason: 'unknown_kind', action: 'load_kind', kind: 'gopher' },
        { reason: 'no_agent', action: 'bring_agent' },
      ],
    });
  });

  it('is told to viewers and those above, and only of tasks that there are', async () => {
    const id = await enqueueOne();
    const { body: viewer } = await server.operator('POST', '/v1/operator-tokens', {
      name: 'viewer',
      role: 'viewer',
    });
    const path = `/v1/tasks/${id}/why`;
    const as = (headers: Record<string, string>) => server.request('GET', path, { headers });
    expect((await as({ authorization: `Bearer ${viewer.token}` })).status).toBe(200);
    expect(await as({})).toMatchObject({ status: 401, body: { error: 'ERR_UNAUTHORIZED' } });
    const agent = await server.register();
    expect(
      (await as({ 'x-agent-id': String(agent.agent_id), 'x-agent-token': agent.auth_token })).status,
    ).toBe(401);
    expect(await askedAbout(id + 1)).toMatchObject({
      status: 404,
      body: { error: 'ERR_NOT_FOUND', details: { task_id: id + 1 } },
    });
    for (const bad of ['0', '-1', 'x', '9007199254740992'])
      expect(await askedAbout(bad)).toMatchObject({ status: 400, body: { error: 'ERR_VALIDATION' } });
  });

  it('changes nothing', async () => {
    const agent = await taker();
    await server.enqueue(dnsTask(), dnsTask({ run_at: inMs(60_000) }));
    await claim(agent);
    const state = () =>
      Promise.all(
        ['tasks', 'leases', 'concurrency_windows', 'task_counts', 'agent_kinds'].map((name) =>
          server.rows(`SELECT * FROM ${name}`),
        ),
      );
    const before = await state();
    for (const { id } of await server.rows('SELECT id FROM tasks')) await why(id);
    expect(await state()).toEqual(before);
  });
});
