import type { SqlValue, Statements, Transaction } from '../database/statements';
import { TASK_STATES, type TaskState } from './task.entity';

/** How many tasks are in each state. */
export type Counts = Record<TaskState, number>;
export type CountsRow = Counts & { readonly kind: string };

/** The states of unfinished tasks. */
type OpenState = 'scheduled' | 'queued' | 'leased';

const COLUMNS = TASK_STATES.join(', ');
const ROWSET = {
  kind: 'text',
  ...Object.fromEntries(TASK_STATES.map((state) => [state, 'integer' as const])),
} as const;
const SUMS = TASK_STATES.map((state) => `sum(${state}) AS ${state}`).join(', ');

/** Adds changes of counts, one row for each kind. */
export async function insertDeltas(tx: Transaction, rows: readonly CountsRow[]): Promise<void> {
  await tx.run(
    `INSERT INTO task_count_deltas (kind, ${COLUMNS}) SELECT kind, ${COLUMNS} FROM ${tx.dialect.rowset('$1', ROWSET)} AS r`,
    JSON.stringify(rows),
  );
}

/** Whether there are changes that are not added up yet. */
export async function hasDeltas(statements: Statements): Promise<boolean> {
  return (await statements.first('SELECT 1 AS one FROM task_count_deltas LIMIT 1')) !== undefined;
}

/** Takes the changes of counts out, to be added up. */
export function takeDeltas(tx: Transaction): Promise<CountsRow[]> {
  return tx.rows<CountsRow>(`DELETE FROM task_count_deltas RETURNING kind, ${COLUMNS}`);
}

/** Adds to the counts of kinds. */
export async function addCounts(tx: Transaction, rows: readonly CountsRow[]): Promise<void> {
  await tx.run(
    `INSERT INTO task_counts (kind, ${COLUMNS}) SELECT kind, ${COLUMNS} FROM ${tx.dialect.rowset('$1', ROWSET)} AS r
     WHERE true ORDER BY kind
     ON CONFLICT (kind) DO UPDATE SET ${TASK_STATES.map((state) => `${state} = task_counts.${state} + excluded.${state}`).join(', ')}`,
    JSON.stringify(rows),
  );
}

/** The counts of every kind, with the changes that are not added up yet. */
export function selectCounts(statements: Statements): Promise<CountsRow[]> {
  return statements.rows<CountsRow>(
    `SELECT kind, ${SUMS} FROM (
       SELECT kind, ${COLUMNS} FROM task_counts UNION ALL SELECT kind, ${COLUMNS} FROM task_count_deltas) AS counts
     GROUP BY kind ORDER BY kind`,
  );
}

/** Where open tasks of each state are listed by their kinds. */
const PLACES = {
  scheduled: ['scheduled', 'task_id + 0', ''],
  queued: ['ready', 'task_id + 0', ''],
  leased: ['leases', 'task_id', 'AND ending IS NULL'],
} as const satisfies Record<OpenState, readonly string[]>;

/**
 * When the oldest task of each kind and open state was created, in the order asked for; null if there is none. Ids are given in
 * the order of creation, so the lowest is the oldest; each index has it at its front.
 */
export async function selectOldest(
  statements: Statements,
  asked: readonly { readonly kind: string; readonly state: OpenState }[],
): Promise<(number | null)[]> {
  if (asked.length === 0) return [];
  const values: SqlValue[] = [];
  const parts = asked.map(({ kind, state }, i) => {
    const [table, id, condition] = PLACES[state];
    return `SELECT ${i} AS place, (SELECT created_at FROM tasks WHERE id = (
      SELECT task_id FROM ${table} WHERE kind = $${values.push(kind)} ${condition} ORDER BY ${id} LIMIT 1)) AS created_at`;
  });
  const rows = await statements.rows<{ place: number; created_at: number | null }>(
    parts.join(' UNION ALL '),
    ...values,
  );
  const byPlace = new Map(rows.map(({ place, created_at }) => [place, created_at]));
  return asked.map((_, i) => byPlace.get(i) ?? null);
}

/** Every kind that ever had tasks. */
export async function selectKinds(statements: Statements): Promise<string[]> {
  const rows = await statements.rows<{ kind: string }>(
    `SELECT kind FROM lanes WHERE target = '' ORDER BY kind`,
  );
  return rows.map(({ kind }) => kind);
}
