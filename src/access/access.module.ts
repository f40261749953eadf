import { Module } from '@nestjs/common';
import { APP_GUARD } from '@nestjs/core';
import { ThrottlerModule } from '@nestjs/throttler';
import { AgentsModule } from '../agents/agents.module';
import { Clock } from '../clock';
import { OperatorsModule } from '../operators/operators.module';
import { AccessGuard } from './access.guard';
import { FailedAuth } from './failed-auth';
import { QuotaGuard } from './quota.guard';
import { TokenBuckets } from './token-buckets';

/** The two global guards, in their order: who calls, and how often. */
@Module({
  imports: [
    AgentsModule,
    OperatorsModule,
    ThrottlerModule.forRootAsync({
      inject: [Clock],
      useFactory: (clock: Clock) => ({
        throttlers: [{ limit: 1, ttl: 1 }],
        storage: new TokenBuckets(clock),
      }),
    }),
  ],
  providers: [
    { provide: APP_GUARD, useClass: AccessGuard },
    { provide: APP_GUARD, useClass: QuotaGuard },
    FailedAuth,
  ],
})
export class AccessModule {}
