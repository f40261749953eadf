import type { ServerResponse } from 'node:http';
import type { FastifyInstance, FastifyReply } from 'fastify';
import type { ControlPlaneRequest } from './control-plane-request';

/**
 * Receives a request that ended.
 * @param isAnswered whether its whole answer was sent; if not, its client disconnected
 */
export type RequestEndListener = (
  request: ControlPlaneRequest,
  reply: FastifyReply,
  isAnswered: boolean,
) => void;

/** Replaces the status of requests whose client disconnected before the answer was sent. */
export const UNANSWERED = 'unanswered';

/** The reply of a response, until it ends. */
const OPEN = Symbol('open request');

interface Response extends ServerResponse {
  [OPEN]?: FastifyReply | undefined;
}

/**
 * Reports the end of each request, once. Fastify reports only those that were answered: clients that time out while the
 * server is slow would leave no trace, and the service would look healthy.
 */
export class RequestEnds {
  private readonly listeners: RequestEndListener[] = [];

  constructor(http: FastifyInstance) {
    const report = (response: Response, isAnswered: boolean): void => {
      const reply = response[OPEN];
      if (!reply) return;
      response[OPEN] = undefined;
      for (const listener of this.listeners) listener(reply.request, reply, isAnswered);
    };
    // One function for all requests, not a closure for each. In the next turn, when a claim has recorded how long it waited.
    function onClose(this: Response): void {
      if (this[OPEN]) setImmediate(report, this, this.writableFinished);
    }
    http.addHook('onRequest', (_request, reply, done) => {
      const response: Response = reply.raw;
      response[OPEN] = reply;
      response.on('close', onClose);
      done();
    });
    http.addHook('onResponse', (_request, reply, done) => {
      report(reply.raw, reply.raw.writableFinished);
      done();
    });
  }

  /** Subscribes to the ends of requests. */
  onEnd(listener: RequestEndListener): void {
    this.listeners.push(listener);
  }
}
