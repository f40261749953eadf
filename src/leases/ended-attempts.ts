import { ATTEMPT_OUTCOMES, type AttemptOutcome } from '../agents/agent.entity';
import type { Place } from '../concurrency/concurrency.service';
import type { SqlValue, Statements } from '../database/statements';
import { fail } from '../errors';
import type { TaskState } from './task.entity';

/** Which tasks to find by their last attempt. */
export interface AttemptFilter {
  /** Who holds the task, or ended its last attempt. */
  readonly agentId?: number;
  /** How its last attempt ended. */
  readonly outcome?: AttemptOutcome;
  /** When its last attempt ended, in ms since the epoch: not before. */
  readonly from?: number;
  /** The same: before. */
  readonly to?: number;
  readonly kind?: string;
  /** Targets, each of a kind. */
  readonly targets?: readonly Place[];
  /** The states that are looked for. */
  readonly states: readonly TaskState[];
}

/** Where a task stands among those that the filter finds: the next ones are below it, or above. */
export interface AttemptCursor {
  readonly at: number;
  readonly id: number;
}

/** Tasks that an agent holds stand before all whose last attempt has ended: their attempt has not. */
const HELD_AT = 9_999_999_999_999;

/** @throws ERR_VALIDATION the range ends before it begins */
export function checkRange({ from, to }: Pick<AttemptFilter, 'from' | 'to'>): void {
  if (from !== undefined && to !== undefined && from > to)
    throw fail('ERR_VALIDATION', { from: 'must not be after to' });
}

/** What a task whose last attempt ended so can be: only one that was given back, or expired, goes on. */
const COMPLETED: readonly TaskState[] = ['completed'];
const GONE_ON: readonly TaskState[] = ['scheduled', 'waiting', 'queued', 'leased', 'cancelled', 'dead'];

/** How many parts of an index one statement reads; SQLite takes at most 500 in a union. */
const PARTS_IN_STATEMENT = 100;

/** Tasks that one index finds in the order of when their last attempt ended. */
export interface EndedPart {
  readonly outcome: AttemptOutcome;
  readonly state: TaskState;
  readonly column: 'kind' | 'last_agent_id';
  readonly value: string | number;
  /** What else a task must be, and no index is to be chosen by. */
  readonly also: readonly (readonly [expression: string, value: SqlValue])[];
}

/** Tasks that an agent holds: at most as many as one may. */
export interface HeldPart {
  readonly heldBy: number;
  readonly also: EndedPart['also'];
}

/** A part of what a filter finds; no task is in two of them. */
export type AttemptPart = EndedPart | HeldPart;

/** Whether tasks are to be found by their last attempt. Those of targets are found by the target. */
export const isByAttempt = ({
  agentId,
  outcome,
  from,
  to,
  targets,
}: Omit<AttemptFilter, 'states'>): boolean =>
  targets === undefined && [agentId, outcome, from, to].some((value) => value !== undefined);

/** What an agent holds it has not ended; so of what is held, a filter by outcome or time speaks of the attempt before. */
export const seeksHeld = ({ outcome, from, to }: Omit<AttemptFilter, 'states'>): boolean =>
  outcome === undefined && from === undefined && to === undefined;

/**
 * The parts that a filter's tasks are in: of each outcome and state a range of an index. By the agent if that is given, else by the
 * kind.
 * @param kinds every kind that there are tasks of
 */
export function partsOf(filter: Omit<AttemptFilter, 'targets'>, kinds: readonly string[]): AttemptPart[] {
  const { agentId, outcome, kind, states } = filter;
  const drivers =
    agentId === undefined
      ? (kind === undefined ? kinds : [kind]).map((one) => ({
          ...{ column: 'kind' as const, value: one, also: [] },
        }))
      : [{ column: 'last_agent_id' as const, value: agentId, also: isOfKind(kind) }];
  const held: HeldPart[] =
    agentId !== undefined && seeksHeld(filter) && states.includes('leased')
      ? [{ heldBy: agentId, also: isOfKind(kind) }]
      : [];
  const ended = states
    // One that another holds now is that one's: a filter that says more must not find what one that says less does not.
    .filter((state) => !(agentId !== undefined && state === 'leased'))
    .flatMap((state) =>
      ATTEMPT_OUTCOMES.filter(
        (one) => (outcome === undefined || one === outcome) && statesAfter(one).includes(state),
      ).flatMap((one) => drivers.map((driver) => ({ outcome: one, state, ...driver }))),
    );
  return [...ended, ...held];
}

