import type { SqlValue, Statements, Transaction } from '../database/statements';
import { ATTEMPT_OUTCOMES, type AttemptOutcome, type LastErrorEntity } from './agent.entity';
import type { OutcomeCounts } from './agents.dto';

const MINUTE_MS = 60_000;
export const HOUR_MS = 60 * MINUTE_MS;
/** The length of a span of counts in the last hour, in milliseconds; older spans are combined to hours. */
export const SPAN_MS = 10 * MINUTE_MS;
/**
 * For this time, in milliseconds, an error without a message does not replace one with a message: an agent with a full
 * disk reports that once, and then its leases expire.
 */
const MESSAGE_HOLD_MS = HOUR_MS;

/**
 * An agent is failing if at least this number of its attempts ended in the last hour, and more than half of them
 * failed.
 */
const MIN_ENDED = 5;

/** In the order of the table's columns. */
const COUNTED = ATTEMPT_OUTCOMES.join(', ');
const ENDED = ATTEMPT_OUTCOMES.join(' + ');
/**
 * The attempts that count for `failing`. A timeout does not: a silent target is a finding, and if a target that the whole fleet
 * probes goes silent, broken agents must still stand out. Must equal the expression of the partial index word for word.
 */
const FAILED = 'error + cancelled + expired';

/** The outcomes of an agent's attempts in one span. */
export interface SpanCounts extends OutcomeCounts {
  readonly agent_id: number;
  readonly starts_at: number;
}

/** Adds counts to spans of the given length. */
export async function addCounts(
  tx: Transaction,
  spanMs: number,
  counts: readonly SpanCounts[],
): Promise<void> {
  if (counts.length === 0) return;
  const columns = Object.fromEntries(
    ['agent_id', 'starts_at', ...ATTEMPT_OUTCOMES].map((name) => [name, 'integer'] as const),
  );
  await tx.run(
    `INSERT INTO agent_outcomes (agent_id, span_ms, starts_at, ${COUNTED})
     SELECT agent_id, $2, starts_at, ${COUNTED} FROM ${tx.dialect.rowset('$1', columns)} AS r
     WHERE true ORDER BY agent_id, starts_at
     ON CONFLICT (agent_id, span_ms, starts_at) DO UPDATE SET
       ${ATTEMPT_OUTCOMES.map((outcome) => `${outcome} = agent_outcomes.${outcome} + excluded.${outcome}`).join(', ')}`,
    JSON.stringify(counts),
    spanMs,
  );
}

/**
 * Whether an error replaces another one, in any order of arrival, because two replicas write in any order. The upsert
 * of {@link storeErrors} uses the same rule.
 */
export function replaces(next: LastErrorEntity, last: LastErrorEntity): boolean {
  if ((next.message === null) === (last.message === null)) return next.at >= last.at;
  return next.message === null ? next.at >= last.at + MESSAGE_HOLD_MS : next.at > last.at - MESSAGE_HOLD_MS;
}

/** Stores the last errors of agents, if they replace the stored ones. */
export async function storeErrors(tx: Transaction, errors: readonly LastErrorEntity[]): Promise<void> {
  if (errors.length === 0) return;
  await tx.run(
    `INSERT INTO agent_last_errors (agent_id, at, task_id, outcome, message)
     SELECT agent_id, at, task_id, outcome, message
     FROM ${tx.dialect.rowset('$1', {
       agent_id: 'integer',
       at: 'integer',
       task_id: 'integer',
       outcome: 'text',
       message: 'text',
     })} AS r
     WHERE true ORDER BY agent_id
     ON CONFLICT (agent_id) DO UPDATE SET at = excluded.at, task_id = excluded.task_id, outcome = excluded.outcome,
       message = excluded.message
     WHERE CASE
       WHEN (excluded.message IS NULL) = (agent_last_errors.message IS NULL) THEN excluded.at >= agent_last_errors.at
       WHEN excluded.message IS NULL THEN excluded.at >= agent_last_errors.at + $2
       ELSE excluded.at > agent_last_errors.at - $2 END`,
    JSON.stringify(errors),
    MESSAGE_HOLD_MS,
  );
}

