import type { IncomingMessage, ServerResponse } from 'node:http';
import type { FastifyInstance } from 'fastify';
import { hasHungUp } from './hang-up';
import { declarationOf } from './route-declaration';

/** How many reads for operators are made at once; on SQLite one blocks the others in any case. */
const MAX_READS = 8;

interface Read {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  readonly begin: () => void;
  /** Whether it has waited for two turns: a request and the end of its connection arrive in a turn each. */
  isDue: boolean;
}

/**
 * Has operators' reads begin in turns of the event loop, a few at once: between two of them it shows who has hung up, and a
 * page of 8 MiB is not made for nobody.
 */
export class ReadTurns {
  private readonly waiting: Read[] = [];
  private readonly running = new Set<IncomingMessage>();

  /** Takes over when they begin. Call it behind the hooks that admit callers. */
  guard(http: FastifyInstance): void {
    http.addHook('preHandler', (request, reply, done) => {
      const { raw } = request;
      const isRead =
        declarationOf(request)?.access.kind === 'operator' && /^(GET|HEAD)$/.test(request.method);
      if (!isRead) return done();
      const read: Read = { request: raw, response: reply.raw, begin: done, isDue: false };
      this.waiting.push(read);
      reply.raw.once('close', () => this.end(raw));
      afterTwoTurns(() => {
        read.isDue = true;
        this.next();
      });
    });
    http.addHook('onSend', (request, _reply, _payload, done) => {
      this.end(request.raw);
      done();
    });
  }

  /** Begins the read that waits for longest, if there is room; those whose callers have hung up are dropped. */
  private next(): void {
    while (this.running.size < MAX_READS && this.waiting[0]?.isDue) {
      const { request, response, begin } = this.waiting.shift() as Read;
      if (!hasHungUp(request, response)) {
        this.running.add(request);
        begin();
        return;
      }
      // It may be open still, half of it.
      request.destroy();
    }
  }

  private end(request: IncomingMessage): void {
    if (this.running.delete(request) && this.waiting.length > 0) afterTwoTurns(() => this.next());
  }
}

const afterTwoTurns = (work: () => void): void => void setImmediate(() => setImmediate(work));
