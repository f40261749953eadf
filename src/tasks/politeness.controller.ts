import { Controller, Get, Query } from '@nestjs/common';
import { ApiOkResponse, ApiOperation, ApiTags } from '@nestjs/swagger';
import { Operator } from '../http/access.decorators';
import { GuardedErrors } from '../http/api-errors';
import type { HangUpSignal } from '../http/hang-up';
import { HangUp } from '../http/parameter.decorators';
import { PolitenessQuery, PolitenessReport } from './politeness.dto';
import { PolitenessReports } from './politeness.service';

/** Here and not beside the windows, because it reads tasks and leases. */
@ApiTags('concurrency')
@Controller('v1/concurrency/politeness')
export class PolitenessController {
  constructor(private readonly reports: PolitenessReports) {}

  /** Reports how a target was treated on a day: how many checks began and ran at once, and which limits and rates held. */
  @Get()
  @Operator('viewer')
  @ApiOperation({ operationId: 'getPolitenessReport', summary: 'Report on the checks of a target' })
  @ApiOkResponse({ type: PolitenessReport })
  @GuardedErrors()
  report(@Query() query: PolitenessQuery, @HangUp() hangUp: HangUpSignal): Promise<PolitenessReport> {
    return this.reports.report(query, hangUp);
  }
}
