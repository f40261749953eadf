import type { Database } from './database';
import type { Transaction } from './statements';

interface Call<Request, Answer> {
  request: Request;
  resolve: (answer: Answer) => void;
  reject: (error: unknown) => void;
}

/**
 * Gathers the calls that arrive while the writer is busy into one set-based unit of work. For changes that are many,
 * small and alike (heartbeats): a thousand callers cost one statement, and each is answered after its commit.
 */
export class CoalescedWrite<Request, Answer> {
  private calls: Call<Request, Answer>[] = [];

  constructor(
    private readonly database: Pick<Database, 'write' | 'insideWrite'>,
    /** Does all of them at once. @returns an answer for each request, in their order */
    private readonly work: (tx: Transaction, requests: Request[]) => Promise<Answer[]>,
  ) {}

  /** Joins the next unit of work; the answer comes when that is committed. Not to be called inside a unit of work. */
  run(request: Request): Promise<Answer> {
    // It would wait for a unit that can't begin before its own has ended.
    if (this.database.insideWrite) {
      return Promise.reject(
        new Error('run() was called inside a unit of work; use the transaction that is there'),
      );
    }
    return new Promise<Answer>((resolve, reject) => {
      this.calls.push({ request, resolve, reject });
      if (this.calls.length === 1) this.write();
    });
  }

  private write(): void {
    let taken: Call<Request, Answer>[] | undefined;
    const take = (): Call<Request, Answer>[] => {
      taken = this.calls;
      this.calls = [];
      return taken;
    };
    this.database
      .write((tx) => {
        // Taken when the unit runs, not when it was queued: whoever came in between shares it. Taken once: where a
        // transaction is run again, it is for the same callers.
        const calls = taken ?? take();
        return this.work(
          tx,
          calls.map((call) => call.request),
        );
      })
      .then(
        (answers) => {
          for (const [i, call] of (taken ?? []).entries()) call.resolve(answers[i] as Answer);
        },
        (error) => {
          for (const call of taken ?? take()) call.reject(error);
        },
      );
  }
}
