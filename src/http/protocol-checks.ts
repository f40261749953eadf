import { type IncomingMessage, type Server, type ServerResponse, STATUS_CODES } from 'node:http';
import type { Socket } from 'node:net';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { type ApiError, fail } from '../errors';
import { type AnswerLimits, stopReading } from './answer-limits';
import { retryHeaders, toEnvelope } from './error-filter';
import { API_HEADERS } from './security-headers';

/** Headers that decide the caller, the target or the end of a request. Proxies differ in which of two they read. */
const SINGLE_HEADERS = new Set([
  'host',
  'authorization',
  'content-type',
  'idempotency-key',
  'x-agent-id',
  'x-agent-token',
  'x-enrollment-token',
]);

/** How often a connection may ask for an upgrade: each time adds listeners until it closes. */
const MAX_UPGRADES = 4;

/**
 * Refuses in our envelope what Node or PostgreSQL would refuse in their own words, and what Node accepts but a proxy may read
 * as another request: a missing or second `Host`, a transfer coding other than `chunked`, an unknown expectation, `%00` in
 * the path, `CONNECT`. `Upgrade` is ignored, as RFC 9110 allows.
 */
export function checkProtocol(http: FastifyInstance, answers: AnswerLimits): void {
  const server = http.server as Server;
  http.addHook('onRequest', ({ raw }, reply, done) => {
    const problem = framingProblem(raw);
    if (problem) {
      // The end of its body is uncertain, so what follows can't be read as a request.
      reply.raw.shouldKeepAlive = false;
      done(problem);
    } else if (raw.url?.includes('%00')) {
      done(fail('ERR_VALIDATION', { url: 'must not hold %00' }));
    } else done();
  });
  // Without a listener Node answers these itself.
  server.on('checkExpectation', (request: IncomingMessage, response: ServerResponse) =>
    server.emit('request', request, response),
  );
  server.on('connect', (_request: IncomingMessage, socket: Socket) => {
    socket.on('error', () => socket.destroy());
    answers.whenAnswered(socket, () => answerOnSocket(socket, fail('ERR_METHOD_NOT_ALLOWED')));
  });
  // Without a listener Node answers the request, but loses what arrived after it.
  const upgrades = new WeakMap<Socket, number>();
  server.on('upgrade', (request: IncomingMessage, socket: Socket, rest: Buffer) => {
    const count = (upgrades.get(socket) ?? 0) + 1;
    upgrades.set(socket, count);
    const destroy = () => socket.destroy();
    socket.on('error', destroy);
    answers.whenAnswered(socket, () => {
      socket.removeListener('error', destroy);
      // The server adds these listeners again.
      for (const event of ['timeout', 'pause', 'resume']) socket.removeAllListeners(event);
      socket.unshift(Buffer.concat([headWithoutUpgrade(request, count < MAX_UPGRADES), rest]));
      server.emit('connection', socket);
    });
  });
}

/** Returns the error of a request whose meaning or end is ambiguous, else undefined. */
function framingProblem({ httpVersion, headers, rawHeaders }: IncomingMessage): ApiError | undefined {
  // Source: RFC 9112, sections 3.2 and 6.1.
  if (httpVersion === '1.1' && headers.host === undefined)
    return fail('ERR_VALIDATION', { host: 'is required' });
  const coding = headers['transfer-encoding'];
  if (coding !== undefined && (httpVersion !== '1.1' || coding.toLowerCase() !== 'chunked'))
    return fail('ERR_VALIDATION', { 'transfer-encoding': 'must be chunked, in HTTP/1.1' });
  if (headers.expect !== undefined && headers.expect.toLowerCase() !== '100-continue')
    return fail('ERR_VALIDATION', { expect: 'must be 100-continue' }, { status: 417 });
  let seen: Set<string> | undefined;
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const name = (rawHeaders[i] as string).toLowerCase();
    if (!SINGLE_HEADERS.has(name)) continue;
    if (seen?.has(name)) return fail('ERR_VALIDATION', { [name]: 'must not be there twice' });
    seen ??= new Set();
    seen.add(name);
  }
  return undefined;
}

/** Serializes the head of a request without the headers that ask for an upgrade. */
function headWithoutUpgrade(request: IncomingMessage, keepAlive: boolean): Buffer {
  const { method, url, httpVersion, rawHeaders } = request;
  const lines = [`${method} ${url} HTTP/${httpVersion}`];
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const [name, value] = rawHeaders.slice(i, i + 2) as [string, string];
    if (!/^(?:upgrade|http2-settings|connection)$/i.test(name)) lines.push(`${name}: ${value}`);
  }
  const closes = !keepAlive || /(?:^|,)\s*close\s*(?:,|$)/i.test(request.headers.connection ?? '');
  return Buffer.from(
    `${lines.join('\r\n')}\r\nConnection: ${closes ? 'close' : 'keep-alive'}\r\n\r\n`,
    'latin1',
  );
}

/** Answers a request that can't be parsed or did not arrive in time, and closes the connection. */
export function answerUnreadable(error: NodeJS.ErrnoException, socket: Socket, answers: AnswerLimits): void {
  if (!socket.writable || error.code === 'ECONNRESET') {
    socket.destroy();
    return;
  }
  stopReading(socket);
  // Bytes after a request that ends the connection belong to no request.
  if (error.code === 'HPE_CLOSED_CONNECTION') answers.whenAnswered(socket, () => socket.destroySoon());
  else answers.whenAnswered(socket, () => answerOnSocket(socket, unreadable(error.code)));
}

function unreadable(code: string | undefined): ApiError {
  const [status, problem] = UNREADABLE[code ?? ''] ?? [400, 'is not HTTP that can be read'];
  return fail('ERR_VALIDATION', { request: problem }, { status });
}

const UNREADABLE: Record<string, [status: number, problem: string]> = {
  HPE_HEADER_OVERFLOW: [431, 'has headers that are too large'],
  ERR_HTTP_REQUEST_TIMEOUT: [408, 'did not arrive in time'],
};

/** Writes an error directly to a socket, and closes the connection. */
function answerOnSocket(socket: Socket, error: ApiError): void {
  const body = JSON.stringify(toEnvelope(error));
  const headers = Object.entries({
    ...API_HEADERS,
    ...retryHeaders(error),
    'content-type': 'application/json; charset=utf-8',
    'content-length': Buffer.byteLength(body),
    connection: 'close',
  }).map(([name, value]) => `${name}: ${value}\r\n`);
  socket.end(`HTTP/1.1 ${error.status} ${STATUS_CODES[error.status]}\r\n${headers.join('')}\r\n${body}`);
}

/**
 * Refuses a compressed body: its unpacked size has no limit.
 * @throws ERR_VALIDATION as 415, naming the header
 */
export function refuseEncoded({ headers }: FastifyRequest): void {
  if (/^(?:identity)?$/i.test(headers['content-encoding'] ?? '')) return;
  throw fail(
    'ERR_VALIDATION',
    { 'content-encoding': 'must be absent: compressed bodies are not accepted' },
    { status: 415, message: 'Compressed bodies are not accepted.' },
  );
}
