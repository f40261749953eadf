import { type DynamicModule, Global, Module } from '@nestjs/common';
import { APP_FILTER, APP_PIPE } from '@nestjs/core';
import { AccessModule } from './access/access.module';
import {
  AboutEntity,
  AgentEntity,
  AgentKindEntity,
  ConfigStateEntity,
  HeartbeatEntity,
  LabelEntity,
  LastErrorEntity,
  OutcomesEntity,
  OwnerTokenEntity,
  UsageEntity,
} from './agents/agent.entity';
import { AgentsModule } from './agents/agents.module';
import { EnrollmentTokenEntity } from './agents/enrollment-token.entity';
import { Clock } from './clock';
import { ConcurrencyModule } from './concurrency/concurrency.module';
import { WindowChangeEntity, WindowEntity } from './concurrency/window.entity';
import { ConfigEntity } from './config/config.entity';
import { ConfigModule } from './config/config.module';
import type { Database } from './database/database';
import { DatabaseModule } from './database/database.module';
import type { Extension } from './extensions';
import { ErrorFilter } from './http/error-filter';
import { RequestValidation } from './http/validation';
import { LeaseEntity } from './leases/lease.entity';
import { LeasesModule } from './leases/leases.module';
import { MetricsEntity } from './metrics/metrics.entity';
import { MetricsModule } from './metrics/metrics.module';
import { AuditEntity, AuditHeadEntity } from './operators/audit.entity';
import { OperatorTokenEntity } from './operators/operator-token.entity';
import { OperatorsModule } from './operators/operators.module';
import { TaskEntity } from './queue/task.entity';
import { ContinuityEntity } from './scheduling/continuity.entity';
import { SchedulingModule } from './scheduling/scheduling.module';
import { SETTINGS, type Settings } from './settings';
import { TasksModule } from './tasks/tasks.module';
import { ExtensionMeter } from './telemetry/extension-meter';
import { Lifecycle } from './telemetry/lifecycle';
import { Meter } from './telemetry/meter';
import { Overload } from './telemetry/overload';
import { TelemetryModule } from './telemetry/telemetry.module';

/** The entity of every table that the query builder is used on. */
export const ENTITIES = [
  AgentEntity,
  HeartbeatEntity,
  ConfigStateEntity,
  LabelEntity,
  AgentKindEntity,
  OutcomesEntity,
  LastErrorEntity,
  AboutEntity,
  OwnerTokenEntity,
  UsageEntity,
  EnrollmentTokenEntity,
  TaskEntity,
  LeaseEntity,
  WindowEntity,
  WindowChangeEntity,
  OperatorTokenEntity,
  AuditEntity,
  AuditHeadEntity,
  ContinuityEntity,
  ConfigEntity,
  MetricsEntity,
];

/** The parts of the application that exist before it is built. */
export interface Parts {
  settings: Settings;
  database: Database;
  clock: Clock;
  lifecycle: Lifecycle;
  meter: Meter;
  overload: Overload;
  extensions: readonly Extension[];
}

/** The composition root: every module and the global providers. {@link AccessModule} has the guards, in their order. */
@Global()
@Module({})
export class AppModule {
  static forRoot(parts: Parts): DynamicModule {
    const shared = [
      { provide: SETTINGS, useValue: parts.settings },
      { provide: Clock, useValue: parts.clock },
      { provide: Lifecycle, useValue: parts.lifecycle },
      { provide: Meter, useValue: parts.meter },
      { provide: ExtensionMeter, useValue: new ExtensionMeter(parts.meter) },
      { provide: Overload, useValue: parts.overload },
    ];
    return {
      module: AppModule,
      imports: [
        DatabaseModule.forRoot(parts.database),
        SchedulingModule,
        TelemetryModule,
        AccessModule,
        OperatorsModule,
        ConfigModule,
        AgentsModule,
        ConcurrencyModule,
        LeasesModule,
        TasksModule,
        MetricsModule,
        ...parts.extensions.map(({ module }) => module),
      ],
      providers: [
        ...shared,
        { provide: APP_FILTER, useClass: ErrorFilter },
        { provide: APP_PIPE, useClass: RequestValidation },
      ],
      exports: shared,
    };
  }
}
