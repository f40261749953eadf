import type { Statements, Transaction } from '../database/statements';
import type { FinishedState, TaskReason } from './task.entity';

/** A new row of the table. */
export interface NewTaskRow {
  readonly kind: string;
  readonly target: string;
  readonly spec: string;
  readonly priority: number;
  readonly run_at: number | null;
  readonly not_after: number | null;
  readonly max_attempts: number;
  readonly unique_key: string | null;
  readonly traceparent: string | null;
}

const NEW_TASK = {
  kind: 'text',
  target: 'text',
  spec: 'text',
  priority: 'integer',
  run_at: 'integer',
  not_after: 'integer',
  max_attempts: 'integer',
  unique_key: 'text',
  traceparent: 'text',
} as const;

/** Adds open tasks. @returns their ids, in the same order */
export async function insertTasks(tx: Transaction, rows: readonly NewTaskRow[]): Promise<number[]> {
  const names = Object.keys(NEW_TASK).join(', ');
  const inserted = await tx.rows<{ id: number }>(
    `INSERT INTO tasks (${names}, state, attempts, created_at, updated_at)
     SELECT ${names}, 'open', 0, $2, $2 FROM ${tx.dialect.rowset('$1', NEW_TASK)} AS r RETURNING id`,
    JSON.stringify(rows),
    tx.now,
  );
  // Ids ascend in the order of the list, but RETURNING promises no order.
  return inserted.map(({ id }) => id).sort((a, b) => a - b);
}

/** The new values of a task's row. */
export interface TaskUpdate {
  readonly id: number;
  readonly state: 'open' | FinishedState;
  /** Unchanged if undefined. */
  readonly attempts?: number;
  /** Unchanged if undefined. */
  readonly run_at?: number | null;
  readonly reason: TaskReason | null;
}

/** Ends tasks with the same values, or schedules their next attempt. */
export async function updateTasks(tx: Transaction, updates: readonly TaskUpdate[]): Promise<void> {
  const isPlain = (update: TaskUpdate): update is TaskUpdate & { readonly attempts: number } =>
    update.state !== 'open' && update.reason === null && update.attempts !== undefined;
  // Most tasks of a report end with the same values: one parameter for all costs less than a row for each.
  const alike = Map.groupBy(updates.filter(isPlain), ({ state, attempts }) => `${state} ${attempts}`);
  for (const some of alike.values()) {
    const [{ state, attempts }] = some as [TaskUpdate & { readonly attempts: number }];
    await tx.run(
      `UPDATE tasks SET state = $3, attempts = $4, reason = NULL, updated_at = $2, finished_at = $2
       WHERE ${tx.dialect.isAmong('id', '$1')}`,
      JSON.stringify(some.map(({ id }) => id)),
      tx.now,
      state,
      attempts,
    );
  }
  const others = updates.filter((update) => !isPlain(update));
  if (others.length === 0) return;
  await tx.run(
    `UPDATE tasks SET state = r.state, attempts = coalesce(r.attempts, tasks.attempts), reason = r.reason, updated_at = $2,
       run_at = CASE WHEN r.sets_run_at = 1 THEN r.run_at ELSE tasks.run_at END,
       finished_at = CASE WHEN r.state <> 'open' THEN CAST($2 AS bigint) END
     FROM ${tx.dialect.rowset('$1', {
       id: 'integer',
       state: 'text',
       attempts: 'integer',
       sets_run_at: 'integer',
       run_at: 'integer',
       reason: 'text',
     })} AS r
     WHERE tasks.id = r.id AND ${tx.dialect.prefilterByList('tasks.id', '$3')}`,
    JSON.stringify(
      others.map(({ run_at, ...update }) => ({
        ...update,
        run_at,
        sets_run_at: run_at === undefined ? 0 : 1,
      })),
    ),
    tx.now,
    JSON.stringify(others.map(({ id }) => id)),
  );
}

/**
 * Reopens finished tasks: their attempts count from the start, and a `not_after` that has passed no longer applies.
 */
export async function reopenTasks(tx: Transaction, ids: readonly number[]): Promise<void> {
  await tx.run(
    `UPDATE tasks SET state = 'open', reason = NULL, attempts = 0, run_at = NULL, finished_at = NULL, updated_at = $2,
       not_after = CASE WHEN not_after > $2 THEN not_after END
     WHERE ${tx.dialect.isAmong('id', '$1')}`,
    JSON.stringify(ids),
    tx.now,
  );
}

/** A scheduled task. */
export interface ScheduledRow {
  readonly task_id: number;
  readonly kind: string;
  readonly run_at: number;
}

