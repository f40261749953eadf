import { Conditions } from '../database/conditions';
import type { SqlValue, Statements, Transaction } from '../database/statements';
import type { WindowKey, WindowRow, WindowScope } from './window.entity';

/** A window by its name. */
export interface NamedWindow extends WindowKey {
  readonly scope: WindowScope;
}

const COLUMNS = 'id, scope, kind, target, slots, leased, moved_through';
const KEYS = { kind: 'text', target: 'text' } as const;

/**
 * The windows of everything and of kinds, by ascending ids (at most one for each kind, and one more); and whether any target has a
 * limit: if none has, nothing about targets has to be looked up.
 */
export async function selectWideWindows(
  statements: Statements,
): Promise<{ wide: WindowRow[]; hasTargets: boolean }> {
  const rows = await statements.rows<WindowRow>(
    `SELECT ${COLUMNS} FROM concurrency_windows WHERE scope IN ('global', 'kind')
     UNION ALL SELECT * FROM (SELECT ${COLUMNS} FROM concurrency_windows WHERE scope = 'target' LIMIT 1) AS any_target`,
  );
  const wide = rows.filter(({ scope }) => scope !== 'target').sort((a, b) => a.id - b.id);
  return { wide, hasTargets: wide.length < rows.length };
}

/** Lists the windows of these targets. */
export function selectTargetWindows(
  statements: Statements,
  keys: readonly WindowKey[],
): Promise<WindowRow[]> {
  return statements.rows<WindowRow>(
    `SELECT ${COLUMNS.replaceAll(/\w+/g, 'w.$&')} FROM ${statements.dialect.rowset('$1', KEYS)} AS r
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
export function lockWindows(tx: Transaction, ids: readonly number[]): Promise<WindowRow[]> {
  return tx.rows<WindowRow>(
    `SELECT ${COLUMNS} FROM concurrency_windows WHERE ${tx.dialect.isAmong('id', '$1')} ORDER BY id ${tx.dialect.forUpdate()}`,
    JSON.stringify(ids),
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

const NAMES = { scope: 'text', kind: 'text', target: 'text' } as const;

const named = (statements: Statements): string =>
  `SELECT ${COLUMNS.replaceAll(/\w+/g, 'w.$&')} FROM ${statements.dialect.rowset('$1', NAMES)} AS r
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
export function lockNamedWindows(tx: Transaction, windows: readonly NamedWindow[]): Promise<WindowRow[]> {
  return tx.rows<WindowRow>(`${named(tx)} ORDER BY w.id ${tx.dialect.forUpdate('w')}`, textOf(windows));
}

/** Adds windows; of an existing one only the limit changes. */
export async function insertWindows(
  tx: Transaction,
  windows: readonly (NamedWindow & Partial<Pick<WindowRow, 'slots' | 'leased' | 'moved_through'>>)[],
): Promise<void> {
  if (windows.length === 0) return;
  await tx.run(
    `INSERT INTO concurrency_windows (scope, kind, target, slots, leased, moved_through)
     SELECT scope, kind, target, slots, leased, moved_through FROM ${tx.dialect.rowset('$1', {
       ...NAMES,
       slots: 'integer',
       leased: 'integer',
       moved_through: 'integer',
     })} AS r WHERE true
     ON CONFLICT (kind, target, scope) DO UPDATE SET slots = excluded.slots`,
    JSON.stringify(windows),
  );
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
): Promise<Pick<WindowRow, 'scope' | 'kind' | 'slots' | 'leased'>[]> {
  return statements.rows(
    `SELECT scope, kind, slots, leased FROM concurrency_windows WHERE scope = 'kind'
     UNION ALL
     SELECT scope, kind, slots, leased FROM concurrency_windows WHERE kind = '' AND target = '' AND scope = 'global'`,
  );
}

/** How many windows of targets are open, full, and at their lowest. @param limit how many are looked at */
export function countTargetWindows(
  statements: Statements,
  limit: number,
): Promise<{ state: 'open' | 'full' | 'lowest'; count: number }[]> {
  return statements.rows(
    `SELECT state, count(*) AS count FROM (
       SELECT CASE WHEN slots <= 1 THEN 'lowest' WHEN leased >= slots THEN 'full' ELSE 'open' END AS state
       FROM concurrency_windows WHERE scope = 'target' LIMIT $1) AS w
     GROUP BY state`,
    limit,
  );
}
