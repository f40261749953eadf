/** The part of the drain in which waiting calls are answered: late enough that load balancers send them elsewhere. */
const RELEASED_FROM = 0.5;
const RELEASED_TO = 0.9;

/** Where the process is between start and stop. Whoever holds requests open listens for the drain and the stop. */
export class Lifecycle {
  private readonly drain = new AbortController();
  private readonly stop = new AbortController();
  private drainBeganAt = 0;
  private drainMs = 0;

  /** @param serves whether the process is a server; a command that works on the database alone makes nothing at its start */
  constructor(readonly serves = true) {}

  /** True from the moment the process was asked to stop: it still serves, but should get no new requests. */
  get draining(): boolean {
    return this.drain.signal.aborted;
  }

  /** True when the drain is over: the listener closes, and nothing may wait any more. */
  get stopping(): boolean {
    return this.stop.signal.aborted;
  }

  /** Aborts when the process is asked to stop. */
  get drainSignal(): AbortSignal {
    return this.drain.signal;
  }

  /** Aborts when the drain is over. */
  get signal(): AbortSignal {
    return this.stop.signal;
  }

  /** Says that the process will stop in so many milliseconds: readiness goes false at once. */
  beginDrain(ms: number): void {
    this.drainBeganAt = performance.now();
    this.drainMs = ms;
    this.drain.abort();
  }

  /**
   * When to answer a call that waits, by `performance.now()`. Each gets another moment in the second half of the drain:
   * by then load balancers know, and its caller does not come back to this process, nor all callers at once to the next.
   */
  pickReleaseTime(): number {
    const part = RELEASED_FROM + Math.random() * (RELEASED_TO - RELEASED_FROM);
    return this.drainBeganAt + this.drainMs * part;
  }

  /** Says that the process stops: everything that waits is answered. */
  beginStop(): void {
    this.drain.abort();
    this.stop.abort();
  }
}
