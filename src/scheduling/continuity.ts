import { Injectable, type OnModuleInit } from '@nestjs/common';
import { Clock } from '../clock';
import { Database } from '../database/database';
import type { Transaction } from '../database/statements';

/** A pause longer than this, in milliseconds, counts as an outage: agents could not reach a server that did not run. */
const OUTAGE_MS = 5_000;

/** How often it is recorded that the service runs, in milliseconds. */
const TOLD_MS = 1_000;

/** An outage that is over, or a clock that was set back. */
export interface Interruption {
  /** The present instant, from which the service runs again; in milliseconds since the epoch. */
  readonly now: number;
  /** The last instant at which the service is known to have run; after `now` if the clock was set back. */
  readonly lastSeen: number;
}

/** Adjusts, in the transaction that records an interruption, the deadlines that it made void. */
export type InterruptionListener = (tx: Transaction, interruption: Interruption) => Promise<void>;

/**
 * Knows since when the service has run without an outage. After one (a restart, a suspended machine, a clock that
 * jumped), deadlines that agents could not keep must not be held against them; if the clock was set back, deadlines from
 * before must not hold anybody until it has caught up. Owns service_continuity: if several replicas serve a database, an
 * outage is when none of them runs, or none reaches it.
 */
@Injectable()
export class Continuity implements OnModuleInit {
  private readonly listeners: InterruptionListener[] = [];
  private since: number;
  private lastSeen: number;
  private toldAt = Number.NEGATIVE_INFINITY;
  private toldWrites = -1;
  private telling: Promise<void> | undefined;
  /** Whether the database could be told: while it can't be, nobody is served. */
  private reachable = true;

  constructor(
    private readonly clock: Clock,
    private readonly database: Database,
  ) {
    this.since = this.lastSeen = clock.now();
  }

  /** Has this called once for each interruption. To be subscribed to before the application starts. */
  onInterruption(listener: InterruptionListener): void {
    this.listeners.push(listener);
  }

  /** Learns what the last run, or the other replicas, recorded, before anything is judged. */
  async onModuleInit(): Promise<void> {
    await this.tell(0, this.database.endsWithProcess);
  }

  /**
   * The instant, in ms since the epoch, from which the service has run without a gap. What judges a deadline asks
   * here first; something must ask at least every second, as the reaper does.
   */
  runningSince(): number {
    const now = this.clock.now();
    // Nobody is held to a deadline until it is recorded, and with it what has to be adjusted.
    if (now - this.lastSeen > OUTAGE_MS) return now;
    if (this.reachable) this.lastSeen = Math.max(this.lastSeen, now);
    return this.since;
  }

  /**
   * Whether the service runs without a gap up to the instant of this unit, so that the unit may hold agents to their
   * deadlines. A process that was suspended before the unit, or in the middle of a job, learns it here.
   */
  async isUnbroken(tx: Transaction): Promise<boolean> {
    // A process that is alone knows it; of what others record, its memory may be behind.
    if (this.database.endsWithProcess) return !isInterruption(tx.now, this.lastSeen);
    const row = await tx.first<{ last_seen_at: number }>(
      'SELECT last_seen_at FROM service_continuity WHERE id = 1',
    );
    return !isInterruption(tx.now, row?.last_seen_at ?? 0);
  }

  /**
   * Records that the service runs, and learns whether there was an interruption; if so, the listeners adjust what it made
   * void, in the same transaction. Call it before deadlines are judged.
   * @throws ERR_UNAVAILABLE the database can't be told; then nothing may be judged either
   */
  async refresh(): Promise<void> {
    const now = this.clock.now();
    if (!isInterruption(now, this.lastSeen)) {
      // Also if the clock was set back, by whatever little.
      if (Math.abs(now - this.toldAt) < TOLD_MS) return;
      // A process that is alone records its instants with those that it writes anyway: an idle one writes nothing.
      if (this.database.endsWithProcess && this.database.writes === this.toldWrites) {
        this.lastSeen = Math.max(this.lastSeen, now);
        return;
      }
    }
    // Two at once could end in the other order, and set the clock of this replica back.
    this.telling ??= this.tell(this.lastSeen, false).finally(() => {
      this.telling = undefined;
    });
    await this.telling;
  }

  /**
   * @param lastSeen until when this replica knows the service to have run
   * @param isRestart whether there was an interruption, however short
   */
  private async tell(lastSeen: number, isRestart: boolean): Promise<void> {
    this.reachable = false;
    const told = await this.database.write(async (tx) => {
      const { now } = tx;
      // Locked, so that of replicas that notice an interruption together one adjusts the deadlines.
      await tx.lockRows('service_continuity', [1]);
      const row = await tx.first<{ since: number; last_seen_at: number }>(
        'SELECT since, last_seen_at FROM service_continuity WHERE id = 1',
      );
      // What this process remembers of before a clock was set back, another may have adjusted already.
      const seen = Math.max(row?.last_seen_at ?? 0, lastSeen > now ? 0 : lastSeen);
      const interrupted = isRestart || isInterruption(now, seen);
      if (interrupted) for (const listener of this.listeners) await listener(tx, { now, lastSeen: seen });
      const since = interrupted ? now : (row?.since ?? now);
      // Of units that overlap the later may come first; their instants are apart by less than an interruption is long.
      const latest = interrupted ? now : Math.max(now, seen);
      await tx.run('UPDATE service_continuity SET since = $1, last_seen_at = $2 WHERE id = 1', since, latest);
      return { since, now };
    });
    this.since = told.since;
    this.lastSeen = told.now;
    this.toldAt = told.now;
    this.toldWrites = this.database.writes;
    this.reachable = true;
  }
}

/** Whether nobody was served between two instants, or the clock was set back by so much. */
const isInterruption = (now: number, lastSeen: number): boolean => Math.abs(now - lastSeen) > OUTAGE_MS;
