import type { Statements, Transaction } from '../database/statements';
import type { ConfigStateEntity } from './agent.entity';

/** An agent's report about its configuration, with the message as it is stored. */
export type ConfigReport = Pick<ConfigStateEntity, 'revision' | 'status' | 'message'>;

/** Stores agents' reports if they changed. @returns the agents whose report changed */
export async function upsertConfigStates(
  tx: Transaction,
  reports: readonly (ConfigReport & { readonly agent_id: number })[],
): Promise<number[]> {
  const rows = await tx.rows<{ agent_id: number }>(
    `INSERT INTO agent_config_states (agent_id, revision, status, message, reported_at)
     SELECT agent_id, revision, status, message, $2
     FROM ${tx.dialect.rowset('$1', {
       agent_id: 'integer',
       revision: 'text',
       status: 'text',
       message: 'text',
     })} AS r
     WHERE true ORDER BY agent_id
     ON CONFLICT (agent_id) DO UPDATE SET revision = excluded.revision, status = excluded.status,
       message = excluded.message, reported_at = excluded.reported_at
     WHERE agent_config_states.revision <> excluded.revision OR agent_config_states.status <> excluded.status
       OR agent_config_states.message IS DISTINCT FROM excluded.message
     RETURNING agent_id`,
    JSON.stringify(reports),
    tx.now,
  );
  return rows.map((row) => row.agent_id);
}

export function listConfigStates(
  statements: Statements,
  agentIds: readonly number[],
): Promise<ConfigStateEntity[]> {
  return statements.rows(
    `SELECT * FROM agent_config_states WHERE ${statements.dialect.isAmong('agent_id', '$1')}`,
    JSON.stringify(agentIds),
  );
}

/** Counts the agents in service. */
export async function countInService(statements: Statements): Promise<number> {
  const row = await statements.first<{ count: number }>(
    `SELECT count(*) AS count FROM agents WHERE state IN ('active', 'draining')`,
  );
  return row?.count ?? 0;
}

/** Counts the agents in service whose last report is for one of the revisions, by status. */
export function countByRevision(
  statements: Statements,
  revisions: readonly string[],
): Promise<{ revision: string; status: 'applied' | 'failed'; count: number }[]> {
  return statements.rows(
    `SELECT s.revision, s.status, count(*) AS count
     FROM agent_config_states s JOIN agents a ON a.id = s.agent_id
     WHERE s.revision IN (SELECT revision FROM ${statements.dialect.rowset('$1', { revision: 'text' })} AS r)
       AND a.state IN ('active', 'draining')
     GROUP BY s.revision, s.status`,
    JSON.stringify(revisions.map((revision) => ({ revision }))),
  );
}
