import { Injectable } from '@nestjs/common';
import { Cron, CronExpression } from '@nestjs/schedule';
import { Clock } from '../clock';
import { Database } from '../database/database';
import { JobRunner } from '../scheduling/job-runner';

const HOUR_MS = 3_600_000;

/** Deletes buckets in the database that are no longer needed. Buckets in memory need no job. */
@Injectable()
export class QuotaRetention {
  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly jobs: JobRunner,
  ) {
    if (database.buckets) jobs.declare('quota-retention');
  }

  /** Deletes buckets that have been full for an hour: a full bucket equals a missing one. @returns how many rows */
  async purge(): Promise<number> {
    const { buckets } = this.database;
    if (!buckets) return 0;
    const before = this.clock.now() - HOUR_MS;
    return this.jobs.purge((limit) => buckets.purge(before, limit));
  }

  @Cron(CronExpression.EVERY_HOUR)
  protected async purgeHourly(): Promise<void> {
    if (this.database.buckets)
      await this.jobs.run('quota-retention', HOUR_MS, async () => void (await this.purge()));
  }
}
