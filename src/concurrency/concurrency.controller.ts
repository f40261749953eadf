import { Body, Controller, Get, Param, Put, Query } from '@nestjs/common';
import { ApiOkResponse, ApiOperation, ApiTags } from '@nestjs/swagger';
import { Operator } from '../http/access.decorators';
import { GuardedErrors } from '../http/api-errors';
import { BodyLimit, MAX_BODY } from '../http/body-limit.decorators';
import type { OperatorIdentity } from '../http/control-plane-request';
import { PageQuery } from '../http/pagination';
import { CurrentOperator } from '../http/parameter.decorators';
import { IdParam } from '../http/validation';
import {
  SetLimitsRequest,
  SetLimitsResponse,
  WindowHistory,
  WindowPage,
  WindowsQuery,
} from './concurrency.dto';
import { ConcurrencyService } from './concurrency.service';

@ApiTags('concurrency')
@Controller('v1/concurrency')
export class ConcurrencyController {
  constructor(private readonly concurrency: ConcurrencyService) {}

  /** Lists the limits and rates, with the leases and queued tasks under each. */
  @Get('windows')
  @Operator('viewer')
  @ApiOperation({ operationId: 'listConcurrencyWindows', summary: 'List concurrency windows' })
  @ApiOkResponse({ type: WindowPage })
  @GuardedErrors()
  windows(@Query() query: WindowsQuery): Promise<WindowPage> {
    return this.concurrency.list(query);
  }

  /** Lists what changed the limit and the rate of a window, when, and by which evidence; the latest first. */
  @Get('windows/:id/history')
  @Operator('viewer')
  @ApiOperation({ operationId: 'listWindowChanges', summary: 'List the changes of a window' })
  @ApiOkResponse({ type: WindowHistory })
  @GuardedErrors('ERR_NOT_FOUND')
  history(@Param('id', IdParam) id: number, @Query() query: PageQuery): Promise<WindowHistory> {
    return this.concurrency.history(id, query);
  }

  /**
   * Sets limits, rates, and whether rates adapt, in force when the call is answered: no lease is granted beyond them. Leases over a
   * lowered limit stay live. What is left out stays as it is; null lifts it.
   */
  @Put('limits')
  @Operator('operator')
  @BodyLimit(MAX_BODY)
  @ApiOperation({ operationId: 'setConcurrencyLimits', summary: 'Set concurrency limits' })
  @ApiOkResponse({ type: SetLimitsResponse })
  @GuardedErrors()
  async setLimits(
    @CurrentOperator() operator: OperatorIdentity,
    @Body() body: SetLimitsRequest,
  ): Promise<SetLimitsResponse> {
    return { windows: await this.concurrency.setLimits(operator, body.limits) };
  }
}
