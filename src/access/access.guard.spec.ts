import { ExecutionContextHost } from '@nestjs/core/helpers/execution-context-host';
import type { RouteDeclaration } from '../http/route-declaration';
import { AccessGuard } from './access.guard';

const contextOf = (request: object, access?: RouteDeclaration['access']) =>
  new ExecutionContextHost([{ ...request, routeOptions: { config: access && { declared: { access } } } }]);
const FORBIDDEN = expect.objectContaining({ code: 'ERR_FORBIDDEN' });

describe('AccessGuard', () => {
  const guard = new AccessGuard();

  it('refuses all callers if the route declares none', () => {
    expect(() => guard.canActivate(contextOf({ admitted: true }))).toThrow(FORBIDDEN);
  });

  it('refuses callers that the hook has not admitted, whatever the route declares', () => {
    expect(guard.canActivate(contextOf({ admitted: true }, { kind: 'public' }))).toBe(true);
    expect(() => guard.canActivate(contextOf({}, { kind: 'public' }))).toThrow(FORBIDDEN);
  });

  it('admits only the kind of caller, and the role, that the route declares', () => {
    const agent = { admitted: true, agent: { id: 1 } };
    const viewer = { admitted: true, operator: { role: 'viewer' } };
    expect(guard.canActivate(contextOf(agent, { kind: 'agent' }))).toBe(true);
    expect(() => guard.canActivate(contextOf(viewer, { kind: 'agent' }))).toThrow(FORBIDDEN);
    expect(guard.canActivate(contextOf(viewer, { kind: 'operator', role: 'viewer' }))).toBe(true);
    expect(() => guard.canActivate(contextOf(viewer, { kind: 'operator', role: 'operator' }))).toThrow(
      FORBIDDEN,
    );
    expect(() => guard.canActivate(contextOf(agent, { kind: 'operator', role: 'viewer' }))).toThrow(
      FORBIDDEN,
    );
  });

  it('refuses a body that names another agent', () => {
    const call = (agent_id: unknown) =>
      guard.canActivate(
        contextOf({ admitted: true, agent: { id: 1 }, body: { agent_id } }, { kind: 'agent' }),
      );
    expect(call(1)).toBe(true);
    expect(() => call(2)).toThrow(FORBIDDEN);
  });
});
