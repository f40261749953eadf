import { Injectable } from '@nestjs/common';
import { InFlight } from '../telemetry/in-flight';
import { Lifecycle } from '../telemetry/lifecycle';

/** A claim that waits for tasks of some kinds. */
export interface Waiter {
  /**
   * True when tasks may be there, false when the time is up, the caller hung up or the process stops.
   * @throws ERR_UNAVAILABLE too many wait already
   */
  woken(timeoutMs: number, hangUp: AbortSignal): Promise<boolean>;
  /** Says that the caller has looked for tasks: the wake-up that it had is used. */
  served(): void;
  /** Leaves the line; a wake-up that was not used goes to the next in it. Waiting on is possible, being woken is not. */
  leave(): void;
}

/**
 * The claims that wait for work. They cost a few objects each and no queries: whoever makes tasks ready calls
 * {@link wake}, which wakes as many as there are tasks, in the order they came.
 */
@Injectable()
export class ClaimWaiters {
  private readonly byKind = new Map<string, Set<WaitingClaim>>();
  /** Who sleeps right now. Not the same as who stands in line: one that left it may wait on. */
  private readonly asleep = new Set<WaitingClaim>();

  constructor(
    private readonly lifecycle: Lifecycle,
    private readonly inFlight: InFlight,
  ) {
    lifecycle.signal.addEventListener('abort', () => this.releaseAll(), { once: true });
  }

  /** How many claims stand in line. */
  get waiting(): number {
    return new Set([...this.byKind.values()].flatMap((line) => [...line])).size;
  }

  /** Stands in line for the kinds. Do it before looking for tasks, so that none can slip in between. */
  enlist(kinds: readonly string[]): Waiter {
    const waiter = new WaitingClaim(
      () => {
        for (const kind of kinds) {
          const line = this.byKind.get(kind);
          line?.delete(waiter);
          if (line?.size === 0) this.byKind.delete(kind);
        }
      },
      () => {
        for (const kind of kinds) this.wake(kind, 1);
      },
      this.asleep,
      this.lifecycle,
      this.inFlight,
    );
    for (const kind of kinds) {
      const line = this.byKind.get(kind);
      if (line) line.add(waiter);
      else this.byKind.set(kind, new Set([waiter]));
    }
    return waiter;
  }

  /** Tells that this many tasks of a kind became ready. */
  wake(kind: string, count: number): void {
    let left = count;
    for (const waiter of this.byKind.get(kind) ?? []) {
      if (left <= 0) return;
      if (waiter.signal()) left--;
    }
  }

  /** Has everybody look: tasks may have become ready without word of it. */
  wakeAll(): void {
    for (const kind of [...this.byKind.keys()]) this.wake(kind, Number.POSITIVE_INFINITY);
  }

  private releaseAll(): void {
    for (const waiter of this.asleep) waiter.rouse();
  }
}

class WaitingClaim implements Waiter {
  private signalled = false;
  private used = true;
  private notify: (() => void) | undefined;

  constructor(
    private readonly remove: () => void,
    private readonly passOn: () => void,
    private readonly asleep: Set<WaitingClaim>,
    private readonly lifecycle: Lifecycle,
    private readonly inFlight: InFlight,
  ) {}

  /** @returns whether this one took the wake-up: it had none yet */
  signal(): boolean {
    if (this.signalled || this.lifecycle.stopping) return false;
    this.signalled = true;
    this.rouse();
    return true;
  }

  /** Has it look again why it sleeps. */
  rouse(): void {
    this.notify?.();
  }

  async woken(timeoutMs: number, hangUp: AbortSignal): Promise<boolean> {
    if (!this.signalled && !this.lifecycle.stopping && !hangUp.aborted && timeoutMs > 0) {
      const resume = this.inFlight.wait();
      let timer: NodeJS.Timeout | undefined;
      this.asleep.add(this);
      await new Promise<void>((resolve) => {
        this.notify = resolve;
        timer = setTimeout(resolve, timeoutMs);
        hangUp.addEventListener('abort', () => resolve(), { once: true });
      });
      clearTimeout(timer);
      this.asleep.delete(this);
      resume();
    }
    this.notify = undefined;
    if (this.lifecycle.stopping || hangUp.aborted || !this.signalled) return false;
    this.signalled = false;
    this.used = false;
    return true;
  }

  served(): void {
    this.used = true;
  }

  leave(): void {
    this.remove();
    if (this.signalled || !this.used) this.passOn();
    this.signalled = false;
    this.used = true;
  }
}
