import type { Transaction } from '../database/statements';
import type { AgentEntity, OwnerTokenEntity } from './agent.entity';
import type { HeldToken } from './credentials';

/** An agent on trial. */
export type AgentOnTrial = Pick<AgentEntity, 'id' | 'state' | 'registered_at' | 'first_lease_at'> & {
  last_heartbeat_at: number;
  /** The last day on which it stored data; null if it never did. */
  day: number | null;
};

/** Finds the token of the owner of an agent that was handed over; undefined if there is none that works. */
export async function findOwnerToken(
  tx: Transaction,
  agentId: number,
  hash: string,
): Promise<HeldToken | undefined> {
  const row = await tx.first<OwnerTokenEntity>(
    `SELECT * FROM agent_owner_tokens
     WHERE agent_id = $1 AND token_hash = $2 AND (expires_at IS NULL OR expires_at > $3)`,
    agentId,
    hash,
    tx.now,
  );
  return row && { hash, expiresAt: row.expires_at };
}

export async function insertOwnerToken(
  tx: Transaction,
  agentId: number,
  { hash, expiresAt }: HeldToken,
): Promise<void> {
  await tx.run(
    'INSERT INTO agent_owner_tokens (agent_id, token_hash, expires_at) VALUES ($1, $2, $3)',
    agentId,
    hash,
    expiresAt,
  );
}

/** Sets the instant of a hand-over without proof. @param at null once an owner has the agent back */
export async function updateHandOver(tx: Transaction, agentId: number, at: number | null): Promise<void> {
  await tx.run('UPDATE agents SET handed_over_at = $2 WHERE id = $1', agentId, at);
}

/** Ends an openly registered agent's trial and hand-over, because it showed an enrollment token. */
export async function markEnrolled(tx: Transaction, agentId: number): Promise<void> {
  await tx.run(
    `UPDATE agents SET origin = 'enrolled', trial_ends_at = NULL, handed_over_at = NULL WHERE id = $1 AND origin = 'open'`,
    agentId,
  );
}

export async function updateEnrollmentToken(
  tx: Transaction,
  agentId: number,
  tokenId: number,
): Promise<void> {
  await tx.run('UPDATE agents SET enrollment_token_id = $2 WHERE id = $1', agentId, tokenId);
}

/** Locks and reads agents whose trial is over, up to the limit. Skips locked ones until the next run. */
export async function lockEndedTrials(tx: Transaction, limit: number): Promise<AgentOnTrial[]> {
  const due = await tx.rows<{ id: number }>(
    `SELECT id FROM agents WHERE trial_ends_at <= $1 ORDER BY trial_ends_at LIMIT $2 ${tx.dialect.skipLocked()}`,
    tx.now,
    limit,
  );
  if (due.length === 0) return [];
  // Read after locking, so that heartbeats before the lock count.
  return tx.rows<AgentOnTrial>(
    `SELECT a.id, a.state, a.registered_at, a.first_lease_at, h.last_heartbeat_at, u.day
     FROM agents a JOIN agent_heartbeats h ON h.agent_id = a.id LEFT JOIN agent_usage u ON u.agent_id = a.id
     WHERE ${tx.dialect.isAmong('a.id', '$1')}`,
    JSON.stringify(due.map(({ id }) => id)),
  );
}

/** Sets the end of agents' trials. @param trials `ends` in ms since the epoch; null if the agent stays */
export async function updateTrialEnds(
  tx: Transaction,
  trials: readonly { id: number; ends: number | null }[],
): Promise<void> {
  await tx.run(
    `UPDATE agents SET trial_ends_at = r.ends
     FROM ${tx.dialect.rowset('$1', { id: 'integer', ends: 'integer' })} AS r WHERE agents.id = r.id`,
    JSON.stringify(trials),
  );
}
