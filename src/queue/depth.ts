import { Injectable } from '@nestjs/common';
import type { Statements, Transaction } from '../database/statements';
import {
  addCounts,
  type Counts,
  insertDeltas,
  selectCounts,
  selectKinds,
  selectOldest,
  takeDeltas,
} from './depth.queries';
import { isFinished, TASK_STATES, type TaskState } from './task.entity';

/** The number of tasks of a kind in a state. */
export interface Depth {
  readonly kind: string;
  readonly state: TaskState;
  readonly count: number;
}

const none = (): Counts => ({ scheduled: 0, queued: 0, leased: 0, completed: 0, cancelled: 0, dead: 0 });

/**
 * Owns task_counts and task_count_deltas: the number of tasks of each kind in each state. A unit of work adds one row
 * for each kind that it changes, and updates none, so that units do not wait for each other; a job sums the rows up.
 */
@Injectable()
export class QueueDepth {
  /**
   * Counts changes of state, in the unit that makes them. Null: before a task was created, or after it was deleted.
   */
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
    await insertDeltas(
      tx,
      [...byKind].map(([kind, counts]) => ({ kind, ...counts })),
    );
  }

  /** Reads the depth of every kind and state that has tasks. */
  async depths(statements: Statements): Promise<Depth[]> {
    const rows = await selectCounts(statements);
    return rows.flatMap((row) =>
      TASK_STATES.flatMap((state) => (row[state] > 0 ? [{ kind: row.kind, state, count: row[state] }] : [])),
    );
  }

  /** Reads the same, with the creation of the oldest task, in ms since the epoch; null for finished tasks. */
  async depthsWithOldest(
    statements: Statements,
  ): Promise<(Depth & { readonly oldest_created_at: number | null })[]> {
    const depths = await this.depths(statements);
    const open = depths.flatMap((depth) => {
      const { kind, state } = depth;
      return isFinished(state) ? [] : [{ depth, kind, state }];
    });
    const instants = await selectOldest(statements, open);
    const oldest = new Map(open.map(({ depth }, i) => [depth, instants[i] ?? null]));
    return depths.map((depth) => ({ ...depth, oldest_created_at: oldest.get(depth) ?? null }));
  }

  /** Every kind that ever had tasks. */
  kinds(statements: Statements): Promise<string[]> {
    return selectKinds(statements);
  }

  /** Sums the rows of units up, and deletes them. @returns their number */
  async fold(tx: Transaction): Promise<number> {
    const rows = await takeDeltas(tx);
    const sums = new Map<string, Counts>();
    for (const row of rows) {
      const sum = sums.get(row.kind) ?? none();
      for (const state of TASK_STATES) sum[state] += row[state];
      sums.set(row.kind, sum);
    }
    if (sums.size > 0)
      await addCounts(
        tx,
        [...sums].map(([kind, counts]) => ({ kind, ...counts })),
      );
    return rows.length;
  }
}
