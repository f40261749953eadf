/**
 * The part of the drain in which calls that were waiting at its start are answered: late enough that load balancers send the
 * next call elsewhere.
 */
const WAITING_RELEASED = { from: 0.5, to: 0.9 };
/** The part in which later calls are answered: most of their callers have been answered once already. */
const LATE_RELEASED = { from: 0.9, to: 1 };
/** Over how long after the drain the callers of empty answers return, in ms. */
const RETURN_SPREAD_MS = 2_000;

/** The state of the process between start and stop. Code that holds requests open listens for the drain and the stop. */
export class Lifecycle {
  private readonly drain = new AbortController();
  private readonly stop = new AbortController();
  private drainBeganAt = 0;
  private drainMs = 0;

  /** @param serves whether the process is a server; a command that works on the database creates nothing at its start */
  constructor(readonly serves = true) {}

  /** True once the process is told to stop: it still serves, but should get no new requests. */
  get draining(): boolean {
    return this.drain.signal.aborted;
  }

  /** True after the drain: the listener closes, and no request may wait any longer. */
  get stopping(): boolean {
    return this.stop.signal.aborted;
  }

  /** Aborts when the process is told to stop. */
  get drainSignal(): AbortSignal {
    return this.drain.signal;
  }

  /** Aborts when the drain ends. */
  get signal(): AbortSignal {
    return this.stop.signal;
  }

  /** Starts the drain: readiness is false at once. @param ms its length */
  beginDrain(ms: number): void {
    this.drainBeganAt = performance.now();
    this.drainMs = ms;
    this.drain.abort();
  }

  /**
   * Picks when to answer a call that waits during the drain, in ms of `performance.now()`; never in the past. A call that
   * waited before gets a random time in the second half of the drain, when load balancers have noticed; a later call one in
   * the last tenth. A caller that is answered at once returns at once, until its quota is used up.
   * @param waitsSince when the call arrived, in ms of `performance.now()`
   * @returns infinity if only the stop answers it, because others were already being answered when it arrived
   */
  pickReleaseTime(waitsSince: number): number {
    const { from, to } = waitsSince < this.drainBeganAt ? WAITING_RELEASED : LATE_RELEASED;
    const instantOf = (part: number) => this.drainBeganAt + this.drainMs * part;
    const releaseAt = instantOf(from + Math.random() * (to - from));
    const isTooLate = waitsSince > instantOf(from) || performance.now() >= releaseAt;
    return isTooLate ? Number.POSITIVE_INFINITY : releaseAt;
  }

  /**
   * Picks how long the caller of an empty answer should wait before it returns, in ms: until the drain is over plus a random
   * time, so that callers do not all return at once to a process that has just started.
   * @returns undefined if the process does not drain
   */
  pickReturnDelay(): number | undefined {
    if (!this.draining) return undefined;
    const restMs = this.stopping ? 0 : Math.max(0, this.drainBeganAt + this.drainMs - performance.now());
    return restMs + Math.random() * RETURN_SPREAD_MS;
  }

  /** Ends the drain: every request that waits is answered. */
  beginStop(): void {
    this.drain.abort();
    this.stop.abort();
  }
}
