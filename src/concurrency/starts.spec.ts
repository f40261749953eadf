import fc from 'fast-check';
import { AHEAD_US, CountedStarts, intervalUs, SpacedStarts } from './starts';

const SECOND_US = 1_000_000;
const NOW = 1_767_225_600_000;

/** The most instants in any second, which has its beginning and not its end. */
function mostInASecond(instants: readonly number[]): number {
  const sorted = instants.toSorted((a, b) => a - b);
  let most = 0;
  for (let first = 0, last = 0; last < sorted.length; last++) {
    while ((sorted[last] as number) - (sorted[first] as number) >= SECOND_US) first++;
    most = Math.max(most, last - first + 1);
  }
  return most;
}

const mostAllowed = (rate: number): number => Math.floor(rate / 1_000) + 1;

/** Rates that are no whole number of starts a second are in it on purpose. */
const slowRates = fc.integer({ min: 1, max: 999 });
const rates = fc.oneof(fc.integer({ min: 1_000, max: 12_000 }), fc.integer({ min: 1_000, max: 300_000 }));

/** Units of work: after the one before, each begins a while later, and wants starts from instants on. */
const units = fc.array(
  fc.record({
    waitMs: fc.oneof(fc.nat(60), fc.nat(1_500)),
    wanted: fc.array(fc.oneof(fc.constant(0), fc.integer({ min: -SECOND_US, max: AHEAD_US })), {
      maxLength: 40,
    }),
  }),
  { maxLength: 40 },
);

describe('SpacedStarts', () => {
  it('keeps starts apart by the interval, at most a second ahead', () => {
    const starts = new SpacedStarts(2_000, 0, NOW);
    const taken: number[] = [];
    for (;;) {
      const at = starts.earliest(NOW * 1_000);
      if (at === Number.POSITIVE_INFINITY) break;
      expect(starts.room()).toBe(3 - taken.length);
      starts.take(at);
      taken.push(at - NOW * 1_000);
    }
    expect(taken).toEqual([0, 500_000, 1_000_000]);
    expect(starts.last).toBe(NOW * 1_000 + 1_000_000);
    expect(starts.room()).toBe(0);
  });

  it('never has an interval that exceeds the rate', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 1_000_000_000 }), (rate) => {
        expect(intervalUs(rate) * rate).toBeGreaterThanOrEqual(1_000_000_000);
      }),
    );
  });

  it('never allows more than rate + 1 in any second, over units that begin from what the one before stored', () => {
    fc.assert(
      fc.property(fc.oneof(slowRates, rates), units, (rate, sequence) => {
        const taken: number[] = [];
        let now = NOW;
        let nextUs = 0;
        for (const { waitMs, wanted } of sequence) {
          now += waitMs;
          const starts = new SpacedStarts(rate, nextUs, now);
          for (const offset of wanted) {
            const from = now * 1_000 + Math.max(0, offset);
            const at = starts.earliest(from);
            if (at === Number.POSITIVE_INFINITY) continue;
            expect(at).toBeGreaterThanOrEqual(from);
            expect(at).toBeLessThanOrEqual(now * 1_000 + AHEAD_US);
            starts.take(at);
            taken.push(at);
          }
          if (starts.last > 0) nextUs = starts.last + intervalUs(rate);
        }
        expect(mostInASecond(taken)).toBeLessThanOrEqual(mostAllowed(rate));
      }),
    );
  });

  it('has room if and only if a start is possible, and no more of it than starts are possible', () => {
    fc.assert(
      fc.property(fc.oneof(slowRates, rates), fc.integer({ min: -2_000, max: 3_000 }), (rate, nextMs) => {
        const starts = new SpacedStarts(rate, (NOW + nextMs) * 1_000, NOW);
        let possible = 0;
        const room = starts.room();
        for (;;) {
          const at = starts.earliest(NOW * 1_000);
          expect(starts.room() > 0).toBe(at !== Number.POSITIVE_INFINITY);
          if (at === Number.POSITIVE_INFINITY) break;
          starts.take(at);
          possible++;
        }
        expect(possible).toBe(room);
      }),
      { numRuns: 50 },
    );
  });
});

/** What a wide window stores of its starts. */
class Stored {
  private text: string | null = null;
  private last = 0;

  /** The starts of the next unit. */
  at(rate: number, now: number): CountedStarts {
    return new CountedStarts(rate, this.last === 0 ? 0 : this.last + intervalUs(rate), this.text, now);
  }

  store(starts: CountedStarts): void {
    if (starts.last === 0) return;
    this.text = starts.text;
    this.last = starts.last;
  }
}

/** Takes the starts that units want, each of which goes by an instant some time before it has its turn. @returns them */
function takeAll(
  sequence: readonly { waitMs: number; wanted: readonly number[] }[],
  rateOf: (i: number) => number,
  lateOf: (i: number) => number,
): number[] {
  const taken: number[] = [];
  const stored = new Stored();
  let turn = NOW;
  for (const [i, { waitMs, wanted }] of sequence.entries()) {
    turn += waitMs;
    const now = turn - lateOf(i);
    const starts = stored.at(rateOf(i), now);
    for (const offset of wanted) {
      const from = now * 1_000 + Math.max(0, offset);
      const at = starts.earliest(from);
      if (at === Number.POSITIVE_INFINITY) continue;
      expect(at).toBeGreaterThanOrEqual(from);
      expect(at).toBeLessThanOrEqual(Math.max(from, turn * 1_000 + AHEAD_US));
      starts.take(at);
      taken.push(at);
    }
    stored.store(starts);
  }
  return taken;
}