const statesAfter = (outcome: AttemptOutcome): readonly TaskState[] =>
  outcome === 'cancelled' || outcome === 'expired' ? GONE_ON : COMPLETED;

// As expressions, so that no other index than the part's own is chosen by them.
const isOfKind = (kind: string | undefined): EndedPart['also'] =>
  kind === undefined ? [] : [["coalesce(t.kind, '')", kind]];

/** As the partial indexes say it, word for word. The outcome is one of a few, so it need not be bound. */
const endedSo = ({ outcome, state }: EndedPart, bind: (value: SqlValue) => string): string =>
  outcome === 'success'
    ? `t.last_outcome = 'success'`
    : `t.last_outcome = '${outcome}' AND t.last_outcome <> 'success' AND t.state = ${bind(state)}`;

/**
 * So many tasks of a part are looked at for one page if the filter says more than an index knows: a page can be short, and its cursor
 * goes on from there.
 */
const LOOKED_AT = 2_000;

/** A row with where it stands. */
export type Standing<Row> = Row & { readonly stands_at: number };

/**
 * Tasks of all the parts beyond a cursor, by when their last attempt ended: those that are held before all others. Reads of each
 * part no more than the limit, or a bounded number if it must leave some out.
 * @param columns of `t`
 * @param order newest first for a list; oldest first to go through them, then what ends later is not met
 * @returns the tasks, and how far was looked if that is not to the end: there may be more beyond
 */
export async function selectByAttempt<Row>(
  statements: Statements,
  parts: readonly AttemptPart[],
  range: Pick<AttemptFilter, 'from' | 'to'>,
  columns: string,
  order: 'newest' | 'oldest',
  cursor: AttemptCursor | undefined,
  limit: number,
): Promise<{ rows: Standing<Row & { id: number }>[]; stoppedAt?: AttemptCursor }> {
  const [beyond, notBeyond, direction] = order === 'newest' ? ['<', '>=', 'DESC'] : ['>', '<=', 'ASC'];
  const { at, id } = beyondBoth(cursor, range, order);
  const found: Standing<Row & { id: number }>[] = [];
  /** What is beyond the cursor of a part, in its range; down to where it is looked at. */
  const within = (part: EndedPart, bind: (value: SqlValue) => string, stop?: AttemptCursor): string => {
    const end =
      order === 'newest'
        ? range.from !== undefined && `AND t.last_ended_at >= ${bind(range.from)}`
        : range.to !== undefined && `AND t.last_ended_at < ${bind(range.to)}`;
    const last = stop && `AND (t.last_ended_at, t.id) ${notBeyond} (${bind(stop.at)}, ${bind(stop.id)})`;
    return `t.${part.column} = ${bind(part.value)} AND ${endedSo(part, bind)}
      AND (t.last_ended_at, t.id) ${beyond} (${bind(at)}, ${bind(id)}) ${end || ''} ${last ?? ''}
      ORDER BY t.last_ended_at ${direction}, t.id ${direction}`;
  };
  // First: tasks may leave a part before its rows are read, and what is looked at then must not end earlier than is said.
  const stops = new Map<AttemptPart, AttemptCursor>();
  for (const part of parts) {
    if ('heldBy' in part || part.also.length === 0) continue;
    const values: SqlValue[] = [];
    const condition = within(part, (value) => `$${values.push(value)}`);
    const stop = await statements.first<AttemptCursor>(
      `SELECT t.last_ended_at AS at, t.id FROM tasks t WHERE ${condition} LIMIT 1 OFFSET ${LOOKED_AT - 1}`,
      ...values,
    );
    if (stop) stops.set(part, stop);
  }
  for (let begin = 0; begin < parts.length; begin += PARTS_IN_STATEMENT) {
    const values: SqlValue[] = [];
    const bind = (value: SqlValue): string => `$${values.push(value)}`;
    const most = bind(limit);
    const pages = parts.slice(begin, begin + PARTS_IN_STATEMENT).map((part, i) => {
      const also = part.also.map(([expression, value]) => `AND ${expression} = ${bind(value)}`).join(' ');
      // A derived table each: a LIMIT must not reach across the union.
      if ('heldBy' in part)
        return `SELECT * FROM (SELECT ${columns}, CAST(${HELD_AT} AS bigint) AS stands_at FROM leases l JOIN tasks t ON t.id = l.task_id
            WHERE l.agent_id = ${bind(part.heldBy)} AND l.state = 'active'
              AND (CAST(${HELD_AT} AS bigint), t.id) ${beyond} (CAST(${bind(at)} AS bigint), CAST(${bind(id)} AS bigint)) ${also}
            ORDER BY t.id ${direction} LIMIT ${most}) AS p${i}`;
      const from =
        also === ''
          ? `tasks t WHERE ${within(part, bind)}`
          : `(SELECT * FROM tasks t WHERE ${within(part, bind, stops.get(part))} LIMIT ${2 * LOOKED_AT}) AS t WHERE true ${also}
             ORDER BY t.last_ended_at ${direction}, t.id ${direction}`;
      return `SELECT * FROM (SELECT ${columns}, t.last_ended_at AS stands_at FROM ${from} LIMIT ${most}) AS p${i}`;
    });
    found.push(
      ...(await statements.rows<Standing<Row & { id: number }>>(
        `${pages.join(' UNION ALL ')} ORDER BY stands_at ${direction}, id ${direction} LIMIT ${most}`,
        ...values,
      )),
    );
  }
  const sign = order === 'newest' ? -1 : 1;
  const compare = (a: AttemptCursor, b: AttemptCursor) => sign * (a.at - b.at || a.id - b.id);
  const [stoppedAt] = [...stops.values()].sort(compare);
  const rows = found
    .map((row) => ({ row, at: row.stands_at, id: row.id }))
    .sort(compare)
    .filter((one) => !stoppedAt || compare(one, stoppedAt) <= 0)
    .slice(0, limit)
    .map(({ row }) => row);
  return { rows, stoppedAt };
}

