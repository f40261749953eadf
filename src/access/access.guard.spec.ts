import { Reflector } from '@nestjs/core';
import { ExecutionContextHost } from '@nestjs/core/helpers/execution-context-host';
import { Public } from '../http/decorators';
import { AccessGuard } from './access.guard';

describe('AccessGuard', () => {
  it('lets nobody in where the route names nobody', () => {
    class Forgetful {
      route(): void {}
    }
    const guard = new AccessGuard(new Reflector(), { metricsPublic: false });
    const request = { headers: {}, admitted: true };
    const context = new ExecutionContextHost([request, {}], Forgetful, Forgetful.prototype.route);
    expect(() => guard.canActivate(context)).toThrow(expect.objectContaining({ code: 'ERR_FORBIDDEN' }));
  });

  it('lets nobody in whom the hook has not admitted, whatever the route says', () => {
    class Open {
      @Public()
      route(): void {}
    }
    const guard = new AccessGuard(new Reflector(), { metricsPublic: false });
    const contextOf = (request: object) =>
      new ExecutionContextHost([request, {}], Open, Open.prototype.route);
    expect(guard.canActivate(contextOf({ admitted: true }))).toBe(true);
    expect(() => guard.canActivate(contextOf({}))).toThrow(
      expect.objectContaining({ code: 'ERR_FORBIDDEN' }),
    );
  });
});
