import { AsyncLocalStorage } from 'node:async_hooks';
import { ApiError } from '../errors';
import type { Database } from './database';
import { UnitConflict } from './database-error';
import type { Transaction } from './statements';

interface Call<Request, Answer> {
  readonly request: Request;
  readonly weight: number;
  readonly resolve: (answer: Answer) => void;
  readonly reject: (error: unknown) => void;
}

/** How a batcher combines calls. */
export interface BatcherOptions<Request> {
  /** Returns the weight of a call; 1 if left out. */
  readonly weightOf?: (request: Request) => number;
  /**
   * The most weight of one unit of work. A call of more than half of it is heavy: a unit has one such call at most, besides
   * its share of light ones, and light calls overtake heavy ones, so that they never wait for several.
   */
  readonly maxWeight?: number;
  /**
   * Calls with the same key are never in one unit, so that the later one sees the effect of the earlier. Optional.
   */
  readonly keyOf?: (request: Request) => unknown;
}

/**
 * Combines the calls that arrive while earlier ones are written into one set-based unit of work: a thousand callers
 * cost a few statements and one commit, and each is answered after it. If the unit fails, each of its calls is run
 * again alone, so that a faulty call fails alone.
 */
export class Batcher<Request, Answer> {
  private waiting: Call<Request, Answer>[] = [];
  /** Units that have taken their calls and are not answered yet. */
  private running = 0;
  /** Whether a unit is queued that has not taken its calls yet. */
  private isQueued = false;
  /** Runs a function outside the caller's unit of work. */
  private readonly outside = AsyncLocalStorage.snapshot();
  private readonly weightOf: (request: Request) => number;
  private readonly maxWeight: number;
  private readonly keyOf: ((request: Request) => unknown) | undefined;

  /** @param work handles all requests at once; returns an answer for each, in their order */
  constructor(
    private readonly database: Pick<Database, 'write' | 'insideWrite' | 'maxGatheredUnits'>,
    private readonly work: (tx: Transaction, requests: readonly Request[]) => Promise<readonly Answer[]>,
    { weightOf = () => 1, maxWeight = Number.POSITIVE_INFINITY, keyOf }: BatcherOptions<Request> = {},
  ) {
    this.weightOf = weightOf;
    this.maxWeight = maxWeight;
    this.keyOf = keyOf;
  }

  /**
   * Adds the request to the next unit of work; resolves when that is committed. Must not be called inside a unit of
   * work.
   * @throws the error of the unit that runs this request alone
   */
  run(request: Request): Promise<Answer> {
    // It would wait for a unit that can't begin before its own has ended.
    if (this.database.insideWrite) {
      return Promise.reject(new Error('run() was called inside a unit of work; use its transaction'));
    }
    return new Promise<Answer>((resolve, reject) => {
      this.waiting.push({ request, weight: this.weightOf(request), resolve, reject });
      this.startUnit();
    });
  }

  private startUnit(): void {
    if (this.isQueued || this.waiting.length === 0 || this.running >= this.database.maxGatheredUnits) return;
    this.isQueued = true;
    void this.runUnit();
  }

  private async runUnit(): Promise<void> {
    let taken: readonly Call<Request, Answer>[] | undefined;
    const take = (): readonly Call<Request, Answer>[] => {
      this.isQueued = false;
      this.running++;
      taken = this.takeCalls();
      this.outside(() => this.startUnit());
      return taken;
    };
    try {
      const answers = await this.database.write((tx) => {
        // Taken when the unit runs, not when it was queued, so that calls in between share it. Taken once: a unit
        // that is run again has the same calls.
        const calls = taken ?? take();
        return this.work(
          tx,
          calls.map((call) => call.request),
        );
      });
      for (const [i, call] of (taken ?? []).entries()) call.resolve(answers[i] as Answer);
    } catch (error) {
      await this.answerFailed(taken ?? take(), error);
    } finally {
      this.running--;
      this.startUnit();
    }
  }

  /** Takes the calls of the next unit: in the order of arrival, up to its weight. */
  private takeCalls(): readonly Call<Request, Answer>[] {
    const keys = new Set<unknown>();
    const taken: Call<Request, Answer>[] = [];
    const later: Call<Request, Answer>[] = [];
    let weight = 0;
    let hasHeavy = false;
    let isFull = false;
    for (const call of this.waiting) {
      const key = this.keyOf?.(call.request);
      const isHeavy = call.weight > this.maxWeight / 2;
      const fits = isHeavy ? !hasHeavy : weight + call.weight <= this.maxWeight;
      // Behind a light call that did not fit nobody goes first.
      isFull ||= !isHeavy && !fits;
      if (isFull || !fits || keys.has(key)) {
        later.push(call);
        if (key !== undefined) keys.add(key);
        continue;
      }
      if (key !== undefined) keys.add(key);
      if (isHeavy) hasHeavy = true;
      // What comes with a heavy call is not fewer for it.
      else weight += call.weight;
      taken.push(call);
    }
    this.waiting = later;
    return taken;
  }

  /** Runs the calls of a failed unit one by one, if one of them may be the cause. */
  private async answerFailed(calls: readonly Call<Request, Answer>[], failure: unknown): Promise<void> {
    const [only] = calls;
    // If the database is not available, or it is unknown whether the unit is stored, no call is the cause.
    const isAtFault =
      !(failure instanceof ApiError && failure.code === 'ERR_UNAVAILABLE') ||
      failure.cause instanceof UnitConflict;
    if (!isAtFault || calls.length === 1 || !only) {
      for (const call of calls) call.reject(failure);
      return;
    }
    for (const call of calls) {
      await this.database
        .write((tx) => this.work(tx, [call.request]))
        .then(([answer]) => call.resolve(answer as Answer), call.reject);
    }
  }
}

/** @returns what a call in a shared unit was answered @throws ApiError it was answered with an error */
export function answerOf<Answer>(answer: Answer | ApiError): Answer {
  if (answer instanceof ApiError) throw answer;
  return answer;
}
