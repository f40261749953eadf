import { Inject, Injectable } from '@nestjs/common';
import { Cron, CronExpression } from '@nestjs/schedule';
import { LRUCache } from 'lru-cache';
import { Clock } from '../clock';
import { Database } from '../database/database';
import type { Statements, Transaction } from '../database/statements';
import { Continuity } from '../scheduling/continuity';
import { JobRunner } from '../scheduling/job-runner';
import { SETTINGS, type Settings } from '../settings';
import type { AgentStatus } from './agents.dto';

const HOUR_MS = 3_600_000;
/** A kind that an agent has not asked for in so long, in milliseconds, is none that it takes. */
export const KIND_KEPT_MS = 24 * HOUR_MS;
/** How often it is written that an agent still asks for a kind, in milliseconds. */
const REFRESH_MS = 600_000;
/** How soon another capacity than before is written, in milliseconds: some agents ask for another number each time. */
const CHANGE_MS = 30_000;
/** Under which it is announced that kinds of an agent were removed, by its id. */
const REMOVED = 'agent-kinds';
/** What so many agents asked for is kept in memory, so that the same again costs nothing. */
const REMEMBERED_AGENTS = 100_000;

/** How many leases of each kind an agent is willing to hold. */
export type Capacities = readonly (readonly [kind: string, capacity: number])[];

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

/** $1 is the kind, $2 since when it must have been asked for, $3 since when who was not heard of is silent. */
const IS_ONLINE = `a.state = 'active' AND h.last_heartbeat_at > $3`;
const STATUS = `CASE WHEN a.state <> 'active' THEN a.state WHEN h.last_heartbeat_at > $3 THEN 'online' ELSE 'offline' END`;
const TAKERS = `FROM agent_kinds k JOIN agents a ON a.id = k.agent_id JOIN agent_heartbeats h ON h.agent_id = k.agent_id
       WHERE k.kind = $1 AND k.asked_at > $2 AND a.state <> 'deleted'`;

/** What was written of a kind. */
interface Asked {
  readonly capacity: number;
  readonly at: number;
}

/**
 * Owns agent_kinds: which kinds of tasks each agent takes, and how many at once, learned from its claims. A kind that it
 * asks none of is one that it does not take; one that a claim leaves out may be asked for by the next.
 */
