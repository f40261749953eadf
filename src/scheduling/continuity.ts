import { Injectable } from '@nestjs/common';
import { Clock } from '../clock';

/** A pause longer than this, in milliseconds, counts as an outage: agents could not reach a server that did not run. */
const OUTAGE_MS = 5_000;

/**
 * Knows since when the service has run without an outage. After one (a restart, a suspended machine, a clock that
 * jumped), deadlines that agents could not keep must not be held against them.
 */
@Injectable()
export class Continuity {
  private since: number;
  private lastSeen: number;

  constructor(private readonly clock: Clock) {
    this.since = this.lastSeen = clock.now();
  }

  /**
   * The instant, in ms since the epoch, from which the service has run without a gap. Whoever judges a deadline asks
   * here first; something must ask at least every second, as the reaper does.
   */
  runningSince(): number {
    const now = this.clock.now();
    if (now - this.lastSeen > OUTAGE_MS) this.since = now;
    this.lastSeen = now;
    return this.since;
  }
}
