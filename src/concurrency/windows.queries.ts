import { Conditions } from '../database/conditions';
import type { ColumnType } from '../database/dialect';
import type { SqlValue, Statements, Transaction } from '../database/statements';
import { AHEAD_US } from './starts';
import type { ChangeReason, WindowKey, WindowRow, WindowScope } from './window.entity';

/** A window by its name. */
export interface NamedWindow extends WindowKey {
  readonly scope: WindowScope;
}

const NAMES_OF_COLUMNS = [
  ...[
    'id',
    'scope',
    'kind',
    'target',
    'inherited',
    'max_slots',
    'max_rate',
    'adaptive',
    'slots',
    'leased',
    'rate',
  ],
  ...['last_start_us', 'recent_starts', 'starts', 'hold_until', 'moved_through'],
];
const COLUMNS = NAMES_OF_COLUMNS.join(', ');
/** The columns of a window, `w`. */
const COLUMNS_OF_W = NAMES_OF_COLUMNS.map((name) => `w.${name}`).join(', ');
const KEYS = { kind: 'text', target: 'text' } as const;

const ROOM_COLUMNS = [
  ...['inherited', 'max_slots', 'max_rate', 'adaptive', 'slots', 'leased', 'rate', 'last_start_us'],
  ...['recent_starts', 'hold_until'],
];

/** The columns that say how many more leases a window has room for. */
export const roomColumns = (table: string): string =>
  ROOM_COLUMNS.map((name) => `${table}.${name}`).join(', ');

/** A window that the unit has locked. */
export interface LockedWindow extends WindowRow {
  readonly pacing: string | null;
}

/**
 * The windows of everything, of kinds, and of every target of a kind, by ascending ids (at most two for each kind, and one more); and
 * whether any target has a limit: if none has, nothing about targets has to be looked up.
 */
export async function selectWideWindows(
  statements: Statements,
): Promise<{ wide: WindowRow[]; hasTargets: boolean }> {
  const rows = await statements.rows<WindowRow>(
    `SELECT ${COLUMNS} FROM concurrency_windows WHERE scope IN ('global', 'kind', 'every_target')
     UNION ALL SELECT * FROM (SELECT ${COLUMNS} FROM concurrency_windows WHERE scope = 'target' LIMIT 1) AS any_target`,
  );
  const wide = rows.filter(({ scope }) => scope !== 'target').sort((a, b) => a.id - b.id);
  return { wide, hasTargets: wide.length < rows.length || wide.some((row) => row.scope === 'every_target') };
}

/** Lists the windows of these targets. */
export function selectTargetWindows(
  statements: Statements,
  keys: readonly WindowKey[],
): Promise<WindowRow[]> {
  return statements.rows<WindowRow>(
    `SELECT ${COLUMNS_OF_W} FROM ${statements.dialect.rowset('$1', KEYS)} AS r
     CROSS JOIN concurrency_windows w WHERE w.kind = r.kind AND w.target = r.target AND w.scope = 'target'`,
    JSON.stringify(keys.map(({ kind, target }) => ({ kind, target }))),
  );
}

/** Lists the windows of targets whose tasks are still being moved into their lanes. */
export function selectMovingWindows(statements: Statements, kind?: string): Promise<WindowRow[]> {
  const values: SqlValue[] = kind === undefined ? [] : [kind];
  return statements.rows<WindowRow>(
    `SELECT ${COLUMNS} FROM concurrency_windows WHERE moved_through IS NOT NULL ${kind === undefined ? '' : 'AND kind = $1'} ORDER BY id + 0`,
    ...values,
  );
}

/** Locks and reads windows, by ascending ids. */
export function lockWindows(tx: Transaction, ids: readonly number[]): Promise<LockedWindow[]> {
  return tx.rows<LockedWindow>(
    `SELECT ${COLUMNS}, pacing FROM concurrency_windows WHERE ${tx.dialect.isAmong('id', '$1')} ORDER BY id ${tx.dialect.forUpdate()}`,
    JSON.stringify(ids),
  );
}

/** Locks and reads windows of a kind's targets that inherit their bounds, by ascending ids. */
export function lockInherited(
  tx: Transaction,
  kind: string,
  aboveId: number,
  limit: number,
): Promise<LockedWindow[]> {
  return tx.rows<LockedWindow>(
    `SELECT ${COLUMNS}, pacing FROM concurrency_windows WHERE inherited = 1 AND kind = $1 AND id > $2
     ORDER BY id LIMIT $3 ${tx.dialect.forUpdate()}`,
    kind,
    aboveId,
    limit,
  );
}

