/**
 * How far before the earliest deadline a search begins, in ms: a unit that was running meanwhile may have granted a lease
 * by an earlier instant. A unit that waited for two locks takes 18 s at most; what takes longer, the search of all finds.
 */
const MARGIN_MS = 20_000;

/**
 * Decides at which deadline the search for overdue leases begins. Before the earliest deadline of a live lease there are
 * only index entries of leases that have ended, which an open snapshot keeps: a search from the start would read all of
 * them, four times a second.
 */
export class OverdueSearch {
  private from = 0;
  private searchedAt = 0;

  /** @param leaseDurationMs of new leases: they have no earlier deadlines */
  constructor(private readonly leaseDurationMs: number) {}

  /** The deadline at which a search begins, in ms since the epoch. */
  get start(): number {
    return this.from;
  }

  /** Begins a search. @returns false if no lease can be overdue, and no search is needed */
  begin(now: number): boolean {
    // After the clock was set back, deadlines are earlier than before.
    if (now < this.searchedAt) this.reset();
    this.searchedAt = now;
    return this.from <= now;
  }

  /**
   * Records the earliest deadline that a search has found; undefined if there is no live lease.
   * @param start where it began
   */
  end(start: number, earliest: number | undefined): void {
    // It began behind what has become known meanwhile.
    if (start > this.from) return;
    const next = this.searchedAt + this.leaseDurationMs;
    this.from = Math.max(this.from, Math.min(earliest ?? next, next) - MARGIN_MS);
  }

  /** Has the next search begin no later than at a deadline. */
  reset(deadline = 0): void {
    this.from = Math.min(this.from, deadline);
  }
}
