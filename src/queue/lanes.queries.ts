import type { WindowKey } from '../concurrency/window.entity';
import type { RoomColumns } from '../concurrency/window-bounds';
import { roomColumns } from '../concurrency/windows.queries';
import type { SqlValue, Statements, Transaction } from '../database/statements';

/** A position in the claim order of a lane: the lower first. The rank is minus the priority. */
export interface Position {
  readonly rank: number;
  readonly id: number;
}

/** Before every task. */
export const START: Position = { rank: -2_147_483_648, id: 0 };

/** After every task. */
export const END: Position = { rank: 2_147_483_647, id: Number.MAX_SAFE_INTEGER };

/** A row of `ready`. */
export interface ReadyRow {
  readonly lane_id: number;
  readonly rank: number;
  readonly task_id: number;
  readonly kind: string;
  /** When it became ready, in ms since the epoch. */
  readonly ready_at: number;
  readonly not_after: number | null;
}

/** A task as its place in a lane needs it. */
export interface TargetTask extends WindowKey {
  readonly id: number;
  readonly priority: number;
  readonly not_after: number | null;
  readonly state: string;
}

/** Part of a lane: its best tasks from a position on. */
export interface LanePart {
  readonly laneId: number;
  readonly from: Position;
  readonly limit: number;
}

/** An open lane of a target, with the columns of its window. */
export interface TakableLane {
  readonly id: number;
  readonly target: string;
  /** Null if it has none, because the limit was lifted, or is inherited and counts nothing yet. */
  readonly window: RoomColumns | null;
  /** The place of its best task, by the lane's row; left out if that is not up to date yet. */
  readonly head_rank?: number;
  readonly head_id?: number;
}

/** The same, by its best task. */
export interface OpenLane extends TakableLane {
  readonly head_rank: number;
  readonly head_id: number;
}

const READY = {
  lane_id: 'integer',
  rank: 'integer',
  task_id: 'integer',
  kind: 'text',
  ready_at: 'integer',
  not_after: 'integer',
} as const;
const READY_COLUMNS = Object.keys(READY).join(', ');
const READY_KEY = ['lane_id', 'rank', 'task_id'] as const;
const KEYS = { kind: 'text', target: 'text' } as const;

/**
 * Statements for parts have one of a few sizes, so that each is prepared once; the rest is filled with a lane that
 * does not exist.
 */
const SIZES = [1, 2, 4, 8, 16, 32];
const MAX_PARTS = 32;
const NO_PART: LanePart = { laneId: 0, from: START, limit: 0 };

/** Splits parts into groups for one statement, each filled up to one of the sizes. */
function groupsOf(parts: readonly LanePart[]): LanePart[][] {
  const groups: LanePart[][] = [];
  for (let begin = 0; begin < parts.length; begin += MAX_PARTS) {
    const group = parts.slice(begin, begin + MAX_PARTS);
    const size = SIZES.find((one) => one >= group.length) as number;
    groups.push([...group, ...Array<LanePart>(size - group.length).fill(NO_PART)]);
  }
  return groups;
}

/** Builds the condition that a task's time is not over. @param now the parameter with the current instant */
const isNotOver = (now: string): string => `(not_after IS NULL OR not_after > ${now})`;

/** Builds the condition of a part, with its order and limit; `$1` is the current instant. */
const within = (i: number): string => {
  const at = 2 + 4 * i;
  return `WHERE lane_id = $${at} AND (rank, task_id) >= ($${at + 1}, $${at + 2}) AND ${isNotOver('$1')}
    ORDER BY rank, task_id LIMIT $${at + 3}`;
};

const valuesOf = (parts: readonly LanePart[]): SqlValue[] =>
  parts.flatMap(({ laneId, from, limit }) => [laneId, from.rank, from.id, limit]);

/** Deletes the best tasks of each part from `ready` and returns them. Skips those that another unit has locked. */
export async function takeReady(tx: Transaction, parts: readonly LanePart[]): Promise<ReadyRow[]> {
  const taken: ReadyRow[] = [];
  for (const group of groupsOf(parts))
    taken.push(
      ...(await tx.rows<ReadyRow>(
        `${tx.dialect.takeRows(
          'ready',
          READY_KEY,
          group.map((_, i) => within(i)),
        )} RETURNING ${READY_COLUMNS}`,
        tx.now,
        ...valuesOf(group),
      )),
    );
  return taken;
}

/** A row of `ready` by its key. */
export type Place = Pick<ReadyRow, 'lane_id' | 'rank' | 'task_id'>;

