import type { Statements } from './statements';

/** Two replicas' clocks differ by less than this, in milliseconds. An instant further ahead means that a clock was set back. */
export const MAX_SKEW_MS = 10_000;

/** Requests for one token bucket: it holds `burst` tokens and gets `rate` back in each `periodMs` milliseconds. */
export interface BucketRequests {
  readonly key: string;
  /** How many requests ask for a token each. */
  readonly asked: number;
  readonly rate: number;
  readonly periodMs: number;
  readonly burst: number;
}

/** What a bucket owes, in 1/rate of a millisecond, since an instant in milliseconds. */
export interface BucketDebt {
  readonly debt: number;
  readonly rate: number;
  readonly settledAt: number;
}

/** A bucket after requests took from it; its rate is the one of the requests. */
export interface TakenBucket extends Omit<BucketDebt, 'rate'> {
  readonly key: string;
  /** How many of the requests got a token. */
  readonly admitted: number;
}

/** Token buckets in the database, by the generic cell rate algorithm (GCRA), from which all replicas take. */
export interface BucketTable {
  /**
   * Takes from all these buckets in one statement; its answer need not survive a crash of the database.
   * @param requests at most one entry for each key
   * @param now the instant in milliseconds
   * @param within the unit of work that takes, so that its rollback gives the tokens back; alone if left out
   */
  take(
    requests: readonly BucketRequests[],
    now: number,
    within?: Pick<Statements, 'rows'>,
  ): Promise<TakenBucket[]>;

  /** Reads a bucket; undefined if nobody has taken from it lately. */
  find(key: string): Promise<BucketDebt | undefined>;

  /** Deletes buckets that have been full since `before`: a full one is the same as none. @returns how many, up to `limit` */
  purge(before: number, limit: number): Promise<number>;
}
