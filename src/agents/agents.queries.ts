import type { Statements, Transaction } from '../database/statements';
import type { AgentEntity, AgentOrigin, AgentState, HeartbeatEntity, LabelEntity } from './agent.entity';
import type { Credentials, HeldToken } from './credentials';
import type { Labels } from './labels';

/** An agent with its stored last heartbeat. */
export type KnownAgent = AgentEntity & Pick<HeartbeatEntity, 'last_heartbeat_at'>;

/** The columns that decide what an agent may do now. */
export type ServiceState = Credentials & Pick<AgentEntity, 'first_lease_at'>;

/** Tables whose rows belong to one agent, and are deleted with it. */
const DEPENDENT_TABLES = [
  'agent_labels',
  'agent_kinds',
  'agent_outcomes',
  'agent_last_errors',
  'agent_about',
  'agent_owner_tokens',
  'agent_config_states',
  'agent_usage',
  'agent_heartbeats',
];

const CREDENTIAL_COLUMNS =
  'id, state, token_hash, token_expires_at, previous_token_hash, previous_token_expires_at';

/** Selects all columns of an agent, as `a`, with its heartbeat, as `h`. */
export const SELECT_AGENT = `SELECT a.*, h.last_heartbeat_at FROM agents a JOIN agent_heartbeats h ON h.agent_id = a.id`;

export function findCredentials(statements: Statements, agentId: number): Promise<Credentials | undefined> {
  return statements.first(`SELECT ${CREDENTIAL_COLUMNS} FROM agents WHERE id = $1`, agentId);
}

/** Lists the credentials of the newest agents. */
export function listNewestCredentials(statements: Statements, limit: number): Promise<Credentials[]> {
  return statements.rows(
    `SELECT ${CREDENTIAL_COLUMNS} FROM agents WHERE state <> 'deleted' ORDER BY id DESC LIMIT $1`,
    limit,
  );
}

/**
 * Locks agents by ascending ids and reads their service states, in one statement, because every claim and report needs
 * it.
 * @param mode `share` keeps other units from changing the rows; `update` also from locking them
 * @returns by id; unknown ones are left out
 */
export async function lockServiceStates(
  tx: Transaction,
  agentIds: readonly number[],
  mode: 'share' | 'update',
): Promise<Map<number, ServiceState>> {
  const rows = await tx.rows<ServiceState>(
    `SELECT ${CREDENTIAL_COLUMNS}, first_lease_at FROM agents WHERE ${tx.dialect.isAmong('id', '$1')}
     ORDER BY id ${mode === 'update' ? tx.dialect.forUpdate() : tx.dialect.forShare()}`,
    JSON.stringify([...new Set(agentIds)]),
  );
  return new Map(rows.map((row) => [row.id, row]));
}

/** Finds an agent that was not deleted. */
export function findAgent(statements: Statements, agentId: number): Promise<KnownAgent | undefined> {
  return statements.first(`${SELECT_AGENT} WHERE a.id = $1 AND a.state <> 'deleted'`, agentId);
}

/** Lists the hostnames of these agents; null if one has none. */
export function listHostnames(
  statements: Statements,
  ids: readonly number[],
): Promise<{ id: number; hostname: string | null }[]> {
  return statements.rows(
    `SELECT id, hostname FROM agents WHERE ${statements.dialect.isAmong('id', '$1')}`,
    JSON.stringify(ids),
  );
}

/** Finds the id of the agent that has a hostname and was not deleted. */
export async function findIdByHostnameKey(
  statements: Statements,
  hostnameKey: string,
): Promise<number | undefined> {
  const row = await statements.first<{ id: number }>(
    `SELECT id FROM agents WHERE hostname_key = $1 AND state <> 'deleted'`,
    hostnameKey,
  );
  return row?.id;
}

/** Whether the agent exists or was deleted. */
export async function isKnown(statements: Statements, agentId: number): Promise<boolean> {
  return (await statements.first('SELECT id FROM agents WHERE id = $1', agentId)) !== undefined;
}

/** Adds an agent. @returns its id */
export async function insertAgent(
  tx: Transaction,
  agent: Pick<
    AgentEntity,
    'hostname' | 'hostname_key' | 'origin' | 'token_hash' | 'token_expires_at' | 'trial_ends_at'
  >,
): Promise<number> {
  const row = await tx.first<{ id: number }>(
    `INSERT INTO agents (hostname, hostname_key, origin, state, token_hash, token_expires_at, registered_at, trial_ends_at)
     VALUES ($1, $2, $3, 'active', $4, $5, $6, $7) RETURNING id`,
    agent.hostname,
    agent.hostname_key,
    agent.origin satisfies AgentOrigin,
    agent.token_hash,
    agent.token_expires_at,
    tx.now,
    agent.trial_ends_at,
  );
  return (row as { id: number }).id;
}