const SCHEDULED = { task_id: 'integer', kind: 'text', run_at: 'integer' } as const;

export async function insertScheduled(tx: Transaction, rows: readonly ScheduledRow[]): Promise<void> {
  if (rows.length === 0) return;
  await tx.run(
    `INSERT INTO scheduled (task_id, kind, run_at) SELECT task_id, kind, run_at FROM ${tx.dialect.rowset('$1', SCHEDULED)} AS r`,
    JSON.stringify(rows),
  );
}

/** Deletes these tasks from `scheduled`. @returns those that were there */
export async function removeScheduled(tx: Transaction, taskIds: readonly number[]): Promise<number[]> {
  if (taskIds.length === 0) return [];
  const rows = await tx.rows<{ task_id: number }>(
    `DELETE FROM scheduled WHERE ${tx.dialect.isAmong('task_id', '$1')} RETURNING task_id`,
    JSON.stringify(taskIds),
  );
  return rows.map((row) => row.task_id);
}

/** Deletes and returns due tasks of `scheduled`, the earliest first. Skips those that another unit has locked. */
export async function takeDue(tx: Transaction, limit: number): Promise<number[]> {
  const rows = await tx.rows<{ task_id: number }>(
    `${tx.dialect.takeRows('scheduled', ['task_id'], ['WHERE run_at <= $1 ORDER BY run_at, task_id LIMIT $2'])} RETURNING task_id`,
    tx.now,
    limit,
  );
  return rows.map((row) => row.task_id);
}

/** The instants after which unfinished tasks without a lease are dead. */
export interface ExpiryRow {
  readonly not_after: number;
  readonly task_id: number;
}

const EXPIRY = { not_after: 'integer', task_id: 'integer' } as const;

export async function insertExpiries(tx: Transaction, rows: readonly ExpiryRow[]): Promise<void> {
  if (rows.length === 0) return;
  await tx.run(
    `INSERT INTO task_expiries (not_after, task_id) SELECT not_after, task_id FROM ${tx.dialect.rowset('$1', EXPIRY)} AS r`,
    JSON.stringify(rows),
  );
}

export async function removeExpiries(tx: Transaction, rows: readonly ExpiryRow[]): Promise<void> {
  if (rows.length === 0) return;
  await tx.run(
    `DELETE FROM task_expiries WHERE ${tx.dialect.isKeyAmong('task_expiries', ['not_after', 'task_id'], tx.dialect.rowset('$1', EXPIRY))}`,
    JSON.stringify(rows),
  );
}

/** Lists tasks whose `not_after` has passed, the earliest first. */
export async function selectExpired(statements: Statements, now: number, limit: number): Promise<number[]> {
  const rows = await statements.rows<{ task_id: number }>(
    'SELECT task_id FROM task_expiries WHERE not_after <= $1 ORDER BY not_after, task_id LIMIT $2',
    now,
    limit,
  );
  return rows.map((row) => row.task_id);
}

/** Whether a scheduled task is due, or a `not_after` has passed. */
export async function isAnyDue(statements: Statements, now: number): Promise<boolean> {
  const row = await statements.first(
    `SELECT task_id FROM (SELECT task_id FROM scheduled WHERE run_at <= $1 ORDER BY run_at LIMIT 1) AS due
     UNION ALL
     SELECT task_id FROM (SELECT task_id FROM task_expiries WHERE not_after <= $1 ORDER BY not_after LIMIT 1) AS expired`,
    now,
  );
  return row !== undefined;
}

/**
 * Reserves keys for unfinished tasks. Fails if an unfinished task has one, because two units asked for it at once.
 */
export async function insertUniqueKeys(
  tx: Transaction,
  rows: readonly { readonly unique_key: string; readonly task_id: number }[],
): Promise<void> {
  if (rows.length === 0) return;
  await tx.run(
    `INSERT INTO unique_keys (unique_key, task_id) SELECT unique_key, task_id
     FROM ${tx.dialect.rowset('$1', { unique_key: 'text', task_id: 'integer' })} AS r`,
    // In one order, so that two units do not deadlock.
    JSON.stringify([...rows].sort((a, b) => (a.unique_key < b.unique_key ? -1 : 1))),
  );
}

export async function removeUniqueKeys(tx: Transaction, keys: readonly string[]): Promise<void> {
  if (keys.length === 0) return;
  await tx.run(
    `DELETE FROM unique_keys WHERE unique_key IN (SELECT unique_key FROM ${tx.dialect.rowset('$1', { unique_key: 'text' })} AS r)`,
    JSON.stringify(keys.map((unique_key) => ({ unique_key }))),
  );
}

