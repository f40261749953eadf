import { Module } from '@nestjs/common';
import { APP_GUARD, DiscoveryModule } from '@nestjs/core';
import { ThrottlerModule } from '@nestjs/throttler';
import { AgentsModule } from '../agents/agents.module';
import { Clock } from '../clock';
import { Database } from '../database/database';
import { OperatorsModule } from '../operators/operators.module';
import { JobRunner } from '../scheduling/job-runner';
import { AccessGuard } from './access.guard';
import { Admission } from './admission';
import { DeclaredRoutes } from './declared-routes';
import { FailedAuth } from './failed-auth';
import { QuotaGuard } from './quota.guard';
import { Quotas } from './quotas';
import { SharedBuckets } from './shared-buckets';
import { OwnBuckets, QuotaBuckets, TokenBuckets } from './token-buckets';

/** Who calls and how often, found out before the body is read; and the two global guards, in their order. */
@Module({
  imports: [
    DiscoveryModule,
    AgentsModule,
    OperatorsModule,
    ThrottlerModule.forRootAsync({
      inject: [Clock],
      useFactory: (clock: Clock) => ({
        // The module wants one; nothing uses it, for each route's quota is in its decorator or its setting.
        throttlers: [{ limit: 1, ttl: 1 }],
        storage: new TokenBuckets(clock),
      }),
    }),
  ],
  providers: [
    { provide: APP_GUARD, useClass: AccessGuard },
    { provide: APP_GUARD, useClass: QuotaGuard },
    {
      provide: QuotaBuckets,
      inject: [Database, Clock, JobRunner],
      // Alone with its database, a process needs none in it.
      useFactory: (database: Database, clock: Clock, jobs: JobRunner): QuotaBuckets =>
        database.sharedMemory
          ? new SharedBuckets(database, database.sharedMemory, clock, jobs)
          : new OwnBuckets(clock),
    },
    Admission,
    Quotas,
    FailedAuth,
    DeclaredRoutes,
  ],
})
export class AccessModule {}
