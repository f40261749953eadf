import { Inject, Injectable, Logger, type OnApplicationShutdown } from '@nestjs/common';
import { Interval } from '@nestjs/schedule';
import { boundedCache } from '../bounded-cache';
import { Clock } from '../clock';
import { Database } from '../database/database';
import type { Statements, Transaction } from '../database/statements';
import { Continuity } from '../scheduling/continuity';
import { JobRunner } from '../scheduling/job-runner';
import { SETTINGS, type Settings } from '../settings';
import type { KnownAgent } from './agents.queries';
import {
  cutFutureHeartbeats,
  type Heartbeat,
  insertHeartbeat,
  listSeenSince,
  storeHeartbeats,
} from './heartbeats.queries';

/** How often heartbeats in memory are written, in milliseconds. */
const FLUSH_MS = 1_000;
/** The most heartbeats of one unit of work. */
const FLUSH_BATCH = 5_000;
/**
 * A heartbeat may stay in memory only if the stored one keeps its agent online for at least this time, in milliseconds,
 * so that statements on stored heartbeats stay correct. Longer than a flush, and than the gap after which no agent
 * counts as silent, see {@link Continuity.runningSince}.
 */
const STORED_AHEAD_MS = 8_000;
/** The number of agents whose heartbeats may wait in memory; those of others are written at once. */
const CACHED_AGENTS = 100_000;

const NOTHING: ReadonlyMap<number, number> = new Map();

/**
 * Owns agent_heartbeats: the last heartbeat of each agent, and which agents count as online. Soft state: an instant
 * stays in memory and is written within about a second, if its loss in a crash does no harm. If only this process
 * serves the database, its next start is an interruption that gives every agent one more timeout, so the stored instant
 * must only not count as silent yet. If replicas can continue, they judge by the stored instant: if it is older than a
 * second, the new one is written before the heartbeat is answered, and only repeats within that second stay in memory.
 */
