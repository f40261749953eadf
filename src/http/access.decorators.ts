import { applyDecorators, SetMetadata } from '@nestjs/common';
import { ApiBearerAuth, ApiExtension, ApiSecurity } from '@nestjs/swagger';
import type { Settings } from '../settings';
import type { Role } from './control-plane-request';

export const ACCESS = Symbol('access');

/** The callers that a route lets in. */
export type Access =
  | {
      kind: 'public';
      /** Load balancers call it: it is counted apart from all other calls from their address. */
      isHealth?: true;
    }
  | { kind: 'agent' }
  | {
      kind: 'operator';
      role: Role;
      /** The setting by which anybody may call, too. */
      publicIf?: 'metricsPublic';
    };

/** Anyone may call this route. */
export const Public = () => SetMetadata(ACCESS, { kind: 'public' } satisfies Access);

/** Anyone may call this route, and load balancers do all the time. */
export const HealthCheck = () => SetMetadata(ACCESS, { kind: 'public', isHealth: true } satisfies Access);

/** Agents may call this route, with `X-Agent-Id` and `X-Agent-Token`. */
export const Agent = () =>
  applyDecorators(
    SetMetadata(ACCESS, { kind: 'agent' } satisfies Access),
    // Both headers: two decorators would say that either will do.
    ApiSecurity({ agentId: [], agentToken: [] }),
  );

/** Operators of this role or a higher one may call this route, with a bearer token. */
export const Operator = (role: Role) =>
  applyDecorators(
    SetMetadata(ACCESS, { kind: 'operator', role } satisfies Access),
    ApiBearerAuth('operator'),
    ApiExtension('x-role', role),
  );

/**
 * The same, unless the setting says that anybody may. What could be public is also shown to a token that was right lately
 * while the database does not say whether it still is: monitoring must see an outage, not go blind.
 */
export const OperatorUnless = (publicIf: 'metricsPublic', role: Role) =>
  applyDecorators(Operator(role), SetMetadata(ACCESS, { kind: 'operator', role, publicIf } satisfies Access));

/** The callers that a route lets in under these settings. */
export function accessUnder(access: Access, settings: Pick<Settings, 'metricsPublic'>): Access {
  const isPublic = access.kind === 'operator' && access.publicIf !== undefined && settings[access.publicIf];
  return isPublic ? { kind: 'public' } : access;
}
