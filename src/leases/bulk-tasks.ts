import { setImmediate as nextTurn } from 'node:timers/promises';
import { Injectable } from '@nestjs/common';
import { Database } from '../database/database';
import type { SqlValue, Statements, Transaction } from '../database/statements';
import { fail } from '../errors';
import type { OperatorIdentity } from '../http/control-plane-request';
import { AuditLog } from '../operators/audit-log';
import { nextBatchSize } from '../scheduling/job-runner';
import { Lifecycle } from '../telemetry/lifecycle';
import {
  type AttemptCursor,
  type AttemptFilter,
  type AttemptPart,
  checkRange,
  isByAttempt,
  ofTarget,
  partsOf,
  seeksHeld,
  selectByAttempt,
} from './ended-attempts';
import { LeasesService } from './leases.service';
import { QueueDepth } from './queue-depth';
import type { TaskEntity, TaskState } from './task.entity';
import { TaskKinds } from './task-kinds';
import { type BulkAnswer, type BulkRequest, CANCELLABLE, RETRYABLE } from './tasks.dto';
import { findByKeys, instantOf, TasksService } from './tasks.service';

/** How long one request goes on changing tasks, in milliseconds: less than proxies wait, and than a stop waits for requests. */
const BUDGET_MS = 5_000;
/** How many tasks the first batch looks at; the next ones adapt. */
const FIRST_BATCH = 200;
/** How many tasks are counted at once. */
const COUNTED_AT_ONCE = 5_000;

type Row = Pick<TaskEntity, (typeof COLUMNS)[number]> & {
  /** Who holds it, if that was asked for and it is leased. */
  readonly held_by?: number | null;
};

const COLUMNS = [
  'id',
  'kind',
  'target',
  'state',
  'lease_id',
  'last_agent_id',
  'last_outcome',
  'last_ended_at',
] as const;

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

/**
 * Tasks that one index finds in an order that stays: those of one target of a kind, or of one kind and state, by their ids; or those
 * of a filter by the last attempt, by when that ended.
 */
type Part =
  | { readonly kind: string; readonly target: string }
  | { readonly kind: string; readonly state: TaskState }
  | { readonly ended: AttemptPart };

/** What there is to go through, each part from a cursor on, and how many tasks match. */
interface Survey {
  readonly parts: readonly { readonly part: Part; readonly from: AttemptCursor }[];
  readonly matched: number;
}

