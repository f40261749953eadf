import { Injectable } from '@nestjs/common';
import type { HangUpListener, HangUpSignal } from '../http/hang-up';
import { InFlight } from '../telemetry/in-flight';
import { Lifecycle } from '../telemetry/lifecycle';
import { Alarms, type Sleeper } from './alarms';

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
  woken(timeoutMs: number, hangUp: HangUpSignal): Promise<boolean>;
  /** Says that the caller has looked for tasks: the wake-up that it had is used. */
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
  private readonly lines: Lines;

  constructor(lifecycle: Lifecycle, inFlight: InFlight) {
    this.lines = new Lines(lifecycle, inFlight);
    lifecycle.drainSignal.addEventListener('abort', () => this.drainAll(), { once: true });
    lifecycle.signal.addEventListener('abort', () => this.releaseAll(), { once: true });
  }

  /** The number of claims in lines. */
  get waiting(): number {
    return new Set([...this.lines.byKind.values()].flatMap((line) => [...line])).size;
  }

  /** The kinds that claims wait for. */
  get kinds(): readonly string[] {
    return [...this.lines.byKind.keys()];
  }

  /**
   * Enters the lines of the kinds for an agent. Call it before searching for tasks, so that no task is missed in
   * between.
   */
  enlist(kinds: readonly string[], agentId: number): Waiter {
    const waiter = new WaitingClaim(this.lines, agentId);
    waiter.standFor(kinds);
    this.lines.remember(waiter);
    return waiter;
  }

  /** Wakes the claims of an agent: it may have room again, its state may have changed, or its token may be void. */
  wakeAgent(agentId: number): void {
    for (const waiter of this.lines.byAgent.get(agentId) ?? []) waiter.rouseForAgent();
  }

  /** Wakes claims for this number of ready tasks of a kind. */
  wake(kind: string, count: number): void {
    this.lines.wake(kind, count);
  }

  /** Wakes all claims: tasks may have become ready without a notification. */
  wakeAll(): void {
    for (const kind of [...this.lines.byKind.keys()]) this.wake(kind, Number.POSITIVE_INFINITY);
  }

  private drainAll(): void {
    for (const waiter of this.lines.asleep()) waiter.releaseInTime();
  }

  private releaseAll(): void {
    for (const waiter of this.lines.asleep()) waiter.rouse();
  }
}

/** Where claims stand and sleep. */
class Lines {
  readonly byKind = new Map<string, Set<WaitingClaim>>();
  /** Lists that are never changed: nearly every agent has one claim. */
  readonly byAgent = new Map<number, readonly WaitingClaim[]>();
  readonly alarms = new Alarms();

  constructor(
    readonly lifecycle: Lifecycle,
    readonly inFlight: InFlight,
  ) {}

  join(kind: string, claim: WaitingClaim): void {
    const line = this.byKind.get(kind);
    if (line) line.add(claim);
    else this.byKind.set(kind, new Set([claim]));
  }

  leave(kind: string, claim: WaitingClaim): void {
    const line = this.byKind.get(kind);
    line?.delete(claim);
    if (line?.size === 0) this.byKind.delete(kind);
  }

  wake(kind: string, count: number): void {
    let left = count;
    for (const waiter of this.byKind.get(kind) ?? []) {
      if (left <= 0) return;
      if (waiter.signal(kind)) left--;
    }
  }

  remember(claim: WaitingClaim): void {
    this.byAgent.set(claim.agentId, [...(this.byAgent.get(claim.agentId) ?? []), claim]);
  }

  forget(claim: WaitingClaim): void {
    const others = this.byAgent.get(claim.agentId)?.filter((other) => other !== claim);
    if (others?.length) this.byAgent.set(claim.agentId, others);
    else this.byAgent.delete(claim.agentId);
  }

  /** Claims that sleep now. Not the same as those in a line: one that left its lines may wait on. */
  asleep(): WaitingClaim[] {
    return [...this.byAgent.values()].flat().filter((claim) => claim.isAsleep);
  }
}

class WaitingClaim implements Waiter, Sleeper, HangUpListener {
  alarm: Sleeper['alarm'];
  private kinds: readonly string[] = [];
  /** The kind of its wake-up, for which it has not searched yet. */
  private signalledFor: string | undefined;
  /** The kind of its wake-up, for which it searches now. */
  private looksFor: string | undefined;
  /** Whether its agent changed. Not a wake-up of a line, so it is not passed on. */
  private agentChanged = false;
  /** Ends its sleep; undefined while it does not sleep. */
  private resolve: ((hasWork: boolean) => void) | undefined;
  private hangUp: HangUpSignal | undefined;
  private readonly enlistedAt = performance.now();
  private sleepsSince = 0;
  /** When it is answered in a drain, by `performance.now()`. */
  private releaseAt = Number.POSITIVE_INFINITY;

  constructor(
    private readonly lines: Lines,
    readonly agentId: number,
  ) {}

  get isAsleep(): boolean {
    return this.resolve !== undefined;
  }

  /** @returns whether this one took the wake-up of a kind: it had none yet */
  signal(kind: string): boolean {
    if (this.signalledFor !== undefined || this.lines.lifecycle.stopping) return false;
    this.signalledFor = kind;
    this.rouse();
    return true;
  }

  rouseForAgent(): void {
    if (this.lines.lifecycle.stopping) return;
    this.agentChanged = true;
    this.rouse();
  }

  private get isSignalled(): boolean {
    return this.signalledFor !== undefined || this.agentChanged;
  }

  /** Wakes it to check its state again. */
  rouse(): void {
    const { resolve, hangUp } = this;
    if (!resolve) return;
    this.resolve = undefined;
    this.lines.alarms.clear(this);
    this.lines.inFlight.endWait();
    hangUp?.endWait(performance.now() - this.sleepsSince);
    // Later: until it has begun to look, further wake-ups go to others.
    queueMicrotask(() => resolve(this.takeWakeUp()));
  }

  onAlarm(): void {
    this.rouse();
  }

  onHangUp(): void {
    this.rouse();
  }

  get isReleased(): boolean {
    return this.lines.lifecycle.stopping || performance.now() >= this.releaseAt;
  }

  /** Ends its sleep during a drain, at an instant of its own. */
  releaseInTime(): void {
    if (this.releaseAt === Number.POSITIVE_INFINITY)
      this.releaseAt = this.lines.lifecycle.pickReleaseTime(this.enlistedAt);
    if (this.releaseAt === Number.POSITIVE_INFINITY) return;
    this.lines.alarms.set(this, Math.min(this.releaseAt, this.alarm?.at ?? Number.POSITIVE_INFINITY));
  }

  woken(timeoutMs: number, hangUp: HangUpSignal): Promise<boolean> {
    this.hangUp = hangUp;
    if (this.isSignalled || this.lines.lifecycle.stopping || hangUp.aborted || timeoutMs <= 0)
      return Promise.resolve(this.takeWakeUp());
    // No async function: it would hold more memory while it waits than all the rest of this.
    return new Promise((resolve) => {
      this.lines.inFlight.beginWait();
      this.resolve = resolve;
      this.sleepsSince = performance.now();
      hangUp.beginWait(this);
      this.lines.alarms.set(this, this.sleepsSince + timeoutMs);
      if (this.lines.lifecycle.draining) this.releaseInTime();
    });
  }

  /** Begins to look for what it was woken for. @returns whether it was woken, and not hung up or released */
  private takeWakeUp(): boolean {
    if (this.lines.lifecycle.stopping || this.hangUp?.aborted || !this.isSignalled) return false;
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
      this.lines.wake(kind, 1);
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
