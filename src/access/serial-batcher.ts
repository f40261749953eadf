interface Call<Request, Answer> {
  readonly request: Request;
  readonly resolve: (answer: Answer) => void;
  readonly reject: (error: unknown) => void;
}

/** Sends requests in batches, one batch at a time: requests that arrive while a batch is being sent share the next one. */
export class SerialBatcher<Request, Answer> {
  private waiting: Call<Request, Answer>[] = [];
  private isSending = false;

  /** @param send sends a batch; returns an answer for each request, in their order */
  constructor(private readonly send: (requests: readonly Request[]) => Promise<readonly Answer[]>) {}

  /** Joins the next batch. @throws the error of its batch, or of the batch that it waited for */
  run(request: Request): Promise<Answer> {
    return new Promise((resolve, reject) => {
      this.waiting.push({ request, resolve, reject });
      if (!this.isSending) void this.sendAll();
    });
  }

  private async sendAll(): Promise<void> {
    this.isSending = true;
    while (this.waiting.length > 0) {
      const calls = this.waiting;
      this.waiting = [];
      try {
        const answers = await this.send(calls.map(({ request }) => request));
        for (const [i, call] of calls.entries()) call.resolve(answers[i] as Answer);
      } catch (error) {
        // Fail the waiting requests too: they would wait as long for the same error.
        for (const call of [...calls, ...this.waiting.splice(0)]) call.reject(error);
      }
    }
    this.isSending = false;
  }
}
