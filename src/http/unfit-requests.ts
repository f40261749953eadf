import type { IncomingMessage, ServerResponse } from 'node:http';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { fail } from '../errors';
import { toEnvelope } from './error-filter';
import { API_HEADERS } from './security-headers';

/**
 * Refuses in the envelope what Node's server would refuse in words of its own: no host, an expectation that is not met. And
 * the character that PostgreSQL can't look for, as it is refused in bodies.
 */
export function refuseUnfit(http: FastifyInstance): void {
  http.addHook('onRequest', (request, _reply, done) => {
    const { httpVersion, headers, url } = request.raw;
    // Source: RFC 9112, section 3.2.
    if (httpVersion === '1.1' && headers.host === undefined)
      done(fail('ERR_VALIDATION', { host: 'must be there' }));
    else if (url?.includes('%00')) done(fail('ERR_VALIDATION', { url: 'must not hold %00' }));
    else done();
  });
  http.server.on('checkExpectation', (_request: IncomingMessage, response: ServerResponse) => {
    const error = fail('ERR_VALIDATION', { expect: 'must be 100-continue' }, { status: 417 });
    response.writeHead(error.status, {
      ...API_HEADERS,
      'content-type': 'application/json; charset=utf-8',
      connection: 'close',
    });
    response.end(JSON.stringify(toEnvelope(error)));
  });
}

/**
 * Refuses a body that is compressed: unpacked it could be of any size.
 * @throws ERR_VALIDATION as 415, naming the header
 */
export function refuseEncoded({ headers }: FastifyRequest): void {
  if (/^(?:identity)?$/i.test(headers['content-encoding'] ?? '')) return;
  throw fail(
    'ERR_VALIDATION',
    { 'content-encoding': 'must not be there: bodies are taken as they are' },
    { status: 415, message: 'Compressed bodies are not taken.' },
  );
}
