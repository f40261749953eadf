import fc from 'fast-check';
import type { Quota } from '../settings';
import { TokenBuckets } from './token-buckets';

class Time {
  constructor(public at = 1_767_225_600_000) {}
  now = () => this.at;
}

const HEARTBEAT: Quota = { limit: 6, periodMs: 60_000, burst: 3 };

/** Rates whose interval is no whole number of milliseconds are in it on purpose. */
const quotas = fc.record({
  limit: fc.integer({ min: 1, max: 1_000 }),
  periodMs: fc.constantFrom(1_000, 7_000, 60_000, 3_600_000),
  burst: fc.integer({ min: 1, max: 20 }),
});

describe('TokenBuckets', () => {
  it('admits the burst at once, then one request in each interval', () => {
    const time = new Time();
    const buckets = new TokenBuckets(time);
    const take = () => buckets.take('a', HEARTBEAT);
    expect([take(), take(), take()]).toEqual([
      { admitted: true, remaining: 2, nextInMs: 10_000 },
      { admitted: true, remaining: 1, nextInMs: 10_000 },
      { admitted: true, remaining: 0, nextInMs: 10_000 },
    ]);
    expect(take()).toEqual({ admitted: false, remaining: 0, nextInMs: 10_000 });
    time.at += 9_999;
    expect(take()).toEqual({ admitted: false, remaining: 0, nextInMs: 1 });
    time.at += 1;
    expect(take()).toMatchObject({ admitted: true, remaining: 0 });
    expect(take()).toMatchObject({ admitted: false });
    time.at += 30_000;
    expect(buckets.look('a', HEARTBEAT)).toEqual({ admitted: true, remaining: 3, nextInMs: 0 });
  });

  it('separates keys', () => {
    const buckets = new TokenBuckets(new Time());
    const once = { limit: 1, periodMs: 1_000, burst: 1 };
    expect(buckets.take('a', once).admitted).toBe(true);
    expect(buckets.take('a', once).admitted).toBe(false);
    expect(buckets.take('b', once).admitted).toBe(true);
  });

  it('looks without taking, and refunds no more than was taken', () => {
    const buckets = new TokenBuckets(new Time());
    for (let i = 0; i < 5; i++) expect(buckets.look('a', HEARTBEAT).remaining).toBe(3);
    buckets.take('a', HEARTBEAT);
    buckets.giveBack('a', HEARTBEAT);
    buckets.giveBack('a', HEARTBEAT);
    expect(buckets.look('a', HEARTBEAT)).toEqual({ admitted: true, remaining: 3, nextInMs: 0 });
  });

  it('never admits more than burst + rate * time in any window, and no less than a bucket would', () => {
    const steps = fc.array(fc.record({ waitMs: fc.nat(5_000), requests: fc.nat(6) }), { maxLength: 60 });
    fc.assert(
      fc.property(quotas, steps, (quota, sequence) => {
        const time = new Time();
        const buckets = new TokenBuckets(time);
        // The reference: a bucket counted in whole numbers, tokens times periodMs.
        let tokens = BigInt(quota.burst * quota.periodMs);
        const admittedAt: number[] = [];
        for (const { waitMs, requests } of sequence) {
          time.at += waitMs;
          tokens += BigInt(waitMs * quota.limit);
          if (tokens > BigInt(quota.burst * quota.periodMs)) tokens = BigInt(quota.burst * quota.periodMs);
          for (let i = 0; i < requests; i++) {
            const expected = tokens >= BigInt(quota.periodMs);
            const verdict = buckets.take('key', quota);
            expect(verdict.admitted).toBe(expected);
            if (expected) {
              tokens -= BigInt(quota.periodMs);
              admittedAt.push(time.at);
            }
            expect(verdict.remaining).toBe(Number(tokens / BigInt(quota.periodMs)));
          }
        }
        for (let from = 0; from < admittedAt.length; from++) {
          for (let to = from; to < admittedAt.length; to++) {
            const windowMs = (admittedAt[to] as number) - (admittedAt[from] as number);
            const allowed = Math.floor(quota.burst + (windowMs * quota.limit) / quota.periodMs + 1e-9);
            expect(to - from + 1).toBeLessThanOrEqual(allowed);
          }
        }
      }),
    );
  });

  it('computes to the millisecond when the next request is admitted', () => {
    fc.assert(
      fc.property(quotas, fc.array(fc.nat(2_000), { maxLength: 30 }), (quota, waits) => {
        const time = new Time();
        const buckets = new TokenBuckets(time);
        for (const waitMs of waits) {
          time.at += waitMs;
          let verdict = buckets.take('key', quota);
          while (verdict.admitted) verdict = buckets.take('key', quota);
          expect(verdict.nextInMs).toBeGreaterThan(0);
          time.at += verdict.nextInMs - 1;
          expect(buckets.look('key', quota).admitted).toBe(false);
          time.at += 1;
          expect(buckets.take('key', quota).admitted).toBe(true);
        }
      }),
    );
  });

  it('does not make callers wait for a clock that was set back', () => {
    const time = new Time();
    const buckets = new TokenBuckets(time);
    for (let i = 0; i < 3; i++) buckets.take('a', HEARTBEAT);
    time.at -= 3_600_000;
    expect(buckets.take('a', HEARTBEAT)).toMatchObject({ admitted: false, nextInMs: 10_000 });
    time.at += 10_000;
    expect(buckets.take('a', HEARTBEAT).admitted).toBe(true);
  });

  const hourly = { limit: 1, periodMs: 3_600_000, burst: 1 };

  it('drops full buckets and no others', () => {
    const time = new Time();
    const buckets = new TokenBuckets(time, 100);
    // The oldest of all, and the only one that is not full when the others come.
    buckets.take('busy', hourly);
    for (let i = 0; i < 99; i++) buckets.take(`first ${i}`, HEARTBEAT);
    time.at += 60_000;
    for (let i = 0; i < 99; i++) buckets.take(`second ${i}`, HEARTBEAT);
    expect(buckets.size).toBeLessThanOrEqual(100);
    expect(buckets.look('busy', hourly).admitted).toBe(false);
    expect(buckets.look('second 0', HEARTBEAT).remaining).toBe(2);
  });

  it('keeps all debts however many keys come: new keys share a limited number of buckets until there is room', () => {
    const time = new Time();
    const buckets = new TokenBuckets(time, 100);
    const before = Array.from({ length: 100 }, (_, i) => `before ${i}`);
    for (const key of before) buckets.take(key, hourly);
    let admitted = 0;
    for (let i = 0; i < 50_000; i++) if (buckets.take(`stranger ${i}`, hourly).admitted) admitted++;
    for (const key of before) expect([key, buckets.take(key, hourly).admitted]).toEqual([key, false]);
    expect(buckets.size).toBeLessThanOrEqual(100 + 4_096);
    expect(admitted).toBeGreaterThan(1_000);
    expect(admitted).toBeLessThanOrEqual(4_096);
    // A key that gets a bucket of its own keeps the debt of the shared one.
    time.at += 3_599_999;
    expect(buckets.take('stranger 0', hourly).admitted).toBe(false);
    time.at += 1;
    for (let i = 0; i < 100; i++) expect(buckets.take(`after ${i}`, hourly).admitted).toBe(true);
    expect(buckets.take('after 0', hourly).admitted).toBe(false);
  });
});
