import fc from 'fast-check';
import {
  applyOutcomes,
  boundState,
  FIRST_RATE,
  firstState,
  LOWEST_RATE,
  leasesAllowed,
  type PacedOutcome,
  type PacingBounds,
  type PacingChange,
  type PacingState,
  packState,
  SIGNALS,
  unpackState,
} from './pacing';

const BOUNDS: PacingBounds = { maxRate: 1_000_000, limit: null };
/** A target whose leases are granted and reported in turn. */
class Target {
  now: number;
  lastLeaseId: number;
  /** Granted since the last decision. */
  starts = 0;
  changes: PacingChange[] = [];

  constructor(
    readonly bounds: PacingBounds = BOUNDS,
    public state: PacingState = firstState(1_000_000, 100, bounds),
  ) {
    this.now = state.epochBeganAt;
    this.lastLeaseId = state.epochLeaseId;
  }

  /** Grants leases for these outcomes now. */
  grant(outcomes: readonly Partial<PacedOutcome>[]): PacedOutcome[] {
    this.starts += outcomes.length;
    return outcomes.map((outcome) => ({
      ...{ leaseId: ++this.lastLeaseId, agentId: 1, signal: 'answered', delayMs: 1_000 },
      ...outcome,
    }));
  }

  report(outcomes: readonly PacedOutcome[], starts = this.starts): PacingChange | undefined {
    const { now, lastLeaseId, bounds } = this;
    const { state, change } = applyOutcomes(this.state, outcomes, { now, lastLeaseId, starts, bounds });
    if (state.epochLeaseId !== this.state.epochLeaseId) this.starts = 0;
    this.state = state;
    if (change) this.changes.push(change);
    return change;
  }

  /** Reports leases, the first of them granted 10 s ago: an epoch can end. By default the rate is used. */
  epoch(
    outcomes: readonly Partial<PacedOutcome>[],
    starts = this.state.rate / 100,
  ): PacingChange | undefined {
    const granted = this.grant(outcomes);
    this.now += 10_000;
    return this.report(
      granted.map((outcome, i) => (i === 0 ? { ...outcome, delayMs: 10_000 } : outcome)),
      starts,
    );
  }
}

/** Of four agents in turn, if none is named. */
const many = (count: number, outcome: Partial<PacedOutcome> = {}): Partial<PacedOutcome>[] =>
  Array.from({ length: count }, (_, i) => ({ agentId: 1 + (i % 4), ...outcome }));
const bad = (count: number, outcome: Partial<PacedOutcome> = {}) =>
  many(count, { signal: 'bad', ...outcome });

/** A target that works at 10,000 starts per 1,000 s, with four agents known. */
function working(bounds = BOUNDS): Target {
  const target = new Target(bounds);
  target.epoch(many(40, { rttMs: 20 }), 0);
  expect(target.state).toMatchObject({ rate: 10_000, isHeard: true });
  return target;
}

