import { type CanActivate, type ExecutionContext, Injectable } from '@nestjs/common';
import { fail } from '../errors';
import { type ControlPlaneRequest, ROLES, type Role, requestOf } from '../http/control-plane-request';
import { declarationOf } from '../http/route-declaration';
import { isId } from '../http/validation';

/**
 * The first guard: checks that the caller may use the route. Credentials are checked before the body is read, see Admission;
 * this guard checks that the caller was admitted, and that an agent's body does not name another agent. A route without a
 * declaration refuses all callers.
 */
@Injectable()
export class AccessGuard implements CanActivate {
  /** @throws ERR_FORBIDDEN the caller was not admitted, its role is too low, or the body names another agent */
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

/** Checks that an agent named in the body is the caller. The validation refuses a value that is not an id. */
function checkBody({ agent, body }: ControlPlaneRequest): void {
  if (typeof body !== 'object' || body === null || !('agent_id' in body)) return;
  if (isId(body.agent_id) && body.agent_id !== agent?.id)
    throw fail('ERR_FORBIDDEN', { agent_id: 'is not the caller' });
}

/** Checks the caller's role. @throws ERR_FORBIDDEN the caller is not an operator, or its role is too low */
export function checkRole(request: ControlPlaneRequest, needed: Role): void {
  const role = request.operator?.role;
  if (role === undefined || ROLES.indexOf(role) < ROLES.indexOf(needed)) {
    throw fail('ERR_FORBIDDEN', { role: `${needed} is needed` });
  }
}
