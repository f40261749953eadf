import type { AttemptOutcome } from '../agents/agent.entity';
import type { NamedWindow } from '../concurrency/windows.queries';
import type { Statements, Transaction } from '../database/statements';
import type { Failure, Outcome } from '../kinds/observations';
import type { TransitionTask } from '../queue/transitions';
import type { LeaseState } from './lease.entity';

/** A lease with what is needed of its task to end it. */
export interface HeldLease extends Omit<TransitionTask, 'id'> {
  readonly id: number;
  readonly task_id: number;
  readonly agent_id: number;
  readonly attempt: number;
  readonly granted_at: number;
  readonly max_attempts: number;
}

/** A lease of the caller as a report finds it. */
export interface ReportedLease extends HeldLease {
  readonly state: LeaseState;
  readonly report: 'completed' | 'cancelled' | null;
  readonly outcome: Outcome | null;
}

/** That a lease found by its id is live, in a way that fits none of the indexes of live leases. */
const isLive = (table: string): string => `coalesce(${table}.state, '') = 'active'`;

const HELD = `l.id, l.task_id, l.agent_id, l.attempt, l.granted_at, t.kind, t.target, t.priority, t.not_after,
  t.unique_key, t.traceparent, t.max_attempts`;

// The task's row needs no lock: while its lease is live nobody changes what is read of it here.
const FROM = 'FROM leases l JOIN tasks t ON t.id = l.task_id';

/** Where the search for an agent's live leases begins. */
export interface HeldFrom {
  readonly agent_id: number;
  /** No lease of the agent with a lower id is live. */
  readonly from: number;
}

/** The live leases of one kind that an agent holds. */
export interface Held {
  readonly agent_id: number;
  readonly kind: string;
  readonly count: number;
  /** The lowest of their ids. */
  readonly oldest: number;
}

/** How many live leases of each kind the agents hold. */
export function countHeldByKind(statements: Statements, agents: readonly HeldFrom[]): Promise<Held[]> {
  const { ofEach, rowset } = statements.dialect;
  return statements.rows(
    ofEach(
      rowset('$1', { agent_id: 'integer', from_id: 'integer' }),
      'agent_id',
      ['kind', 'count', 'oldest'],
      `SELECT kind, count(*) AS count, min(id) AS oldest FROM leases
       WHERE state = 'active' AND agent_id = r.agent_id AND id + 0 >= r.from_id GROUP BY kind`,
    ),
    JSON.stringify(agents.map(({ agent_id, from }) => ({ agent_id, from_id: from }))),
  );
}

/** A lease to grant. */
export interface NewLease {
  readonly task_id: number;
  readonly agent_id: number;
  readonly kind: string;
  readonly attempt: number;
  /** When its agent may start, in ms since the epoch; null if at once. */
  readonly start_at: number | null;
}

const NEW_LEASE = {
  task_id: 'integer',
  agent_id: 'integer',
  kind: 'text',
  attempt: 'integer',
  start_at: 'integer',
} as const;

/** Grants leases from an instant on. @returns the id of each by its task */
export async function insertLeases(
  tx: Transaction,
  leases: readonly NewLease[],
  grantedAt: number,
  durationMs: number,
  lifetimeMs: number,
): Promise<Map<number, number>> {
  if (leases.length === 0) return new Map();
  const rows = await tx.rows<{ id: number; task_id: number }>(
    `INSERT INTO leases (task_id, agent_id, kind, attempt, start_at, state, granted_at, deadline_at, lifetime_ends_at)
     SELECT task_id, agent_id, kind, attempt, start_at, 'active', $2, $3, $4
     FROM ${tx.dialect.rowset('$1', NEW_LEASE)} AS r
     RETURNING id, task_id`,
    JSON.stringify(leases),
    grantedAt,
    grantedAt + durationMs,
    grantedAt + lifetimeMs,
  );
  return new Map(rows.map((row) => [row.task_id, row.id]));
}

/** A live lease as it is granted again. */
export interface LiveLease {
  readonly id: number;
  readonly lease_id: number;
  readonly kind: string;
  readonly spec: string;
  readonly traceparent: string | null;
  readonly deadline_at: number;
  readonly start_at: number | null;
}

/** Those of an agent's leases that are live, with their tasks. */
export function selectLive(
  statements: Statements,
  agentId: number,
  leaseIds: readonly number[],
): Promise<LiveLease[]> {
  return statements.rows<LiveLease>(
    `SELECT l.id AS lease_id, t.id, t.kind, t.spec, t.traceparent, l.deadline_at, l.start_at ${FROM}
     WHERE ${statements.dialect.isAmong('l.id', '$1')} AND l.agent_id = $2 AND ${isLive('l')}`,
    JSON.stringify(leaseIds),
    agentId,
  );
}

