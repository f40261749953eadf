import type { AttemptOutcome } from '../agents/agent.entity';
import type { Dialect } from '../database/dialect';
import type { Statements } from '../database/statements';
import type { Failure, Outcome } from '../kinds/observations';
import type { LeaseState } from '../leases/lease.entity';
import type { TaskReason, TaskState } from '../queue/task.entity';

/** A task with what other tables say of it. */
export interface TaskRow {
  readonly id: number;
  readonly kind: string;
  readonly target: string;
  readonly spec: string;
  readonly state: TaskState;
  /** Higher goes first. */
  readonly priority: number;
  readonly run_at: number | null;
  readonly not_after: number | null;
  /** Attempts begun that count: revoked ones do not. */
  readonly attempts: number;
  readonly max_attempts: number;
  readonly unique_key: string | null;
  readonly reason: TaskReason | null;
  readonly traceparent: string | null;
  readonly created_at: number;
  readonly updated_at: number;
  readonly finished_at: number | null;
  /** The live lease, and who has it; null unless it is leased. */
  readonly lease_id: number | null;
  readonly held_by: number | null;
  // Of the last attempt that ended by itself: a revoked one leaves them as they are, and so does a retry.
  readonly last_lease_id: number | null;
  readonly last_agent_id: number | null;
  readonly last_outcome: AttemptOutcome | null;
  /** What its agent said went wrong, as a JSON string. */
  readonly last_error: string | null;
  readonly last_ended_at: number | null;
}

const ifLive = (value: string, otherwise: string): string =>
  `CASE WHEN live.id IS NOT NULL THEN ${value} ELSE ${otherwise} END`;

const COLUMNS: Readonly<Record<keyof TaskRow, string>> = {
  // Not the task's: the page has its rows in the order of this one.
  id: 'page.id',
  kind: 't.kind',
  target: 't.target',
  spec: 't.spec',
  state: `CASE WHEN t.state <> 'open' THEN t.state WHEN live.id IS NOT NULL THEN 'leased'
    WHEN s.task_id IS NOT NULL THEN 'scheduled' ELSE 'queued' END`,
  priority: 't.priority',
  run_at: 't.run_at',
  not_after: 't.not_after',
  attempts: ifLive('live.attempt', 't.attempts'),
  max_attempts: 't.max_attempts',
  unique_key: 't.unique_key',
  reason: 't.reason',
  traceparent: 't.traceparent',
  created_at: 't.created_at',
  updated_at: ifLive('live.granted_at', 't.updated_at'),
  finished_at: 't.finished_at',
  lease_id: 'live.id',
  held_by: 'live.agent_id',
  last_lease_id: 'ended.id',
  last_agent_id: 'ended.agent_id',
  last_outcome: 'ended.ending',
  last_error: 'ended.error',
  last_ended_at: 'ended.ended_at',
};

/**
 * A query on tasks with all that is known of them. What is not asked for of its columns costs nothing.
 * @param ids a table expression with a column `id`, and perhaps others; its alias is `page`
 * @param also columns of `page`
 */
export function tasksOf(dialect: Dialect, ids: string, also: readonly string[] = []): string {
  const columns = Object.entries(COLUMNS).map(([name, sql]) => `${sql} AS ${name}`);
  return `SELECT ${[...columns, ...also.map((name) => `page.${name}`)].join(', ')}
    FROM (${ids}) AS page CROSS JOIN tasks t LEFT JOIN scheduled s ON s.task_id = t.id
    ${dialect.joinOne('leases', 'live', 'kind = t.kind AND task_id = t.id AND ending IS NULL')}
    ${dialect.joinLast('leases', 'ended', "task_id = t.id AND ended_at IS NOT NULL AND ending <> 'revoked'")}
    WHERE t.id = page.id`;
}

/** One task. */
export function selectTask(statements: Statements, id: number): Promise<TaskRow | undefined> {
  return statements.first<TaskRow>(tasksOf(statements.dialect, 'SELECT CAST($1 AS bigint) AS id'), id);
}

/** Tasks by their ids; those that there are not are left out. */
export function selectTasks(statements: Statements, ids: readonly number[]): Promise<TaskRow[]> {
  return statements.rows<TaskRow>(
    tasksOf(statements.dialect, statements.dialect.ids('$1')),
    JSON.stringify(ids),
  );
}

/** An unfinished task that has a unique key. */
export type KeyHolder = Pick<TaskRow, 'id' | 'kind' | 'spec' | 'state'> & { readonly unique_key: string };

/** The unfinished tasks that have one of the unique keys, by key. */
export async function selectKeyHolders(
  statements: Statements,
  keys: readonly string[],
): Promise<Map<string, KeyHolder>> {
  if (keys.length === 0) return new Map();
  const rows = await statements.rows<KeyHolder>(
    tasksOf(
      statements.dialect,
      `SELECT u.task_id AS id FROM ${statements.dialect.rowset('$1', { key: 'text' })} AS r
       CROSS JOIN unique_keys u WHERE u.unique_key = r.key`,
    ),
    JSON.stringify([...new Set(keys)].map((key) => ({ key }))),
  );
  return new Map(rows.map((row) => [row.unique_key, row]));
}

/** A lease as the history of its task shows it. */
export interface AttemptRow {
  readonly id: number;
  readonly agent_id: number;
  readonly attempt: number;
  readonly state: LeaseState;
  readonly granted_at: number;
  readonly start_at: number | null;
  readonly deadline_at: number;
  readonly ended_at: number | null;
  readonly report: 'completed' | 'cancelled' | null;
  readonly outcome: Outcome | null;
  readonly failure: Failure | null;
  readonly rtt_ms: number | null;
  readonly observations: string | null;
  readonly reported_at: number | null;
}

/** How large what was reported of a task's attempts is, the newest first. */
export function selectAttemptSizes(
  statements: Statements,
  { id: taskId, kind }: Pick<TaskRow, 'id' | 'kind'>,
  belowLease: number,
  limit: number,
): Promise<{ id: number; bytes: number }[]> {
  return statements.rows(
    `SELECT id, bytes FROM (
       SELECT id, 0 AS bytes FROM leases WHERE kind = $4 AND task_id = $1 AND ending IS NULL
       UNION ALL
       SELECT * FROM (
         SELECT id, coalesce(octet_length(observations), 0) AS bytes FROM leases
         WHERE task_id = $1 AND id + 0 < $2 AND ended_at IS NOT NULL ORDER BY id + 0 DESC LIMIT $3) AS ended
     ) AS attempts WHERE id < $2 ORDER BY id DESC LIMIT $3`,
    taskId,
    belowLease,
    limit,
    kind,
  );
}

/** Attempts by the ids of their leases, the oldest first. */
export function selectAttempts(statements: Statements, leaseIds: readonly number[]): Promise<AttemptRow[]> {
  return statements.rows<AttemptRow>(
    `SELECT id, agent_id, attempt, state, granted_at, start_at, deadline_at, ended_at, report, outcome, failure, rtt_ms,
       observations, reported_at
     FROM leases WHERE ${statements.dialect.isAmong('id', '$1')} ORDER BY id`,
    JSON.stringify(leaseIds),
  );
}
