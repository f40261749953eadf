import { ATTEMPT_OUTCOMES, type AttemptOutcome } from '../agents/agent.entity';
import type { WindowKey } from '../concurrency/window.entity';
import type { SqlValue, Statements } from '../database/statements';
import { fail } from '../errors';
import { FINISHED_STATES, type FinishedState, isFinished, type TaskState } from '../queue/task.entity';
import { type TaskRow, tasksOf } from './tasks.queries';

/** The filter of a list of tasks. */
export interface TaskFilter {
  /** The agent that holds the task, or ended its last attempt. */
  readonly agentId?: number;
  /** How its last attempt ended. */
  readonly outcome?: AttemptOutcome;
  /** Its last attempt ended at this instant or later, in ms since the epoch. */
  readonly from?: number;
  /** Its last attempt ended before this instant, in ms since the epoch. */
  readonly to?: number;
  readonly kind?: string;
  /** Targets, each of a kind. */
  readonly targets?: readonly WindowKey[];
  /** The wanted states. */
  readonly states: readonly TaskState[];
  /** No task above this id. */
  readonly lastId?: number;
}

/** The position of a task in a list: the next ones are below it, or above. */
export interface ListCursor {
  readonly at: number;
  readonly id: number;
}

/** A row with its position. */
export type Standing = TaskRow & { readonly at: number };

/** The position of leased tasks of an agent: before all tasks whose last attempt has ended. */
const HELD_AT = 9_999_999_999_999;

const FIRST: ListCursor = { at: -1, id: 0 };
const LAST: ListCursor = { at: HELD_AT, id: Number.MAX_SAFE_INTEGER };

/**
 * The most tasks of a part that are read for one page, if an index can't evaluate the whole filter: a page can be
 * short then.
 */
const LOOKED_AT = 2_000;
/** The most parts of one statement; SQLite allows at most 500 in a union. */
const PARTS_IN_STATEMENT = 100;

/**
 * A part of a list: tasks that one index finds in a stable order. By their ids: all, those of a kind or a target, or
 * those in an open state. By an instant and their ids: finished ones, those whose last attempt by an agent or of a kind
 * ended with one outcome, and those that an agent holds.
 */
export type ListPart =
  | { readonly in: 'all' }
  | { readonly in: 'kind'; readonly kind: string }
  | { readonly in: 'target'; readonly target: string }
  | { readonly in: 'scheduled' | 'queued' | 'leased'; readonly kind: string }
  | { readonly in: 'finished'; readonly kind: string; readonly state: FinishedState }
  | {
      readonly in: 'ended';
      readonly by: 'kind' | 'agent_id';
      readonly value: string | number;
      readonly ending: AttemptOutcome;
    }
  | { readonly in: 'held'; readonly agentId: number };

/** Checks the range of instants. @throws ERR_VALIDATION it ends before it begins */
export function checkRange({ from, to }: Pick<TaskFilter, 'from' | 'to'>): void {
  if (from !== undefined && to !== undefined && from > to)
    throw fail('ERR_VALIDATION', { from: 'must not be after to' });
}

/** Whether a filter uses the last attempt. */
const asksForAttempt = ({ agentId, outcome, from, to }: TaskFilter): boolean =>
  [agentId, outcome, from, to].some((value) => value !== undefined);

/**
 * Whether a filter includes the leases that an agent holds: with an outcome or a time it only means ended attempts.
 */
const asksForHeld = ({ outcome, from, to }: TaskFilter): boolean =>
  outcome === undefined && from === undefined && to === undefined;

/** Whether a list is sorted by the instant when tasks, or their last attempts, ended; else it is sorted by ids. */
export const isByInstant = (filter: TaskFilter): boolean =>
  filter.targets === undefined && (asksForAttempt(filter) || filter.states.every(isFinished));

/**
 * The possible states of a task after an outcome of its last attempt: only after `cancelled` or `expired` it is
 * retried.
 */
const GONE_ON: readonly TaskState[] = ['scheduled', 'queued', 'leased', 'cancelled', 'dead'];
const statesAfter = (ending: AttemptOutcome): readonly TaskState[] =>
  ending === 'cancelled' || ending === 'expired' ? GONE_ON : ['completed'];

