import { Injectable } from '@nestjs/common';
import canonicalize from 'canonicalize';
import { Clock, toTimestamp } from '../clock';
import { Database } from '../database/database';
import { Idempotency } from '../database/idempotency';
import type { Statements, Transaction } from '../database/statements';
import { type ErrorDetails, fail } from '../errors';
import type { OperatorIdentity } from '../http/control-plane-request';
import { fitting, olderThan, type Page, pageOf } from '../http/pagination';
import { parseTimestamp } from '../http/timestamps';
import { MAX_PROBLEMS } from '../http/validation';
import { AuditLog } from '../operators/audit-log';
import { Continuity, type Interruption } from '../scheduling/continuity';
import {
  checkRange,
  cursorBehind,
  cursorOf,
  isByAttempt,
  partsOf,
  selectByAttempt,
  selectByTarget,
} from './ended-attempts';
import type { LeaseState } from './lease.entity';
import { LeaseMetrics } from './lease-metrics';
import { LeasesService } from './leases.service';
import { QueueDepth, type Shift } from './queue-depth';
import type { Outcome, Standing } from './result.entity';
import { TASK_STATES, type TaskEntity, type TaskState } from './task.entity';
import { TaskKinds } from './task-kinds';
import { TaskLog } from './task-log';
import type {
  AttemptsQuery,
  AttemptView,
  EnqueuedTask,
  EnqueueResponse,
  ResultView,
  TaskDetail,
  TaskInput,
  TaskStats,
  TasksQuery,
  TaskView,
} from './tasks.dto';

/** How often a task is tried that does not say. */
export const DEFAULT_MAX_ATTEMPTS = 5;

/** So many attempts are shown at once: a task that is retried again and again has any number of them. */
const ATTEMPTS_SHOWN = 500;

/** A task that is accepted, as it goes into the table. */
interface NewTask {
  kind: string;
  target: string;
  spec: string;
  state: TaskState;
  priority: number;
  run_at: number | null;
  not_after: number | null;
  max_attempts: number;
  unique_key: string | null;
  traceparent: string | null;
}

/** A row as the changes below need it. */
type TaskRow = Pick<TaskEntity, 'id' | 'kind' | 'target' | 'state'>;

/** Takes tasks from the states that they were read in to another: the same for all, or one for each. */
const shiftsOf = (tasks: readonly TaskRow[], to: TaskState | null | readonly TaskState[]): Shift[] =>
  tasks.map(({ kind, target, state }, i) => ({
    kind,
    target,
    from: state,
    to: Array.isArray(to) ? to[i] : to,
  }));

const COLUMNS = {
  kind: 'text',
  target: 'text',
  spec: 'text',
  state: 'text',
  priority: 'integer',
  run_at: 'integer',
  not_after: 'integer',
  max_attempts: 'integer',
  unique_key: 'text',
  traceparent: 'text',
} as const;

