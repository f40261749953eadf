/** Limits how many log lines a source may write: a token bucket. */
export class LineBudget {
  private left: number;
  private refilledAt: number;

  /**
   * @param perSecond lines per second in the long run
   * @param burst lines at once
   * @param now a monotonic clock, in ms
   */
  constructor(
    private readonly perSecond: number,
    private readonly burst: number,
    private readonly now: () => number = () => performance.now(),
  ) {
    this.left = burst;
    this.refilledAt = now();
  }

  /** Takes one line. @returns false if none is left */
  take(): boolean {
    const now = this.now();
    this.left = Math.min(this.burst, this.left + ((now - this.refilledAt) / 1_000) * this.perSecond);
    this.refilledAt = now;
    if (this.left < 1) return false;
    this.left--;
    return true;
  }
}
