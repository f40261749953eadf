/** Where the process is between start and stop. Whoever holds requests open listens for the stop. */
export class Lifecycle {
  private readonly stop = new AbortController();

  /** @param serves whether the process is a server; a command that works on the database alone makes nothing at its start */
  constructor(readonly serves = true) {}

  /** True from the moment the process was asked to stop. */
  get stopping(): boolean {
    return this.stop.signal.aborted;
  }

  /** Aborts when the process is asked to stop. */
  get signal(): AbortSignal {
    return this.stop.signal;
  }

  /** Says that the process stops: readiness goes false and long polls are answered. */
  beginStop(): void {
    this.stop.abort();
  }
}
