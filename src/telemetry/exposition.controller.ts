import { Controller, Get, Logger, Res } from '@nestjs/common';
import { ApiOkResponse, ApiOperation, ApiTags } from '@nestjs/swagger';
import type { FastifyReply } from 'fastify';
import { OperatorUnless } from '../http/access.decorators';
import { GuardedErrors } from '../http/api-errors';
import { LineBudget } from './line-budget';
import { Meter } from './meter';

/** Log lines per second, and at once, about failed reads: while the database is away every scrape fails. */
const FAILURE_LINES: [perSecond: number, burst: number] = [1 / 60, 5];

/** Serves the metrics to Prometheus. */
@ApiTags('telemetry')
@Controller()
export class ExpositionController {
  private readonly logger = new Logger('Metrics');
  private readonly lines = new LineBudget(...FAILURE_LINES);

  constructor(private readonly meter: Meter) {}

  /**
   * Returns the metrics of this process and of the fleet, in the text format of Prometheus. Needs no token if
   * `CONTROL_PLANE_METRICS_PUBLIC` is true.
   */
  @Get('metrics')
  @OperatorUnless('metricsPublic', 'viewer')
  @ApiOperation({ operationId: 'scrapeMetrics', summary: 'Scrape metrics' })
  @ApiOkResponse({
    description: 'The exposition, version 0.0.4.',
    content: { 'text/plain': { schema: { type: 'string', example: 'control_plane_draining 0\n' } } },
  })
  @GuardedErrors()
  scrape(@Res({ passthrough: true }) reply: FastifyReply): Promise<string> {
    reply.header('content-type', this.meter.contentType);
    return this.meter.expose((error) => {
      if (this.lines.take())
        this.logger.warn({ err: error }, 'some metrics could not be read; their last values are shown');
    });
  }
}
