import { Injectable } from '@nestjs/common';
import canonicalize from 'canonicalize';
import { Clock, toTimestamp } from '../clock';
import { Database } from '../database/database';
import { UnitConflict } from '../database/database-error';
import { Idempotency } from '../database/idempotency';
import type { Statements, Transaction } from '../database/statements';
import { type ErrorDetails, fail } from '../errors';
import type { OperatorIdentity } from '../http/control-plane-request';
import { fitting, olderThan, type Page, pageOf } from '../http/pagination';
import { parseTimestamp } from '../http/timestamps';
import { MAX_PROBLEMS } from '../http/validation';
import { TaskKinds } from '../kinds/task-kinds';
import { standingOf } from '../leases/lease.entity';
import { LeaseEndings } from '../leases/lease-endings';
import { AuditLog } from '../operators/audit-log';
import { QueueDepth } from '../queue/depth';
import { isFinished, TASK_STATES, type TaskState } from '../queue/task.entity';
import { type TaskChange, TaskTransitions } from '../queue/transitions';
import { type NewTaskRow, setBackBackoffs } from '../queue/transitions.queries';
import { Continuity, type Interruption } from '../scheduling/continuity';

import {
  checkRange,
  cursorBehind,
  cursorOf,
  isByInstant,
  partsOf,
  selectListed,
  type TaskFilter,
} from './task-lists.queries';
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
import {
  type AttemptRow,
  selectAttemptSizes,
  selectAttempts,
  selectKeyHolders,
  selectTask,
  type TaskRow,
} from './tasks.queries';

/** How often a task is tried that does not say. */
export const DEFAULT_MAX_ATTEMPTS = 5;

/** How many attempts are shown at once: a task that is retried again and again has any number of them. */
const ATTEMPTS_SHOWN = 500;

/** Owns tasks: what is to be done, and when it is over. */
@Injectable()
export class TasksService {
  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    continuity: Continuity,
    private readonly kinds: TaskKinds,
    private readonly transitions: TaskTransitions,
    private readonly depth: QueueDepth,
    private readonly leases: LeaseEndings,
    private readonly idempotency: Idempotency,
    private readonly audit: AuditLog,
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
   * Lists tasks, newest first: by when they ended, if they are asked for by a state in which tasks are finished; by
   * when the last attempt ended, if they are asked for by an agent, an outcome or a time, those that the agent holds
   * first; else by ids.
   * @throws ERR_VALIDATION the target is none that the kind, or any kind, can have; or the cursor is of a list in
   * another order
   */
  async list(query: TasksQuery): Promise<Page<TaskView>> {
    const { limit } = query;
    const filter = this.filterOf(query, query.state === undefined ? TASK_STATES : [query.state]);
    const byInstant = isByInstant(filter);
    const cursor = cursorOf(query.cursor, byInstant);
    return this.database.read(async (statements) => {
      const parts = partsOf(filter, await this.depth.kinds(statements));
      const { rows, stoppedAt } = await selectListed(statements, parts, filter, 'newest', cursor, limit + 1);
      const behind = (one: { at: number; id: number }) => cursorBehind(one, byInstant);
      const page = pageOf(rows, limit, behind, viewOf);
      return page.next_cursor === null && stoppedAt ? { ...page, next_cursor: behind(stoppedAt) } : page;
    });
  }

  /**
   * What a request asks for.
   * @param states those that come into question
   * @throws ERR_VALIDATION the target is none that the kind, or any kind, can have; or the range ends before it begins
   */
  filterOf(
    {
      kind,
      target,
      agent_id: agentId,
      outcome,
      from,
      to,
    }: Pick<TasksQuery, 'kind' | 'target' | 'agent_id' | 'outcome' | 'from' | 'to'>,
    states: readonly TaskState[],
  ): TaskFilter {
    const filter = {
      ...{ kind, agentId, outcome, states },
      targets: target === undefined ? undefined : this.kinds.findTargets(target, kind),
      from: instantOf(from) ?? undefined,
      to: instantOf(to) ?? undefined,
    };
    checkRange(filter);
    return filter;
  }

