import type { LimitedWindow } from '../concurrency/concurrency.service';
import type { Ahead } from './task-ahead';
import { explain, explainFinished, type WhyFacts, type WhyTask, waitOf } from './task-why';

const NOW = 1_000_000;
const ZERO = { count: 0, isExact: true };
/** As many come first, for a lease and for a place of any window. */
const aheadOf = (count: number, isExact = true): Ahead => {
  const of = { count, isExact };
  return { leases: of, places: { target: of, kind: of, global: of } };
};

const task = (fields: Partial<WhyTask> = {}): WhyTask => ({
  id: 7,
  kind: 'dns',
  target: 'a:53',
  state: 'waiting',
  reason: null,
  priority: 0,
  run_at: null,
  not_after: null,
  attempts: 0,
  max_attempts: 5,
  lease_id: null,
  unique_key: null,
  finished_at: null,
  ...fields,
});

const window = (fields: Partial<LimitedWindow> = {}): LimitedWindow => ({
  scope: 'kind',
  kind: 'dns',
  target: '',
  limit: 2,
  leased: 1,
  queued: 1,
  waiting: 1,
  ...fields,
});

const facts = (fields: Partial<WhyFacts> = {}): WhyFacts => ({
  now: NOW,
  task: task(),
  isKindKnown: true,
  wait: undefined,
  lease: undefined,
  lastAttempt: undefined,
  windows: [],
  ahead: aheadOf(0),
  aheadNow: aheadOf(0),
  pace: {},
  queuedBefore: ZERO,
  takers: {
    online: 1,
    offline: 0,
    draining: 0,
    disabled: 0,
    with_room: 1,
    last_asked_at: NOW,
    free: { count: 100_000, isExact: true },
    candidate: undefined,
  },
  load: 0.2,
  isDraining: false,
  maxLeasesPerAgent: 1_000,
  ...fields,
});

describe('waitOf', () => {
  it('is none for tasks that only others keep from running', () => {
    expect(waitOf(task({ state: 'waiting' }), undefined, 1_000, NOW)).toBeUndefined();
    expect(waitOf(task({ state: 'queued', not_after: NOW + 1 }), undefined, 1_000, NOW)).toBeUndefined();
  });

  it('ends with run_at, or the next attempt', () => {
    const until = NOW + 5_000;
    const expected = { until, end: until + 1_000, isLast: false };
    const scheduled = task({ state: 'scheduled', run_at: until });
    expect(waitOf(scheduled, undefined, 1_000, NOW)).toEqual({ reason: 'not_yet', ...expected });
    expect(waitOf({ ...scheduled, attempts: 1 }, undefined, 1_000, NOW)).toEqual({
      reason: 'backoff',
      ...expected,
    });
    // Its time is up before it is sure to be seen that it is due.
    expect(waitOf({ ...scheduled, not_after: until + 300 }, undefined, 1_000, NOW)).toMatchObject({
      end: until + 1_300,
      isLast: true,
    });
  });

  it('ends now if the instant has come and the upkeep has not been there yet', () => {
    expect(waitOf(task({ state: 'scheduled', run_at: NOW - 1 }), undefined, 1_000, NOW)).toMatchObject({
      until: NOW,
      end: NOW + 1_000,
    });
    expect(waitOf(task({ state: 'leased', attempts: 1 }), NOW - 1, 1_000, NOW)).toMatchObject({
      until: NOW,
      end: NOW + 2_000,
    });
  });

  it('ends with death after the last attempt, or when the time is up', () => {
    const leased = task({ state: 'leased', attempts: 5 });
    expect(waitOf(leased, NOW + 10, 1_000, NOW)).toEqual({
      reason: 'leased',
      until: NOW + 10,
      end: NOW + 1_010,
      isLast: true,
    });
    const short = { ...leased, attempts: 1, not_after: NOW + 500 };
    expect(waitOf(short, NOW + 10, 1_000, NOW)).toMatchObject({ end: NOW + 1_500, isLast: true });
    expect(waitOf(short, NOW + 800, 1_000, NOW)).toMatchObject({ end: NOW + 1_800, isLast: true });
    expect(waitOf({ ...short, not_after: NOW + 9_000 }, NOW + 10, 1_000, NOW)).toMatchObject({
      isLast: false,
    });
    expect(waitOf(task({ state: 'queued', not_after: NOW }), undefined, 1_000, NOW)).toMatchObject({
      reason: 'out_of_time',
      end: NOW + 1_000,
      isLast: true,
    });
  });
});

