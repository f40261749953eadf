import fc from 'fast-check';
import { backoffMs } from './retries';

describe('backoff', () => {
  const attempts = fc.integer({ min: 1, max: 1_000 });
  const base = fc.integer({ min: 1, max: 86_400_000 });
  const times = fc.integer({ min: 1, max: 1_000 });
  const random = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });

  it('doubles from the base with each attempt, up to the maximum', () => {
    const longest = (attempt: number) => backoffMs(attempt, 1_000, 10_000, 1 - Number.EPSILON);
    expect([1, 2, 3, 4, 5, 6].map(longest)).toEqual([1_000, 2_000, 4_000, 8_000, 10_000, 10_000]);
  });

  it('is a whole number between half of the ceiling and all of it', () => {
    fc.assert(
      fc.property(attempts, base, times, random, (attempt, baseMs, factor, chance) => {
        const maxMs = baseMs * factor;
        const ceiling = Math.min(maxMs, baseMs * 2 ** (attempt - 1));
        const wait = backoffMs(attempt, baseMs, maxMs, chance);
        expect(Number.isSafeInteger(wait)).toBe(true);
        expect(wait).toBeGreaterThanOrEqual(Math.floor(ceiling / 2));
        expect(wait).toBeLessThanOrEqual(ceiling);
      }),
    );
  });

  it('spreads over the whole upper half', () => {
    expect(backoffMs(3, 1_000, 60_000, 0)).toBe(2_000);
    expect(backoffMs(3, 1_000, 60_000, 0.5)).toBe(3_000);
    expect(backoffMs(3, 1_000, 60_000, 1 - Number.EPSILON)).toBe(4_000);
  });

  it('gives tasks that failed together different waits when it rolls its own dice', () => {
    const waits = new Set(Array.from({ length: 50 }, () => backoffMs(10, 1_000, 300_000)));
    expect(waits.size).toBeGreaterThan(40);
  });
});