/** Deletes windows that the unit has locked. */
export async function deleteWindowsById(tx: Transaction, ids: readonly number[]): Promise<void> {
  if (ids.length === 0) return;
  await tx.run(
    `DELETE FROM concurrency_windows WHERE ${tx.dialect.isAmong('id', '$1')}`,
    JSON.stringify(ids),
  );
}

/** Where a walk through the inherited windows is. */
export type InheritedPlace = Pick<WindowRow, 'kind' | 'id'>;

/** Lists places of inherited windows after one of them: a purge reads each once, however few of them are idle. */
export function selectInherited(
  statements: Statements,
  after: InheritedPlace,
  limit: number,
): Promise<InheritedPlace[]> {
  return statements.rows(
    `SELECT kind, id FROM concurrency_windows WHERE inherited = 1 AND (kind, id) > ($1, $2) ORDER BY kind, id LIMIT $3`,
    after.kind,
    after.id,
    limit,
  );
}

/**
 * Locks those of the inherited windows that have no leases and were not used lately, by ascending ids; those that another unit has
 * locked are left out.
 * @param now in ms since the epoch
 */
export function lockIdle(
  tx: Transaction,
  among: readonly InheritedPlace[],
  now: number,
): Promise<(NamedWindow & { readonly id: number })[]> {
  if (among.length === 0) return Promise.resolve([]);
  return tx.rows(
    `SELECT id, scope, kind, target FROM concurrency_windows
     WHERE ${tx.dialect.isAmong('id', '$1')} AND inherited + 0 = 1 AND leased = 0 AND expires_at < $2
     ORDER BY id ${tx.dialect.skipLocked()}`,
    JSON.stringify(among.map(({ id }) => id)),
    now,
  );
}

/** Adds to the counts of locked windows. */
export async function addLeased(tx: Transaction, changes: ReadonlyMap<number, number>): Promise<void> {
  const rows = [...changes].filter(([, by]) => by !== 0).map(([id, by]) => ({ id, by_count: by }));
  if (rows.length === 0) return;
  await tx.run(
    `UPDATE concurrency_windows SET leased = concurrency_windows.leased + r.by_count
     FROM ${tx.dialect.rowset('$1', { id: 'integer', by_count: 'integer' })} AS r
     WHERE concurrency_windows.id = r.id AND ${tx.dialect.prefilterByList('concurrency_windows.id', '$2')}`,
    JSON.stringify(rows),
    JSON.stringify(rows.map(({ id }) => id)),
  );
}

/** Stores columns of locked windows. */
async function update(
  tx: Transaction,
  columns: Readonly<Record<string, ColumnType>>,
  rows: readonly { readonly id: number }[],
): Promise<void> {
  if (rows.length === 0) return;
  const names = Object.keys(columns);
  await tx.run(
    `UPDATE concurrency_windows SET ${names.map((name) => `${name} = r.${name}`).join(', ')}
     FROM ${tx.dialect.rowset('$1', { id: 'integer', ...columns })} AS r
     WHERE concurrency_windows.id = r.id AND ${tx.dialect.prefilterByList('concurrency_windows.id', '$2')}`,
    JSON.stringify(rows, ['id', ...names]),
    JSON.stringify(rows.map(({ id }) => id)),
  );
}

/** A window with the instant at which it is deleted if it stays idle. */
type ExpiringWindow = LockedWindow & { readonly expires_at: number | null };

/** Stores the leases and starts of locked windows. */
export const updateStarts = (tx: Transaction, rows: readonly ExpiringWindow[]): Promise<void> =>
  update(
    tx,
    {
      leased: 'integer',
      last_start_us: 'integer',
      recent_starts: 'text',
      starts: 'integer',
      expires_at: 'integer',
    },
    rows,
  );

/** Stores the leases of locked windows, and the state of their pacing. */
export const updatePacing = (tx: Transaction, rows: readonly LockedWindow[]): Promise<void> =>
  update(
    tx,
    {
      leased: 'integer',
      starts: 'integer',
      slots: 'integer',
      rate: 'integer',
      hold_until: 'integer',
      pacing: 'text',
    },
    rows,
  );

