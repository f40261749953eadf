import { Injectable } from '@nestjs/common';
import { addWait } from '../http/hang-up';
import { InFlight } from '../telemetry/in-flight';
import { Lifecycle } from '../telemetry/lifecycle';

/** A claim that waits for tasks of some kinds. */
export interface Waiter {
  /**
   * Enters the lines of exactly these kinds, and keeps its position in lines that it is in already. An unused wake-up
   * for a kind whose line it leaves goes to the next claim in that line.
   */
  standFor(kinds: readonly string[]): void;
  /**
   * Waits. Resolves to true if there may be tasks, false if the time is over, the caller hung up, or the process drains
   * or stops.
   * @throws ERR_UNAVAILABLE too many claims wait already
   */
  woken(timeoutMs: number, hangUp: AbortSignal): Promise<boolean>;
  /** Marks its wake-up as used, after the caller has searched for tasks. */
  served(): void;
  /** Leaves all lines; an unused wake-up goes to the next claim. Changes of its agent still wake it. */
  stepAside(): void;
  /** Leaves for good: nothing wakes it any more. */
  leave(): void;
  /** True if it must be answered now, with or without tasks, because the process is stopping. */
  readonly isReleased: boolean;
}

/**
 * Holds the claims that wait for tasks. Each costs a few objects and no queries. A unit that makes tasks ready calls
 * {@link wake}, which wakes as many claims as there are tasks, first come, first served.
 */
@Injectable()
export class ClaimWaiters {
  private readonly byKind = new Map<string, Set<WaitingClaim>>();
  private readonly byAgent = new Map<number, Set<WaitingClaim>>();
  /** Claims that sleep now. A claim that left its lines may still sleep. */
  private readonly asleep = new Set<WaitingClaim>();

  constructor(
    private readonly lifecycle: Lifecycle,
    private readonly inFlight: InFlight,
  ) {
    lifecycle.drainSignal.addEventListener('abort', () => this.drainAll(), { once: true });
    lifecycle.signal.addEventListener('abort', () => this.releaseAll(), { once: true });
  }

  /** The number of claims in lines. */
  get waiting(): number {
    return new Set([...this.byKind.values()].flatMap((line) => [...line])).size;
  }

  /**
   * Enters the lines of the kinds for an agent. Call it before searching for tasks, so that no task is missed in
   * between.
   */
  enlist(kinds: readonly string[], agentId: number): Waiter {
    const lines: Lines = {
      join: (kind, claim) => addTo(this.byKind, kind, claim),
      leave: (kind, claim) => removeFrom(this.byKind, kind, claim),
      passOn: (kind) => this.wake(kind, 1),
      forget: (claim) => removeFrom(this.byAgent, agentId, claim),
    };
    const waiter = new WaitingClaim(lines, this.asleep, this.lifecycle, this.inFlight);
    waiter.standFor(kinds);
    addTo(this.byAgent, agentId, waiter);
    return waiter;
  }

  /** Wakes the claims of an agent: it may have room again, its state may have changed, or its token may be void. */
  wakeAgent(agentId: number): void {
    for (const waiter of this.byAgent.get(agentId) ?? []) waiter.rouseForAgent();
  }

  /** Wakes claims for this number of ready tasks of a kind. */
  wake(kind: string, count: number): void {
    let left = count;
    for (const waiter of this.byKind.get(kind) ?? []) {
      if (left <= 0) return;
      if (waiter.signal(kind)) left--;
    }
  }

  /** Wakes all claims: tasks may have become ready without a notification. */
  wakeAll(): void {
    for (const kind of [...this.byKind.keys()]) this.wake(kind, Number.POSITIVE_INFINITY);
  }

  private drainAll(): void {
    for (const waiter of this.asleep) waiter.releaseInTime();
  }

  private releaseAll(): void {
    for (const waiter of this.asleep) waiter.rouse();
  }
}

function addTo<Key>(sets: Map<Key, Set<WaitingClaim>>, key: Key, waiter: WaitingClaim): void {
  const set = sets.get(key);
  if (set) set.add(waiter);
  else sets.set(key, new Set([waiter]));
}

function removeFrom<Key>(sets: Map<Key, Set<WaitingClaim>>, key: Key, waiter: WaitingClaim): void {
  const set = sets.get(key);
  set?.delete(waiter);
  if (set?.size === 0) sets.delete(key);
}