/** Owns tasks: what is to be done, and when it is over. */
@Injectable()
export class TasksService {
  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    continuity: Continuity,
    private readonly kinds: TaskKinds,
    private readonly depth: QueueDepth,
    private readonly leases: LeasesService,
    private readonly idempotency: Idempotency,
    private readonly audit: AuditLog,
    private readonly metrics: LeaseMetrics,
    private readonly log: TaskLog,
  ) {
    continuity.onInterruption((tx, interruption) => this.adjustBackoffs(tx, interruption));
  }

  /**
   * Adds tasks, all or none. With a key, the same call again gets the same answer and adds nothing.
   * @param by whose key it is
   * @param traceparent the trace that the tasks belong to from now on; one that is there already keeps its own
   * @throws ERR_VALIDATION naming each field that is wrong
   * @throws ERR_CONFLICT the key was used with another body, or a unique_key is held by a task that differs
   */
  async enqueue(
    by: OperatorIdentity,
    inputs: readonly TaskInput[],
    key: string | undefined,
    traceparent?: string,
  ): Promise<EnqueueResponse> {
    // What depends on the time is checked inside: a repeat of a call must not fail for being late.
    const tasks = this.accept(inputs).map((task) => ({ ...task, traceparent: traceparent ?? null }));
    const call = key === undefined ? undefined : this.idempotency.call(`tasks:${by.tokenId}`, key, inputs);
    return this.database.write(async (tx) => {
      const before = call && (await this.idempotency.find<EnqueueResponse>(tx, call));
      if (before) return before;
      const response = { tasks: await this.insert(tx, tasks) };
      if (call) await this.idempotency.store(tx, call, response);
      await this.recordEnqueue(tx, by, response);
      return response;
    });
  }

  /**
   * Lists tasks, newest first. By an agent, an outcome or a time: those that the agent holds, then by when the last attempt ended,
   * the latest first.
   * @throws ERR_VALIDATION the target is none that the kind, or any kind, can have; or the cursor is of a list in the other order
   */
  async list(query: TasksQuery): Promise<Page<TaskView>> {
    const { kind, state, target, agent_id: agentId, outcome, limit } = query;
    const targets = target === undefined ? undefined : this.kinds.findTargets(target, kind);
    const filter = {
      ...{ kind, agentId, outcome, states: state === undefined ? TASK_STATES : [state] },
      from: instantOf(query.from) ?? undefined,
      to: instantOf(query.to) ?? undefined,
    };
    checkRange(filter);
    const byAttempt = isByAttempt({ ...filter, targets });
    const cursor = cursorOf(query.cursor, byAttempt);
    return this.database.read(async (statements) => {
      if (targets !== undefined) {
        const wanted = { ...filter, targets };
        const { rows, stoppedAt } = await selectByTarget<TaskEntity>(
          ...([statements, wanted, olderThan(query), limit + 1] as const),
        );
        const page = pageOf(rows, limit, (row) => row.id, viewOf);
        return {
          ...page,
          next_cursor: page.next_cursor ?? (stoppedAt === undefined ? null : String(stoppedAt)),
        };
      }
      if (byAttempt) {
        const parts = partsOf(filter, await this.depth.kinds(statements));
        const { rows, stoppedAt } = await selectByAttempt<TaskEntity>(
          statements,
          parts,
          filter,
          't.*',
          'newest',
          cursor,
          limit + 1,
        );
        const page = pageOf(rows, limit, cursorBehind, viewOf);
        return page.next_cursor === null && stoppedAt
          ? { ...page, next_cursor: cursorBehind({ stands_at: stoppedAt.at, id: stoppedAt.id }) }
          : page;
      }
      return pageOf(await this.selectPage(statements, query), limit, (row) => row.id, viewOf);
    });
  }

  /** How many tasks of each kind are in each state, and the age of the oldest in milliseconds. */
  stats(): Promise<TaskStats> {
    return this.database.read(async (statements) => {
      const now = this.clock.now();
      const depths = (await this.depth.depths(statements)).map(({ oldest_created_at, ...depth }) => ({
        ...depth,
        oldest_age_ms: oldest_created_at === null ? null : Math.max(0, now - oldest_created_at),
      }));
      const ages = depths.flatMap((depth) => (depth.state === 'queued' ? [depth.oldest_age_ms ?? 0] : []));
      return { depths, oldest_queued_age_ms: ages.length === 0 ? null : Math.max(...ages) };
    });
  }

  /**
   * Shows a task with its attempts.
   * @returns a {@link TaskDetail} as JSON text
   * @throws ERR_NOT_FOUND there is no such task, or it is no longer kept
   */
  get(id: number, query: AttemptsQuery = {}): Promise<string> {
    return this.database.read((statements) => detailOf(statements, id, olderThan(query)));
  }

  /**
   * Cancels an unfinished task, effective when it is answered; its live lease is revoked. A cancelled one stays so.
   * @returns a {@link TaskDetail} as JSON text
   * @throws ERR_NOT_FOUND there is no such task
   * @throws ERR_CONFLICT it is completed or dead
   */
  cancel(by: OperatorIdentity, id: number): Promise<string> {
    return this.database.write(async (tx) => {
      const task = await this.lock(tx, id);
      if (task.state === 'completed' || task.state === 'dead') throw wrongState(task.state, 'cancelled');
      if (task.state !== 'cancelled') {
        await this.cancelLocked(tx, [task]);
        await this.recordState(tx, by, 'task.cancel', task, 'cancelled');
      }
      return detailOf(tx, id);
    });
  }

  /**
   * Reopens a dead or cancelled task: its attempts count from the start again, and a `not_after` that has passed no
   * longer holds.
   * @returns a {@link TaskDetail} as JSON text
   * @throws ERR_NOT_FOUND there is no such task
   * @throws ERR_CONFLICT it is neither dead nor cancelled, or another task has its unique_key now
   */
  retry(by: OperatorIdentity, id: number): Promise<string> {
    return this.database.write(async (tx) => {
      const task = await this.lock(tx, id);
      if (task.state !== 'dead' && task.state !== 'cancelled') throw wrongState(task.state, 'retried');
      if (task.unique_key !== null) {
        const holder = (await findByKeys(tx, [task.unique_key])).get(task.unique_key);
        if (holder) throw fail('ERR_CONFLICT', { unique_key: `is held by task ${holder.id}` });
      }
      const [to] = await this.reopenLocked(tx, [task]);
      await this.recordState(tx, by, 'task.retry', task, to as TaskState);
      return detailOf(tx, id);
    });
  }

  /** Cancels tasks of the unit, which has locked them with their live leases; those leases are revoked. */
  async cancelLocked(tx: Transaction, tasks: readonly TaskEntity[]): Promise<void> {
    const leases = tasks.flatMap((task) => (task.lease_id === null ? [] : [{ id: task.lease_id, task }]));
    if (leases.length > 0) await this.leases.revoke(tx, leases);
    await tx.run(
      `UPDATE tasks SET state = 'cancelled', reason = 'operator', lease_id = NULL, updated_at = $2, finished_at = $2
       WHERE ${tx.dialect.isAmong('id', '$1')}`,
      JSON.stringify(tasks.map(({ id }) => id)),
      tx.now,
    );
    await this.depth.shift(tx, shiftsOf(tasks, 'cancelled'));
    this.log.cancelled(tx, tasks);
  }

  /**
   * Reopens tasks of the unit, which has locked them; nobody else may have a unique_key of theirs.
   * @returns their states from now on, in the order given
   */
  async reopenLocked(tx: Transaction, tasks: readonly TaskEntity[]): Promise<TaskState[]> {
    const states = await this.depth.readyStates(tx, tasks);
    await tx.run(
      `UPDATE tasks SET state = r.state, reason = NULL, attempts = 0, run_at = NULL, finished_at = NULL, updated_at = $2,
         not_after = CASE WHEN not_after > $2 THEN not_after END
       FROM ${tx.dialect.rowset('$1', { id: 'integer', state: 'text' })} AS r
       WHERE tasks.id = r.id AND ${tx.dialect.prefilterByList('tasks.id', '$3')}`,
      JSON.stringify(tasks.map(({ id }, i) => ({ id, state: states[i] }))),
      tx.now,
      JSON.stringify(tasks.map(({ id }) => id)),
    );
    await this.depth.shift(tx, shiftsOf(tasks, states));
    this.log.retried(tx, tasks);
    return states;
  }

  private async lock(tx: Transaction, id: number): Promise<TaskEntity> {
    await this.leases.lockLive(tx, [id]);
    return findTask(tx, id, tx.dialect.forUpdate());
  }

  private recordEnqueue(tx: Transaction, by: OperatorIdentity, { tasks }: EnqueueResponse): Promise<void> {
    const ids = tasks.map((task) => task.id);
    const [first, last] = [Math.min(...ids), Math.max(...ids)];
    return this.audit.record(tx, by, {
      action: 'task.enqueue',
      subject: first === last ? `task/${first}` : 'tasks',
      after: { count: tasks.length, first_id: first, last_id: last },
    });
  }

  private recordState(
    tx: Transaction,
    by: OperatorIdentity,
    action: string,
    task: TaskRow,
    state: TaskState,
  ): Promise<void> {
    return this.audit.record(tx, by, {
      action,
      subject: `task/${task.id}`,
      before: { state: task.state },
      after: { state },
    });
  }

  /**
   * If the clock was set back, a task that waits for its next attempt waits as long as it would have, and no longer. The
   * instants that operators named are theirs.
   */
  private async adjustBackoffs(tx: Transaction, { now, lastSeen }: Interruption): Promise<void> {
    if (lastSeen <= now) return;
    await tx.run(
      `UPDATE tasks SET run_at = ${tx.dialect.greatest('$1', 'run_at - $2')}
       WHERE state = 'scheduled' AND attempts > 0 AND run_at > $1`,
      now,
      lastSeen - now,
    );
  }

  /** Whether a scheduled task's instant has come, or an unfinished one's time is up. */
  async anyDue(statements: Statements): Promise<boolean> {
    const row = await statements.first(
      `SELECT id FROM (SELECT id FROM tasks WHERE state = 'scheduled' AND run_at <= $1 ORDER BY run_at LIMIT 1) AS due
       UNION ALL
       SELECT id FROM (SELECT id FROM tasks WHERE ${CAN_RUN_OUT} AND not_after <= $1 ORDER BY not_after LIMIT 1) AS overdue`,
      this.clock.now(),
    );
    return row !== undefined;
  }

  /**
   * Makes scheduled tasks ready whose instant has come; those over a ceiling wait.
   * @param limit how many at most
   * @returns how many
   */
  makeReady(limit: number): Promise<number> {
    return this.database.write(async (tx) => {
      const { now } = tx;
      const tasks = await tx.rows<TaskRow>(
        `SELECT id, kind, target, state FROM tasks WHERE state = 'scheduled' AND run_at <= $1 ORDER BY run_at, id LIMIT $2
         ${tx.dialect.skipLocked()}`,
        now,
        limit,
      );
      const states = await this.depth.readyStates(tx, tasks);
      await tx.run(
        `UPDATE tasks SET state = r.state, updated_at = $2
         FROM ${tx.dialect.rowset('$1', { id: 'integer', state: 'text' })} AS r WHERE tasks.id = r.id AND ${tx.dialect.prefilterByList('tasks.id', '$3')}`,
        JSON.stringify(tasks.map(({ id }, i) => ({ id, state: states[i] }))),
        now,
        JSON.stringify(tasks.map(({ id }) => id)),
      );
      await this.depth.shift(tx, shiftsOf(tasks, states));
      return tasks.length;
    });
  }

  /**
   * Ends tasks that nobody holds and whose `not_after` has come.
   * @param limit how many at most
   * @returns how many
   */
  endOverdue(limit: number): Promise<number> {
    return this.database.write(async (tx) => {
      const { now } = tx;
      const tasks = await tx.rows<TaskRow & Pick<TaskEntity, 'traceparent'>>(
        `SELECT id, kind, target, state, traceparent FROM tasks WHERE ${CAN_RUN_OUT} AND not_after <= $1 ORDER BY not_after, id LIMIT $2
         ${tx.dialect.skipLocked()}`,
        now,
        limit,
      );
      await tx.run(
        `UPDATE tasks SET state = 'dead', reason = 'not_after', updated_at = $2, finished_at = $2
         WHERE ${tx.dialect.isAmong('id', '$1')}`,
        JSON.stringify(tasks.map((task) => task.id)),
        now,
      );
      await this.depth.shift(tx, shiftsOf(tasks, 'dead'));
      this.metrics.countDead(
        tx,
        tasks.map(({ kind }) => ({ kind, to: 'dead', reason: 'not_after' })),
      );
      this.log.dead(
        tx,
        tasks.map((task) => ({ ...task, reason: 'not_after' })),
      );
      return tasks.length;
    });
  }

  /**
   * Deletes tasks that were finished before an instant, with their leases and results.
   * @param limit how many at most
   * @returns how many
   */
  deleteFinished(beforeMs: number, limit: number): Promise<number> {
    return this.database.write(async (tx) => {
      const gone = await tx.rows<TaskRow>(
        `DELETE FROM tasks WHERE id IN (
           SELECT id FROM tasks WHERE finished_at IS NOT NULL AND finished_at < $1 ORDER BY finished_at LIMIT $2
           ${tx.dialect.skipLocked()})
         RETURNING id, kind, target, state`,
        beforeMs,
        limit,
      );
      await this.depth.shift(tx, shiftsOf(gone, null));
      return gone.length;
    });
  }

  /** Checks what does not depend on the time. @throws ERR_VALIDATION */
  private accept(inputs: readonly TaskInput[]): Omit<NewTask, 'state' | 'traceparent'>[] {
    const problems: ErrorDetails = {};
    const tasks: Omit<NewTask, 'state' | 'traceparent'>[] = [];
    for (let i = 0; i < inputs.length && Object.keys(problems).length < MAX_PROBLEMS; i++) {
      const input = inputs[i] as TaskInput;
      const accepted = this.kinds.accept(input.kind, input.spec, `tasks.${i}.`);
      if ('problems' in accepted) {
        Object.assign(problems, accepted.problems);
        continue;
      }
      tasks.push({
        kind: input.kind,
        ...accepted,
        priority: input.priority ?? 0,
        run_at: instantOf(input.run_at),
        not_after: instantOf(input.not_after),
        max_attempts: input.max_attempts ?? DEFAULT_MAX_ATTEMPTS,
        unique_key: input.unique_key ?? null,
      });
    }
    if (Object.keys(problems).length > 0) throw fail('ERR_VALIDATION', problems);
    return tasks;
  }

  /** Stores accepted tasks, all or none. @returns them in the order given; one that was there already as it is */
  private async insert(tx: Transaction, tasks: readonly Omit<NewTask, 'state'>[]): Promise<EnqueuedTask[]> {
    const { now } = tx;
    checkTimes(tasks, now);
    // Whoever sets ceilings locks the table before the counters; so does everybody who comes to write to it. Before the first
    // look, so that what is told of a task that is there already is of the same instant as what is told of new ones.
    const lock = tx.dialect.lockTable('tasks', 'shared');
    if (lock) await tx.run(lock);
    const keys = tasks.flatMap((task) => task.unique_key ?? []);
    const holders = keys.length === 0 ? new Map<string, KeyHolder>() : await findByKeys(tx, keys);
    /** For each task the place of its row among the new ones, or the task that is there already. */
    const places: (number | EnqueuedTask)[] = [];
    const rows: NewTask[] = [];
    const firstOfKey = new Map<string, number>();
    tasks.forEach((task, i) => {
      const { unique_key: key } = task;
      const holder = key === null ? undefined : holders.get(key);
      const first = key === null ? undefined : firstOfKey.get(key);
      const same = holder ?? (first === undefined ? undefined : rows[first]);
      if (same && (same.kind !== task.kind || !isSameJson(same.spec, task.spec))) {
        throw fail('ERR_CONFLICT', {
          [`tasks.${i}.unique_key`]: 'is held by an unfinished task of another kind or spec',
        });
      }
      if (holder) {
        places.push({ id: holder.id, state: holder.state });
      } else if (first !== undefined) {
        places.push(first);
      } else {
        if (key !== null) firstOfKey.set(key, rows.length);
        places.push(rows.length);
        rows.push({ ...task, state: 'scheduled' });
      }
    });
    const ready = rows.filter((row) => row.run_at === null || row.run_at <= now);
    const states = await this.depth.readyStates(tx, ready);
    ready.forEach((row, i) => {
      row.state = states[i] as TaskState;
    });
    const ids = await this.insertRows(tx, rows, now);
    await this.depth.shift(
      tx,
      rows.map(({ kind, target, state }) => ({ kind, target, from: null, to: state })),
    );
    this.metrics.countEnqueued(tx, rows);
    this.log.enqueued(
      tx,
      rows.map(({ kind, traceparent }, i) => ({ kind, traceparent, id: ids[i] as number })),
    );
    return places.map((place) =>
      typeof place === 'number' ? { id: ids[place] as number, state: (rows[place] as NewTask).state } : place,
    );
  }

  private async insertRows(tx: Transaction, rows: readonly NewTask[], now: number): Promise<number[]> {
    if (rows.length === 0) return [];
    const names = Object.keys(COLUMNS).join(', ');
    const inserted = await tx.rows<{ id: number }>(
      `INSERT INTO tasks (${names}, attempts, created_at, updated_at)
       SELECT ${names}, 0, $2, $2 FROM ${tx.dialect.rowset('$1', COLUMNS)} AS r RETURNING id`,
      JSON.stringify(rows),
      now,
    );
    // Ids are given in the order of the list; in which order RETURNING names them is not promised.
    return inserted.map((row) => row.id).sort((a, b) => a - b);
  }

  /** One row more than the page has, where there is one. */
  private async selectPage(statements: Statements, query: TasksQuery): Promise<TaskEntity[]> {
    const before = olderThan(query);
    const wanted = query.limit + 1;
    const { kind, state } = query;
    if (kind === undefined && state === undefined) {
      return statements.rows<TaskEntity>(
        'SELECT * FROM tasks WHERE id < $1 ORDER BY id DESC LIMIT $2',
        before,
        wanted,
      );
    }
    // One index serves all filters: a page of each combination of kind and state, merged.
    const kinds = kind === undefined ? await this.depth.kinds(statements) : [kind];
    if (kinds.length === 0) return [];
    const states = state === undefined ? TASK_STATES : [state];
    const values: (string | number)[] = [before, wanted];
    const pages = kinds.flatMap((k) =>
      states.map((s) => {
        values.push(k, s);
        return `SELECT * FROM (SELECT * FROM tasks WHERE kind = $${values.length - 1} AND state = $${values.length} AND id < $1
          ORDER BY id DESC LIMIT $2) AS p${values.length}`;
      }),
    );
    return statements.rows<TaskEntity>(`${pages.join(' UNION ALL ')} ORDER BY id DESC LIMIT $2`, ...values);
  }
}

