import { Controller, Get, HttpCode } from '@nestjs/common';
import { ApiOkResponse, ApiOperation, ApiProperty, ApiTags } from '@nestjs/swagger';
import { Database } from '../database/database';
import { fail } from '../errors';
import { HealthCheck } from '../http/access.decorators';
import { ApiErrors } from '../http/api-errors';
import { Lifecycle } from './lifecycle';

/** The routes of this controller, which monitors call often. */
export const HEALTH_PATHS: ReadonlySet<string> = new Set(['/healthz', '/livez', '/readyz']);

class Health {
  /** Always `ok`: if not healthy, the answer is an error. */
  @ApiProperty({ example: 'ok' })
  status!: string;
}

/** Tells orchestrators whether the process lives and whether it should get requests. */
@ApiTags('health')
@Controller()
export class HealthController {
  constructor(
    private readonly database: Database,
    private readonly lifecycle: Lifecycle,
  ) {}

  /** Answers as long as the process is alive. */
  @Get('healthz')
  @HealthCheck()
  @HttpCode(200)
  @ApiOperation({ operationId: 'checkLiveness', summary: 'Is the process alive?' })
  @ApiOkResponse({ type: Health })
  @ApiErrors()
  alive(): Health {
    return { status: 'ok' };
  }

  /** Does the same as `/healthz`, under the name that Kubernetes uses. */
  @Get('livez')
  @HealthCheck()
  @ApiOperation({ operationId: 'checkLivez', summary: 'Is the process alive?' })
  @ApiOkResponse({ type: Health })
  @ApiErrors()
  live(): Health {
    return this.alive();
  }

  /**
   * Checks that the service can take requests: the database accepts writes, its disk has room, and the process is not
   * stopping. Migrations are always current while the process runs.
   */
  @Get('readyz')
  @HealthCheck()
  @ApiOperation({ operationId: 'checkReadiness', summary: 'Should this process get requests?' })
  @ApiOkResponse({ type: Health })
  @ApiErrors()
  async ready(): Promise<Health> {
    if (this.lifecycle.draining) throw fail('ERR_UNAVAILABLE', { reason: 'stopping' });
    await this.database.ready().catch((error: unknown) => {
      throw fail('ERR_UNAVAILABLE', { reason: 'database' }, { cause: error });
    });
    this.database.requireSpace();
    return { status: 'ok' };
  }
}
