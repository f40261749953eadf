import { Inject, Injectable, Logger, type OnApplicationShutdown } from '@nestjs/common';
import { Interval } from '@nestjs/schedule';
import { LRUCache } from 'lru-cache';
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
  listHeardSince,
  storeHeartbeats,
} from './heartbeats.queries';

/** How often heartbeats in memory are written, in milliseconds. */
const FLUSH_MS = 1_000;
/** How many of them one unit of work writes. */
const FLUSHED_AT_ONCE = 5_000;
/**
 * A heartbeat stays in memory only if what is stored keeps its agent alive for so long yet, in milliseconds: statements that judge
 * by what is stored are right meanwhile. Longer than the service may be without its database before nobody is judged, see
 * {@link Continuity.runningSince}, and than a flush takes.
 */
const STORED_AHEAD_MS = 8_000;
/** How many agents' heartbeats may wait in memory, and of how many it is known what is stored; those of others are written at once. */
const REMEMBERED_AGENTS = 100_000;

const NOTHING: ReadonlyMap<number, number> = new Map();

/**
 * Owns agent_heartbeats: when each agent was last heard of, and who counts as online by that. Soft state: an instant is kept in
 * memory and written within about a second, if losing it with the process does no harm. Where this process alone serves the database,
 * its next start is an interruption that gives every agent one more timeout, so what is stored may be old as long as it does not
 * count as silent yet. Where replicas go on, the stored instant decides at once: then one that is older than a second is written
 * before the heartbeat is answered, and only the repeats within that second are kept in memory.
 */
@Injectable()
export class Liveness implements OnApplicationShutdown {
  private readonly logger = new Logger('Liveness');
  /** When agents were heard of that is not written yet, by id. */
  private pending = new Map<number, number>();
  /** What is being written. */
  private writing = NOTHING;
  /** What is known to be stored. */
  private readonly stored = new LRUCache<number, number>({
    // By size: a cache with `max` takes the memory for all of them at once.
    maxSize: REMEMBERED_AGENTS,
    sizeCalculation: () => 1,
  });
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

  /** Records in a unit of work that agents are heard of now. Agents that are gone are left out. */
  async record(tx: Transaction, agentIds: readonly number[]): Promise<void> {
    if (agentIds.length === 0) return;
    const heartbeats = agentIds.map((agent_id) => ({ agent_id, at: tx.now }));
    await storeHeartbeats(tx, heartbeats);
    this.rememberStored(tx, heartbeats);
  }

  /**
   * Takes in, in memory alone, that an agent is heard of now.
   * @returns false if it must be recorded by {@link record} instead: if the process crashed, the agent could look dead
   */
  note(agentId: number): boolean {
    const now = this.clock.now();
    const storedAgeMs = now - (this.stored.get(agentId) ?? Number.NEGATIVE_INFINITY);
    // Below 0 the clock was set back; then what is stored is no longer known.
    if (storedAgeMs < 0 || storedAgeMs > this.maxStoredAgeMs) return false;
    if (!this.pending.has(agentId) && this.pending.size >= REMEMBERED_AGENTS) return false;
    this.pending.set(agentId, now);
    return true;
  }

  /**
   * Writes what is in memory, a few thousand agents in each unit of work.
   * @throws ERR_UNAVAILABLE it could not be written; what is left is kept for the next time, unless newer has come
   */
  flush(): Promise<void> {
    this.lastFlush = this.lastFlush.catch(() => undefined).then(() => this.writePending());
    return this.lastFlush;
  }

  /** When an agent was last heard of, in ms since the epoch, by what is stored and what this process has in memory. */
  heardAt({ id, last_heartbeat_at: storedAt }: Pick<KnownAgent, 'id' | 'last_heartbeat_at'>): number {
    return Math.max(storedAt, this.writing.get(id) ?? 0, this.pending.get(id) ?? 0);
  }

  /** How long an agent still counts as alive, in milliseconds; zero or less once it has missed its heartbeat. */
  aliveMs(agent: KnownAgent, now: number): number {
    // Time in which no server ran is not held against it.
    const heardAt = Math.max(this.heardAt(agent), this.continuity.runningSince());
    return heardAt + this.settings.heartbeatTimeoutMs - now;
  }

  /**
   * For statements: agents whose stored heartbeat is not after this instant are offline, in ms since the epoch. The same as
   * {@link aliveMs} turned round.
   */
  silentSince(): number {
    const instant = this.clock.now() - this.settings.heartbeatTimeoutMs;
    return this.continuity.runningSince() > instant ? -1 : instant;
  }

  /** Which agents were heard of after an instant, in ms since the epoch. */
  async heardSince(statements: Statements, instant: number): Promise<Set<number>> {
    const heard = new Set(await listHeardSince(statements, instant));
    for (const [agentId, at] of [...this.writing, ...this.pending]) if (at > instant) heard.add(agentId);
    return heard;
  }

  @Interval('heartbeats', FLUSH_MS)
  protected flushOften(): Promise<void> {
    return this.jobs.run('heartbeats', FLUSH_MS, () => this.flush(), { everywhere: true });
  }

  /** The last requests have been answered, and the database is still open. */
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
        await this.write(left.slice(0, FLUSHED_AT_ONCE));
        left.splice(0, FLUSHED_AT_ONCE);
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
      // If the clock was set back meanwhile, nobody was heard of in the future.
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