/** An unfinished task that has a unique key. */
type KeyHolder = Pick<TaskEntity, 'id' | 'kind' | 'spec' | 'state'> & { unique_key: string };

/** The unfinished tasks that have one of the unique keys, by key. */
export async function findByKeys(
  statements: Statements,
  keys: readonly string[],
): Promise<Map<string, KeyHolder>> {
  const rows = await statements.rows<KeyHolder>(
    `SELECT t.id, t.kind, t.spec, t.state, t.unique_key FROM ${statements.dialect.rowset('$1', { key: 'text' })} AS r
     JOIN tasks t ON t.unique_key = r.key
     WHERE t.unique_key IS NOT NULL AND t.state IN ('scheduled', 'waiting', 'queued', 'leased')`,
    JSON.stringify([...new Set(keys)].map((key) => ({ key }))),
  );
  return new Map(rows.map((row) => [row.unique_key, row]));
}

/** Tasks that end by their `not_after`: a leased one ends by its lease. As the partial index says it, word for word. */
const CAN_RUN_OUT = `not_after IS NOT NULL AND state IN ('scheduled', 'waiting', 'queued')`;

/** Whether two texts are the same JSON, in whatever order the fields are. */
const isSameJson = (a: string, b: string): boolean =>
  a === b || canonicalize(JSON.parse(a)) === canonicalize(JSON.parse(b));

