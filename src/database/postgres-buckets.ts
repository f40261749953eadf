import {
  type BucketDebt,
  type BucketRequests,
  type BucketTable,
  MAX_SKEW_MS,
  type TakenBucket,
} from './bucket-table';
import type { Database } from './database';
import type { Statements } from './statements';

const ELAPSED = 'greatest(0, excluded.settled_at - b.settled_at)';
const CAPACITY = 'excluded.burst * excluded.period_ms';
// Converted if the rate of the quota was changed, and capped at the current capacity.
const OWED = `CASE b.rate WHEN excluded.rate THEN least(${CAPACITY}, b.debt)
  ELSE least(${CAPACITY}, ceil(b.debt::numeric * excluded.rate / b.rate))::bigint END`;
// Capped at the time that fills the bucket, or the product could exceed a bigint.
const SETTLED = `greatest(0, ${OWED} - least(${ELAPSED}, ${CAPACITY} / excluded.rate + 1) * excluded.rate)`;
const ADMITTED = `least(excluded.admitted, (${CAPACITY} - ${SETTLED}) / excluded.period_ms)`;

/**
 * Decides and records in one upsert. It locks rows in the order of their keys, so that two statements never deadlock. A
 * bucket's instant does not go back if one replica's clock is behind another's, so that no time counts twice.
 */
const TAKE = `
  INSERT INTO quota_buckets AS b (key, debt, settled_at, rate, period_ms, burst, admitted)
  SELECT key, least(asked, burst) * "periodMs", $2::bigint, rate, "periodMs", burst, least(asked, burst)
  FROM json_to_recordset($1::json) AS a (key text, asked bigint, rate bigint, "periodMs" bigint, burst bigint)
  ORDER BY key
  ON CONFLICT (key) DO UPDATE SET
    debt = ${SETTLED} + ${ADMITTED} * excluded.period_ms,
    settled_at = greatest(excluded.settled_at, least(b.settled_at, excluded.settled_at + ${MAX_SKEW_MS})),
    rate = excluded.rate,
    period_ms = excluded.period_ms,
    burst = excluded.burst,
    admitted = ${ADMITTED}
  RETURNING key, debt, settled_at AS "settledAt", admitted`;

/**
 * Owns quota_buckets, an unlogged table: a quota is not worth a write to the log, and a crash of the server fills all
 * buckets.
 */
export class PostgresBuckets implements BucketTable {
  constructor(private readonly database: Pick<Database, 'read' | 'write'>) {}

  take(
    requests: readonly BucketRequests[],
    now: number,
    within?: Pick<Statements, 'rows'>,
  ): Promise<TakenBucket[]> {
    const run = (statements: Pick<Statements, 'rows'>) =>
      statements.rows<TakenBucket>(TAKE, JSON.stringify(requests), now);
    // Outside a transaction one statement is one round trip, and commits by itself.
    return within ? run(within) : this.database.read(run);
  }

  find(key: string): Promise<BucketDebt | undefined> {
    return this.database.read((statements) =>
      statements.first<BucketDebt>(
        'SELECT debt, rate, settled_at AS "settledAt" FROM quota_buckets WHERE key = $1',
        key,
      ),
    );
  }

  purge(before: number, limit: number): Promise<number> {
    return this.database.write((tx) =>
      tx.run(
        // Skips locked rows: requests are being charged to them.
        `DELETE FROM quota_buckets WHERE key IN (
           SELECT key FROM quota_buckets WHERE settled_at + debt / rate < $1 LIMIT $2 FOR UPDATE SKIP LOCKED)`,
        before,
        limit,
      ),
    );
  }
}