/** The tasks of a target that one index finds in the order of their ids: all, or those whose last attempt ended so. */
export function ofTarget(
  { target }: Place,
  outcome: AttemptOutcome | undefined,
  bind: (value: SqlValue) => string,
): string {
  // Most succeed: for them an index by the target would cost a page of it for each target of a report.
  const ended =
    outcome === undefined || outcome === 'success'
      ? ''
      : `AND last_outcome = '${outcome}' AND last_outcome <> 'success'`;
  return `target = ${bind(target)} ${ended}`;
}

/**
 * Tasks of targets, the newest first. Of each target a bounded number is looked at.
 * @param below an id
 * @returns the tasks, and the id down to which was looked if that is not to the end: there may be more below
 */
export async function selectByTarget<Row extends { id: number }>(
  statements: Statements,
  { targets, agentId, outcome, from, to, states }: AttemptFilter & { targets: readonly Place[] },
  below: number,
  limit: number,
): Promise<{ rows: Row[]; stoppedAt?: number }> {
  const within = (place: Place, bind: (value: SqlValue) => string, stop?: number): string =>
    `${ofTarget(place, outcome, bind)} AND id < ${bind(below)} ${stop === undefined ? '' : `AND id >= ${bind(stop)}`} ORDER BY id DESC`;
  // First: tasks may leave the range before its rows are read, and what is looked at then must not end earlier than is said.
  const stops = new Map<Place, number>();
  for (const place of targets) {
    const values: SqlValue[] = [];
    const range = within(place, (value) => `$${values.push(value)}`);
    const stop = await statements.first<{ id: number }>(
      `SELECT id FROM tasks WHERE ${range} LIMIT 1 OFFSET ${LOOKED_AT - 1}`,
      ...values,
    );
    if (stop) stops.set(place, stop.id);
  }
  const values: SqlValue[] = [];
  const bind = (value: SqlValue): string => `$${values.push(value)}`;
  const most = bind(limit);
  const pages = targets.map((place, i) => {
    const looked = `SELECT * FROM tasks WHERE ${within(place, bind, stops.get(place))} LIMIT ${2 * LOOKED_AT}`;
    const conditions = [
      `t.kind = ${bind(place.kind)}`,
      `t.state IN (${states.map(bind).join(', ')})`,
      outcome !== undefined && `t.last_outcome = ${bind(outcome)}`,
      from !== undefined && `t.last_ended_at >= ${bind(from)}`,
      to !== undefined && `t.last_ended_at < ${bind(to)}`,
      agentId !== undefined &&
        `${bind(agentId)} = CASE WHEN t.state <> 'leased' THEN t.last_agent_id ${
          seeksHeld({ outcome, from, to }) ? `ELSE ${HOLDER}` : ''
        } END`,
    ].filter((condition) => condition !== false);
    // A derived table each: a LIMIT must not reach across the union.
    return `SELECT * FROM (SELECT t.* FROM (${looked}) AS t WHERE ${conditions.join(' AND ')}
      ORDER BY t.id DESC LIMIT ${most}) AS p${i}`;
  });
  const found = await statements.rows<Row>(
    `${pages.join(' UNION ALL ')} ORDER BY id DESC LIMIT ${most}`,
    ...values,
  );
  if (stops.size === 0) return { rows: found };
  const stoppedAt = Math.max(...stops.values());
  return { rows: found.filter(({ id }) => id >= stoppedAt), stoppedAt };
}

