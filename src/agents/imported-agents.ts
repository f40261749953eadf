import { randomUUID } from 'node:crypto';
import type { OriginalAgent } from '../database/original';
import type { Transaction } from '../database/statements';
import { isName } from '../http/text';
import { hashToken, isImportedToken } from '../http/tokens';
import { hostnameKey, MAX_HOSTNAME } from './hostnames';
import { insertImported, selectTakenHostnames, selectTakenIds } from './imported-agents.queries';

/** The result of an import of agents. */
export interface ImportedAgents {
  taken: number;
  /** Imported earlier. */
  known: number;
  /** Changes of imported agents, by id. */
  notes: [id: number, note: string][];
}

/**
 * Imports agents of the original control plane with their ids and hashed tokens, so that they can continue to work.
 * They count as openly registered, because the original's agents forget their token at a restart: they register again
 * under their hostname once they have been silent. Unlike agents that registered openly here, they are not deleted when
 * they are silent.
 * @param through the last id of an earlier import; agents up to it are not changed
 * @param tokenExpiry when the tokens expire, in ms since the epoch
 * @returns `clashes`: ids that another agent has; if there are any, the import must be rolled back
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
        ? 'it is not valid'
        : keys.has(key)
          ? 'another agent has it'
          : undefined;
    if (problem === undefined) keys.add(key);
    else result.notes.push([agent.id, `was imported without its hostname: ${problem}`]);
    const isUsable = isImportedToken(agent.auth_token);
    if (!isUsable)
      result.notes.push([agent.id, 'has a token of an unknown form: rotate it, or register the agent again']);
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
