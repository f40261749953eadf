import type { ThrottlerStorage } from '@nestjs/throttler';
import type { Clock } from '../clock';
import type { Database } from '../database/database';
import type { Transaction } from '../database/statements';
import type { Quota } from '../settings';
import { BucketStatements, SharedBuckets } from './shared-buckets';
import { type Buckets, TokenBuckets, type Verdict } from './token-buckets';

/** The result of {@link ThrottlerStorage.increment}; times are whole seconds, rounded up. */
export type QuotaRecord = Awaited<ReturnType<ThrottlerStorage['increment']>>;

/** How many parts a fractional number of milliseconds is divided into, so that sums are exact. */
const PARTS = 2 ** 52;

/**
 * Stores the quotas of @nestjs/throttler in token buckets (GCRA). A throttler {limit, ttl} is a bucket of `limit` tokens
 * that takes `ttl` milliseconds to fill, so the quota "rate N in a period P, burst B" is the limit B with the ttl B * P / N.
 *
 * The prefix of a key decides where its bucket is:
 * - `agent:`, and the keys of registrations (`host:`, ...): shared by all replicas if the database has
 *   {@link Database.buckets}, or an agent would have its quota at each replica; else in memory until a restart;
 * - `operator:` and `address:`: in memory, for each replica, so that a flood costs the database nothing.
 * The number of buckets is limited for keys that any client can invent (hosts, addresses), separately from authenticated callers.
 */
export class QuotaStorage implements ThrottlerStorage {
  /** The buckets of agents. */
  private readonly agents: Buckets;
  /** The buckets of hostnames, and of all registrations. */
  private readonly registrations: Buckets;
  /** The buckets of addresses, in this process. */
  readonly addresses: TokenBuckets;
  /** The buckets of authenticated callers, in this process. */
  readonly callers: TokenBuckets;
  private readonly quotas = new Map<number, Map<number, Quota>>();

  constructor(clock: Pick<Clock, 'now'>, { buckets: table }: Pick<Database, 'buckets'>) {
    this.addresses = new TokenBuckets(clock);
    this.callers = new TokenBuckets(clock, Number.POSITIVE_INFINITY);
    if (table) {
      const statements = new BucketStatements(table, clock);
      this.agents = new SharedBuckets(table, clock, statements);
      this.registrations = new SharedBuckets(table, clock, statements);
    } else {
      this.agents = this.callers;
      this.registrations = new TokenBuckets(clock);
    }
  }

  /**
   * Takes a token. A refusal takes nothing.
   * @param key the caller and the quota, see {@link quotaKey}
   * @param ttl how long an empty bucket takes to fill, in ms; may be fractional
   * @param limit how many tokens the bucket holds
   * @param within the unit of work that takes it, for registrations; call {@link decrement} if that is rolled back
   */
  increment(
    key: string,
    ttl: number,
    limit: number,
    _blockDuration?: number,
    _throttlerName?: string,
    within?: Transaction,
  ): Promise<QuotaRecord> {
    return recordOf(limit, this.bucketsOf(key).take(key, this.quotaOf(ttl, limit), within));
  }

  /** Returns what {@link increment} would return, but takes nothing. */
  peek(key: string, ttl: number, limit: number): Promise<QuotaRecord> {
    return recordOf(limit, this.bucketsOf(key).look(key, this.quotaOf(ttl, limit)));
  }

  /** Returns a token that was taken in a unit of work that was rolled back. */
  decrement(key: string, ttl: number, limit: number): void {
    this.bucketsOf(key).giveBack(key, this.quotaOf(ttl, limit));
  }

  private bucketsOf(key: string): Buckets {
    if (key.startsWith('agent:')) return this.agents;
    if (key.startsWith('operator:')) return this.callers;
    return key.startsWith('address:') ? this.addresses : this.registrations;
  }

  /** Returns the quota of a throttler; computed once. */
  private quotaOf(ttl: number, limit: number): Quota {
    const known = this.quotas.get(ttl)?.get(limit);
    if (known) return known;
    const quota = quotaFrom(ttl, limit);
    this.quotas.set(ttl, (this.quotas.get(ttl) ?? new Map()).set(limit, quota));
    return quota;
  }
}

/** Builds the key of a caller's bucket: its kind and name, such as `agent:12`, and the quota's name. */
export const quotaKey = (caller: string, quota: string): string => `${caller}:${quota}`;

/** Finds the smallest integers that give `limit` tokens in `ttl` ms, because buckets count in integers. */
function quotaFrom(ttl: number, limit: number): Quota {
  if (Number.isInteger(ttl)) {
    const divisor = greatestCommonDivisor(ttl, limit);
    return { limit: limit / divisor, periodMs: ttl / divisor, burst: limit };
  }
  // 7 a minute with a burst of 3 fills in 25,714.29 ms: counted in parts so fine that the rate is off by at most limit / 2^52.
  const rate = Math.floor(PARTS / Math.max(1, ttl));
  return { limit: rate, periodMs: Math.floor((rate * ttl) / limit), burst: limit };
}

function greatestCommonDivisor(a: number, b: number): number {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}

function recordOf(limit: number, verdict: Verdict | Promise<Verdict>): Promise<QuotaRecord> {
  return verdict instanceof Promise
    ? verdict.then((known) => toRecord(limit, known))
    : Promise.resolve(toRecord(limit, verdict));
}

function toRecord(limit: number, { admitted, remaining, nextInMs }: Verdict): QuotaRecord {
  const seconds = Math.ceil(nextInMs / 1_000);
  return {
    totalHits: admitted ? limit - remaining : limit + 1,
    timeToExpire: seconds,
    isBlocked: !admitted,
    timeToBlockExpire: admitted ? 0 : seconds,
  };
}
