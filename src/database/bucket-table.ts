import type { Statements } from './statements';

/**
 * Two replicas' clocks differ by less than this, in milliseconds. An instant further ahead means that a clock was set
 * back.
 */
export const MAX_SKEW_MS = 10_000;

/** Requests to one token bucket: it holds `burst` tokens and gains `rate` in each `periodMs` milliseconds. */
export interface BucketRequests {
  readonly key: string;
  /** The number of requests, of one token each. */
  readonly asked: number;
  readonly rate: number;
  readonly periodMs: number;
  readonly burst: number;
}

/** The debt of a bucket in 1/rate of a millisecond, and its instant in milliseconds. */
export interface BucketDebt {
  readonly debt: number;
  readonly rate: number;
  readonly settledAt: number;
}

/** A bucket after requests were charged to it; its rate is that of the requests. */
export interface TakenBucket extends Omit<BucketDebt, 'rate'> {
  readonly key: string;
  /** The number of requests that got a token. */
  readonly admitted: number;
}

/** Token buckets in the database, by the generic cell rate algorithm (GCRA), shared by all replicas. */
export interface BucketTable {
  /**
   * Charges all requests, mostly in one statement. The result need not survive a crash of the database.
   * @param requests at most one entry for each key
   * @param now the instant in milliseconds
   * @param within the unit of work to charge in, so that its rollback returns the tokens; by default the charge commits
   * alone
   */
  take(
    requests: readonly BucketRequests[],
    now: number,
    within?: Pick<Statements, 'rows'>,
  ): Promise<TakenBucket[]>;

  /** Reads a bucket; undefined if it has no row, which means that it is full. */
  find(key: string): Promise<BucketDebt | undefined>;

  /**
   * Deletes rows of buckets that have been full since `before`: a full one equals none. @returns their number, at most
   * `limit`
   */
  purge(before: number, limit: number): Promise<number>;
}
