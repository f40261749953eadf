import { Injectable } from '@nestjs/common';
import type { SqlValue, Statements, Transaction } from '../database/statements';
import { isFinished, TASK_STATES, type TaskState } from './task.entity';

/** How many tasks of a kind are in a state. */
export interface Depth {
  readonly kind: string;
  readonly state: TaskState;
  readonly count: number;
}

type Counts = Record<TaskState, number>;
type CountsRow = Counts & { readonly kind: string };

const COLUMNS = TASK_STATES.join(', ');
const ROWSET = {
  kind: 'text',
  ...Object.fromEntries(TASK_STATES.map((state) => [state, 'integer' as const])),
} as const;
const SUMS = TASK_STATES.map((state) => `sum(${state}) AS ${state}`).join(', ');

/** Where open tasks of each state are listed by their kinds. */
const PLACES = {
  scheduled: ['scheduled', 'task_id + 0', ''],
  queued: ['ready', 'task_id + 0', ''],
  leased: ['leases', 'task_id', 'AND ending IS NULL'],
} as const;

const none = (): Counts => ({ scheduled: 0, queued: 0, leased: 0, completed: 0, cancelled: 0, dead: 0 });

/**
 * Owns task_counts and task_count_deltas: how many tasks of each kind are in each state. A unit of work adds one row for each
 * kind that it changes, and changes none, so no unit waits for another; a job adds the rows up.
 */
@Injectable()
export class QueueDepth {
  /** Counts changes of state, in the unit that makes them. Null is before a task was created, or after it was deleted. */
  async count(
    tx: Transaction,
    changes: readonly {
      readonly kind: string;
      readonly from: TaskState | null;
      readonly to: TaskState | null;
    }[],
  ): Promise<void> {
    const byKind = new Map<string, Counts>();
    for (const { kind, from, to } of changes) {
      if (from === to) continue;
      const counts = byKind.get(kind) ?? none();
      byKind.set(kind, counts);
      if (from) counts[from]--;
      if (to) counts[to]++;
    }
    if (byKind.size === 0) return;
    const values = [...byKind].map(([kind, counts]) => ({ kind, ...counts }));
    await tx.run(
      `INSERT INTO task_count_deltas (kind, ${COLUMNS}) SELECT kind, ${COLUMNS} FROM ${tx.dialect.rowset('$1', ROWSET)} AS r`,
      JSON.stringify(values),
    );
  }

  /** The depth of every kind and state that has tasks. */
  async depths(statements: Statements): Promise<Depth[]> {
    const rows = await statements.rows<CountsRow>(
      `SELECT kind, ${SUMS} FROM (
         SELECT kind, ${COLUMNS} FROM task_counts UNION ALL SELECT kind, ${COLUMNS} FROM task_count_deltas) AS counts
       GROUP BY kind ORDER BY kind`,
    );
    return rows.flatMap((row) =>
      TASK_STATES.flatMap((state) => (row[state] > 0 ? [{ kind: row.kind, state, count: row[state] }] : [])),
    );
  }

  /** The same, with when the oldest of them was created, in ms since the epoch; null for finished tasks. */
  async depthsWithOldest(
    statements: Statements,
  ): Promise<(Depth & { readonly oldest_created_at: number | null })[]> {
    const depths = await this.depths(statements);
    const open = depths.filter(({ state }) => !isFinished(state));
    if (open.length === 0) return depths.map((depth) => ({ ...depth, oldest_created_at: null }));
    const values: SqlValue[] = [];
    // Ids are given in the order of creation, so the lowest is the oldest; each index has it at its front.
    const parts = open.map(({ kind, state }, i) => {
      const [table, id, condition] = PLACES[state as keyof typeof PLACES];
      values.push(kind);
      return `SELECT ${i} AS place, (SELECT created_at FROM tasks WHERE id = (
        SELECT task_id FROM ${table} WHERE kind = $${i + 1} ${condition} ORDER BY ${id} LIMIT 1)) AS created_at`;
    });
    const rows = await statements.rows<{ place: number; created_at: number | null }>(
      parts.join(' UNION ALL '),
      ...values,
    );
    const oldest = new Map(rows.map(({ place, created_at }) => [open[place], created_at]));
    return depths.map((depth) => ({ ...depth, oldest_created_at: oldest.get(depth) ?? null }));
  }

  /** Every kind that ever had tasks. */
  async kinds(statements: Statements): Promise<string[]> {
    const rows = await statements.rows<{ kind: string }>(
      `SELECT kind FROM lanes WHERE target = '' ORDER BY kind`,
    );
    return rows.map(({ kind }) => kind);
  }

  /** Adds the rows of units up, and deletes them. @returns how many there were */
  async fold(tx: Transaction): Promise<number> {
    const rows = await tx.rows<CountsRow>(`DELETE FROM task_count_deltas RETURNING kind, ${COLUMNS}`);
    const sums = new Map<string, Counts>();
    for (const row of rows) {
      const sum = sums.get(row.kind) ?? none();
      for (const state of TASK_STATES) sum[state] += row[state];
      sums.set(row.kind, sum);
    }
    if (sums.size > 0)
      await tx.run(
        `INSERT INTO task_counts (kind, ${COLUMNS}) SELECT kind, ${COLUMNS} FROM ${tx.dialect.rowset('$1', ROWSET)} AS r
         WHERE true ORDER BY kind
         ON CONFLICT (kind) DO UPDATE SET ${TASK_STATES.map((state) => `${state} = task_counts.${state} + excluded.${state}`).join(', ')}`,
        JSON.stringify([...sums].map(([kind, counts]) => ({ kind, ...counts }))),
      );
    return rows.length;
  }
}
