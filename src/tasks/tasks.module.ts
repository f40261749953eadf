import { Module } from '@nestjs/common';
import { AgentsModule } from '../agents/agents.module';
import { ConcurrencyModule } from '../concurrency/concurrency.module';
import { KindsModule } from '../kinds/kinds.module';
import { LeasesModule } from '../leases/leases.module';
import { OperatorsModule } from '../operators/operators.module';
import { QueueModule } from '../queue/queue.module';
import { TelemetryModule } from '../telemetry/telemetry.module';
import { BulkTasks } from './bulk-tasks';
import { PolitenessController } from './politeness.controller';
import { PolitenessReports } from './politeness.service';
import { TaskWhyService } from './task-why.service';
import { TasksController } from './tasks.controller';
import { TasksService } from './tasks.service';

/** What operators do with tasks. */
@Module({
  imports: [
    TelemetryModule,
    AgentsModule,
    ConcurrencyModule,
    KindsModule,
    QueueModule,
    LeasesModule,
    OperatorsModule,
  ],
  controllers: [TasksController, PolitenessController],
  providers: [TasksService, BulkTasks, TaskWhyService, PolitenessReports],
})
export class TasksModule {}