@Injectable()
export class Liveness implements OnApplicationShutdown {
  private readonly logger = new Logger('Liveness');
  /** Heartbeats that are not written yet, by agent id. */
  private pending = new Map<number, number>();
  /** Heartbeats that are being written. */
  private writing = NOTHING;
  /** Stored heartbeats. */
  private readonly stored = boundedCache<number, number>(CACHED_AGENTS);
  private lastFlush: Promise<void> = Promise.resolve();
  private readonly maxStoredAgeMs: number;

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly continuity: Continuity,
    private readonly jobs: JobRunner,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    jobs.declare('heartbeats');
    this.maxStoredAgeMs = database.endsWithProcess ? settings.heartbeatTimeoutMs - STORED_AHEAD_MS : FLUSH_MS;
    continuity.onInterruption(async (tx, { now, lastSeen }) => {
      if (lastSeen > now) await cutFutureHeartbeats(tx);
    });
  }

  /** Records the registration of a new agent, which counts as its first heartbeat. */
  async begin(tx: Transaction, agentId: number): Promise<void> {
    await insertHeartbeat(tx, agentId);
    this.rememberStored(tx, [{ agent_id: agentId, at: tx.now }]);
  }

  /** Writes heartbeats of agents at this instant, in a unit of work. Skips agents that no longer exist. */
  async record(tx: Transaction, agentIds: readonly number[]): Promise<void> {
    if (agentIds.length === 0) return;
    const heartbeats = agentIds.map((agent_id) => ({ agent_id, at: tx.now }));
    await storeHeartbeats(tx, heartbeats);
    this.rememberStored(tx, heartbeats);
  }

  /**
   * Records a heartbeat in memory only.
   * @returns false if it must be written by {@link record} instead, because the agent could look offline after a crash
   */
  note(agentId: number): boolean {
    const now = this.clock.now();
    const storedAgeMs = now - (this.stored.get(agentId) ?? Number.NEGATIVE_INFINITY);
    // Below 0 the clock was set back; then the stored instant is unknown.
    if (storedAgeMs < 0 || storedAgeMs > this.maxStoredAgeMs) return false;
    if (!this.pending.has(agentId) && this.pending.size >= CACHED_AGENTS) return false;
    this.pending.set(agentId, now);
    return true;
  }

  /**
   * Writes the heartbeats in memory, a few thousand agents in each unit of work.
   * @throws ERR_UNAVAILABLE they could not be written; the rest is kept for the next time, unless newer ones have
   * arrived
   */
  flush(): Promise<void> {
    this.lastFlush = this.lastFlush.catch(() => undefined).then(() => this.writePending());
    return this.lastFlush;
  }

  /** Returns an agent's last heartbeat, stored or in this process's memory, in ms since the epoch. */
  lastHeartbeatAt({ id, last_heartbeat_at: storedAt }: Pick<KnownAgent, 'id' | 'last_heartbeat_at'>): number {
    return Math.max(storedAt, this.writing.get(id) ?? 0, this.pending.get(id) ?? 0);
  }

  /**
   * Returns how long an agent still counts as online, in milliseconds; zero or less once it has missed its heartbeat.
   */
  aliveMs(agent: KnownAgent, now: number): number {
    // Time without a running server does not count.
    const heardAt = Math.max(this.lastHeartbeatAt(agent), this.continuity.runningSince());
    return heardAt + this.settings.heartbeatTimeoutMs - now;
  }

  /**
   * Returns the instant for statements, in ms since the epoch: agents without a stored heartbeat after it are offline.
   * Consistent with {@link aliveMs}.
   */
  silentSince(): number {
    const instant = this.clock.now() - this.settings.heartbeatTimeoutMs;
    return this.continuity.runningSince() > instant ? -1 : instant;
  }

  /** Lists the agents with a heartbeat after an instant, in ms since the epoch. */
  async seenSince(statements: Statements, instant: number): Promise<Set<number>> {
    const heard = new Set(await listSeenSince(statements, instant));
    for (const [agentId, at] of [...this.writing, ...this.pending]) if (at > instant) heard.add(agentId);
    return heard;
  }

  @Interval('heartbeats', FLUSH_MS)
  protected flushOften(): Promise<void> {
    return this.jobs.run('heartbeats', FLUSH_MS, () => this.flush(), { everywhere: true });
  }

  /** Writes the last heartbeats: all requests have been answered, and the database is still open. */
  async onApplicationShutdown(): Promise<void> {
    await this.flush().catch((error: unknown) => {
      this.logger.warn({ err: error }, 'the last heartbeats could not be written');
    });
  }

  private async writePending(): Promise<void> {
    if (this.pending.size === 0) return;
    const taken = this.pending;
    this.pending = new Map();
    this.writing = taken;
    const left = [...taken].map(([agent_id, at]): Heartbeat => ({ agent_id, at }));
    try {
      while (left.length > 0) {
        await this.write(left.slice(0, FLUSH_BATCH));
        left.splice(0, FLUSH_BATCH);
      }
    } catch (error) {
      for (const { agent_id, at } of left)
        this.pending.set(agent_id, Math.max(at, this.pending.get(agent_id) ?? at));
      throw error;
    } finally {
      this.writing = NOTHING;
    }
  }

  private write(heartbeats: readonly Heartbeat[]): Promise<void> {
    return this.database.write(async (tx) => {
      // If the clock was set back meanwhile, move instants in the future to now.
      const heard = heartbeats.map(({ agent_id, at }) => ({ agent_id, at: Math.min(at, tx.now) }));
      await storeHeartbeats(tx, heard);
      this.rememberStored(tx, heard);
    });
  }

  private rememberStored(tx: Transaction, heartbeats: readonly Heartbeat[]): void {
    tx.afterCommit(() => {
      for (const { agent_id, at } of heartbeats) this.stored.set(agent_id, at);
    });
  }
}
