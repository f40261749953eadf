import type { Ahead, Count, InWindow, QueuedWindow } from './task-ahead';
import { explain, explainFinished, type WhyFacts, type WhyTask, waitOf } from './task-why';

const NOW = 1_000_000;
const ZERO: Count = { count: 0, isExact: true };

/** A window of the task, in which others take no slots meanwhile. */
const windowOf = (fields: Partial<QueuedWindow> = {}): QueuedWindow => ({
  ...{ id: 1, scope: 'kind', kind: 'dns', target: '' },
  ...{ slots: 2, leased: 2, queued: 1, moved_through: null },
  ...{ inherited: 0 as const, max_slots: 2, max_rate: null, adaptive: 0 as const, rate: null },
  ...{ last_start_us: 0, recent_starts: null, starts: 0, hold_until: null },
  ...fields,
});

/** As many come first for a lease and for a slot of any window. */
const aheadOf = (
  before: number | Count,
  windows: readonly (QueuedWindow & Partial<Pick<InWindow, 'held'>>)[] = [],
): Ahead => {
  const count = typeof before === 'number' ? { count: before, isExact: true } : before;
  return {
    leases: count,
    windows: windows.map(({ held, ...window }) => ({ window, before: count, held: held ?? window.leased })),
  };
};

const task = (fields: Partial<WhyTask> = {}): WhyTask => ({
  id: 7,
  kind: 'dns',
  target: 'a:53',
  state: 'queued',
  reason: null,
  priority: 0,
  run_at: null,
  not_after: null,
  attempts: 0,
  max_attempts: 5,
  unique_key: null,
  finished_at: null,
  ...fields,
});

