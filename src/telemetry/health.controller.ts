import { Controller, Get, HttpCode } from '@nestjs/common';
import { ApiOkResponse, ApiOperation, ApiProperty, ApiTags } from '@nestjs/swagger';
import { Database } from '../database/database';
import { fail } from '../errors';
import { HealthCheck } from '../http/access.decorators';
import { ApiErrors } from '../http/api-errors';
import { Lifecycle } from './lifecycle';

/** The routes below, which monitors call all the time. */
export const HEALTH_PATHS: ReadonlySet<string> = new Set(['/healthz', '/livez', '/readyz']);

class Health {
  /** Always `ok`: anything else is an error answer. */
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

  /** The process is alive. */
  @Get('healthz')
  @HealthCheck()
  @HttpCode(200)
  @ApiOperation({ operationId: 'checkLiveness', summary: 'Is the process alive?' })
  @ApiOkResponse({ type: Health })
  @ApiErrors()
  alive(): Health {
    return { status: 'ok' };
  }

  /** The same by the name that Kubernetes and its tools use. */
  @Get('livez')
  @HealthCheck()
  @ApiOperation({ operationId: 'checkLivez', summary: 'Is the process alive?' })
  @ApiOkResponse({ type: Health })
  @ApiErrors()
  live(): Health {
    return this.alive();
  }

  /**
   * The service takes requests: the database takes writes, its disk has room, and nobody has asked the process to stop.
   * Migrations are current whenever the process runs at all.
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
