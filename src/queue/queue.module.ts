import { Module } from '@nestjs/common';
import { ConcurrencyModule } from '../concurrency/concurrency.module';
import { ConcurrencyService } from '../concurrency/concurrency.service';
import { KindsModule } from '../kinds/kinds.module';
import { TaskKinds } from '../kinds/task-kinds';
import { TelemetryModule } from '../telemetry/telemetry.module';
import { ClaimWaiters } from './claim-waiters';
import { QueueDepth } from './depth';
import { Lanes } from './lanes';
import { QueueMaintainer } from './maintenance';
import { QueueMetrics } from './queue-metrics';
import { TaskLog } from './task-log';
import { TaskTransitions } from './transitions';

/** The queue: lanes, waiting claims, and the only writer of the states of tasks. */
@Module({
  imports: [ConcurrencyModule, KindsModule, TelemetryModule],
  providers: [TaskTransitions, Lanes, QueueDepth, ClaimWaiters, QueueMaintainer, QueueMetrics, TaskLog],
  exports: [TaskTransitions, QueueDepth, ClaimWaiters, QueueMaintainer, TaskLog],
})
export class QueueModule {
  constructor(concurrency: ConcurrencyService, kinds: TaskKinds) {
    concurrency.spellTargetsWith(kinds);
  }
}
