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
const MAX_USES = 32;

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

const INSERT =
  'INSERT INTO quota_buckets AS b (key, generation, uses, debt, settled_at, rate, period_ms, burst, asked, admitted)';
const ASKED = `
  SELECT key, rate, "periodMs" AS period_ms, burst, $2::bigint AS settled_at, least(asked, burst) AS asked
  FROM json_to_recordset($1::json) AS row (key text, asked bigint, rate bigint, "periodMs" bigint, burst bigint)`;
// Rows are locked in the order of their keys, so that two statements never deadlock. A bucket's instant does not go back
// if one replica's clock is behind another's, so that no time counts twice.
const UPDATE = `ORDER BY key
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

/** Decides and records in one upsert of the last row of each bucket. Leaves out buckets whose last row is used up. */
const TAKE = `${INSERT}
  SELECT key, coalesce((SELECT max(generation) FROM quota_buckets q WHERE q.key = a.key), 0), 1,
    asked * period_ms, settled_at, rate, period_ms, burst, asked, asked
  FROM (${ASKED}) AS a ${UPDATE}`;

const LAST = `(SELECT generation, uses, debt, settled_at, rate FROM quota_buckets
  WHERE key = a.key ORDER BY generation DESC LIMIT 1) AS last`;

/**
 * How long no statement can still be about to use a row that it has read as the last, in ms: longer than a statement may
 * run.
 */
const DELETE_AFTER_MS = 30_000;

/**
 * The same for buckets whose last row is used up, and never changes again: begins the next row with what it owes. Apart,
 * because its expressions take longer to start than the other statement takes in all. Deletes the last row but two, if
 * that was not used for a while: a statement that waits for its lock would add it again, as a full bucket.
 */
const TAKE_NEXT = `WITH deleted AS (
    DELETE FROM quota_buckets WHERE ctid = ANY(ARRAY(
      SELECT q.ctid FROM (${ASKED}) AS a CROSS JOIN LATERAL ${LAST}
      JOIN quota_buckets q ON q.key = a.key AND q.generation = last.generation - 2
      WHERE q.settled_at < a.settled_at - ${DELETE_AFTER_MS}
      FOR UPDATE OF q SKIP LOCKED)))
  ${INSERT}
  SELECT key, generation, 1, owed + admitted * period_ms, settled_at, rate, period_ms, burst, asked, admitted
  FROM (
    SELECT key, generation, owed, settled_at, rate, period_ms, burst, asked, ${admitted('o.owed', 'o')} AS admitted
    FROM (
      SELECT a.key, a.rate, a.period_ms, a.burst, a.asked, last.generation + 1 AS generation,
        ${settled('last', 'a')} AS owed, ${instant('last', 'a')} AS settled_at
      FROM (${ASKED}) AS a
      CROSS JOIN LATERAL ${LAST}
      WHERE last.uses >= ${MAX_USES} OFFSET 0) AS o) AS a ${UPDATE}`;

/**
 * Owns quota_buckets, an unlogged table: a quota is not worth a write to the log, and a crash of the server fills all
 * buckets.
 */
export class PostgresBuckets implements BucketTable {
  constructor(private readonly database: Pick<Database, 'read' | 'write'>) {}

  async take(
    requests: readonly BucketRequests[],
    now: number,
    within?: Pick<Statements, 'rows'>,
  ): Promise<TakenBucket[]> {
    const taken = new Map<string, TakenBucket>();
    // Another statement may use a row up, or begin the next one, between two of these.
    for (let attempt = 0; taken.size < requests.length; attempt++) {
      const left = JSON.stringify(requests.filter(({ key }) => !taken.has(key)));
      const run = (statements: Pick<Statements, 'rows'>) =>
        statements.rows<TakenBucket>(attempt % 2 === 0 ? TAKE : TAKE_NEXT, left, now);
      // Outside a transaction each statement is one round trip, and commits by itself.
      for (const bucket of await (within ? run(within) : this.database.read(run)))
        taken.set(bucket.key, bucket);
    }
    return [...taken.values()];
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
    const isFull = (row: string) => `${row}.settled_at + ${row}.debt / ${row}.rate < $1`;
    return this.database.write((tx) =>
      tx.run(
        // Skips locked rows: requests are being charged to them. A row before one that is deleted would be the last again:
        // after the clock was set back it may still owe. A request at the same time as this may begin a full bucket twice.
        `DELETE FROM quota_buckets WHERE (key, generation) IN (
           SELECT b.key, b.generation FROM quota_buckets b WHERE ${isFull('b')}
             AND NOT EXISTS (SELECT 1 FROM quota_buckets o WHERE o.key = b.key AND o.generation < b.generation AND NOT ${isFull('o')})
           LIMIT $2 FOR UPDATE OF b SKIP LOCKED)`,
        before,
        limit,
      ),
    );
  }
}
