import { Injectable } from '@nestjs/common';
import type { Place } from '../concurrency/concurrency.service';
import { Database } from '../database/database';
import type { Statements, Transaction } from '../database/statements';
import { fail } from '../errors';
import type { OperatorIdentity } from '../http/decorators';
import { AuditLog } from '../operators/audit-log';
import { nextBatchSize } from '../scheduling/job-runner';
import { Lifecycle } from '../telemetry/lifecycle';
import { LeasesService } from './leases.service';
import { QueueDepth } from './queue-depth';
import type { TaskEntity, TaskState } from './task.entity';
import { TaskKinds } from './task-kinds';
import { type BulkAnswer, type BulkRequest, CANCELLABLE, RETRYABLE } from './tasks.dto';
import { findByKeys, TasksService } from './tasks.service';

/** How long one request goes on, in milliseconds: less than proxies wait, and than a stop waits for requests. */
const BUDGET_MS = 5_000;
/** How many tasks the first batch looks at; the next ones adapt. */
const FIRST_BATCH = 200;
/** How many tasks are counted at once. */
const COUNTED_AT_ONCE = 5_000;

type Row = Pick<TaskEntity, 'id' | 'kind' | 'target' | 'state'>;

/** What is done to many tasks. */
interface Change {
  readonly action: 'task.cancel-many' | 'task.retry-many';
  /**
   * The states that it is for, in the order that they are gone through: tasks move on from the first to the last
   * meanwhile, and so are met once. What waits is cancelled before what holds the slots that it waits for.
   */
  readonly states: readonly TaskState[];
  /** Changes locked tasks in the unit. @returns how many it changed */
  apply(tx: Transaction, tasks: readonly TaskEntity[]): Promise<number>;
}

/** The tasks of one target of a kind, or of one kind and state: what one index finds in the order of ids. */
type Part =
  | { readonly kind: string; readonly target: string }
  | { readonly kind: string; readonly state: TaskState };

/**
 * Cancels and retries tasks by the filter of their list. Each batch is a transaction of about 50 ms, so that nobody waits
 * long behind a million tasks; tasks that are enqueued after the request began are left alone.
 */
@Injectable()
export class BulkTasks {
  constructor(
    private readonly database: Database,
    private readonly kinds: TaskKinds,
    private readonly depth: QueueDepth,
    private readonly tasks: TasksService,
    private readonly leases: LeasesService,
    private readonly audit: AuditLog,
    private readonly lifecycle: Lifecycle,
  ) {}

  /**
   * Cancels the unfinished tasks that match; live leases are revoked. Goes on for 5 s at most, or until the caller hangs
   * up: the same again does the rest, and nothing twice.
   * @returns how many matched when it began, and how many were changed
   * @throws ERR_VALIDATION there is neither a filter nor `all`, or no kind can have the target
   */
  cancel(by: OperatorIdentity, request: BulkRequest, hangUp: AbortSignal): Promise<BulkAnswer> {
    return this.change(by, request, hangUp, {
      action: 'task.cancel-many',
      states: CANCELLABLE,
      apply: async (tx, tasks) => {
        await this.tasks.cancelLocked(tx, tasks);
        return tasks.length;
      },
    });
  }

  /**
   * Reopens the dead and cancelled tasks that match, as a single retry does. One whose unique_key another task has by now
   * stays as it is. Goes on as {@link cancel} does.
   * @returns how many matched when it began, and how many were changed
   * @throws ERR_VALIDATION there is neither a filter nor `all`, or no kind can have the target
   */
  retry(by: OperatorIdentity, request: BulkRequest, hangUp: AbortSignal): Promise<BulkAnswer> {
    return this.change(by, request, hangUp, {
      action: 'task.retry-many',
      states: RETRYABLE,
      apply: (tx, tasks) => this.applyRetry(tx, tasks),
    });
  }

  private async change(
    by: OperatorIdentity,
    request: BulkRequest,
    hangUp: AbortSignal,
    change: Change,
  ): Promise<BulkAnswer> {
    const until = performance.now() + BUDGET_MS;
    const { kind, state, target } = request;
    const filtered = [kind, state, target].some((value) => value !== undefined && value !== null);
    if (!filtered && request.all !== true)
      throw fail('ERR_VALIDATION', { all: 'must be true if there is no kind, state or target' });
    if (filtered && request.all === true)
      throw fail('ERR_VALIDATION', { all: 'must not come with a kind, state or target' });
    const targets = target == null ? undefined : this.kinds.findTargets(target, kind ?? undefined);
    const matches = (row: Row) =>
      (kind == null || row.kind === kind) &&
      (targets === undefined || targets.some((one) => row.kind === one.kind && row.target === one.target)) &&
      (state == null ? change.states.includes(row.state) : row.state === state);
    const { parts, lastId, matched } = await this.survey(request, targets, change.states, matches);
    const filter = { kind: kind ?? undefined, state: state ?? undefined, target: target ?? undefined };
    const record = (tx: Transaction, changed: number) =>
      this.audit.record(tx, by, {
        action: change.action,
        subject: 'tasks',
        after: { ...filter, matched, changed },
      });
    let changed = 0;
    let batches = 0;
    let limit = FIRST_BATCH;
    for (const part of request.dry_run === true || matched === 0 ? [] : parts) {
      let cursor: number | undefined = 0;
      while (cursor !== undefined) {
        if (performance.now() > until || hangUp.aborted || this.lifecycle.stopping) break;
        const startedAt = performance.now();
        const after: number = cursor;
        const size = limit;
        const step = await this.database.write(async (tx) => {
          const found = await rowsAfter(tx, part, after, lastId, size);
          const tasks = await this.lock(tx, found.filter(matches), matches);
          const count = tasks.length === 0 ? 0 : await change.apply(tx, tasks);
          // The first that changes something says so in its own transaction; the end is added below.
          if (count > 0 && changed === 0) await record(tx, count);
          return { count, next: found.length < size ? undefined : found.at(-1)?.id };
        });
        if (step.count > 0) batches++;
        changed += step.count;
        cursor = step.next;
        limit = nextBatchSize(limit, performance.now() - startedAt);
      }
    }
    if (batches > 1) await this.database.write((tx) => record(tx, changed));
    return { matched, changed };
  }

