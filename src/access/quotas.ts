import type { ThrottlerModuleOptions } from '@nestjs/throttler';
import type { FastifyReply } from 'fastify';
import { type ApiError, fail } from '../errors';
import type { QuotaRule, QuotaThrottler } from '../http/quota.decorators';
import type { Quota, QuotaRoute, Settings } from '../settings';
import type { QuotaRecord } from './quota-storage';

/** The quotas of callers on all routes. Each route's own quota is declared with `@Quota`. */
type CallerQuota = 'public' | 'health' | 'operator' | 'register-per-ip' | 'register-total';

/** Creates the throttlers of the module: the quotas of callers, except those that are off. */
export function callerThrottlers(settings: Settings): QuotaThrottler[] {
  const quotas: Record<CallerQuota, Quota | null> = {
    // Public routes, unknown paths and refused credentials, for each address.
    public: settings.publicPerIp,
    // Health checks, for each address: separate, so that other calls do not use it up.
    health: settings.publicPerIp,
    // All calls with an operator's token.
    operator: settings.operatorQuota,
    // Attempts to register, for each address, successful or not.
    'register-per-ip': settings.registerPerIp,
    // New identities, of all callers together.
    'register-total': settings.registerTotal,
  };
  return Object.entries(quotas).flatMap(([name, quota]) => throttlerOf(name, quota) ?? []);
}

/** Finds a throttler of the module by its name; undefined if it is off. */
export function callerThrottler(
  options: ThrottlerModuleOptions,
  name: CallerQuota,
): QuotaThrottler | undefined {
  const { throttlers } = options as { throttlers: QuotaThrottler[] };
  return throttlers.find((throttler) => throttler.name === name);
}

/** Creates the throttler of a route, from its quota or the setting that replaces it; undefined if the setting is `off`. */
export function routeThrottler(
  rule: QuotaRule,
  { quotas }: Pick<Settings, 'quotas'>,
): QuotaThrottler | undefined {
  const replaced = quotas[rule.route as QuotaRoute];
  return throttlerOf(rule.route, replaced === undefined ? rule.quota : replaced);
}

/**
 * Converts a quota to a throttler of the library, see QuotaStorage. The headers follow draft-ietf-httpapi-ratelimit-headers-11,
 * sections 3 and 4: `q` requests in a window of `w` seconds, the time in which an empty bucket fills.
 */
function throttlerOf(name: string, quota: Quota | null): QuotaThrottler | undefined {
  if (!quota) return undefined;
  const ttl = (quota.burst * quota.periodMs) / quota.limit;
  return {
    ...{ name, limit: quota.burst, ttl },
    policyHeader: `"${name}";q=${quota.burst};w=${Math.max(1, Math.ceil(ttl / 1_000))}`,
    headerStart: `"${name}";r=`,
  };
}

/** Sets the headers that describe a quota and what is left of it: at most `r` requests in the next `t` seconds. */
export function setQuotaHeaders(
  { limit, policyHeader, headerStart }: QuotaThrottler,
  { totalHits, timeToExpire }: QuotaRecord,
  reply: FastifyReply,
): void {
  const remaining = totalHits < limit ? limit - totalHits : 0;
  reply.header('ratelimit-policy', policyHeader);
  reply.header('ratelimit', `${headerStart}${remaining};t=${timeToExpire}`);
}

/** Creates the error of a request over its quota. @param waitSeconds after how many seconds it would be admitted */
export const rateLimited = (quota: string, waitSeconds: number): ApiError =>
  fail('ERR_RATE_LIMITED', { quota }, { retryAfterMs: waitSeconds * 1_000 });
