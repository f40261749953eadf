import { Body, Controller, Delete, Get, Header, HttpCode, Param, Post, Query } from '@nestjs/common';
import {
  ApiCreatedResponse,
  ApiNoContentResponse,
  ApiOkResponse,
  ApiOperation,
  ApiTags,
} from '@nestjs/swagger';
import { Operator } from '../http/access.decorators';
import { GuardedErrors } from '../http/api-errors';
import { BodyLimit, MEDIUM_BODY } from '../http/body-limit.decorators';
import type { OperatorIdentity } from '../http/control-plane-request';
import { PageQuery } from '../http/pagination';
import { CurrentOperator, IdInPath } from '../http/parameter.decorators';
import { IdParam } from '../http/validation';
import { CreatedEnrollmentToken, CreateEnrollmentTokenRequest, EnrollmentTokenPage } from './enrollment.dto';
import { EnrollmentService } from './enrollment.service';

/** Manages enrollment tokens. */
@ApiTags('fleet')
@Controller('v1/enrollment-tokens')
export class EnrollmentController {
  constructor(private readonly enrollment: EnrollmentService) {}

  /** Creates a token for registering agents. It is shown once. */
  @Post()
  @Operator('admin')
  @BodyLimit(MEDIUM_BODY)
  @Header('cache-control', 'no-store')
  @ApiOperation({ operationId: 'createEnrollmentToken', summary: 'Create an enrollment token' })
  @ApiCreatedResponse({ type: CreatedEnrollmentToken })
  @GuardedErrors()
  create(
    @CurrentOperator() operator: OperatorIdentity,
    @Body() body: CreateEnrollmentTokenRequest,
  ): Promise<CreatedEnrollmentToken> {
    return this.enrollment.create(operator, body);
  }

  /** Lists enrollment tokens, newest first, including expired, used-up and revoked ones. */
  @Get()
  @Operator('admin')
  @ApiOperation({ operationId: 'listEnrollmentTokens', summary: 'List enrollment tokens' })
  @ApiOkResponse({ type: EnrollmentTokenPage })
  @GuardedErrors()
  list(@Query() query: PageQuery): Promise<EnrollmentTokenPage> {
    return this.enrollment.list(query);
  }

  /** Revokes a token; in force when the call is answered. The agents that it enrolled stay. */
  @Delete(':id')
  @HttpCode(204)
  @Operator('admin')
  @IdInPath()
  @ApiOperation({ operationId: 'withdrawEnrollmentToken', summary: 'Revoke an enrollment token' })
  @ApiNoContentResponse()
  @GuardedErrors('ERR_NOT_FOUND')
  revoke(@CurrentOperator() operator: OperatorIdentity, @Param('id', IdParam) id: number): Promise<void> {
    return this.enrollment.revoke(operator, id);
  }
}
