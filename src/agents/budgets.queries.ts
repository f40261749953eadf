import type { Transaction } from '../database/statements';

/** The bytes that an agent stores. */
export interface Usage {
  readonly agent_id: number;
  readonly bytes: number;
}

/**
 * Adds bytes to agents' usage of a day, if they fit, in one statement, which locks the rows by ascending ids. The first
 * of a day always fit.
 * @param day days since the Unix epoch, UTC
 * @returns the bytes used of that day, of each agent for which they fit; nothing is added for the others
 */
export async function addUsage(
  tx: Transaction,
  budget: 'metrics' | 'observations',
  usages: readonly Usage[],
  day: number,
  limit: number,
): Promise<Map<number, number>> {
  const column = `${budget}_bytes`;
  const other = budget === 'metrics' ? 'observations_bytes' : 'metrics_bytes';
  // A clock that is behind another replica's, or was set back, does not start the previous day again.
  const sameDay = 'agent_usage.day >= excluded.day';
  const rows = await tx.rows<{ agent_id: number; used: number }>(
    `INSERT INTO agent_usage (agent_id, day, ${column}, ${other})
     SELECT agent_id, $2, bytes, 0 FROM ${tx.dialect.rowset('$1', { agent_id: 'integer', bytes: 'integer' })} AS r
     WHERE true ORDER BY agent_id
     ON CONFLICT (agent_id) DO UPDATE SET
       ${column} = CASE WHEN ${sameDay} THEN agent_usage.${column} + excluded.${column} ELSE excluded.${column} END,
       ${other} = CASE WHEN ${sameDay} THEN agent_usage.${other} ELSE 0 END,
       day = ${tx.dialect.greatest('agent_usage.day', 'excluded.day')}
     WHERE NOT (${sameDay}) OR agent_usage.${column} = 0 OR agent_usage.${column} + excluded.${column} <= $3
     RETURNING agent_id, ${column} AS used`,
    JSON.stringify(usages),
    day,
    limit,
  );
  return new Map(rows.map((row) => [row.agent_id, row.used]));
}