  /** What there is to go through, up to which id, and how many match. */
  private async survey(
    { kind, state }: BulkRequest,
    targets: readonly Place[] | undefined,
    states: readonly TaskState[],
    matches: (row: Row) => boolean,
  ): Promise<{ parts: Part[]; lastId: number; matched: number }> {
    const last = await this.database.read((statements) =>
      statements.first<{ id: number | null }>('SELECT max(id) AS id FROM tasks'),
    );
    const lastId = last?.id ?? 0;
    if (targets !== undefined) {
      let matched = 0;
      for (const part of targets) {
        let after: number | undefined = 0;
        while (after !== undefined) {
          const from: number = after;
          const rows = await this.database.read((statements) =>
            rowsAfter(statements, part, from, lastId, COUNTED_AT_ONCE),
          );
          matched += rows.filter(matches).length;
          after = rows.length < COUNTED_AT_ONCE ? undefined : rows.at(-1)?.id;
        }
      }
      return { parts: [...targets], lastId, matched };
    }
    const wanted = (await this.database.read((statements) => this.depth.depths(statements))).filter(
      (depth) =>
        (kind == null || depth.kind === kind) &&
        (state == null ? states.includes(depth.state) : depth.state === state),
    );
    const kinds = [...new Set(wanted.map((depth) => depth.kind))];
    const parts = states
      .filter((one) => state == null || one === state)
      .flatMap((one) => kinds.map((name) => ({ kind: name, state: one })));
    return { parts, lastId, matched: wanted.reduce((sum, { count }) => sum + count, 0) };
  }

  /** Locks tasks with their live leases, in the order that everybody does. @returns those that still match */
  private async lock(
    tx: Transaction,
    rows: readonly Row[],
    matches: (row: Row) => boolean,
  ): Promise<TaskEntity[]> {
    if (rows.length === 0) return [];
    const ids = rows.map(({ id }) => id);
    const held = await this.leases.lockLive(tx, ids);
    const tasks = await tx.rows<TaskEntity>(
      `SELECT * FROM tasks WHERE ${tx.dialect.isAmong('id', '$1')} ORDER BY id ${tx.dialect.forUpdate()}`,
      JSON.stringify(ids),
    );
    // One that was claimed in between has a lease that is not locked; it is met again among the leased.
    return tasks.filter(
      (task) => matches(task) && (!held || task.lease_id === null || held.has(task.lease_id)),
    );
  }

  private async applyRetry(tx: Transaction, tasks: readonly TaskEntity[]): Promise<number> {
    const keys = tasks.flatMap(({ unique_key: key }) => key ?? []);
    const taken = new Set(keys.length === 0 ? [] : (await findByKeys(tx, keys)).keys());
    const reopened = tasks.filter(({ unique_key: key }) => {
      if (key === null) return true;
      if (taken.has(key)) return false;
      taken.add(key);
      return true;
    });
    if (reopened.length === 0) return 0;
    await this.tasks.reopenLocked(tx, reopened);
    return reopened.length;
  }
}

/** Tasks of a part after an id, by their ids; bounded, whatever is in between. */
function rowsAfter(
  statements: Statements,
  part: Part,
  after: number,
  lastId: number,
  limit: number,
): Promise<Row[]> {
  const columns = 'id, kind, target, state';
  return 'target' in part
    ? statements.rows<Row>(
        `SELECT ${columns} FROM tasks WHERE target = $1 AND kind = $2 AND id > $3 AND id <= $4 ORDER BY id LIMIT $5`,
        part.target,
        part.kind,
        after,
        lastId,
        limit,
      )
    : statements.rows<Row>(
        `SELECT ${columns} FROM tasks WHERE kind = $1 AND state = $2 AND id > $3 AND id <= $4 ORDER BY id LIMIT $5`,
        part.kind,
        part.state,
        after,
        lastId,
        limit,
      );
}
