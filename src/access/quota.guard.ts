import { type ExecutionContext, Inject, Injectable } from '@nestjs/common';
import { Reflector } from '@nestjs/core';
import {
  InjectThrottlerOptions,
  InjectThrottlerStorage,
  ThrottlerGuard,
  type ThrottlerModuleOptions,
} from '@nestjs/throttler';
import type { FastifyReply } from 'fastify';
import { fail } from '../errors';
import { type ControlPlaneRequest, QUOTA, type QuotaRule } from '../http/decorators';
import { type Quota, type QuotaRoute, SETTINGS, type Settings } from '../settings';
import { callerAddress } from './addresses';
import { FailedAuth } from './failed-auth';
import type { TokenBuckets, Verdict } from './token-buckets';

/** A route's rule with the settings applied; null where it has none. */
type Rule = { readonly route: string; readonly quota: Quota | null; readonly by: QuotaRule['by'] } | null;

/**
 * The second guard: how often. Each route's `@Quota`, or the setting that replaces it, is a token bucket for each
 * caller. A registration counts against its hostname only when it succeeds, so that nobody can lock a host out.
 */
@Injectable()
export class QuotaGuard extends ThrottlerGuard {
  private readonly rules = new WeakMap<object, { rule: Rule }>();

  constructor(
    @InjectThrottlerOptions() options: ThrottlerModuleOptions,
    @InjectThrottlerStorage() private readonly buckets: TokenBuckets,
    reflector: Reflector,
    private readonly failedAuth: FailedAuth,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    super(options, buckets, reflector);
  }

  /** @throws ERR_RATE_LIMITED with when to come again */
  override canActivate(context: ExecutionContext): Promise<boolean> {
    const rule = this.ruleOf(context);
    if (rule) {
      const http = context.switchToHttp();
      const request = http.getRequest<ControlPlaneRequest>();
      const reply = http.getResponse<FastifyReply>();
      if (rule.by === 'hostname') this.chargeByOutcome(rule, request, reply);
      else if (rule.quota) this.take(rule.route, String(request.agent?.id), rule.quota, reply);
    }
    return ADMITTED;
  }

  /** The rule of a handler, worked out once. */
  private ruleOf(context: ExecutionContext): Rule {
    const handler = context.getHandler();
    let known = this.rules.get(handler);
    if (!known) {
      const declared = this.reflector.getAllAndOverride<QuotaRule | undefined>(QUOTA, [
        handler,
        context.getClass(),
      ]);
      const replaced = declared && this.settings.quotas[declared.route as QuotaRoute];
      known = {
        rule: declared ? { ...declared, quota: replaced === undefined ? declared.quota : replaced } : null,
      };
      this.rules.set(handler, known);
    }
    return known.rule;
  }

  /** Every attempt counts against the address; what else is charged depends on what comes of it. */
  private chargeByOutcome(rule: NonNullable<Rule>, request: ControlPlaneRequest, reply: FastifyReply): void {
    const address = callerAddress(request.ip);
    const { registerPerIp } = this.settings;
    if (registerPerIp) {
      const verdict = this.buckets.take(`register-per-ip:${address}`, registerPerIp);
      if (!verdict.admitted) throw refusal(rule.route, verdict);
    }
    const hostname = (request.body as { hostname?: unknown } | undefined)?.hostname;
    const caller = typeof hostname === 'string' ? `host:${hostname}` : `address:${address}`;
    const { quota } = rule;
    request.charge = {
      success: () => {
        if (!quota) return () => undefined;
        this.take(rule.route, caller, quota, reply);
        return () => this.buckets.giveBack(`${rule.route}:${caller}`, quota);
      },
      failure: () => this.failedAuth.charge(address),
    };
  }

  private take(route: string, caller: string, quota: Quota, reply: FastifyReply): void {
    const verdict = this.buckets.take(`${route}:${caller}`, quota);
    // Source: draft-ietf-httpapi-ratelimit-headers, "RateLimit-Policy" and "RateLimit".
    const windowSeconds = Math.ceil((quota.burst * quota.periodMs) / quota.limit / 1_000);
    reply.header('ratelimit-policy', `"${route}";q=${quota.burst};w=${windowSeconds}`);
    reply.header(
      'ratelimit',
      `"${route}";r=${verdict.remaining};t=${Math.ceil(nextTokenMs(verdict) / 1_000)}`,
    );
    if (!verdict.admitted) throw refusal(route, verdict);
  }
}

const ADMITTED = Promise.resolve(true);

/** When there is more to be had: the next token where there is none, the whole burst otherwise. */
const nextTokenMs = (verdict: Verdict) =>
  verdict.remaining === 0 ? verdict.retryAfterMs : verdict.fullAfterMs;

function refusal(route: string, verdict: Verdict) {
  return fail('ERR_RATE_LIMITED', { quota: route }, { retryAfterMs: verdict.retryAfterMs });
}
