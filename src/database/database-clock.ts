import { Clock } from '../clock';

/**
 * The clock of a database that several processes use. Theirs may differ by hours, so each tells the time from what the
 * database said last and its own monotonic clock since: between two looks they differ by less than the look took.
 */
export class DatabaseClock extends Clock {
  /** What is to be added to the monotonic clock. */
  private offsetMs = 0;

  /** The database's present instant in milliseconds since the Unix epoch. */
  override now(): number {
    return Math.floor(performance.now() + this.offsetMs);
  }

  /**
   * Takes in what the database said. It was right at some moment between asking and hearing, so a clock that is within
   * these stays as it is, and another is moved no further than needed: a slow answer does not set it back.
   * @param instantMs what it said
   * @param askedAt when it was asked, in `performance.now()`
   */
  observe(instantMs: number, askedAt: number): void {
    const latest = instantMs - askedAt;
    const earliest = instantMs - performance.now();
    this.offsetMs = Math.min(Math.max(this.offsetMs, earliest), latest);
  }
}