/** That a lease, `l`, belongs to the agent that names it in $1. */
const isOwned = ({ dialect }: Statements): string =>
  `(l.id, l.agent_id) IN (SELECT r.id, r.agent_id FROM ${dialect.rowset('$1', { id: 'integer', agent_id: 'integer' })} AS r)`;

/** A deadline that an agent asks for. */
export interface Extension {
  readonly id: number;
  readonly agent_id: number;
  readonly until: number;
}

/**
 * Moves the deadlines of live leases, never nearer and never past their lifetime. Locks them by ascending ids, as reports do, in
 * whatever order the agents name them.
 * @returns those that are live
 */
export async function extendLeases(
  tx: Transaction,
  extensions: readonly Extension[],
): Promise<{ id: number; agent_id: number; deadline_at: number }[]> {
  if (extensions.length === 0) return [];
  const values = [JSON.stringify(extensions), JSON.stringify(extensions.map(({ id }) => id))] as const;
  const { concurrent, forUpdate, greatest, isAmong, least, prefilterByList, rowset } = tx.dialect;
  const until = least('r.until', 'leases.lifetime_ends_at');
  // Two statements: in one, PostgreSQL reads the list again for each lease.
  const [, rows] = await Promise.all([
    concurrent &&
      tx.rows(
        `SELECT l.id FROM leases l WHERE ${isAmong('l.id', '$2')} AND ${isLive('l')} AND ${isOwned(tx)}
         ORDER BY l.id ${forUpdate()}`,
        ...values,
      ),
    tx.rows<{ id: number; agent_id: number; deadline_at: number }>(
      `UPDATE leases SET deadline_at = ${greatest('leases.deadline_at', until)}
       FROM ${rowset('$1', { id: 'integer', agent_id: 'integer', until: 'integer' })} AS r
       WHERE leases.id = r.id AND leases.agent_id = r.agent_id AND ${isLive('leases')}
         AND ${prefilterByList('leases.id', '$2')}
       RETURNING leases.id, leases.agent_id, leases.deadline_at`,
      ...values,
    ),
  ]);
  return rows;
}

/**
 * Reads leases that reports name, and keeps other units from ending them meanwhile. Those of other agents are left out: locked,
 * the reaper would skip them.
 */
export function lockReported(
  tx: Transaction,
  reported: readonly { readonly id: number; readonly agent_id: number }[],
): Promise<ReportedLease[]> {
  if (reported.length === 0) return Promise.resolve([]);
  return tx.rows<ReportedLease>(
    `SELECT ${HELD}, l.state, l.report, l.outcome ${FROM} WHERE ${tx.dialect.isAmong('l.id', '$2')}
       AND ${isOwned(tx)}
     ORDER BY l.id ${tx.dialect.forUpdate('l')}`,
    JSON.stringify(reported),
    JSON.stringify(reported.map(({ id }) => id)),
  );
}

/**
 * Live leases whose deadline has passed, the earliest first; those that another unit has locked are left out.
 * @param from no live lease has a deadline before it
 */
export function lockOverdue(tx: Transaction, from: number, limit: number): Promise<HeldLease[]> {
  return tx.rows<HeldLease>(
    `SELECT ${HELD} ${FROM} WHERE l.ended_at IS NULL AND l.deadline_at >= $1 AND l.deadline_at <= $2
     ORDER BY l.deadline_at, l.id LIMIT $3 ${tx.dialect.skipLocked('l')}`,
    from,
    tx.now,
    limit,
  );
}

/** The live leases of agents. */
export function lockHeldBy(tx: Transaction, agentIds: readonly number[]): Promise<HeldLease[]> {
  return tx.rows<HeldLease>(
    `SELECT ${HELD} ${FROM} WHERE l.state = 'active' AND ${tx.dialect.isAmong('l.agent_id', '$1')}
     ORDER BY l.id ${tx.dialect.forUpdate('l')}`,
    JSON.stringify(agentIds),
  );
}

