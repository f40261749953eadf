import { SetMetadata } from '@nestjs/common';
import type { ThrottlerOptions } from '@nestjs/throttler';
import { parseQuota, type QuotaRoute, type Quota as QuotaSetting } from '../settings';

export const QUOTA = Symbol('quota');

/** A quota in force as a throttler of @nestjs/throttler: `limit` requests at once, and as many again in each `ttl` ms. */
export interface QuotaThrottler extends ThrottlerOptions {
  readonly name: string;
  readonly limit: number;
  readonly ttl: number;
  /** The `RateLimit-Policy` header. */
  readonly policyHeader: string;
  /** How the `RateLimit` header begins. */
  readonly headerStart: string;
}

/** What a route's quota is and what it is counted by. */
export interface QuotaRule {
  readonly route: string;
  readonly quota: QuotaSetting;
  /** `agent`: the caller's id. `hostname`: the body's hostname by success only, the address where it has none. */
  readonly by: 'agent' | 'hostname';
}

/**
 * Limits how often one caller may use a route: `@Quota('claim', '12/minute', { burst: 6 })`. A route that has a
 * setting of its name (`CONTROL_PLANE_QUOTA_CLAIM`) follows that instead.
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
