/**
 * The part of the drain in which calls that waited when it began are answered: late enough that load balancers send their
 * next call elsewhere.
 */
const WAITING_RELEASED = { from: 0.5, to: 0.9 };
/** The part for calls that came after it began: their callers have most likely been answered once already. */
const LATE_RELEASED = { from: 0.9, to: 1 };
/** Over how long after the drain callers that were answered empty come back, in milliseconds. */
const RETURN_SPREAD_MS = 2_000;

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
   * When to answer a call that waits in the drain, by `performance.now()`: never in the past. Each call that waited before
   * gets a moment of its own in the second half of the drain, when load balancers know; each that came later one in the last
   * tenth. A caller that is answered at once comes back at once, until its quota is used up.
   * @param waitsSince when the call came, by `performance.now()`
   * @returns infinity if only the stop answers it: the call came when others were being answered already
   */
  pickReleaseTime(waitsSince: number): number {
    const { from, to } = waitsSince < this.drainBeganAt ? WAITING_RELEASED : LATE_RELEASED;
    const instantOf = (part: number) => this.drainBeganAt + this.drainMs * part;
    const releaseAt = instantOf(from + Math.random() * (to - from));
    const isTooLate = waitsSince > instantOf(from) || performance.now() >= releaseAt;
    return isTooLate ? Number.POSITIVE_INFINITY : releaseAt;
  }

  /**
   * How long the caller of an empty answer should stay away, in milliseconds: until the drain is over, and a little longer, so
   * that not all come at once to a process that has just started. @returns undefined if the process does not drain
   */
  pickReturnDelay(): number | undefined {
    if (!this.draining) return undefined;
    const restMs = this.stopping ? 0 : Math.max(0, this.drainBeganAt + this.drainMs - performance.now());
    return restMs + Math.random() * RETURN_SPREAD_MS;
  }

  /** Says that the process stops: everything that waits is answered. */
  beginStop(): void {
    this.drain.abort();
    this.stop.abort();
  }
}
