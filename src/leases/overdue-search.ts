/**
 * How far before the earliest deadline a search begins, in ms: a unit that was running meanwhile may have granted a lease
 * by an earlier instant. Longer than a unit may run.
 */
const MARGIN_MS = 15_000;
/** How often a search begins at the start, in ms, and the largest share of time for that. */
const FULL_MS = 60_000;
const FULL_SHARE = 0.05;

/**
 * Decides at which deadline the search for overdue leases begins. Before the earliest deadline of a live lease there are
 * only index entries of leases that have ended, which an open snapshot keeps: a search from the start would read all of
 * them, four times a second. A full search now and then finds what another replica granted with a shorter lease duration.
 */
export class OverdueSearch {
  private from = 0;
  private searchedAt = 0;
  private nextFullAt = Number.NEGATIVE_INFINITY;

  /** The deadline at which a search begins, in ms since the epoch: no live lease has an earlier one. */
  get start(): number {
    return this.from;
  }

  /** Begins a search. @returns false if no lease can be overdue, and no search is needed */
  begin(now: number): boolean {
    // After the clock was set back, deadlines are earlier than before.
    if (performance.now() >= this.nextFullAt || now < this.searchedAt) this.from = 0;
    this.searchedAt = now;
    return this.from <= now;
  }

  /**
   * Records the result of a search.
   * @param earliest the earliest deadline that it found; undefined if there is no live lease
   * @param tookMs its duration
   */
  end(earliest: number | undefined, tookMs: number): void {
    if (this.from === 0) this.nextFullAt = performance.now() + Math.max(FULL_MS, tookMs / FULL_SHARE);
    this.from = Math.max(this.from, (earliest ?? this.searchedAt) - MARGIN_MS);
  }
}
