import { Injectable, type OnModuleInit } from '@nestjs/common';
import { Clock } from '../clock';
import { Database } from '../database/database';

/** A pause longer than this, in milliseconds, counts as an outage: agents could not reach a server that did not run. */
const OUTAGE_MS = 5_000;

/** How often replicas tell each other that the service runs, in milliseconds. */
const TOLD_MS = 1_000;

/**
 * Knows since when the service has run without an outage. After one (a restart, a suspended machine, a clock that
 * jumped), deadlines that agents could not keep must not be held against them. Where several replicas serve a database,
 * an outage is when none of them runs, or none reaches it; they keep service_continuity, which this owns, to know.
 */
@Injectable()
export class Continuity implements OnModuleInit {
  private since: number;
  private lastSeen: number;
  private toldAt = Number.NEGATIVE_INFINITY;
  private telling: Promise<void> | undefined;
  /** Whether the database could be told: while it can't be, nobody is served. */
  private reachable = true;

  constructor(
    private readonly clock: Clock,
    private readonly database: Database,
  ) {
    this.since = this.lastSeen = clock.now();
  }

  /** Learns from the other replicas, before anything is judged. */
  async onModuleInit(): Promise<void> {
    if (this.database.isShared) await this.tell(0);
  }

  /**
   * The instant, in ms since the epoch, from which the service has run without a gap. Whoever judges a deadline asks
   * here first; something must ask at least every second, as the reaper does.
   */
  runningSince(): number {
    const now = this.clock.now();
    if (this.database.isShared) {
      // Others may have served meanwhile; until they are asked, nobody is held to a deadline.
      if (now - this.lastSeen > OUTAGE_MS) return now;
      if (this.reachable) this.lastSeen = now;
    } else {
      if (now - this.lastSeen > OUTAGE_MS) this.since = now;
      this.lastSeen = now;
    }
    return this.since;
  }

  /**
   * Tells the other replicas that the service runs, and hears whether there was an outage. Call it before deadlines are
   * judged. @throws ERR_UNAVAILABLE the database can't be told; then nothing may be judged either
   */
  async refresh(): Promise<void> {
    if (!this.database.isShared || this.clock.now() - this.toldAt < TOLD_MS) return;
    // Two at once could end in the other order, and set the clock of this replica back.
    this.telling ??= this.tell(this.lastSeen).finally(() => {
      this.telling = undefined;
    });
    await this.telling;
  }

  /** @param lastSeen until when this replica knows the service to have run */
  private async tell(lastSeen: number): Promise<void> {
    const now = this.clock.now();
    this.reachable = false;
    const row = await this.database.write((tx) =>
      tx.first<{ since: number }>(
        `UPDATE service_continuity
         SET since = CASE WHEN $1 - ${tx.dialect.greatest('last_seen_at', '$2')} > $3 THEN CAST($1 AS bigint) ELSE since END,
           last_seen_at = ${tx.dialect.greatest('last_seen_at', '$1')}
         WHERE id = 1 RETURNING since`,
        now,
        lastSeen,
        OUTAGE_MS,
      ),
    );
    this.since = row?.since ?? now;
    this.lastSeen = now;
    this.toldAt = now;
    this.reachable = true;
  }
}