/** Deletes and returns spans that begin at an instant or before, up to the limit. */
export function takeSpans(
  tx: Transaction,
  spanMs: number,
  through: number,
  limit: number,
): Promise<SpanCounts[]> {
  return tx.rows<SpanCounts>(
    `DELETE FROM agent_outcomes WHERE (agent_id, span_ms, starts_at) IN (
       SELECT agent_id, span_ms, starts_at FROM agent_outcomes WHERE span_ms = $1 AND starts_at <= $2
       ORDER BY starts_at LIMIT $3 ${tx.dialect.skipLocked()})
     AND span_ms = $1 AND starts_at <= $2
     RETURNING agent_id, starts_at, ${COUNTED}`,
    spanMs,
    through,
    limit,
  );
}

export async function deleteOutcomesOf(tx: Transaction, agentId: number): Promise<void> {
  for (const table of ['agent_outcomes', 'agent_last_errors'])
    await tx.run(`DELETE FROM ${table} WHERE agent_id = $1`, agentId);
}

/** Deletes counts in the future, after the clock was set back, and moves instants of errors to now. */
export async function cutFutureOutcomes(tx: Transaction): Promise<void> {
  await tx.run('DELETE FROM agent_outcomes WHERE starts_at > $1', tx.now);
  await tx.run('UPDATE agent_last_errors SET at = $1 WHERE at > $1', tx.now);
}

/**
 * Sums the outcomes of agents' attempts, in columns `hour_…` and `day_…` for each outcome.
 * @param hourStart spans that begin after it are of the last hour, in ms since the epoch
 * @param dayStart spans that end after it are of the last day
 */
export function sumOutcomes(
  statements: Statements,
  agentIds: readonly number[],
  { hourStart, dayStart, now }: { hourStart: number; dayStart: number; now: number },
): Promise<(Record<`${'hour' | 'day'}_${AttemptOutcome}`, number> & { agent_id: number })[]> {
  const inHour = `span_ms = ${SPAN_MS} AND starts_at > $2`;
  return statements.rows(
    `SELECT agent_id, ${ATTEMPT_OUTCOMES.map(
      (outcome) =>
        `sum(${outcome}) AS day_${outcome}, sum(CASE WHEN ${inHour} THEN ${outcome} ELSE 0 END) AS hour_${outcome}`,
    ).join(', ')}
     FROM agent_outcomes
     WHERE ${statements.dialect.isAmong('agent_id', '$1')} AND starts_at + span_ms > $3 AND starts_at <= $4
     GROUP BY agent_id`,
    JSON.stringify(agentIds),
    hourStart,
    dayStart,
    now,
  );
}

export function listLastErrors(
  statements: Statements,
  agentIds: readonly number[],
): Promise<LastErrorEntity[]> {
  return statements.rows(
    `SELECT * FROM agent_last_errors WHERE ${statements.dialect.isAmong('agent_id', '$1')}`,
    JSON.stringify(agentIds),
  );
}

/**
 * Builds a query for the ids of failing agents. It reads only the counts of agents with a failed attempt in the last
 * hour.
 * @param hourStart spans that begin after it are of the last hour, in ms since the epoch
 * @param bind names the parameter of a value
 */
export function selectFailing(hourStart: number, now: number, bind: (value: SqlValue) => string): string {
  const span = `span_ms = ${SPAN_MS} AND starts_at > ${bind(hourStart)} AND starts_at <= ${bind(now)}`;
  return `SELECT agent_id FROM agent_outcomes
    WHERE agent_id IN (SELECT agent_id FROM agent_outcomes WHERE ${FAILED} > 0 AND ${span}) AND ${span}
    GROUP BY agent_id HAVING sum(${ENDED}) >= ${MIN_ENDED} AND 2 * sum(${FAILED}) > sum(${ENDED})`;
}

/** Counts the failing agents in service. */
export async function countFailing(statements: Statements, hourStart: number, now: number): Promise<number> {
  const values: SqlValue[] = [];
  const failing = selectFailing(hourStart, now, (value) => `$${values.push(value)}`);
  const row = await statements.first<{ count: number }>(
    `SELECT count(*) AS count FROM (${failing}) AS f JOIN agents a ON a.id = f.agent_id
     WHERE a.state IN ('active', 'draining')`,
    ...values,
  );
  return row?.count ?? 0;
}
