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
    private readonly database: Database,
    /** Does all of them at once. @returns an answer for each request, in their order */
    private readonly work: (tx: Transaction, requests: Request[]) => Promise<Answer[]>,
  ) {}

  /** Joins the next unit of work; the answer comes when that is committed. */
  run(request: Request): Promise<Answer> {
    return new Promise<Answer>((resolve, reject) => {
      this.calls.push({ request, resolve, reject });
      if (this.calls.length === 1) this.write();
    });
  }

  private write(): void {
    let taken: Call<Request, Answer>[] = [];
    this.database
      .write((tx) => {
        // Taken when the unit runs, not when it was queued: whoever came in between shares it.
        taken = this.calls;
        this.calls = [];
        return this.work(
          tx,
          taken.map((call) => call.request),
        );
      })
      .then(
        (answers) => {
          for (let i = 0; i < taken.length; i++) taken[i]?.resolve(answers[i] as Answer);
        },
        (error) => {
          if (taken.length === 0) {
            taken = this.calls;
            this.calls = [];
          }
          for (const call of taken) call.reject(error);
        },
      );
  }
}
