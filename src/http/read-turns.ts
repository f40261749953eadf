import type { IncomingMessage, ServerResponse } from 'node:http';
import type { FastifyInstance } from 'fastify';
import { hasHungUp } from './hang-up';
import { declarationOf } from './route-declaration';

/** How many reads of operators run at once. On SQLite one blocks the others in any case. */
const MAX_READS = 8;

/** A read that waits to start. */
interface Read {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  readonly begin: () => void;
  /** True after two turns of the event loop: a request and the end of its connection arrive in one turn each. */
  isDue: boolean;
}

/**
 * Starts operators' reads in separate turns of the event loop, a few at once: disconnected clients are noticed between two
 * reads, and no page of 8 MiB is built for them.
 */
export class ReadTurns {
  private readonly waiting: Read[] = [];
  private readonly running = new Set<IncomingMessage>();

  /** Takes over when reads start. Call it after the hooks that admit callers. */
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
        this.startNext();
      });
    });
    http.addHook('onSend', (request, _reply, _payload, done) => {
      this.end(request.raw);
      done();
    });
  }

  /** Starts the read that has waited longest, if there is room; drops those whose clients have disconnected. */
  private startNext(): void {
    while (this.running.size < MAX_READS && this.waiting[0]?.isDue) {
      const { request, response, begin } = this.waiting.shift() as Read;
      if (!hasHungUp(request, response)) {
        this.running.add(request);
        begin();
        return;
      }
      // Half of the connection may still be open.
      request.destroy();
    }
  }

  private end(request: IncomingMessage): void {
    if (this.running.delete(request) && this.waiting.length > 0) afterTwoTurns(() => this.startNext());
  }
}

const afterTwoTurns = (work: () => void): void => void setImmediate(() => setImmediate(work));
