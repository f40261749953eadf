import { FIRST_RATE } from './pacing';
import { type RuleBounds, type RuleChange, type RuleState, rulesOf, WindowStates } from './window-rules';

const FROM = 1_000;
const TO = 2_000;
const NONE: RuleBounds = { limit: null, maxRate: null, adaptive: false };
const rate = (maxRate: number, fields: Partial<RuleBounds> = {}): RuleBounds => ({
  ...NONE,
  maxRate,
  ...fields,
});

const bySomebody = (at: number, before: RuleBounds, after: RuleBounds): RuleChange => ({
  ...{ at, reason: 'operator', rateBefore: before.maxRate, rateAfter: after.maxRate },
  bounds: { before, after },
});
const paced = (
  at: number,
  reason: RuleChange['reason'],
  rateBefore: number,
  rateAfter: number,
): RuleChange => ({
  ...{ at, reason, rateBefore, rateAfter, bounds: undefined },
});

function statesOf(
  changes: readonly RuleChange[],
  present?: { bounds: RuleBounds; rate: number | null },
): RuleState[] {
  const states = new WindowStates(FROM, TO);
  for (const change of changes) if (!states.add(change)) break;
  return states.end(present);
}

const nothing = statesOf([]);
const rules = (some: Partial<Parameters<typeof rulesOf>[0]>) =>
  rulesOf({ global: nothing, kind: nothing, every_target: nothing, target: nothing, ...some });

describe('what held at a window', () => {
  it('is what the last change before the period set, then what each in it set', () => {
    expect(
      statesOf([
        bySomebody(10, NONE, rate(5)),
        bySomebody(20, rate(5), rate(7)),
        bySomebody(1_500, rate(7), rate(9)),
        bySomebody(2_000, rate(9), rate(11)),
      ]),
    ).toEqual([
      { at: FROM, reason: 'operator', bounds: rate(7), rate: 7 },
      { at: 1_500, reason: 'operator', bounds: rate(9), rate: 9 },
    ]);
  });

  it('is what the first change replaced, if earlier ones are no longer kept', () => {
    const adaptive = rate(9_000, { adaptive: true });
    expect(
      statesOf([
        paced(1_200, 'failures', 8_000, 5_600),
        paced(1_300, 'room', 5_600, 6_600),
        bySomebody(3_000, adaptive, NONE),
        bySomebody(4_000, NONE, rate(1)),
      ]),
    ).toEqual([
      { at: FROM, reason: 'operator', bounds: adaptive, rate: 8_000 },
      { at: 1_200, reason: 'failures', bounds: adaptive, rate: 5_600 },
      // To that it had grown.
      { at: 1_300, reason: 'room', bounds: adaptive, rate: 9_000 },
    ]);
  });

  it('is what the window is now, if nothing changed', () => {
    expect(statesOf([], { bounds: rate(3), rate: 3 })).toEqual([
      { at: FROM, reason: 'operator', bounds: rate(3), rate: 3 },
    ]);
    expect(statesOf([])).toEqual([{ at: FROM, reason: 'operator', bounds: NONE, rate: null }]);
  });

  it('has the rate that the next change found, if that is higher', () => {
    const growing = [bySomebody(10, NONE, rate(90, { adaptive: true })), paced(1_200, 'failures', 70, 40)];
    const rates = (states: RuleState[]) => states.map((state) => state.rate);
    expect(rates(statesOf(growing))).toEqual([90, 40]);
    expect(rates(statesOf([...growing, paced(1_300, 'failures', 60, 30)]))).toEqual([90, 60, 30]);
    // Also if it found it later, and as it is now.
    expect(rates(statesOf([...growing, paced(2_300, 'failures', 60, 30)]))).toEqual([90, 60]);
    expect(rates(statesOf(growing, { bounds: rate(90, { adaptive: true }), rate: 55 }))).toEqual([90, 55]);
  });

  it('needs no changes after the period, once one by an operator is known', () => {
    const states = new WindowStates(FROM, TO);
    expect(states.add(paced(2_500, 'room', 1, 2))).toBe(true);
    expect(states.add(bySomebody(2_600, rate(4), NONE))).toBe(false);
    expect(states.end(undefined)).toEqual([{ at: FROM, reason: 'operator', bounds: rate(4), rate: 1 }]);
  });
});

