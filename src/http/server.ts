import { randomUUID } from 'node:crypto';
import { createServer, type IncomingMessage, type RequestListener, type Server } from 'node:http';
import type { Socket } from 'node:net';
import { FastifyAdapter } from '@nestjs/platform-fastify';
import type { FastifyReply, FastifyRequest, FastifyServerOptions } from 'fastify';
import type { Settings } from '../settings';
import type { AnswerLimits } from './answer-limits';
import { MAX_BODY } from './body-limit.decorators';
import { ErrorFilter } from './error-filter';
import { answerUnreadable } from './protocol-checks';
import { API_HEADERS } from './security-headers';

/** The largest headers of a request, in bytes: they are buffered before the caller is known. */
const MAX_HEADERS = 8 * 1024;
/** How long the headers of a request may take, in ms; its body has the rest of `CONTROL_PLANE_REQUEST_TIMEOUT_MS`. */
const HEADERS_TIMEOUT_MS = 10_000;
/** How often Node checks these two timeouts, in ms. */
const TIMEOUT_CHECK_MS = 5_000;
/** How long an idle connection is kept, in ms: longer than proxies keep theirs, so that the proxy closes first. */
const KEEP_ALIVE_MS = 75_000;
/**
 * How long a connection may be silent, in ms: longer than any request waits for its answer, so that only callers that are
 * gone or do not read are cut off.
 */
const CONNECTION_TIMEOUT_MS = 120_000;

/** Creates Nest's adapter to Fastify, on an HTTP server with our limits. */
export function createAdapter(settings: Settings, answers: AnswerLimits) {
  const adapter = new FastifyAdapter({
    bodyLimit: MAX_BODY,
    trustProxy: settings.trustProxy,
    genReqId: requestIdOf,
    requestIdHeader: false,
    return503OnClosing: false,
    forceCloseConnections: 'idle',
    connectionTimeout: CONNECTION_TIMEOUT_MS,
    keepAliveTimeout: KEEP_ALIVE_MS,
    requestTimeout: settings.requestTimeoutMs,
    clientErrorHandler: (error: NodeJS.ErrnoException, socket: Socket) =>
      answerUnreadable(error, socket, answers),
    serverFactory: (handler: RequestListener, options: FastifyServerOptions) =>
      createHttpServer(answers.guard(handler), options),
    http: {
      // Node would refuse a request without a host with a body of its own; checkProtocol refuses it in our envelope.
      requireHostHeader: false,
      maxHeaderSize: MAX_HEADERS,
      headersTimeout: Math.min(HEADERS_TIMEOUT_MS, settings.requestTimeoutMs),
      connectionsCheckingInterval: Math.min(TIMEOUT_CHECK_MS, settings.requestTimeoutMs / 2),
    },
    frameworkErrors: (error: Error, request: FastifyRequest, reply: FastifyReply) =>
      new ErrorFilter().answer(error, request, reply.headers(API_HEADERS)),
  } as ConstructorParameters<typeof FastifyAdapter>[0]);
  adapter.getHttpServer<Server>().maxConnections = settings.maxConnections;
  return adapter;
}

/** Creates the one HTTP server. Fastify itself would bind a second one to other addresses of `localhost`, without our limits. */
function createHttpServer(handler: RequestListener, options: FastifyServerOptions): Server {
  const { http, keepAliveTimeout, requestTimeout, connectionTimeout } = options as FastifyServerOptions & {
    http: object;
  };
  const server = createServer(http, handler);
  server.keepAliveTimeout = keepAliveTimeout as number;
  server.requestTimeout = requestTimeout as number;
  return server.setTimeout(connectionTimeout);
}

const ID = Buffer.alloc(36);

/** Creates an id. `randomUUID` alone returns it as a tree of 16 short strings, which takes ten times the memory. */
function newId(): string {
  ID.write(randomUUID(), 'latin1');
  return ID.toString('latin1');
}

/** The client's request id if it is safe to log, otherwise a new one. */
function requestIdOf({ headers }: Pick<IncomingMessage, 'headers'>): string {
  const given = headers['x-request-id'];
  return typeof given === 'string' && /^[\w.:/+=-]{1,128}$/.test(given) ? given : newId();
}
