import { Lifecycle } from './lifecycle';

describe('a process that drains', () => {
  const DRAIN_MS = 3_000;
  let lifecycle: Lifecycle;
  let beganAt: number;

  beforeEach(() => {
    jest.useFakeTimers();
    jest.advanceTimersByTime(10_000);
    lifecycle = new Lifecycle();
    beganAt = performance.now();
    lifecycle.beginDrain(DRAIN_MS);
  });

  afterEach(() => jest.useRealTimers());

  const many = <T>(pick: () => T): T[] => Array.from({ length: 200 }, pick);

  it('answers calls that waited before in the second half, those that came later in the last tenth', () => {
    for (const at of many(() => lifecycle.pickReleaseTime(beganAt - 1) - beganAt)) {
      expect(at).toBeGreaterThanOrEqual(DRAIN_MS * 0.5);
      expect(at).toBeLessThanOrEqual(DRAIN_MS * 0.9);
    }
    for (const at of many(() => lifecycle.pickReleaseTime(beganAt) - beganAt)) {
      expect(at).toBeGreaterThanOrEqual(DRAIN_MS * 0.9);
      expect(at).toBeLessThanOrEqual(DRAIN_MS);
    }
  });

  it.each([0, 1_000, 2_000, 2_600, 2_750, 2_900, 2_999])(
    'never answers a call before it came: %d ms after the drain began',
    (afterMs) => {
      jest.advanceTimersByTime(afterMs);
      const now = performance.now();
      for (const since of [beganAt - 1, beganAt, now])
        for (const at of many(() => lifecycle.pickReleaseTime(since))) {
          expect(at).toBeGreaterThan(now);
          // Or by the stop, which comes at the end of the drain.
          if (at < Number.POSITIVE_INFINITY) expect(at).toBeLessThanOrEqual(beganAt + DRAIN_MS);
          else expect(afterMs).toBeGreaterThan(DRAIN_MS / 2);
        }
    },
  );

  it('has callers come back after it, not all at one moment', () => {
    for (const restMs of [3_000, 1_200, 0]) {
      const delays = many(() => lifecycle.pickReturnDelay() as number);
      for (const delay of delays) expect(delay).toBeGreaterThanOrEqual(restMs);
      expect(new Set(delays.map((delay) => Math.ceil(delay / 1_000))).size).toBeGreaterThan(1);
      jest.advanceTimersByTime(restMs === 3_000 ? 1_800 : 1_200);
    }
    expect(new Lifecycle().pickReturnDelay()).toBeUndefined();
  });

  it('asks nobody to wait for a drain that was cut short', () => {
    lifecycle.beginStop();
    for (const delay of many(() => lifecycle.pickReturnDelay() as number))
      expect(delay).toBeLessThanOrEqual(DRAIN_MS - 1_000);
  });
});