/** What a request asks for, read. */
interface Wanted extends AttemptFilter {
  /** No later one is touched. */
  readonly lastId: number;
}

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
    const { kind, state, target, agent_id, outcome, from, to } = request;
    const filter = withoutNulls({ kind, state, target, agent_id, outcome, from, to });
    const filtered = Object.keys(filter).length > 0;
    if (!filtered && request.all !== true)
      throw fail('ERR_VALIDATION', { all: 'must be true if there is no filter' });
    if (filtered && request.all === true)
      throw fail('ERR_VALIDATION', { all: 'must not come with a filter' });
    const wanted = await this.read(request, change.states);
    const matches = (row: Row) => isWanted(wanted, row);
    const { parts, matched } = await this.survey(wanted, matches, hangUp);
    // Not before: however long the count took, something is changed.
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
      let cursor: AttemptCursor | undefined = begin;
      while (cursor !== undefined) {
        if (performance.now() > until || hangUp.aborted || this.lifecycle.stopping) break;
        const startedAt = performance.now();
        const after: AttemptCursor = cursor;
        const size = limit;
        const step = await this.database.write(async (tx) => {
          const found = await rowsAfter(tx, part, wanted, after, size);
          const tasks = await this.lock(tx, found.filter(matches), matches, agent_id != null);
          const count = tasks.length === 0 ? 0 : await change.apply(tx, tasks);
          // The first that changes something says so in its own transaction; the end is added below.
          if (count > 0 && changed === 0) await record(tx, count);
          return { count, next: found.length < size ? undefined : found.at(-1)?.cursor };
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

  /** What a request asks for, of the tasks that there are when it begins. */
  private async read(request: BulkRequest, states: readonly TaskState[]): Promise<Wanted> {
    const { kind, state, target, agent_id: agentId, outcome, from, to } = withoutNulls(request);
    const last = await this.database.read((statements) =>
      statements.first<{ id: number | null }>('SELECT max(id) AS id FROM tasks'),
    );
    const range = { from: instantOf(from) ?? undefined, to: instantOf(to) ?? undefined };
    checkRange(range);
    return {
      ...{ kind, agentId, outcome, ...range },
      targets: target === undefined ? undefined : this.kinds.findTargets(target, kind),
      states: states.filter((one) => state === undefined || one === state),
      lastId: last?.id ?? 0,
    };
  }

  /** What there is to go through, and how many match. */
  private async survey(wanted: Wanted, matches: (row: Row) => boolean, hangUp: AbortSignal): Promise<Survey> {
    const { kind, targets, states } = wanted;
    if (isByAttempt(wanted)) {
      const kinds = await this.database.read((statements) => this.depth.kinds(statements));
      const parts = partsOf(wanted, kinds)
        .sort((a, b) => states.indexOf(stateOf(a)) - states.indexOf(stateOf(b)))
        .map((ended) => ({ ended }));
      return this.count(parts, wanted, matches, hangUp);
    }
    if (targets !== undefined) return this.count(targets, wanted, matches, hangUp);
    const depths = (await this.database.read((statements) => this.depth.depths(statements))).filter(
      (depth) => (kind === undefined || depth.kind === kind) && states.includes(depth.state),
    );
    const kinds = [...new Set(depths.map((depth) => depth.kind))];
    const parts = states.flatMap((one) =>
      kinds.map((name) => ({ part: { kind: name, state: one }, from: START })),
    );
    return { parts, matched: depths.reduce((sum, { count }) => sum + count, 0) };
  }

  /**
   * How many tasks of the parts match, read a bounded number at a time, and where the first of each part is: what is before it,
   * such as all that a target ever had, is not gone through again.
   */
  private async count(
    parts: readonly Part[],
    wanted: Wanted,
    matches: (row: Row) => boolean,
    hangUp: AbortSignal,
  ): Promise<Survey> {
    let matched = 0;
    const found: Survey['parts'][number][] = [];
    for (const part of parts) {
      let from: AttemptCursor | undefined;
      let cursor: AttemptCursor | undefined = START;
      while (cursor !== undefined && !hangUp.aborted && !this.lifecycle.stopping) {
        const after: AttemptCursor = cursor;
        const rows: Found[] = await this.database.read((statements) =>
          rowsAfter(statements, part, wanted, after, COUNTED_AT_ONCE),
        );
        const count = rows.filter(matches).length;
        matched += count;
        if (count > 0) from ??= after;
        cursor = rows.length < COUNTED_AT_ONCE ? undefined : rows.at(-1)?.cursor;
        // SQLite reads without waiting: others would have no turn until all is counted.
        await nextTurn();
      }
      if (from) found.push({ part, from });
    }
    return { parts: found, matched };
  }

  /**
   * Locks tasks with their live leases, in the order that everybody does.
   * @param byHolder whether a leased task counts only while it is held as it was found
   * @returns those that still match
   */
  private async lock(
    tx: Transaction,
    rows: readonly Row[],
    matches: (row: Row) => boolean,
    byHolder: boolean,
  ): Promise<TaskEntity[]> {
    if (rows.length === 0) return [];
    const ids = rows.map(({ id }) => id);
    // Who holds a task is not in its row: one that was found for its holder must still be leased as it was.
    const foundLeases = new Map(rows.map((row) => [row.id, row.lease_id]));
    const held = await this.leases.lockLive(tx, ids);
    const tasks = await tx.rows<TaskEntity>(
      `SELECT * FROM tasks WHERE ${tx.dialect.isAmong('id', '$1')} ORDER BY id ${tx.dialect.forUpdate()}`,
      JSON.stringify(ids),
    );
    // One that was claimed in between has a lease that is not locked; it is met again among the leased.
    return tasks.filter(
      (task) =>
        matches(task) &&
        (!byHolder || task.lease_id === null || task.lease_id === foundLeases.get(task.id)) &&
        (!held || task.lease_id === null || held.has(task.lease_id)),
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

/** A task of a part, and where to go on behind it. */
type Found = Row & { readonly cursor: AttemptCursor };

/** Before every task of every part. */
const START: AttemptCursor = { at: -1, id: 0 };

const stateOf = (part: AttemptPart): TaskState => ('heldBy' in part ? 'leased' : part.state);

/** What of a request is given. */
const withoutNulls = <Fields extends object>(
  fields: Fields,
): { [K in keyof Fields]: NonNullable<Fields[K]> | undefined } =>
  Object.fromEntries(
    Object.entries(fields).filter(([, value]) => value !== undefined && value !== null),
  ) as never;

/** Whether a task is one of those asked for. Who holds it, its part has found or says. */
function isWanted({ kind, targets, agentId, outcome, from, to, states, lastId }: Wanted, row: Row): boolean {
  const isHeld = seeksHeld({ outcome, from, to }) && (row.held_by ?? agentId) === agentId;
  return (
    row.id <= lastId &&
    states.includes(row.state) &&
    (kind === undefined || row.kind === kind) &&
    (targets === undefined || targets.some((one) => row.kind === one.kind && row.target === one.target)) &&
    (agentId === undefined || (row.state === 'leased' ? isHeld : row.last_agent_id === agentId)) &&
    (outcome === undefined || row.last_outcome === outcome) &&
    (from === undefined || (row.last_ended_at !== null && row.last_ended_at >= from)) &&
    (to === undefined || (row.last_ended_at !== null && row.last_ended_at < to))
  );
}

/** Tasks of a part behind a cursor, in the part's order; bounded, whatever is in between. */
async function rowsAfter(
  statements: Statements,
  part: Part,
  wanted: Wanted,
  after: AttemptCursor,
  limit: number,
): Promise<Found[]> {
  if ('ended' in part) {
    const columns = COLUMNS.map((name) => `t.${name}`).join(', ');
    // What else is asked for is looked at here: left out by the statement, there would be no bound to what it reads.
    const { rows } = await selectByAttempt<Row>(
      statements,
      [{ ...part.ended, also: [] }],
      wanted,
      columns,
      'oldest',
      after,
      limit,
    );
    return rows.map(({ stands_at: at, ...row }) => ({ ...row, cursor: { at, id: row.id } }));
  }
  const values: SqlValue[] = [];
  const bind = (value: SqlValue): string => `$${values.push(value)}`;
  const condition =
    'target' in part
      ? `${ofTarget(part, wanted.outcome, bind)} AND kind = ${bind(part.kind)}`
      : `kind = ${bind(part.kind)} AND state = ${bind(part.state)}`;
  const holder = '(SELECT l.agent_id FROM leases l WHERE l.id = tasks.lease_id) AS held_by';
  const rows = await statements.rows<Row>(
    `SELECT ${COLUMNS.join(', ')}, ${wanted.agentId === undefined ? 'NULL AS held_by' : holder} FROM tasks
     WHERE ${condition} AND id > ${bind(after.id)} AND id <= ${bind(wanted.lastId)} ORDER BY id LIMIT ${bind(limit)}`,
    ...values,
  );
  return rows.map((row) => ({ ...row, cursor: { at: 0, id: row.id } }));
}
