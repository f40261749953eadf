import { Module } from '@nestjs/common';
import { AgentsModule } from '../agents/agents.module';
import { AgentSeries } from './agent-series';
import { AgentMetricsController, MetricsController } from './metrics.controller';
import { MetricsService } from './metrics.service';

/** Stores agents' metrics and shows them to operators and Prometheus. */
@Module({
  imports: [AgentsModule],
  controllers: [MetricsController, AgentMetricsController],
  providers: [AgentSeries, MetricsService],
})
export class MetricsModule {}
