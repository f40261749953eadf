import { Inject, Injectable } from '@nestjs/common';
import { Cron, CronExpression, Interval } from '@nestjs/schedule';
import { Clock } from '../clock';
import { Database } from '../database/database';
import { Idempotency } from '../database/idempotency';
import { Continuity } from '../scheduling/continuity';
import { JobRunner } from '../scheduling/job-runner';
import { SETTINGS, type Settings } from '../settings';
import { LeasesService } from './leases.service';
import { QueueDepth } from './queue-depth';
import { TasksService } from './tasks.service';

/** How often time is looked at: what was promised within a second has several tries. */
const TICK_MS = 250;
const HOUR_MS = 3_600_000;
/** How often it is looked for tasks that an admission passed over, in milliseconds. */
const PASSED_OVER_MS = 2_000;
/** How many rows one transaction of a tick takes, so that no request waits long behind it. */
const BATCH = 500;

/** What time does to the queue: leases expire, scheduled tasks become ready, tasks run out of time, old ones go. */
@Injectable()
export class QueueUpkeep {
  private lookedAt = 0;

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly continuity: Continuity,
    private readonly jobs: JobRunner,
    private readonly leases: LeasesService,
    private readonly tasks: TasksService,
    private readonly depth: QueueDepth,
    private readonly idempotency: Idempotency,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    this.jobs.declare('reaper');
    this.jobs.declare('task-retention');
  }

  @Interval('reaper', TICK_MS)
  protected tick(): Promise<void> {
    return this.jobs.run('reaper', TICK_MS, () => this.reap(), { everywhere: true });
  }

  @Cron(CronExpression.EVERY_HOUR)
  protected hourly(): Promise<void> {
    return this.jobs.run('task-retention', HOUR_MS, () => this.purge());
  }

  /**
   * Does what is due: leases past their deadline, scheduled tasks whose instant has come, tasks whose time is up.
   * After an outage of the service nothing expires before every live lease has had one more lease duration.
   */
  async reap(): Promise<void> {
    await this.continuity.refresh();
    this.continuity.runningSince();
    // Looked for in the read connection first: an idle service writes nothing.
    const due = await this.database.read(async (statements) => ({
      overdue: await this.leases.anyOverdue(statements),
      tasks: await this.tasks.anyDue(statements),
    }));
    if (due.overdue) while ((await this.leases.expireOverdue(BATCH)) === BATCH);
    if (due.tasks) {
      while ((await this.tasks.endOverdue(BATCH)) === BATCH);
      while ((await this.tasks.makeReady(BATCH)) === BATCH);
    }
    if (this.database.isShared && this.clock.now() - this.lookedAt >= PASSED_OVER_MS) {
      this.lookedAt = this.clock.now();
      await this.depth.admitPassedOver();
    }
  }

  /** Deletes tasks that ended longer ago than they are kept, with their leases and results, and old idempotency keys. */
  async purge(): Promise<void> {
    const now = this.clock.now();
    await this.jobs.purge((limit) => this.tasks.deleteFinished(now - this.settings.taskRetentionMs, limit));
    const keysBefore = now - this.settings.idempotencyRetentionMs;
    await this.jobs.purge((limit) =>
      this.database.write((tx) => this.idempotency.forget(tx, keysBefore, limit)),
    );
  }
}
