import { Module } from '@nestjs/common';
import { APP_GUARD, DiscoveryModule } from '@nestjs/core';
import { ThrottlerModule, type ThrottlerModuleOptions } from '@nestjs/throttler';
import { AgentsModule } from '../agents/agents.module';
import { Clock } from '../clock';
import { Database } from '../database/database';
import type { ControlPlaneRequest } from '../http/control-plane-request';
import { OperatorsModule } from '../operators/operators.module';
import { SETTINGS, type Settings } from '../settings';
import { AccessGuard } from './access.guard';
import { Admission } from './admission';
import { DeclaredRoutes } from './declared-routes';
import { FailedAuth } from './failed-auth';
import { QuotaGuard } from './quota.guard';
import { QuotaRetention } from './quota-retention';
import { QuotaStorage, quotaKey } from './quota-storage';
import { callerThrottlers } from './quotas';
import { RegistrationQuota } from './registration-quota';
import { UnreadableBodies } from './unreadable-bodies';

/** Authentication and quotas: checks before the body is read, and the two global guards in their order. */
@Module({
  imports: [
    DiscoveryModule,
    AgentsModule,
    OperatorsModule,
    ThrottlerModule.forRootAsync({
      inject: [SETTINGS, Clock, Database],
      useFactory: (settings: Settings, clock: Clock, database: Database): ThrottlerModuleOptions => ({
        throttlers: callerThrottlers(settings),
        storage: new QuotaStorage(clock, database),
        getTracker: (request) => (request as ControlPlaneRequest).caller as string,
        generateKey: (_context, caller, quota) => quotaKey(caller, quota),
      }),
    }),
  ],
  providers: [
    { provide: APP_GUARD, useClass: AccessGuard },
    // The same instance that Admission uses before the body is read.
    { provide: APP_GUARD, useExisting: QuotaGuard },
    QuotaGuard,
    QuotaRetention,
    RegistrationQuota,
    UnreadableBodies,
    Admission,
    FailedAuth,
    DeclaredRoutes,
  ],
})
export class AccessModule {}