describe('CountedStarts', () => {
  it('allows starts at once, bucket by bucket, as many as a second has', () => {
    const starts = new CountedStarts(2_000, 0, null, NOW);
    const take = () => {
      const at = starts.earliest(NOW * 1_000);
      if (at !== Number.POSITIVE_INFINITY) starts.take(at);
      return at - NOW * 1_000;
    };
    expect([take(), take(), take(), take()]).toEqual([0, 0, 25_000, Number.POSITIVE_INFINITY]);
    expect(starts.room()).toBe(0);
  });

  it('lets others start before one that lies ahead', () => {
    const starts = new CountedStarts(3_000, 0, null, NOW);
    starts.take(starts.earliest((NOW + 900) * 1_000));
    expect(starts.earliest(NOW * 1_000)).toBe(NOW * 1_000);
  });

  it('below one a second keeps starts apart', () => {
    const stored = new Stored();
    const taken: number[] = [];
    for (let ms = 0; ms <= 9_000; ms += 100) {
      const starts = stored.at(400, NOW + ms);
      const at = starts.earliest((NOW + ms) * 1_000);
      if (at === Number.POSITIVE_INFINITY) continue;
      starts.take(at);
      stored.store(starts);
      taken.push(at - NOW * 1_000);
    }
    expect(taken).toEqual([0, 2_500_000, 5_000_000, 7_500_000, 10_000_000]);
  });

  it.each([
    ['begin one after the other', 0],
    ['wait for locks, so that one may go by an earlier instant than the one before', 700],
  ])('never allows more than rate + 1 in any second, over units that %s', (_, lateMs) => {
    const late = fc.array(fc.nat(lateMs), { minLength: 40, maxLength: 40 });
    fc.assert(
      fc.property(fc.oneof(slowRates, rates), units, late, (rate, sequence, lateness) => {
        const taken = takeAll(
          sequence,
          () => rate,
          (i) => lateness[i] as number,
        );
        expect(mostInASecond(taken)).toBeLessThanOrEqual(mostAllowed(rate));
      }),
      { numRuns: 300 },
    );
  });

  it('never allows more than the highest rate + 1 in any second, if the rate is changed, across one a second too', () => {
    const some = fc.array(fc.oneof(slowRates, fc.integer({ min: 1_000, max: 8_000 })), {
      minLength: 1,
      maxLength: 40,
    });
    fc.assert(
      fc.property(some, units, (changes, sequence) => {
        const taken = takeAll(
          sequence,
          (i) => changes[i % changes.length] as number,
          () => 0,
        );
        expect(mostInASecond(taken)).toBeLessThanOrEqual(mostAllowed(Math.max(...changes)));
      }),
      { numRuns: 300 },
    );
  });

  it('has no room if and only if no start is possible', () => {
    fc.assert(
      fc.property(fc.oneof(slowRates, rates), units, (rate, sequence) => {
        let now = NOW;
        const stored = new Stored();
        for (const { waitMs, wanted } of sequence) {
          now += waitMs;
          const starts = stored.at(rate, now);
          for (const offset of wanted) {
            const at = starts.earliest(now * 1_000 + Math.max(0, offset));
            if (at !== Number.POSITIVE_INFINITY) starts.take(at);
            expect(starts.room() > 0).toBe(starts.earliest(now * 1_000) !== Number.POSITIVE_INFINITY);
          }
          stored.store(starts);
        }
      }),
      { numRuns: 300 },
    );
  });

  it('counts by the rate of now what was granted by another', () => {
    const before = new CountedStarts(10_000, 0, null, NOW);
    for (let i = 0; i < 11; i++) before.take(before.earliest(NOW * 1_000));
    expect(new CountedStarts(5_000, 0, before.text, NOW).room()).toBe(0);
    expect(new CountedStarts(20_000, 0, before.text, NOW).room()).toBe(10);
  });
});

describe('starts that are always wanted', () => {
  const RATES = [50, 300, 999, 1_000, 1_500, 1_999, 2_000, 5_000, 7_500, 40_000, 99_500, 250_000];

  it.each(
    RATES.flatMap(
      (rate) =>
        [
          [
            rate,
            'of a target',
            (next: number, _: string | null, now: number) => new SpacedStarts(rate, next, now),
          ],
          [
            rate,
            'of all',
            (next: number, text: string | null, now: number) => new CountedStarts(rate, next, text, now),
          ],
        ] as const,
    ),
  )('use 90 to 100 %% of a rate of %i in 1,000 s %s', (rate, _, startsAt) => {
    const seconds = rate < 1_000 ? 400 : 40;
    let text: string | null = null;
    let nextUs = 0;
    let count = 0;
    for (let ms = 0; ms < seconds * 1_000; ms += 97) {
      const now = NOW + ms;
      const starts: SpacedStarts | CountedStarts = startsAt(nextUs, text, now);
      for (;;) {
        const at = starts.earliest(now * 1_000);
        if (at === Number.POSITIVE_INFINITY) break;
        starts.take(at);
        count++;
      }
      if (starts.last === 0) continue;
      if (starts instanceof CountedStarts) text = starts.text;
      nextUs = starts.last + intervalUs(rate);
    }
    const ideal = (rate * seconds) / 1_000;
    expect(count).toBeGreaterThanOrEqual(0.9 * ideal - 1);
    // The first start, and those that are granted a second ahead.
    expect(count).toBeLessThanOrEqual(ideal + rate / 1_000 + 1);
  });
});
