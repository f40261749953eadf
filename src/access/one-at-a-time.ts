interface Call<Request, Answer> {
  readonly request: Request;
  readonly resolve: (answer: Answer) => void;
  readonly reject: (error: unknown) => void;
}

/** Sends requests in batches, one at a time: those that come while one is on its way go together in the next. */
export class OneAtATime<Request, Answer> {
  private waiting: Call<Request, Answer>[] = [];
  private sending = false;

  /** @param send does a batch. @returns an answer for each request, in their order */
  constructor(private readonly send: (requests: readonly Request[]) => Promise<readonly Answer[]>) {}

  /** Joins the next batch. @throws what its batch throws, or the one that it waited for */
  run(request: Request): Promise<Answer> {
    return new Promise((resolve, reject) => {
      this.waiting.push({ request, resolve, reject });
      if (!this.sending) void this.sendAll();
    });
  }

  private async sendAll(): Promise<void> {
    this.sending = true;
    while (this.waiting.length > 0) {
      const calls = this.waiting;
      this.waiting = [];
      try {
        const answers = await this.send(calls.map(({ request }) => request));
        for (const [i, call] of calls.entries()) call.resolve(answers[i] as Answer);
      } catch (error) {
        // Those behind it would wait as long for the same.
        for (const call of [...calls, ...this.waiting.splice(0)]) call.reject(error);
      }
    }
    this.sending = false;
  }
}