/** Stores the bounds of locked windows, and the state of their pacing. */
export const updateBounds = (tx: Transaction, rows: readonly ExpiringWindow[]): Promise<void> =>
  update(
    tx,
    {
      max_slots: 'integer',
      max_rate: 'integer',
      adaptive: 'integer',
      slots: 'integer',
      rate: 'integer',
      hold_until: 'integer',
      pacing: 'text',
      expires_at: 'integer',
    },
    rows,
  );

/** The bounds of a window, and its first state. */
export type NewWindow = NamedWindow &
  Pick<LockedWindow, 'max_slots' | 'max_rate' | 'adaptive' | 'slots' | 'rate' | 'pacing'>;

const NEW = {
  scope: 'text',
  kind: 'text',
  target: 'text',
  inherited: 'integer',
  max_slots: 'integer',
  max_rate: 'integer',
  adaptive: 'integer',
  slots: 'integer',
  leased: 'integer',
  rate: 'integer',
  pacing: 'text',
  moved_through: 'integer',
  expires_at: 'integer',
} as const;
const NEW_COLUMNS = Object.keys(NEW).join(', ');

/** Adds windows of targets that inherit their bounds, unless they exist. */
export async function insertInherited(
  tx: Transaction,
  windows: readonly (Omit<NewWindow, 'scope'> & {
    readonly leased?: number;
    readonly expires_at: number;
  })[],
): Promise<void> {
  if (windows.length === 0) return;
  await tx.run(
    `INSERT INTO concurrency_windows (${NEW_COLUMNS}, last_start_us, starts)
     SELECT ${NEW_COLUMNS}, 0, 0 FROM ${tx.dialect.rowset('$1', NEW)} AS r WHERE true ORDER BY kind, target
     ON CONFLICT (kind, target, scope) DO NOTHING`,
    JSON.stringify(
      windows.map((window) => ({ leased: 0, ...window, scope: 'target', inherited: 1, moved_through: null })),
    ),
  );
}

/** A change of the limit or the rate of a window. */
export interface WindowChange extends NamedWindow {
  /** In ms since the epoch. */
  readonly changed_at: number;
  readonly reason: ChangeReason;
  readonly rate_before: number | null;
  readonly rate_after: number | null;
  /** JSON. */
  readonly evidence: string;
}

const CHANGE = {
  scope: 'text',
  kind: 'text',
  target: 'text',
  changed_at: 'integer',
  reason: 'text',
  rate_before: 'integer',
  rate_after: 'integer',
  evidence: 'text',
} as const;
const CHANGE_COLUMNS = Object.keys(CHANGE).join(', ');

/**
 * Records changes of windows. Of a rate that grows, only each doubling since the last record: it grows every few seconds, at each of
 * many targets.
 */
export async function insertWindowChanges(tx: Transaction, changes: readonly WindowChange[]): Promise<void> {
  if (changes.length === 0) return;
  await tx.run(
    `INSERT INTO concurrency_window_changes (${CHANGE_COLUMNS})
     SELECT ${CHANGE_COLUMNS} FROM ${tx.dialect.rowset('$1', CHANGE)} AS r
     WHERE r.reason <> 'room' OR r.rate_after >= 2 * coalesce((
       SELECT c.rate_after FROM concurrency_window_changes c
       WHERE c.kind = r.kind AND c.target = r.target AND c.scope = r.scope ORDER BY c.id DESC LIMIT 1), 0)`,
    JSON.stringify(changes),
  );
}

/** Lists changes of a window, the latest first. */
export function selectWindowChanges(
  statements: Statements,
  { scope, kind, target }: NamedWindow,
  below: number,
  limit: number,
): Promise<(WindowChange & { readonly id: number })[]> {
  return statements.rows(
    `SELECT id, ${CHANGE_COLUMNS} FROM concurrency_window_changes WHERE kind = $1 AND target = $2 AND scope = $3 AND id < $4
     ORDER BY id DESC LIMIT $5`,
    kind,
    target,
    scope,
    below,
    limit,
  );
}

/** Lists changes of a window, the oldest first; with the bounds if an operator made it. */
export function selectChangesAbove(
  statements: Statements,
  { scope, kind, target }: NamedWindow,
  aboveId: number,
  limit: number,
): Promise<(Omit<WindowChange, keyof NamedWindow> & { readonly id: number })[]> {
  return statements.rows(
    `SELECT id, changed_at, reason, rate_before, rate_after, CASE WHEN reason = 'operator' THEN evidence ELSE '{}' END AS evidence
     FROM concurrency_window_changes WHERE kind = $1 AND target = $2 AND scope = $3 AND id > $4 ORDER BY id LIMIT $5`,
    kind,
    target,
    scope,
    aboveId,
    limit,
  );
}

