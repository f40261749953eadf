import { Clock } from '../clock';

/**
 * The clock of a database that several processes use. Their own clocks may differ by hours, so each process advances
 * the database's last time by its monotonic clock. Between two observations, processes differ by less than the
 * observation took.
 */
export class DatabaseClock extends Clock {
  /** The offset to the monotonic clock, in milliseconds. */
  private offsetMs = 0;

  /** The database's present instant in milliseconds since the Unix epoch. */
  override now(): number {
    return Math.floor(performance.now() + this.offsetMs);
  }

  /**
   * Adjusts the clock to an answer of the database. The answer was correct at some instant between the query and its
   * arrival. If the clock is within these bounds it does not change, else it moves by the smallest step: a slow answer
   * does not set it back.
   * @param instantMs the database's time
   * @param askedAt when the query was sent, in `performance.now()`
   */
  observe(instantMs: number, askedAt: number): void {
    const latest = instantMs - askedAt;
    const earliest = instantMs - performance.now();
    this.offsetMs = Math.min(Math.max(this.offsetMs, earliest), latest);
  }
}