export async function updateState(tx: Transaction, agentId: number, state: AgentState): Promise<void> {
  await tx.run('UPDATE agents SET state = $2 WHERE id = $1', agentId, state);
}

/** Stores a new token. @param previous the token that also works for a while */
export async function updateToken(
  tx: Transaction,
  agentId: number,
  current: HeldToken,
  previous: HeldToken | undefined,
): Promise<void> {
  await tx.run(
    `UPDATE agents SET token_hash = $2, token_expires_at = $3, previous_token_hash = $4, previous_token_expires_at = $5
     WHERE id = $1`,
    agentId,
    current.hash,
    current.expiresAt,
    previous?.hash ?? null,
    previous?.expiresAt ?? null,
  );
}

/** Voids the token before the last rotation, if the current one is still `tokenHash`. */
export async function voidPreviousToken(tx: Transaction, agentId: number, tokenHash: string): Promise<void> {
  await tx.run(
    `UPDATE agents SET previous_token_hash = NULL, previous_token_expires_at = NULL WHERE id = $1 AND token_hash = $2`,
    agentId,
    tokenHash,
  );
}

/** Moves the expiry of replaced tokens back, after the clock was set back by `byMs`. */
export async function movePreviousTokenExpiries(tx: Transaction, byMs: number): Promise<void> {
  await tx.run(
    `UPDATE agents SET previous_token_expires_at = ${tx.dialect.greatest('$1', 'previous_token_expires_at - $2')}
     WHERE previous_token_expires_at > $1`,
    tx.now,
    byMs,
  );
}

/** Records the first lease of agents that never held one. */
export async function markFirstLeases(tx: Transaction, agentIds: readonly number[]): Promise<void> {
  await tx.run(
    `UPDATE agents SET first_lease_at = $2 WHERE ${tx.dialect.isAmong('id', '$1')} AND first_lease_at IS NULL`,
    JSON.stringify(agentIds),
    tx.now,
  );
}

/** Sets labels, and replaces those with the same names. */
export async function upsertLabels(tx: Transaction, agentId: number, labels: Labels): Promise<void> {
  const rows = Object.entries(labels).map(([name, value]) => ({ name, value }));
  if (rows.length === 0) return;
  await tx.run(
    `INSERT INTO agent_labels (agent_id, name, value)
     SELECT $1, name, value FROM ${tx.dialect.rowset('$2', { name: 'text', value: 'text' })} AS l WHERE true
     ON CONFLICT (agent_id, name) DO UPDATE SET value = excluded.value`,
    agentId,
    JSON.stringify(rows),
  );
}

export async function deleteLabels(tx: Transaction, agentId: number): Promise<void> {
  await tx.run('DELETE FROM agent_labels WHERE agent_id = $1', agentId);
}

/** Lists the labels of each of the agents; agents without any are left out. */
export function listLabels(
  statements: Statements,
  agentIds: readonly number[],
): Promise<Map<number, Labels>> {
  return listLabelsWhere(statements, statements.dialect.isAmong('agent_id', '$1'), agentIds);
}

/** Lists the labels with these names, of every agent that has one. */
export function listLabelsNamed(
  statements: Statements,
  names: readonly string[],
): Promise<Map<number, Labels>> {
  return listLabelsWhere(
    statements,
    `name IN (SELECT name FROM ${statements.dialect.rowset('$1', { name: 'text' })} AS r)`,
    names.map((name) => ({ name })),
  );
}

async function listLabelsWhere(
  statements: Statements,
  condition: string,
  among: readonly unknown[],
): Promise<Map<number, Labels>> {
  const rows = await statements.rows<LabelEntity>(
    `SELECT agent_id, name, value FROM agent_labels WHERE ${condition} ORDER BY agent_id, name`,
    JSON.stringify(among),
  );
  const labels = new Map<number, Labels>();
  for (const { agent_id: id, name, value } of rows) labels.set(id, { ...labels.get(id), [name]: value });
  return labels;
}

/** Deletes the tokens of earlier holders, from before an agent was handed over. */
export async function deleteOwnerTokens(tx: Transaction, agentId: number): Promise<void> {
  await tx.run('DELETE FROM agent_owner_tokens WHERE agent_id = $1', agentId);
}

/** Deletes agents with the rows that belong to them alone. */
export async function deleteAgents(tx: Transaction, agentIds: readonly number[]): Promise<void> {
  for (const table of [...DEPENDENT_TABLES, 'agents'])
    await tx.run(
      `DELETE FROM ${table} WHERE ${tx.dialect.isAmong(table === 'agents' ? 'id' : 'agent_id', '$1')}`,
      JSON.stringify(agentIds),
    );
}
