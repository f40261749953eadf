import { Controller, Get, Headers, Res } from '@nestjs/common';
import { ApiHeader, ApiOkResponse, ApiOperation, ApiResponse, ApiTags } from '@nestjs/swagger';
import type { FastifyReply } from 'fastify';
import { ApiErrors, GuardedErrors } from '../http/api-errors';
import { AGENT_PATHS, Agent, Public, Quota } from '../http/decorators';
import { namesEntityTag } from '../http/if-none-match';
import { ConfigBundle, VerifyingKeys } from './config.dto';
import { ConfigService } from './config.service';

const ETAG = {
  ETag: {
    description: 'The revision in quotes; send it in `If-None-Match`.',
    schema: { type: 'string' },
    example: '"a3f1c2d4e5b60718"',
  },
} as const;

/** What agents call for their configuration. */
@ApiTags('config')
@Controller(AGENT_PATHS)
export class ConfigController {
  constructor(private readonly config: ConfigService) {}

  /** Gives the signed configuration in force, or 304 where `If-None-Match` names it. */
  @Get('config')
  @Agent()
  @Quota('config', '6/h', { burst: 2 })
  @ApiOperation({ summary: 'Fetch the configuration' })
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
    // Kept by nobody in between, for the answer depends on who asks; asked for again each time, for it may be replaced.
    reply.header('etag', etag).header('cache-control', 'private, no-cache');
    if (namesEntityTag(ifNoneMatch, etag)) {
      reply.code(304);
      return undefined;
    }
    reply.header('content-type', 'application/json; charset=utf-8');
    return text;
  }
}

/** What anyone may call to verify a configuration. */
@ApiTags('config')
@Controller('.well-known')
export class VerifyingKeysController {
  constructor(private readonly config: ConfigService) {}

  /** Lists the public keys that verify the signatures of configuration bundles. */
  @Get('jwks.json')
  @Public()
  @ApiOperation({ summary: 'List the keys that verify configuration' })
  @ApiOkResponse({ type: VerifyingKeys })
  @ApiErrors()
  keys(): VerifyingKeys {
    return { keys: this.config.verifyingKeys() as VerifyingKeys['keys'] };
  }
}