/** The lines that a claim can stand in, by kind. */
interface Lines {
  join(kind: string, claim: WaitingClaim): void;
  leave(kind: string, claim: WaitingClaim): void;
  /** Wakes the next in a line. */
  passOn(kind: string): void;
  /** Called when the claim no longer waits. */
  forget(claim: WaitingClaim): void;
}

class WaitingClaim implements Waiter {
  private kinds: readonly string[] = [];
  /** The kind of its wake-up, for which it has not searched yet. */
  private signalledFor: string | undefined;
  /** The kind of its wake-up, for which it searches now. */
  private looksFor: string | undefined;
  /** Whether its agent changed. Not a wake-up of a line, so it is not passed on. */
  private agentChanged = false;
  private notify: (() => void) | undefined;
  private readonly enlistedAt = performance.now();
  /** When it is answered during a drain, in `performance.now()`. */
  private releaseAt = Number.POSITIVE_INFINITY;
  private releaseTimer: NodeJS.Timeout | undefined;

  constructor(
    private readonly lines: Lines,
    private readonly asleep: Set<WaitingClaim>,
    private readonly lifecycle: Lifecycle,
    private readonly inFlight: InFlight,
  ) {}

  /** Wakes it for a kind. @returns whether it took the wake-up: false if it has one already */
  signal(kind: string): boolean {
    if (this.signalledFor !== undefined || this.lifecycle.stopping) return false;
    this.signalledFor = kind;
    this.rouse();
    return true;
  }

  rouseForAgent(): void {
    if (this.lifecycle.stopping) return;
    this.agentChanged = true;
    this.rouse();
  }

  private get isSignalled(): boolean {
    return this.signalledFor !== undefined || this.agentChanged;
  }

  /** Wakes it to check its state again. */
  rouse(): void {
    this.notify?.();
  }

  get isReleased(): boolean {
    return this.lifecycle.stopping || performance.now() >= this.releaseAt;
  }

  /** Ends its sleep during a drain, at an instant of its own. */
  releaseInTime(): void {
    if (this.releaseAt === Number.POSITIVE_INFINITY)
      this.releaseAt = this.lifecycle.pickReleaseTime(this.enlistedAt);
    if (this.releaseAt === Number.POSITIVE_INFINITY) return;
    // A timer may fire a little early by the clock that decides about the release.
    const inMs = Math.max(0, this.releaseAt - performance.now()) + 1;
    this.releaseTimer = setTimeout(() => this.rouse(), inMs);
  }

  async woken(timeoutMs: number, hangUp: AbortSignal): Promise<boolean> {
    if (!this.isSignalled && !this.lifecycle.stopping && !hangUp.aborted && timeoutMs > 0) {
      const resume = this.inFlight.wait();
      const sleepsSince = performance.now();
      let timer: NodeJS.Timeout | undefined;
      this.asleep.add(this);
      await new Promise<void>((resolve) => {
        this.notify = resolve;
        timer = setTimeout(resolve, timeoutMs);
        hangUp.addEventListener('abort', () => resolve(), { once: true });
        if (this.lifecycle.draining) this.releaseInTime();
      });
      clearTimeout(timer);
      clearTimeout(this.releaseTimer);
      this.asleep.delete(this);
      addWait(hangUp, performance.now() - sleepsSince);
      resume();
    }
    this.notify = undefined;
    if (this.lifecycle.stopping || hangUp.aborted || !this.isSignalled) return false;
    this.looksFor = this.signalledFor;
    this.signalledFor = undefined;
    this.agentChanged = false;
    return true;
  }

  served(): void {
    this.looksFor = undefined;
  }

  standFor(kinds: readonly string[]): void {
    const left = this.kinds.filter((kind) => !kinds.includes(kind));
    this.kinds = kinds;
    for (const kind of left) this.lines.leave(kind, this);
    for (const kind of kinds) this.lines.join(kind, this);
    // Moved and not copied: two claims that leave the same lines would wake each other forever.
    for (const held of ['signalledFor', 'looksFor'] as const) {
      const kind = this[held];
      if (kind === undefined || !left.includes(kind)) continue;
      this[held] = undefined;
      this.lines.passOn(kind);
    }
  }

  stepAside(): void {
    this.standFor([]);
    this.signalledFor = undefined;
    this.looksFor = undefined;
  }

  leave(): void {
    this.stepAside();
    this.lines.forget(this);
  }
}