/** Adds tasks that end in this unit to `finished_tasks`. */
export async function insertFinished(
  tx: Transaction,
  kind: string,
  state: FinishedState,
  ids: readonly number[],
): Promise<void> {
  await tx.run(
    `INSERT INTO finished_tasks (kind, state, finished_at, task_id) SELECT $2, $3, $4, id FROM ${tx.dialect.ids('$1')} AS r`,
    JSON.stringify(ids),
    kind,
    state,
    tx.now,
  );
}

/** The columns of `finished_tasks`. */
export interface FinishedRow {
  readonly kind: string;
  readonly state: FinishedState;
  readonly finished_at: number;
  readonly task_id: number;
}

const FINISHED = { kind: 'text', state: 'text', finished_at: 'integer', task_id: 'integer' } as const;

export async function removeFinished(tx: Transaction, rows: readonly FinishedRow[]): Promise<void> {
  if (rows.length === 0) return;
  await tx.run(
    `DELETE FROM finished_tasks WHERE ${tx.dialect.isKeyAmong('finished_tasks', Object.keys(FINISHED), tx.dialect.rowset('$1', FINISHED))}`,
    JSON.stringify(
      rows.map(({ kind, state, finished_at, task_id }) => ({ kind, state, finished_at, task_id })),
    ),
  );
}

/**
 * Deletes and returns the tasks of a kind and state that finished before an instant from `finished_tasks`, the
 * earliest first.
 */
export function takeFinishedBefore(
  tx: Transaction,
  kind: string,
  state: FinishedState,
  beforeMs: number,
  limit: number,
): Promise<FinishedRow[]> {
  return tx.rows<FinishedRow>(
    `${tx.dialect.takeRows(
      'finished_tasks',
      ['kind', 'state', 'finished_at', 'task_id'],
      ['WHERE kind = $1 AND state = $2 AND finished_at < $3 ORDER BY finished_at, task_id LIMIT $4'],
    )} RETURNING kind, state, finished_at, task_id`,
    kind,
    state,
    beforeMs,
    limit,
  );
}

/** Deletes tasks. */
export async function deleteTasks(tx: Transaction, ids: readonly number[]): Promise<void> {
  await tx.run(`DELETE FROM tasks WHERE ${tx.dialect.isAmong('id', '$1')}`, JSON.stringify(ids));
}

/**
 * Moves scheduled attempts, except first ones, earlier by as much as the clock was set back, but not before an
 * instant.
 */
export async function setBackBackoffs(tx: Transaction, earliest: number, byMs: number): Promise<void> {
  const isRetry = (id: string) => `EXISTS (SELECT 1 FROM tasks t WHERE t.id = ${id} AND t.attempts > 0)`;
  const earlier = tx.dialect.greatest('$1', 'run_at - $2');
  await tx.run(
    `UPDATE tasks SET run_at = ${earlier} WHERE attempts > 0 AND run_at > $1
     AND id IN (SELECT task_id FROM scheduled WHERE run_at > $1)`,
    earliest,
    byMs,
  );
  await tx.run(
    `UPDATE scheduled SET run_at = ${earlier} WHERE run_at > $1 AND ${isRetry('scheduled.task_id')}`,
    earliest,
    byMs,
  );
}

/** A task as its transitions need it. */
export interface TransitionRow {
  readonly id: number;
  readonly kind: string;
  readonly target: string;
  readonly priority: number;
  readonly not_after: number | null;
  readonly unique_key: string | null;
  readonly traceparent: string | null;
  /** Attempts that count so far. */
  readonly attempts: number;
}

const TRANSITION = 'id, kind, target, priority, not_after, unique_key, traceparent, attempts';

/** What transitions need of tasks, by ascending ids. */
export function selectTransitionTasks(tx: Transaction, ids: readonly number[]): Promise<TransitionRow[]> {
  if (ids.length === 0) return Promise.resolve([]);
  return tx.rows(
    `SELECT ${TRANSITION} FROM tasks WHERE ${tx.dialect.isAmong('id', '$1')} ORDER BY id`,
    JSON.stringify(ids),
  );
}

/** The same with their specs, of tasks that claims have taken. */
export function selectTakenTasks(
  tx: Transaction,
  ids: readonly number[],
): Promise<(TransitionRow & { readonly spec: string })[]> {
  if (ids.length === 0) return Promise.resolve([]);
  return tx.rows(
    `SELECT ${TRANSITION}, spec FROM tasks WHERE ${tx.dialect.isAmong('id', '$1')}`,
    JSON.stringify(ids),
  );
}
