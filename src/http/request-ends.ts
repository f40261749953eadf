import type { ServerResponse } from 'node:http';
import type { FastifyInstance, FastifyReply } from 'fastify';
import type { ControlPlaneRequest } from './control-plane-request';

/**
 * Told of a request that ended.
 * @param isAnswered whether all of its answer was sent: if not, its caller gave up before, or the connection broke
 */
export type RequestEndListener = (
  request: ControlPlaneRequest,
  reply: FastifyReply,
  isAnswered: boolean,
) => void;

/** In place of a status, or of its class, of requests whose caller gave up before the answer was sent. */
export const UNANSWERED = 'unanswered';

const OPEN = Symbol('a request that has not ended');

interface Response extends ServerResponse {
  [OPEN]?: { readonly request: ControlPlaneRequest; readonly reply: FastifyReply };
}

/**
 * Tells of the end of each request, once. Fastify tells of those that were answered: callers whose time runs out while the
 * server is slow would leave no trace, and the service would look well.
 */
export class RequestEnds {
  private readonly listeners: RequestEndListener[] = [];

  constructor(http: FastifyInstance) {
    const tell = (response: Response, isAnswered: boolean): void => {
      const open = response[OPEN];
      if (!open) return;
      response[OPEN] = undefined;
      for (const listener of this.listeners) listener(open.request, open.reply, isAnswered);
    };
    // One function for all: it is called for every request. In the next turn, when a claim that waited knows for how long.
    function onClose(this: Response): void {
      if (this[OPEN]) setImmediate(tell, this, this.writableFinished);
    }
    http.addHook('onRequest', (request, reply, done) => {
      const response: Response = reply.raw;
      response[OPEN] = { request, reply };
      response.on('close', onClose);
      done();
    });
    http.addHook('onResponse', (_request, reply, done) => {
      tell(reply.raw, reply.raw.writableFinished);
      done();
    });
  }

  /** Calls back when a request has ended. */
  onEnd(listener: RequestEndListener): void {
    this.listeners.push(listener);
  }
}
