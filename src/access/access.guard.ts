import { type CanActivate, type ExecutionContext, Injectable } from '@nestjs/common';
import { fail } from '../errors';
import { type ControlPlaneRequest, ROLES, type Role, requestOf } from '../http/control-plane-request';
import { declarationOf } from '../http/route-declaration';
import { isId } from '../http/validation';

/**
 * The first guard: who calls. Credentials are checked before the body is read, see Admission; this makes sure that the route's
 * callers, and nobody else, were admitted, and that an agent's body does not name another agent. A route that declares
 * nobody lets nobody in.
 */
@Injectable()
export class AccessGuard implements CanActivate {
  /** @throws ERR_FORBIDDEN nobody was admitted, a role too low, a body for another agent */
  canActivate(context: ExecutionContext): boolean {
    const request = requestOf(context);
    const access = declarationOf(request)?.access;
    if (!request.admitted) throw fail('ERR_FORBIDDEN');
    switch (access?.kind) {
      case 'public':
        return true;
      case 'agent':
        if (!request.agent) throw fail('ERR_FORBIDDEN');
        checkBody(request);
        return true;
      case 'operator':
        checkRole(request, access.role);
        return true;
      default:
        throw fail('ERR_FORBIDDEN');
    }
  }
}

/** A body may name its agent; it must be the caller. What is not an id at all is for the validation to refuse. */
function checkBody({ agent, body }: ControlPlaneRequest): void {
  if (typeof body !== 'object' || body === null || !('agent_id' in body)) return;
  if (isId(body.agent_id) && body.agent_id !== agent?.id)
    throw fail('ERR_FORBIDDEN', { agent_id: 'is not the caller' });
}

/** @throws ERR_FORBIDDEN no operator calls, or one whose role is too low */
export function checkRole(request: ControlPlaneRequest, needed: Role): void {
  const role = request.operator?.role;
  if (role === undefined || ROLES.indexOf(role) < ROLES.indexOf(needed)) {
    throw fail('ERR_FORBIDDEN', { role: `${needed} is needed` });
  }
}