/** Deletes changes of rates before an instant. @returns their number */
export function deleteWindowChanges(tx: Transaction, before: number, limit: number): Promise<number> {
  return tx.run(
    `DELETE FROM concurrency_window_changes WHERE id IN (
       SELECT id FROM concurrency_window_changes WHERE changed_at < $1 ORDER BY changed_at LIMIT $2)`,
    before,
    limit,
  );
}

/** Has no window's last start be after an instant, in ms since the epoch. */
export async function limitLastStarts(tx: Transaction, now: number): Promise<void> {
  await tx.run(
    'UPDATE concurrency_windows SET last_start_us = $1, recent_starts = NULL, hold_until = NULL WHERE last_start_us > $2',
    now * 1_000,
    now * 1_000 + AHEAD_US,
  );
}

/** The highest id of a lease so far; 0 if there was none. */
export async function selectLastLease(statements: Statements): Promise<number> {
  const row = await statements.first<{ id: number | null }>(
    `SELECT ${statements.dialect.lastId('leases', 'id')} AS id`,
  );
  return row?.id ?? 0;
}

const NAMES = { scope: 'text', kind: 'text', target: 'text' } as const;

const named = (statements: Statements, more = ''): string =>
  `SELECT ${COLUMNS_OF_W}${more} FROM ${statements.dialect.rowset('$1', NAMES)} AS r
   CROSS JOIN concurrency_windows w WHERE w.kind = r.kind AND w.target = r.target AND w.scope = r.scope`;

const textOf = (windows: readonly NamedWindow[]): string =>
  JSON.stringify(windows.map(({ scope, kind, target }) => ({ scope, kind, target })));

/** Lists those of the named windows that have a limit. */
export function selectNamedWindows(
  statements: Statements,
  windows: readonly NamedWindow[],
): Promise<WindowRow[]> {
  return statements.rows<WindowRow>(`${named(statements)} ORDER BY w.id`, textOf(windows));
}

/** Locks and lists the same. */
export function lockNamedWindows(tx: Transaction, windows: readonly NamedWindow[]): Promise<LockedWindow[]> {
  return tx.rows<LockedWindow>(
    `${named(tx, ', w.pacing')} ORDER BY w.id ${tx.dialect.forUpdate('w')}`,
    textOf(windows),
  );
}

/** Adds windows; of existing ones the bounds and the state of their pacing change. */
export async function insertWindows(
  tx: Transaction,
  windows: readonly (NewWindow &
    Partial<Pick<WindowRow, 'leased' | 'moved_through' | 'inherited'>> & {
      readonly expires_at?: number | null;
    })[],
): Promise<void> {
  if (windows.length === 0) return;
  const changing = [
    'inherited',
    'max_slots',
    'max_rate',
    'adaptive',
    'slots',
    'rate',
    'pacing',
    'moved_through',
  ];
  await tx.run(
    `INSERT INTO concurrency_windows (${NEW_COLUMNS}, last_start_us, starts)
     SELECT ${NEW_COLUMNS}, 0, 0 FROM ${tx.dialect.rowset('$1', NEW)} AS r WHERE true ORDER BY kind, target
     ON CONFLICT (kind, target, scope) DO UPDATE SET ${changing.map((name) => `${name} = excluded.${name}`).join(', ')},
       expires_at = excluded.expires_at, hold_until = CASE WHEN excluded.adaptive = 1 THEN concurrency_windows.hold_until END`,
    JSON.stringify(
      windows.map((window) => ({
        leased: 0,
        inherited: 0,
        moved_through: null,
        expires_at: null,
        ...window,
      })),
    ),
  );
}

/** Finds a window by its id. */
export function selectWindow(statements: Statements, id: number): Promise<NamedWindow | undefined> {
  return statements.first('SELECT scope, kind, target FROM concurrency_windows WHERE id = $1', id);
}

