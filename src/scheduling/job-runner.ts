import { type BeforeApplicationShutdown, Injectable, Logger } from '@nestjs/common';
import { Clock } from '../clock';
import { Database } from '../database/database';
import {
  type CounterInstrument,
  type GaugeInstrument,
  type HistogramInstrument,
  Meter,
} from '../telemetry/meter';
import { inTraceOfItsOwn } from '../tracing';

/** What is known of one job since the process started. */
interface JobRecord {
  lastStartedAt: number | null;
  lastError: string | null;
  /** How many runs have failed since the last one that did not. */
  failedInARow: number;
}

/** Upper bounds in seconds. */
const DURATION_BUCKETS = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300];

/** Bounds of what one batch of a purge takes, so that no request waits long behind it. */
const BATCH_TARGET_MS = 50;
const BATCH_MIN = 50;
const BATCH_MAX = 5_000;

/** How many rows the next batch takes, so that it takes about 50 ms, given how long the last one took. */
export function nextBatchSize(limit: number, tookMs: number): number {
  const fitting = (limit * BATCH_TARGET_MS) / Math.max(1, tookMs);
  return Math.round(Math.min(BATCH_MAX, Math.max(BATCH_MIN, fitting)));
}

/**
 * Runs every scheduled job: one run of a job at a time, none while the process stops, with lag, duration and failures
 * recorded. A job that fails is logged and comes again at its next tick.
 */
@Injectable()
export class JobRunner implements BeforeApplicationShutdown {
  private readonly logger = new Logger('Jobs');
  private readonly records = new Map<string, JobRecord>();
  private readonly running = new Map<string, Promise<void>>();
  private readonly results: CounterInstrument<'job_name' | 'result'>;
  private readonly durations: HistogramInstrument<'job_name'>;
  private readonly lag: GaugeInstrument<'job_name'>;
  private readonly succeededAt: GaugeInstrument<'job_name'>;
  private stopping = false;

  constructor(
    private readonly clock: Clock,
    private readonly database: Database,
    meter: Meter,
  ) {
    // Not `job`: that is what Prometheus calls where it scraped.
    const labels = ['job_name'] as const;
    this.results = meter.counter({
      name: 'job_runs_total',
      help: 'Runs of scheduled jobs; skipped ones came while the one before, or another replica, was at it.',
      labels: ['job_name', 'result'],
    });
    this.durations = meter.histogram({
      name: 'job_duration_seconds',
      help: 'How long runs of scheduled jobs took.',
      labels,
      buckets: DURATION_BUCKETS,
    });
    this.lag = meter.gauge({
      name: 'job_lag_seconds',
      help: 'How late the last run of a scheduled job began.',
      labels,
    });
    this.succeededAt = meter.gauge({
      name: 'job_last_success_timestamp_seconds',
      help: 'When a scheduled job last ended well, in seconds since the epoch.',
      labels,
    });
  }

  /** Says that there is such a job, so that its metrics begin before its first run: the first failure is an increase then. */
  declare(name: string): void {
    this.recordOf(name);
  }

  /**
   * Runs a job unless it is running already, here or at another replica. Never throws.
   * @param everyMs the interval that the job is meant to come at, for its lag
   * @param options.everywhere whether every replica may run it at the same time
   */
  async run(
    name: string,
    everyMs: number,
    job: () => Promise<void>,
    { everywhere = false }: { everywhere?: boolean } = {},
  ): Promise<void> {
    const record = this.recordOf(name);
    if (this.stopping) return;
    if (this.running.has(name)) {
      this.skip(name);
      return;
    }
    const startedAt = this.clock.now();
    const dueAt = record.lastStartedAt === null ? startedAt : record.lastStartedAt + everyMs;
    record.lastStartedAt = startedAt;
    this.lag.set({ job_name: name }, Math.max(0, startedAt - dueAt) / 1_000);
    const run = this.attempt(name, record, async () => {
      if (!everywhere) return this.database.exclusively(name, job);
      await job();
      return true;
    });
    this.running.set(name, run);
    await run;
    this.running.delete(name);
  }

  /**
   * Deletes in batches that adapt to take about 50 ms each, until a batch finds less than it asked for.
   * @param batch deletes up to `limit` rows in one transaction and tells how many
   * @returns how many rows went
   */
  async purge(batch: (limit: number) => Promise<number>): Promise<number> {
    let limit = 500;
    let total = 0;
    while (!this.stopping) {
      const startedAt = performance.now();
      const gone = await batch(limit);
      total += gone;
      if (gone < limit) break;
      limit = nextBatchSize(limit, performance.now() - startedAt);
    }
    return total;
  }

  /** Waits for the runs that are going; none begins after. */
  async stop(): Promise<void> {
    this.stopping = true;
    await Promise.all(this.running.values());
  }

  beforeApplicationShutdown(): Promise<void> {
    return this.stop();
  }

  private skip(name: string): void {
    this.results.add({ job_name: name, result: 'skipped' });
  }

  /** @param job tells whether it was done: not if another replica is at it */
  private async attempt(name: string, record: JobRecord, job: () => Promise<boolean>): Promise<void> {
    const startedAt = performance.now();
    try {
      const isDone = await inTraceOfItsOwn(`job ${name}`, job);
      if (!isDone) {
        this.skip(name);
        return;
      }
      if (record.failedInARow > 0)
        this.logger.log({ job: name, failed: record.failedInARow }, 'a job that failed is well again');
      record.failedInARow = 0;
      this.results.add({ job_name: name, result: 'success' });
      this.succeededAt.set({ job_name: name }, this.clock.now() / 1_000);
    } catch (error) {
      this.results.add({ job_name: name, result: 'failure' });
      const { message } = error as Error;
      // Once for each cause: while a database is away, the job fails at every tick.
      if (record.failedInARow++ === 0 || record.lastError !== message)
        this.logger.error({ job: name, err: error }, 'a job failed; it comes again at its next tick');
      record.lastError = message;
    }
    this.durations.observe({ job_name: name }, (performance.now() - startedAt) / 1_000);
  }

  private recordOf(name: string): JobRecord {
    let record = this.records.get(name);
    if (!record) {
      record = { lastStartedAt: null, lastError: null, failedInARow: 0 };
      this.records.set(name, record);
      for (const result of ['success', 'failure', 'skipped']) this.results.add({ job_name: name, result }, 0);
    }
    return record;
  }
}
