import type { Statements, Transaction } from '../database/statements';
import type { AgentStatus } from './agents.dto';

/** A kind that an agent takes, and how many leases of it at once. */
export interface TakenKind {
  readonly agent_id: number;
  readonly kind: string;
  readonly capacity: number;
}

/** How many agents take a kind, and when one of them asked for it last. */
export interface StatusCount {
  status: AgentStatus;
  count: number;
  asked_at: number;
}

/** An agent that is online and takes a kind. */
export interface OnlineTaker {
  id: number;
  /** Null if it is not known. */
  capacity: number | null;
}

/** By what the takers of a kind are chosen; instants in ms since the epoch. */
export interface TakerFilter {
  readonly kind: string;
  /** They must have asked for it after this instant. */
  readonly askedSince: number;
  /** Agents whose last heartbeat is not after this instant are silent. */
  readonly silentSince: number;
}

/** $1 is the kind, $2 since when it must have been asked for, $3 since when an agent that was not heard of is silent. */
const IS_ONLINE = `a.state = 'active' AND h.last_heartbeat_at > $3`;
const STATUS = `CASE WHEN a.state <> 'active' THEN a.state WHEN h.last_heartbeat_at > $3 THEN 'online' ELSE 'offline' END`;
const TAKERS = `FROM agent_kinds k JOIN agents a ON a.id = k.agent_id JOIN agent_heartbeats h ON h.agent_id = k.agent_id
       WHERE k.kind = $1 AND k.asked_at > $2 AND a.state <> 'deleted'`;

/** Records that agents take kinds as of now. Rows are locked in the order of their keys. */
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

/** @returns the agents of which there was something to delete */
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

/** The kinds that agents asked for after an instant, in ms since the epoch. */
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

/** How many agents of each status take a kind. */
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
 * Of the agents that take a kind and are not online, the one heard of last: first of those that drain and are heard of, then of
 * those offline, then of those that drain and are silent.
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

/** Agents that are online and take a kind, by ids above one. */
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

/** Deletes what was not asked for after an instant, up to the limit. @returns how many rows */
export function deleteKindsAskedBefore(tx: Transaction, instant: number, limit: number): Promise<number> {
  return tx.run(
    `DELETE FROM agent_kinds WHERE (agent_id, kind) IN (
       SELECT agent_id, kind FROM agent_kinds WHERE asked_at <= $1 LIMIT $2 ${tx.dialect.skipLocked()})
     AND asked_at <= $1`,
    instant,
    limit,
  );
}

/** After a clock that was set back: nobody counts as having asked in the future. */
export async function cutFutureKinds(tx: Transaction): Promise<void> {
  await tx.run('UPDATE agent_kinds SET asked_at = $1 WHERE asked_at > $1', tx.now);
}
