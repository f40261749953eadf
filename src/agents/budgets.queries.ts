import type { Transaction } from '../database/statements';

/** The bytes that an agent stores. */
export interface Usage {
  readonly agent_id: number;
  readonly bytes: number;
  /** Bytes to charge in advance, if they fit. */
  readonly advance: number;
}

/** An agent's usage after a charge. */
export interface Charged {
  readonly used: number;
  /** The bytes of it that were charged in advance. */
  readonly advance: number;
}

/** The bytes that an agent can use in a day: in all, and before the last that are charged in advance. */
export interface UsageLimits {
  readonly most: number;
  readonly mostInAdvance: number;
}

/**
 * Adds bytes to agents' usage of a day, if they fit, in one statement, which locks the rows by ascending ids, those of
 * agents for which they do not fit too. The first of a day always fit.
 * @param day days since the Unix epoch, UTC
 * @returns the agents for which they fit; nothing is added for the others
 */
export async function addUsage(
  tx: Transaction,
  budget: 'metrics' | 'observations',
  usages: readonly Usage[],
  day: number,
  { most, mostInAdvance }: UsageLimits,
): Promise<Map<number, Charged>> {
  const column = `${budget}_bytes`;
  const other = budget === 'metrics' ? 'observations_bytes' : 'metrics_bytes';
  // A clock that is behind another replica's, or was set back, does not start the previous day again.
  const sameDay = 'agent_usage.day >= excluded.day';
  const sum = `agent_usage.${column} + excluded.${column}`;
  const given = `CASE WHEN ${sameDay} AND ${sum} + excluded.advance <= $4 THEN excluded.advance ELSE 0 END`;
  const rows = await tx.rows<Charged & { agent_id: number }>(
    `INSERT INTO agent_usage (agent_id, day, ${column}, ${other}, advance)
     SELECT agent_id, $2, bytes, 0, advance
     FROM ${tx.dialect.rowset('$1', { agent_id: 'integer', bytes: 'integer', advance: 'integer' })} AS r
     WHERE true ORDER BY agent_id
     ON CONFLICT (agent_id) DO UPDATE SET
       ${column} = CASE WHEN ${sameDay} THEN ${sum} + ${given} ELSE excluded.${column} END,
       ${other} = CASE WHEN ${sameDay} THEN agent_usage.${other} ELSE 0 END,
       advance = ${given},
       day = ${tx.dialect.greatest('agent_usage.day', 'excluded.day')}
     WHERE NOT (${sameDay}) OR agent_usage.${column} = 0 OR ${sum} <= $3
     RETURNING agent_id, ${column} AS used, advance`,
    JSON.stringify(usages.map(({ agent_id, bytes, advance }) => ({ agent_id, bytes, advance }))),
    day,
    most,
    mostInAdvance,
  );
  const asked = new Map(usages.map((usage) => [usage.agent_id, usage.bytes]));
  return new Map(
    rows.map(({ agent_id, used, advance }) => {
      // The row is new: it has the bytes alone.
      const isAdded = used < (asked.get(agent_id) ?? 0) + advance;
      return [agent_id, { used, advance: isAdded ? 0 : advance }];
    }),
  );
}
