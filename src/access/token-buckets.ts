import type { Clock } from '../clock';
import type { Transaction } from '../database/statements';
import type { Quota } from '../settings';

/** How many buckets are kept for keys that any client can invent. One takes about 150 bytes. */
const MAX_ANONYMOUS = 200_000;

/** How many buckets are checked whenever one is added, to drop those that are full again. */
const SWEEP = 4;

/** How many shared buckets each quota has for new callers if there is no room for their own. */
const OVERFLOW = 4_096;

/** A bucket's answer to a request. */
export interface Verdict {
  /** Whether the request is admitted. */
  readonly admitted: boolean;
  /** How many more requests would be admitted now. */
  readonly remaining: number;
  /** How long until the bucket has one more token, in ms; 0 if it is full. A refused request would be admitted then. */
  readonly nextInMs: number;
}

/** Token buckets by key. */
export interface Buckets {
  /**
   * Takes a token if there is one. A refusal takes nothing.
   * @param within the unit of work that takes it; its caller gives the token back if the unit is rolled back
   */
  take(key: string, quota: Quota, within?: Transaction): Verdict | Promise<Verdict>;

  /** Returns what {@link take} would return, but takes nothing. */
  look(key: string, quota: Quota): Verdict | Promise<Verdict>;

  /** Returns a token that was taken in a unit of work that was rolled back. */
  giveBack(key: string, quota: Quota): void;
}

/**
 * A bucket by the generic cell rate algorithm (GCRA): each request adds a period to its debt, and time reduces it. Debt is
 * counted in 1/limit of a millisecond, so that every quota is exact in integers.
 */
interface Bucket {
  debt: number;
  at: number;
  readonly quota: Quota;
}

/**
 * Token buckets in the memory of this process: `burst` requests at once, then `limit` in each period. Their number is limited,
 * but no debt is lost: only full buckets are dropped, which equal missing ones. If none is full, new keys share buckets until
 * there is room.
 */
export class TokenBuckets implements Buckets {
  private readonly buckets = new SweptMap();
  /** The shared buckets of keys without a bucket of their own. */
  private readonly overflow = new SweptMap();

  /** @param max how many buckets are kept; infinite if there is at most one for each authenticated caller */
  constructor(
    private readonly clock: Pick<Clock, 'now'>,
    private readonly max = MAX_ANONYMOUS,
  ) {}

  /** How many buckets are kept. */
  get size(): number {
    return this.buckets.size + this.overflow.size;
  }

  take(key: string, quota: Quota): Verdict {
    const bucket = this.own(key) ?? this.add(key, quota);
    const admitted = bucket.debt + quota.periodMs <= quota.burst * quota.periodMs;
    if (admitted) bucket.debt += quota.periodMs;
    return verdictOf(admitted, bucket.debt, quota);
  }

  look(key: string, quota: Quota): Verdict {
    const debt = (this.own(key) ?? this.shared(key, quota))?.debt ?? 0;
    return verdictOf(debt + quota.periodMs <= quota.burst * quota.periodMs, debt, quota);
  }

  giveBack(key: string, quota: Quota): void {
    const bucket = this.own(key) ?? this.shared(key, quota);
    if (bucket) bucket.debt = Math.max(0, bucket.debt - quota.periodMs);
  }

  private own(key: string): Bucket | undefined {
    return this.settled(this.buckets.get(key));
  }

  private shared(key: string, quota: Quota): Bucket | undefined {
    return this.overflow.size === 0 ? undefined : this.settled(this.overflow.get(sharedKey(key, quota)));
  }

  /** Updates a bucket's debt to the present. */
  private settled(bucket: Bucket | undefined): Bucket | undefined {
    if (bucket) {
      const now = this.clock.now();
      bucket.debt = debtAt(bucket, now);
      // Also if the clock was set back: the bucket must not wait until the clock has caught up.
      bucket.at = now;
    }
    return bucket;
  }

  /** Adds a bucket for a key that has none. It starts with the debt of the bucket that the key shared, if it did. */
  private add(key: string, quota: Quota): Bucket {
    const now = this.clock.now();
    this.buckets.sweep(now);
    this.overflow.sweep(now);
    const shared = this.shared(key, quota);
    const hasRoom = this.buckets.size < this.max;
    if (shared && !hasRoom) return shared;
    const bucket = { debt: shared?.debt ?? 0, at: now, quota };
    if (hasRoom) this.buckets.set(key, bucket);
    else this.overflow.set(sharedKey(key, quota), bucket);
    return bucket;
  }
}

/** A map that checks a few buckets whenever one is added, and drops those that are full again. */
class SweptMap extends Map<string, Bucket> {
  private cursor = this.entries();

  /** Checks the next few buckets. It checks more than are added, so every bucket is checked in time. */
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

/** Chooses a shared bucket by FNV-1a; any hash that spreads the keys would do. */
function sharedKey(key: string, { limit, periodMs, burst }: Quota): string {
  let hash = 0x811c9dc5;
  for (let i = 0; i < key.length; i++) hash = Math.imul(hash ^ key.charCodeAt(i), 0x01000193);
  return `${limit}/${periodMs},${burst}#${(hash >>> 0) % OVERFLOW}`;
}

function debtAt(bucket: Bucket, now: number): number {
  return Math.max(0, bucket.debt - Math.max(0, now - bucket.at) * bucket.quota.limit);
}

/** Builds the answer of a bucket from its debt after the request, in 1/limit of a millisecond. */
export function verdictOf(admitted: boolean, debt: number, { limit, periodMs, burst }: Quota): Verdict {
  const free = burst * periodMs - debt;
  const remaining = Math.floor(free / periodMs);
  const nextInMs = remaining >= burst ? 0 : Math.ceil(((remaining + 1) * periodMs - free) / limit);
  return { admitted, remaining, nextInMs };
}
