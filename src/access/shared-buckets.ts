import { Injectable } from '@nestjs/common';
import { Cron, CronExpression } from '@nestjs/schedule';
import { LRUCache } from 'lru-cache';
import type { Clock } from '../clock';
import type { Database, SharedMemory } from '../database/database';
import type { Statements, Transaction } from '../database/statements';
import type { JobRunner } from '../scheduling/job-runner';
import type { Quota } from '../settings';
import { OneAtATime } from './one-at-a-time';
import { type Buckets, QuotaBuckets, type Verdict, verdictOf } from './token-buckets';

/** So many empty buckets of agents, and as many of hostnames, are remembered; the database is asked about the others. */
const MAX_EMPTY = 100_000;

const HOUR_MS = 3_600_000;

/** Further ahead than this the clocks of two replicas are not: the database's was set back, in milliseconds. */
const SET_BACK_MS = 10_000;

/** One request for a bucket. */
interface Ask {
  readonly key: string;
  readonly quota: Quota;
}

/** A bucket as it was left: what it owes since when, and how many of those that asked were let in. */
interface BucketRow {
  readonly key: string;
  readonly debt: number;
  readonly settled_at: number;
  admitted: number;
}

/** What a bucket owes at the instant that it is asked, by an expression of its row and of what is asked. */
const ELAPSED = 'greatest(0, excluded.settled_at - b.settled_at)';
const CAPACITY = 'excluded.burst * excluded.period_ms';
// Time beyond what fills the bucket is cut off, or the product might be more than a bigint holds. The quota may have
// changed since: nothing owes more than it can hold now.
const SETTLED = `least(${CAPACITY}, greatest(0, b.debt - least(${ELAPSED}, b.debt / excluded.rate + 1) * excluded.rate))`;
const ADMITTED = `least(excluded.admitted, (${CAPACITY} - ${SETTLED}) / excluded.period_ms)`;

/**
 * Decides and records, all buckets in one statement; each row stands for `admitted` requests. The rows are locked by
 * their keys' order, so that two statements never wait for each other. A bucket's instant does not go back where one
 * replica's clock is behind another's: no time is counted twice.
 */
const TAKE = `
  INSERT INTO quota_buckets AS b (key, debt, settled_at, rate, period_ms, burst, admitted)
  SELECT key, least(asked, burst) * period_ms, $2::bigint, rate, period_ms, burst, least(asked, burst)
  FROM json_to_recordset($1::json) AS a (key text, asked bigint, rate bigint, period_ms bigint, burst bigint)
  ORDER BY key
  ON CONFLICT (key) DO UPDATE SET
    debt = ${SETTLED} + ${ADMITTED} * excluded.period_ms,
    settled_at = greatest(excluded.settled_at, least(b.settled_at, excluded.settled_at + ${SET_BACK_MS})),
    rate = excluded.rate,
    period_ms = excluded.period_ms,
    burst = excluded.burst,
    admitted = ${ADMITTED}
  RETURNING key, debt, settled_at, admitted`;

/**
 * Owns quota_buckets: token buckets that all replicas take from, as exact as {@link TokenBuckets}. A bucket that is
 * known to be empty refuses without a statement, so a flood costs none; else one statement at a time is on its way, for
 * all that have come meanwhile.
 */
@Injectable()
export class SharedBuckets extends QuotaBuckets {
  readonly agents: Buckets;
  readonly hostnames: Buckets;

  constructor(
    private readonly database: Database,
    memory: SharedMemory,
    private readonly clock: Pick<Clock, 'now'>,
    private readonly jobs: JobRunner,
  ) {
    super();
    this.jobs.declare('quota-retention');
    const alone: Queries = { rows: (sql, ...values) => memory.changeAlone(sql, ...values) };
    const asks = new OneAtATime<Ask, Verdict>((batch) => decide(batch, alone, clock));
    this.agents = new RememberingBuckets(database, clock, asks);
    this.hostnames = new RememberingBuckets(database, clock, asks);
  }

  /** Deletes buckets that have been full for an hour: they are the same as none. @returns how many */
  purge(): Promise<number> {
    const before = this.clock.now() - HOUR_MS;
    return this.jobs.purge((limit) =>
      this.database.write((tx) =>
        tx.run(
          // Locked, or a bucket could go that somebody takes from at this moment.
          `DELETE FROM quota_buckets WHERE key IN (
             SELECT key FROM quota_buckets WHERE settled_at + debt / rate < $1 LIMIT $2 ${tx.dialect.skipLocked()})`,
          before,
          limit,
        ),
      ),
    );
  }

  @Cron(CronExpression.EVERY_HOUR)
  protected purgeHourly(): Promise<void> {
    return this.jobs.run('quota-retention', HOUR_MS, async () => void (await this.purge()));
  }
}

