import {
  type BucketDebt,
  type BucketRequests,
  type BucketTable,
  MAX_SKEW_MS,
  type TakenBucket,
} from './bucket-table';
import type { Database } from './database';
import type { Statements } from './statements';

/**
 * How often a row is updated before a new one takes its place. While a snapshot is open, all versions of a row stay, and
 * each update reads all of them.
 */
const MAX_USES = 256;

const CAPACITY = (asked: string): string => `${asked}.burst * ${asked}.period_ms`;

/** What a bucket owes now, by a row: converted if the rate of the quota was changed, and capped at the current capacity. */
function settled(row: string, asked: string): string {
  const capacity = CAPACITY(asked);
  const owed = `CASE ${row}.rate WHEN ${asked}.rate THEN least(${capacity}, ${row}.debt)
    ELSE least(${capacity}, ceil(${row}.debt::numeric * ${asked}.rate / ${row}.rate))::bigint END`;
  // Capped at the time that fills the bucket, or the product could exceed a bigint.
  return `greatest(0, ${owed} - least(greatest(0, ${asked}.settled_at - ${row}.settled_at), ${capacity} / ${asked}.rate + 1) * ${asked}.rate)`;
}

const admitted = (owed: string, asked: string): string =>
  `least(${asked}.asked, (${CAPACITY(asked)} - ${owed}) / ${asked}.period_ms)`;

const instant = (row: string, asked: string): string =>
  `greatest(${asked}.settled_at, least(${row}.settled_at, ${asked}.settled_at + ${MAX_SKEW_MS}))`;

const OWED = settled('b', 'excluded');
const ADMITTED = admitted(OWED, 'excluded');
// Of the row before, if that is used up: it never changes again.
const IS_USED_UP = `before.uses >= ${MAX_USES}`;
const OWED_BEFORE = `CASE WHEN ${IS_USED_UP} THEN ${settled('before', 'a')} ELSE 0 END`;
const SETTLED_BEFORE = `CASE WHEN ${IS_USED_UP} THEN ${instant('before', 'a')} ELSE a.settled_at END`;

/**
 * Decides and records in one upsert of the last row of each bucket. It locks rows in the order of their keys, so that two
 * statements never deadlock. A bucket's instant does not go back if one replica's clock is behind another's, so that no
 * time counts twice. Leaves out buckets whose row another statement has just used up.
 */
const TAKE = `
  INSERT INTO quota_buckets AS b (key, generation, uses, debt, settled_at, rate, period_ms, burst, asked, admitted)
  SELECT a.key, generation, 1, owed + ${admitted('owed', 'a')} * a.period_ms, settled, a.rate, a.period_ms, a.burst, a.asked,
    ${admitted('owed', 'a')}
  FROM (
    SELECT a.*, coalesce(before.generation, 0) + CASE WHEN ${IS_USED_UP} THEN 1 ELSE 0 END AS generation,
      ${OWED_BEFORE} AS owed, ${SETTLED_BEFORE} AS settled
    FROM (
      SELECT key, rate, "periodMs" AS period_ms, burst, $2::bigint AS settled_at, least(asked, burst) AS asked
      FROM json_to_recordset($1::json) AS row (key text, asked bigint, rate bigint, "periodMs" bigint, burst bigint)) AS a
    LEFT JOIN LATERAL (SELECT * FROM quota_buckets WHERE key = a.key ORDER BY generation DESC LIMIT 1) AS before ON true) AS a
  ORDER BY a.key
  ON CONFLICT (key, generation) DO UPDATE SET
    uses = b.uses + 1,
    debt = ${OWED} + ${ADMITTED} * excluded.period_ms,
    settled_at = ${instant('b', 'excluded')},
    rate = excluded.rate,
    period_ms = excluded.period_ms,
    burst = excluded.burst,
    admitted = ${ADMITTED}
  WHERE b.uses < ${MAX_USES}
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
    // Outside a transaction one statement is one round trip, and commits by itself.
    return within
      ? this.takeWith(within, requests, now)
      : this.database.read((statements) => this.takeWith(statements, requests, now));
  }

  find(key: string): Promise<BucketDebt | undefined> {
    return this.database.read((statements) =>
      statements.first<BucketDebt>(
        'SELECT debt, rate, settled_at AS "settledAt" FROM quota_buckets WHERE key = $1 ORDER BY generation DESC LIMIT 1',
        key,
      ),
    );
  }

  purge(before: number, limit: number): Promise<number> {
    return this.database.write((tx) =>
      tx.run(
        // Skips locked rows: requests are being charged to them.
        `DELETE FROM quota_buckets WHERE (key, generation) IN (
           SELECT key, generation FROM quota_buckets WHERE settled_at + debt / rate < $1 LIMIT $2 FOR UPDATE SKIP LOCKED)`,
        before,
        limit,
      ),
    );
  }

  private async takeWith(
    statements: Pick<Statements, 'rows'>,
    requests: readonly BucketRequests[],
    now: number,
  ): Promise<TakenBucket[]> {
    const taken = await statements.rows<TakenBucket>(TAKE, JSON.stringify(requests), now);
    if (taken.length === requests.length) return taken;
    // The row of a bucket was used up meanwhile, so there is a new one.
    const keys = new Set(taken.map(({ key }) => key));
    const left = requests.filter(({ key }) => !keys.has(key));
    return taken.concat(await this.takeWith(statements, left, now));
  }
}
