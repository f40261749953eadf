import { Body, Controller, Get, HttpCode, Param, Post, Query } from '@nestjs/common';
import { ApiAcceptedResponse, ApiExtension, ApiOkResponse, ApiOperation, ApiTags } from '@nestjs/swagger';
import { Agent, Operator } from '../http/access.decorators';
import { GuardedErrors } from '../http/api-errors';
import { BodyLimit, MAX_BODY } from '../http/body-limit.decorators';
import type { AgentIdentity } from '../http/control-plane-request';
import { BulkWrite } from '../http/load.decorators';
import { AGENT_PATHS, CurrentAgent, IdInPath } from '../http/parameter.decorators';
import { Quota } from '../http/quota.decorators';
import { IdParam } from '../http/validation';
import { MetricsPage, MetricsQuery, MetricsRequest, MetricsResponse } from './metrics.dto';
import { MetricsService } from './metrics.service';

/** Accepts agents' metrics. */
@ApiTags('metrics')
@Controller(AGENT_PATHS)
export class MetricsController {
  constructor(private readonly metrics: MetricsService) {}

  /** Stores an envelope of counters and gauges. A repeated envelope returns the same id. */
  @Post('metrics')
  @HttpCode(202)
  @Agent()
  @Quota('metrics', '60/minute', { burst: 10 })
  @BulkWrite()
  @BodyLimit(MAX_BODY)
  @ApiExtension('x-changes-fleet', true)
  @ApiOperation({ operationId: 'pushMetrics', summary: 'Push metrics' })
  @ApiAcceptedResponse({ type: MetricsResponse })
  @GuardedErrors()
  async push(@CurrentAgent() agent: AgentIdentity, @Body() body: MetricsRequest): Promise<MetricsResponse> {
    return { accepted: true, id: await this.metrics.ingest(agent, body) };
  }
}

/** Lists agents' metrics for operators. */
@ApiTags('metrics')
@Controller('v1/agents')
export class AgentMetricsController {
  constructor(private readonly metrics: MetricsService) {}

  /** Lists an agent's envelopes by the time of measurement, latest first. */
  @Get(':id/metrics')
  @Operator('viewer')
  @IdInPath()
  @ApiOperation({ operationId: 'listAgentMetrics', summary: "List an agent's metrics" })
  @ApiOkResponse({ type: MetricsPage })
  @GuardedErrors('ERR_NOT_FOUND')
  list(@Param('id', IdParam) id: number, @Query() query: MetricsQuery): Promise<MetricsPage> {
    return this.metrics.list(id, query);
  }
}
