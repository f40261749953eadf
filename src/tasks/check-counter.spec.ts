import { CHECK_ENDINGS, type Check, CheckCounter, type Peaks } from './check-counter';

const FROM = Date.UTC(2026, 10, 26);
const DAY_MS = 86_400_000;

/** A generator of numbers that a seed fixes. */
function numbers(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state * 1_103_515_245 + 12_345) % 2_147_483_648;
    return Math.floor((state / 2_147_483_648) * below);
  };
}

function count(checks: readonly Check[], from = FROM, to = FROM + DAY_MS): { counter: CheckCounter } & Peaks {
  const counter = new CheckCounter(from, to);
  for (const check of checks) counter.add(check);
  const peaks = counter.peaks();
  for (;;) {
    const { done, value } = peaks.next();
    if (done) return { counter, ...value };
  }
}

/** The same by comparing each check with each other. */
function naive(checks: readonly Check[], from: number, to: number): Peaks {
  const starts = checks
    .map(({ start_at: at }) => at)
    .filter((at) => at >= from && at < to)
    .sort((a, b) => a - b);
  let startsInASecond: Peaks['startsInASecond'] = { count: 0, at: null };
  for (const at of starts) {
    const found = starts.filter((other) => other >= at && other < at + 1_000).length;
    if (found > startsInASecond.count) startsInASecond = { count: found, at };
  }
  let concurrent: Peaks['concurrent'] = { count: 0, at: null };
  for (const at of [from, ...starts]) {
    const found = checks.filter(
      ({ start_at: start, ended_at: ended }) =>
        start <= at && (ended === null || Math.max(ended, start + 1) > at),
    ).length;
    if (found > concurrent.count) concurrent = { count: found, at };
  }
  return { startsInASecond, concurrent };
}

const check = (start: number, ended: number | null, agentId = 1): Check => ({
  agent_id: agentId,
  start_at: FROM + start,
  ended_at: ended === null ? null : FROM + ended,
  ending: ended === null ? null : 'success',
});

describe('the counter of checks', () => {
  it.each(Array.from({ length: 60 }, (_, seed) => seed))(
    'finds the same peaks as a comparison of each with each, seed %i',
    (seed) => {
      const below = numbers(seed + 1);
      // From dense to sparse, around borders of minutes and of the period.
      const spread = [300, 3_000, 70_000, 400_000][seed % 4] as number;
      const from = FROM + 60_000 * below(3);
      const to = from + 60_000 * (1 + below(4));
      const checks = Array.from({ length: 1 + below(300) }, (): Check => {
        const start = from - 2_000 + below(spread);
        const isLive = below(10) === 0;
        return {
          agent_id: 1 + below(5),
          start_at: start,
          ended_at: isLive ? null : start - 5 + below([10, 2_000, 100_000][below(3)] as number),
          ending: isLive ? null : (CHECK_ENDINGS[below(CHECK_ENDINGS.length)] as Check['ending']),
        };
      });
      const { counter, startsInASecond, concurrent } = count(checks, from, to);
      expect({ startsInASecond, concurrent }).toEqual(naive(checks, from, to));
      const counted = checks.filter(({ start_at: at }) => at >= from && at < to);
      expect(counter.checks).toBe(counted.length);
      const sum = (values: Iterable<number>) => [...values].reduce((a, b) => a + b, 0);
      expect(sum(Object.values(counter.endings))).toBe(counted.length);
      expect(sum(counter.byAgent.values())).toBe(counted.length);
      for (const [agentId, checksOf] of counter.byAgent)
        expect(counted.filter(({ agent_id: id }) => id === agentId)).toHaveLength(checksOf);
    },
  );

  it('counts a second as 1,000 ms: a start 1,000 ms later is in the next', () => {
    expect(count([check(999, 1_000), check(0, 1)]).startsInASecond).toEqual({ count: 2, at: FROM });
    expect(count([check(1_000, 1_001), check(0, 1)]).startsInASecond).toEqual({ count: 1, at: FROM });
    // Also over the border of a minute.
    const late = count([check(60_100, 60_200), check(59_200, 59_300), check(61_000, 61_100)]);
    expect(late.startsInASecond).toEqual({ count: 2, at: FROM + 59_200 });
  });

  it('counts a check that began before the day among those at once, and not among the starts', () => {
    const { counter, startsInASecond, concurrent } = count([check(-5_000, 10), check(5, 20), check(-9, -1)]);
    expect(counter.checks).toBe(1);
    expect(startsInASecond).toEqual({ count: 1, at: FROM + 5 });
    expect(concurrent).toEqual({ count: 2, at: FROM + 5 });
    expect(count([check(-5_000, 10)]).concurrent).toEqual({ count: 1, at: FROM });
  });

  it('leaves out the next day', () => {
    const { counter, concurrent } = count([check(DAY_MS - 1, DAY_MS + 1), check(DAY_MS, DAY_MS + 5)]);
    expect([counter.checks, concurrent]).toEqual([1, { count: 1, at: FROM + DAY_MS - 1 }]);
  });

  it('has no instants of a day without checks', () => {
    const { counter, startsInASecond, concurrent } = count([]);
    expect([counter.firstStart, counter.lastStart]).toEqual([null, null]);
    expect([startsInASecond, concurrent]).toEqual([
      { count: 0, at: null },
      { count: 0, at: null },
    ]);
  });
});
