import { setImmediate as nextTurn } from 'node:timers/promises';
import { Injectable } from '@nestjs/common';
import { Database } from '../database/database';
import type { Statements, Transaction } from '../database/statements';
import { fail } from '../errors';
import type { OperatorIdentity } from '../http/control-plane-request';
import type { HangUpSignal } from '../http/hang-up';
import { AuditLog } from '../operators/audit-log';
import { QueueDepth } from '../queue/depth';
import type { TaskState } from '../queue/task.entity';
import { TaskTransitions } from '../queue/transitions';
import { nextBatchSize } from '../scheduling/job-runner';
import { Lifecycle } from '../telemetry/lifecycle';
import {
  type ListCursor,
  type ListPart,
  partsOf,
  selectLastId,
  selectListed,
  selectMatching,
  type TaskFilter,
} from './task-lists.queries';
import { type BulkAnswer, type BulkRequest, CANCELLABLE, RETRYABLE } from './tasks.dto';
import { selectKeyHolders, type TaskRow } from './tasks.queries';
import { TasksService } from './tasks.service';

/**
 * How long one request changes tasks, in milliseconds: less than proxies wait, and than a stop waits for requests.
 */
const BUDGET_MS = 5_000;
/** The number of tasks that the first batch reads; the next ones adapt. */
const FIRST_BATCH = 200;
/** The number of tasks that are counted at once. */
const COUNTED_AT_ONCE = 5_000;

/** A change of many tasks. */
interface Change {
  readonly action: 'task.cancel-many' | 'task.retry-many';
  /**
   * The states that it applies to, in the order of processing: tasks move from the first to the last meanwhile, so each
   * is processed once. Queued tasks are cancelled before the leased ones whose slots they wait for.
   */
  readonly states: readonly TaskState[];
  /** Changes tasks in the unit that has read them. @returns the number of changed ones */
  apply(tx: Transaction, tasks: readonly TaskRow[], filter: TaskFilter): Promise<number>;
}

/** The parts to process, each from a cursor on, and the number of matching tasks. */
interface Survey {
  readonly parts: readonly { readonly part: ListPart; readonly from: ListCursor | undefined }[];
  readonly matched: number;
}

/**
 * Cancels and retries tasks by the filters of their list. Each batch is a transaction of about 50 ms, so that a million
 * tasks block other requests only briefly. Tasks that are enqueued after the request began are not changed.
 */
@Injectable()
export class BulkTasks {
  constructor(
    private readonly database: Database,
    private readonly transitions: TaskTransitions,
    private readonly depth: QueueDepth,
    private readonly tasks: TasksService,
    private readonly audit: AuditLog,
    private readonly lifecycle: Lifecycle,
  ) {}

  /**
   * Cancels the unfinished tasks that match; live leases are revoked. Runs for at most 5 s, or until the caller hangs
   * up: a repeated call changes the rest, and no task twice.
   * @returns the number of matches when it began, and of changed tasks
   * @throws ERR_VALIDATION there is neither a filter nor `all`, or no kind can have the target
   */
  cancel(by: OperatorIdentity, request: BulkRequest, hangUp: HangUpSignal): Promise<BulkAnswer> {
    return this.change(by, request, hangUp, {
      action: 'task.cancel-many',
      states: CANCELLABLE,
      apply: async (tx, tasks, { agentId }) => (await this.tasks.cancelOpen(tx, tasks, agentId)).length,
    });
  }

  /**
   * Reopens the dead and cancelled tasks that match, as a single retry does. Skips a task if another one has its
   * unique_key by now. Runs as long as {@link cancel}.
   * @returns the number of matches when it began, and of changed tasks
   * @throws ERR_VALIDATION there is neither a filter nor `all`, or no kind can have the target
   */
  retry(by: OperatorIdentity, request: BulkRequest, hangUp: HangUpSignal): Promise<BulkAnswer> {
    return this.change(by, request, hangUp, {
      action: 'task.retry-many',
      states: RETRYABLE,
      apply: (tx, tasks, wanted) => this.applyRetry(tx, tasks, wanted),
    });
  }

