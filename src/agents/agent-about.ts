import { Injectable, Logger, type OnApplicationShutdown } from '@nestjs/common';
import { Interval } from '@nestjs/schedule';
import { boundedCache } from '../bounded-cache';
import { Clock } from '../clock';
import { Database } from '../database/database';
import type { Statements, Transaction } from '../database/statements';
import { JobRunner } from '../scheduling/job-runner';
import { deleteVersion, listVersions, upsertVersions } from './agent-about.queries';

/** The most characters of a version. */
export const MAX_VERSION = 128;
/** Visible ASCII characters, with spaces between them. */
const VERSION = new RegExp(`^[\\x21-\\x7e](?:[\\x20-\\x7e]{0,${MAX_VERSION - 2}}[\\x21-\\x7e])?$`);

/** How often changed versions are written, in milliseconds. */
const FLUSH_MS = 1_000;
/** The shortest time between two changes of one agent that are written, in milliseconds. */
const CHANGE_MS = 60_000;
/**
 * How often an unchanged version is written again, in milliseconds, because another replica may have stored a
 * different one.
 */
const REFRESH_MS = 600_000;
/** The number of agents whose last version is in memory, so that an unchanged version costs nothing. */
const CACHED_AGENTS = 100_000;
/** The topic of deleted versions; the message is the agent's id. */
const DELETED = 'agent-about';

/** The most versions that wait to be written; others are taken from a later call of their agent. */
const MAX_PENDING = 20_000;

interface StoredVersion {
  readonly version: string;
  readonly at: number;
}

/**
 * Owns agent_about: each agent's version, from the `User-Agent` of its claims and heartbeats. Used for display and
 * filters, never trusted. Soft state: written within about a second, at most once a minute for each agent.
 */
@Injectable()
export class AgentAbout implements OnApplicationShutdown {
  private readonly logger = new Logger('AgentAbout');
  private readonly written = boundedCache<number, StoredVersion>(CACHED_AGENTS);
  private pending = new Map<number, string>();

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly jobs: JobRunner,
  ) {
    jobs.declare('agent-about');
    database.onAnnouncement(DELETED, (id) => {
      this.written.delete(Number(id));
      this.pending.delete(Number(id));
    });
    database.onGap(() => this.written.clear());
  }

  /** Records the version of an agent whose call succeeded. Ignores texts that are too long or not visible ASCII. */
  note(agentId: number, userAgent: string | undefined): void {
    if (userAgent === undefined || !VERSION.test(userAgent)) return;
    const before = this.written.get(agentId);
    if (before) {
      const age = this.clock.now() - before.at;
      const isSame = before.version === userAgent;
      // It equals the stored version again: nothing to write.
      if (isSame) this.pending.delete(agentId);
      if (isSame && age >= 0 && age < REFRESH_MS) return;
      if (!isSame && age >= 0 && age < CHANGE_MS) return;
    }
    if (this.pending.has(agentId) || this.pending.size < MAX_PENDING) this.pending.set(agentId, userAgent);
  }

  /**
   * Writes the changed versions in one statement. @throws ERR_UNAVAILABLE they are lost until the agents' next calls
   */
  async flush(): Promise<void> {
    if (this.pending.size === 0) return;
    const changed = [...this.pending].sort(([a], [b]) => a - b);
    this.pending = new Map();
    await this.database.write(async (tx) => {
      const { now } = tx;
      await upsertVersions(
        tx,
        changed.map(([agent_id, version]) => ({ agent_id, version })),
      );
      tx.afterCommit(() => {
        for (const [agentId, version] of changed) this.written.set(agentId, { version, at: now });
      });
    });
  }

  /** Deletes an agent's version. */
  async clear(tx: Transaction, agentId: number): Promise<void> {
    await deleteVersion(tx, agentId);
    tx.announce(DELETED, String(agentId));
  }

  /** Reads the agents' versions; agents without one are left out. */
  async of(statements: Statements, agentIds: readonly number[]): Promise<Map<number, string>> {
    const rows = await listVersions(statements, agentIds);
    return new Map(rows.map((row) => [row.agent_id, row.version]));
  }

  @Interval('agent-about', FLUSH_MS)
  protected flushOften(): Promise<void> {
    return this.jobs.run('agent-about', FLUSH_MS, () => this.flush(), { everywhere: true });
  }

  async onApplicationShutdown(): Promise<void> {
    await this.flush().catch((error: unknown) => {
      this.logger.warn({ err: error }, "agents' versions could not be written");
    });
  }
}
