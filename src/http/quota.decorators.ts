import { SetMetadata } from '@nestjs/common';
import type { ThrottlerOptions } from '@nestjs/throttler';
import { parseQuota, type QuotaRoute, type Quota as QuotaSetting } from '../settings';

export const QUOTA = Symbol('quota');

/** A quota as a throttler of @nestjs/throttler: `limit` requests at once, and `limit` more in each `ttl` ms. */
export interface QuotaThrottler extends ThrottlerOptions {
  readonly name: string;
  readonly limit: number;
  readonly ttl: number;
  /** The `RateLimit-Policy` header. */
  readonly policyHeader: string;
  /** The start of the `RateLimit` header. */
  readonly headerStart: string;
}

/** The quota of a route, and the key that it is counted by. */
export interface QuotaRule {
  readonly route: string;
  readonly quota: QuotaSetting;
  /** `agent`: the caller's id. `hostname`: the hostname in the body, or else the address; only successes count. */
  readonly by: 'agent' | 'hostname';
}

/**
 * Limits how often one caller may use a route: `@Quota('claim', '12/minute', { burst: 6 })`. The setting of the same name
 * (`CONTROL_PLANE_QUOTA_CLAIM`), if any, replaces it.
 * @throws Error the rate is invalid
 */
export function Quota(
  route: QuotaRoute | (string & {}),
  rate: string,
  options: { burst: number; by?: QuotaRule['by'] },
): MethodDecorator {
  const quota = parseQuota(`${rate},${options.burst}`);
  if (!quota)
    throw new Error(`@Quota('${route}', '${rate}'): the rate must be such as '12/minute' or '1/10m'`);
  return SetMetadata(QUOTA, { route, quota, by: options.by ?? 'agent' } satisfies QuotaRule);
}