/** Buckets in the database, of which those that are empty are known here. */
class RememberingBuckets implements Buckets {
  /** Buckets that let nobody in, from when until when: nothing but time fills them. */
  private readonly empty = new LRUCache<string, { since: number; until: number }>({
    // By size: a cache with `max` takes the memory for all of them at once.
    maxSize: MAX_EMPTY,
    sizeCalculation: () => 1,
  });

  constructor(
    private readonly database: Pick<Database, 'read'>,
    private readonly clock: Pick<Clock, 'now'>,
    private readonly asks: OneAtATime<Ask, Verdict>,
  ) {}

  take(key: string, quota: Quota, within?: Transaction): Verdict | Promise<Verdict> {
    const ask = { key, quota };
    return this.refusal(key) ?? (within ? this.takeWithin(within, ask) : this.takeAlone(ask));
  }

  look(key: string, quota: Quota): Verdict | Promise<Verdict> {
    return (
      this.refusal(key) ?? this.database.read((statements) => lookUp(statements, { key, quota }, this.clock))
    );
  }

  /** Does nothing: what was taken in a unit of work went with it. */
  giveBack(): void {}

  /** The refusal of a bucket that is known to be empty. */
  private refusal(key: string): Verdict | undefined {
    const known = this.empty.get(key);
    if (!known) return undefined;
    const now = this.clock.now();
    // Also where the clock was set back: then nobody knows how long it takes.
    if (now >= known.since && now < known.until)
      return { admitted: false, remaining: 0, nextInMs: known.until - now };
    this.empty.delete(key);
    return undefined;
  }

  /** Has the bucket refuse from memory for as long as nothing can be in it. */
  private remember(key: string, { remaining, nextInMs }: Verdict): void {
    if (remaining > 0) return;
    const since = this.clock.now();
    this.empty.set(key, { since, until: since + nextInMs });
  }

  private async takeAlone(ask: Ask): Promise<Verdict> {
    const verdict = await this.asks.run(ask);
    this.remember(ask.key, verdict);
    return verdict;
  }

  private async takeWithin(tx: Transaction, ask: Ask): Promise<Verdict> {
    const [verdict] = (await decide([ask], tx, this.clock)) as [Verdict];
    // What is taken may be undone yet. A refusal rests on what is committed: others that take hold the row until then.
    if (!verdict.admitted) this.remember(ask.key, verdict);
    return verdict;
  }
}

/** Takes for each of the requests, first come, first served. @returns a verdict for each, in their order */
async function decide(
  asks: readonly Ask[],
  statements: Queries,
  clock: Pick<Clock, 'now'>,
): Promise<Verdict[]> {
  const buckets = new Map<string, { key: string; asked: number } & QuotaColumns>();
  for (const { key, quota } of asks) {
    const bucket = buckets.get(key) ?? { key, asked: 0, ...columnsOf(quota) };
    bucket.asked++;
    buckets.set(key, bucket);
  }
  const rows = await statements.rows<BucketRow>(TAKE, JSON.stringify([...buckets.values()]), clock.now());
  const now = clock.now();
  const left = new Map(rows.map((row) => [row.key, { ...row }]));
  return asks.map(({ key, quota }) => {
    const bucket = left.get(key) as BucketRow;
    const admitted = bucket.admitted > 0;
    if (admitted) bucket.admitted--;
    // After this one, and before those that were let in behind it.
    const debt = bucket.debt - bucket.admitted * quota.periodMs;
    return verdictFrom(admitted, debt, bucket.settled_at - now, quota);
  });
}

async function lookUp(
  statements: Statements,
  { key, quota }: Ask,
  clock: Pick<Clock, 'now'>,
): Promise<Verdict> {
  const now = clock.now();
  const { debt, settled_at: settledAt } = (await statements.first<Pick<BucketRow, 'debt' | 'settled_at'>>(
    'SELECT debt, settled_at FROM quota_buckets WHERE key = $1',
    key,
  )) ?? { debt: 0, settled_at: now };
  const capacity = quota.burst * quota.periodMs;
  const owed = Math.min(capacity, Math.max(0, debt - Math.max(0, now - settledAt) * quota.limit));
  const aheadMs = Math.min(SET_BACK_MS, Math.max(0, settledAt - now));
  return verdictFrom(owed + quota.periodMs <= capacity, owed, aheadMs, quota);
}

type Queries = Pick<Statements, 'rows'>;

interface QuotaColumns {
  readonly rate: number;
  readonly period_ms: number;
  readonly burst: number;
}

const columnsOf = ({ limit, periodMs, burst }: Quota): QuotaColumns => ({
  rate: limit,
  period_ms: periodMs,
  burst,
});

/** @param aheadMs how far the bucket's instant is ahead of now: it fills from there on */
function verdictFrom(admitted: boolean, debt: number, aheadMs: number, quota: Quota): Verdict {
  const verdict = verdictOf(admitted, debt, quota);
  return verdict.nextInMs === 0 ? verdict : { ...verdict, nextInMs: Math.max(1, verdict.nextInMs + aheadMs) };
}
