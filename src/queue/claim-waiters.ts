import { Injectable } from '@nestjs/common';
import { addWait } from '../http/hang-up';
import { InFlight } from '../telemetry/in-flight';
import { Lifecycle } from '../telemetry/lifecycle';

/** A claim that waits for tasks of some kinds. */
export interface Waiter {
  /**
   * Stands in line for these kinds and no others, keeping its place where it stands already. A wake-up that was not used and was
   * for a kind that it leaves goes to the next in that line, and to nobody else.
   */
  standFor(kinds: readonly string[]): void;
  /**
   * True when tasks may be there, false when the time is up, the caller hung up or the process drains or stops.
   * @throws ERR_UNAVAILABLE too many wait already
   */
  woken(timeoutMs: number, hangUp: AbortSignal): Promise<boolean>;
  /** Says that the caller has looked for tasks: the wake-up that it had is used. */
  served(): void;
  /** Leaves the lines; a wake-up that was not used goes to the next in them. What changes with its agent still wakes it. */
  stepAside(): void;
  /** Steps aside for good: nothing wakes it any more. */
  leave(): void;
  /** True if it must be answered now, work or not: the process stops. */
  readonly isReleased: boolean;
}

/**
 * The claims that wait for work. They cost a few objects each and no queries: what makes tasks ready calls
 * {@link wake}, which wakes as many as there are tasks, in the order they came.
 */
@Injectable()
export class ClaimWaiters {
  private readonly byKind = new Map<string, Set<WaitingClaim>>();
  private readonly byAgent = new Map<number, Set<WaitingClaim>>();
  /** Claims that sleep now. Not the same as those in a line: one that left its lines may wait on. */
  private readonly asleep = new Set<WaitingClaim>();

  constructor(
    private readonly lifecycle: Lifecycle,
    private readonly inFlight: InFlight,
  ) {
    lifecycle.drainSignal.addEventListener('abort', () => this.drainAll(), { once: true });
    lifecycle.signal.addEventListener('abort', () => this.releaseAll(), { once: true });
  }

  /** How many claims stand in line. */
  get waiting(): number {
    return new Set([...this.byKind.values()].flatMap((line) => [...line])).size;
  }

  /**
   * Stands in line for the kinds, on behalf of an agent. Do it before looking for tasks, so that none can slip in between.
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

  /** Has the claims of an agent look again: it may hold more than before, what it may do may have changed, or its token be void. */
  wakeAgent(agentId: number): void {
    for (const waiter of this.byAgent.get(agentId) ?? []) waiter.rouseForAgent();
  }

  /** Tells that this many tasks of a kind became ready. */
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
  /** Is told when the claim waits for nothing any more. */
  forget(claim: WaitingClaim): void;
}

class WaitingClaim implements Waiter {
  private kinds: readonly string[] = [];
  /** The kind whose wake-up it has, and has not looked for yet. */
  private signalledFor: string | undefined;
  /** The kind whose wake-up it is looking for. */
  private looksFor: string | undefined;
  /** Whether something changed with its agent: no wake-up of a line's, so nobody else is to have it. */
  private agentChanged = false;
  private notify: (() => void) | undefined;
  private readonly enlistedAt = performance.now();
  /** When it is answered in a drain, by `performance.now()`. */
  private releaseAt = Number.POSITIVE_INFINITY;
  private releaseTimer: NodeJS.Timeout | undefined;

  constructor(
    private readonly lines: Lines,
    private readonly asleep: Set<WaitingClaim>,
    private readonly lifecycle: Lifecycle,
    private readonly inFlight: InFlight,
  ) {}

  /** @returns whether this one took the wake-up of a kind: it had none yet */
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

  /** Has it look again why it sleeps. */
  rouse(): void {
    this.notify?.();
  }

  get isReleased(): boolean {
    return this.lifecycle.stopping || performance.now() >= this.releaseAt;
  }

  /** In a drain, ends its sleep at a moment of its own. */
  releaseInTime(): void {
    if (this.releaseAt === Number.POSITIVE_INFINITY)
      this.releaseAt = this.lifecycle.pickReleaseTime(this.enlistedAt);
    if (this.releaseAt === Number.POSITIVE_INFINITY) return;
    // A timer may come a little early, by the clock that the release is judged by.
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
    // Moved and not copied: two that leave the same lines would wake each other forever.
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