describe('the rules of a target', () => {
  it('are of all scopes, the widest first, and none for the time without a limit and a rate', () => {
    expect(
      rules({
        global: statesOf([bySomebody(1, NONE, { ...NONE, limit: 500 })]),
        kind: statesOf([bySomebody(1_400, NONE, rate(50)), bySomebody(1_600, rate(50), NONE)]),
        target: statesOf([bySomebody(1_200, NONE, rate(2, { limit: 1 }))]),
      }),
    ).toEqual([
      {
        ...{ scope: 'global', from: FROM, to: null, limit: 500, rate: null, maxRate: null },
        ...{ adaptive: false, reason: 'operator' },
      },
      {
        ...{ scope: 'target', from: 1_200, to: null, limit: 1, rate: 2, maxRate: 2 },
        ...{ adaptive: false, reason: 'operator' },
      },
      {
        ...{ scope: 'kind', from: 1_400, to: 1_600, limit: null, rate: 50, maxRate: 50 },
        ...{ adaptive: false, reason: 'operator' },
      },
    ]);
  });

  it('are those of every target only while it has none of its own', () => {
    const every = statesOf([bySomebody(1, NONE, rate(5))]);
    const target = statesOf([bySomebody(1_300, NONE, rate(8)), bySomebody(1_700, rate(8), NONE)]);
    expect(rules({ every_target: every, target })).toMatchObject([
      { scope: 'every_target', from: FROM, to: 1_300, rate: 5 },
      { scope: 'target', from: 1_300, to: 1_700, rate: 8 },
      { scope: 'every_target', from: 1_700, to: null, rate: 5 },
    ]);
  });

  it('adapt within the bounds, also in those of every target', () => {
    const every = statesOf([
      bySomebody(1, NONE, { ...NONE, adaptive: true }),
      bySomebody(1_500, { ...NONE, adaptive: true }, rate(4_000, { adaptive: true })),
    ]);
    expect(rules({ every_target: every })).toMatchObject([
      { from: FROM, to: 1_500, rate: FIRST_RATE, maxRate: null, adaptive: true },
      { from: 1_500, to: null, rate: 4_000, maxRate: 4_000 },
    ]);
    const target = statesOf([paced(1_100, 'failures', 9_000, 6_300), paced(1_600, 'slower', 4_000, 3_400)]);
    expect(rules({ every_target: every, target })).toMatchObject([
      { from: FROM, to: 1_100, rate: 9_000, reason: 'operator' },
      { from: 1_100, to: 1_500, rate: 6_300, reason: 'failures' },
      { from: 1_500, to: 1_600, rate: 4_000, reason: 'operator' },
      { from: 1_600, to: null, rate: 3_400, reason: 'slower', scope: 'every_target' },
    ]);
    const own = statesOf([
      bySomebody(1, NONE, rate(7_000, { adaptive: true })),
      paced(1_100, 'dead', 7_000, 500),
    ]);
    expect(rules({ target: own })).toMatchObject([
      { scope: 'target', rate: 7_000, reason: 'operator' },
      { scope: 'target', rate: 500, reason: 'dead' },
    ]);
  });

  it('join what was set again as it was, and skip what held for no time', () => {
    const kind = statesOf([
      bySomebody(1, NONE, rate(5)),
      bySomebody(1_200, rate(5), rate(5)),
      bySomebody(1_300, rate(5), rate(6)),
      bySomebody(1_300, rate(6), rate(5)),
    ]);
    expect(rules({ kind })).toMatchObject([{ from: FROM, to: null, rate: 5 }]);
  });
});
