import { applyDecorators, SetMetadata } from '@nestjs/common';
import { ApiBearerAuth, ApiExtension, ApiSecurity } from '@nestjs/swagger';
import type { Settings } from '../settings';
import type { Role } from './control-plane-request';

export const ACCESS = Symbol('access');

/** The callers that may use a route. */
export type Access =
  | {
      kind: 'public';
      /** True if load balancers call it: it has a quota of its own for each address. */
      isHealth?: true;
    }
  | { kind: 'agent' }
  | {
      kind: 'operator';
      role: Role;
      /** The setting that makes the route public. */
      publicIf?: 'metricsPublic';
    };

/** Lets anyone call the route. */
export const Public = () => SetMetadata(ACCESS, { kind: 'public' } satisfies Access);

/** Lets anyone call the route, with a separate quota because load balancers call it often. */
export const HealthCheck = () => SetMetadata(ACCESS, { kind: 'public', isHealth: true } satisfies Access);

/** Lets agents call the route, with `X-Agent-Id` and `X-Agent-Token`. */
export const Agent = () =>
  applyDecorators(
    SetMetadata(ACCESS, { kind: 'agent' } satisfies Access),
    // One decorator for both headers: two would mean that either is enough.
    ApiSecurity({ agentId: [], agentToken: [] }),
  );

/** Lets operators with this role or a higher one call the route, with a bearer token. */
export const Operator = (role: Role) =>
  applyDecorators(
    SetMetadata(ACCESS, { kind: 'operator', role } satisfies Access),
    ApiBearerAuth('operator'),
    ApiExtension('x-role', role),
  );

/**
 * Lets operators with this role or a higher one call the route, or anyone if the setting is true. While the database does not
 * answer, a token that was valid lately is accepted too, because monitoring must work during an outage.
 */
export const OperatorUnless = (publicIf: 'metricsPublic', role: Role) =>
  applyDecorators(Operator(role), SetMetadata(ACCESS, { kind: 'operator', role, publicIf } satisfies Access));

/** Returns the callers that may use a route under these settings. */
export function accessUnder(access: Access, settings: Pick<Settings, 'metricsPublic'>): Access {
  const isPublic = access.kind === 'operator' && access.publicIf !== undefined && settings[access.publicIf];
  return isPublic ? { kind: 'public' } : access;
}
