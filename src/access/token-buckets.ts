import type { ThrottlerStorage } from '@nestjs/throttler';
import type { Clock } from '../clock';
import type { Transaction } from '../database/statements';
import type { Quota } from '../settings';

/** So many buckets are kept. One takes about 150 bytes. */
const MAX_BUCKETS = 200_000;

/** How many buckets are looked at to find one that can go. */
const EVICTION_SAMPLE = 16;

/** What a bucket says to a request. */
export interface Verdict {
  /** Whether the request is let in. */
  readonly admitted: boolean;
  /** How many more requests are let in at once. */
  readonly remaining: number;
  /** Milliseconds until there is one more; 0 when the bucket is full. A request that was refused is let in then. */
  readonly nextInMs: number;
}

/** Where the quotas of agents and hostnames are kept: in this process, or where all replicas take from them. */
export abstract class QuotaBuckets {
  /**
   * Takes one request's worth where there is that much. A refusal takes nothing.
   * @param within the unit of work that it belongs to; a caller whose unit is undone gives it back
   */
  abstract take(key: string, quota: Quota, within?: Transaction): Verdict | Promise<Verdict>;

  /** Tells what {@link take} would, and takes nothing. */
  abstract look(key: string, quota: Quota): Verdict | Promise<Verdict>;

  /** Gives back what one request took in a unit of work that was undone. */
  abstract giveBack(key: string, quota: Quota): void;
}

/** What {@link ThrottlerStorage.increment} answers; times are whole seconds. */
type StorageRecord = Awaited<ReturnType<ThrottlerStorage['increment']>>;

/**
 * What a bucket owes at an instant, by the generic cell rate algorithm: each request adds a period, time takes it away.
 * It is counted in 1/limit of a millisecond, so that every quota is exact in integers: no rate is a fraction.
 */
interface Bucket {
  debt: number;
  at: number;
  readonly quota: Quota;
}

/**
 * Token buckets by key, as exact as the clock: `burst` requests at once, `limit` in each period after. They are bounded
 * in number: a bucket that has run full is the same as none, so those go first.
 */
export class TokenBuckets implements ThrottlerStorage, QuotaBuckets {
  private readonly buckets = new Map<string, Bucket>();

  /** @param max how many buckets are kept at the most */
  constructor(
    private readonly clock: Pick<Clock, 'now'>,
    private readonly max = MAX_BUCKETS,
  ) {}

  /** How many buckets are kept. */
  get size(): number {
    return this.buckets.size;
  }

  /** Takes one request's worth where there is that much. A refusal takes nothing. */
  take(key: string, quota: Quota): Verdict {
    let bucket = this.settled(key);
    const admitted = bucket === undefined || bucket.debt + quota.periodMs <= quota.burst * quota.periodMs;
    if (bucket === undefined) {
      this.makeRoom();
      bucket = { debt: 0, at: this.clock.now(), quota };
      this.buckets.set(key, bucket);
    }
    if (admitted) bucket.debt += quota.periodMs;
    return verdictOf(admitted, bucket.debt, quota);
  }

  /** Tells what {@link take} would, and takes nothing. */
  look(key: string, quota: Quota): Verdict {
    const debt = this.settled(key)?.debt ?? 0;
    return verdictOf(debt + quota.periodMs <= quota.burst * quota.periodMs, debt, quota);
  }

  /** Gives back what one request took; a bucket never holds more than its burst. */
  giveBack(key: string, quota: Quota): void {
    const bucket = this.settled(key);
    if (bucket) bucket.debt = Math.max(0, bucket.debt - quota.periodMs);
  }

  /**
   * The same for throttlers of the library: `limit` requests at once and `limit` in each `ttl` milliseconds. A throttler
   * of the rate N in P with the burst B is the limit B with the ttl B * P / N.
   */
  increment(key: string, ttl: number, limit: number): Promise<StorageRecord> {
    const verdict = this.take(key, { limit, periodMs: ttl, burst: limit });
    const seconds = Math.ceil(verdict.nextInMs / 1_000);
    return Promise.resolve({
      totalHits: verdict.admitted ? limit - verdict.remaining : limit + 1,
      timeToExpire: seconds,
      isBlocked: !verdict.admitted,
      timeToBlockExpire: verdict.admitted ? 0 : seconds,
    });
  }

  /** The bucket with what it owes now. */
  private settled(key: string): Bucket | undefined {
    const bucket = this.buckets.get(key);
    if (bucket) {
      const now = this.clock.now();
      bucket.debt = debtAt(bucket, now);
      // Also when the clock went back: the bucket must not wait until it has caught up.
      bucket.at = now;
    }
    return bucket;
  }

  /** Drops the oldest bucket that has run full; where none of a few has, the one among them that is nearest to it. */
  private makeRoom(): void {
    if (this.buckets.size < this.max) return;
    const now = this.clock.now();
    let nearest: { key: string; waitMs: number } | undefined;
    let looked = 0;
    for (const [key, bucket] of this.buckets) {
      const waitMs = debtAt(bucket, now) / bucket.quota.limit;
      if (!nearest || waitMs < nearest.waitMs) nearest = { key, waitMs };
      if (nearest.waitMs === 0 || ++looked === EVICTION_SAMPLE) break;
      // To the end of the order, so that the next search looks at others.
      this.buckets.delete(key);
      this.buckets.set(key, bucket);
    }
    if (nearest) this.buckets.delete(nearest.key);
  }
}

function debtAt(bucket: Bucket, now: number): number {
  return Math.max(0, bucket.debt - Math.max(0, now - bucket.at) * bucket.quota.limit);
}

/** What a bucket says that owes so much, in 1/limit of a millisecond, after the request. */
export function verdictOf(admitted: boolean, debt: number, { limit, periodMs, burst }: Quota): Verdict {
  const free = burst * periodMs - debt;
  const remaining = Math.floor(free / periodMs);
  const nextInMs = remaining >= burst ? 0 : Math.ceil(((remaining + 1) * periodMs - free) / limit);
  return { admitted, remaining, nextInMs };
}
