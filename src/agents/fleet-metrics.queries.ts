import type { Statements } from '../database/statements';
import type { AgentState } from './agent.entity';

/** Agents of one state whose last heartbeats are in the same age bucket. */
export interface AgeGroup {
  state: AgentState;
  /** The index of the bucket; the number of bounds if the ages exceed all of them. */
  bucket: number;
  online: number;
  silent: number;
  count: number;
  /** The sum of the ages, in milliseconds. */
  ages: number;
}

/**
 * Groups the agents by state and by the age of their last heartbeat, in one statement.
 * @param bounds upper bounds of the ages, in milliseconds, ascending
 */
export function groupByHeartbeatAge(
  statements: Statements,
  bounds: readonly number[],
  { now, silentSince, silentAfterMs }: { now: number; silentSince: number; silentAfterMs: number },
): Promise<AgeGroup[]> {
  const bucket = bounds.map((bound, i) => `WHEN age <= ${bound} THEN ${i}`).join(' ');
  return statements.rows(
    `SELECT state, bucket, count(*) AS count, sum(online) AS online, sum(silent) AS silent, sum(age) AS ages FROM (
       SELECT state, age, CASE WHEN heard > $2 THEN 1 ELSE 0 END AS online,
         CASE WHEN age > $3 THEN 1 ELSE 0 END AS silent, CASE ${bucket} ELSE ${bounds.length} END AS bucket
       FROM (
         SELECT a.state, h.last_heartbeat_at AS heard,
           CASE WHEN h.last_heartbeat_at < $1 THEN $1 - h.last_heartbeat_at ELSE 0 END AS age
         FROM agents a JOIN agent_heartbeats h ON h.agent_id = a.id WHERE a.state <> 'deleted') AS heard) AS aged
     GROUP BY state, bucket`,
    now,
    silentSince,
    silentAfterMs,
  );
}

/**
 * Counts the agents in service by the state that they reported for a revision; `other`: another revision. Agents
 * without a report are left out.
 */
export function countByConfigState(
  statements: Statements,
  revision: string,
): Promise<{ state: 'applied' | 'failed' | 'other'; count: number }[]> {
  return statements.rows(
    `SELECT CASE WHEN s.revision = $1 THEN s.status ELSE 'other' END AS state, count(*) AS count
     FROM agent_config_states s JOIN agents a ON a.id = s.agent_id WHERE a.state IN ('active', 'draining')
     GROUP BY CASE WHEN s.revision = $1 THEN s.status ELSE 'other' END`,
    revision,
  );
}
