import { randomUUID } from 'node:crypto';
import type { OriginalAgent } from '../database/original';
import type { Transaction } from '../database/statements';
import { isName } from '../http/text';
import { hashToken, isImportedToken } from '../http/tokens';
import { hostnameKey, MAX_HOSTNAME } from './hostnames';

/** The result of importing the agents of another database. */
export interface ImportedAgents {
  taken: number;
  /** They came with an earlier import. */
  known: number;
  /** What is not as it was, by the agent's id. */
  notes: [id: number, note: string][];
}

/**
 * Stores agents of the original control plane under their ids, with their tokens hashed, so that they go on without
 * noticing. Each is as one that registered openly, for the original's agents keep no token when they restart: they get
 * their name back by it when they have been silent. Unlike one that did so here, it is not deleted for being silent.
 * @param through the last id that an earlier import covered; those up to it are not touched again
 * @param tokenExpiry when tokens given now expire, in ms since the epoch
 * @returns ids that another agent has: if there is one, nothing may be kept
 */
export async function importAgents(
  tx: Transaction,
  agents: readonly OriginalAgent[],
  through: number,
  tokenExpiry: number | null,
): Promise<ImportedAgents & { clashes: number[] }> {
  const fresh = agents.filter(({ id }) => id > through);
  const result = {
    taken: 0,
    known: agents.length - fresh.length,
    notes: [] as [number, string][],
    clashes: [] as number[],
  };
  // By rows, deleted ones included, and not by the counter: PostgreSQL does not set that back with a transaction.
  const taken = new Set((await tx.rows<{ id: number }>('SELECT id FROM agents')).map((row) => row.id));
  const keys = new Set(
    (
      await tx.rows<{ key: string }>(
        `SELECT hostname_key AS key FROM agents WHERE hostname_key IS NOT NULL AND state <> 'deleted'`,
      )
    ).map((row) => row.key),
  );
  for (const agent of fresh) {
    if (taken.has(agent.id)) {
      result.clashes.push(agent.id);
      continue;
    }
    const { hostname } = agent;
    const key = hostnameKey(hostname);
    const problem =
      hostname === '' || hostname.length > MAX_HOSTNAME || !isName(hostname)
        ? 'it can not be one'
        : keys.has(key)
          ? 'another agent has it'
          : undefined;
    if (problem === undefined) keys.add(key);
    else result.notes.push([agent.id, `has no hostname now: ${problem}`]);
    const isUsable = isImportedToken(agent.auth_token);
    if (!isUsable)
      result.notes.push([agent.id, 'has a token of an unknown form: rotate it, or let it register']);
    const registeredAt = Math.min(agent.created_at ?? tx.now, tx.now);
    await tx.run(
      `INSERT INTO agents (id, hostname, hostname_key, origin, state, token_hash, token_expires_at, registered_at)
       VALUES ($1, $2, $3, 'open', $4, $5, $6, $7)`,
      agent.id,
      problem === undefined ? hostname : null,
      problem === undefined ? key : null,
      agent.state,
      hashToken(isUsable ? agent.auth_token : randomUUID()),
      tokenExpiry,
      registeredAt,
    );
    await tx.run(
      'INSERT INTO agent_heartbeats (agent_id, last_heartbeat_at) VALUES ($1, $2)',
      agent.id,
      Math.min(agent.last_heartbeat ?? registeredAt, tx.now),
    );
    result.taken++;
  }
  return result;
}
