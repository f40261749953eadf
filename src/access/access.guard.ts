import { type CanActivate, type ExecutionContext, Inject, Injectable } from '@nestjs/common';
import { Reflector } from '@nestjs/core';
import { fail } from '../errors';
import {
  ACCESS,
  type Access,
  accessUnder,
  type ControlPlaneRequest,
  ROLES,
  type Role,
} from '../http/decorators';
import { isId } from '../http/validation';
import { SETTINGS, type Settings } from '../settings';

/**
 * The first guard: makes sure that the caller was admitted as the route wants it, and speaks for itself in the body. Who
 * calls is found out before the body is read, see Admission. A route that does not say whom it lets in lets nobody in.
 */
@Injectable()
export class AccessGuard implements CanActivate {
  constructor(
    private readonly reflector: Reflector,
    @Inject(SETTINGS) private readonly settings: Pick<Settings, 'metricsPublic'>,
  ) {}

  /** @throws ERR_FORBIDDEN nobody was admitted, a role too low, a body for another agent */
  canActivate(context: ExecutionContext): boolean {
    const declared = this.reflector.getAllAndOverride<Access | undefined>(ACCESS, [
      context.getHandler(),
      context.getClass(),
    ]);
    const access = declared && accessUnder(declared, this.settings);
    const request = context.switchToHttp().getRequest<ControlPlaneRequest>();
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
