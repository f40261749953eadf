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
import { announce, callerThrottler, rateLimited } from './quotas';
import { RegistrationQuota } from './registration-quota';

/**
 * The second guard: how often. It charges each call to one quota, in two steps:
 * - {@link charge}, before the body is read: Nest calls its guards when it is parsed, and a caller over its quota must not
 *   cost that;
 * - {@link canActivate}, at the usual time: what depends on the body, the hostname of a registration.
 *
 * The library's own `canActivate` reads six pieces of metadata for each throttler on each request: 2.4 µs, longer than all else
 * that admits an agent. Here the throttler of a route is found once, when the program starts.
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
   * Charges a call to its quota: an agent's to that of its route, an operator's to that of its token, any other to that of its
   * address. Call it as soon as it is known who calls.
   * @throws ERR_RATE_LIMITED with when to call again; nothing is charged then
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

  /** Takes a token from the caller's bucket, and tells by the headers of the IETF's draft what is left. */
  protected override async handleRequest(asked: ThrottlerRequest): Promise<boolean> {
    const { context, limit, ttl, blockDuration, getTracker, generateKey } = asked;
    const throttler = asked.throttler as QuotaThrottler;
    const caller = getTracker(context.getArgByIndex(0), context);
    // Awaited only if it is a promise, for this runs on every request.
    const tracker = typeof caller === 'string' ? caller : await caller;
    const key = generateKey(context, tracker, throttler.name);
    const record = await this.storageService.increment(key, ttl, limit, blockDuration, throttler.name);
    announce(throttler, record, context.getArgByIndex(1));
    if (record.isBlocked) {
      const detail = { quota: throttler.name, limit, ttl, key, tracker, ...record };
      await this.throwThrottlingException(context, detail);
    }
    return true;
  }

  /** @throws ERR_RATE_LIMITED always: the library's own exception is not in the catalogue of errors */
  protected override throwThrottlingException(
    _context: ExecutionContext,
    { quota, timeToBlockExpire }: ThrottlerLimitDetail & { readonly quota: string },
  ): Promise<void> {
    throw rateLimited(quota, timeToBlockExpire);
  }

  /** The one quota that a call counts against; undefined if that is off, or the route has none. */
  private throttlerFor(request: ControlPlaneRequest): QuotaThrottler | undefined {
    const declared = declarationOf(request);
    if (request.agent) return declared?.throttler;
    if (request.operator) return this.operator;
    // Credentials were refused, or no route serves the path.
    if (declared?.access.kind !== 'public') return this.public;
    if (declared.quota?.by === 'hostname') return this.registerPerAddress;
    if (!declared.access.isHealth) return this.public;
    // A load balancer must never read that a replica is down because somebody else asked too often.
    return this.isTrusted(request) ? undefined : this.health;
  }

  /** Whether the request comes from this machine, or from a trusted proxy itself and not from its clients. */
  private isTrusted(request: ControlPlaneRequest): boolean {
    const address = clientAddress(request);
    const { trustProxy } = this.settings;
    return /^(?:127\.|::1$|::ffff:127\.)/.test(address) || (trustProxy !== false && trustProxy(address));
  }
}

const CHARGED = Promise.resolve(true);