describe('the pacing rule', () => {
  it('grows only if the rate is used', () => {
    const target = working();
    expect(target.epoch(many(40), 60)).toBeUndefined();
    expect(target.epoch(many(40), 80)).toMatchObject({ reason: 'room', before: 10_000, after: 15_000 });
  });

  it('grows slowly near the rate of the last cut, and fast far from it', () => {
    const grownFrom = (rate: number) => {
      const target = new Target(BOUNDS, { ...working().state, rate, rateBefore: 10_000 });
      return target.epoch(many(40))?.after;
    };
    expect([4_000, 8_000, 10_000, 12_000, 20_000].map(grownFrom)).toEqual([
      6_000, 9_600, 10_300, 14_400, 30_000,
    ]);
  });

  it('does not grow before failures could be reported', () => {
    const target = new Target(BOUNDS, { ...working().state, delayMs: 1_000, badDelayMs: 20_000 });
    expect(target.epoch(many(40))).toBeUndefined();
    target.now += 10_000;
    expect(target.epoch(many(40), 400)).toMatchObject({ reason: 'room' });
  });

  it('cuts to what got through if more than an eighth fails at two agents', () => {
    expect(working().epoch([...many(36), ...bad(4)])).toBeUndefined();
    expect(working().epoch([...many(30), ...bad(10)])).toMatchObject({ reason: 'failures', after: 7_000 });
    expect(working().epoch([...many(20), ...bad(20)])).toMatchObject({ reason: 'failures', after: 5_000 });
    // Not below a quarter at once, and not from a rate that is not used.
    expect(working().epoch([...many(2), ...bad(38)])).toMatchObject({ reason: 'failures', after: 2_500 });
    expect(working().epoch([...many(30), ...bad(10)], 50)).toMatchObject({
      reason: 'failures',
      after: 3_500,
    });
  });

  it('needs two agents for a cut, or one that works alone', () => {
    const mixed = (agentId: number) => [...bad(10, { agentId }), ...many(30, { agentId })];
    expect(working().epoch(mixed(1))).toBeUndefined();
    const alone = new Target();
    alone.epoch(many(40, { agentId: 1 }), 0);
    expect(alone.epoch(mixed(1))).toMatchObject({ reason: 'failures' });
    // The others left long ago.
    const left = working();
    for (let i = 0; i < 10; i++) left.epoch(many(40, { agentId: 1 }), 0);
    expect(left.epoch(mixed(1))).toMatchObject({ reason: 'failures' });
  });

  it('ignores failures of agents that only fail while others succeed', () => {
    const target = working();
    const broken = [...bad(10, { agentId: 3 }), ...bad(10, { agentId: 4 })];
    expect(target.epoch([...broken, ...many(20, { agentId: 1 })])).toMatchObject({ reason: 'room', bad: 0 });
    // Not if most fail.
    target.epoch([...broken, ...bad(10, { agentId: 2 }), ...many(20, { agentId: 1 })]);
    expect(target.changes.at(-1)).toMatchObject({ reason: 'failures', bad: 30 });
  });

  it('does not believe those that always fail before others have reported', () => {
    const target = working();
    target.epoch([...bad(10, { agentId: 3 }), ...bad(10, { agentId: 4 }), ...many(20, { agentId: 1 })]);
    const before = target.state.rate;
    const first = target.grant([
      ...bad(20, { agentId: 3, delayMs: 100 }),
      ...bad(20, { agentId: 4, delayMs: 100 }),
    ]);
    target.now += 100;
    expect(target.report(first)).toBeUndefined();
    expect(target.state).toMatchObject({ rate: before, deadLevel: 0 });
  });

  it('cuts if round trips take three times the best of the agent, and learns them if that does not help', () => {
    const target = working();
    target.epoch(many(40, { rttMs: 60 }), 0);
    expect(target.changes).toEqual([]);
    expect(target.epoch(many(40, { rttMs: 100 }))).toMatchObject({ reason: 'slower', after: 8_500 });
    for (let i = 0; i < 40; i++) target.epoch(many(40, { rttMs: 100 }));
    expect(target.state.rate).toBeGreaterThan(10_000);
  });

  it('compares no round-trip time of an agent that was not known', () => {
    const target = working();
    target.epoch([...many(4, { rttMs: 100 }), ...many(36, { agentId: 9, rttMs: 100 })]);
    expect(target.changes.at(-1)).toMatchObject({ reason: 'slower' });
  });

  it('halves if pushed back, and holds as long as asked, at most an hour', () => {
    const target = working();
    const [pushed] = target.grant([{ signal: 'pushed_back', retryAfterMs: 30_000 }]) as [PacedOutcome];
    expect(target.report([pushed])).toMatchObject({ reason: 'pushed_back', before: 10_000, after: 5_000 });
    expect(target.state.holdUntil).toBe(target.now + 30_000);
    // Of the same epoch.
    expect(target.report([{ ...pushed, retryAfterMs: 1e300 }])).toBeUndefined();
    expect(target.state.holdUntil).toBe(target.now + 3_600_000);
  });

  it('does not slow down for one agent that is always refused', () => {
    const target = working();
    for (let i = 0; i < 20; i++)
      target.epoch([{ agentId: 4, signal: 'pushed_back' }, ...many(40, { agentId: 1 + (i % 3) })]);
    expect(target.changes.filter(({ reason }) => reason === 'pushed_back')).toHaveLength(5);
    expect(target.state.rate).toBeGreaterThan(10_000);
  });

  it('probes a dead target every 2, 4 … 32 s, and begins again with a quarter', () => {
    const target = working();
    expect(target.epoch(bad(40))).toMatchObject({ reason: 'dead', after: 500 });
    expect(leasesAllowed(target.state, BOUNDS)).toBe(1);
    for (let i = 0; i < 6; i++) target.epoch(bad(1));
    expect(target.changes.map(({ after }) => after)).toEqual([500, 250, 125, 63, 31]);
    expect(target.epoch(many(1))).toMatchObject({ reason: 'alive', after: 2_500 });
    expect(leasesAllowed(target.state, BOUNDS)).toBeGreaterThan(1);
  });

  it('needs two agents to find a target dead, and five outcomes', () => {
    expect(working().epoch(bad(40, { agentId: 1 }))).toBeUndefined();
    expect(working().epoch(bad(4))).toBeUndefined();
    expect(working().epoch(bad(5))).toMatchObject({ reason: 'dead' });
  });

  it('allows twice the leases that the rate needs, and few before the first answer', () => {
    const silent = firstState(0, 0, BOUNDS);
    expect(leasesAllowed({ ...silent, delayMs: 5_000 }, BOUNDS)).toBe(8);
    expect(leasesAllowed({ ...silent, delayMs: 5_000, isHeard: true }, BOUNDS)).toBe(100);
    expect(leasesAllowed({ ...silent, delayMs: 5_000, isHeard: true }, { ...BOUNDS, limit: 20 })).toBe(20);
  });

  it('counts the outcomes of more agents than it remembers', () => {
    const target = new Target();
    const outcomes = many(80).map((_, i) => ({ agentId: i + 1, signal: SIGNALS[i < 50 ? 0 : 2] }));
    expect(target.epoch(outcomes)).toMatchObject({ reason: 'failures', ok: 50, bad: 30 });
    expect(target.state.agents).toHaveLength(32);
  });

  it('remembers the latest round-trip times, and learns a longer route slowly', () => {
    const target = working();
    target.now += 100;
    target.report(
      target.grant([...many(100, { rttMs: 45, delayMs: 100 }), ...many(64, { rttMs: 20, delayMs: 100 })]),
    );
    expect(target.state.rttRatios).toEqual(new Array(64).fill(1));
    for (let i = 0; i < 50; i++) target.epoch(many(40, { rttMs: 45 }), 0);
    expect(target.state.agents.map(({ bestRttMs }) => Math.round(bestRttMs ?? 0))).toEqual([33, 33, 33, 33]);
  });

  it('follows new bounds', () => {
    const { state } = working();
    expect(boundState(state, { maxRate: 50, limit: null }).rate).toBe(50);
    expect(boundState({ ...state, rate: 50 }, BOUNDS).rate).toBe(LOWEST_RATE);
    expect(boundState(state, BOUNDS)).toBe(state);
    expect(firstState(0, 0, BOUNDS).rate).toBe(FIRST_RATE);
  });
});

