import { randomUUID } from 'node:crypto';
import type { OriginalAgent } from '../database/original';
import type { Transaction } from '../database/statements';
import { isName } from '../http/text';
import { hashToken, isImportedToken } from '../http/tokens';
import { hostnameKey, MAX_HOSTNAME } from './hostnames';
import { insertImported, selectTakenHostnames, selectTakenIds } from './imported-agents.queries';

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
  const taken = await selectTakenIds(tx);
  const keys = await selectTakenHostnames(tx);
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
    await insertImported(
      tx,
      {
        id: agent.id,
        hostname: problem === undefined ? hostname : null,
        hostname_key: problem === undefined ? key : null,
        state: agent.state,
        token_hash: hashToken(isUsable ? agent.auth_token : randomUUID()),
        token_expires_at: tokenExpiry,
        registered_at: registeredAt,
      },
      Math.min(agent.last_heartbeat ?? registeredAt, tx.now),
    );
    result.taken++;
  }
  return result;
}