/** The live leases of tasks. */
export function lockLiveOf(
  tx: Transaction,
  tasks: readonly { readonly id: number; readonly kind: string }[],
): Promise<HeldLease[]> {
  if (tasks.length === 0) return Promise.resolve([]);
  return tx.rows<HeldLease>(
    `SELECT ${HELD} FROM ${tx.dialect.rowset('$1', { kind: 'text', task_id: 'integer' })} AS r
     CROSS JOIN leases l JOIN tasks t ON t.id = l.task_id
     WHERE l.kind = r.kind AND l.task_id = r.task_id AND l.ending IS NULL AND ${tx.dialect.prefilterByList('l.task_id', '$2')}
     ORDER BY l.id ${tx.dialect.forUpdate('l')}`,
    JSON.stringify(tasks.map(({ id, kind }) => ({ kind, task_id: id }))),
    JSON.stringify(tasks.map(({ id }) => id)),
  );
}

/** How a live lease ends. */
export interface LeaseEnd {
  readonly id: number;
  readonly state: Exclude<LeaseState, 'active'>;
  readonly ending: AttemptOutcome | 'revoked';
  readonly report: 'completed' | 'cancelled' | null;
  readonly outcome: Outcome | null;
  /** JSON list; null if there are none. */
  readonly observations: string | null;
  readonly error: string | null;
  readonly failure: Failure | null;
  readonly rtt_ms: number | null;
}

const END = {
  id: 'integer',
  state: 'text',
  ending: 'text',
  report: 'text',
  outcome: 'text',
  observations: 'text',
  error: 'text',
  failure: 'text',
  rtt_ms: 'real',
} as const;

/** Ends locked live leases, with what was reported of them. @throws Error one of them is not live */
export async function endLeases(tx: Transaction, ends: readonly LeaseEnd[]): Promise<void> {
  if (ends.length === 0) return;
  const ended = await tx.run(
    `UPDATE leases SET state = r.state, ended_at = $2, ending = r.ending, report = r.report, outcome = r.outcome,
       observations = r.observations, error = r.error, failure = r.failure, rtt_ms = r.rtt_ms,
       reported_at = CASE WHEN r.report IS NOT NULL THEN CAST($2 AS bigint) END
     FROM ${tx.dialect.rowset('$1', END)} AS r
     WHERE leases.id = r.id AND ${isLive('leases')} AND ${tx.dialect.prefilterByList('leases.id', '$3')}`,
    JSON.stringify(ends),
    tx.now,
    JSON.stringify(ends.map(({ id }) => id)),
  );
  if (ended !== ends.length) throw new Error(`${ends.length} leases were to end, ${ended} were active`);
}

/** What is kept of a late report. */
type LateReportRow = Pick<LeaseEnd, 'id' | 'report' | 'outcome' | 'observations' | 'failure' | 'rtt_ms'>;

const LATE = {
  id: 'integer',
  report: 'text',
  outcome: 'text',
  observations: 'text',
  failure: 'text',
  rtt_ms: 'real',
} as const;

/** Keeps what was reported of leases that had ended already; the first report of each stays. */
export async function keepLateReports(tx: Transaction, reports: readonly LateReportRow[]): Promise<void> {
  if (reports.length === 0) return;
  await tx.run(
    `UPDATE leases SET report = r.report, outcome = r.outcome, observations = r.observations,
       failure = r.failure, rtt_ms = r.rtt_ms, reported_at = $2
     FROM ${tx.dialect.rowset('$1', LATE)} AS r
     WHERE leases.id = r.id AND leases.report IS NULL AND ${tx.dialect.prefilterByList('leases.id', '$3')}`,
    JSON.stringify(
      reports.map(({ id, report, outcome, observations, failure, rtt_ms }) => ({
        ...{ id, report, outcome, observations, failure, rtt_ms },
      })),
    ),
    tx.now,
    JSON.stringify(reports.map(({ id }) => id)),
  );
}

/** The earliest deadline of a live lease from an instant on, in ms since the epoch; undefined if there is none. */
export async function earliestDeadline(statements: Statements, from: number): Promise<number | undefined> {
  const row = await statements.first<{ deadline_at: number }>(
    `SELECT deadline_at FROM leases WHERE ended_at IS NULL AND deadline_at >= $1 ORDER BY deadline_at LIMIT 1`,
    from,
  );
  return row?.deadline_at;
}

/**
 * Has every live lease end at an instant at the earliest.
 * @param shiftMs how far the clock was set back, as a negative number: deadlines lie as far ahead as before then
 */