/** Deletes windows. */
export async function deleteWindows(tx: Transaction, windows: readonly NamedWindow[]): Promise<void> {
  if (windows.length === 0) return;
  await tx.run(
    `DELETE FROM concurrency_windows WHERE id IN (
       SELECT w.id FROM ${tx.dialect.rowset('$1', NAMES)} AS r
       CROSS JOIN concurrency_windows w WHERE w.kind = r.kind AND w.target = r.target AND w.scope = r.scope)`,
    textOf(windows),
  );
}

/** The filter of a list of windows. */
export interface WindowFilter {
  readonly scope?: WindowScope;
  readonly kind?: string;
  /** The window is one of these targets'. */
  readonly targets?: readonly WindowKey[];
  /** Its id is below this one. */
  readonly below: number;
}

/** Lists windows by descending ids. */
export function selectWindowPage(
  statements: Statements,
  { scope, kind, targets, below }: WindowFilter,
  limit: number,
): Promise<WindowRow[]> {
  const conditions = new Conditions();
  conditions.require(`id < ${conditions.bind(below)}`);
  // The row of lifted bounds of every target stays until the windows that inherited them are deleted.
  conditions.require(
    `(scope <> 'every_target' OR max_slots IS NOT NULL OR max_rate IS NOT NULL OR adaptive = 1)`,
  );
  conditions.add(scope, (value) => `scope = ${value}`).add(kind, (value) => `kind = ${value}`);
  if (targets)
    conditions.require(
      `(${targets.map((one) => `(kind = ${conditions.bind(one.kind)} AND target = ${conditions.bind(one.target)})`).join(' OR ')})`,
    );
  return statements.rows<WindowRow>(
    `SELECT ${COLUMNS} FROM concurrency_windows ${conditions.where} ORDER BY id DESC LIMIT ${conditions.bind(limit)}`,
    ...conditions.values,
  );
}

/**
 * Stores the last task id of a target that was checked for moving; null once all its queued tasks are in its lane.
 */
export async function setMovedThrough(tx: Transaction, id: number, taskId: number | null): Promise<void> {
  await tx.run('UPDATE concurrency_windows SET moved_through = $2 WHERE id = $1', id, taskId);
}

/**
 * Records that all windows have the bounds of every target of the kind, unless these were changed meanwhile; deletes the row if
 * the bounds were lifted.
 * @param change the number of the change
 */
export async function endEveryTargetUpdate(tx: Transaction, id: number, change: number): Promise<void> {
  const unchanged = `id = $1 AND scope = 'every_target' AND moved_through = $2`;
  await tx.run(
    `DELETE FROM concurrency_windows WHERE ${unchanged} AND max_slots IS NULL AND max_rate IS NULL AND adaptive = 0`,
    id,
    change,
  );
  await tx.run(`UPDATE concurrency_windows SET moved_through = NULL WHERE ${unchanged}`, id, change);
}

/** A window's target, and through which id its queued tasks are moved into its lane; null if all are. */
export function selectMovedThrough(
  statements: Statements,
  id: number,
): Promise<(WindowKey & { readonly moved_through: number | null }) | undefined> {
  return statements.first('SELECT kind, target, moved_through FROM concurrency_windows WHERE id = $1', id);
}

/** The windows of everything and of kinds, as metrics show them. */
export function selectShownWindows(
  statements: Statements,
): Promise<Pick<WindowRow, 'scope' | 'kind' | 'slots' | 'leased' | 'rate'>[]> {
  return statements.rows(
    `SELECT scope, kind, slots, leased, rate FROM concurrency_windows WHERE scope = 'kind'
     UNION ALL
     SELECT scope, kind, slots, leased, rate FROM concurrency_windows WHERE kind = '' AND target = '' AND scope = 'global'`,
  );
}

/**
 * How many windows of targets are open, full, and at their lowest.
 * @param limit how many are looked at
 * @param lowestRate of adaptive windows, in starts per 1,000 s
 */
export function countTargetWindows(
  statements: Statements,
  limit: number,
  lowestRate: number,
): Promise<{ state: 'open' | 'full' | 'lowest'; count: number }[]> {
  return statements.rows(
    `SELECT state, count(*) AS count FROM (
       SELECT CASE WHEN slots <= 1 OR (adaptive = 1 AND rate <= $2) THEN 'lowest' WHEN leased >= slots THEN 'full' ELSE 'open' END AS state
       FROM concurrency_windows WHERE scope = 'target' LIMIT $1) AS w
     GROUP BY state`,
    limit,
    lowestRate,
  );
}
