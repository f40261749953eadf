import { Injectable, type LoggerService } from '@nestjs/common';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { type DestinationStream, destination, type Logger, pino } from 'pino';
import { clientAddress } from '../http/client-address';
import type { ControlPlaneRequest } from '../http/decorators';
import type { Settings } from '../settings';

/** Makes the process's logger: JSON lines on standard output, buffered so that a request never waits for the log. */
export function createLogger(settings: Pick<Settings, 'logLevel'>, to?: DestinationStream): Logger {
  return pino(
    {
      level: settings.logLevel,
      base: undefined,
      messageKey: 'message',
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (level) => ({ level }) },
      serializers: { err: describeError },
    },
    to ?? destination({ dest: 1, sync: false, minLength: 16_000, periodicFlush: 100 }),
  );
}

/** An error for the log, with its causes. Its other fields are left out: a database's hold what clients sent. */
function describeError(error: unknown): unknown {
  if (!(error instanceof Error)) return typeof error;
  const { name, message, stack, cause } = error;
  const { code, query } = error as { code?: unknown; query?: unknown };
  return { name, message, stack, code, query, cause: cause === undefined ? undefined : describeError(cause) };
}

/** Nest's logger over ours: `logger.log(message)` or `logger.log({facts}, message)`. */
@Injectable()
export class NestLogger implements LoggerService {
  constructor(private readonly logger: Logger) {}

  log(message: unknown, ...rest: unknown[]): void {
    // Nest tells every route and module that it maps; that is for whoever debugs.
    const context = rest.at(-1);
    const fromNest = ['RouterExplorer', 'RoutesResolver', 'InstanceLoader', 'NestFactory', 'NestApplication'];
    this.write(fromNest.includes(String(context)) ? 'debug' : 'info', message, rest);
  }
  error(message: unknown, ...rest: unknown[]): void {
    this.write('error', message, rest);
  }
  warn(message: unknown, ...rest: unknown[]): void {
    this.write('warn', message, rest);
  }
  debug(message: unknown, ...rest: unknown[]): void {
    this.write('debug', message, rest);
  }
  verbose(message: unknown, ...rest: unknown[]): void {
    this.write('trace', message, rest);
  }
  fatal(message: unknown, ...rest: unknown[]): void {
    this.write('fatal', message, rest);
  }

  private write(
    level: 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'fatal',
    message: unknown,
    rest: unknown[],
  ): void {
    const context = rest.length > 0 ? String(rest.at(-1)) : undefined;
    if (message instanceof Error) this.logger[level]({ context, err: message }, message.message);
    else if (typeof message === 'object' && message !== null)
      this.logger[level]({ context, ...message }, String(rest[0] ?? ''));
    else if (rest.length > 1) this.logger[level]({ context, detail: String(rest[0]) }, String(message));
    else this.logger[level]({ context }, String(message));
  }
}

/** The client's request id where it is fit to be written to a log, else one of ours. */
export function requestIdOf(headers: Record<string, unknown>, make: () => string): string {
  const given = headers['x-request-id'];
  return typeof given === 'string' && /^[\w.:/+=-]{1,128}$/.test(given) ? given : make();
}

const QUIET = new Set(['/healthz', '/readyz']);

/** Logs one line for each answered request: never a token, a header or a body. */
export function logRequests(http: FastifyInstance, logger: Logger): void {
  http.addHook('onRequest', (request, reply, done) => {
    reply.header('x-request-id', request.id);
    done();
  });
  http.addHook('onResponse', (request: FastifyRequest, reply, done) => {
    const { agent, operator } = request as ControlPlaneRequest;
    const route = request.routeOptions.url ?? 'unknown';
    logger[QUIET.has(route) ? 'debug' : 'info'](
      {
        request_id: request.id,
        method: request.method,
        route,
        status: reply.statusCode,
        duration_ms: Math.round(reply.elapsedTime * 100) / 100,
        address: clientAddress(request),
        agent_id: agent?.id,
        operator: operator?.name,
      },
      'request',
    );
    done();
  });
}
