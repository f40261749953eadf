import type { Statements, Transaction } from '../database/statements';

/** When an agent was heard of. */
export interface Heartbeat {
  readonly agent_id: number;
  /** In ms since the epoch. */
  readonly at: number;
}

export async function insertHeartbeat(tx: Transaction, agentId: number): Promise<void> {
  await tx.run('INSERT INTO agent_heartbeats (agent_id, last_heartbeat_at) VALUES ($1, $2)', agentId, tx.now);
}

/**
 * Stores heartbeats, in one statement. A later one that is stored already stays, and agents that are gone are left out.
 * Rows are locked by ascending ids, so that two replicas never wait for each other. The cross join keeps SQLite from reading the
 * whole rowset for each row: 2,000 heartbeats took a second.
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

/** After a clock that was set back: nobody counts as heard of in the future. */
export async function cutFutureHeartbeats(tx: Transaction): Promise<void> {
  await tx.run('UPDATE agent_heartbeats SET last_heartbeat_at = $1 WHERE last_heartbeat_at > $1', tx.now);
}

/** The ids of the agents that were heard of after an instant. */
export async function listHeardSince(statements: Statements, instant: number): Promise<number[]> {
  const rows = await statements.rows<{ agent_id: number }>(
    'SELECT agent_id FROM agent_heartbeats WHERE last_heartbeat_at > $1',
    instant,
  );
  return rows.map((row) => row.agent_id);
}