const HOSTILE = fc.oneof(
  fc.constantFrom(null, undefined, Number.NaN, -1, 1e300, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY),
  fc.double(),
  fc.integer({ min: 0, max: 20_000 }),
);
const anyOutcome = (leaseIds: fc.Arbitrary<number>): fc.Arbitrary<PacedOutcome> =>
  fc.record({
    ...{ leaseId: leaseIds, agentId: fc.integer({ min: 1, max: 60 }), signal: fc.constantFrom(...SIGNALS) },
    ...{ rttMs: HOSTILE, retryAfterMs: HOSTILE, delayMs: HOSTILE.map((value) => value as number) },
  });
const anyBounds: fc.Arbitrary<PacingBounds> = fc.record({
  maxRate: fc.constantFrom(1, 7, 100, 5_000, 1_000_000, 1e300, Number.POSITIVE_INFINITY),
  limit: fc.option(fc.integer({ min: 0, max: 100 })),
});
/** Steps of a clock that also goes back. */
const anySteps = fc.array(
  fc.record({
    ...{
      outcomes: fc.array(anyOutcome(fc.integer({ min: 1, max: 400 })), { maxLength: 80 }),
      bounds: anyBounds,
    },
    ...{ stepMs: fc.integer({ min: -100_000, max: 100_000 }), starts: fc.integer({ min: 0, max: 10_000 }) },
  }),
  { minLength: 1, maxLength: 12 },
);

