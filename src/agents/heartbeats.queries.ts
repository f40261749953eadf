import type { Statements, Transaction } from '../database/statements';

/** A heartbeat of an agent. */
export interface Heartbeat {
  readonly agent_id: number;
  /** In ms since the epoch. */
  readonly at: number;
}

export async function insertHeartbeat(tx: Transaction, agentId: number): Promise<void> {
  await tx.run('INSERT INTO agent_heartbeats (agent_id, last_heartbeat_at) VALUES ($1, $2)', agentId, tx.now);
}

/**
 * Stores heartbeats in one statement. Later ones that are stored stay, and agents that no longer exist are skipped.
 * Locks rows by ascending ids, so that two replicas never deadlock.
 */
export async function storeHeartbeats(tx: Transaction, heartbeats: readonly Heartbeat[]): Promise<void> {
  const { greatest, isAmong, forUpdate, prefilterByList, rowset } = tx.dialect;
  await tx.run(
    `WITH locked AS (
       SELECT agent_id FROM agent_heartbeats WHERE ${isAmong('agent_id', '$2')} ORDER BY agent_id ${forUpdate()})
     UPDATE agent_heartbeats SET last_heartbeat_at = ${greatest('agent_heartbeats.last_heartbeat_at', 'r.at')}
     FROM ${rowset('$1', { agent_id: 'integer', at: 'integer' })} AS r CROSS JOIN locked
     WHERE locked.agent_id = r.agent_id AND agent_heartbeats.agent_id = locked.agent_id
       AND ${prefilterByList('agent_heartbeats.agent_id', '$2')}`,
    JSON.stringify(heartbeats),
    JSON.stringify(heartbeats.map(({ agent_id }) => agent_id)),
  );
}

/** Moves heartbeats in the future to now, after the clock was set back. */
export async function cutFutureHeartbeats(tx: Transaction): Promise<void> {
  await tx.run('UPDATE agent_heartbeats SET last_heartbeat_at = $1 WHERE last_heartbeat_at > $1', tx.now);
}

/** Lists the ids of the agents with a stored heartbeat after an instant. */
export async function listSeenSince(statements: Statements, instant: number): Promise<number[]> {
  const rows = await statements.rows<{ agent_id: number }>(
    'SELECT agent_id FROM agent_heartbeats WHERE last_heartbeat_at > $1',
    instant,
  );
  return rows.map((row) => row.agent_id);
}