/** In ms since the epoch. */
export const instantOf = (text: string | null | undefined): number | null =>
  text === undefined || text === null ? null : (parseTimestamp(text) ?? null);

/** @throws ERR_VALIDATION a task whose time is up before it could begin */
function checkTimes(tasks: readonly Pick<NewTask, 'run_at' | 'not_after'>[], now: number): void {
  const problems: ErrorDetails = {};
  tasks.forEach(({ run_at, not_after }, i) => {
    if (not_after === null || Object.keys(problems).length >= MAX_PROBLEMS) return;
    if (not_after <= now) problems[`tasks.${i}.not_after`] = 'must be in the future';
    else if (run_at !== null && not_after <= run_at)
      problems[`tasks.${i}.not_after`] = 'must be after run_at';
  });
  if (Object.keys(problems).length > 0) throw fail('ERR_VALIDATION', problems);
}

function wrongState(state: TaskState, verb: string) {
  return fail('ERR_CONFLICT', { state }, { message: `A ${state} task can't be ${verb}.` });
}

async function findTask(statements: Statements, id: number, lock = ''): Promise<TaskEntity> {
  const task = await statements.first<TaskEntity>(`SELECT * FROM tasks WHERE id = $1 ${lock}`, id);
  if (!task) throw fail('ERR_NOT_FOUND', { task_id: id });
  return task;
}

