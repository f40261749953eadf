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

/** The state of one job since the process started. */
interface JobRecord {
  lastStartedAt: number | null;
  lastError: string | null;
  /** How many runs have failed since the last success. */
  consecutiveFailures: number;
}

/** Upper bounds in seconds. */
const DURATION_BUCKETS = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300];

/** Target duration and row limits of one batch of a purge, so that no request waits long behind it. */
const BATCH_TARGET_MS = 50;
const BATCH_MIN = 50;
const BATCH_MAX = 5_000;

/** Computes how many rows the next batch deletes in about 50 ms, from how long the last one took. */
export function nextBatchSize(limit: number, tookMs: number): number {
  const fitting = (limit * BATCH_TARGET_MS) / Math.max(1, tookMs);
  return Math.round(Math.min(BATCH_MAX, Math.max(BATCH_MIN, fitting)));
}

/**
 * Runs every scheduled job: one run of a job at a time, and none while the process stops. Measures lag, duration and
 * failures. A job that fails is logged and is retried at its next tick.
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
    // Not `job`: Prometheus uses that label for the scraped target.
    const labels = ['job_name'] as const;
    this.results = meter.counter({
      name: 'job_runs_total',
      help: 'Runs of scheduled jobs; a run is skipped if the previous one, or one of another replica, has not ended.',
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
      help: 'When a scheduled job last succeeded, in seconds since the epoch.',
      labels,
    });
  }

  /** Creates a job's metrics before its first run, so that a first failure shows as an increase. */
  declare(name: string): void {
    this.recordOf(name);
  }

  /**
   * Runs a job unless it is running already, here or on another replica. Never throws.
   * @param everyMs the job's interval, to compute its lag
   * @param options.everywhere true if all replicas may run it at the same time
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
   * Deletes rows in batches, until a batch is not full. Adapts the batch size so that each takes about 50 ms.
   * @param batch deletes up to `limit` rows in one transaction and returns how many it deleted
   * @returns how many rows were deleted
   */
  async purge(batch: (limit: number) => Promise<number>): Promise<number> {
    let limit = 500;
    let total = 0;
    while (!this.stopping) {
      const startedAt = performance.now();
      const deleted = await batch(limit);
      total += deleted;
      if (deleted < limit) break;
      limit = nextBatchSize(limit, performance.now() - startedAt);
    }
    return total;
  }

  /** Prevents further runs, and waits for those in progress. */
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

  /** @param job returns false if another replica is running it */
  private async attempt(name: string, record: JobRecord, job: () => Promise<boolean>): Promise<void> {
    const startedAt = performance.now();
    try {
      const isDone = await inTraceOfItsOwn(`job ${name}`, job);
      if (!isDone) {
        this.skip(name);
        return;
      }
      if (record.consecutiveFailures > 0)
        this.logger.log(
          { job: name, failed: record.consecutiveFailures },
          'a job that had failed succeeded again',
        );
      record.consecutiveFailures = 0;
      this.results.add({ job_name: name, result: 'success' });
      this.succeededAt.set({ job_name: name }, this.clock.now() / 1_000);
    } catch (error) {
      this.results.add({ job_name: name, result: 'failure' });
      const { message } = error as Error;
      // Logged once for each cause: while the database is unreachable, the job fails at every tick.
      if (record.consecutiveFailures++ === 0 || record.lastError !== message)
        this.logger.error({ job: name, err: error }, 'a job failed; it is retried at its next tick');
      record.lastError = message;
    }
    this.durations.observe({ job_name: name }, (performance.now() - startedAt) / 1_000);
  }

  private recordOf(name: string): JobRecord {
    let record = this.records.get(name);
    if (!record) {
      record = { lastStartedAt: null, lastError: null, consecutiveFailures: 0 };
      this.records.set(name, record);
      for (const result of ['success', 'failure', 'skipped']) this.results.add({ job_name: name, result }, 0);
    }
    return record;
  }
}
