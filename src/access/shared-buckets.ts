import { boundedCache } from '../bounded-cache';
import type { Clock } from '../clock';
import { type BucketTable, MAX_SKEW_MS, type TakenBucket } from '../database/bucket-table';
import type { Transaction } from '../database/statements';
import type { Quota } from '../settings';
import { SerialBatcher } from './serial-batcher';
import { type Buckets, type Verdict, verdictOf } from './token-buckets';

/** How many empty buckets are remembered; all others are read from the database. */
const MAX_EMPTY = 100_000;

/** A request for a token. */
interface Take {
  readonly key: string;
  readonly quota: Quota;
}

/** Takes tokens for many requests with one statement at a time: requests that arrive meanwhile share the next one. */
export class BucketStatements extends SerialBatcher<Take, Verdict> {
  constructor(table: BucketTable, clock: Pick<Clock, 'now'>) {
    super((takes) => takeAll(table, clock, takes));
  }
}

/**
 * Token buckets that all replicas share, as exact as {@link TokenBuckets}. A bucket known to be empty refuses without a
 * statement, because only time refills it; so a flood does not load the database.
 */
export class SharedBuckets implements Buckets {
  /** Empty buckets, with the instant when that was read and the instant when they admit the next request. */
  private readonly empty = boundedCache<string, { since: number; until: number }>(MAX_EMPTY);

  constructor(
    private readonly table: BucketTable,
    private readonly clock: Pick<Clock, 'now'>,
    private readonly statements: BucketStatements,
  ) {}

  take(key: string, quota: Quota, within?: Transaction): Verdict | Promise<Verdict> {
    return this.refusal(key) ?? (within ? this.takeWithin(within, key, quota) : this.takeAlone(key, quota));
  }

  look(key: string, quota: Quota): Verdict | Promise<Verdict> {
    return this.refusal(key) ?? this.read(key, quota);
  }

  /** Does nothing: the rollback gave the token back. */
  giveBack(): void {}

  /** The refusal of a bucket that is known to be empty. */
  private refusal(key: string): Verdict | undefined {
    const known = this.empty.get(key);
    if (!known) return undefined;
    const now = this.clock.now();
    // If the clock was set back, the remaining time is unknown.
    if (now >= known.since && now < known.until)
      return { admitted: false, remaining: 0, nextInMs: known.until - now };
    this.empty.delete(key);
    return undefined;
  }

  /** Makes an empty bucket refuse from memory until it holds a token again. */
  private remember(key: string, { remaining, nextInMs }: Verdict): void {
    if (remaining > 0) return;
    const since = this.clock.now();
    this.empty.set(key, { since, until: since + nextInMs });
  }

  private async takeAlone(key: string, quota: Quota): Promise<Verdict> {
    const verdict = await this.statements.run({ key, quota });
    this.remember(key, verdict);
    return verdict;
  }

  private async takeWithin(tx: Transaction, key: string, quota: Quota): Promise<Verdict> {
    const [verdict] = (await takeAll(this.table, this.clock, [{ key, quota }], tx)) as [Verdict];
    // A token that was taken may come back by a rollback, but a refusal is final: other units hold the row's lock until they
    // commit.
    if (!verdict.admitted) this.remember(key, verdict);
    return verdict;
  }

  private async read(key: string, quota: Quota): Promise<Verdict> {
    const now = this.clock.now();
    const { debt, rate, settledAt } = (await this.table.find(key)) ?? { debt: 0, rate: 1, settledAt: now };
    const capacity = quota.burst * quota.periodMs;
    // If the quota was changed, the debt is in the unit of the old rate.
    const before = Math.min(capacity, rate === quota.limit ? debt : Math.ceil((debt * quota.limit) / rate));
    const owed = Math.max(0, before - Math.max(0, now - settledAt) * quota.limit);
    const aheadMs = Math.min(MAX_SKEW_MS, Math.max(0, settledAt - now));
    return verdictAhead(owed + quota.periodMs <= capacity, owed, aheadMs, quota);
  }
}

/** Takes a token for each request, first come, first served. @returns a verdict for each, in their order */
async function takeAll(
  table: BucketTable,
  clock: Pick<Clock, 'now'>,
  takes: readonly Take[],
  within?: Transaction,
): Promise<Verdict[]> {
  const asked = new Map<string, { asked: number; quota: Quota }>();
  for (const { key, quota } of takes) asked.set(key, { asked: (asked.get(key)?.asked ?? 0) + 1, quota });
  const requests = Array.from(
    asked,
    ([
      key,
      {
        asked,
        quota: { limit: rate, periodMs, burst },
      },
    ]) => ({
      ...{ key, asked, rate, periodMs, burst },
    }),
  );
  const taken = await table.take(requests, clock.now(), within);
  const now = clock.now();
  const left = new Map(taken.map((bucket) => [bucket.key, { bucket, admitted: bucket.admitted }]));
  return takes.map(({ key, quota }) => {
    const rest = left.get(key) as { bucket: TakenBucket; admitted: number };
    const admitted = rest.admitted > 0;
    if (admitted) rest.admitted--;
    // The debt after this request, and before the ones admitted after it.
    const debt = rest.bucket.debt - rest.admitted * quota.periodMs;
    return verdictAhead(admitted, debt, rest.bucket.settledAt - now, quota);
  });
}

/** @param aheadMs how far the bucket's instant is ahead of now, in ms: it refills from then on */
function verdictAhead(admitted: boolean, debt: number, aheadMs: number, quota: Quota): Verdict {
  const verdict = verdictOf(admitted, debt, quota);
  return verdict.nextInMs === 0 ? verdict : { ...verdict, nextInMs: Math.max(1, verdict.nextInMs + aheadMs) };
}
