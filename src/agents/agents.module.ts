import { Module } from '@nestjs/common';
import { ConfigModule } from '../config/config.module';
import { OperatorsModule } from '../operators/operators.module';
import { AgentsController } from './agents.controller';
import { AgentsService } from './agents.service';
import { ConfigStates } from './config-states';
import { FleetController } from './fleet.controller';

/** The fleet. */
@Module({
  imports: [ConfigModule, OperatorsModule],
  controllers: [AgentsController, FleetController],
  providers: [AgentsService, ConfigStates],
  exports: [AgentsService],
})
export class AgentsModule {}
