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
import type { OperatorIdentity } from '../http/control-plane-request';
import { PageQuery } from '../http/pagination';
import { CurrentOperator, IdInPath } from '../http/parameter.decorators';
import { IdParam } from '../http/validation';
import { AuditLog } from './audit-log';
import {
  AuditPage,
  AuditQuery,
  AuditVerification,
  CreatedOperatorToken,
  CreateOperatorTokenRequest,
  OperatorTokenPage,
  VerificationQuery,
} from './operators.dto';
import { OperatorsService } from './operators.service';

/** Manages operators' tokens, and lists and verifies the audit log. */
@ApiTags('operators')
@Controller('v1')
export class OperatorsController {
  constructor(
    private readonly operators: OperatorsService,
    private readonly audit: AuditLog,
  ) {}

  /** Creates a token for an operator. The token is shown only once. */
  @Post('operator-tokens')
  @Operator('admin')
  @Header('cache-control', 'no-store')
  @ApiOperation({ operationId: 'createOperatorToken', summary: "Create an operator's token" })
  @ApiCreatedResponse({ type: CreatedOperatorToken })
  @GuardedErrors()
  create(
    @CurrentOperator() operator: OperatorIdentity,
    @Body() body: CreateOperatorTokenRequest,
  ): Promise<CreatedOperatorToken> {
    return this.operators.create(operator, body);
  }

  /** Lists operators' tokens, including revoked ones, newest first. */
  @Get('operator-tokens')
  @Operator('admin')
  @ApiOperation({ operationId: 'listOperatorTokens', summary: "List operators' tokens" })
  @ApiOkResponse({ type: OperatorTokenPage })
  @GuardedErrors()
  list(@Query() query: PageQuery): Promise<OperatorTokenPage> {
    return this.operators.list(query);
  }

  /** Revokes a token, effective when the call returns. The last admin's token can't be revoked. */
  @Delete('operator-tokens/:id')
  @HttpCode(204)
  @Operator('admin')
  @IdInPath()
  @ApiOperation({ operationId: 'withdrawOperatorToken', summary: "Revoke an operator's token" })
  @ApiNoContentResponse()
  @GuardedErrors('ERR_NOT_FOUND', 'ERR_CONFLICT')
  revoke(@CurrentOperator() operator: OperatorIdentity, @Param('id', IdParam) id: number): Promise<void> {
    return this.operators.revoke(operator, id);
  }

  /** Lists changes that operators made, newest first. */
  @Get('audit')
  @Operator('admin')
  @ApiOperation({ operationId: 'listAuditEntries', summary: 'List changes' })
  @ApiOkResponse({ type: AuditPage })
  @GuardedErrors()
  changes(@Query() query: AuditQuery): Promise<AuditPage> {
    return this.audit.list(query);
  }

  /**
   * Verifies the chain of hashes of the whole log: it finds entries that were altered or removed. With `known`, the log
   * must also contain that entry, so that a log that was rewritten as a whole is found too.
   */
  @Get('audit/verification')
  @Operator('admin')
  @ApiOperation({ operationId: 'verifyAuditLog', summary: 'Verify the audit log' })
  @ApiOkResponse({ type: AuditVerification })
  @GuardedErrors()
  verification(@Query() query: VerificationQuery): Promise<AuditVerification> {
    return this.audit.verify(query.known);
  }
}
