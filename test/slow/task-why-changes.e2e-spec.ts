import { SchedulerRegistry } from '@nestjs/schedule';
import fc from 'fast-check';
import { QueueMaintainer } from '../../src/queue/maintenance';
import type { TaskWhy, WhyChange, WhyReason } from '../../src/tasks/task-why.dto';
import type { Json } from '../helpers/api';
import { type Credentials, dnsTask, TestClock, TestServer } from '../helpers/harness';

/** How many random states are tried; a longer search is asked for with CONTROL_PLANE_TEST_RUNS. */
const RUNS = Number(process.env.CONTROL_PLANE_TEST_RUNS ?? 40);
const TIMEOUT_MS = 60_000 + RUNS * 2_000;

const LEASE_MS = 10_000;
/** How often agents call while something is waited for, in milliseconds. */
const CALLS_MS = 3_000;
const AGENTS = 4;
/** How many leases an agent may hold: more than there are tasks, and so few that one agent is seldom enough. */
const MAX_HELD = [1_000, 4];
const KINDS = ['dns', 'http'] as const;
type Kind = (typeof KINDS)[number];

const kind = fc.constantFrom(...KINDS);
const target = fc.nat({ max: 2 });
const agent = fc.nat({ max: AGENTS - 1 });
const seconds = (max: number) => fc.integer({ min: 1, max });

/** Often of a kind or of everything, so that some tasks are behind several limits. */
const limitStep = fc.record({
  do: fc.constant('limit' as const),
  kind: fc.option(kind, { nil: undefined, freq: 4 }),
  target: fc.option(target, { nil: undefined, freq: 3 }),
  slots: fc.option(fc.nat({ max: 4 }), { nil: null, freq: 8 }),
});

/** What a state is made by. Agents and leases are named by a place in their list, so a step means something in any state. */
const step = fc.oneof(
  {
    weight: 12,
    arbitrary: fc.record({
      do: fc.constant('enqueue' as const),
      kind,
      target,
      count: seconds(3),
      priority: fc.integer({ min: -1, max: 1 }),
      inS: fc.option(seconds(8), { nil: undefined, freq: 2 }),
      notAfterS: fc.option(fc.integer({ min: 9, max: 20 }), { nil: undefined, freq: 6 }),
      max_attempts: seconds(3),
    }),
  },
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant('claim' as const),
      agent,
      dns: fc.nat({ max: 3 }),
      http: fc.nat({ max: 2 }),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant('report' as const),
      lease: fc.nat({ max: 9 }),
      as: fc.constantFrom('completed' as const, 'cancelled' as const),
    }),
  },
  { weight: 4, arbitrary: limitStep },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constantFrom('drain' as const, 'disable' as const, 'enable' as const),
      agent,
    }),
  },
  // Tasks of a target whose limit is new are moved into its lane.
  { weight: 1, arbitrary: fc.record({ do: fc.constant('move' as const) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('heartbeat' as const), agent }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('pass' as const), s: seconds(11) }) },
);
type Step = typeof step extends fc.Arbitrary<infer S> ? S : never;

const specOf = (kind: Kind, target: number): object =>
  kind === 'dns'
    ? dnsTask({}, { server: `192.0.2.${target + 1}` })
    : { kind, spec: { url: `http://h${target + 1}.example/` } };
const targetOf = (kind: Kind, target: number): string =>
  kind === 'dns' ? `192.0.2.${target + 1}:53` : `h${target + 1}.example:80`;

