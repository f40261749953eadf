import type { Statements } from '../database/statements';
import type { Check } from './check-counter';

/** A task of a target, with the instants that say whether it can have checks in a period. */
export interface TaskOfTarget {
  readonly id: number;
  readonly kind: string;
  readonly created_at: number;
  readonly finished_at: number | null;
}

/** Lists tasks of a target, of any kind, by descending ids. @param below only those with an id below this one */
export function selectTasksOf(
  statements: Statements,
  target: string,
  below: number,
  limit: number,
): Promise<TaskOfTarget[]> {
  return statements.rows(
    `SELECT id, kind, created_at, finished_at FROM tasks WHERE target = $1 AND id + 0 < $2 ORDER BY id + 0 DESC LIMIT $3`,
    target,
    below,
    limit,
  );
}

/** The task with the lowest id from one on. */
export function selectTaskFrom(
  statements: Statements,
  id: number,
): Promise<{ id: number; created_at: number } | undefined> {
  return statements.first('SELECT id, created_at FROM tasks WHERE id >= $1 ORDER BY id LIMIT 1', id);
}

/** A check by its lease. */
export type StoredCheck = Check & { readonly id: number; readonly task_id: number };

/** Tasks of one kind, and those of them that can have a live lease, because they have not finished. */
export interface TasksOfKind {
  readonly kind: string;
  readonly ids: readonly number[];
  readonly unfinished: readonly number[];
}

/**
 * Lists the checks of tasks that may lie in a period, by task and lease.
 * @param from only those that had not ended before this instant
 * @param above only those after this one
 */
export function selectChecksOf(
  statements: Statements,
  { kind, ids, unfinished }: TasksOfKind,
  from: number,
  above: { readonly taskId: number; readonly leaseId: number },
  limit: number,
): Promise<StoredCheck[]> {
  const columns = 'id, task_id, agent_id, coalesce(start_at, granted_at) AS start_at, ended_at, ending';
  const { dialect } = statements;
  // One statement for both: a lease that ends meanwhile is in one of them.
  return statements.rows(
    `SELECT * FROM (
       SELECT ${columns} FROM leases WHERE ${dialect.isAmong('task_id', '$1')} AND ended_at IS NOT NULL AND ended_at >= $2
       UNION ALL SELECT ${columns} FROM leases WHERE kind = $3 AND ${dialect.isAmong('task_id', '$4')} AND ending IS NULL) AS l
     WHERE (task_id, id) > ($5, $6) ORDER BY task_id, id LIMIT $7`,
    JSON.stringify(ids),
    from,
    kind,
    JSON.stringify(unfinished),
    above.taskId,
    above.leaseId,
    limit,
  );
}