/** Reads the places of the best tasks of lanes, of each from a position on and at most `limit`; each lane's in claim order. */
export function selectReady(
  statements: Statements,
  lanes: readonly Pick<LanePart, 'laneId' | 'from'>[],
  limit: number,
  now: number,
): Promise<Place[]> {
  if (lanes.length === 0) return Promise.resolve([]);
  const rowset = statements.dialect.rowset('$1', {
    lane_id: 'integer',
    from_rank: 'integer',
    from_id: 'integer',
  });
  return statements.rows<Place>(
    statements.dialect.ofEach(
      rowset,
      'lane_id',
      ['rank', 'task_id'],
      `SELECT rank, task_id FROM ready WHERE lane_id = r.lane_id AND (rank, task_id) >= (r.from_rank, r.from_id) AND ${isNotOver('$2')}
       ORDER BY rank, task_id LIMIT $3`,
    ),
    JSON.stringify(
      lanes.map(({ laneId, from }) => ({ lane_id: laneId, from_rank: from.rank, from_id: from.id })),
    ),
    now,
    limit,
  );
}

/**
 * Deletes rows from `ready` that were just read, and returns them. In place of one that another unit has locked, it takes
 * the next of the same lane.
 * @param places in claim order
 */
export function takeFound(tx: Transaction, places: readonly Place[]): Promise<ReadyRow[]> {
  const first = new Map<number, Place>();
  for (const place of places) if (!first.has(place.lane_id)) first.set(place.lane_id, place);
  const rowset = tx.dialect.rowset('$1', {
    ...{ lane_id: 'integer', rank: 'integer', task_id: 'integer' },
    ...{ from_rank: 'integer', from_id: 'integer' },
  });
  const take = tx.dialect.takeFound('ready', READY_KEY, rowset, ['from_rank', 'from_id'], isNotOver('$2'));
  return tx.rows<ReadyRow>(
    `${take} RETURNING ${READY_COLUMNS}`,
    JSON.stringify(
      places.map(({ lane_id, rank, task_id }) => {
        const from = first.get(lane_id) as Place;
        return { lane_id, rank, task_id, from_rank: from.rank, from_id: from.task_id };
      }),
    ),
    tx.now,
  );
}

/** Whether there is a task in a kind's shared lane, from a position on, or in an open lane of one of its targets. */
export async function isAnyReady(
  statements: Statements,
  kind: string,
  laneId: number,
  from: Position,
  now: number,
): Promise<boolean> {
  const row = await statements.first(
    `SELECT * FROM (SELECT task_id FROM ready WHERE lane_id = $1 AND (rank, task_id) >= ($2, $3) AND ${isNotOver('$4')}
       ORDER BY rank, task_id LIMIT 1) AS shared
     UNION ALL SELECT * FROM (SELECT head_id FROM lanes WHERE kind = $5 AND is_open = 1 AND head_id IS NOT NULL
       ORDER BY head_rank, head_id LIMIT 1) AS open LIMIT 1`,
    laneId,
    from.rank,
    from.id,
    now,
    kind,
  );
  return row !== undefined;
}

/** The best task of a lane before a position. */
export async function findBefore(
  statements: Statements,
  laneId: number,
  before: Position,
): Promise<Position | undefined> {
  return statements.first<Position>(
    `SELECT rank, task_id AS id FROM ready WHERE lane_id = $1 AND (rank, task_id) < ($2, $3) ORDER BY rank, task_id LIMIT 1`,
    laneId,
    before.rank,
    before.id,
  );
}

/** Tasks of a target above an id, by ascending ids. */
export function selectOfTarget(
  tx: Transaction,
  target: string,
  aboveId: number,
  limit: number,
): Promise<TargetTask[]> {
  return tx.rows<TargetTask>(
    `SELECT id, kind, target, priority, not_after, state FROM tasks WHERE target = $1 AND id + 0 > $2 ORDER BY id + 0 LIMIT $3`,
    target,
    aboveId,
    limit,
  );
}

/** Takes these tasks out of `ready`, whichever of the lanes each is in. @returns those that were there */
export function removeReady(tx: Transaction, places: readonly Place[]): Promise<ReadyRow[]> {
  const rowset = tx.dialect.rowset('$1', { lane_id: 'integer', rank: 'integer', task_id: 'integer' });
  return tx.rows<ReadyRow>(
    `DELETE FROM ready WHERE ${tx.dialect.isKeyAmong('ready', READY_KEY, rowset)} RETURNING ${READY_COLUMNS}`,
    JSON.stringify(places.map(({ lane_id, rank, task_id }) => ({ lane_id, rank, task_id }))),
  );
}

export async function insertReady(tx: Transaction, rows: readonly ReadyRow[]): Promise<void> {
  if (rows.length === 0) return;
  await tx.run(
    `INSERT INTO ready (${READY_COLUMNS}) SELECT ${READY_COLUMNS} FROM ${tx.dialect.rowset('$1', READY)} AS r`,
    JSON.stringify(rows),
  );
}

