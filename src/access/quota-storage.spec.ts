import fc from 'fast-check';
import type { BucketTable } from '../database/bucket-table';
import { QuotaStorage, quotaKey } from './quota-storage';

class Time {
  constructor(public at = 1_767_225_600_000) {}
  now = () => this.at;
}

/** 6 a minute, 3 at once: an empty bucket fills in 30 s. */
const HEARTBEAT = [30_000, 3] as const;
const HOURLY = [3_600_000, 1] as const;

const AGENT = quotaKey('agent:1', 'heartbeat');

function start(buckets?: BucketTable) {
  const time = new Time();
  return { time, storage: new QuotaStorage(time, { buckets }) };
}

describe('QuotaStorage', () => {
  it('answers as a storage of @nestjs/throttler: whole seconds, rounded up, and one hit more than the limit if refused', async () => {
    const { time, storage } = start();
    const hit = () => storage.increment(AGENT, ...HEARTBEAT, 0, 'heartbeat');
    expect(await hit()).toEqual({ totalHits: 1, timeToExpire: 10, isBlocked: false, timeToBlockExpire: 0 });
    await hit();
    await hit();
    time.at += 1;
    expect(await hit()).toEqual({ totalHits: 4, timeToExpire: 10, isBlocked: true, timeToBlockExpire: 10 });
    time.at += 9_999;
    expect(await hit()).toMatchObject({ totalHits: 3, isBlocked: false });
  });

  it('peeks without taking, and refunds tokens', async () => {
    const { storage } = start();
    expect(await storage.peek(AGENT, ...HOURLY)).toMatchObject({ totalHits: 0, isBlocked: false });
    await storage.increment(AGENT, ...HOURLY);
    expect(await storage.peek(AGENT, ...HOURLY)).toMatchObject({ isBlocked: true, timeToBlockExpire: 3_600 });
    storage.decrement(AGENT, ...HOURLY);
    expect(await storage.increment(AGENT, ...HOURLY)).toMatchObject({ isBlocked: false });
  });

  it('keeps every rate to the millisecond, also if the bucket does not fill in a whole number of them', async () => {
    const rates = fc.record({
      rate: fc.integer({ min: 1, max: 1_000 }),
      periodMs: fc.constantFrom(1_000, 7_000, 60_000, 3_600_000),
      burst: fc.integer({ min: 1, max: 20 }),
    });
    await fc.assert(
      fc.asyncProperty(rates, fc.array(fc.nat(5_000), { maxLength: 40 }), async (quota, waits) => {
        const { rate, periodMs, burst } = quota;
        const { time, storage } = start();
        const full = BigInt(burst * periodMs);
        let tokens = full;
        for (const waitMs of waits) {
          time.at += waitMs;
          tokens += BigInt(waitMs * rate);
          if (tokens > full) tokens = full;
          const isBlocked = tokens < BigInt(periodMs);
          if (!isBlocked) tokens -= BigInt(periodMs);
          const record = await storage.increment(AGENT, (burst * periodMs) / rate, burst);
          expect(record.isBlocked).toBe(isBlocked);
          if (!isBlocked) expect(burst - record.totalHits).toBe(Number(tokens / BigInt(periodMs)));
        }
      }),
    );
  });

  it('counts what settings can name at most, and at least', async () => {
    // 10^9 a second, one in 10^6 days, and the largest burst for a second and for a quarter of a day.
    for (const [rate, periodMs, burst] of [
      [999_999_999, 1_000, 1],
      [1, 8.64e13, 1],
      [7, 1_000, 999_999_999],
      [999_999_937, 9_000_000, 999_999_999],
    ] as const) {
      const { time, storage } = start();
      const hit = () => storage.increment(AGENT, (burst * periodMs) / rate, burst);
      expect(await hit()).toMatchObject({ totalHits: 1, isBlocked: false });
      for (let i = 1; i < Math.min(burst, 5); i++) await hit();
      if (burst > 1) continue;
      expect(await hit()).toMatchObject({ isBlocked: true });
      time.at += Math.ceil(periodMs / rate);
      expect(await hit()).toMatchObject({ isBlocked: false });
    }
  });

  it('refills no agent, however many strangers come', async () => {
    const { storage } = start();
    await storage.increment(AGENT, ...HOURLY);
    await storage.increment(quotaKey('address:192.0.2.1', 'public'), ...HOURLY);
    for (let i = 0; i < 250_000; i++) void storage.increment(quotaKey(`host:${i}`, 'register'), ...HOURLY);
    expect(await storage.increment(AGENT, ...HOURLY)).toMatchObject({ isBlocked: true });
    const address = await storage.increment(quotaKey('address:192.0.2.1', 'public'), ...HOURLY);
    expect(address).toMatchObject({ isBlocked: true });
  });

  it('asks the database for the buckets of agents and registrations alone', async () => {
    const asked: string[] = [];
    const table: BucketTable = {
      take: async (requests, now) =>
        requests.map(({ key, periodMs }) => {
          asked.push(key);
          return { key, debt: periodMs, settledAt: now, admitted: 1 };
        }),
      find: async () => undefined,
      purge: async () => 0,
    };
    const { storage } = start(table);
    const shared = ['agent:1:claim', 'host:a:register', 'nameless:192.0.2.1:register', 'all:register-total'];
    for (const key of [...shared, 'operator:1:operator', 'address:192.0.2.1:public'])
      expect(await storage.increment(key, ...HEARTBEAT)).toMatchObject({ totalHits: 1, isBlocked: false });
    expect(asked).toEqual(shared);
  });
});
