/** How far ahead a start is granted, in µs. */
export const AHEAD_US = 1_000_000;
/** The length of a bucket of starts, in µs. */
const BUCKET_US = 25_000;
/** Buckets of a second. Any second touches one more. */
const BUCKETS = 1_000_000 / BUCKET_US;
/** Below this rate, in starts per 1,000 s, no second has two starts, and starts are kept apart. */
const ONE_PER_SECOND = 1_000;

/** The time between two starts at a rate, in µs, rounded up so that the rate is never exceeded. */
export const intervalUs = (rate: number): number => Math.ceil(1_000_000_000 / rate);

/** The starts of a window with a rate. Instants are in µs since the epoch. */
export interface Starts {
  /** Returns the earliest instant from `atUs` on at which a start keeps the rate; infinite if that is too far ahead. */
  earliest(atUs: number): number;
  /** Records a start that {@link earliest} allowed. */
  take(atUs: number): void;
  /** Returns how many starts may be granted now, or a few more than that. */
  room(): number;
}

/**
 * Starts that are kept apart by the rate's interval, for one target: any second has at most rate + 1 of them, and no
 * bursts.
 */
export class SpacedStarts implements Starts {
  private readonly intervalUs: number;
  private lastUs = 0;
  private readonly nowUs: number;

  /**
   * @param rate in starts per 1,000 s
   * @param nextUs the earliest next start
   * @param now in ms since the epoch
   */
  constructor(
    rate: number,
    private nextUs: number,
    now: number,
  ) {
    this.intervalUs = intervalUs(rate);
    this.nowUs = now * 1_000;
  }

  /** The last start that was taken; 0 if there was none. */
  get last(): number {
    return this.lastUs;
  }

  earliest(atUs: number): number {
    const start = Math.max(atUs, this.nextUs);
    return start > this.nowUs + AHEAD_US ? Number.POSITIVE_INFINITY : start;
  }

  take(atUs: number): void {
    this.lastUs = atUs;
    this.nextUs = atUs + this.intervalUs;
  }

  room(): number {
    const aheadUs = this.nowUs + AHEAD_US - Math.max(this.nowUs, this.nextUs);
    return aheadUs < 0 ? 0 : Math.floor(aheadUs / this.intervalUs) + 1;
  }
}

/**
 * Starts that are counted in buckets, for everything or a kind: a start of a target that is paced itself may lie ahead, and must
 * not keep others from starting before it. Any second has at most rate + 1 of them, and in the long run there are no more than the
 * rate: each takes the next place of {@link SpacedStarts}, though it may start before or after that.
 */
export class CountedStarts implements Starts {
  private readonly places: SpacedStarts;
  private readonly nowUs: number;
  private readonly isSpaced: boolean;
  private readonly first: number;
  /** Counts of the last second's buckets, the present one, and those ahead. */
  private readonly counts: number[];
  private readonly inSecond: number;
  private readonly inBucket: number;
  /** Before this bucket there is no room. */
  private hint: number;

  /**
   * @param rate in starts per 1,000 s
   * @param nextUs the earliest next place
   * @param text what {@link text} returned after the last start, whatever the rate was then; null if there was none
   * @param now in ms since the epoch
   */
  constructor(rate: number, nextUs: number, text: string | null, now: number) {
    this.places = new SpacedStarts(rate, nextUs, now);
    this.nowUs = now * 1_000;
    this.isSpaced = rate < ONE_PER_SECOND;
    this.inSecond = Math.floor(rate / 1_000) + 1;
    this.inBucket = Math.ceil(rate / 1_000 / BUCKETS) + 1;
    const [begin, ...counts] = text === null ? [0] : (JSON.parse(text) as [number, ...number[]]);
    // A unit that waited for a lock may be of an earlier instant than the last one that had it.
    const present = Math.max(bucketOf(this.nowUs), begin + BUCKETS);
    this.first = present - BUCKETS;
    this.hint = present;
    this.counts = Array<number>(2 * BUCKETS + 1).fill(0);
    for (const [i, count] of counts.entries()) {
      const at = begin + i - this.first;
      if (at >= 0) this.counts[at] = count;
    }
  }

  /** The last place that was taken; 0 if there was none. */
  get last(): number {
    return this.places.last;
  }

  /** The counts, as JSON. */
  get text(): string {
    const last = this.counts.findLastIndex((count) => count > 0);
    return JSON.stringify([this.first, ...this.counts.slice(0, last + 1)]);
  }

  earliest(atUs: number): number {
    const placeUs = this.places.earliest(this.nowUs);
    if (placeUs === Number.POSITIVE_INFINITY) return placeUs;
    const fromUs = this.isSpaced ? Math.max(atUs, placeUs) : atUs;
    for (let at = Math.max(bucketOf(fromUs), this.hint) - this.first; at < this.counts.length; at++) {
      const bucket = this.first + at;
      if (this.hasRoom(at)) return Math.max(fromUs, bucket * BUCKET_US);
      if (bucket === this.hint) this.hint++;
    }
    return Number.POSITIVE_INFINITY;
  }

  take(atUs: number): void {
    const at = bucketOf(atUs) - this.first;
    this.counts[at] = (this.counts[at] ?? 0) + 1;
    this.places.take(this.isSpaced ? atUs : this.places.earliest(this.nowUs));
  }

  room(): number {
    const inSecond = Math.max(0, this.inSecond - this.sum(BUCKETS, 2 * BUCKETS));
    return Math.min(inSecond, this.places.room());
  }

  /** Whether a bucket, and each second with it, can take one more. */
  private hasRoom(at: number): boolean {
    if ((this.counts[at] ?? 0) >= this.inBucket) return false;
    const begin = Math.max(0, at - BUCKETS);
    let sum = this.sum(begin, begin + BUCKETS);
    for (let from = begin; ; from++) {
      if (sum >= this.inSecond) return false;
      if (from === at) return true;
      sum += (this.counts[from + BUCKETS + 1] ?? 0) - (this.counts[from] ?? 0);
    }
  }

  private sum(from: number, to: number): number {
    let sum = 0;
    for (let at = from; at <= to; at++) sum += this.counts[at] ?? 0;
    return sum;
  }
}

const bucketOf = (atUs: number): number => Math.floor(atUs / BUCKET_US);
