import { Module } from '@nestjs/common';
import { DiscoveryModule } from '@nestjs/core';
import { AgentsModule } from '../agents/agents.module';
import { ConcurrencyModule } from '../concurrency/concurrency.module';
import { ConcurrencyService } from '../concurrency/concurrency.service';
import { OperatorsModule } from '../operators/operators.module';
import { TelemetryModule } from '../telemetry/telemetry.module';
import { AttemptTraces } from './attempt-traces';
import { BulkTasks } from './bulk-tasks';
import { ClaimWaiters } from './claim-waiters';
import { DnsKind, HttpKind, PingKind, TcpKind, TraceKind } from './kinds';
import { LeaseMetrics } from './lease-metrics';
import { LeasesController } from './leases.controller';
import { LeasesService } from './leases.service';
import { QueueDepth } from './queue-depth';
import { QueueMetrics } from './queue-metrics';
import { QueueUpkeep } from './queue-upkeep';
import { TaskKinds } from './task-kinds';
import { TaskLog } from './task-log';
import { TaskWhyService } from './task-why.service';
import { TasksController } from './tasks.controller';
import { TasksService } from './tasks.service';

/** Tasks and the leases on them. */
@Module({
  imports: [DiscoveryModule, TelemetryModule, AgentsModule, ConcurrencyModule, OperatorsModule],
  controllers: [LeasesController, TasksController],
  providers: [
    LeasesService,
    AttemptTraces,
    TaskLog,
    LeaseMetrics,
    QueueMetrics,
    TasksService,
    BulkTasks,
    TaskWhyService,
    QueueDepth,
    QueueUpkeep,
    ClaimWaiters,
    TaskKinds,
    DnsKind,
    HttpKind,
    TcpKind,
    PingKind,
    TraceKind,
  ],
  exports: [TaskKinds],
})
export class LeasesModule {
  constructor(concurrency: ConcurrencyService, kinds: TaskKinds) {
    concurrency.spellTargetsWith(kinds);
  }
}