  private async change(
    by: OperatorIdentity,
    request: BulkRequest,
    hangUp: HangUpSignal,
    change: Change,
  ): Promise<BulkAnswer> {
    const { kind, state, target, agent_id, outcome, from, to } = request;
    const filter = withoutNulls({ kind, state, target, agent_id, outcome, from, to });
    const filtered = Object.keys(filter).length > 0;
    if (!filtered && request.all !== true)
      throw fail('ERR_VALIDATION', { all: 'must be true if there is no filter' });
    if (filtered && request.all === true)
      throw fail('ERR_VALIDATION', { all: 'must not come with a filter' });
    const wanted = await this.read(request, change.states);
    const { parts, matched } = await this.survey(wanted, hangUp);
    // From here on, so that each call changes some tasks even if the count took long.
    const until = performance.now() + BUDGET_MS;
    const record = (tx: Transaction, changed: number) =>
      this.audit.record(tx, by, {
        action: change.action,
        subject: 'tasks',
        after: { ...filter, matched, changed },
      });
    let changed = 0;
    let batches = 0;
    let limit = FIRST_BATCH;
    for (const { part, from: begin } of request.dry_run === true || matched === 0 ? [] : parts) {
      for (let cursor = begin, isDone = false; !isDone; ) {
        if (performance.now() > until || hangUp.aborted || this.lifecycle.stopping) break;
        const startedAt = performance.now();
        const after = cursor;
        const size = limit;
        const step = await this.database.write(async (tx) => {
          await this.transitions.begin(tx);
          const { rows, next } = await readNext(tx, part, wanted, after, size);
          const count = rows.length === 0 ? 0 : await change.apply(tx, rows, wanted);
          // The first batch that changes tasks is audited in its own transaction; the last entry is added below.
          if (count > 0 && changed === 0) await record(tx, count);
          return { count, next };
        });
        if (step.count > 0) batches++;
        changed += step.count;
        cursor = step.next;
        isDone = step.next === undefined;
        limit = nextBatchSize(limit, performance.now() - startedAt);
      }
    }
    if (batches > 1) await this.database.write((tx) => record(tx, changed));
    return { matched, changed };
  }

  /** Builds the filter of a request, for tasks that exist when it begins. */
  private async read(request: BulkRequest, states: readonly TaskState[]): Promise<TaskFilter> {
    const { state, ...rest } = withoutNulls(request);
    const lastId = await this.database.read(selectLastId);
    const wanted = states.filter((one) => state === undefined || one === state);
    return { ...this.tasks.filterOf(rest, wanted), lastId };
  }

  /** What there is to go through, and how many match. */
  private async survey(wanted: TaskFilter, hangUp: HangUpSignal): Promise<Survey> {
    const { agentId, outcome, from, to, kind, targets, states } = wanted;
    const depths = await this.database.read((statements) => this.depth.depths(statements));
    const kinds = await this.database.read((statements) => this.depth.kinds(statements));
    const isByStateAlone =
      targets === undefined && [agentId, outcome, from, to].every((value) => value === undefined);
    if (!isByStateAlone) return this.count(partsOf(wanted, kinds), wanted, hangUp);
    // State by state: a task that moves on meanwhile is processed with a later state.
    const parts = states.flatMap((state) => partsOf({ ...wanted, states: [state] }, kinds));
    const matched = depths
      .filter((depth) => (kind === undefined || depth.kind === kind) && states.includes(depth.state))
      .reduce((sum, { count }) => sum + count, 0);
    return { parts: parts.map((part) => ({ part, from: undefined })), matched };
  }

  /**
   * Counts the matching tasks of the parts, a bounded number at a time, and finds the first one of each part: rows
   * before it, such as all former tasks of a target, are not read again.
   */
  private async count(parts: readonly ListPart[], wanted: TaskFilter, hangUp: HangUpSignal): Promise<Survey> {
    let matched = 0;
    const found: Survey['parts'][number][] = [];
    for (const part of parts) {
      let hasBegun = false;
      for (let cursor: ListCursor | undefined, isDone = false; !isDone; ) {
        if (hangUp.aborted || this.lifecycle.stopping) break;
        const after: ListCursor | undefined = cursor;
        const { rows, next } = await this.database.read((statements) =>
          readNext(statements, part, wanted, after, COUNTED_AT_ONCE),
        );
        matched += rows.length;
        if (rows.length > 0 && !hasBegun) {
          hasBegun = true;
          found.push({ part, from: after });
        }
        cursor = next;
        isDone = next === undefined;
        // SQLite reads synchronously: yield, or other requests would wait for the whole count.
        await nextTurn();
      }
    }
    return { parts: found, matched };
  }

  private async applyRetry(tx: Transaction, tasks: readonly TaskRow[], wanted: TaskFilter): Promise<number> {
    const ids = tasks.map(({ id }) => id);
    await tx.lockRows('tasks', ids);
    const locked = await selectMatching(tx, ids, wanted);
    const taken = new Set(
      (
        await selectKeyHolders(
          tx,
          locked.flatMap(({ unique_key: key }) => key ?? []),
        )
      ).keys(),
    );
    const reopened = locked.filter(({ unique_key: key }) => {
      if (key === null) return true;
      if (taken.has(key)) return false;
      taken.add(key);
      return true;
    });
    await this.tasks.reopenLocked(tx, reopened);
    return reopened.length;
  }
}

/** Reads the next tasks of a part that match a filter, and where to continue if there may be more. */
async function readNext(
  statements: Statements,
  part: ListPart,
  wanted: TaskFilter,
  after: ListCursor | undefined,
  limit: number,
): Promise<{ rows: readonly TaskRow[]; next: ListCursor | undefined }> {
  const { rows, stoppedAt } = await selectListed(statements, [part], wanted, 'oldest', after, limit);
  return { rows, next: rows.length === limit ? rows.at(-1) : stoppedAt };
}

/** What of a request is given. */
const withoutNulls = <Fields extends object>(
  fields: Fields,
): { [K in keyof Fields]: NonNullable<Fields[K]> | undefined } =>
  Object.fromEntries(
    Object.entries(fields).filter(([, value]) => value !== undefined && value !== null),
  ) as never;
