import { type ExecutionContext, Inject, Injectable } from '@nestjs/common';
import { Reflector } from '@nestjs/core';
import {
  InjectThrottlerOptions,
  InjectThrottlerStorage,
  ThrottlerGuard,
  type ThrottlerLimitDetail,
  type ThrottlerModuleOptions,
} from '@nestjs/throttler';
import type { FastifyReply } from 'fastify';
import { hostnameKey, MAX_HOSTNAME } from '../agents/hostnames';
import type { Transaction } from '../database/statements';
import { fail } from '../errors';
import { clientAddress } from '../http/client-address';
import { type Charge, type ControlPlaneRequest, QUOTA, type QuotaRule } from '../http/decorators';
import { isName } from '../http/text';
import { type Quota, type QuotaRoute, SETTINGS, type Settings } from '../settings';
import { callerAddress } from './addresses';
import { FailedAuth } from './failed-auth';
import { QuotaBuckets, type TokenBuckets, type Verdict } from './token-buckets';

/** A quota in force, and the header that announces it. */
interface Policy {
  readonly name: string;
  readonly quota: Quota;
  readonly header: string;
}

/** How a route's requests are counted; without a policy where a setting switched its quota off. */
interface Rule {
  readonly by: QuotaRule['by'];
  readonly policy: Policy | undefined;
}

/**
 * The second guard: how often. Each route's `@Quota`, or the setting that replaces it, is a token bucket for each
 * caller. A registration counts against its hostname only when it succeeds, so that nobody can lock a host out.
 */
@Injectable()
export class QuotaGuard extends ThrottlerGuard {
  private readonly rules = new WeakMap<object, { rule: Rule | undefined }>();
  private readonly registerPerAddress: Policy | undefined;
  private readonly registerTotal: Policy | undefined;

  constructor(
    @InjectThrottlerOptions() options: ThrottlerModuleOptions,
    /** Of addresses: each replica has its own. */
    @InjectThrottlerStorage() private readonly addresses: TokenBuckets,
    private readonly buckets: QuotaBuckets,
    reflector: Reflector,
    private readonly failedAuth: FailedAuth,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    super(options, addresses, reflector);
    const { registerPerIp, registerTotal } = settings;
    this.registerPerAddress = registerPerIp ? policyOf('register-per-ip', registerPerIp) : undefined;
    this.registerTotal = registerTotal ? policyOf('register-total', registerTotal) : undefined;
  }

  /** @throws ERR_RATE_LIMITED with when to come again */
  override canActivate(context: ExecutionContext): Promise<boolean> {
    const rule = this.ruleOf(context.getHandler());
    if (!rule) return ADMITTED;
    const http = context.switchToHttp();
    const request = http.getRequest<ControlPlaneRequest>();
    const reply = http.getResponse<FastifyReply>();
    if (rule.by === 'hostname') return this.chargeByOutcome(rule.policy, request, reply);
    if (!rule.policy) return ADMITTED;
    const { policy } = rule;
    const verdict = this.buckets.take(keyOf(policy, String(request.agent?.id)), policy.quota);
    // Not awaited where it is there: this is the way of every agent's request.
    if (!(verdict instanceof Promise)) return judge(policy, verdict, reply);
    return verdict.then((known) => judge(policy, known, reply));
  }

  /** @throws ERR_RATE_LIMITED always: the library's own exception is not in the catalogue */
  protected override throwThrottlingException(
    _context: ExecutionContext,
    { timeToBlockExpire }: ThrottlerLimitDetail,
  ): Promise<void> {
    throw fail('ERR_RATE_LIMITED', undefined, { retryAfterMs: timeToBlockExpire * 1_000 });
  }

  /** The rule of a handler, worked out once. */
  private ruleOf(handler: object): Rule | undefined {
    let known = this.rules.get(handler);
    if (!known) {
      const declared = Reflect.getMetadata(QUOTA, handler) as QuotaRule | undefined;
      known = { rule: declared && { by: declared.by, policy: this.policyInForce(declared) } };
      this.rules.set(handler, known);
    }
    return known.rule;
  }

  private policyInForce({ route, quota }: QuotaRule): Policy | undefined {
    const replaced = this.settings.quotas[route as QuotaRoute];
    return replaced === null ? undefined : policyOf(route, replaced ?? quota);
  }

  /** Every attempt counts against the address; what else is charged depends on what comes of it. */
  private async chargeByOutcome(
    policy: Policy | undefined,
    request: ControlPlaneRequest,
    reply: FastifyReply,
  ): Promise<true> {
    const address = callerAddress(clientAddress(request));
    const ceiling = this.registerPerAddress;
    if (ceiling) judge(ceiling, this.addresses.take(keyOf(ceiling, address), ceiling.quota), reply);
    request.charge = {
      ...(await this.chargeOf(policy, callerOf(request.body, address), reply)),
      failure: () => this.failedAuth.charge(address),
      beforeLookup: () => this.failedAuth.check(address),
    };
    return true;
  }

  /** The charge of a success. As long as it is not taken the headers tell what is there. */
  private async chargeOf(
    policy: Policy | undefined,
    caller: string,
    reply: FastifyReply,
  ): Promise<Pick<Charge, 'success' | 'waitMs'>> {
    const before = policy && (await this.buckets.look(keyOf(policy, caller), policy.quota));
    const announceBefore = () => policy && before && announce(policy, before, reply);
    announceBefore();
    const take = async (tx: Transaction, from: Policy, of: string): Promise<() => void> => {
      const key = keyOf(from, of);
      const verdict = await this.buckets.take(key, from.quota, tx);
      // What all registrations together have left is nobody's business until it is nothing.
      if (from === policy || !verdict.admitted) judge(from, verdict, reply);
      return () => this.buckets.giveBack(key, from.quota);
    };
    return {
      waitMs: before && !before.admitted ? before.nextInMs : 0,
      success: async (tx, of) => {
        const taken: (() => void)[] = [];
        const giveBack = () => {
          for (const back of taken.splice(0)) back();
        };
        try {
          if (of === 'new' && this.registerTotal) taken.push(await take(tx, this.registerTotal, 'all'));
          if (policy) taken.push(await take(tx, policy, caller));
        } catch (error) {
          giveBack();
          throw error;
        }
        return () => {
          giveBack();
          announceBefore();
        };
      },
    };
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

const keyOf = (policy: Policy, caller: string): string => `${policy.name}:${caller}`;

/** Tells the caller what the bucket says. @throws ERR_RATE_LIMITED it lets nobody in */
function judge(policy: Policy, verdict: Verdict, reply: FastifyReply): Promise<true> {
  announce(policy, verdict, reply);
  if (verdict.admitted) return ADMITTED;
  throw fail('ERR_RATE_LIMITED', { quota: policy.name }, { retryAfterMs: verdict.nextInMs });
}

/**
 * The headers are those of draft-ietf-httpapi-ratelimit-headers-11, sections 3 and 4: `q` requests in a window of `w`
 * seconds; no more than `r` in the next `t` seconds. A bucket gives its burst within the time that it takes to fill.
 */
function policyOf(name: string, quota: Quota): Policy {
  const windowSeconds = Math.max(1, Math.ceil((quota.burst * quota.periodMs) / quota.limit / 1_000));
  return { name, quota, header: `"${name}";q=${quota.burst};w=${windowSeconds}` };
}

function announce(policy: Policy, verdict: Verdict, reply: FastifyReply): void {
  reply.header('ratelimit-policy', policy.header);
  reply.header(
    'ratelimit',
    `"${policy.name}";r=${verdict.remaining};t=${Math.ceil(verdict.nextInMs / 1_000)}`,
  );
}
