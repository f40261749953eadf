import fc from 'fast-check';
import { Alarms, type Sleeper } from './alarms';

describe('alarms', () => {
  beforeEach(() => jest.useFakeTimers());
  afterEach(() => jest.useRealTimers());

  /** A sleeper that notes the instants at which it is called. */
  function sleeper(): Sleeper & { readonly calls: number[] } {
    const calls: number[] = [];
    return { alarm: undefined, calls, onAlarm: () => calls.push(performance.now()) };
  }

  it('call each sleeper once, never early and at most 2 ms late, whatever was set and cleared between', () => {
    const step = fc.record({ who: fc.nat(7), inMs: fc.option(fc.nat(500)), waitMs: fc.nat(60) });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const alarms = new Alarms();
        const sleepers = Array.from({ length: 8 }, sleeper);
        const due: (number | undefined)[] = sleepers.map(() => undefined);
        const check = () => {
          for (const [i, { calls }] of sleepers.entries()) {
            const at = due[i];
            const isOverdue = at !== undefined && performance.now() > at + 2;
            if (isOverdue || calls.length > 0) {
              expect(calls).toHaveLength(1);
              expect(calls[0]).toBeGreaterThanOrEqual(at as number);
              expect(calls[0]).toBeLessThanOrEqual((at as number) + 2);
              calls.length = 0;
              due[i] = undefined;
            }
          }
          expect(alarms.size).toBe(due.filter((at) => at !== undefined).length);
        };
        for (const { who, inMs, waitMs } of steps) {
          const one = sleepers[who] as Sleeper;
          if (inMs === null) alarms.clear(one);
          else alarms.set(one, performance.now() + inMs);
          due[who] = inMs === null ? undefined : performance.now() + inMs;
          jest.advanceTimersByTime(waitMs);
          check();
        }
        jest.advanceTimersByTime(1_000);
        check();
        expect(alarms.size).toBe(0);
      }),
    );
  });

  it('have one timer for all', () => {
    const alarms = new Alarms();
    for (let i = 0; i < 100; i++) alarms.set(sleeper(), performance.now() + 1_000 - i);
    expect(jest.getTimerCount()).toBe(1);
  });

  it('have no timer once all are cleared', () => {
    const alarms = new Alarms();
    const sleepers = Array.from({ length: 3 }, sleeper);
    for (const one of sleepers) alarms.set(one, performance.now() + 1_000);
    for (const one of sleepers) alarms.clear(one);
    expect(jest.getTimerCount()).toBe(0);
  });

  it('let a sleeper set its next alarm while it is called', () => {
    const alarms = new Alarms();
    let calls = 0;
    const again: Sleeper = {
      alarm: undefined,
      onAlarm: () => {
        calls++;
        alarms.set(again, performance.now() + 10);
      },
    };
    alarms.set(again, performance.now() + 10);
    jest.advanceTimersByTime(50);
    expect(calls).toBeGreaterThanOrEqual(2);
  });
});
