import { Module } from '@nestjs/common';
import { ConfigModule } from '../config/config.module';
import { OperatorsModule } from '../operators/operators.module';
import { AgentAbout } from './agent-about';
import { AgentKinds } from './agent-kinds';
import { AgentOutcomes } from './agent-outcomes';
import { AgentsController } from './agents.controller';
import { AgentsService } from './agents.service';
import { Budgets } from './budgets';
import { ConfigStates } from './config-states';
import { EnrollmentController } from './enrollment.controller';
import { EnrollmentService } from './enrollment.service';
import { FleetController } from './fleet.controller';
import { FleetService } from './fleet.service';
import { FleetMetrics } from './fleet-metrics';
import { HeartbeatsService } from './heartbeats.service';
import { Liveness } from './liveness';
import { RegistrationService } from './registration.service';

/** The fleet. */
@Module({
  imports: [ConfigModule, OperatorsModule],
  controllers: [AgentsController, FleetController, EnrollmentController],
  providers: [
    AgentAbout,
    AgentKinds,
    AgentOutcomes,
    AgentsService,
    Budgets,
    ConfigStates,
    EnrollmentService,
    FleetMetrics,
    FleetService,
    HeartbeatsService,
    Liveness,
    RegistrationService,
  ],
  exports: [AgentAbout, AgentKinds, AgentOutcomes, AgentsService, Budgets, Liveness],
})
export class AgentsModule {}
