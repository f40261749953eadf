import { Body, Controller, Get, Headers, Param, Post, Query, Res } from '@nestjs/common';
import {
  ApiBody,
  ApiCreatedResponse,
  ApiHeader,
  ApiOkResponse,
  ApiOperation,
  ApiParam,
  ApiResponse,
  ApiTags,
} from '@nestjs/swagger';
import type { FastifyReply } from 'fastify';
import { Agent, Operator, Public } from '../http/access.decorators';
import { ApiErrors, GuardedErrors } from '../http/api-errors';
import { BodyLimit, MAX_BODY } from '../http/body-limit.decorators';
import type { OperatorIdentity } from '../http/control-plane-request';
import { namesEntityTag } from '../http/if-none-match';
import { BulkWrite } from '../http/load.decorators';
import { PageQuery } from '../http/pagination';
import { AGENT_PATHS, CurrentOperator, IdempotencyKey } from '../http/parameter.decorators';
import { Quota } from '../http/quota.decorators';
import {
  ConfigBundle,
  ConfigDetail,
  ConfigDiff,
  ConfigPage,
  PublishRequest,
  RollbackRequest,
  VerifyingKeys,
} from './config.dto';
import { ConfigService } from './config.service';

const ETAG = {
  ETag: {
    description: 'The revision in quotes; send it in `If-None-Match`.',
    schema: { type: 'string' },
    example: '"a3f1c2d4e5b60718"',
  },
} as const;

/** Serves the configuration to agents. */
@ApiTags('config')
@Controller(AGENT_PATHS)
export class ConfigController {
  constructor(private readonly config: ConfigService) {}

  /** Returns the signed configuration in force, or 304 if `If-None-Match` names it. */
  @Get('config')
  @Agent()
  @Quota('config', '6/h', { burst: 2 })
  @ApiOperation({ operationId: 'fetchConfig', summary: 'Fetch the configuration' })
  @ApiHeader({
    name: 'If-None-Match',
    required: false,
    description: 'Entity tags that the caller has, or `*`.',
    example: '"a3f1c2d4e5b60718"',
  })
  @ApiOkResponse({ type: ConfigBundle, headers: ETAG })
  @ApiResponse({ status: 304, description: 'The caller has the configuration in force.', headers: ETAG })
  @GuardedErrors('ERR_NOT_FOUND')
  current(
    @Headers('if-none-match') ifNoneMatch: string | undefined,
    @Res({ passthrough: true }) reply: FastifyReply,
  ): string | undefined {
    const { revision, text } = this.config.current();
    const etag = `"${revision}"`;
    // Shared caches must not keep it, because the answer needs credentials; clients must revalidate, because it may be replaced.
    reply.header('etag', etag).header('cache-control', 'private, no-cache');
    if (namesEntityTag(ifNoneMatch, etag)) {
      reply.code(304);
      return undefined;
    }
    reply.header('content-type', 'application/json; charset=utf-8');
    return text;
  }
}

const RevisionInPath = () => ApiParam({ name: 'revision' });

const RepeatableByKey = () =>
  ApiHeader({
    name: 'Idempotency-Key',
    required: false,
    description: 'A repeated request with the same key returns the same bundle and publishes nothing.',
  });

/** Lets operators publish, list and compare configurations. */
@ApiTags('config')
@Controller('v1/configs')
export class ConfigsController {
  constructor(private readonly config: ConfigService) {}

  /** Signs a configuration and puts it in force; it replaces the previous one. */
  @Post()
  @Operator('admin')
  @BulkWrite()
  @BodyLimit(MAX_BODY)
  @ApiOperation({ operationId: 'publishConfig', summary: 'Publish a configuration' })
  @RepeatableByKey()
  @ApiCreatedResponse({ type: ConfigBundle })
  @GuardedErrors('ERR_CONFLICT')
  publish(
    @CurrentOperator() operator: OperatorIdentity,
    @Body() body: PublishRequest,
    @IdempotencyKey() key: string | undefined,
  ): Promise<ConfigBundle> {
    return this.config.publish(operator, body, key);
  }

  /** Lists published configurations, newest first, with the progress of each roll-out. */
  @Get()
  @Operator('viewer')
  @ApiOperation({ operationId: 'listConfigs', summary: 'List configurations' })
  @ApiOkResponse({ type: ConfigPage })
  @GuardedErrors()
  list(@Query() query: PageQuery): Promise<ConfigPage> {
    return this.config.list(query);
  }

  /** Shows one configuration, even if it has expired or was replaced. */
  @Get(':revision')
  @Operator('viewer')
  @RevisionInPath()
  @ApiOperation({ operationId: 'getConfig', summary: 'Show a configuration' })
  @ApiOkResponse({ type: ConfigDetail })
  @GuardedErrors('ERR_NOT_FOUND')
  get(@Param('revision') revision: string): Promise<ConfigDetail> {
    return this.config.get(revision);
  }

  /** Shows the changes from the previous configuration to this one. */
  @Get(':revision/diff')
  @Operator('viewer')
  @RevisionInPath()
  @ApiOperation({ operationId: 'diffConfig', summary: 'Compare a configuration with the one before' })
  @ApiOkResponse({ type: ConfigDiff })
  @GuardedErrors('ERR_NOT_FOUND')
  diff(@Param('revision') revision: string): Promise<ConfigDiff> {
    return this.config.diff(revision);
  }

  /** Publishes the content of an earlier configuration again, with a new revision and seq. */
  @Post(':revision/rollback')
  @Operator('admin')
  @RevisionInPath()
  @ApiOperation({ operationId: 'rollBackConfig', summary: 'Go back to a configuration' })
  @RepeatableByKey()
  @ApiBody({ type: RollbackRequest, required: false })
  @ApiCreatedResponse({ type: ConfigBundle })
  @GuardedErrors('ERR_NOT_FOUND', 'ERR_CONFLICT')
  rollback(
    @CurrentOperator() operator: OperatorIdentity,
    @Param('revision') revision: string,
    @Body() body: RollbackRequest,
    @IdempotencyKey() key: string | undefined,
  ): Promise<ConfigBundle> {
    return this.config.rollback(operator, revision, body, key);
  }
}

/** Serves the public keys that verify configurations, to any caller. */
@ApiTags('config')
@Controller('.well-known')
export class VerifyingKeysController {
  constructor(private readonly config: ConfigService) {}

  /** Lists the public keys that verify the signatures of configuration bundles. */
  @Get('jwks.json')
  @Public()
  @ApiOperation({ operationId: 'listVerificationKeys', summary: 'List the keys that verify configuration' })
  @ApiOkResponse({ type: VerifyingKeys })
  @ApiErrors()
  keys(): VerifyingKeys {
    return { keys: this.config.verifyingKeys() as VerifyingKeys['keys'] };
  }
}
