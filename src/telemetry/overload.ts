import { monitorEventLoopDelay } from 'node:perf_hooks';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import type { Database } from '../database/database';
import { fail } from '../errors';
import type { Settings } from '../settings';

/** How often the event loop's delay is evaluated, and its resolution, in ms. */
const WINDOW_MS = 500;
const RESOLUTION_MS = 10;

/**
 * Sheds load: refuses requests before they cost anything if the event loop is late or the write queue is long. At the limit,
 * requests for new work (claims, enqueues) are refused; at twice the limit, everything but health. In between, agents can
 * still extend and report what they hold.
 */
export class Overload {
  private readonly delay = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  private timer: NodeJS.Timeout | undefined;
  private delayMs = 0;
  private delayBeforeMs = 0;

  constructor(
    private readonly settings: Pick<Settings, 'maxEventLoopDelayMs' | 'maxWriteQueue'>,
    private readonly database: Pick<Database, 'writeQueueDepth'>,
  ) {}

  /** Starts measuring. Call it when the application is built: the cost of its start is no overload. */
  start(): void {
    this.delay.enable();
    this.timer = setInterval(() => {
      this.observe(Math.max(0, this.delay.mean / 1e6 - RESOLUTION_MS));
      this.delay.reset();
    }, WINDOW_MS).unref();
  }

  /** Records the event loop's delay in one window, in ms. */
  observe(delayMs: number): void {
    this.delayBeforeMs = this.delayMs;
    this.delayMs = delayMs;
  }

  /** The event loop's mean delay in the last window, in ms. */
  get loopDelayMs(): number {
    return this.delayMs;
  }

  /** The load as a multiple of the limit. */
  get level(): number {
    return Math.max(
      // One late window is a hiccup, such as a single large request; two in a row are overload.
      Math.min(this.delayMs, this.delayBeforeMs) / this.settings.maxEventLoopDelayMs,
      this.database.writeQueueDepth / this.settings.maxWriteQueue,
    );
  }

  /** @param isShedFirst whether it asks for new work @throws ERR_UNAVAILABLE the request must be refused */
  check(isShedFirst: boolean): void {
    if (this.level >= (isShedFirst ? 1 : 2)) {
      throw fail('ERR_UNAVAILABLE', { reason: 'overload' }, { retryAfterMs: 1_000 + Math.random() * 4_000 });
    }
  }

  /** Adds the check as a hook. Call it before hooks that cost more. */
  guard(
    http: FastifyInstance,
    isShedFirst: (request: FastifyRequest) => boolean,
    isExempt: (request: FastifyRequest) => boolean,
  ): void {
    http.addHook('onRequest', (request, _reply, done) => {
      try {
        if (!isExempt(request)) this.check(isShedFirst(request));
        done();
      } catch (error) {
        done(error as Error);
      }
    });
  }

  /** Stops measuring. */
  close(): void {
    clearInterval(this.timer);
    this.delay.disable();
  }
}