/** Finds the lanes of these kinds and targets; the target is empty for a kind's shared lane. */
export function selectLanes(
  statements: Statements,
  keys: readonly WindowKey[],
): Promise<(WindowKey & { id: number })[]> {
  return statements.rows(
    `SELECT l.id, l.kind, l.target FROM ${statements.dialect.rowset('$1', KEYS)} AS r
     CROSS JOIN lanes l WHERE l.kind = r.kind AND l.target = r.target`,
    JSON.stringify(keys.map(({ kind, target }) => ({ kind, target }))),
  );
}

/** Adds open, empty lanes, unless they exist. */
export async function insertLanes(tx: Transaction, keys: readonly WindowKey[]): Promise<void> {
  if (keys.length === 0) return;
  await tx.run(
    `INSERT INTO lanes (kind, target, is_open, queued) SELECT kind, target, 1, 0 FROM ${tx.dialect.rowset('$1', KEYS)} AS r
     WHERE true ORDER BY kind, target ON CONFLICT (kind, target) DO NOTHING`,
    JSON.stringify(keys.map(({ kind, target }) => ({ kind, target }))),
  );
}

/** Whether any target has its own lane. */
export async function hasOwnLanes(statements: Statements): Promise<boolean> {
  const row = await statements.first(`SELECT 1 AS one FROM lanes WHERE target > '' LIMIT 1`);
  return row !== undefined;
}

/** Lists the open lanes of a kind's targets that have tasks, by their best tasks. */
export async function selectOpenLanes(
  statements: Statements,
  kind: string,
  limit: number,
): Promise<OpenLane[]> {
  const rows = await statements.rows<LaneRow<OpenLane>>(
    `SELECT l.id, l.target, l.head_rank, l.head_id, ${roomColumns('w')}
     FROM (SELECT id, kind, target, head_rank, head_id FROM lanes
       WHERE kind = $1 AND is_open = 1 AND head_id IS NOT NULL ORDER BY head_rank, head_id LIMIT $2) AS l
     LEFT JOIN concurrency_windows w ON w.kind = l.kind AND w.target = l.target AND w.scope = 'target'
     ORDER BY l.head_rank, l.head_id`,
    kind,
    limit,
  );
  return rows.map((row) => laneOf(kind, row));
}

/** Lists those of the lanes that belong to targets of a kind and are open. */
export async function selectOpenAmong(
  statements: Statements,
  kind: string,
  laneIds: readonly number[],
): Promise<TakableLane[]> {
  const rows = await statements.rows<LaneRow<TakableLane>>(
    `SELECT l.id, l.target, ${roomColumns('w')} FROM lanes l
     LEFT JOIN concurrency_windows w ON w.kind = l.kind AND w.target = l.target AND w.scope = 'target'
     WHERE ${statements.dialect.isAmong('l.id', '$1')} AND l.kind = $2 AND l.is_open = 1`,
    JSON.stringify(laneIds),
    kind,
  );
  return rows.map((row) => laneOf(kind, row));
}

/** A lane as it is read, with the columns of its window if it has one. */
type LaneRow<Lane extends TakableLane> = Omit<Lane, 'window'> & Omit<RoomColumns, 'scope' | 'kind'>;

const laneOf = <Lane extends TakableLane>(kind: string, row: LaneRow<Lane>) => ({
  ...row,
  window: row.leased === null ? null : { ...row, scope: 'target' as const, kind },
});

/**
 * Opens lanes whose next start is near.
 * @param now in ms since the epoch
 * @returns their targets
 */
export function openDueLanes(
  tx: Transaction,
  now: number,
  limit: number,
): Promise<(WindowKey & { readonly queued: number })[]> {
  return tx.rows(
    `UPDATE lanes SET is_open = 1, opens_at = NULL WHERE id IN (
       SELECT id FROM lanes WHERE opens_at <= $1 AND head_id IS NOT NULL ORDER BY opens_at LIMIT $2 ${tx.dialect.skipLocked()})
     RETURNING kind, target, queued`,
    now,
    limit,
  );
}

/** Whether a lane's next start is near. */
export async function isAnyLaneDue(statements: Statements, now: number): Promise<boolean> {
  const row = await statements.first(
    'SELECT 1 AS one FROM lanes WHERE opens_at <= $1 AND head_id IS NOT NULL LIMIT 1',
    now,
  );
  return row !== undefined;
}

/** Has every lane that waits for its next start open at once: after the clock was set back, that may be far ahead. */
export async function forgetOpenings(tx: Transaction): Promise<void> {
  await tx.run('UPDATE lanes SET opens_at = 0 WHERE opens_at IS NOT NULL');
}

/** Tasks that were added to a lane of a target: their number, and the best of them. */
export interface LaneAddition {
  readonly id: number;
  readonly count: number;
  readonly rank: number;
  readonly head: number;
}

