import { Body, Controller, Get, Put, Query } from '@nestjs/common';
import { ApiOkResponse, ApiOperation, ApiTags } from '@nestjs/swagger';
import { Operator } from '../http/access.decorators';
import { GuardedErrors } from '../http/api-errors';
import { BodyLimit, MAX_BODY } from '../http/body-limit.decorators';
import type { OperatorIdentity } from '../http/control-plane-request';
import { CurrentOperator } from '../http/parameter.decorators';
import { SetLimitsRequest, SetLimitsResponse, WindowPage, WindowsQuery } from './concurrency.dto';
import { ConcurrencyService } from './concurrency.service';

@ApiTags('concurrency')
@Controller('v1/concurrency')
export class ConcurrencyController {
  constructor(private readonly concurrency: ConcurrencyService) {}

  /** Lists the limits, with the leases and queued tasks of each. */
  @Get('windows')
  @Operator('viewer')
  @ApiOperation({ operationId: 'listConcurrencyWindows', summary: 'List concurrency windows' })
  @ApiOkResponse({ type: WindowPage })
  @GuardedErrors()
  windows(@Query() query: WindowsQuery): Promise<WindowPage> {
    return this.concurrency.list(query);
  }

  /**
   * Sets limits, in force when the call is answered: no lease is granted beyond them. Leases over a lowered limit
   * stay live.
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
