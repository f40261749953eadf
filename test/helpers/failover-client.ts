import { appendFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Json } from './api';
import { ADMIN_TOKEN, type Credentials, credentialsOf, ServerClient } from './harness';
import type { Ended, Operation, Requests, Sent } from './history-checker';

/** How a call is sent. */
interface Route {
  readonly method?: 'PUT';
  readonly isOperators?: true;
  path(request: Json): string;
  body?(request: Json): object | undefined;
}

const ROUTES: Record<Operation, Route> = {
  enqueue: { isOperators: true, path: () => '/v1/tasks' },
  claim: { path: () => '/claim' },
  extend: { path: () => '/extend' },
  report: { path: () => '/report' },
  cancel: { isOperators: true, path: ({ task_id }) => `/v1/tasks/${task_id}/cancel`, body: () => undefined },
  limit: {
    ...{ method: 'PUT', isOperators: true, path: () => '/v1/concurrency/limits' },
    body: (request) => ({ limits: [request] }),
  },
  metrics: { path: () => '/metrics' },
};

/** How long an answer is waited for, and how soon another replica is asked, in milliseconds. */
const ANSWER_MS = 20_000;
const PAUSE_MS = 50;

let tries = 0;

/** A client of several replicas that asks another when one does not answer or is unavailable, and logs every try to a file. */
export class FailoverClient {
  private next: number;

  /**
   * @param urls the replicas; they may change while it runs
   * @param goOn whether a call that was not answered is to be tried again
   */
  constructor(
    private readonly urls: () => readonly string[],
    private readonly file: string,
    private readonly goOn: () => boolean,
    readonly who: Credentials,
  ) {
    this.next = who.agent_id;
  }

  /** Calls until it is answered with something final. @returns undefined where it was not, or was refused */
  async call<Op extends Operation>(op: Op, request: Requests[Op], key?: string): Promise<Json> {
    // Now and then elsewhere, so that what one replica began another ends.
    if (Math.random() < 1 / 8) this.next++;
    do {
      const { status, body } = await this.try(op, request, key);
      if (status !== null && status < 300) return body;
      if (status !== null && status < 500 && !body.retryable) return undefined;
      this.next++;
      await sleep(PAUSE_MS);
    } while (this.goOn());
    return undefined;
  }

  private async try<Op extends Operation>(op: Op, request: Requests[Op], key?: string): Promise<Ended> {
    const urls = this.urls();
    const replica = urls[this.next % urls.length] as string;
    const id = ++tries;
    this.log({ type: 'sent', id, at: performance.now(), replica, op, key, request });
    const ended: Ended = { type: 'ended', id, at: 0, status: null, retryAfter: null, body: null };
    try {
      const { method = 'POST', isOperators, path, body: bodyOf = () => request } = ROUTES[op];
      const { status, headers, body } = await new ServerClient(replica).request(method, path(request), {
        headers: {
          ...(isOperators ? { authorization: `Bearer ${ADMIN_TOKEN}` } : credentialsOf(this.who)),
          ...(key === undefined ? {} : { 'idempotency-key': key }),
        },
        body: bodyOf(request),
        signal: AbortSignal.timeout(ANSWER_MS),
      });
      Object.assign(ended, {
        ...{ status, retryAfter: headers.get('retry-after') },
        body: op === 'cancel' && status < 300 ? { state: body.state } : body,
      });
    } catch {
      // No answer, or half of one: nobody knows.
    }
    ended.at = performance.now();
    this.log(ended);
    return ended;
  }

  private log(entry: Sent | Ended): void {
    appendFileSync(this.file, `${JSON.stringify(entry)}\n`);
  }
}
