import { Injectable } from '@nestjs/common';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { AgentsService } from '../agents/agents.service';
import { ApiError, fail } from '../errors';
import type { Access } from '../http/access.decorators';
import { clientAddress } from '../http/client-address';
import type { AgentIdentity, ControlPlaneRequest } from '../http/control-plane-request';
import { declarationOf, routeOf } from '../http/route-declaration';
import { parseId } from '../http/validation';
import { OperatorsService } from '../operators/operators.service';
import { checkRole } from './access.guard';
import { callerAddress } from './addresses';
import { type Attempt, FailedAuth } from './failed-auth';
import { QuotaGuard } from './quota.guard';

const VISIBLE = /^[\x21-\x7e]{1,512}$/;

/**
 * Authenticates callers and charges their quotas before the body is read, so that bodies of callers without credentials, or
 * over their quota, cost no memory and are not parsed. The guards check afterwards what depends on the body.
 */
@Injectable()
export class Admission {
  constructor(
    private readonly agents: AgentsService,
    private readonly operators: OperatorsService,
    private readonly failedAuth: FailedAuth,
    private readonly quotas: QuotaGuard,
  ) {}

  /** Admits or refuses every request. Call it after the hooks that refuse unknown routes, and before routes are added. */
  guard(http: FastifyInstance): void {
    http.addHook('onRequest', (request: ControlPlaneRequest, reply, done) => {
      this.begin(request, reply).then(() => {
        request.admitted = true;
        done();
      }, done);
    });
  }

  /**
   * Charges a request without a route to its address.
   * @throws ERR_RATE_LIMITED the address is over its quota
   */
  async chargeUnknown(request: ControlPlaneRequest, reply: FastifyReply): Promise<void> {
    request.caller = `address:${callerAddress(clientAddress(request))}`;
    await this.quotas.charge(request, reply);
  }

  /**
   * Admits or refuses a request. For most calls of agents there is only the quota to wait for, because their credentials are in
   * memory.
   * @throws ERR_UNAUTHORIZED, ERR_TOKEN_EXPIRED, ERR_FORBIDDEN, ERR_VALIDATION, ERR_RATE_LIMITED
   */
  private begin(request: ControlPlaneRequest, reply: FastifyReply): Promise<unknown> {
    const agent = this.recallAgent(request);
    if (!agent) return this.admit(request, reply);
    request.agent = agent;
    request.caller = `agent:${agent.id}`;
    return this.quotas.charge(request, reply);
  }

  /** @returns the agent that calls, if it is in memory and its credentials are right */
  private recallAgent(request: ControlPlaneRequest): AgentIdentity | undefined {
    if (declarationOf(request)?.access.kind !== 'agent') return undefined;
    const { 'x-agent-id': id, 'x-agent-token': token } = request.headers;
    const agentId = typeof id === 'string' ? parseId(id) : undefined;
    return agentId === undefined || typeof token !== 'string'
      ? undefined
      : this.agents.recall(agentId, token);
  }

  private async admit(request: ControlPlaneRequest, reply: FastifyReply): Promise<void> {
    const address = callerAddress(clientAddress(request));
    request.caller = `address:${address}`;
    const route = routeOf(request);
    const access = route.declared?.access;
    if (access?.kind === 'agent') await this.identifyAgent(request, reply, address);
    else if (access?.kind === 'operator') await this.identifyOperator(request, reply, address, access);
    await this.quotas.charge(request, reply);
    if (access?.kind === 'operator') checkRole(request, access.role);
    // The documentation's pages are served by no controller.
    if (!access && !/^\/(?:docs.*)?$/.test(route.url ?? '')) throw fail('ERR_FORBIDDEN');
  }

  private async identifyAgent(
    request: ControlPlaneRequest,
    reply: FastifyReply,
    address: string,
  ): Promise<void> {
    let attempt: Attempt | undefined;
    try {
      const { id, token } = agentCredentials(request);
      request.agent = await this.agents.authenticate(id, token, (credential) => {
        attempt = this.failedAuth.begin(address, credential, { agentId: id });
      });
    } catch (error) {
      await this.chargeRefusal(error, attempt, request, reply);
      throw error;
    }
    attempt?.refund();
    request.caller = `agent:${request.agent.id}`;
  }

  private async identifyOperator(
    request: ControlPlaneRequest,
    reply: FastifyReply,
    address: string,
    { publicIf }: Extract<Access, { kind: 'operator' }>,
  ): Promise<void> {
    let attempt: Attempt | undefined;
    try {
      const token = /^bearer +([\x21-\x7e]+) *$/i.exec(request.headers.authorization ?? '')?.[1];
      if (token === undefined) throw fail('ERR_UNAUTHORIZED');
      request.operator = await this.operators.authenticate(
        token,
        clientAddress(request),
        (credential, isCostly) => {
          attempt = this.failedAuth.begin(address, credential, { isCostly });
        },
        publicIf === undefined ? undefined : 'during outage',
      );
    } catch (error) {
      await this.chargeRefusal(error, attempt, request, reply);
      if (error instanceof ApiError && error.status === 401) reply.header('www-authenticate', 'Bearer');
      throw error;
    }
    attempt?.refund();
    request.caller = `operator:${request.operator.tokenId}`;
  }

  /**
   * Charges refused credentials: a failed look-up to the address's quota of failed attempts; a refusal without a look-up to
   * its quota of public calls.
   * @throws ERR_RATE_LIMITED the address is over its quota
   */
  private async chargeRefusal(
    error: unknown,
    attempt: Attempt | undefined,
    request: ControlPlaneRequest,
    reply: FastifyReply,
  ): Promise<void> {
    const isRefusal = error instanceof ApiError && error.status < 500;
    if (attempt && isRefusal && error.code === 'ERR_UNAUTHORIZED') attempt.failed();
    else {
      attempt?.refund();
      if (isRefusal && error.code !== 'ERR_RATE_LIMITED') await this.quotas.charge(request, reply);
    }
  }
}

/** Reads an agent's credentials. @throws ERR_UNAUTHORIZED a header is missing @throws ERR_VALIDATION a header is malformed */
function agentCredentials({ headers }: FastifyRequest): { id: number; token: string } {
  const id = headers['x-agent-id'];
  const token = headers['x-agent-token'];
  if (typeof id !== 'string' || id === '' || typeof token !== 'string' || token === '')
    throw fail('ERR_UNAUTHORIZED');
  const agentId = parseId(id);
  if (agentId === undefined) throw fail('ERR_VALIDATION', { 'x-agent-id': 'must be a positive integer' });
  if (!VISIBLE.test(token))
    throw fail('ERR_VALIDATION', { 'x-agent-token': 'must be visible ASCII characters' });
  return { id: agentId, token };
}
