import { Body, Controller, Headers, HttpCode, Post } from '@nestjs/common';
import { ApiExtension, ApiHeader, ApiOkResponse, ApiOperation, ApiTags } from '@nestjs/swagger';
import { fail } from '../errors';
import { Agent, Public } from '../http/access.decorators';
import { ApiErrors, GuardedErrors } from '../http/api-errors';
import type { AgentIdentity, Charge } from '../http/control-plane-request';
import {
  AGENT_PATHS,
  CallerAddress,
  CurrentAgent,
  CurrentCharge,
  IdempotencyKey,
  UserAgent,
} from '../http/parameter.decorators';
import { Quota } from '../http/quota.decorators';
import { parseId } from '../http/validation';
import { HeartbeatRequest, HeartbeatResponse, RegisterRequest, RegisterResponse } from './agents.dto';
import { HeartbeatsService } from './heartbeats.service';
import { RegistrationService } from './registration.service';

/** Registers agents and receives their heartbeats. */
@ApiTags('agents')
@Controller(AGENT_PATHS)
export class AgentsController {
  constructor(
    private readonly heartbeats: HeartbeatsService,
    private readonly registration: RegistrationService,
  ) {}

  /**
   * Returns an identity and a token. A known hostname keeps its `agent_id` and gets a new token: at once for a caller
   * with its current `X-Agent-Id` and `X-Agent-Token` or an enrollment token, else only if the agent registered openly
   * and has missed its heartbeat.
   */
  @Post('register')
  @HttpCode(200)
  @Public()
  @Quota('register', '1/10m', { burst: 1, by: 'hostname' })
  @ApiExtension('x-changes-fleet', true)
  @ApiOperation({ operationId: 'registerAgent', summary: 'Register an agent' })
  @ApiHeader({
    name: 'X-Enrollment-Token',
    required: false,
    description: 'Needed if registration is not open.',
  })
  @ApiHeader({
    name: 'X-Agent-Id',
    required: false,
    description: 'With X-Agent-Token: proves the identity of an agent that registers again.',
  })
  @ApiHeader({ name: 'X-Agent-Token', required: false })
  @ApiHeader({
    name: 'Idempotency-Key',
    required: false,
    description:
      'A secret of the caller, at least 16 characters: the same call within 10 minutes returns the same agent with a new token, and is not charged again.',
    schema: { type: 'string', minLength: 16, maxLength: 255 },
  })
  @ApiOkResponse({ type: RegisterResponse })
  @ApiErrors('ERR_VALIDATION', 'ERR_UNAUTHORIZED', 'ERR_FORBIDDEN', 'ERR_CONFLICT')
  register(
    @Body() body: RegisterRequest,
    @CurrentCharge() charge: Charge,
    @CallerAddress() address: string,
    @IdempotencyKey() key?: string,
    @Headers('X-Agent-Id') id?: string,
    @Headers('X-Agent-Token') token?: string,
    @Headers('X-Enrollment-Token') enrollmentToken?: string,
  ): Promise<RegisterResponse> {
    const agentId = id === undefined ? undefined : parseId(id);
    if (id !== undefined && agentId === undefined)
      throw fail('ERR_VALIDATION', { 'x-agent-id': 'must be a positive integer' });
    const proof = { agentId, token, enrollmentToken: enrollmentToken ?? body.enrollment_token ?? undefined };
    return this.registration.register({ hostname: body.hostname ?? undefined, proof, key, address }, charge);
  }

  /**
   * Records that the agent is online and the state of its configuration. The answer has the deadline of the next
   * heartbeat and the configuration in force.
   */
  @Post('heartbeat')
  @HttpCode(200)
  @Agent()
  @Quota('heartbeat', '6/minute', { burst: 3 })
  @ApiOperation({ operationId: 'sendHeartbeat', summary: 'Send a heartbeat' })
  @ApiOkResponse({ type: HeartbeatResponse })
  @GuardedErrors()
  heartbeat(
    @CurrentAgent() agent: AgentIdentity,
    @Body() body: HeartbeatRequest,
    @UserAgent() userAgent: string | undefined,
  ): Promise<HeartbeatResponse> {
    return this.heartbeats.heartbeat(agent, body, userAgent);
  }
}
