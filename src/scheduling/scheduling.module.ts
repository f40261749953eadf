import { Global, Module } from '@nestjs/common';
import { ScheduleModule } from '@nestjs/schedule';
import { Continuity } from './continuity';
import { JobRunner } from './job-runner';

/** Scheduled jobs: each domain declares its own with `@Interval` or `@Cron` and runs it through the {@link JobRunner}. */
@Global()
@Module({
  imports: [ScheduleModule.forRoot()],
  providers: [JobRunner, Continuity],
  exports: [JobRunner, Continuity],
})
export class SchedulingModule {}