interface AttemptRow {
  id: number;
  agent_id: number;
  attempt: number;
  state: LeaseState;
  granted_at: number;
  deadline_at: number;
  ended_at: number | null;
  standing: Standing | null;
  report: 'completed' | 'cancelled';
  outcome: Outcome | null;
  observations: string;
  received_at: number;
}

/**
 * A task with the newest attempts below a lease's id, as many as an answer takes: observations can be large. As JSON text:
 * observations go in as they were sent, which to parse and write them again could not promise.
 */
async function detailOf(
  statements: Statements,
  id: number,
  beforeLease = Number.MAX_SAFE_INTEGER,
): Promise<string> {
  const task = await findTask(statements, id);
  const found = await statements.rows<{ id: number; bytes: number }>(
    `SELECT l.id, coalesce(octet_length(r.observations), 0) AS bytes
     FROM leases l LEFT JOIN results r ON r.lease_id = l.id WHERE l.task_id = $1 AND l.id < $2
     ORDER BY l.id DESC LIMIT $3`,
    id,
    beforeLease,
    ATTEMPTS_SHOWN + 1,
  );
  const page = pageOf(found, fitting(found, ATTEMPTS_SHOWN), (lease) => lease.id);
  const attempts = await statements.rows<AttemptRow>(
    `SELECT l.id, l.agent_id, l.attempt, l.state, l.granted_at, l.deadline_at, l.ended_at,
       r.standing, r.report, r.outcome, r.observations, r.received_at
     FROM leases l LEFT JOIN results r ON r.lease_id = l.id
     WHERE ${statements.dialect.isAmong('l.id', '$1')} ORDER BY l.id`,
    JSON.stringify(page.items.map((lease) => lease.id)),
  );
  const front = JSON.stringify({ ...viewOf(task), next_cursor: page.next_cursor });
  return withMember(front, 'leases', `[${attempts.map(textOfAttempt).join(',')}]`);
}