describe('explain', () => {
  it('names a limit that is enough, and lifts it if that can not be told or set', () => {
    const limits = (ahead: { count: number; isExact: boolean }, limit = 2) =>
      explain(
        facts({
          windows: [window({ limit, leased: limit - 1 })],
          ahead: aheadOf(ahead.count, ahead.isExact),
        }),
      );
    expect(limits({ count: 3, isExact: true }).changes).toMatchObject([{ limit: 6 }]);
    const many = limits({ count: 10_000, isExact: false });
    expect(many.changes).toMatchObject([{ limit: null }]);
    expect(many.message).toContain(
      'at least 10000 tasks are before it. To let it run: lift the limit of dns.',
    );
    expect(limits(ZERO, 1_000_000).changes).toMatchObject([{ limit: null }]);
  });

  it('counts the place that the task itself has as free', () => {
    const wait = { reason: 'leased', until: NOW, end: NOW, isLast: false } as const;
    const leased = facts({ task: task({ state: 'leased', lease_id: 1 }), windows: [window()], wait });
    expect(explain(leased).changes).toMatchObject([{ action: 'wait_until' }]);
    expect(explain({ ...leased, windows: [window({ limit: 1 })] }).changes).toMatchObject([
      { action: 'wait_until' },
      { action: 'raise_limit', limit: 2 },
    ]);
  });

  it('estimates only what can be told', () => {
    const estimate = (fields: Partial<WhyFacts>) =>
      explain(facts({ windows: [window()], pace: { kind: 0.001 }, ...fields })).window?.estimate_ms;
    expect(estimate({})).toBe(1_000);
    expect(estimate({ pace: { target: 1 } })).toBeNull();
    expect(estimate({ windows: [window({ limit: 0 })] })).toBeNull();
    expect(estimate({ ahead: aheadOf(9, false) })).toBeNull();
  });

  it('is ready if a place is there that it has not been given yet', () => {
    expect(explain(facts({ windows: [window({ limit: 3 })] }))).toMatchObject({
      reason: 'ready',
      changes: [],
    });
  });

  it('tells of the server only after all that holds everywhere', () => {
    const busy = { ...facts().takers, with_room: 0 };
    const answer = explain(
      facts({ takers: busy, load: 1.26, isDraining: true, task: task({ state: 'queued' }) }),
    );
    expect(answer.changes.map(({ reason }) => reason)).toEqual(['agents_busy', 'draining', 'overloaded']);
    expect(answer).toMatchObject({ reason: 'agents_busy', load_percent: 126 });
  });

  it('wakes an agent that can be given the task: for as much as it has room, or brings another', () => {
    const wakes = (candidate: WhyFacts['takers']['candidate'], before = 0) =>
      explain(
        facts({
          task: task({ state: 'queued' }),
          queuedBefore: { count: before, isExact: true },
          takers: { ...facts().takers, online: 0, with_room: 0, candidate },
        }),
      ).changes;
    const draining = { id: 4, status: 'draining', isSilent: false, held: 0 } as const;
    expect(wakes(draining)).toMatchObject([{ action: 'enable_agent', agent_id: 4, capacity: 1 }]);
    expect(wakes({ ...draining, isSilent: true })).toEqual([
      { reason: 'no_agent', action: 'enable_agent', agent_id: 4 },
      expect.objectContaining({ action: 'start_agent', agent_id: 4, capacity: 1 }),
    ]);
    expect(wakes({ ...draining, held: 998 }, 1)).toMatchObject([{ agent_id: 4, capacity: 2, agents: 1 }]);
    // It would take as many of those as there are tasks.
    expect(wakes({ ...draining, held: 998 }, 3)).toMatchObject([{ action: 'bring_agent', capacity: 4 }]);
    expect(wakes(draining, 1_200)).toMatchObject([{ agent_id: 4, capacity: 1_000, agents: 2 }]);
    expect(wakes({ ...draining, held: 1_000 })).toMatchObject([{ action: 'bring_agent', capacity: 1 }]);
  });

  it('is that agents are busy if more tasks come first than all of them may hold', () => {
    const behind = (count: number, free: WhyFacts['takers']['free'], isExact = true) =>
      explain(
        facts({
          task: task({ state: 'queued' }),
          queuedBefore: { count, isExact },
          takers: { ...facts().takers, free },
        }),
      );
    expect(behind(999, { count: 1_000, isExact: true })).toMatchObject({
      reason: 'ready',
      message: expect.stringContaining('The next claims that ask for enough get it'),
    });
    // Those online take what they may hold; the others must be brought.
    expect(behind(1_000, { count: 1_000, isExact: true })).toMatchObject({
      reason: 'agents_busy',
      changes: [{ action: 'bring_agent', capacity: 1, agents: 1 }],
      message: expect.stringContaining('may hold 1000 more leases in all; 1000 tasks are before it.'),
    });
    expect(behind(5, { count: 1, isExact: true })).toMatchObject({
      changes: [{ capacity: 5 }],
      message: expect.stringContaining('may hold 1 more lease in all'),
    });
    expect(behind(3_500, { count: 1_000, isExact: true }).message).toContain(
      'bring 3 agents that each ask for 1000 of dns',
    );
    const many = behind(10_000, { count: 1_000, isExact: true }, false);
    expect(many.changes).toMatchObject([{ capacity: 1_000, agents: 10, is_enough: false }]);
    expect(many.message).toContain('bring at least 10 agents that each ask for 1000 of dns');
  });

  it('does not say that agents can hold enough if that was not counted', () => {
    const behind = (count: number, isExact: boolean, free: WhyFacts['takers']['free']) =>
      explain(
        facts({
          task: task({ state: 'queued' }),
          queuedBefore: { count, isExact },
          takers: { ...facts().takers, free },
        }),
      );
    for (const { reason, message } of [
      behind(10_000, false, { count: 11_000, isExact: true }),
      behind(4_999, true, { count: 1_000, isExact: false }),
    ]) {
      expect(reason).toBe('ready');
      expect(message).toMatch(
        /^Nothing is known to hold it: .* It is not counted whether the agents that are online may hold as many/,
      );
    }
    expect(behind(999, true, { count: 1_000, isExact: false }).message).toMatch(/^Nothing holds it/);
  });

  it('says that what comes due first may have run by then, if it may', () => {
    const told = (fields: Partial<WhyFacts>) =>
      explain(
        facts({
          task: task({ state: 'scheduled', run_at: NOW + 1_000 }),
          wait: { reason: 'not_yet', until: NOW + 1_000, end: NOW + 1_000, isLast: false },
          windows: [window({ limit: 3 })],
          ahead: aheadOf(1_200),
          takers: { ...facts().takers, free: { count: 1_000, isExact: true } },
          ...fields,
        }),
      ).message.replace(/^.* To let it run: wait until [^,]*, /, '');
    const unless = 'if the tasks that come due first have not run by then';
    expect(told({})).toBe(
      `then, ${unless}, raise the limit of dns to 1203, then, ${unless}, bring an agent that asks for 201 of dns.`,
    );
    // They are there already.
    expect(told({ aheadNow: aheadOf(1_200) })).toBe(
      'then raise the limit of dns to 1203, then bring an agent that asks for 201 of dns.',
    );
    // Nothing runs.
    expect(told({ windows: [window({ limit: 0, leased: 0, queued: 0 })] })).toContain('then raise the limit');
    const none = { ...facts().takers, online: 0, with_room: 0 };
    expect(told({ takers: none })).toMatch(/^then bring .*, then raise the limit of dns to 1203\.$/);
  });

  it('says of changes too that it was not counted whether agents can hold enough', () => {
    const wait = { reason: 'not_yet', until: NOW, end: NOW, isLast: false } as const;
    const told = (ahead: Ahead, free: WhyFacts['takers']['free']) =>
      explain(facts({ task: task({ state: 'scheduled' }), wait, ahead, takers: { ...facts().takers, free } }))
        .message;
    const caveat =
      'It is not counted whether the agents that are online may hold as many leases as that takes.';
    expect(told(aheadOf(10_000, false), { count: 11_000, isExact: true })).toContain(`. ${caveat}`);
    expect(told(aheadOf(1_000), { count: 1_000, isExact: false })).toContain(caveat);
    expect(told(aheadOf(999), { count: 1_000, isExact: false })).not.toContain(caveat);
    expect(told(aheadOf(10_000, false), { count: 1_000, isExact: true })).not.toContain(caveat);
  });

  it('names no instant that can not be written', () => {
    const until = Date.parse('9999-12-31T23:59:59.999Z');
    const wait = { reason: 'not_yet', until, end: until + 1_000, isLast: false } as const;
    const { changes } = explain(facts({ task: task({ state: 'scheduled', run_at: until }), wait }));
    expect(changes).toMatchObject([{ action: 'wait_until', until: '9999-12-31T23:59:59.999Z' }]);
  });

  it('does not say that agents are busy if it could not be told', () => {
    const { reason, message } = explain(
      facts({ task: task({ state: 'queued' }), takers: { ...facts().takers, with_room: null } }),
    );
    expect(reason).toBe('ready');
    expect(message).toContain('too many of them busy to tell whether one has room');
  });

  it('says in which order changes are to be made', () => {
    const { message } = explain(
      facts({
        task: task({ state: 'scheduled', run_at: NOW + 1_000 }),
        wait: { reason: 'not_yet', until: NOW + 1_000, end: NOW + 1_000, isLast: false },
        takers: {
          ...facts().takers,
          online: 0,
          with_room: 0,
          candidate: { id: 4, status: 'offline', isSilent: true, held: 0 },
          offline: 1,
        },
        windows: [window({ scope: 'global', kind: '' })],
        queuedBefore: { count: 1, isExact: true },
      }),
    );
    expect(message).toBe(
      'It is not to run before its run_at; that is at 1970-01-01T00:16:41.000Z. To let it run: wait until ' +
        '1970-01-01T00:16:41.000Z, then start agent 4 (to ask for 2 more of dns), then raise the limit of everything to 3.',
    );
  });
});