  /** How many tasks of each kind are in each state, and the age of the oldest in milliseconds. */
  stats(): Promise<TaskStats> {
    return this.database.read(async (statements) => {
      const now = this.clock.now();
      const depths = (await this.depth.depthsWithOldest(statements)).map(
        ({ oldest_created_at, ...depth }) => ({
          ...depth,
          oldest_age_ms: oldest_created_at === null ? null : Math.max(0, now - oldest_created_at),
        }),
      );
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
      await this.transitions.begin(tx);
      const task = await findTask(tx, id);
      if (task.state === 'completed' || task.state === 'dead') throw wrongState(task.state, 'cancelled');
      if (task.state !== 'cancelled') {
        const cancelled = await this.cancelOpen(tx, [task]);
        // Another unit took it meanwhile: it is decided again by its new state.
        if (cancelled.length === 0) throw new UnitConflict(`task ${id} moved`);
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
      await this.transitions.begin(tx);
      await tx.lockRows('tasks', [id]);
      const task = await findTask(tx, id);
      if (task.state !== 'dead' && task.state !== 'cancelled') throw wrongState(task.state, 'retried');
      if (task.unique_key !== null) {
        const holder = (await selectKeyHolders(tx, [task.unique_key])).get(task.unique_key);
        if (holder) throw fail('ERR_CONFLICT', { unique_key: `is held by task ${holder.id}` });
      }
      await this.reopenLocked(tx, [task]);
      await this.recordState(tx, by, 'task.retry', task, 'queued');
      return detailOf(tx, id);
    });
  }

  /**
   * Cancels open tasks in a unit; their live leases are revoked. A task that another unit has moved since it was read
   * is left out.
   * @param holder if given, leased tasks are cancelled only if this agent holds them
   * @returns those that were cancelled
   */
  async cancelOpen(tx: Transaction, tasks: readonly TaskRow[], holder?: number): Promise<TaskRow[]> {
    const waits = tasks.filter(({ state }) => state === 'scheduled' || state === 'queued');
    const places = await this.transitions.takeOut(tx, waits);
    const isHeld = (agentId: number) => holder === undefined || agentId === holder;
    const leases = await this.leases.revokeLiveOf(
      tx,
      tasks.filter(({ id, state }) => state === 'leased' && !places.has(id)),
      ({ agent_id: agentId }) => isHeld(agentId),
    );
    const attemptOf = new Map(leases.map((lease) => [lease.task_id, lease.attempt]));
    const changes = tasks.flatMap((task): (TaskChange & { task: TaskRow })[] => {
      const attempt = attemptOf.get(task.id);
      const from = places.get(task.id) ?? (attempt === undefined ? undefined : 'leased');
      if (!from) return [];
      const attempts = attempt === undefined ? {} : { attempts: attempt };
      return [{ task, from, to: 'cancelled', ...attempts, reason: 'operator' }];
    });
    await this.transitions.apply(tx, changes);
    return changes.map(({ task }) => task);
  }

  /** Reopens tasks whose rows the unit has locked; nobody else may have a unique_key of theirs. */
  async reopenLocked(tx: Transaction, tasks: readonly TaskRow[]): Promise<void> {
    await this.transitions.reopen(
      tx,
      tasks.flatMap(({ state, finished_at, ...task }) =>
        isFinished(state) && finished_at !== null ? [{ ...task, state, finished_at }] : [],
      ),
    );
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
    task: Pick<TaskRow, 'id' | 'state'>,
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
    if (lastSeen > now) await setBackBackoffs(tx, now, lastSeen - now);
  }

  /** Checks what does not depend on the time. @throws ERR_VALIDATION */
  private accept(inputs: readonly TaskInput[]): Omit<NewTaskRow, 'traceparent'>[] {
    const problems: ErrorDetails = {};
    const tasks: Omit<NewTaskRow, 'traceparent'>[] = [];
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
  private async insert(tx: Transaction, tasks: readonly NewTaskRow[]): Promise<EnqueuedTask[]> {
    checkTimes(tasks, tx.now);
    await this.transitions.begin(tx);
    const holders = await selectKeyHolders(
      tx,
      tasks.flatMap((task) => task.unique_key ?? []),
    );
    /** For each task the place of its row among the new ones, or the task that is there already. */
    const places: (number | EnqueuedTask)[] = [];
    const rows: NewTaskRow[] = [];
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
        rows.push(task);
      }
    });
    const created = await this.transitions.create(tx, rows);
    return places.map((place) => (typeof place === 'number' ? (created[place] as EnqueuedTask) : place));
  }
}

/** Whether two texts are the same JSON, in whatever order the fields are. */
const isSameJson = (a: string, b: string): boolean =>
  a === b || canonicalize(JSON.parse(a)) === canonicalize(JSON.parse(b));

/** In ms since the epoch. */
export const instantOf = (text: string | null | undefined): number | null =>
  text === undefined || text === null ? null : (parseTimestamp(text) ?? null);

/** @throws ERR_VALIDATION a task whose time is up before it could begin */
function checkTimes(tasks: readonly Pick<NewTaskRow, 'run_at' | 'not_after'>[], now: number): void {
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

async function findTask(statements: Statements, id: number): Promise<TaskRow> {
  const task = await selectTask(statements, id);
  if (!task) throw fail('ERR_NOT_FOUND', { task_id: id });
  return task;
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
  const found = await selectAttemptSizes(statements, task, beforeLease, ATTEMPTS_SHOWN + 1);
  const page = pageOf(found, fitting(found, ATTEMPTS_SHOWN), (lease) => lease.id);
  const attempts = await selectAttempts(
    statements,
    page.items.map((lease) => lease.id),
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
    start_at: toTimestamp(row.start_at),
    deadline_at: toTimestamp(row.deadline_at),
    ended_at: toTimestamp(row.ended_at),
  };
  return withMember(JSON.stringify(attempt), 'result', textOfResult(row));
}

function textOfResult(row: AttemptRow): string {
  const { state, report, outcome, failure, rtt_ms, observations, reported_at } = row;
  if (report === null || reported_at === null) return 'null';
  const standing = standingOf(state);
  const result: Omit<ResultView, 'observations'> = {
    standing,
    report,
    outcome,
    failure,
    rtt_ms,
    received_at: toTimestamp(reported_at),
  };
  return withMember(JSON.stringify(result), 'observations', observations ?? '[]');
}

function viewOf(task: TaskRow): TaskView {
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
