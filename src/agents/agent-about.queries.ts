import type { Statements, Transaction } from '../database/statements';
import type { AboutEntity } from './agent.entity';

/** The version that an agent reports. */
export type AgentVersion = Pick<AboutEntity, 'agent_id' | 'version'>;

/** Stores versions that changed. Skips agents that no longer exist. */
export async function upsertVersions(tx: Transaction, versions: readonly AgentVersion[]): Promise<void> {
  await tx.run(
    `INSERT INTO agent_about (agent_id, version, said_at)
     SELECT r.agent_id, r.version, $2
     FROM ${tx.dialect.rowset('$1', { agent_id: 'integer', version: 'text' })} AS r JOIN agents a ON a.id = r.agent_id
     WHERE true ORDER BY r.agent_id
     ON CONFLICT (agent_id) DO UPDATE SET version = excluded.version, said_at = excluded.said_at
     WHERE agent_about.version <> excluded.version`,
    JSON.stringify(versions),
    tx.now,
  );
}

export async function deleteVersion(tx: Transaction, agentId: number): Promise<void> {
  await tx.run('DELETE FROM agent_about WHERE agent_id = $1', agentId);
}

export function listVersions(statements: Statements, agentIds: readonly number[]): Promise<AboutEntity[]> {
  return statements.rows(
    `SELECT * FROM agent_about WHERE ${statements.dialect.isAmong('agent_id', '$1')}`,
    JSON.stringify(agentIds),
  );
}
