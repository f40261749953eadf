import type { Json } from './api';

/** A start that an agent was told, in ms since the epoch, and when it was granted. */
export interface ToldStart {
  readonly lease_id: number;
  readonly at: number;
  readonly granted_at: number;
  readonly kind: string;
  readonly target: string;
}

/** The starts that agents were told, in order: of a lease without one it is its grant. */
export async function toldStarts(rows: (sql: string) => Promise<Json[]>): Promise<ToldStart[]> {
  const found = await rows(
    `SELECT l.id AS lease_id, coalesce(l.start_at, l.granted_at) AS at, l.granted_at, t.kind, t.target
     FROM leases l JOIN tasks t ON t.id = l.task_id ORDER BY 2, 1`,
  );
  return found.map((row) => ({ ...row, at: Number(row.at), granted_at: Number(row.granted_at) }));
}

/**
 * Counts the instants in each second that begins with one of them, and in which most are in a second.
 * @param instants in ms, ascending
 */
export function perSecond(instants: readonly number[]): { at: number; count: number }[] {
  let last = 0;
  return instants.map((at, first) => {
    while (last < instants.length && (instants[last] as number) < at + 1_000) last++;
    return { at, count: last - first };
  });
}

/** The most instants in any second. */
export const mostInASecond = (instants: readonly number[]): number =>
  Math.max(0, ...perSecond(instants).map(({ count }) => count));