/** The text of an object with one more member, whose value is JSON text. */
const withMember = (object: string, name: string, value: string): string =>
  `${object.slice(0, -1)},"${name}":${value}}`;

function textOfAttempt(row: AttemptRow): string {
  const attempt: Omit<AttemptView, 'result'> = {
    lease_id: row.id,
    agent_id: row.agent_id,
    attempt: row.attempt,
    state: row.state,
    granted_at: toTimestamp(row.granted_at),
    deadline_at: toTimestamp(row.deadline_at),
    ended_at: toTimestamp(row.ended_at),
  };
  return withMember(
    JSON.stringify(attempt),
    'result',
    row.standing === null ? 'null' : textOfResult(row, row.standing),
  );
}

function textOfResult(row: AttemptRow, standing: Standing): string {
  const result: Omit<ResultView, 'observations'> = {
    standing,
    report: row.report,
    outcome: row.outcome,
    received_at: toTimestamp(row.received_at),
  };
  return withMember(JSON.stringify(result), 'observations', row.observations);
}

function viewOf(task: TaskEntity): TaskView {
  return {
    id: task.id,
    kind: task.kind,
    target: task.target,
    spec: JSON.parse(task.spec),
    state: task.state,
    reason: task.reason,
    priority: task.priority,
    run_at: toTimestamp(task.run_at),
    not_after: toTimestamp(task.not_after),
    attempts: task.attempts,
    max_attempts: task.max_attempts,
    unique_key: task.unique_key,
    created_at: toTimestamp(task.created_at),
    updated_at: toTimestamp(task.updated_at),
    finished_at: toTimestamp(task.finished_at),
    last_outcome: task.last_outcome,
    last_error: task.last_error === null ? null : JSON.parse(task.last_error),
    last_agent_id: task.last_agent_id,
    last_ended_at: toTimestamp(task.last_ended_at),
  };
}