/**
 * Counts tasks that were added to locked lanes, and updates the lanes' best task.
 * @returns the number of lanes: less than were given if one was deleted meanwhile
 */
export async function addToLanes(tx: Transaction, additions: readonly LaneAddition[]): Promise<number> {
  if (additions.length === 0) return 0;
  const isBetter = 'lanes.head_id IS NULL OR (r.rank, r.head) < (lanes.head_rank, lanes.head_id)';
  return tx.run(
    `UPDATE lanes SET queued = lanes.queued + r.count,
       head_rank = CASE WHEN ${isBetter} THEN r.rank ELSE lanes.head_rank END,
       head_id = CASE WHEN ${isBetter} THEN r.head ELSE lanes.head_id END
     FROM ${tx.dialect.rowset('$1', { id: 'integer', count: 'integer', rank: 'integer', head: 'integer' })} AS r
     WHERE lanes.id = r.id AND ${tx.dialect.prefilterByList('lanes.id', '$2')}`,
    JSON.stringify(additions),
    JSON.stringify(additions.map(({ id }) => id)),
  );
}

/** Counts tasks that left locked lanes, and looks the lanes' best task up. */
export async function removeFromLanes(tx: Transaction, counts: ReadonlyMap<number, number>): Promise<void> {
  if (counts.size === 0) return;
  // Before the head there are only deleted rows, which an open snapshot keeps.
  const best = (column: string) =>
    `(SELECT ${column} FROM ready WHERE lane_id = lanes.id AND (rank, task_id) >= (lanes.head_rank, lanes.head_id)
       ORDER BY rank, task_id LIMIT 1)`;
  await tx.run(
    `UPDATE lanes SET queued = lanes.queued - r.count, head_rank = ${best('rank')}, head_id = ${best('task_id')}
     FROM ${tx.dialect.rowset('$1', { id: 'integer', count: 'integer' })} AS r
     WHERE lanes.id = r.id AND ${tx.dialect.prefilterByList('lanes.id', '$2')}`,
    JSON.stringify([...counts].map(([id, count]) => ({ id, count }))),
    JSON.stringify([...counts.keys()]),
  );
}

/** How a lane of a target stands. */
export interface LaneState {
  readonly isOpen: boolean;
  /** When it opens, in ms since the epoch; null if it is open, or until its window has room again. */
  readonly opensAt: number | null;
}

/** Opens or closes lanes of targets. */
export async function setLaneStates(
  tx: Transaction,
  states: readonly (LaneState & { readonly id: number })[],
): Promise<void> {
  if (states.length === 0) return;
  await tx.run(
    `UPDATE lanes SET is_open = r.is_open, opens_at = r.opens_at
     FROM ${tx.dialect.rowset('$1', { id: 'integer', is_open: 'integer', opens_at: 'integer' })} AS r
     WHERE lanes.id = r.id AND ${tx.dialect.prefilterByList('lanes.id', '$2')}`,
    JSON.stringify(
      states.map(({ id, isOpen, opensAt }) => ({
        ...{ id, is_open: isOpen ? 1 : 0, opens_at: isOpen ? null : opensAt },
      })),
    ),
    JSON.stringify(states.map(({ id }) => id)),
  );
}

/** Counts the queued tasks in the lanes of these targets. */
export async function countInLanes(
  statements: Statements,
  keys: readonly WindowKey[],
): Promise<(WindowKey & { queued: number })[]> {
  return statements.rows(
    `SELECT l.kind, l.target, l.queued FROM ${statements.dialect.rowset('$1', KEYS)} AS r
     CROSS JOIN lanes l WHERE l.kind = r.kind AND l.target = r.target`,
    JSON.stringify(keys.map(({ kind, target }) => ({ kind, target }))),
  );
}

/** Counts the queued tasks of each kind in lanes of targets with a limit of 0. */
export function countStopped(statements: Statements): Promise<{ kind: string; queued: number }[]> {
  return statements.rows(
    `SELECT l.kind, sum(l.queued) AS queued FROM concurrency_windows w CROSS JOIN lanes l
     WHERE w.scope = 'target' AND w.slots = 0 AND l.kind = w.kind AND l.target = w.target GROUP BY l.kind`,
  );
}

/** Deletes empty lanes of targets without a limit. @returns their number */
export function deleteIdleLanes(tx: Transaction, limit: number): Promise<number> {
  return tx.run(
    `DELETE FROM lanes WHERE id IN (
       SELECT l.id FROM lanes l WHERE l.target > '' AND l.queued = 0 AND NOT EXISTS (
         SELECT 1 FROM concurrency_windows w WHERE w.kind = l.kind AND w.target = l.target AND w.scope = 'target')
       ORDER BY l.id LIMIT $1 ${tx.dialect.skipLocked('l')})`,
    limit,
  );
}