const facts = (fields: Partial<WhyFacts> = {}): WhyFacts => ({
  now: NOW,
  task: task(),
  isKindKnown: true,
  wait: undefined,
  lease: undefined,
  lastAttempt: undefined,
  ahead: aheadOf(0),
  aheadNow: aheadOf(0),
  pace: {},
  paceChanges: {},
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
    expect(waitOf(task({ state: 'queued' }), undefined, 1_000, NOW)).toBeUndefined();
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

  it('ends now if the instant has come and the maintenance has not been there yet', () => {
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
    const limits = (before: Count, slots = 2) =>
      explain(facts({ ahead: aheadOf(before, [windowOf({ slots, leased: slots })]) }));
    expect(limits({ count: 3, isExact: true })).toMatchObject({
      changes: [{ limit: 6 }],
      window: { limit: 2, leased: 2, queued: 1, before: 3, before_is_exact: true },
      before: 3,
      message:
        'The window of dns is full: of 2 slots 2 are leased, and 3 tasks are before it. To let it run: raise the limit of dns to 6.',
    });
    const many = limits({ count: 10_000, isExact: false });
    expect(many.changes).toMatchObject([{ limit: null }]);
    expect(many.message).toContain(
      'at least 10000 tasks are before it. To let it run: lift the limit of dns.',
    );
    expect(limits(ZERO, 1_000_000).changes).toMatchObject([{ limit: null }]);
  });

  it('is that too few slots are left, if those before it take them all', () => {
    const behind = (before: number) =>
      explain(facts({ ahead: aheadOf(before, [windowOf({ slots: 4, leased: 1 })]) }));
    expect(behind(2)).toMatchObject({ reason: 'ready', changes: [] });
    expect(behind(3)).toMatchObject({ reason: 'window_full', changes: [{ limit: 5 }] });
    expect(behind(3).message).toContain(
      'The window of dns has too few slots left: of 4 slots 1 is leased, and 3 tasks are before it.',
    );
  });

  it('counts the slots that others may have by then', () => {
    const wait = { reason: 'leased', until: NOW, end: NOW, isLast: false } as const;
    const leased = (held: number) =>
      explain(facts({ task: task({ state: 'leased' }), wait, ahead: aheadOf(0, [{ ...windowOf(), held }]) }));
    expect(leased(1).changes).toMatchObject([{ action: 'wait_until' }]);
    expect(leased(2).changes).toMatchObject([{ action: 'wait_until' }, { action: 'raise_limit', limit: 3 }]);
  });

  it('names all windows that lack room, the one that lacks the most first', () => {
    const { changes, window } = explain(
      facts({
        ahead: aheadOf(1, [
          windowOf({ scope: 'target', target: 'a:53', slots: 1, leased: 1 }),
          windowOf({ slots: 2, leased: 2 }),
          windowOf({ scope: 'global', kind: '', slots: 2, leased: 3 }),
        ]),
      }),
    );
    expect(window).toMatchObject({ scope: 'global', kind: null, target: null });
    expect(changes).toMatchObject([
      { scope: 'global', kind: null, target: null, limit: 5 },
      { scope: 'target', kind: 'dns', target: 'a:53', limit: 3 },
      { scope: 'kind', kind: 'dns', target: null, limit: 4 },
    ]);
  });

  it('estimates only what can be told', () => {
    const estimate = (fields: Partial<WhyFacts> = {}) =>
      explain(facts({ ahead: aheadOf(0, [windowOf()]), pace: { kind: 0.001 }, ...fields })).window
        ?.estimate_ms;
    expect(estimate()).toBe(1_000);
    expect(estimate({ pace: { target: 1 } })).toBeNull();
    expect(estimate({ ahead: aheadOf(0, [windowOf({ slots: 0 })]) })).toBeNull();
    expect(estimate({ ahead: aheadOf({ count: 9, isExact: false }, [windowOf()]) })).toBeNull();
  });

  describe('that its window has a rate', () => {
    const paced = (fields: Partial<QueuedWindow> = {}) =>
      windowOf({
        ...{ scope: 'target', target: 'a:53', slots: null, max_slots: null, leased: 1 },
        ...{ rate: 500, max_rate: 500, last_start_us: NOW * 1_000 },
        ...fields,
      });
    const why = (before: number | Count, window = paced(), fields: Partial<WhyFacts> = {}) =>
      explain(facts({ task: task({ state: 'queued' }), ahead: aheadOf(before, [window]), ...fields }));

    it('says for how long, and since when and by which evidence the rate is so', () => {
      const change = {
        at: NOW - 60_000,
        before: 4,
        message: '31 % of 20 checks timed out or could not reach the target.',
      };
      const answer = why(412, paced(), { paceChanges: { target: change } });
      expect(answer).toMatchObject({
        reason: 'paced',
        // 412 tasks and this one, one every 2 s, of which the first is granted a second ahead.
        changes: [
          { action: 'wait_until', until: new Date(NOW + 413 * 2_000 - 1_000).toISOString(), is_enough: true },
        ],
        window: { target: 'a:53', limit: null, rate: 0.5, before: 412, estimate_ms: 825_000 },
      });
      expect(answer.message).toContain(
        'The rate of dns at a:53 is 0.5/s since 1970-01-01T00:15:40.000Z (before: 4): 31 % of 20 checks timed out or could not ' +
          'reach the target. 412 tasks are before it: about 14 minutes.',
      );
    });

    it('is none if it can start within a second', () => {
      expect(why(0, paced({ last_start_us: (NOW - 1_000) * 1_000 })).reason).toBe('ready');
      expect(why(0).reason).toBe('paced');
    });

    it('is at least so long if not all before it are counted, or few checks run until the target answers', () => {
      for (const answer of [
        why({ count: 10, isExact: false }),
        why(10, paced({ adaptive: 1, slots: 1, leased: 1 })),
      ]) {
        expect(answer.message).toContain('at least 21 seconds');
        expect(answer.changes).toMatchObject([{ action: 'wait_until', is_enough: false }]);
        expect(answer.window?.estimate_ms).toBeNull();
      }
    });

    it('is not that the limit of an adaptive target has to be raised, unless an operator has set it', () => {
      const full = { adaptive: 1, slots: 1, leased: 1, max_slots: 8 } as const;
      expect(why(0, paced(full)).changes.map(({ action }) => action)).toEqual(['wait_until']);
      expect(why(9, paced({ ...full, max_slots: 1 })).changes[0]).toMatchObject({
        ...{ action: 'raise_limit', limit: 11 },
      });
    });

    it('tells until when the target asked for a pause', () => {
      const holdUntil = NOW + 90_000;
      const { message, changes } = why(0, paced({ adaptive: 1, slots: 8, hold_until: holdUntil }));
      expect(message).toContain('The target asked for a pause until 1970-01-01T00:18:10.000Z.');
      expect(changes).toMatchObject([{ until: new Date(holdUntil - 1_000).toISOString() }]);
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
          ahead: aheadOf(before),
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
          ahead: aheadOf({ count, isExact }),
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
          ahead: aheadOf({ count, isExact }),
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
    const windows = [windowOf({ slots: 3 })];
    const told = (fields: Partial<WhyFacts>) =>
      explain(
        facts({
          task: task({ state: 'scheduled', run_at: NOW + 1_000 }),
          wait: { reason: 'not_yet', until: NOW + 1_000, end: NOW + 1_000, isLast: false },
          ahead: aheadOf(1_200, windows),
          aheadNow: aheadOf(0, windows),
          takers: { ...facts().takers, free: { count: 1_000, isExact: true } },
          ...fields,
        }),
      ).message.replace(/^.* To let it run: wait until [^,]*, /, '');
    const unless = 'if the tasks that come due first have not run by then';
    expect(told({})).toBe(
      `then, ${unless}, raise the limit of dns to 1203, then, ${unless}, bring an agent that asks for 201 of dns.`,
    );
    // They are there already.
    expect(told({ aheadNow: aheadOf(1_200, windows) })).toBe(
      'then raise the limit of dns to 1203, then bring an agent that asks for 201 of dns.',
    );
    // Nothing runs.
    expect(told({ ahead: aheadOf(1_200, [windowOf({ slots: 0, leased: 0 })]) })).toContain(
      'then raise the limit',
    );
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
    const atLeast = aheadOf({ count: 10_000, isExact: false });
    expect(told(atLeast, { count: 11_000, isExact: true })).toContain(`. ${caveat}`);
    expect(told(aheadOf(1_000), { count: 1_000, isExact: false })).toContain(caveat);
    expect(told(aheadOf(999), { count: 1_000, isExact: false })).not.toContain(caveat);
    expect(told(atLeast, { count: 1_000, isExact: true })).not.toContain(caveat);
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
        ahead: aheadOf(1, [windowOf({ scope: 'global', kind: '' })]),
      }),
    );
    expect(message).toBe(
      'It is not to run before its run_at; that is at 1970-01-01T00:16:41.000Z. To let it run: wait until ' +
        '1970-01-01T00:16:41.000Z, then start agent 4 (to ask for 2 more of dns), then raise the limit of everything to 4.',
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
          ahead: aheadOf({ count, isExact }),
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