/** Who holds the leased task `t`. */
const HOLDER = '(SELECT l.agent_id FROM leases l WHERE l.id = t.lease_id)';

const FIRST: AttemptCursor = { at: -1, id: 0 };
const LAST: AttemptCursor = { at: HELD_AT, id: Number.MAX_SAFE_INTEGER };

/**
 * Where to begin: at the cursor, or where the range begins if that is further. One condition for both: of two on one side a database
 * begins at one of them, and may read all that is between.
 */
function beyondBoth(
  cursor: AttemptCursor | undefined,
  { from, to }: Pick<AttemptFilter, 'from' | 'to'>,
  order: 'newest' | 'oldest',
): AttemptCursor {
  if (order === 'newest') {
    const start = cursor ?? LAST;
    // No task has the id 0.
    return to !== undefined && to <= start.at ? { at: to, id: 0 } : start;
  }
  const start = cursor ?? FIRST;
  return from !== undefined && from > start.at ? { at: from, id: 0 } : start;
}

/** The text of a cursor behind a row. */
export const cursorBehind = (row: { stands_at: number; id: number }): string => `${row.stands_at}-${row.id}`;

/** @throws ERR_VALIDATION it is the cursor of a list in another order */
export function cursorOf(text: string | undefined, byAttempt: boolean): AttemptCursor | undefined {
  if (text === undefined) return undefined;
  const [first, second] = text.split('-').map(Number);
  if ((second !== undefined) !== byAttempt)
    throw fail('ERR_VALIDATION', { cursor: 'must be the next_cursor of a page of the same filter' });
  return byAttempt ? { at: first as number, id: second as number } : undefined;
}

/** The names of observations in which agents say what went wrong, the best first. */
const MESSAGE_NAMES = ['error', 'error_message', 'failure', 'reason', 'message'];
/** How much of it is kept, in UTF-16 units. */
const MAX_MESSAGE = 300;

/**
 * What an agent says went wrong: the first text that it observed under a name for that.
 * @returns a JSON string, for it may hold what a database can't keep as it is; null where it says nothing
 */
export function messageOf(observations: readonly { name: string; value: unknown }[]): string | null {
  for (const name of MESSAGE_NAMES) {
    const said = observations.find((one) => one.name === name && typeof one.value === 'string' && one.value);
    if (said) return JSON.stringify(shortened(said.value as string));
  }
  return null;
}

/** Not between the two halves of a character. */
function shortened(text: string): string {
  const cut = text.slice(0, MAX_MESSAGE);
  return text.length > MAX_MESSAGE && /[\ud800-\udbff]$/.test(cut) ? cut.slice(0, -1) : cut;
}
