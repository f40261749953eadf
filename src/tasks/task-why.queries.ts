import type { Statements } from '../database/statements';
import type { Outcome } from '../kinds/observations';
import type { Position } from '../queue/lanes.queries';
import type { DueCount, TargetCount } from './task-ahead';
import type { Held } from './task-room';

/** Which rows `q` of `ready` are in a lane `lane` and before a position, in their order and up to a limit. */
const BEFORE = `WHERE q.lane_id = lane.id AND (q.rank, q.task_id) < ($2, $3) AND (q.not_after IS NULL OR q.not_after > $4)
    ORDER BY q.rank, q.task_id LIMIT $5`;

/** How many queued tasks of each lane are before a position, counted up to a limit for each. */
export async function countBefore(
  statements: Statements,
  laneIds: readonly number[],
  { rank, id }: Position,
  now: number,
  limit: number,
): Promise<Map<number, number>> {
  if (laneIds.length === 0) return new Map();
  const rows = await statements.rows<{ id: number; count: number }>(
    `SELECT lane.id, (SELECT count(*) FROM (SELECT 1 AS one FROM ready q ${BEFORE}) AS best) AS count
     FROM ${statements.dialect.ids('$1')} AS lane`,
    JSON.stringify(laneIds),
    rank,
    id,
    now,
    limit,
  );
  return new Map(rows.map((row) => [row.id, row.count]));
}

/**
 * Of the tasks that {@link countBefore} counts in the lane that a kind's tasks share: how many are of each target whose
 * tasks are still being moved into its own.
 */
export function countMovingBefore(
  statements: Statements,
  laneId: number,
  { rank, id }: Position,
  now: number,
  limit: number,
): Promise<TargetCount[]> {
  return statements.rows<TargetCount>(
    `SELECT t.kind, t.target, count(*) AS count
     FROM (SELECT q.task_id FROM (SELECT CAST($1 AS bigint) AS id) AS lane CROSS JOIN ready q ${BEFORE}) AS best
     CROSS JOIN tasks t CROSS JOIN concurrency_windows w
     WHERE t.id = best.task_id AND w.kind = t.kind AND w.target = t.target AND w.scope = 'target'
       AND w.moved_through IS NOT NULL
     GROUP BY t.kind, t.target`,
    laneId,
    rank,
    id,
    now,
    limit,
  );
}

/**
 * How many other tasks of each target come due until an instant, of those that do first.
 * @param limit how many are counted at most
 */
export function countDue(
  statements: Statements,
  task: { readonly id: number; readonly priority: number },
  until: number,
  limit: number,
): Promise<DueCount[]> {
  return statements.rows<DueCount>(
    `SELECT t.kind, t.target, count(*) AS count,
       sum(CASE WHEN t.priority > $1 OR (t.priority = $1 AND t.id < $2) THEN 1 ELSE 0 END) AS before
     FROM (SELECT task_id FROM scheduled WHERE run_at <= $3 AND task_id <> $2 ORDER BY run_at, task_id LIMIT $4) AS due
     CROSS JOIN tasks t WHERE t.id = due.task_id GROUP BY t.kind, t.target`,
    task.priority,
    task.id,
    until,
    limit,
  );
}

/** How many tasks were completed, and since when. */
export interface Completed {
  readonly count: number;
  /** When the first of them finished; null if there are none. */
  readonly first: number | null;
}

/**
 * Counts the tasks of a kind that were completed last.
 * @param target only those of this target; else of all
 * @param limit how many of the kind are looked at
 */
export async function countCompleted(
  statements: Statements,
  kind: string,
  target: string | undefined,
  since: number,
  limit: number,
): Promise<Completed> {
  const row = await statements.first<Completed>(
    `SELECT count(*) AS count, min(lately.finished_at) AS first
     FROM (SELECT task_id, finished_at FROM finished_tasks
       WHERE kind = $1 AND state = 'completed' AND finished_at > $2 ORDER BY finished_at DESC, task_id DESC LIMIT $3) AS lately
     ${target === undefined ? '' : 'CROSS JOIN tasks t WHERE t.id = lately.task_id AND t.target = $4'}`,
    kind,
    since,
    limit,
    ...(target === undefined ? [] : [target]),
  );
  return row as Completed;
}

/** When a live lease ends, if it is not extended. */
export async function selectDeadline(statements: Statements, leaseId: number): Promise<number | undefined> {
  const row = await statements.first<{ deadline_at: number }>(
    `SELECT deadline_at FROM leases WHERE id = $1`,
    leaseId,
  );
  return row?.deadline_at;
}

/** An attempt that failed. */
export interface FailedAttempt {
  readonly id: number;
  readonly agent_id: number;
  readonly attempt: number;
  readonly state: 'cancelled' | 'expired';
  /** What its agent said came of it; null if it did not say, or too late. */
  readonly outcome: Outcome | null;
  readonly ended_at: number | null;
}

/** The last attempt at a task that failed. */
export function selectLastFailed(statements: Statements, taskId: number): Promise<FailedAttempt | undefined> {
  return statements.first<FailedAttempt>(
    `SELECT id, agent_id, attempt, state, ended_at, CASE WHEN state = 'cancelled' THEN outcome END AS outcome
     FROM leases WHERE task_id = $1 AND ended_at IS NOT NULL AND state IN ('cancelled', 'expired') ORDER BY id DESC LIMIT 1`,
    taskId,
  );
}

/**
 * How many live leases each of the agents holds, in all and of a kind.
 * @param limit how many are counted at most
 */
export async function countHeld(
  statements: Statements,
  agentIds: readonly number[],
  kind: string,
  limit: number,
): Promise<Map<number, Held>> {
  const rows = await statements.rows<{ agent_id: number; held: number; of_kind: number }>(
    `SELECT agent_id, count(*) AS held, sum(CASE WHEN kind = $2 THEN 1 ELSE 0 END) AS of_kind FROM (
       SELECT agent_id, kind FROM leases
       WHERE state = 'active' AND ${statements.dialect.isAmong('agent_id', '$1')} LIMIT $3) AS live
     GROUP BY agent_id`,
    JSON.stringify(agentIds),
    kind,
    limit,
  );
  return new Map(rows.map((row) => [row.agent_id, { all: row.held, ofKind: row.of_kind }]));
}
