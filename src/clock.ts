/** The clock of the process. Every decision by time uses it, so that tests can replace it. */
export class Clock {
  /** The current time, in ms since the Unix epoch, UTC. */
  now(): number {
    return Date.now();
  }
}

/**
 * A clock that never goes back while the process runs. It follows the machine's clock; if that is set back, it advances by
 * elapsed time until the machine's clock has caught up, so that timers are not delayed.
 */
export class SteadyClock extends Clock {
  private instantMs = Number.NEGATIVE_INFINITY;
  private readAt = 0;

  override now(): number {
    const wall = super.now();
    // Read second: a pause between the two readings must not make the clock run ahead.
    const readAt = performance.now();
    this.instantMs = Math.max(wall, this.instantMs + (readAt - this.readAt));
    this.readAt = readAt;
    return Math.floor(this.instantMs);
  }
}

/** Formats an instant for operators: RFC 3339, UTC, with milliseconds. */
export function toTimestamp(atMs: number): string;
export function toTimestamp(atMs: number | null | undefined): string | null;
export function toTimestamp(atMs: number | null | undefined): string | null {
  return atMs === null || atMs === undefined ? null : new Date(atMs).toISOString();
}
