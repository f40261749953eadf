import type { FastifyInstance } from 'fastify';
import { PROOF_HEADER } from './server-proof';

/**
 * Sets `Connection` on each answer: `close` while the process drains, so that the caller's next request goes to another one;
 * `keep-alive` to HTTP/1.0, whose clients would wait for the end of the connection otherwise.
 */
export function setConnectionHeader(http: FastifyInstance, isDraining: () => boolean): void {
  http.addHook('onSend', ({ raw }, reply, _payload, done) => {
    // The command line sends its call on the connection whose server has proven itself, so that one stays open.
    const closes = isDraining() && !reply.hasHeader(PROOF_HEADER);
    if (closes || !reply.raw.shouldKeepAlive) reply.header('connection', 'close');
    // Fastify would close after a body that it refuses, and a caller still sending it would miss the answer.
    else if (raw.httpVersion === '1.0' || reply.hasHeader('connection'))
      reply.header('connection', 'keep-alive');
    done();
  });
}
