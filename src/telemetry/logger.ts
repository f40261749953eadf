import { Injectable, type LoggerService } from '@nestjs/common';
import { type DestinationStream, type Logger, pino } from 'pino';
import type { Settings } from '../settings';
import { currentTrace } from '../tracing';
import { LineBudget } from './line-budget';
import { LogOutput } from './log-output';

/** Lines a second, and at once, about the server's errors. Where each request fails, they say all the same. */
const ERROR_LINES: [perSecond: number, burst: number] = [10, 100];

/**
 * Makes the process's logger: JSON lines on standard output, buffered so that a request never waits for the log. Where traces
 * are sent, each line names the one that it belongs to.
 */
export function createLogger(
  settings: Pick<Settings, 'logLevel'> & Partial<Pick<Settings, 'traces'>>,
  to?: DestinationStream,
): Logger {
  return pino(
    {
      level: settings.logLevel,
      base: undefined,
      messageKey: 'message',
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (level) => ({ level }) },
      serializers: { err: describeError },
      mixin: settings.traces && (() => currentTrace() ?? {}),
    },
    to ?? new LogOutput(),
  );
}

/** Where a logger writes, if that is ours. */
export function outputOf(logger: Logger): LogOutput | undefined {
  const output = (logger as unknown as Record<symbol, unknown>)[pino.symbols.streamSym];
  return output instanceof LogOutput ? output : undefined;
}

/** Ends the process when the log is written, or can't be, or half a second has passed. */
export function exitProcess(logger: Logger, code: number): void {
  logger.flush(() => {
    // A write that hangs in the kernel: Node would wait for its thread forever.
    if (outputOf(logger)?.hangs) process.kill(process.pid, 'SIGKILL');
    process.exit(code);
  });
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
  private readonly errors = new LineBudget(...ERROR_LINES);
  private suppressed = 0;

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
    if (level === 'error') {
      if (!this.errors.take()) {
        this.suppressed++;
        return;
      }
      if (this.suppressed > 0)
        this.logger.warn({ suppressed: this.suppressed }, 'more errors were not logged');
      this.suppressed = 0;
    }
    if (message instanceof Error) this.logger[level]({ context, err: message }, message.message);
    else if (typeof message === 'object' && message !== null)
      this.logger[level]({ context, ...message }, String(rest[0] ?? ''));
    else if (rest.length > 1) this.logger[level]({ context, detail: String(rest[0]) }, String(message));
    else this.logger[level]({ context }, String(message));
  }
}
