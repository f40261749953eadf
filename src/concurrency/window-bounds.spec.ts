import fc from 'fast-check';
import { FIRST_RATE, MAX_RETRY_AFTER_MS, MIN_LEASED } from './pacing';
import { CountedStarts, SpacedStarts } from './starts';
import type { WindowRow } from './window.entity';
import {
  boundsOf,
  hasBounds,
  inForce,
  isWide,
  leasesLeft,
  MAX_RATE,
  nextStartUs,
  perSecond,
  perThousandSeconds,
  roomNow,
  startsOf,
} from './window-bounds';

const NOW = 1_767_225_600_000;

const windowWith = (fields: Partial<WindowRow> = {}): WindowRow => ({
  ...{ id: 7, scope: 'target', kind: 'dns', target: 'a:53', inherited: 0, moved_through: null },
  ...{ max_slots: null, max_rate: null, adaptive: 0, slots: null, rate: null, leased: 0 },
  ...{ last_start_us: 0, recent_starts: null, starts: 0, hold_until: null },
  ...fields,
});
const everyTarget = (fields: Partial<WindowRow>): WindowRow =>
  windowWith({ id: 1, scope: 'every_target', target: '', ...fields });

describe('rates', () => {
  it('are stored in whole starts per 1,000 s, never more than was asked for', () => {
    expect([0.001, 0.1, 0.29, 2.3, 1.0005, 40, 1_000_000].map(perThousandSeconds)).toEqual([
      ...[1, 100, 290, 2_300, 1_000, 40_000, MAX_RATE],
    ]);
    expect([perSecond(2_500), perSecond(null)]).toEqual([2.5, null]);
  });

  it('come back as they were set', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: MAX_RATE }), (rate) => {
        expect(perThousandSeconds(perSecond(rate))).toBe(rate);
      }),
    );
  });
});

describe('a window', () => {
  it('has bounds if it has a limit, a rate, or adapts', () => {
    expect(hasBounds(windowWith())).toBe(false);
    expect(hasBounds(windowWith({ max_slots: 0 }))).toBe(true);
    expect(hasBounds(windowWith({ max_rate: 1 }))).toBe(true);
    expect(hasBounds(windowWith({ adaptive: 1 }))).toBe(true);
  });

  it('is wide if it is of everything or a kind', () => {
    const scopes = ['global', 'kind', 'every_target', 'target'] as const;
    expect(scopes.filter((scope) => isWide({ scope }))).toEqual(['global', 'kind']);
  });

  it('has room for what its limit leaves; none below 0 after the limit was lowered', () => {
    expect(leasesLeft(windowWith({ leased: 900 }))).toBe(Number.POSITIVE_INFINITY);
    expect(leasesLeft(windowWith({ slots: 5, leased: 3 }))).toBe(2);
    expect(leasesLeft(windowWith({ slots: 1, leased: 3 }))).toBe(0);
    expect(roomNow(windowWith({ slots: 5, leased: 3 }), NOW)).toBe(2);
  });

  it('has room for what both its limit and its rate leave', () => {
    const paced = (fields: Partial<WindowRow>) => roomNow(windowWith({ rate: 10_000, ...fields }), NOW);
    expect(paced({})).toBe(11);
    expect(paced({ slots: 4 })).toBe(4);
    expect(paced({ slots: 4, leased: 4 })).toBe(0);
    expect(paced({ last_start_us: (NOW + 500) * 1_000 })).toBe(5);
    expect(paced({ slots: 900, last_start_us: (NOW + 1_000) * 1_000 })).toBe(0);
  });

  it('of a target keeps starts apart, of a kind or everything counts them, at any rate', () => {
    for (const rate of [1, 999, 1_000, 40_000]) {
      expect(startsOf(windowWith(), rate, NOW)).toBeInstanceOf(SpacedStarts);
      for (const scope of ['global', 'kind'] as const)
        expect(startsOf(windowWith({ scope, target: '' }), rate, NOW)).toBeInstanceOf(CountedStarts);
    }
  });

  it('has the operator’s bounds for the pacing rule, and the highest rate if there is none', () => {
    expect(boundsOf(windowWith({ max_slots: 3, max_rate: 20 }))).toEqual({ maxRate: 20, limit: 3 });
    expect(boundsOf(windowWith())).toEqual({ maxRate: MAX_RATE, limit: null });
  });
});

describe('the next start', () => {
  it('is one interval after the last, and possible at once if there was none', () => {
    expect(nextStartUs(windowWith(), 2_000, NOW)).toBe(0);
    expect(nextStartUs(windowWith({ last_start_us: NOW * 1_000 }), 2_000, NOW)).toBe(NOW * 1_000 + 500_000);
  });

  it('waits until the target wants to be asked again, but not without a limit', () => {
    const held = (ms: number) =>
      nextStartUs(windowWith({ last_start_us: NOW * 1_000, hold_until: NOW + ms }), 2_000, NOW);
    expect(held(-1)).toBe(NOW * 1_000 + 500_000);
    expect(held(9_000)).toBe((NOW + 9_000) * 1_000);
    expect(held(MAX_RETRY_AFTER_MS + 1)).toBe((NOW + MAX_RETRY_AFTER_MS) * 1_000);
  });
});

describe('the bounds in force', () => {
  const inherited = (fields: Partial<WindowRow> = {}) => windowWith({ inherited: 1, ...fields });

  it('are a window’s own, whatever those of every target are', () => {
    const own = windowWith({ max_slots: 4, slots: 4 });
    expect(inForce(own, [everyTarget({ max_slots: 1, slots: 1 })])).toBe(own);
  });

  it('are those of every target of its kind, though its row says something else', () => {
    const others = [
      everyTarget({ kind: 'ping', max_slots: 9, slots: 9 }),
      windowWith({ scope: 'kind', target: '', max_slots: 8, slots: 8 }),
    ];
    const row = inherited({ max_slots: 1, slots: 1, max_rate: 1, rate: 1, leased: 3 });
    expect(inForce(row, [...others, everyTarget({ max_slots: 6, slots: 6, max_rate: 5_000 })])).toEqual({
      ...row,
      ...{ max_slots: 6, slots: 6, max_rate: 5_000, rate: 5_000, adaptive: 0 },
    });
    // They were lifted.
    expect(inForce(row, others)).toMatchObject({ slots: null, rate: null });
    expect(roomNow(inForce(row, others), NOW)).toBe(Number.POSITIVE_INFINITY);
  });

  it('let an adaptive one keep its own pace within them', () => {
    const row = inherited({ adaptive: 1, slots: 30, rate: 22_000 });
    const under = (fields: Partial<WindowRow>) => {
      const { slots, rate } = inForce(row, [everyTarget({ adaptive: 1, ...fields })]);
      return { slots, rate };
    };
    expect(under({})).toEqual({ slots: 30, rate: 22_000 });
    expect(under({ max_slots: 4 })).toEqual({ slots: 4, rate: 22_000 });
    expect(under({ max_rate: 5_000 })).toEqual({ slots: 30, rate: 5_000 });
  });

  it('have one that comes to adapt begin as one that nothing is known of, whatever limit it had', () => {
    const row = inherited({ adaptive: 0, max_slots: 500, slots: 500, max_rate: 90_000, rate: 90_000 });
    expect(inForce(row, [everyTarget({ adaptive: 1 })])).toMatchObject({
      ...{ adaptive: 1, slots: MIN_LEASED, rate: FIRST_RATE },
    });
    expect(inForce(row, [everyTarget({ adaptive: 1, max_slots: 2, max_rate: 300 })])).toMatchObject({
      ...{ slots: 2, rate: 300 },
    });
  });
});
