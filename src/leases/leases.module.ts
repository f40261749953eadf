import { Module } from '@nestjs/common';
import { AgentsModule } from '../agents/agents.module';
import { ConcurrencyModule } from '../concurrency/concurrency.module';
import { KindsModule } from '../kinds/kinds.module';
import { QueueModule } from '../queue/queue.module';
import { TelemetryModule } from '../telemetry/telemetry.module';
import { AttemptTraces } from './attempt-traces';
import { ClaimsService } from './claims.service';
import { LeaseCounter } from './lease-counter';
import { LeaseEndings } from './lease-endings';
import { LeaseMetrics } from './lease-metrics';
import { LeasesController } from './leases.controller';
import { LeasesService } from './leases.service';

/** Leases: grants, extends and ends them, and stores their results. */
@Module({
  imports: [TelemetryModule, AgentsModule, ConcurrencyModule, KindsModule, QueueModule],
  controllers: [LeasesController],
  providers: [ClaimsService, LeasesService, LeaseEndings, AttemptTraces, LeaseCounter, LeaseMetrics],
  exports: [LeaseEndings],
})
export class LeasesModule {}
