import { type CanActivate, type ExecutionContext, Injectable } from '@nestjs/common';
import { Reflector } from '@nestjs/core';
import type { FastifyReply } from 'fastify';
import { AgentsService } from '../agents/agents.service';
import { ApiError, fail } from '../errors';
import { clientAddress } from '../http/client-address';
import { ACCESS, type Access, type ControlPlaneRequest, ROLES, type Role } from '../http/decorators';
import { isId, parseId } from '../http/validation';
import { OperatorsService } from '../operators/operators.service';
import { callerAddress } from './addresses';
import { FailedAuth } from './failed-auth';

/** The first guard: who calls, and may they. A route that does not say whom it lets in lets nobody in. */
@Injectable()
export class AccessGuard implements CanActivate {
  constructor(
    private readonly reflector: Reflector,
    private readonly agents: AgentsService,
    private readonly operators: OperatorsService,
    private readonly failedAuth: FailedAuth,
  ) {}

  /**
   * @throws ERR_UNAUTHORIZED credentials missing, unknown or wrong
   * @throws ERR_TOKEN_EXPIRED credentials that were right once
   * @throws ERR_FORBIDDEN an agent out of service, a body for another agent, a role too low
   * @throws ERR_VALIDATION a header that can't be one
   * @throws ERR_RATE_LIMITED the address has failed too often
   */
  async canActivate(context: ExecutionContext): Promise<boolean> {
    const access = this.reflector.getAllAndOverride<Access | undefined>(ACCESS, [
      context.getHandler(),
      context.getClass(),
    ]);
    const http = context.switchToHttp();
    const request = http.getRequest<ControlPlaneRequest>();
    switch (access?.kind) {
      case 'public':
        return true;
      case 'agent':
        await this.admit(request, () => this.admitAgent(request));
        checkBody(request);
        return true;
      case 'operator':
        await this.admit(request, () => this.admitOperator(request, http.getResponse<FastifyReply>()));
        checkRole(request, access.role);
        return true;
      default:
        throw fail('ERR_FORBIDDEN');
    }
  }

  /** Charges a failure to the caller's address. */
  private async admit(request: ControlPlaneRequest, authenticate: () => Promise<void>): Promise<void> {
    try {
      await authenticate();
    } catch (error) {
      if (error instanceof ApiError && error.code === 'ERR_UNAUTHORIZED')
        this.failedAuth.charge(callerAddress(clientAddress(request)));
      throw error;
    }
  }

  private async admitAgent(request: ControlPlaneRequest): Promise<void> {
    const id = request.headers['x-agent-id'];
    const token = request.headers['x-agent-token'];
    if (typeof id !== 'string' || id === '' || typeof token !== 'string' || token === '')
      throw fail('ERR_UNAUTHORIZED');
    const agentId = parseId(id);
    if (agentId === undefined) throw fail('ERR_VALIDATION', { 'x-agent-id': 'must be a positive integer' });
    if (!VISIBLE.test(token))
      throw fail('ERR_VALIDATION', { 'x-agent-token': 'must be visible ASCII characters' });
    request.agent = await this.agents.authenticate(agentId, token, () =>
      this.failedAuth.check(callerAddress(clientAddress(request))),
    );
  }

  private async admitOperator(request: ControlPlaneRequest, reply: FastifyReply): Promise<void> {
    const token = /^bearer +([\x21-\x7e]+) *$/i.exec(request.headers.authorization ?? '')?.[1];
    try {
      if (token === undefined) throw fail('ERR_UNAUTHORIZED');
      request.operator = await this.operators.authenticate(token, clientAddress(request), () =>
        this.failedAuth.check(callerAddress(clientAddress(request))),
      );
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) reply.header('www-authenticate', 'Bearer');
      throw error;
    }
  }
}

const VISIBLE = /^[\x21-\x7e]{1,512}$/;

/** A body may name its agent; it must be the caller. What is not an id at all is for the validation to refuse. */
function checkBody(request: ControlPlaneRequest): void {
  const body = request.body;
  if (typeof body !== 'object' || body === null || !('agent_id' in body)) return;
  if (isId(body.agent_id) && body.agent_id !== request.agent?.id) {
    throw fail('ERR_FORBIDDEN', { agent_id: 'is not the caller' });
  }
}

function checkRole(request: ControlPlaneRequest, needed: Role): void {
  const role = request.operator?.role;
  if (role === undefined || ROLES.indexOf(role) < ROLES.indexOf(needed)) {
    throw fail('ERR_FORBIDDEN', { role: `${needed} is needed` });
  }
}
