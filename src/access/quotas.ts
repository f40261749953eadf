import { Inject, Injectable } from '@nestjs/common';
import { InjectThrottlerStorage } from '@nestjs/throttler';
import type { FastifyReply } from 'fastify';
import { Clock } from '../clock';
import type { Transaction } from '../database/statements';
import { fail } from '../errors';
import type { Charge, QuotaRule } from '../http/decorators';
import { type Quota, type QuotaRoute, SETTINGS, type Settings } from '../settings';
import { QuotaBuckets, TokenBuckets, type Verdict } from './token-buckets';

/** A quota in force, and the header that announces it. */
interface Policy {
  readonly name: string;
  readonly quota: Quota;
  readonly header: string;
}

/** Knows every quota in force, charges it and tells the caller by the `RateLimit` headers. */
@Injectable()
export class Quotas {
  private readonly routes = new WeakMap<QuotaRule, { policy: Policy | undefined }>();
  private readonly registerPerAddress: Policy | undefined;
  private readonly registerTotal: Policy | undefined;
  private readonly publicPerAddress: Policy | undefined;
  private readonly healthPerAddress: Policy | undefined;
  private readonly operator: Policy | undefined;
  private readonly parseFailures: Policy | undefined;
  /** Of operators' tokens, and of what known callers send that can't be read: each replica has its own. */
  private readonly callers: TokenBuckets;

  constructor(
    /** Of addresses: each replica has its own. */
    @InjectThrottlerStorage() private readonly addresses: TokenBuckets,
    private readonly buckets: QuotaBuckets,
    @Inject(SETTINGS) private readonly settings: Settings,
    clock: Clock,
  ) {
    this.callers = new TokenBuckets(clock, Number.POSITIVE_INFINITY);
    this.registerPerAddress = policyOf('register-per-ip', settings.registerPerIp);
    this.registerTotal = policyOf('register-total', settings.registerTotal);
    this.publicPerAddress = policyOf('public', settings.publicPerIp);
    this.healthPerAddress = policyOf('health', settings.publicPerIp);
    this.operator = policyOf('operator', settings.operatorQuota);
    this.parseFailures = policyOf('parse-failures', settings.parseFailures);
  }

  /**
   * Charges an agent's call to the quota of its route.
   * @throws ERR_RATE_LIMITED with when to come again
   */
  chargeAgent(rule: QuotaRule, agentId: number, reply: FastifyReply): void | Promise<void> {
    const policy = this.policyOfRoute(rule);
    if (!policy) return;
    const verdict = this.buckets.agents.take(keyOf(policy, String(agentId)), policy.quota);
    // Not awaited if it is there: this is the way of every agent's request.
    if (!(verdict instanceof Promise)) return judge(policy, verdict, reply);
    return verdict.then((known) => judge(policy, known, reply));
  }

  /** Charges an operator's call to its token. @throws ERR_RATE_LIMITED */
  chargeOperator(tokenId: number, reply: FastifyReply): void {
    charge(this.callers, this.operator, String(tokenId), reply);
  }

  /** Charges a call that needs no credentials, or shows none that could be right. @throws ERR_RATE_LIMITED */
  chargePublic(address: string, reply: FastifyReply): void {
    charge(this.addresses, this.publicPerAddress, address, reply);
  }

  /** Charges a health check, apart from all else of the address. @throws ERR_RATE_LIMITED */
  chargeHealth(address: string, reply: FastifyReply): void {
    charge(this.addresses, this.healthPerAddress, address, reply);
  }

  /** Charges an attempt to register, whatever comes of it. @throws ERR_RATE_LIMITED */
  chargeRegistration(address: string, reply: FastifyReply): void {
    charge(this.addresses, this.registerPerAddress, address, reply);
  }

  /** Refuses a body of a caller who has sent too many that can't be read. @throws ERR_RATE_LIMITED */
  checkReadable(caller: string): void {
    const policy = this.parseFailures;
    if (!policy) return;
    const { admitted, nextInMs } = this.unreadable(caller).look(keyOf(policy, caller), policy.quota);
    if (!admitted) throw tooMany(policy, nextInMs);
  }

  /** Charges a body that can't be read. */
  chargeUnreadable(caller: string): void {
    const policy = this.parseFailures;
    if (policy) this.unreadable(caller).take(keyOf(policy, caller), policy.quota);
  }

  /** The charge of a success. As long as it is not taken the headers tell what is there. */
  async chargeOfSuccess(
    rule: QuotaRule,
    caller: string,
    reply: FastifyReply,
  ): Promise<Pick<Charge, 'success' | 'waitMs'>> {
    const policy = this.policyOfRoute(rule);
    const { hostnames } = this.buckets;
    const before = policy && (await hostnames.look(keyOf(policy, caller), policy.quota));
    const announceBefore = () => policy && before && announce(policy, before, reply);
    announceBefore();
    const take = async (tx: Transaction, from: Policy, of: string): Promise<() => void> => {
      const key = keyOf(from, of);
      const verdict = await hostnames.take(key, from.quota, tx);
      // What all registrations together have left is nobody's business until it is nothing.
      if (from === policy || !verdict.admitted) judge(from, verdict, reply);
      return () => hostnames.giveBack(key, from.quota);
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

  private unreadable(caller: string): TokenBuckets {
    return caller.startsWith('address:') ? this.addresses : this.callers;
  }

  /** The policy of a route's quota or of the setting that replaces it, worked out once. */
  private policyOfRoute(rule: QuotaRule): Policy | undefined {
    let known = this.routes.get(rule);
    if (!known) {
      const replaced = this.settings.quotas[rule.route as QuotaRoute];
      known = { policy: policyOf(rule.route, replaced === undefined ? rule.quota : replaced) };
      this.routes.set(rule, known);
    }
    return known.policy;
  }
}

const keyOf = (policy: Policy, caller: string): string => `${policy.name}:${caller}`;

function charge(
  buckets: TokenBuckets,
  policy: Policy | undefined,
  caller: string,
  reply: FastifyReply,
): void {
  if (policy) judge(policy, buckets.take(keyOf(policy, caller), policy.quota), reply);
}

/** Tells the caller what the bucket says. @throws ERR_RATE_LIMITED it lets nobody in */
function judge(policy: Policy, verdict: Verdict, reply: FastifyReply): void {
  announce(policy, verdict, reply);
  if (!verdict.admitted) throw tooMany(policy, verdict.nextInMs);
}

const tooMany = (policy: Policy, retryAfterMs: number) =>
  fail('ERR_RATE_LIMITED', { quota: policy.name }, { retryAfterMs });

/**
 * The headers are those of draft-ietf-httpapi-ratelimit-headers-11, sections 3 and 4: `q` requests in a window of `w`
 * seconds; no more than `r` in the next `t` seconds. A bucket gives its burst within the time that it takes to fill.
 */
function policyOf(name: string, quota: Quota | null): Policy | undefined {
  if (!quota) return undefined;
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
