import { Injectable, Logger, type OnApplicationShutdown } from '@nestjs/common';
import { Interval } from '@nestjs/schedule';
import { LRUCache } from 'lru-cache';
import { Clock } from '../clock';
import { Database } from '../database/database';
import type { Statements, Transaction } from '../database/statements';
import { JobRunner } from '../scheduling/job-runner';
import { deleteVersion, listVersions, upsertVersions } from './agent-about.queries';

/** How long what an agent says of its version may be. */
export const MAX_VERSION = 128;
/** Visible ASCII characters, with spaces between them. */
const VERSION = new RegExp(`^[\\x21-\\x7e](?:[\\x20-\\x7e]{0,${MAX_VERSION - 2}}[\\x21-\\x7e])?$`);

/** How often news is written, in milliseconds. */
const FLUSH_MS = 1_000;
/** An agent that says something else each time is written so often, in milliseconds. */
const CHANGE_MS = 60_000;
/** How often the same is written again, in milliseconds: another replica may have heard something else. It changes no row if not. */
const REFRESH_MS = 600_000;
/** The number of agents whose last answer is kept in memory, so that the same again costs nothing. */
const REMEMBERED_AGENTS = 100_000;
/** Under what it is announced that what an agent said is forgotten; the message is its id. */
const FORGOTTEN = 'agent-about';

/** The number of agents whose answers wait to be written; those of others are taken the next time. */
const MAX_PENDING = 20_000;

interface Said {
  readonly version: string;
  readonly at: number;
}

/**
 * Owns agent_about: what each agent says of its own version, by the `User-Agent` of its claims and heartbeats. Shown and filtered
 * by, never trusted. Soft state: written within about a second, once a minute for each agent.
 */
@Injectable()
export class AgentAbout implements OnApplicationShutdown {
  private readonly logger = new Logger('AgentAbout');
  private readonly written = new LRUCache<number, Said>({
    // By size: a cache with `max` takes the memory for all of them at once.
    maxSize: REMEMBERED_AGENTS,
    sizeCalculation: () => 1,
  });
  private pending = new Map<number, string>();

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly jobs: JobRunner,
  ) {
    jobs.declare('agent-about');
    database.onAnnouncement(FORGOTTEN, (id) => {
      this.written.delete(Number(id));
      this.pending.delete(Number(id));
    });
    database.onGap(() => this.written.clear());
  }

  /** Takes in what an agent that was served says. What is too long, or not visible ASCII, is ignored. */
  note(agentId: number, userAgent: string | undefined): void {
    if (userAgent === undefined || !VERSION.test(userAgent)) return;
    const before = this.written.get(agentId);
    if (before) {
      const age = this.clock.now() - before.at;
      const isSame = before.version === userAgent;
      // One that goes back to what is written has nothing to write.
      if (isSame) this.pending.delete(agentId);
      if (isSame && age >= 0 && age < REFRESH_MS) return;
      if (!isSame && age >= 0 && age < CHANGE_MS) return;
    }
    if (this.pending.has(agentId) || this.pending.size < MAX_PENDING) this.pending.set(agentId, userAgent);
  }

  /** Writes what is new since the last time, in one statement. @throws ERR_UNAVAILABLE it is heard again the next time */
  async flush(): Promise<void> {
    if (this.pending.size === 0) return;
    const news = [...this.pending].sort(([a], [b]) => a - b);
    this.pending = new Map();
    await this.database.write(async (tx) => {
      const { now } = tx;
      await upsertVersions(
        tx,
        news.map(([agent_id, version]) => ({ agent_id, version })),
      );
      tx.afterCommit(() => {
        for (const [agentId, version] of news) this.written.set(agentId, { version, at: now });
      });
    });
  }

  /** Forgets what an agent said. */
  async forget(tx: Transaction, agentId: number): Promise<void> {
    await deleteVersion(tx, agentId);
    tx.announce(FORGOTTEN, String(agentId));
  }

  /** What each of the agents says; those that say nothing are left out. */
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
