import { type ArgumentsHost, Catch, type ExceptionFilter, HttpException, Logger } from '@nestjs/common';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { ApiError, fail } from '../errors';
import type { ErrorEnvelope } from './api-errors';
import type { ControlPlaneRequest } from './control-plane-request';

/** Fastify's own refusals, by code, in the catalogue's words. */
const FASTIFY_ERRORS: Record<string, () => ApiError> = {
  FST_ERR_CTP_BODY_TOO_LARGE: () =>
    fail(
      'ERR_VALIDATION',
      { body: 'is larger than the limit' },
      { status: 413, message: 'The body is too large.' },
    ),
  FST_ERR_CTP_INVALID_MEDIA_TYPE: () =>
    fail(
      'ERR_VALIDATION',
      { 'content-type': 'must be application/json' },
      { status: 415, message: 'Only application/json is taken.' },
    ),
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: () =>
    fail('ERR_VALIDATION', { body: 'does not have the length announced' }),
  FST_ERR_CTP_EMPTY_JSON_BODY: () => fail('ERR_VALIDATION', { body: 'must not be empty' }),
  FST_ERR_BAD_URL: () => fail('ERR_VALIDATION', { path: 'is not a valid URL path' }),
  FST_ERR_MAX_PARAM_LENGTH: () => fail('ERR_VALIDATION', { path: 'has a part that is too long' }),
};

/** Any error as its place in the catalogue; what is not ours and not the client's fault is ERR_BACKEND. */
export function toApiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error;
  // Nest wraps what Fastify refused.
  if (error instanceof HttpException && error.cause !== undefined) return toApiError(error.cause);
  const { code, statusCode } = (error ?? {}) as { code?: string; statusCode?: number };
  const known = FASTIFY_ERRORS[code ?? ''];
  if (known) return known();
  const status = error instanceof HttpException ? error.getStatus() : statusCode;
  if (status === 404) return fail('ERR_NOT_FOUND');
  if (status !== undefined && status >= 400 && status < 500) return fail('ERR_VALIDATION');
  return fail('ERR_BACKEND', undefined, { cause: error });
}

/** The envelope of an error; causes and stacks are not in it. */
export function toEnvelope(error: ApiError): ErrorEnvelope {
  const envelope: ErrorEnvelope = { error: error.code, message: error.message, retryable: error.retryable };
  if (error.details) envelope.details = error.details;
  return envelope;
}

/** Headers that say when to try again. */
export function retryHeaders(error: ApiError): Record<string, string> {
  const waitMs = error.retryAfterMs ?? (error.status === 503 ? 1_000 : undefined);
  return waitMs === undefined ? {} : retryAfter(waitMs);
}

/** The header that has a caller wait so long: whole seconds, rounded up, at least one. */
export const retryAfter = (waitMs: number) => ({
  'retry-after': String(Math.max(1, Math.ceil(waitMs / 1_000))),
});

/** Why a request was turned away, for the metrics. */
export interface Refusal {
  readonly reason: string;
  /** Which quota it was over. */
  readonly quota?: string;
}

/** What 503 answers name in `details.reason`, and what else a request is turned away for. */
const REASONS = new Set(['overload', 'in_flight', 'disk', 'database', 'stopping', 'verifying']);

/** What an error says of why a request was turned away; undefined if it was not, but wrong, or failed. */
export function refusalOf({ code, status, details }: ApiError): Refusal | undefined {
  if (code === 'ERR_RATE_LIMITED') {
    const { quota, budget } = details ?? {};
    if (typeof budget === 'string') return { reason: 'quota', quota: budget };
    // Whoever fails to prove itself is told no more than that.
    return { reason: 'quota', quota: typeof quota === 'string' ? quota : 'failed-auth' };
  }
  if (status === 401) return { reason: 'authentication' };
  if (status === 403) return { reason: 'forbidden' };
  if (status !== 503) return undefined;
  const { reason } = details ?? {};
  // Without one it was the database, which could not store or find it.
  return { reason: typeof reason === 'string' && REASONS.has(reason) ? reason : 'database' };
}

/** Answers every error, of whatever layer, in the documented envelope. */
@Catch()
export class ErrorFilter implements ExceptionFilter {
  private readonly logger = new Logger('Errors');

  catch(thrown: unknown, host: ArgumentsHost): void {
    const http = host.switchToHttp();
    this.answer(thrown, http.getRequest<FastifyRequest>(), http.getResponse<FastifyReply>());
  }

  /** Sends the envelope; a failure of ours is logged with its cause, which is never sent. */
  answer(thrown: unknown, request: ControlPlaneRequest, reply: FastifyReply): void {
    const error = toApiError(thrown);
    request.refusal = error;
    // What is turned away on purpose stands in the request's own line; under a flood one more for each would be too much.
    if (error.status >= 500 && (error.code === 'ERR_BACKEND' || error.cause !== undefined)) {
      this.logger.error(
        { request_id: request.id, route: request.routeOptions?.url, err: error.cause ?? error },
        error.message,
      );
    }
    if (reply.sent) return;
    reply
      .code(error.status)
      .headers(retryHeaders(error))
      .header('content-type', 'application/json; charset=utf-8')
      .send(toEnvelope(error));
  }
}
