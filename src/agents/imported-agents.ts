import { randomUUID } from 'node:crypto';
import type { OriginalAgent } from '../database/original';
import type { Transaction } from '../database/statements';
import { hashToken, isImportedToken } from '../http/tokens';

/** What became of the agents of another database. */
export interface ImportedAgents {
  taken: number;
  /** They came with an earlier import. */
  known: number;
  /** What is not as it was, by the agent's id. */
  notes: [id: number, note: string][];
}

/** A hostname as registrations are compared: two spellings of it are one agent. */
const hostnameOf = (text: string): string => text.normalize('NFC').toLowerCase().replace(/\.$/, '');

/**
 * Stores agents of the original control plane under their ids, with their tokens hashed, so that they go on without
 * noticing. Each is as one that registered openly: it gets its name back by its hostname when it has been silent.
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
  const hostnames = new Set(
    (
      await tx.rows<{ hostname: string }>(
        `SELECT hostname FROM agents WHERE hostname IS NOT NULL AND state <> 'deleted'`,
      )
    ).map((row) => hostnameOf(row.hostname)),
  );
  for (const agent of fresh) {
    if (taken.has(agent.id)) {
      result.clashes.push(agent.id);
      continue;
    }
    const name = hostnameOf(agent.hostname);
    const isFree = name !== '' && name.length <= 255 && !hostnames.has(name);
    if (isFree) hostnames.add(name);
    else result.notes.push([agent.id, 'has no hostname now: another agent has it']);
    const isUsable = isImportedToken(agent.auth_token);
    if (!isUsable)
      result.notes.push([agent.id, 'has a token of an unknown form: rotate it, or let it register']);
    const registeredAt = Math.min(agent.created_at ?? tx.now, tx.now);
    await tx.run(
      `INSERT INTO agents (id, hostname, state, token_hash, token_expires_at, registered_at, updated_at)
       VALUES ($1, $2, $3, $4, $5, $6, $7)`,
      agent.id,
      isFree ? agent.hostname : null,
      agent.state,
      hashToken(isUsable ? agent.auth_token : randomUUID()),
      tokenExpiry,
      registeredAt,
      tx.now,
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
