import { applyDecorators } from '@nestjs/common';
import {
  ApiExtraModels,
  ApiProperty,
  ApiPropertyOptional,
  ApiResponse,
  getSchemaPath,
} from '@nestjs/swagger';
import { ERRORS, type ErrorCode, type ErrorDetails } from '../errors';

/** The body of every error answer. */
export class ErrorEnvelope {
  @ApiProperty({ enum: Object.keys(ERRORS), example: 'ERR_VALIDATION' })
  error!: ErrorCode;

  @ApiProperty({
    description: 'A sentence for people; do not parse it.',
    example: ERRORS.ERR_VALIDATION.message,
  })
  message!: string;

  @ApiProperty({ description: 'Whether the same request may succeed later.', example: false })
  retryable!: boolean;

  @ApiPropertyOptional({
    type: 'object',
    additionalProperties: true,
    description: 'Field paths to messages, or facts about the conflict.',
    example: { agent_id: 'must be a positive integer' },
  })
  details?: ErrorDetails;
}

/** The errors of every route. */
const ALWAYS: readonly ErrorCode[] = ['ERR_RATE_LIMITED', 'ERR_BACKEND', 'ERR_UNAVAILABLE'];

/** The errors of every route that needs credentials. */
const GUARDED = ['ERR_VALIDATION', 'ERR_UNAUTHORIZED', 'ERR_TOKEN_EXPIRED', 'ERR_FORBIDDEN'] as const;

const SECONDS = { schema: { type: 'integer', minimum: 1 }, example: 2 } as const;

const RETRY_AFTER = {
  description: 'After how many seconds the same request may succeed.',
  ...SECONDS,
} as const;

/** The header of a successful answer while the server stops: the caller should come back later. */
export const COME_BACK_AFTER = {
  'Retry-After': {
    description:
      'Only if there are no leases and the server is about to stop: after how many seconds to claim again.',
    required: false,
    ...SECONDS,
  },
} as const;

/**
 * Documents the errors of a route, each as the envelope with an example. The errors of every route are added.
 */
export function ApiErrors(...codes: ErrorCode[]): MethodDecorator {
  const byStatus = new Map<number, ErrorCode[]>();
  for (const code of new Set([...codes, ...ALWAYS])) {
    const { status } = ERRORS[code];
    byStatus.set(status, [...(byStatus.get(status) ?? []), code]);
  }
  return applyDecorators(
    ApiExtraModels(ErrorEnvelope),
    ...[...byStatus].map(([status, sharing]) => ApiResponse(describe(status, sharing))),
  );
}

/** Documents the errors of a route that needs credentials: those of every such route, and the given ones. */
export const GuardedErrors = (...codes: ErrorCode[]) => ApiErrors(...GUARDED, ...codes);

/** Describes one status, with the codes that share it. */
function describe(status: number, codes: readonly ErrorCode[]) {
  return {
    status,
    description: codes.map((code) => `\`${code}\`: ${ERRORS[code].message}`).join(' '),
    ...(status === 429 || status === 503 ? { headers: { 'Retry-After': RETRY_AFTER } } : {}),
    content: {
      'application/json': {
        schema: { $ref: getSchemaPath(ErrorEnvelope) },
        examples: Object.fromEntries(codes.map((code) => [code, { value: exampleOf(code) }])),
      },
    },
  };
}

function exampleOf(code: ErrorCode): ErrorEnvelope {
  const { message, retryable } = ERRORS[code];
  return {
    error: code,
    message,
    retryable,
    ...(code === 'ERR_VALIDATION' ? { details: { agent_id: 'must be a positive integer' } } : {}),
  };
}
