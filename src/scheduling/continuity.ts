import { Injectable, type OnModuleInit } from '@nestjs/common';
import { Clock } from '../clock';
import { Database } from '../database/database';
import type { Transaction } from '../database/statements';
import { selectContinuity, updateContinuity } from './continuity.queries';

/** A pause longer than this, in ms, counts as an outage: agents could not reach the server. */
const OUTAGE_MS = 5_000;

/** How often it is recorded that the service runs, in ms. */
const RECORD_INTERVAL_MS = 1_000;

/** An outage that is over, or a clock that was set back. */
export interface Interruption {
  /** The current instant, since when the service runs again, in ms since the epoch. */
  readonly now: number;
  /** The last instant at which the service is known to have run, in ms; after `now` if the clock was set back. */
  readonly lastSeen: number;
}

/** Adjusts deadlines after an interruption, in the transaction that records it. */
export type InterruptionListener = (tx: Transaction, interruption: Interruption) => Promise<void>;

/**
 * Tracks since when the service has run without an outage. Owns service_continuity. After an outage (a restart, a suspended
 * machine, a clock that jumped), deadlines that agents could not meet are extended. If the clock was set back, earlier
 * deadlines are shortened, or they would last until the clock has caught up. If several replicas serve a database, an
 * outage is a time when none of them runs or reaches the database.
 */
@Injectable()
export class Continuity implements OnModuleInit {
  private readonly listeners: InterruptionListener[] = [];
  private since: number;
  private lastSeen: number;
  private recordedAt = Number.NEGATIVE_INFINITY;
  /** The database's count of writes when it was recorded. */
  private recordedWrites = -1;
  private recording: Promise<void> | undefined;
  /** False while the service can't be recorded as running: then no agent is served. */
  private reachable = true;

  constructor(
    private readonly clock: Clock,
    private readonly database: Database,
  ) {
    this.since = this.lastSeen = clock.now();
  }

  /** Subscribes to interruptions; the listener is called once for each. Call it before the application starts. */
  onInterruption(listener: InterruptionListener): void {
    this.listeners.push(listener);
  }

  /** Reads what the last run, or other replicas, recorded, before any deadline is checked. */
  async onModuleInit(): Promise<void> {
    await this.record(0, this.database.endsWithProcess);
  }

  /**
   * Returns the instant since when the service has run without a gap, in ms since the epoch. Call it before a deadline is
   * checked. It must be called at least once a second, as the reaper does.
   */
  runningSince(): number {
    const now = this.clock.now();
    // After an outage no deadline counts until the outage is recorded and the deadlines are adjusted.
    if (now - this.lastSeen > OUTAGE_MS) return now;
    if (this.reachable) this.lastSeen = Math.max(this.lastSeen, now);
    return this.since;
  }

  /**
   * Returns whether the service has run without a gap until this unit's instant, so that the unit may enforce deadlines.
   * This detects that the process was suspended before the unit or in the middle of a job.
   */
  async isUnbroken(tx: Transaction): Promise<boolean> {
    // If other replicas record it too, this process's memory may be stale: read the row.
    if (this.database.endsWithProcess) return !isInterruption(tx.now, this.lastSeen);
    const row = await selectContinuity(tx);
    return !isInterruption(tx.now, row?.last_seen_at ?? 0);
  }

  /**
   * Records that the service runs, and detects interruptions. After one, the listeners adjust deadlines in the same
   * transaction. Call it before deadlines are checked.
   * @throws ERR_UNAVAILABLE it could not be recorded; then no deadline may be enforced either
   */
  async refresh(): Promise<void> {
    const now = this.clock.now();
    if (!isInterruption(now, this.lastSeen)) {
      // The absolute value, because the clock may have been set back a little.
      if (Math.abs(now - this.recordedAt) < RECORD_INTERVAL_MS) return;
      // A process without other replicas records it only if it also writes something else: when idle, it writes nothing.
      if (this.database.endsWithProcess && this.database.writes === this.recordedWrites) {
        this.lastSeen = Math.max(this.lastSeen, now);
        return;
      }
    }
    // One at a time: two could end in the wrong order and set `lastSeen` back.
    this.recording ??= this.record(this.lastSeen, false).finally(() => {
      this.recording = undefined;
    });
    await this.recording;
  }

  /**
   * @param lastSeen the last instant at which this replica knows the service to have run
   * @param isRestart true for a restart, which is an interruption however short
   */
  private async record(lastSeen: number, isRestart: boolean): Promise<void> {
    this.reachable = false;
    const recorded = await this.database.write(async (tx) => {
      const { now } = tx;
      // Locked, so that only one of several replicas that notice an interruption adjusts the deadlines.
      await tx.lockRows('service_continuity', [1]);
      const row = await selectContinuity(tx);
      // If the clock was set back, ignore what this process remembers: another replica may have adjusted deadlines already.
      const seen = Math.max(row?.last_seen_at ?? 0, lastSeen > now ? 0 : lastSeen);
      const interrupted = isRestart || isInterruption(now, seen);
      if (interrupted) for (const listener of this.listeners) await listener(tx, { now, lastSeen: seen });
      const since = interrupted ? now : (row?.since ?? now);
      // Overlapping units may run in any order, so never go back. Their instants differ by less than an outage.
      const latest = interrupted ? now : Math.max(now, seen);
      await updateContinuity(tx, since, latest);
      return { since, now };
    });
    this.since = recorded.since;
    this.lastSeen = recorded.now;
    this.recordedAt = recorded.now;
    this.recordedWrites = this.database.writes;
    this.reachable = true;
  }
}

/** Returns whether two instants are an outage apart, or the clock was set back by as much. */
const isInterruption = (now: number, lastSeen: number): boolean => Math.abs(now - lastSeen) > OUTAGE_MS;