/** The states after each step. */
function* statesOf(steps: typeof anySteps extends fc.Arbitrary<infer Steps> ? Steps : never) {
  let now = 1_000_000;
  let state = firstState(now, 0, BOUNDS);
  for (const [i, { outcomes, bounds, stepMs, starts }] of steps.entries()) {
    now += stepMs;
    const applied = applyOutcomes(state, outcomes, { now, lastLeaseId: 40 * (i + 1), starts, bounds });
    state = applied.state;
    yield { outcomes, bounds, now, ...applied };
  }
}

describe('the pacing rule, whatever is reported', () => {
  it('leaves a state within its bounds', () => {
    fc.assert(
      fc.property(anySteps, (steps) => {
        for (const { state, outcomes, bounds, now, change } of statesOf(steps)) {
          expect(Number.isInteger(state.rate)).toBe(true);
          expect(state.rate).toBeGreaterThanOrEqual(
            state.deadLevel > 0 ? 1 : Math.min(LOWEST_RATE, bounds.maxRate),
          );
          expect(state.rate).toBeLessThanOrEqual(Math.min(bounds.maxRate, 1_000_000_000));
          if (outcomes.some(({ signal }) => signal !== 'local'))
            expect(state.holdUntil).toBeLessThanOrEqual(now + 3_600_000);
          expect(leasesAllowed(state, bounds)).toBeLessThanOrEqual(bounds.limit ?? Number.MAX_SAFE_INTEGER);
          expect(state.agents.length).toBeLessThanOrEqual(32);
          expect(change?.after ?? state.rate).toBe(state.rate);
        }
      }),
    );
  });

  it('stores what it reads again, in little', () => {
    fc.assert(
      fc.property(anySteps, (steps) => {
        for (const { state } of statesOf(steps)) {
          expect(unpackState(packState(state))).toEqual(state);
          expect(packState(state).length).toBeLessThan(1_300);
        }
      }),
    );
  });

  it('changes at most once for the leases of an epoch, in any order, repeated, split and late', () => {
    const outcomes = fc.array(anyOutcome(fc.integer({ min: 1, max: 200 })), { maxLength: 60 });
    fc.assert(
      fc.property(fc.array(fc.tuple(outcomes, fc.nat(60_000)), { maxLength: 20 }), (reports) => {
        const target = new Target();
        target.lastLeaseId = 200;
        for (const [report, stepMs] of reports) {
          target.now += stepMs;
          target.report(report, 500);
        }
        expect(target.changes.length).toBeLessThanOrEqual(1);
      }),
    );
  });

  it('does not change by outcomes that are local', () => {
    fc.assert(
      fc.property(anySteps, (steps) => {
        for (const { state, outcomes, now } of statesOf(steps)) {
          const context = {
            now: now + 50_000,
            lastLeaseId: 1_000,
            starts: 0,
            bounds: { maxRate: 1e9, limit: null },
          };
          const local = outcomes.map((outcome) => ({ ...outcome, leaseId: 999, signal: 'local' as const }));
          const bounded = boundState(state, context.bounds);
          expect(applyOutcomes(bounded, local, context)).toEqual({ state: bounded, change: undefined });
          expect(applyOutcomes(bounded, [...local, ...outcomes], context)).toEqual(
            applyOutcomes(bounded, outcomes, context),
          );
        }
      }),
    );
  });

  it.each([
    '',
    'null',
    '{}',
    '[]',
    '[[1],[2],[],[]]',
    '[[1,2,3,4,5,null],[0,0,0,0,0],[],[]]',
    '[[1,2,3,4,5,6],[0,0,0,0,0],[[1]],[]]',
  ])('reads no state from %j', (text) => expect(unpackState(text)).toBeUndefined());
});
