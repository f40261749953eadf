import { Body, Controller, HttpCode, Post, Res } from '@nestjs/common';
import { ApiExtension, ApiHeader, ApiOkResponse, ApiOperation, ApiTags } from '@nestjs/swagger';
import type { FastifyReply } from 'fastify';
import { AgentAbout } from '../agents/agent-about';
import { Agent } from '../http/access.decorators';
import { COME_BACK_AFTER, GuardedErrors } from '../http/api-errors';
import { BodyLimit, MAX_BODY, MEDIUM_BODY } from '../http/body-limit.decorators';
import type { AgentIdentity } from '../http/control-plane-request';
import { retryAfter } from '../http/error-filter';
import type { HangUpSignal } from '../http/hang-up';
import { ShedFirst } from '../http/load.decorators';
import { AGENT_PATHS, CurrentAgent, HangUp, IdempotencyKey, UserAgent } from '../http/parameter.decorators';
import { Quota } from '../http/quota.decorators';
import { Lifecycle } from '../telemetry/lifecycle';
import { ClaimsService } from './claims.service';
import {
  ClaimRequest,
  ClaimResponse,
  ExtendRequest,
  ExtendResponse,
  ReportRequest,
  ReportResponse,
} from './leases.dto';
import { LeasesService } from './leases.service';

/** The agents' routes for leases. */
@ApiTags('leases')
@Controller(AGENT_PATHS)
export class LeasesController {
  constructor(
    private readonly claims: ClaimsService,
    private readonly leases: LeasesService,
    private readonly lifecycle: Lifecycle,
    private readonly about: AgentAbout,
  ) {}

  /**
   * Grants leases of the best queued tasks, up to the agent's capacities minus the leases that it holds. With `wait_ms`
   * it waits for tasks and for room.
   */
  @Post('claim')
  @HttpCode(200)
  @Agent()
  @Quota('claim', '12/minute', { burst: 6 })
  @BodyLimit(MEDIUM_BODY)
  @ShedFirst()
  @ApiExtension('x-changes-fleet', true)
  @ApiOperation({ operationId: 'claimTasks', summary: 'Claim tasks' })
  @ApiHeader({
    name: 'Idempotency-Key',
    required: false,
    description:
      'A repeated call with the same key and body returns the leases of the first call that are still live.',
  })
  @ApiOkResponse({ type: ClaimResponse, headers: COME_BACK_AFTER })
  @GuardedErrors('ERR_CONFLICT')
  claim(
    @CurrentAgent() agent: AgentIdentity,
    @Body() body: ClaimRequest,
    @IdempotencyKey() key: string | undefined,
    @HangUp() hangUp: HangUpSignal,
    @UserAgent() userAgent: string | undefined,
    @Res({ passthrough: true }) reply: FastifyReply,
  ): Promise<ClaimResponse> {
    // No async function: while a claim waits it would hold twice the memory of this callback.
    return this.claims.claim(agent, body, key, hangUp).then((answer) => {
      this.about.note(agent.id, userAgent);
      const returnDelayMs = this.lifecycle.pickReturnDelay();
      if (answer.leases.length === 0 && returnDelayMs !== undefined) reply.headers(retryAfter(returnDelayMs));
      return answer;
    });
  }

  /** Extends the deadlines of leases; those that the caller does not hold are listed as revoked. */
  @Post('extend')
  @HttpCode(200)
  @Agent()
  @Quota('extend', '30/minute', { burst: 10 })
  @BodyLimit(MEDIUM_BODY)
  @ApiOperation({ operationId: 'extendLeases', summary: 'Extend leases' })
  @ApiOkResponse({ type: ExtendResponse })
  @GuardedErrors()
  extend(@CurrentAgent() agent: AgentIdentity, @Body() body: ExtendRequest): Promise<ExtendResponse> {
    return this.leases.extend(agent, body);
  }

  /**
   * Ends leases by their reports. Each report is validated alone: late, conflicting and invalid ones are listed as
   * rejected, and the others have effect.
   */
  @Post('report')
  @HttpCode(200)
  @Agent()
  @Quota('report', '12/minute', { burst: 6 })
  @BodyLimit(MAX_BODY)
  @ApiOperation({ operationId: 'reportLeases', summary: 'Report observations' })
  @ApiOkResponse({ type: ReportResponse })
  @GuardedErrors()
  report(@CurrentAgent() agent: AgentIdentity, @Body() body: ReportRequest): Promise<ReportResponse> {
    return this.leases.report(agent, body);
  }
}
