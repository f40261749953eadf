import { ATTEMPT_OUTCOMES } from '../agents/agent.entity';

/** A check as it counts: one lease. Instants are in ms since the epoch. */
export interface Check {
  readonly agent_id: number;
  /** When its agent was told to start. */
  readonly start_at: number;
  /** When its lease ended; null while it is live. */
  readonly ended_at: number | null;
  /** How it ended; null while it is live. */
  readonly ending: CheckEnding | null;
}

/** How a check ended. */
export const CHECK_ENDINGS = [...ATTEMPT_OUTCOMES, 'revoked'] as const;
export type CheckEnding = (typeof CHECK_ENDINGS)[number];

/** A greatest number, and the first instant at which it was reached. */
export interface Peak {
  readonly count: number;
  /** In ms since the epoch; null if the number is 0. */
  readonly at: number | null;
}

export interface Peaks {
  readonly startsInASecond: Peak;
  readonly concurrent: Peak;
}

const SECOND_MS = 1_000;
const MINUTE_MS = 60_000;
const FIRST_SIZE = 16;

/** The instants of a minute, as ms from its beginning, in 2 bytes each. */
class MinuteInstants {
  private values = new Uint16Array(FIRST_SIZE);
  private count = 0;

  add(ms: number): void {
    if (this.count === this.values.length) {
      const larger = new Uint16Array(2 * this.count);
      larger.set(this.values);
      this.values = larger;
    }
    this.values[this.count++] = ms;
  }

  sorted(): Uint16Array {
    return this.values.subarray(0, this.count).sort();
  }
}

const NONE = new Uint16Array();

/** Instants of a period, added in any order and read minute by minute. */
class Instants {
  private readonly minutes: (MinuteInstants | undefined)[] = [];

  /** @param from the beginning of the period */
  constructor(private readonly from: number) {}

  add(at: number): void {
    const ms = at - this.from;
    const minute = Math.floor(ms / MINUTE_MS);
    this.minutes[minute] ??= new MinuteInstants();
    this.minutes[minute].add(ms % MINUTE_MS);
  }

  /** The instants of a minute, ascending, as ms from its beginning. */
  sortedIn(minute: number): Uint16Array {
    return this.minutes[minute]?.sorted() ?? NONE;
  }
}

/** Counts the checks of a target in a period. It holds 4 to 8 bytes for each check, whatever their order. */
export class CheckCounter {
  /** Checks that started in the period. */
  checks = 0;
  firstStart: number | null = null;
  lastStart: number | null = null;
  /** How the checks that started in the period ended. */
  readonly endings: Record<CheckEnding | 'live', number>;
  /** How many of the checks each agent was told to start. */
  readonly byAgent = new Map<number, number>();

  private readonly starts: Instants;
  private readonly ends: Instants;
  /** Checks that began before the period, and lasted into it. */
  private atBeginning = 0;

  /** @param to the end of the period, exclusive; both in ms since the epoch */
  constructor(
    private readonly from: number,
    private readonly to: number,
  ) {
    this.starts = new Instants(from);
    this.ends = new Instants(from);
    this.endings = { ...zeroes(), live: 0 };
  }

  /** Counts a check once. One that lies wholly outside the period changes nothing. */
  add({ agent_id: agentId, start_at: start, ended_at: ended, ending }: Check): void {
    if (start >= this.to) return;
    // Also a check that ended as it started, or was ended before, counts as one that ran.
    const end = ended === null ? Number.POSITIVE_INFINITY : Math.max(ended, start + 1);
    if (start < this.from) {
      if (end <= this.from) return;
      this.atBeginning++;
    } else {
      this.checks++;
      this.firstStart = Math.min(start, this.firstStart ?? start);
      this.lastStart = Math.max(start, this.lastStart ?? start);
      this.endings[ending ?? 'live']++;
      this.byAgent.set(agentId, (this.byAgent.get(agentId) ?? 0) + 1);
      this.starts.add(start);
    }
    if (end < this.to) this.ends.add(end);
  }

  /**
   * Computes the most starts in any 1,000 ms, and the most checks at once. A generator, so that the caller can serve others
   * between two minutes of the period.
   */
  *peaks(): Generator<undefined, Peaks, undefined> {
    let startsInASecond: Peak = { count: 0, at: null };
    let concurrent: Peak = { count: this.atBeginning, at: this.atBeginning === 0 ? null : this.from };
    let running = this.atBeginning;
    /** The starts of the last second. */
    let recent: number[] = [];
    for (let minute = 0; this.from + minute * MINUTE_MS < this.to; minute++) {
      const begin = this.from + minute * MINUTE_MS;
      const starts = this.starts.sortedIn(minute);
      const ends = this.ends.sortedIn(minute);
      let oldest = 0;
      let ended = 0;
      for (const ms of starts) {
        recent.push(begin + ms);
        while (begin + ms - (recent[oldest] as number) >= SECOND_MS) oldest++;
        const inSecond = recent.length - oldest;
        if (inSecond > startsInASecond.count)
          startsInASecond = { count: inSecond, at: recent[oldest] as number };
        // One that ends at an instant does not run at it.
        while (ended < ends.length && (ends[ended] as number) <= ms) ended++;
        running++;
        if (running - ended > concurrent.count) concurrent = { count: running - ended, at: begin + ms };
      }
      running -= ends.length;
      recent = recent.slice(oldest);
      yield;
    }
    return { startsInASecond, concurrent };
  }
}

const zeroes = (): Record<CheckEnding, number> =>
  Object.fromEntries(CHECK_ENDINGS.map((ending) => [ending, 0])) as Record<CheckEnding, number>;