/** Lists the parts of a filter's tasks. No task is in two of them. @param kinds every kind that has tasks */
export function partsOf(filter: TaskFilter, kinds: readonly string[]): ListPart[] {
  const { agentId, outcome, kind, targets, states } = filter;
  // Kinds can have targets of the same name, and the index finds all of them.
  if (targets !== undefined)
    return [...new Set(targets.map(({ target }) => target))].map((target) => ({ in: 'target', target }));
  const ofKinds = kind === undefined ? kinds : [kind];
  if (asksForAttempt(filter)) {
    const drivers =
      agentId === undefined
        ? ofKinds.map((one) => ({ by: 'kind' as const, value: one }))
        : [{ by: 'agent_id' as const, value: agentId }];
    const endings = ATTEMPT_OUTCOMES.filter(
      (one) =>
        (outcome === undefined || one === outcome) &&
        statesAfter(one).some((state) => states.includes(state)),
    );
    const ended = drivers.flatMap((driver): ListPart[] => {
      // Most finished tasks of a kind succeeded, so they have no index of their own; the part of completed tasks also
      // has those with other outcomes.
      const isCompleted = (one: AttemptOutcome) => statesAfter(one) !== GONE_ON;
      const finished = driver.by === 'kind' && endings.includes('success');
      return [
        ...(finished
          ? [{ in: 'finished' as const, kind: String(driver.value), state: 'completed' as const }]
          : []),
        ...endings
          .filter((one) => !(finished && isCompleted(one)))
          .map((ending): ListPart => ({ in: 'ended', ending, ...driver })),
      ];
    });
    const held: ListPart[] =
      agentId !== undefined && asksForHeld(filter) && states.includes('leased')
        ? [{ in: 'held', agentId }]
        : [];
    return [...ended, ...held];
  }
  if (states.length > FINISHED_STATES.length + 2)
    return kind === undefined ? [{ in: 'all' }] : [{ in: 'kind', kind }];
  return states.flatMap((state) =>
    ofKinds.map(
      (one): ListPart =>
        isFinished(state) ? { in: 'finished', kind: one, state } : { in: state, kind: one },
    ),
  );
}

type Bind = (value: SqlValue) => string;

/** The source of the tasks of a part. */
interface Source {
  /** A table, and the condition of the part's rows. */
  readonly from: string;
  /** The column of the task's id. */
  readonly id: string;
  /** The instant by which the part is sorted, before the id; undefined if it is sorted by ids. */
  readonly instant?: string;
  /** The position of its tasks in a list, if that is not the instant. */
  readonly standsAt?: number;
  /** The column of the ended attempt; undefined if the part does not have attempts. */
  readonly attempt?: string;
}

function sourceOf(part: ListPart, bind: Bind): Source {
  switch (part.in) {
    case 'all':
      return { from: 'tasks WHERE true', id: 'id' };
    case 'kind':
      return { from: `tasks WHERE kind = ${bind(part.kind)}`, id: 'id + 0' };
    case 'target':
      return { from: `tasks WHERE target = ${bind(part.target)}`, id: 'id + 0' };
    case 'scheduled':
      return { from: `scheduled WHERE kind = ${bind(part.kind)}`, id: 'task_id + 0' };
    case 'queued':
      return { from: `ready WHERE kind = ${bind(part.kind)}`, id: 'task_id + 0' };
    case 'leased':
      return { from: `leases WHERE kind = ${bind(part.kind)} AND ending IS NULL`, id: 'task_id' };
    case 'held':
      return {
        from: `leases WHERE agent_id = ${bind(part.agentId)} AND state = 'active'`,
        ...{ id: 'task_id', standsAt: HELD_AT },
      };
    case 'finished':
      return {
        from: `finished_tasks WHERE kind = ${bind(part.kind)} AND state = ${bind(part.state)}`,
        ...{ id: 'task_id', instant: 'finished_at' },
      };
    case 'ended': {
      // Word for word as in the partial indexes. There are few endings, so they need not be bound.
      const ending = `ending = '${part.ending}'${part.ending === 'success' ? '' : ` AND ending <> 'success'`}`;
      return {
        from: `leases WHERE ${part.by} = ${bind(part.value)} AND ${ending}`,
        ...{ id: 'task_id', instant: 'ended_at', attempt: 'id' },
      };
    }
  }
}

/** Whether rows of a part may not match the filter. */
function mustBeChecked(part: ListPart, filter: TaskFilter): boolean {
  switch (part.in) {
    case 'target':
    // The attempt may not be the last one of its task.
    case 'ended':
      return true;
    case 'held':
      return filter.kind !== undefined;
    case 'finished':
      return filter.outcome !== undefined;
    default:
      return false;
  }
}

