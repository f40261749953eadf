import type { Transaction } from '../database/statements';
import type { AgentEntity } from './agent.entity';

/** The ids that are taken: by rows, deleted ones included, because PostgreSQL does not set a counter back with a transaction. */
export async function selectTakenIds(tx: Transaction): Promise<Set<number>> {
  return new Set((await tx.rows<{ id: number }>('SELECT id FROM agents')).map(({ id }) => id));
}

/** The hostnames that are taken, as they are compared. */
export async function selectTakenHostnames(tx: Transaction): Promise<Set<string>> {
  const rows = await tx.rows<{ key: string }>(
    `SELECT hostname_key AS key FROM agents WHERE hostname_key IS NOT NULL AND state <> 'deleted'`,
  );
  return new Set(rows.map(({ key }) => key));
}

/** Adds an agent under the id that it had elsewhere. */
export async function insertImported(
  tx: Transaction,
  agent: Pick<
    AgentEntity,
    'id' | 'hostname' | 'hostname_key' | 'state' | 'token_hash' | 'token_expires_at' | 'registered_at'
  >,
  lastHeartbeatAt: number,
): Promise<void> {
  await tx.run(
    `INSERT INTO agents (id, hostname, hostname_key, origin, state, token_hash, token_expires_at, registered_at)
     VALUES ($1, $2, $3, 'open', $4, $5, $6, $7)`,
    agent.id,
    agent.hostname,
    agent.hostname_key,
    agent.state,
    agent.token_hash,
    agent.token_expires_at,
    agent.registered_at,
  );
  await tx.run(
    'INSERT INTO agent_heartbeats (agent_id, last_heartbeat_at) VALUES ($1, $2)',
    agent.id,
    lastHeartbeatAt,
  );
}
