import { Controller, Delete, Get, HttpCode, Param, Query } from '@nestjs/common';
import { ApiNoContentResponse, ApiOkResponse, ApiOperation, ApiParam, ApiTags } from '@nestjs/swagger';
import {
  CurrentOperator,
  GuardedErrors,
  Operator,
  type OperatorIdentity,
} from 'dns-agent-control-plane/extension';
import { DomainPage, DomainsQuery } from './domains.dto';
import { DomainsService } from './domains.service';

/** The operators' routes for domains. */
@ApiTags('whois')
@Controller('v1/whois/domains')
export class DomainsController {
  constructor(private readonly domains: DomainsService) {}

  @Get()
  @Operator('viewer')
  @ApiOperation({ summary: 'List domains', description: 'The latest check first.' })
  @ApiOkResponse({ type: DomainPage })
  @GuardedErrors()
  list(@Query() query: DomainsQuery): Promise<DomainPage> {
    return this.domains.list(query);
  }

  @Delete(':domain')
  @HttpCode(204)
  @Operator('operator')
  @ApiParam({ name: 'domain', example: 'example.com' })
  @ApiOperation({ summary: 'Delete a domain' })
  @ApiNoContentResponse()
  @GuardedErrors('ERR_NOT_FOUND')
  forget(@CurrentOperator() operator: OperatorIdentity, @Param('domain') domain: string): Promise<void> {
    return this.domains.forget(operator, domain);
  }
}
