import { Module } from '@nestjs/common';
import { AgentsModule } from '../agents/agents.module';
import { AgentMetricsController, MetricsController } from './metrics.controller';
import { MetricsService } from './metrics.service';

/** What agents measured. */
@Module({
  imports: [AgentsModule],
  controllers: [MetricsController, AgentMetricsController],
  providers: [MetricsService],
})
export class MetricsModule {}