/** What a row `v` with all that is known of a task must be, to be one that the filter asks for. */
function conditionsOf(filter: TaskFilter, bind: Bind): string {
  const { agentId, outcome, from, to, kind, targets, states, lastId } = filter;
  const conditions = [`v.state IN (${states.map((state) => `'${state}'`).join(', ')})`];
  if (kind !== undefined) conditions.push(`v.kind = ${bind(kind)}`);
  if (targets !== undefined)
    conditions.push(
      `(${targets.map((one) => `(v.kind = ${bind(one.kind)} AND v.target = ${bind(one.target)})`).join(' OR ')})`,
    );
  if (lastId !== undefined) conditions.push(`v.id <= ${bind(lastId)}`);
  if (agentId !== undefined) {
    // A task that another agent holds now belongs to that agent.
    const held = asksForHeld(filter) ? `v.held_by = ${bind(agentId)}` : 'false';
    conditions.push(`CASE WHEN v.state = 'leased' THEN ${held} ELSE v.last_agent_id = ${bind(agentId)} END`);
  }
  if (outcome !== undefined) conditions.push(`v.last_outcome = ${bind(outcome)}`);
  if (from !== undefined) conditions.push(`v.last_ended_at >= ${bind(from)}`);
  if (to !== undefined) conditions.push(`v.last_ended_at < ${bind(to)}`);
  // As expressions without an index: otherwise the planner might search the tasks of a page among all of their kind.
  return conditions.map((condition) => `CASE WHEN ${condition} THEN true ELSE false END`).join(' AND ');
}

/**
 * Reads the tasks of all parts after a cursor, in order. It reads at most the limit from each part; if the filter must
 * be evaluated row by row, it reads on until it has as many, or has read {@link LOOKED_AT}.
 * @param order newest first for a list; oldest first for processing, which then does not meet tasks that end later
 * @returns the tasks, and the position of the last row that was read, if there may be more after it
 */
export async function selectListed(
  statements: Statements,
  parts: readonly ListPart[],
  filter: TaskFilter,
  order: 'newest' | 'oldest',
  cursor: ListCursor | undefined,
  limit: number,
): Promise<{ rows: Standing[]; stoppedAt?: ListCursor }> {
  const [beyond, notBeyond, direction] = order === 'newest' ? ['<', '>=', 'DESC'] : ['>', '<=', 'ASC'];
  const byInstant = isByInstant(filter);
  const start = startOf(cursor, byInstant ? filter : {}, order);
  const orderBy = (hasInstants: boolean) =>
    `ORDER BY ${hasInstants ? `at ${direction}, ` : ''}id ${direction}`;
  const { from: since, to: until, lastId } = filter;

  /** Builds the candidate rows of a part, as `id`, `at` and `attempt_id`, and the order of its index. */
  const rangeOf = (part: ListPart, bind: Bind, stop?: ListCursor): { rows: string; order: string } => {
    const { from, id, instant, standsAt, attempt } = sourceOf(part, bind);
    const place = instant === undefined ? id : `(${instant}, ${id})`;
    const placeOf = (one: ListCursor) =>
      instant === undefined ? bind(one.id) : `(${bind(one.at)}, ${bind(one.id)})`;
    const conditions = [from];
    if (standsAt === undefined || start.at === standsAt)
      conditions.push(`${place} ${beyond} ${placeOf(start)}`);
    // Its rows come before all others, so after the first of the others none is left.
    else if (order === 'newest') conditions.push('false');
    if (stop) conditions.push(`${place} ${notBeyond} ${placeOf(stop)}`);
    if (instant !== undefined && order === 'newest' && since !== undefined)
      conditions.push(`${instant} >= ${bind(since)}`);
    if (instant !== undefined && order === 'oldest' && until !== undefined)
      conditions.push(`${instant} < ${bind(until)}`);
    if (lastId !== undefined) conditions.push(`${id} <= ${bind(lastId)}`);
    return {
      rows: `SELECT ${id} AS id, ${instant ?? standsAt ?? 0} AS at, ${attempt ?? 'CAST(NULL AS bigint)'} AS attempt_id FROM ${conditions.join(' AND ')}`,
      order: orderBy(instant !== undefined),
    };
  };

  // First, because tasks may leave a part before its rows are read, and the returned position must not be beyond the
  // rows that were read.
  const stops = new Map<ListPart, ListCursor>();
  for (const part of parts) {
    if (!mustBeChecked(part, filter)) continue;
    const values: SqlValue[] = [];
    const range = rangeOf(part, (value) => `$${values.push(value)}`);
    const stop = await statements.first<ListCursor>(
      `${range.rows} ${range.order} LIMIT 1 OFFSET ${LOOKED_AT - 1}`,
      ...values,
    );
    if (stop) stops.set(part, stop);
  }
  const sign = order === 'newest' ? -1 : 1;
  const compare = (a: ListCursor, b: ListCursor) => sign * (a.at - b.at || a.id - b.id);
  const found: Standing[] = [];
  for (let begin = 0; begin < parts.length; begin += PARTS_IN_STATEMENT) {
    const values: SqlValue[] = [];
    const bind: Bind = (value) => `$${values.push(value)}`;
    const most = bind(limit);
    const pages = parts.slice(begin, begin + PARTS_IN_STATEMENT).map((part, i) => {
      const range = rangeOf(part, bind, stops.get(part));
      // An attempt may no longer be the last of its task: then another part has the task, or another attempt.
      const checked =
        () => `SELECT id, at, attempt_id FROM (${tasksOf(statements.dialect, range.rows, ['at', 'attempt_id'])}) AS v
        WHERE ${conditionsOf(filter, bind)} AND (v.attempt_id IS NULL OR v.attempt_id = v.last_lease_id)`;
      const rows = mustBeChecked(part, filter) ? checked() : range.rows;
      // Each in a derived table: a LIMIT must not reach across the union.
      return `SELECT id, at FROM (${rows} ${range.order} LIMIT ${most}) AS p${i}`;
    });
    found.push(
      ...(await statements.rows<Standing>(
        tasksOf(
          statements.dialect,
          `SELECT id, at FROM (${pages.join(' UNION ALL ')}) AS pages ${orderBy(byInstant)} LIMIT ${most}`,
          ['at'],
        ),
        ...values,
      )),
    );
  }
  const [stoppedAt] = [...stops.values()].sort(compare);
  const rows = found
    .sort(compare)
    .filter((row) => !stoppedAt || compare(row, stoppedAt) <= 0)
    .slice(0, limit);
  return { rows, ...(stoppedAt ? { stoppedAt } : {}) };
}

