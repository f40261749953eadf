import type { ThrottlerStorage } from '@nestjs/throttler';
import { LRUCache } from 'lru-cache';
import type { Clock } from '../clock';
import type { Quota } from '../settings';

/** So many buckets are kept. Only those that are not full need to be, so it takes that many busy callers to lose one. */
const MAX_BUCKETS = 200_000;

/** What a bucket says to one more request. */
export interface Verdict {
  admitted: boolean;
  /** How many requests would be let in now. */
  remaining: number;
  /** After how many milliseconds one more would be let in; 0 where it would be now. */
  retryAfterMs: number;
  /** After how many milliseconds the bucket is full again. */
  fullAfterMs: number;
}

/**
 * Token buckets by the generic cell rate algorithm: of each bucket only the instant at which it is full again is kept.
 * Source: ITU-T I.371, virtual scheduling. Exact within the process.
 */
export class TokenBuckets implements ThrottlerStorage {
  private readonly fullAt = new LRUCache<string, number>({ max: MAX_BUCKETS });

  constructor(private readonly clock: Clock) {}

  /** Takes a token where there is one. A request that is refused costs nothing. */
  take(key: string, quota: Quota): Verdict {
    return this.judge(key, quota, true);
  }

  /** Tells what {@link take} would, and takes nothing. */
  look(key: string, quota: Quota): Verdict {
    return this.judge(key, quota, false);
  }

  /** Gives a token back that was taken. */
  giveBack(key: string, quota: Quota): void {
    const fullAt = this.fullAt.get(key);
    if (fullAt !== undefined) this.fullAt.set(key, fullAt - intervalMs(quota));
  }

  /** The throttler's own door to the buckets: `limit` at once, of which all are back after `ttl` milliseconds. */
  increment(key: string, ttl: number, limit: number) {
    const verdict = this.take(key, { limit, periodMs: ttl, burst: limit });
    return Promise.resolve({
      totalHits: limit - verdict.remaining + (verdict.admitted ? 0 : 1),
      timeToExpire: Math.ceil(verdict.fullAfterMs / 1_000),
      isBlocked: !verdict.admitted,
      timeToBlockExpire: Math.ceil(verdict.retryAfterMs / 1_000),
    });
  }

  private judge(key: string, quota: Quota, take: boolean): Verdict {
    const now = this.clock.now();
    const interval = intervalMs(quota);
    const capacityMs = interval * quota.burst;
    // A clock that was set back must not lock anyone out for longer than an empty bucket would.
    const before = Math.min(Math.max(this.fullAt.get(key) ?? now, now), now + capacityMs);
    const after = before + interval;
    const admitted = after - now <= capacityMs + ROUNDING_MS;
    const fullAt = admitted && take ? after : before;
    if (admitted && take) this.fullAt.set(key, fullAt);
    const freeMs = now + capacityMs - fullAt + ROUNDING_MS;
    return {
      admitted,
      remaining: Math.max(0, Math.floor(freeMs / interval)),
      retryAfterMs: Math.max(0, fullAt + interval - now - capacityMs),
      fullAfterMs: Math.max(0, fullAt - now),
    };
  }
}

/** What sums of fractions of a millisecond may be off by. */
const ROUNDING_MS = 1e-3;

const intervalMs = (quota: Quota): number => quota.periodMs / quota.limit;
