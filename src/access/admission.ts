import { Inject, Injectable } from '@nestjs/common';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { AgentsService } from '../agents/agents.service';
import { ApiError, fail } from '../errors';
import { clientAddress } from '../http/client-address';
import {
  type Access,
  type ControlPlaneRequest,
  declarationOf,
  type RouteDeclaration,
} from '../http/decorators';
import { parseId } from '../http/validation';
import { OperatorsService } from '../operators/operators.service';
import { SETTINGS, type Settings } from '../settings';
import { checkRole } from './access.guard';
import { callerAddress } from './addresses';
import { type Attempt, FailedAuth, type LookUp } from './failed-auth';
import { Quotas } from './quotas';

const VISIBLE = /^[\x21-\x7e]{1,512}$/;

/** Has a credential looked up: see {@link FailedAuth.begin}. */
type BeforeLookup = (credential: string, about?: LookUp) => void;

/**
 * Finds out who calls and charges the quota of the call, before a byte of the body is read: what a stranger or a caller
 * over its quota sends costs no memory and is not parsed. The guards check afterwards what depends on the body.
 */
@Injectable()
export class Admission {
  constructor(
    private readonly agents: AgentsService,
    private readonly operators: OperatorsService,
    private readonly failedAuth: FailedAuth,
    private readonly quotas: Quotas,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {}

  /**
   * Admits or refuses every request. Call it behind the hooks that turn away what nobody serves, before routes are added.
   * @param isHealth tells the routes that load balancers ask
   */
  guard(http: FastifyInstance, isHealth: (request: FastifyRequest) => boolean): void {
    http.addHook('onRequest', (request: ControlPlaneRequest, reply, done) => {
      try {
        const admitting = this.admit(request, reply, isHealth);
        if (!admitting) return done();
        admitting.then(() => done(), done);
      } catch (error) {
        done(error as Error);
      }
    });
  }

  /**
   * Charges a request that no route serves.
   * @throws ERR_RATE_LIMITED
   */
  chargeUnknown(request: FastifyRequest, reply: FastifyReply): void {
    this.quotas.chargePublic(callerAddress(clientAddress(request)), reply);
  }

  /** @throws ERR_UNAUTHORIZED, ERR_TOKEN_EXPIRED, ERR_FORBIDDEN, ERR_VALIDATION, ERR_RATE_LIMITED */
  private admit(
    request: ControlPlaneRequest,
    reply: FastifyReply,
    isHealth: (request: FastifyRequest) => boolean,
  ): void | Promise<void> {
    const address = callerAddress(clientAddress(request));
    request.caller = `address:${address}`;
    const declared = declarationOf(request);
    switch (declared?.access.kind) {
      case 'agent':
        return this.admitAgent(request, reply, address, declared);
      case 'operator':
        return this.admitOperator(request, reply, address, declared.access);
      case 'public':
        if (declared.quota?.by === 'hostname') this.quotas.chargeRegistration(address, reply);
        else if (!isHealth(request)) this.quotas.chargePublic(address, reply);
        // A load balancer must never read that a replica is away because somebody else asked too often.
        else if (!this.isTrusted(request)) this.quotas.chargeHealth(address, reply);
        break;
      default:
        this.quotas.chargePublic(address, reply);
        // The documentation's pages are served by no controller.
        if (!/^\/(?:docs.*)?$/.test(request.routeOptions.url ?? '')) throw fail('ERR_FORBIDDEN');
    }
    request.admitted = true;
  }

  private async admitAgent(
    request: ControlPlaneRequest,
    reply: FastifyReply,
    address: string,
    { quota }: RouteDeclaration,
  ): Promise<void> {
    const agent = await this.identify(address, reply, (lookingUp) => {
      const { id, token } = agentCredentials(request);
      return this.agents.authenticate(id, token, (credential) => lookingUp(credential, { agentId: id }));
    });
    request.agent = agent;
    request.caller = `agent:${agent.id}`;
    if (quota) await this.quotas.chargeAgent(quota, agent.id, reply);
    request.admitted = true;
  }

  private async admitOperator(
    request: ControlPlaneRequest,
    reply: FastifyReply,
    address: string,
    { role, publicIf }: Extract<Access, { kind: 'operator' }>,
  ): Promise<void> {
    try {
      request.operator = await this.identify(address, reply, async (lookingUp) => {
        const token = /^bearer +([\x21-\x7e]+) *$/i.exec(request.headers.authorization ?? '')?.[1];
        if (token === undefined) throw fail('ERR_UNAUTHORIZED');
        return this.operators.authenticate(
          token,
          clientAddress(request),
          (credential, isCostly) => lookingUp(credential, { isCostly }),
          publicIf === undefined ? undefined : 'during outage',
        );
      });
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) reply.header('www-authenticate', 'Bearer');
      throw error;
    }
    request.caller = `operator:${request.operator.tokenId}`;
    this.quotas.chargeOperator(request.operator.tokenId, reply);
    checkRole(request, role);
    request.admitted = true;
  }

  /**
   * Has credentials judged. A look-up that fails is charged to the address's failed attempts; a refusal that cost none
   * counts as any call of a stranger.
   */
  private async identify<Identity>(
    address: string,
    reply: FastifyReply,
    judge: (lookingUp: BeforeLookup) => Promise<Identity>,
  ): Promise<Identity> {
    let attempt: Attempt | undefined;
    try {
      const identity = await judge((credential, about) => {
        attempt = this.failedAuth.begin(address, credential, about);
      });
      attempt?.refund();
      return identity;
    } catch (error) {
      const isRefusal = error instanceof ApiError && error.status < 500;
      if (attempt && isRefusal && error.code === 'ERR_UNAUTHORIZED') attempt.failed();
      else {
        attempt?.refund();
        if (isRefusal && error.code !== 'ERR_RATE_LIMITED') this.quotas.chargePublic(address, reply);
      }
      throw error;
    }
  }

  /** Whether the request comes from this machine, or is of a trusted proxy itself and not of its clients. */
  private isTrusted(request: FastifyRequest): boolean {
    const address = clientAddress(request);
    return /^(?:127\.|::1$|::ffff:127\.)/.test(address) || (this.settings.trustProxy || never)(address);
  }
}

const never = (): boolean => false;

/** @throws ERR_UNAUTHORIZED a header is missing @throws ERR_VALIDATION one can't be what it should */
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
