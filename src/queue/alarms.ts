/** Something that is called at an instant. */
export interface Sleeper {
  /** Its place among the alarms; owned by {@link Alarms}. */
  alarm: Alarm | undefined;
  /** Called when the instant has come. */
  onAlarm(): void;
}

interface Alarm {
  readonly sleeper: Sleeper;
  /** In ms of `performance.now()`. */
  readonly at: number;
  /** The index in the heap. */
  place: number;
}

/**
 * Calls sleepers at their instants, with one timer for all of them: a heap by instant. A timer of Node for each waiting claim would
 * take three times the memory.
 */
export class Alarms {
  private readonly heap: Alarm[] = [];
  private timer: NodeJS.Timeout | undefined;
  private timerAt = Number.POSITIVE_INFINITY;

  /** How many sleepers have an alarm. */
  get size(): number {
    return this.heap.length;
  }

  /** Has the sleeper called at an instant, in ms of `performance.now()`, in place of the one before. */
  set(sleeper: Sleeper, at: number): void {
    this.clear(sleeper);
    const alarm = { sleeper, at, place: this.heap.length };
    sleeper.alarm = alarm;
    this.heap.push(alarm);
    this.moveUp(alarm);
    this.arm();
  }

  /** Has the sleeper not called. */
  clear(sleeper: Sleeper): void {
    const { alarm } = sleeper;
    if (!alarm) return;
    sleeper.alarm = undefined;
    const last = this.heap.pop() as Alarm;
    if (this.heap.length === 0) this.disarm();
    if (last === alarm) return;
    this.put(last, alarm.place);
    this.moveUp(last);
    this.moveDown(last);
  }

  private ring(): void {
    this.disarm();
    const now = performance.now();
    for (let [first] = this.heap; first && first.at <= now; [first] = this.heap) {
      this.clear(first.sleeper);
      first.sleeper.onAlarm();
    }
    this.arm();
  }

  /** Sets the timer for the first alarm. One that is set for an earlier instant stays, and sets it again. */
  private arm(): void {
    const [first] = this.heap;
    if (!first || first.at >= this.timerAt) return;
    this.disarm();
    this.timerAt = first.at;
    // A timer may come a little early by this clock.
    this.timer = setTimeout(() => this.ring(), Math.max(0, first.at - performance.now()) + 1);
  }

  private disarm(): void {
    clearTimeout(this.timer);
    this.timer = undefined;
    this.timerAt = Number.POSITIVE_INFINITY;
  }

  private put(alarm: Alarm, place: number): void {
    this.heap[place] = alarm;
    alarm.place = place;
  }

  private moveUp(alarm: Alarm): void {
    while (alarm.place > 0) {
      const { place } = alarm;
      const above = this.heap[(place - 1) >> 1] as Alarm;
      if (above.at <= alarm.at) return;
      this.put(alarm, above.place);
      this.put(above, place);
    }
  }

  private moveDown(alarm: Alarm): void {
    while (true) {
      const { place } = alarm;
      const left = this.heap[2 * place + 1];
      const right = this.heap[2 * place + 2];
      const below = right && left && right.at < left.at ? right : left;
      if (!below || below.at >= alarm.at) return;
      this.put(alarm, below.place);
      this.put(below, place);
    }
  }
}
