import { Reflector } from '@nestjs/core';
import { ExecutionContextHost } from '@nestjs/core/helpers/execution-context-host';
import type { AgentsService } from '../agents/agents.service';
import type { OperatorsService } from '../operators/operators.service';
import { AccessGuard } from './access.guard';
import type { FailedAuth } from './failed-auth';

describe('AccessGuard', () => {
  it('lets nobody in where the route names nobody', async () => {
    class Forgetful {
      route(): void {}
    }
    // Nobody is asked, so nobody needs to be there.
    const guard = new AccessGuard(
      new Reflector(),
      {} as AgentsService,
      {} as OperatorsService,
      {} as FailedAuth,
    );
    const context = new ExecutionContextHost([{ headers: {} }, {}], Forgetful, Forgetful.prototype.route);
    await expect(guard.canActivate(context)).rejects.toMatchObject({ code: 'ERR_FORBIDDEN', status: 403 });
  });
});