@Injectable()
export class AgentKinds {
  private readonly written = new LRUCache<number, ReadonlyMap<string, Asked>>({
    // By size: a cache with `max` takes the memory for all of them at once.
    maxSize: REMEMBERED_AGENTS,
    sizeCalculation: () => 1,
  });

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly jobs: JobRunner,
    continuity: Continuity,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    this.jobs.declare('agent-kind-retention');
    database.onAnnouncement(REMOVED, (agentId) => this.written.delete(Number(agentId)));
    database.onGap(() => this.written.clear());
    continuity.onInterruption(async (tx, { now, lastSeen }) => {
      // If the clock was set back, nobody counts as having asked in the future.
      if (lastSeen > now) await tx.run('UPDATE agent_kinds SET asked_at = $1 WHERE asked_at > $1', now);
    });
  }

  /** Whether a claim says something that {@link learn} would write. */
  isNews(agentId: number, capacities: Capacities, now: number): boolean {
    return this.newsOf(agentId, capacities, now).length > 0;
  }

  /**
   * Takes in, in the unit of a claim that has locked the agent, what it asks for. Writes only what is new, or was last
   * written 10 minutes ago: the same claim again costs no statement.
   */
  async learn(tx: Transaction, agentId: number, capacities: Capacities): Promise<void> {
    const { now } = tx;
    const news = this.newsOf(agentId, capacities, now);
    if (news.length === 0) return;
    const taken = news.filter(([, capacity]) => capacity > 0);
    if (taken.length > 0)
      await tx.run(
        `INSERT INTO agent_kinds (agent_id, kind, asked_at, capacity)
         SELECT $1, kind, $2, capacity FROM ${tx.dialect.rowset('$3', { kind: 'text', capacity: 'integer' })} AS r
         WHERE true
         ON CONFLICT (agent_id, kind) DO UPDATE SET asked_at = excluded.asked_at, capacity = excluded.capacity`,
        agentId,
        now,
        // More than an agent may hold in all says no more.
        JSON.stringify(
          taken.map(([kind, capacity]) => ({
            kind,
            capacity: Math.min(capacity, this.settings.maxLeasesPerAgent),
          })),
        ),
      );
    const refused = news.filter(([, capacity]) => capacity === 0);
    if (refused.length > 0) {
      const removed = await tx.run(
        `DELETE FROM agent_kinds WHERE agent_id = $1
         AND kind IN (SELECT kind FROM ${tx.dialect.rowset('$2', { kind: 'text' })} AS r)`,
        agentId,
        JSON.stringify(refused.map(([kind]) => ({ kind }))),
      );
      // Another replica believes that they are written, and would not write them if the agent asks it for them.
      if (removed > 0) tx.announce(REMOVED, String(agentId));
    }
    tx.afterCommit(() => {
      const asked = news.map(([kind, capacity]) => [kind, { capacity, at: now }] as const);
      this.written.set(agentId, new Map([...(this.written.get(agentId) ?? []), ...asked]));
    });
  }

  /** Forgets what an agent asked for. */
  async forget(tx: Transaction, agentId: number): Promise<void> {
    await tx.run('DELETE FROM agent_kinds WHERE agent_id = $1', agentId);
    tx.announce(REMOVED, String(agentId));
  }

  /** The kinds that each of the agents takes, sorted; agents that take none are left out. */
  async of(statements: Statements, agentIds: readonly number[]): Promise<Map<number, string[]>> {
    const rows = await statements.rows<{ agent_id: number; kind: string }>(
      `SELECT agent_id, kind FROM agent_kinds
       WHERE ${statements.dialect.isAmong('agent_id', '$1')} AND asked_at > $2`,
      JSON.stringify(agentIds),
      this.clock.now() - KIND_KEPT_MS,
    );
    const kinds = new Map<number, string[]>();
    for (const [id, of] of Map.groupBy(rows, (row) => row.agent_id))
      kinds.set(id, of.map(({ kind }) => kind).sort());
    return kinds;
  }

  /**
   * How many agents of each status take a kind. Reads all of them, and writes nothing.
   * @param silentSince whose last heartbeat is not after this instant is offline
   */
  census(statements: Statements, kind: string, silentSince: number): Promise<StatusCount[]> {
    return statements.rows<StatusCount>(
      `SELECT ${STATUS} AS status, count(*) AS count, max(k.asked_at) AS asked_at ${TAKERS}
       GROUP BY ${STATUS} ORDER BY status`,
      kind,
      this.clock.now() - KIND_KEPT_MS,
      silentSince,
    );
  }

  /**
   * Of the agents that take a kind and are not online, the one heard of last: first of those that drain and are heard of, then of
   * those offline, then of those that drain and are silent.
   */
  nearest(
    statements: Statements,
    kind: string,
    silentSince: number,
  ): Promise<{ id: number; status: 'draining' | 'offline' | 'disabled'; is_silent: number } | undefined> {
    return statements.first(
      `SELECT a.id, ${STATUS} AS status, CASE WHEN h.last_heartbeat_at > $3 THEN 0 ELSE 1 END AS is_silent
       ${TAKERS} AND a.state <> 'revoked' AND NOT (${IS_ONLINE})
       ORDER BY CASE WHEN a.state = 'draining' AND h.last_heartbeat_at > $3 THEN 0 WHEN a.state = 'active' THEN 1
         WHEN a.state = 'draining' THEN 2 ELSE 3 END, h.last_heartbeat_at DESC, a.id LIMIT 1`,
      kind,
      this.clock.now() - KIND_KEPT_MS,
      silentSince,
    );
  }

  /** Agents that are online and take a kind, by ids above one, with how many leases of it they are willing to hold. */
  onlineTakers(
    statements: Statements,
    kind: string,
    silentSince: number,
    aboveId: number,
    limit: number,
  ): Promise<OnlineTaker[]> {
    return statements.rows<OnlineTaker>(
      `SELECT a.id, k.capacity ${TAKERS} AND ${IS_ONLINE} AND k.agent_id > $4 ORDER BY k.agent_id LIMIT $5`,
      kind,
      this.clock.now() - KIND_KEPT_MS,
      silentSince,
      aboveId,
      limit,
    );
  }

  /** Deletes what agents have not asked for in a day. @returns how many rows */
  purge(): Promise<number> {
    const before = this.clock.now() - KIND_KEPT_MS;
    return this.jobs.purge((limit) =>
      this.database.write((tx) =>
        tx.run(
          `DELETE FROM agent_kinds WHERE (agent_id, kind) IN (
             SELECT agent_id, kind FROM agent_kinds WHERE asked_at <= $1 LIMIT $2 ${tx.dialect.skipLocked()})
           AND asked_at <= $1`,
          before,
          limit,
        ),
      ),
    );
  }

  @Cron(CronExpression.EVERY_HOUR)
  protected purgeHourly(): Promise<void> {
    return this.jobs.run('agent-kind-retention', HOUR_MS, async () => void (await this.purge()));
  }

  private newsOf(agentId: number, capacities: Capacities, now: number): Capacities {
    const written = this.written.get(agentId);
    return capacities.filter(([kind, capacity]) => {
      const before = written?.get(kind);
      if (!before) return true;
      const age = now - before.at;
      const isSoon = before.capacity === 0 && capacity > 0;
      return age < 0 || isSoon || age >= (before.capacity === capacity ? REFRESH_MS : CHANGE_MS);
    });
  }
}
