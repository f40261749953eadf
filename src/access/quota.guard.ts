import { type ExecutionContext, Inject, Injectable } from '@nestjs/common';
import { Reflector } from '@nestjs/core';
import { ExecutionContextHost } from '@nestjs/core/helpers/execution-context-host';
import {
  InjectThrottlerOptions,
  InjectThrottlerStorage,
  ThrottlerGuard,
  type ThrottlerLimitDetail,
  type ThrottlerModuleOptions,
  type ThrottlerRequest,
  type ThrottlerStorage,
} from '@nestjs/throttler';
import type { FastifyReply } from 'fastify';
import { clientAddress } from '../http/client-address';
import { type ControlPlaneRequest, requestOf } from '../http/control-plane-request';
import type { QuotaThrottler } from '../http/quota.decorators';
import { declarationOf } from '../http/route-declaration';
import { SETTINGS, type Settings } from '../settings';
import { callerThrottler, rateLimited, setQuotaHeaders } from './quotas';
import { RegistrationQuota } from './registration-quota';

/**
 * The second guard: charges each call to one quota, in two steps:
 * - {@link charge}, before the body is read: Nest calls its guards after parsing, which a caller over its quota must not cost;
 * - {@link canActivate}, after parsing: for the quota that depends on the body, the hostname of a registration.
 *
 * The library's own `canActivate` reads six pieces of metadata for each throttler on each request. That takes 2.4 µs, longer
 * than all other steps of admitting an agent. Here the throttler of a route is found once, at the start.
 */
@Injectable()
export class QuotaGuard extends ThrottlerGuard {
  private readonly public: QuotaThrottler | undefined;
  private readonly health: QuotaThrottler | undefined;
  private readonly operator: QuotaThrottler | undefined;
  private readonly registerPerAddress: QuotaThrottler | undefined;

  constructor(
    @InjectThrottlerOptions() options: ThrottlerModuleOptions,
    @InjectThrottlerStorage() storage: ThrottlerStorage,
    reflector: Reflector,
    private readonly registrations: RegistrationQuota,
    @Inject(SETTINGS) private readonly settings: Pick<Settings, 'trustProxy'>,
  ) {
    super(options, storage, reflector);
    this.public = callerThrottler(options, 'public');
    this.health = callerThrottler(options, 'health');
    this.operator = callerThrottler(options, 'operator');
    this.registerPerAddress = callerThrottler(options, 'register-per-ip');
  }

  /**
   * Charges a call: an agent's to the quota of its route, an operator's to that of its token, any other to that of its address.
   * Call it once the caller is authenticated.
   * @throws ERR_RATE_LIMITED the quota is used up; nothing is charged, and the error has the time to wait
   */
  charge(request: ControlPlaneRequest, reply: FastifyReply): Promise<boolean> {
    const throttler = this.throttlerFor(request);
    if (!throttler) return CHARGED;
    const { limit, ttl } = throttler;
    const context = new ExecutionContextHost([request, reply]);
    const { getTracker, generateKey } = this.commonOptions as Required<typeof this.commonOptions>;
    return this.handleRequest({ context, limit, ttl, throttler, blockDuration: 0, getTracker, generateKey });
  }

  override canActivate(context: ExecutionContext): Promise<boolean> {
    const request = requestOf(context);
    const declared = declarationOf(request);
    if (declared?.quota?.by !== 'hostname') return CHARGED;
    return this.registrations.prepare(request, context.getArgByIndex(1), declared.throttler);
  }

  /**
   * Takes a token from the caller's bucket, and sends what is left in the headers of the IETF's draft. No async function, whose
   * promises cost more than the bucket.
   */
  protected override handleRequest(asked: ThrottlerRequest): Promise<boolean> {
    const { context, limit, ttl, blockDuration, getTracker, generateKey } = asked;
    const throttler = asked.throttler as QuotaThrottler;
    // A string, see AccessModule.
    const tracker = getTracker(context.getArgByIndex(0), context) as string;
    const key = generateKey(context, tracker, throttler.name);
    return this.storageService.increment(key, ttl, limit, blockDuration, throttler.name).then((record) => {
      setQuotaHeaders(throttler, record, context.getArgByIndex(1));
      if (!record.isBlocked) return true;
      const detail = { quota: throttler.name, limit, ttl, key, tracker, ...record };
      return this.throwThrottlingException(context, detail).then(() => false);
    });
  }

  /** @throws ERR_RATE_LIMITED always: the library's own exception is not in the catalogue of errors */
  protected override throwThrottlingException(
    _context: ExecutionContext,
    { quota, timeToBlockExpire }: ThrottlerLimitDetail & { readonly quota: string },
  ): Promise<void> {
    throw rateLimited(quota, timeToBlockExpire);
  }

  /** Returns the quota that a call counts against; undefined if it is off, or the route has none. */
  private throttlerFor(request: ControlPlaneRequest): QuotaThrottler | undefined {
    const declared = declarationOf(request);
    if (request.agent) return declared?.throttler;
    if (request.operator) return this.operator;
    // The credentials were refused, or the path has no route.
    if (declared?.access.kind !== 'public') return this.public;
    if (declared.quota?.by === 'hostname') return this.registerPerAddress;
    if (!declared.access.isHealth) return this.public;
    // A load balancer must not take a replica for down because other callers sent too many requests.
    return this.isTrusted(request) ? undefined : this.health;
  }

  /** Whether the request comes from this machine, or from a trusted proxy itself rather than one of its clients. */
  private isTrusted(request: ControlPlaneRequest): boolean {
    const address = clientAddress(request);
    const { trustProxy } = this.settings;
    return /^(?:127\.|::1$|::ffff:127\.)/.test(address) || (trustProxy !== false && trustProxy(address));
  }
}

const CHARGED = Promise.resolve(true);