/**
 * Returns where to begin: at the cursor, or at the start of the range if that is further. One condition for both: with
 * two lower bounds a database begins at one of them, and may read everything in between.
 */
function startOf(
  cursor: ListCursor | undefined,
  { from, to }: { readonly from?: number; readonly to?: number },
  order: 'newest' | 'oldest',
): ListCursor {
  if (order === 'newest') {
    const start = cursor ?? LAST;
    // No task has the id 0.
    return to !== undefined && to <= start.at ? { at: to, id: 0 } : start;
  }
  const start = cursor ?? FIRST;
  return from !== undefined && from > start.at ? { at: from, id: 0 } : start;
}

/** Formats the cursor after a row. */
export const cursorBehind = ({ at, id }: ListCursor, byInstant: boolean): string =>
  byInstant ? `${at}-${id}` : String(id);

/** Parses a cursor. @throws ERR_VALIDATION it belongs to a list in another order */
export function cursorOf(text: string | undefined, byInstant: boolean): ListCursor | undefined {
  if (text === undefined) return undefined;
  const [first, second] = text.split('-').map(Number);
  if ((second !== undefined) !== byInstant)
    throw fail('ERR_VALIDATION', { cursor: 'must be the next_cursor of a page of the same filter' });
  return byInstant ? { at: first as number, id: second as number } : { at: 0, id: first as number };
}

/** Those of the tasks that a filter still asks for. */
export function selectMatching(
  statements: Statements,
  ids: readonly number[],
  wanted: TaskFilter,
): Promise<TaskRow[]> {
  const values: SqlValue[] = [JSON.stringify(ids)];
  const conditions = conditionsOf(wanted, (value) => `$${values.push(value)}`);
  return statements.rows<TaskRow>(
    `SELECT * FROM (${tasksOf(statements.dialect, statements.dialect.ids('$1'))}) AS v WHERE ${conditions} ORDER BY v.id`,
    ...values,
  );
}

/** The id of the newest task; 0 if there is none. */
export async function selectLastId(statements: Statements): Promise<number> {
  const row = await statements.first<{ id: number | null }>('SELECT max(id) AS id FROM tasks');
  return row?.id ?? 0;
}