describe('explainFinished', () => {
  it('reopens what has no result', () => {
    expect(explainFinished(task({ state: 'completed', finished_at: NOW })).changes).toEqual([]);
    const keyed = explainFinished(task({ state: 'dead', finished_at: NOW }), 27);
    expect([keyed.changes, keyed.message]).toEqual([
      [],
      expect.stringContaining('Task 27 has its unique_key'),
    ]);
    expect(explainFinished(task({ state: 'dead', reason: 'max_attempts', finished_at: NOW }))).toMatchObject({
      reason: 'finished',
      changes: [{ action: 'retry_task' }],
      agents: null,
    });
  });

  it('asks for as many agents as it takes, and says if that may not be enough', () => {
    const behind = (count: number, isExact: boolean) =>
      explain(
        facts({
          task: task({ state: 'queued' }),
          queuedBefore: { count, isExact },
          takers: { ...facts().takers, online: 0, with_room: 0 },
        }),
      );
    expect(behind(2_499, true)).toMatchObject({
      changes: [{ action: 'bring_agent', capacity: 1_000, agents: 3, is_enough: true }],
      message: expect.stringContaining('bring 3 agents that each ask for 1000 of dns'),
    });
    expect(behind(10_000, false)).toMatchObject({
      changes: [{ action: 'bring_agent', agents: 11, is_enough: false }],
      message: expect.stringContaining('bring at least 11 agents that each ask for 1000 of dns'),
    });
  });
});
