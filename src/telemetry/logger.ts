import { Injectable, type LoggerService } from '@nestjs/common';
import { type DestinationStream, type Logger, pino } from 'pino';
import type { Settings } from '../settings';
import { currentTrace } from '../tracing';
import { LineBudget } from './line-budget';
import { LogOutput } from './log-output';

/** Log lines per second, and at once, about the server's errors: if every request fails, they all say the same. */
const ERROR_LINES: [perSecond: number, burst: number] = [10, 100];

/**
 * Creates the process's logger: JSON lines on standard output, buffered so that a request never waits for the log. If traces
 * are sent, each line names its trace.
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

/** The output of a logger; undefined if it is not a {@link LogOutput}. */
export function outputOf(logger: Logger): LogOutput | undefined {
  const output = (logger as unknown as Record<symbol, unknown>)[pino.symbols.streamSym];
  return output instanceof LogOutput ? output : undefined;
}

/** Ends the process once the log is written, can't be written, or 500 ms have passed. */
export function exitProcess(logger: Logger, code: number): void {
  logger.flush(() => {
    // If a write hangs in the kernel, Node would wait for its thread forever.
    if (outputOf(logger)?.hangs) process.kill(process.pid, 'SIGKILL');
    process.exit(code);
  });
}

/** Describes an error and its causes for the log, without its other fields: a database error's hold what clients sent. */
function describeError(error: unknown): unknown {
  if (!(error instanceof Error)) return typeof error;
  const { name, message, stack, cause } = error;
  const { code, query } = error as { code?: unknown; query?: unknown };
  return { name, message, stack, code, query, cause: cause === undefined ? undefined : describeError(cause) };
}

/** Nest's logger on top of pino: `logger.log(message)` or `logger.log({facts}, message)`. */
@Injectable()
export class NestLogger implements LoggerService {
  private readonly errors = new LineBudget(...ERROR_LINES);
  private suppressed = 0;

  constructor(private readonly logger: Logger) {}

  log(message: unknown, ...rest: unknown[]): void {
    // Nest logs every route and module that it maps; that is for debugging.
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
