import { monitorEventLoopDelay } from 'node:perf_hooks';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import type { Database } from '../database/database';
import { fail } from '../errors';
import type { Settings } from '../settings';

/** How often the event loop's delay is judged, and how finely it is measured, in milliseconds. */
const WINDOW_MS = 500;
const RESOLUTION_MS = 10;

/**
 * Turns requests away before they cost anything when the process can't keep up: the event loop is late, or the writer's
 * queue is long. At the limit, what takes on new work goes (claims, enqueues); at twice the limit, everything but
 * health does, so that agents can still extend and report what they hold.
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

  /** Begins to measure; once the application is there, for what its start costs is no overload. */
  start(): void {
    this.delay.enable();
    this.timer = setInterval(() => {
      this.observe(Math.max(0, this.delay.mean / 1e6 - RESOLUTION_MS));
      this.delay.reset();
    }, WINDOW_MS).unref();
  }

  /** Takes in how late the event loop was in one window, in milliseconds. */
  observe(delayMs: number): void {
    this.delayBeforeMs = this.delayMs;
    this.delayMs = delayMs;
  }

  /** How late the event loop was on the average of the last window, in milliseconds. */
  get loopDelayMs(): number {
    return this.delayMs;
  }

  /** The load in terms of the limit: 1 is at the limit, 2 twice that. */
  get level(): number {
    return Math.max(
      // One late window is a hiccup, such as a single large request; two in a row are not.
      Math.min(this.delayMs, this.delayBeforeMs) / this.settings.maxEventLoopDelayMs,
      this.database.writeQueueDepth / this.settings.maxWriteQueue,
    );
  }

  /** @throws ERR_UNAVAILABLE where a request must be turned away; `first` marks those that go first */
  check(first: boolean): void {
    if (this.level >= (first ? 1 : 2)) {
      throw fail('ERR_UNAVAILABLE', { reason: 'overload' }, { retryAfterMs: 1_000 + Math.random() * 4_000 });
    }
  }

  /** Puts the check before everything else that a request costs. */
  guard(
    http: FastifyInstance,
    shedFirst: (request: FastifyRequest) => boolean,
    exempt: (request: FastifyRequest) => boolean,
  ): void {
    http.addHook('onRequest', (request, _reply, done) => {
      try {
        if (!exempt(request)) this.check(shedFirst(request));
        done();
      } catch (error) {
        done(error as Error);
      }
    });
  }

  close(): void {
    clearInterval(this.timer);
    this.delay.disable();
  }
}
