import type { ThrottlerStorage } from '@nestjs/throttler';
import type { Clock } from '../clock';
import type { Transaction } from '../database/statements';
import type { Quota } from '../settings';

/** So many buckets of strangers are kept. One takes about 150 bytes. */
const MAX_STRANGERS = 200_000;

/** How many buckets are looked at, at each new one, to find those that have run full. */
const SWEEP = 4;

/** Over how many buckets, for each quota, those are spread for whom there is no room. */
const OVERFLOW = 4_096;

/** What a bucket says to a request. */
export interface Verdict {
  /** Whether the request is let in. */
  readonly admitted: boolean;
  /** How many more requests are let in at once. */
  readonly remaining: number;
  /** Milliseconds until there is one more; 0 when the bucket is full. A request that was refused is let in then. */
  readonly nextInMs: number;
}

/** Token buckets by key. */
export interface Buckets {
  /**
   * Takes one request's worth where there is that much. A refusal takes nothing.
   * @param within the unit of work that it belongs to; a caller whose unit is undone gives it back
   */
  take(key: string, quota: Quota, within?: Transaction): Verdict | Promise<Verdict>;

  /** Tells what {@link take} would, and takes nothing. */
  look(key: string, quota: Quota): Verdict | Promise<Verdict>;

  /** Gives back what one request took in a unit of work that was undone. */
  giveBack(key: string, quota: Quota): void;
}

/**
 * Where the quotas of agents and hostnames are kept: in this process, or where all replicas take from them. Apart from each
 * other, so that strangers, who can name any number of hosts, take no agent's place.
 */
export abstract class QuotaBuckets {
  /** By agent's id, so no more than there are agents. */
  abstract readonly agents: Buckets;
  /** By hostname, or by the address of whoever names none. */
  abstract readonly hostnames: Buckets;
}

/** The buckets of a process that is alone with its database. */
export class OwnBuckets extends QuotaBuckets {
  readonly agents: Buckets;
  readonly hostnames: Buckets;

  constructor(clock: Pick<Clock, 'now'>) {
    super();
    this.agents = new TokenBuckets(clock, Number.POSITIVE_INFINITY);
    this.hostnames = new TokenBuckets(clock);
  }
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
 * in number without forgetting what anybody owes: a bucket that has run full is the same as none, so those go; if none
 * has, new keys share buckets with each other until there is room.
 */
export class TokenBuckets implements ThrottlerStorage, Buckets {
  private readonly buckets = new Sweeping();
  /** What keys share for which there was no room. */
  private readonly overflow = new Sweeping();

  /** @param max how many buckets are kept; infinite if the keys can't be more than there are authenticated callers */
  constructor(
    private readonly clock: Pick<Clock, 'now'>,
    private readonly max = MAX_STRANGERS,
  ) {}

  /** How many buckets are kept. */
  get size(): number {
    return this.buckets.size + this.overflow.size;
  }

  /** Takes one request's worth if there is that much. A refusal takes nothing. */
  take(key: string, quota: Quota): Verdict {
    const bucket = this.own(key) ?? this.add(key, quota);
    const admitted = bucket.debt + quota.periodMs <= quota.burst * quota.periodMs;
    if (admitted) bucket.debt += quota.periodMs;
    return verdictOf(admitted, bucket.debt, quota);
  }

  /** Tells what {@link take} would, and takes nothing. */
  look(key: string, quota: Quota): Verdict {
    const debt = (this.own(key) ?? this.shared(key, quota))?.debt ?? 0;
    return verdictOf(debt + quota.periodMs <= quota.burst * quota.periodMs, debt, quota);
  }

  /** Gives back what one request took; a bucket never holds more than its burst. */
  giveBack(key: string, quota: Quota): void {
    const bucket = this.own(key) ?? this.shared(key, quota);
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

  private own(key: string): Bucket | undefined {
    return this.settled(this.buckets.get(key));
  }

  private shared(key: string, quota: Quota): Bucket | undefined {
    return this.overflow.size === 0 ? undefined : this.settled(this.overflow.get(sharedKey(key, quota)));
  }

  /** The bucket with what it owes now. */
  private settled(bucket: Bucket | undefined): Bucket | undefined {
    if (bucket) {
      const now = this.clock.now();
      bucket.debt = debtAt(bucket, now);
      // Also when the clock went back: the bucket must not wait until it has caught up.
      bucket.at = now;
    }
    return bucket;
  }

  /** A bucket for a key that has none. Who has shared one takes along what that owes. */
  private add(key: string, quota: Quota): Bucket {
    this.buckets.sweep(this.clock.now());
    this.overflow.sweep(this.clock.now());
    const shared = this.shared(key, quota);
    const hasRoom = this.buckets.size < this.max;
    if (shared && !hasRoom) return shared;
    const bucket = { debt: shared?.debt ?? 0, at: this.clock.now(), quota };
    if (hasRoom) this.buckets.set(key, bucket);
    else this.overflow.set(sharedKey(key, quota), bucket);
    return bucket;
  }
}

/** Buckets that are looked through by and by, to drop those that have run full. */
class Sweeping extends Map<string, Bucket> {
  private cursor = this.entries();

  /** Looks at the next few. More are looked at than are added, so each has its turn. */
  sweep(now: number): void {
    for (let i = 0; i < SWEEP; i++) {
      const { value, done } = this.cursor.next();
      if (done) {
        this.cursor = this.entries();
        return;
      }
      const [key, bucket] = value;
      if (debtAt(bucket, now) === 0) this.delete(key);
    }
  }
}

/** FNV-1a; any hash that spreads the keys will do. */
function sharedKey(key: string, { limit, periodMs, burst }: Quota): string {
  let hash = 0x811c9dc5;
  for (let i = 0; i < key.length; i++) hash = Math.imul(hash ^ key.charCodeAt(i), 0x01000193);
  return `${limit}/${periodMs},${burst}#${(hash >>> 0) % OVERFLOW}`;
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
