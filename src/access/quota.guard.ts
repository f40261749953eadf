import { type ExecutionContext, Injectable } from '@nestjs/common';
import { Reflector } from '@nestjs/core';
import {
  InjectThrottlerOptions,
  InjectThrottlerStorage,
  ThrottlerGuard,
  type ThrottlerLimitDetail,
  type ThrottlerModuleOptions,
  type ThrottlerStorage,
} from '@nestjs/throttler';
import type { FastifyReply } from 'fastify';
import { hostnameKey, MAX_HOSTNAME } from '../agents/hostnames';
import { fail } from '../errors';
import { clientAddress } from '../http/client-address';
import { type ControlPlaneRequest, declarationOf, type QuotaRule } from '../http/decorators';
import { isName } from '../http/text';
import { callerAddress } from './addresses';
import { FailedAuth } from './failed-auth';
import { Quotas } from './quotas';

/**
 * The second guard: how often. What goes by the caller alone was charged before the body was read, see Admission; what
 * goes by the body is charged here: a registration counts against its hostname, and only when it succeeds, so that nobody
 * can lock a host out.
 */
@Injectable()
export class QuotaGuard extends ThrottlerGuard {
  constructor(
    @InjectThrottlerOptions() options: ThrottlerModuleOptions,
    @InjectThrottlerStorage() storage: ThrottlerStorage,
    reflector: Reflector,
    private readonly quotas: Quotas,
    private readonly failedAuth: FailedAuth,
  ) {
    super(options, storage, reflector);
  }

  /** Lets in whom Admission has charged; gives a registration its charge. */
  override canActivate(context: ExecutionContext): Promise<boolean> {
    const http = context.switchToHttp();
    const request = http.getRequest<ControlPlaneRequest>();
    const rule = declarationOf(request)?.quota;
    if (rule?.by !== 'hostname') return ADMITTED;
    return this.chargeByOutcome(rule, request, http.getResponse<FastifyReply>());
  }

  /** @throws ERR_RATE_LIMITED always: the library's own exception is not in the catalogue */
  protected override throwThrottlingException(
    _context: ExecutionContext,
    { timeToBlockExpire }: ThrottlerLimitDetail,
  ): Promise<void> {
    throw fail('ERR_RATE_LIMITED', undefined, { retryAfterMs: timeToBlockExpire * 1_000 });
  }

  private async chargeByOutcome(
    rule: QuotaRule,
    request: ControlPlaneRequest,
    reply: FastifyReply,
  ): Promise<true> {
    const address = callerAddress(clientAddress(request));
    request.charge = {
      ...(await this.quotas.chargeOfSuccess(rule, callerOf(request.body, address), reply)),
      failure: () => this.failedAuth.charge(address),
      beforeLookup: () => this.failedAuth.check(address),
    };
    return true;
  }
}

/** Whom a registration counts for: its hostname or, if it has none that can be one, its address. */
function callerOf(body: unknown, address: string): string {
  const hostname = (body as { hostname?: unknown } | null | undefined)?.hostname;
  return typeof hostname === 'string' && hostname.length <= MAX_HOSTNAME && isName(hostname)
    ? `host:${hostnameKey(hostname)}`
    : `address:${address}`;
}

const ADMITTED = Promise.resolve(true as const);