export async function adjustDeadlines(tx: Transaction, earliest: number, shiftMs: number): Promise<void> {
  await tx.run(
    `UPDATE leases SET deadline_at = ${tx.dialect.greatest('$1', 'deadline_at + $2')}, lifetime_ends_at = lifetime_ends_at + $2
     WHERE ended_at IS NULL AND (deadline_at < $1 OR $2 < 0)`,
    earliest,
    shiftMs,
  );
}

/** Deletes the leases of finished tasks: all of them have ended. */
export async function deleteLeasesOf(tx: Transaction, taskIds: readonly number[]): Promise<void> {
  await tx.run(
    `DELETE FROM leases WHERE ended_at IS NOT NULL AND ${tx.dialect.isAmong('task_id', '$1')}`,
    JSON.stringify(taskIds),
  );
}

/**
 * Counts the live leases in each of the windows, in order. For all windows together it reads the live leases once, and looks up
 * the task of each lease whose kind has a window of a target. Neither is a join or a plain condition: with old statistics
 * PostgreSQL might read all live leases for each window.
 */
export async function countInWindows(
  statements: Statements,
  windows: readonly NamedWindow[],
): Promise<number[]> {
  if (windows.length === 0) return [];
  const named = statements.dialect.rowset('$1', { scope: 'text', kind: 'text', target: 'text' });
  const rows = await statements.rows<{ kind: string; target: string | null; count: number }>(
    `SELECT kind, CASE WHEN (kind, target) IN (SELECT r.kind, r.target FROM ${named} AS r) THEN target END AS target,
       sum(count) AS count
     FROM (
       SELECT l.kind, CASE WHEN l.kind IN (SELECT r.kind FROM ${named} AS r WHERE r.scope = 'target')
           THEN (SELECT t.target FROM tasks t WHERE t.id = l.task_id) END AS target, count(*) AS count
       FROM leases l
       WHERE l.ending IS NULL AND (l.kind IN (SELECT r.kind FROM ${named} AS r)
         OR EXISTS (SELECT 1 FROM ${named} AS r WHERE r.scope = 'global'))
       GROUP BY 1, 2) AS live
     GROUP BY 1, 2`,
    JSON.stringify(windows.map(({ scope, kind, target }) => ({ scope, kind, target }))),
  );
  const counts = new Map<string, number>();
  const add = (name: string, count: number) => counts.set(name, (counts.get(name) ?? 0) + count);
  for (const { kind, target, count } of rows) {
    add('global', count);
    add(`kind ${kind}`, count);
    if (target !== null) add(`target ${kind}\0${target}`, count);
  }
  const nameOf = ({ scope, kind, target }: NamedWindow): string =>
    scope === 'global' ? scope : scope === 'kind' ? `kind ${kind}` : `target ${kind}\0${target}`;
  return windows.map((window) => counts.get(nameOf(window)) ?? 0);
}

/** Counts the live leases of a kind at each target that has some. */
export function countLeasedByTarget(
  statements: Statements,
  kind: string,
): Promise<{ target: string; count: number }[]> {
  return statements.rows(
    `SELECT target, count(*) AS count FROM (
       SELECT (SELECT t.target FROM tasks t WHERE t.id = l.task_id) AS target
       FROM leases l WHERE l.kind = $1 AND l.ending IS NULL) AS live
     GROUP BY target`,
    kind,
  );
}

/** The specs of tasks, by id. */
export async function selectSpecs(
  statements: Statements,
  taskIds: readonly number[],
): Promise<Map<number, string>> {
  const rows = await statements.rows<{ id: number; spec: string }>(
    `SELECT id, spec FROM tasks WHERE ${statements.dialect.isAmong('id', '$1')}`,
    JSON.stringify(taskIds),
  );
  return new Map(rows.map(({ id, spec }) => [id, spec]));
}

/** The lease before each of these, of the same task. */
export async function selectPreviousLeases(
  tx: Transaction,
  leases: readonly { id: number; taskId: number }[],
): Promise<Map<number, number>> {
  if (leases.length === 0) return new Map();
  const rows = await tx.rows<{ id: number; previous: number | null }>(
    `SELECT r.id, (SELECT l.id FROM leases l WHERE l.task_id = r.task_id AND l.ended_at IS NOT NULL AND l.id + 0 < r.id ORDER BY l.id + 0 DESC LIMIT 1) AS previous
     FROM ${tx.dialect.rowset('$1', { id: 'integer', task_id: 'integer' })} AS r`,
    JSON.stringify(leases.map(({ id, taskId }) => ({ id, task_id: taskId }))),
  );
  return new Map(rows.flatMap(({ id, previous }) => (previous === null ? [] : [[id, previous]])));
}
