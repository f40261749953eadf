import type { Statements, Transaction } from '../database/statements';
import type { AgentStatus } from './agents.dto';

/** A kind that an agent takes, and the most leases of it at once. */
export interface TakenKind {
  readonly agent_id: number;
  readonly kind: string;
  readonly capacity: number;
}

/** The number of agents of a status that take a kind, and when one of them last asked for it. */
export interface StatusCount {
  status: AgentStatus;
  count: number;
  asked_at: number;
}

/** An online agent that takes a kind. */
export interface OnlineTaker {
  id: number;
  /** Null if unknown. */
  capacity: number | null;
}

/** Selects the agents that take a kind; instants in ms since the epoch. */
export interface TakerFilter {
  readonly kind: string;
  /** They must have asked for it after this instant. */
  readonly askedSince: number;
  /** Agents whose last heartbeat is not after this instant are silent. */
  readonly silentSince: number;
}

/** $1 is the kind; agents must have asked for it after $2; agents without a heartbeat after $3 are silent. */
const IS_ONLINE = `a.state = 'active' AND h.last_heartbeat_at > $3`;
const STATUS = `CASE WHEN a.state <> 'active' THEN a.state WHEN h.last_heartbeat_at > $3 THEN 'online' ELSE 'offline' END`;
const TAKERS = `FROM agent_kinds k JOIN agents a ON a.id = k.agent_id JOIN agent_heartbeats h ON h.agent_id = k.agent_id
       WHERE k.kind = $1 AND k.asked_at > $2 AND a.state <> 'deleted'`;

/** Stores kinds that agents asked for now. Locks rows in the order of their keys. */
export async function upsertKinds(tx: Transaction, kinds: readonly TakenKind[]): Promise<void> {
  await tx.run(
    `INSERT INTO agent_kinds (agent_id, kind, asked_at, capacity)
     SELECT agent_id, kind, $2, capacity
     FROM ${tx.dialect.rowset('$1', { agent_id: 'integer', kind: 'text', capacity: 'integer' })} AS r
     WHERE true ORDER BY agent_id, kind
     ON CONFLICT (agent_id, kind) DO UPDATE SET asked_at = excluded.asked_at, capacity = excluded.capacity`,
    JSON.stringify(kinds),
    tx.now,
  );
}

/** Deletes kinds. @returns the agents that had some of them */
export async function deleteKinds(
  tx: Transaction,
  kinds: readonly Omit<TakenKind, 'capacity'>[],
): Promise<Set<number>> {
  const rows = await tx.rows<{ agent_id: number }>(
    `DELETE FROM agent_kinds WHERE (agent_id, kind) IN (
       SELECT agent_id, kind FROM ${tx.dialect.rowset('$1', { agent_id: 'integer', kind: 'text' })} AS r)
     RETURNING agent_id`,
    JSON.stringify(kinds),
  );
  return new Set(rows.map((row) => row.agent_id));
}

export async function deleteKindsOf(tx: Transaction, agentId: number): Promise<void> {
  await tx.run('DELETE FROM agent_kinds WHERE agent_id = $1', agentId);
}

/** Lists the kinds that agents asked for after an instant, in ms since the epoch. */
export function listKinds(
  statements: Statements,
  agentIds: readonly number[],
  askedSince: number,
): Promise<{ agent_id: number; kind: string }[]> {
  return statements.rows(
    `SELECT agent_id, kind FROM agent_kinds
     WHERE ${statements.dialect.isAmong('agent_id', '$1')} AND asked_at > $2`,
    JSON.stringify(agentIds),
    askedSince,
  );
}

/** Counts the agents that take a kind, by status. */
export function countTakers(statements: Statements, of: TakerFilter): Promise<StatusCount[]> {
  return statements.rows(
    `SELECT ${STATUS} AS status, count(*) AS count, max(k.asked_at) AS asked_at ${TAKERS}
     GROUP BY ${STATUS} ORDER BY status`,
    of.kind,
    of.askedSince,
    of.silentSince,
  );
}

/**
 * Finds the agent with the latest heartbeat that takes a kind and is not online: first among draining agents that are
 * not silent, then offline ones, then draining and silent ones, then disabled ones.
 */
export function findNearestTaker(
  statements: Statements,
  of: TakerFilter,
): Promise<{ id: number; status: 'draining' | 'offline' | 'disabled'; is_silent: number } | undefined> {
  return statements.first(
    `SELECT a.id, ${STATUS} AS status, CASE WHEN h.last_heartbeat_at > $3 THEN 0 ELSE 1 END AS is_silent
     ${TAKERS} AND a.state <> 'revoked' AND NOT (${IS_ONLINE})
     ORDER BY CASE WHEN a.state = 'draining' AND h.last_heartbeat_at > $3 THEN 0 WHEN a.state = 'active' THEN 1
       WHEN a.state = 'draining' THEN 2 ELSE 3 END, h.last_heartbeat_at DESC, a.id LIMIT 1`,
    of.kind,
    of.askedSince,
    of.silentSince,
  );
}

/** Lists online agents that take a kind, by ids above `aboveId`. */
export function listOnlineTakers(
  statements: Statements,
  of: TakerFilter,
  aboveId: number,
  limit: number,
): Promise<OnlineTaker[]> {
  return statements.rows(
    `SELECT a.id, k.capacity ${TAKERS} AND ${IS_ONLINE} AND k.agent_id > $4 ORDER BY k.agent_id LIMIT $5`,
    of.kind,
    of.askedSince,
    of.silentSince,
    aboveId,
    limit,
  );
}

/** Deletes kinds that were last asked for at an instant or before, up to the limit. @returns the number of rows */
export function deleteKindsAskedBefore(tx: Transaction, instant: number, limit: number): Promise<number> {
  return tx.run(
    `DELETE FROM agent_kinds WHERE (agent_id, kind) IN (
       SELECT agent_id, kind FROM agent_kinds WHERE asked_at <= $1 LIMIT $2 ${tx.dialect.skipLocked()})
     AND asked_at <= $1`,
    instant,
    limit,
  );
}

/** Moves instants in the future to now, after the clock was set back. */
export async function cutFutureKinds(tx: Transaction): Promise<void> {
  await tx.run('UPDATE agent_kinds SET asked_at = $1 WHERE asked_at > $1', tx.now);
}
