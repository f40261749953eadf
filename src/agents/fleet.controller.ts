import { Body, Controller, Delete, Get, Header, HttpCode, Param, Post, Put, Query } from '@nestjs/common';
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
import { CurrentOperator, IdInPath } from '../http/parameter.decorators';
import { IdParam } from '../http/validation';
import {
  AgentCredentials,
  AgentPage,
  AgentsQuery,
  AgentView,
  CreateAgentRequest,
  RotateRequest,
  SetLabelsRequest,
} from './agents.dto';
import { FleetService } from './fleet.service';

/** The operators' routes for the fleet. */
@ApiTags('fleet')
@Controller('v1/agents')
export class FleetController {
  constructor(private readonly fleet: FleetService) {}

  /** Lists agents, newest first. */
  @Get()
  @Operator('viewer')
  @ApiOperation({ operationId: 'listAgents', summary: 'List agents' })
  @ApiOkResponse({ type: AgentPage })
  @GuardedErrors()
  list(@Query() query: AgentsQuery): Promise<AgentPage> {
    return this.fleet.list(query);
  }

  /** Shows one agent. */
  @Get(':id')
  @Operator('viewer')
  @IdInPath()
  @ApiOperation({ operationId: 'getAgent', summary: 'Show an agent' })
  @ApiOkResponse({ type: AgentView })
  @GuardedErrors('ERR_NOT_FOUND')
  get(@Param('id', IdParam) id: number): Promise<AgentView> {
    return this.fleet.get(id);
  }

  /** Creates an agent, so that it need not register. Its token is shown once. */
  @Post()
  @Operator('operator')
  @BodyLimit(MEDIUM_BODY)
  @Header('cache-control', 'no-store')
  @ApiOperation({ operationId: 'createAgent', summary: 'Create an agent' })
  @ApiCreatedResponse({ type: AgentCredentials })
  @GuardedErrors('ERR_CONFLICT')
  create(
    @CurrentOperator() operator: OperatorIdentity,
    @Body() body: CreateAgentRequest,
  ): Promise<AgentCredentials> {
    return this.fleet.create(operator, body);
  }

  /** Replaces all labels of an agent. */
  @Put(':id/labels')
  @Operator('operator')
  @BodyLimit(MEDIUM_BODY)
  @IdInPath()
  @ApiOperation({ operationId: 'setAgentLabels', summary: 'Label an agent' })
  @ApiOkResponse({ type: AgentView })
  @GuardedErrors('ERR_NOT_FOUND')
  setLabels(
    @CurrentOperator() operator: OperatorIdentity,
    @Param('id', IdParam) id: number,
    @Body() body: SetLabelsRequest,
  ): Promise<AgentView> {
    return this.fleet.setLabels(operator, id, body.labels);
  }

  /**
   * Gives an agent a new token, which is shown once. The old one works until the new one is used, unless it is
   * revoked.
   */
  @Post(':id/rotate')
  @HttpCode(200)
  @Operator('operator')
  @Header('cache-control', 'no-store')
  @IdInPath()
  @ApiOperation({ operationId: 'rotateAgentToken', summary: "Change an agent's token" })
  @ApiOkResponse({ type: AgentCredentials })
  @GuardedErrors('ERR_NOT_FOUND', 'ERR_CONFLICT')
  rotate(
    @CurrentOperator() operator: OperatorIdentity,
    @Param('id', IdParam) id: number,
    @Body() body: RotateRequest,
  ): Promise<AgentCredentials> {
    return this.fleet.rotate(operator, id, body.revoke_old === true);
  }

  /**
   * Takes an agent out of service until it is enabled; its leases are revoked, and their tasks are queued without a
   * lost attempt.
   */
  @Post(':id/disable')
  @HttpCode(200)
  @Operator('operator')
  @IdInPath()
  @ApiOperation({ operationId: 'disableAgent', summary: 'Disable an agent' })
  @ApiOkResponse({ type: AgentView })
  @GuardedErrors('ERR_NOT_FOUND', 'ERR_CONFLICT')
  disable(
    @CurrentOperator() operator: OperatorIdentity,
    @Param('id', IdParam) id: number,
  ): Promise<AgentView> {
    return this.fleet.change(operator, id, 'disable');
  }

  /** Puts a disabled or draining agent in service again, with the same token. */
  @Post(':id/enable')
  @HttpCode(200)
  @Operator('operator')
  @IdInPath()
  @ApiOperation({ operationId: 'enableAgent', summary: 'Enable an agent' })
  @ApiOkResponse({ type: AgentView })
  @GuardedErrors('ERR_NOT_FOUND', 'ERR_CONFLICT')
  enable(
    @CurrentOperator() operator: OperatorIdentity,
    @Param('id', IdParam) id: number,
  ): Promise<AgentView> {
    return this.fleet.change(operator, id, 'enable');
  }

  /** Grants an agent no new leases; it may finish those that it holds. */
  @Post(':id/drain')
  @HttpCode(200)
  @Operator('operator')
  @IdInPath()
  @ApiOperation({ operationId: 'drainAgent', summary: 'Drain an agent' })
  @ApiOkResponse({ type: AgentView })
  @GuardedErrors('ERR_NOT_FOUND', 'ERR_CONFLICT')
  drain(@CurrentOperator() operator: OperatorIdentity, @Param('id', IdParam) id: number): Promise<AgentView> {
    return this.fleet.change(operator, id, 'drain');
  }

  /** Takes an agent out of service for good. Its hostname stays taken until the agent is deleted. */
  @Post(':id/revoke')
  @HttpCode(200)
  @Operator('operator')
  @IdInPath()
  @ApiOperation({ operationId: 'revokeAgent', summary: 'Revoke an agent' })
  @ApiOkResponse({ type: AgentView })
  @GuardedErrors('ERR_NOT_FOUND', 'ERR_CONFLICT')
  revoke(
    @CurrentOperator() operator: OperatorIdentity,
    @Param('id', IdParam) id: number,
  ): Promise<AgentView> {
    return this.fleet.change(operator, id, 'revoke');
  }

  /** Deletes an agent. Its id is never used again, its results stay, its hostname is free. */
  @Delete(':id')
  @HttpCode(204)
  @Operator('operator')
  @IdInPath()
  @ApiOperation({ operationId: 'deleteAgent', summary: 'Delete an agent' })
  @ApiNoContentResponse()
  @GuardedErrors('ERR_NOT_FOUND')
  remove(@CurrentOperator() operator: OperatorIdentity, @Param('id', IdParam) id: number): Promise<void> {
    return this.fleet.remove(operator, id);
  }
}