describe.each(MAX_HELD)('the change that is named, if an agent may hold %i leases', (maxHeld) => {
  let server: TestServer;
  let clock: TestClock;
  let agents: Credentials[];
  const seen = new Map<WhyReason, number>();

  beforeAll(async () => {
    clock = new TestClock();
    server = await TestServer.start(
      {
        LEASE_DURATION_MS: String(LEASE_MS),
        HEARTBEAT_TIMEOUT_MS: '10000',
        RETRY_BACKOFF_MAX_MS: '3000',
        MAX_LEASES_PER_AGENT: String(maxHeld),
      },
      { clock },
    );
    server.app.get(SchedulerRegistry).deleteInterval('lane-moves');
  });
  afterAll(() => server.stop());

  const inS = (s: number): string => new Date(clock.now() + s * 1_000).toISOString();
  const operator = async (method: string, path: string, body?: unknown): Promise<Json> => {
    const answer = await server.operator(method, path, body);
    if (answer.status >= 400 && answer.status !== 409)
      throw new Error(`${path}: ${JSON.stringify(answer.body)}`);
    return answer.body;
  };
  const why = (id: number): Promise<TaskWhy> => operator('GET', `/v1/tasks/${id}/why`);
  const limit = (limits: object[]): Promise<Json> => operator('PUT', '/v1/concurrency/limits', { limits });
  const liveLeases = () =>
    server.rows<{ id: number; agent_id: number; task_id: number; kind: string }>(
      `SELECT id, agent_id, task_id, kind FROM leases WHERE state = 'active' ORDER BY id`,
    );
  const claim = async (who: Credentials, capacities: Record<string, number>): Promise<number[]> => {
    const { body } = await server.agent(who, '/claim', { capacities });
    return (body.leases ?? []).map(({ task_id }: { task_id: number }) => task_id);
  };
  const withId = (id: number): Credentials => agents.find(({ agent_id }) => agent_id === id) as Credentials;

  async function begin(): Promise<void> {
    await operator('POST', '/v1/tasks/cancel', { all: true });
    const lifted = [
      { limit: null },
      ...KINDS.map((kind) => ({ kind, limit: null })),
      ...KINDS.flatMap((kind) => [0, 1, 2].map((i) => ({ kind, target: targetOf(kind, i), limit: null }))),
    ];
    await limit(lifted);
    for (const { agent_id } of agents ?? []) await operator('DELETE', `/v1/agents/${agent_id}`);
    agents = [];
    for (let i = 0; i < AGENTS; i++) agents.push(await server.register());
  }

  async function take(one: Step): Promise<void> {
    switch (one.do) {
      case 'enqueue': {
        const { kind, target, count, priority, inS: runIn, notAfterS, max_attempts } = one;
        const task = {
          ...specOf(kind, target),
          priority,
          max_attempts,
          ...(runIn === undefined ? {} : { run_at: inS(runIn) }),
          ...(notAfterS === undefined ? {} : { not_after: inS(notAfterS) }),
        };
        await server.enqueue(...Array.from({ length: count }, () => task));
        return;
      }
      case 'claim':
        await claim(agents[one.agent] as Credentials, { dns: one.dns, http: one.http });
        return;
      case 'report': {
        const live = await liveLeases();
        const lease = live[one.lease % Math.max(1, live.length)];
        if (!lease) return;
        const reports = { completed: [], cancelled: [], [one.as]: [{ lease_id: lease.id }] };
        await server.agent(withId(lease.agent_id), '/report', reports);
        return;
      }
      case 'limit': {
        const { kind, target, slots } = one;
        const aimed = kind !== undefined && target !== undefined;
        await limit([{ kind, ...(aimed ? { target: targetOf(kind, target) } : {}), limit: slots }]);
        return;
      }
      case 'move':
        return server.app.get(QueueMaintainer).moveTasks();
      case 'heartbeat':
        await server.agent(agents[one.agent] as Credentials, '/heartbeat');
        return;
      case 'pass':
        return server.pass(one.s * 1_000);
      default:
        await operator('POST', `/v1/agents/${agents[one.agent]?.agent_id}/${one.do}`);
    }
  }

  async function onlineAgents(): Promise<Set<number>> {
    const { items } = await operator('GET', '/v1/agents?status=online&limit=500');
    return new Set(items.map(({ id }: { id: number }) => id));
  }

  /**
   * Waits while nothing ends: who is online stays so, and all other leases are extended.
   * @param claimedUntil until then others claim all that can be
   */
  async function waitUntil(until: number, taskId: number, claimedUntil: number): Promise<void> {
    const online = await onlineAgents();
    while (clock.now() < until) {
      if (clock.now() < claimedUntil) {
        const known = agents.length;
        for (const one of KINDS) await claimOut(one);
        for (const { agent_id: id } of agents.slice(known)) online.add(id);
      }
      for (const id of online) if (withId(id)) await server.agent(withId(id), '/heartbeat');
      const others = (await liveLeases()).filter(({ task_id }) => task_id !== taskId);
      for (const [id, leases] of Map.groupBy(others, ({ agent_id }) => agent_id))
        await server.agent(withId(id), '/extend', {
          lease_ids: leases.map((lease) => lease.id),
          extend_by_ms: LEASE_MS,
        });
      await server.pass(Math.min(CALLS_MS, until - clock.now()));
    }
    await server.app.get(QueueMaintainer).reap();
  }

  async function bring(count: number): Promise<Credentials[]> {
    const brought: Credentials[] = [];
    for (let i = 0; i < count; i++) brought.push(await server.register());
    agents.push(...brought);
    return brought;
  }

  /** Makes the changes through the API and the clock. @returns the agents that they name or bring */
  async function make(
    { changes, task_id: taskId, until }: TaskWhy,
    areOthersClaimed: boolean,
  ): Promise<{ who: Credentials[]; more: number } | undefined> {
    let named: { who: Credentials[]; more: number } | undefined;
    const raised = changes.filter(({ action }) => action === 'raise_limit');
    for (const change of changes) {
      const more = change.capacity ?? 0;
      const others = () => bring((change.agents ?? 1) - 1);
      switch (change.action) {
        case 'wait_until':
          await waitUntil(
            Date.parse(change.until as string),
            taskId,
            areOthersClaimed && until !== null ? Date.parse(until) : 0,
          );
          break;
        case 'retry_task':
          await operator('POST', `/v1/tasks/${taskId}/retry`);
          break;
        case 'raise_limit':
          if (change === raised[0]) await limit(raised.map(limitOf));
          break;
        case 'enable_agent':
          named = { who: [withId(change.agent_id as number), ...(await others())], more };
          await operator('POST', `/v1/agents/${change.agent_id}/enable`);
          break;
        case 'start_agent':
          named = { who: [withId(change.agent_id as number), ...(await others())], more };
          await server.agent(withId(change.agent_id as number), '/heartbeat');
          break;
        case 'bring_agent':
          named = { who: await bring(change.agents ?? 1), more };
          break;
        default:
          throw new Error(`${change.action} has nothing to do with such a state`);
      }
    }
    return named;
  }

  const limitOf = ({ kind, target, limit: slots }: WhyChange) => ({
    ...(kind ? { kind } : {}),
    ...(target ? { target } : {}),
    limit: slots,
  });

  /** The agents that are online and take the kind. */
  async function onlineTakers(kind: string): Promise<Credentials[]> {
    const online = await onlineAgents();
    const takers = await server.rows<{ agent_id: number }>(
      'SELECT agent_id FROM agent_kinds WHERE kind = $1 ORDER BY agent_id',
      kind,
    );
    return takers.filter(({ agent_id }) => online.has(agent_id)).map(({ agent_id }) => withId(agent_id));
  }

  /** Has new agents claim tasks of a kind until none is left that can be claimed. @returns what they were granted */
  async function claimOut(kind: string): Promise<number[]> {
    const granted: number[] = [];
    for (;;) {
      const some = await claim((await bring(1))[0] as Credentials, { [kind]: 200 });
      if (some.length === 0) return granted;
      granted.push(...some);
    }
  }

  /** Has new agents claim the tasks of a kind that come before a task. */
  async function claimBefore(id: number, kind: string): Promise<void> {
    const isBefore = async (other: number): Promise<boolean> => {
      const [a, b] = await Promise.all([other, id].map((of) => operator('GET', `/v1/tasks/${of}`)));
      return a.priority > b.priority || (a.priority === b.priority && other < id);
    };
    for (;;) {
      const [other] = await claim((await bring(1))[0] as Credentials, { [kind]: 1 });
      if (other === undefined) return;
      if (await isBefore(other)) continue;
      await operator('POST', `/v1/tasks/${other}/cancel`);
      return;
    }
  }

  /** With one of the limits one less than named, the task is not claimed if all are that can be. */
  async function checkLeast({ task_id: id, kind, changes }: TaskWhy, which: number): Promise<void> {
    if (changes.some(({ action }) => action !== 'raise_limit')) return;
    const i = which % changes.length;
    await limit(
      changes.map(limitOf).map((one, j) => (i === j ? { ...one, limit: (one.limit as number) - 1 } : one)),
    );
    // Slots of everything are taken by those of other kinds too.
    const others = changes[i]?.scope === 'global' ? KINDS.filter((one) => one !== kind) : [];
    for (const one of others) await claimOut(one);
    const granted = await claimOut(kind);
    expect({ changes, i, granted }).toMatchObject({ granted: expect.not.arrayContaining([id]) });
  }

  it(
    'lets a claim be granted the task, in any state',
    async () => {
      const property = fc.asyncProperty(
        // Limits of empty targets hold from the first task on; those that come later find tasks that are to be moved.
        fc.array(limitStep, { minLength: 2, maxLength: 8 }),
        fc.array(step, { minLength: 8, maxLength: 30 }),
        fc.nat({ max: 99 }),
        async (limits, steps, which) => {
          await begin();
          for (const one of [...limits, ...steps]) await take(one);
          const tasks = await server.rows<{ id: number }>(
            'SELECT id FROM tasks WHERE finished_at IS NULL ORDER BY id',
          );
          const answers = await Promise.all(tasks.map(({ id }) => why(id)));
          // The reason that the fewest tasks of this state have, or one that few states show: else most would be of the same.
          const byReason = Map.groupBy(answers, ({ reason }) => reason);
          const rarest =
            byReason.get('agents_busy') ?? [...byReason.values()].sort((a, b) => a.length - b.length)[0];
          let answer = rarest?.[which % rarest.length];
          if (!answer) return;
          seen.set(answer.reason, (seen.get(answer.reason) ?? 0) + 1);
          const { task_id: id, kind } = answer;
          // There are few enough tasks to count all.
          expect(answer.changes.filter(({ limit: slots }) => slots === null)).toEqual([]);
          if (answer.reason === 'window_full' && which % 2 === 1) {
            await checkLeast(answer, which);
            // Others have the slots now that it did not get.
            answer = await why(id);
          }
          const granted: number[] = [];
          const claimAll = async (who: readonly Credentials[], more: number): Promise<void> => {
            for (const each of who) {
              const held = (await liveLeases()).filter(
                (lease) => lease.agent_id === each.agent_id && lease.kind === kind,
              ).length;
              granted.push(...(await claim(each, { [kind]: held + more })));
            }
          };
          // Of those online that have room, each may have to take what it can: the best tasks come first.
          const isShort = answer.reason === 'agents_busy' && answer.agents?.with_room !== 0;
          if (isShort) {
            await claimAll(await onlineTakers(kind), 200);
            expect({ answer, granted }).toMatchObject({ granted: expect.not.arrayContaining([id]) });
          }
          const named = await make(answer, which % 3 === 0);
          if (!named) expect((await why(id)).reason).toBe('ready');
          if (answer.changes.some(({ scope }) => scope === 'global'))
            for (const other of KINDS) if (other !== kind) await claimBefore(id, other);
          if (named) await claimAll(named.who, named.more);
          const areOthersFull = isShort || answer.agents?.with_room === 0;
          if (!named || !areOthersFull) await claimAll(await onlineTakers(kind), 200);
          expect({ answer, granted }).toMatchObject({ granted: expect.arrayContaining([id]) });
        },
      );
      await fc.assert(property, { numRuns: RUNS, endOnFailure: false });
      // So that it is known to have met most of them; each has a test of its own besides.
      expect(seen.size).toBeGreaterThanOrEqual(5);
    },
    TIMEOUT_MS,
  );
});
