import { type ArgumentsHost, Catch, type ExceptionFilter, HttpException, Logger } from '@nestjs/common';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { ApiError, fail } from '../errors';
import type { ErrorEnvelope } from './api-errors';
import type { ControlPlaneRequest } from './control-plane-request';

/** Fastify's own errors, by code, as errors of the catalogue. */
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
      { status: 415, message: 'Only application/json is accepted.' },
    ),
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: () =>
    fail('ERR_VALIDATION', { body: 'does not have the length announced' }),
  FST_ERR_CTP_EMPTY_JSON_BODY: () => fail('ERR_VALIDATION', { body: 'must not be empty' }),
  FST_ERR_BAD_URL: () => fail('ERR_VALIDATION', { path: 'is not a valid URL path' }),
  FST_ERR_MAX_PARAM_LENGTH: () => fail('ERR_VALIDATION', { path: 'has a part that is too long' }),
};

/** Converts any error to one of the catalogue; unknown errors that are not the client's fault become ERR_BACKEND. */
export function toApiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error;
  // Nest wraps Fastify's errors.
  if (error instanceof HttpException && error.cause !== undefined) return toApiError(error.cause);
  const { code, statusCode } = (error ?? {}) as { code?: string; statusCode?: number };
  const known = FASTIFY_ERRORS[code ?? ''];
  if (known) return known();
  const status = error instanceof HttpException ? error.getStatus() : statusCode;
  if (status === 404) return fail('ERR_NOT_FOUND');
  if (status !== undefined && status >= 400 && status < 500) return fail('ERR_VALIDATION');
  return fail('ERR_BACKEND', undefined, { cause: error });
}

/** Converts an error to the envelope, without causes and stacks. */
export function toEnvelope(error: ApiError): ErrorEnvelope {
  const envelope: ErrorEnvelope = { error: error.code, message: error.message, retryable: error.retryable };
  if (error.details) envelope.details = error.details;
  return envelope;
}

/** The headers that say when to retry; empty if a retry makes no sense. */
export function retryHeaders(error: ApiError): Record<string, string> {
  const waitMs = error.retryAfterMs ?? (error.status === 503 ? 1_000 : undefined);
  return waitMs === undefined ? {} : retryAfter(waitMs);
}

/** The header `Retry-After`: whole seconds, rounded up, at least one. */
export const retryAfter = (waitMs: number) => ({
  'retry-after': String(Math.max(1, Math.ceil(waitMs / 1_000))),
});

/** Why a request was refused, for the metrics. */
export interface Refusal {
  readonly reason: string;
  /** The quota that it exceeded. */
  readonly quota?: string;
}

/** The values of `details.reason` in 503 answers. */
const REASONS = new Set(['overload', 'in_flight', 'disk', 'database', 'stopping', 'verifying']);

/** Returns why a request was refused, from its error; undefined if it was invalid or failed instead. */
export function refusalOf({ code, status, details }: ApiError): Refusal | undefined {
  if (code === 'ERR_RATE_LIMITED') {
    const { quota, budget } = details ?? {};
    if (typeof budget === 'string') return { reason: 'quota', quota: budget };
    // The quota of failed authentication is not named to the client.
    return { reason: 'quota', quota: typeof quota === 'string' ? quota : 'failed-auth' };
  }
  if (status === 401) return { reason: 'authentication' };
  if (status === 403) return { reason: 'forbidden' };
  if (status !== 503) return undefined;
  const { reason } = details ?? {};
  // Errors of the database carry no reason.
  return { reason: typeof reason === 'string' && REASONS.has(reason) ? reason : 'database' };
}

/** Answers every error of every layer in the documented envelope. */
@Catch()
export class ErrorFilter implements ExceptionFilter {
  private readonly logger = new Logger('Errors');

  catch(thrown: unknown, host: ArgumentsHost): void {
    const http = host.switchToHttp();
    this.answer(thrown, http.getRequest<FastifyRequest>(), http.getResponse<FastifyReply>());
  }

  /** Sends the envelope. An internal failure is logged with its cause, which is never sent. */
  answer(thrown: unknown, request: ControlPlaneRequest, reply: FastifyReply): void {
    const error = toApiError(thrown);
    request.refusal = error;
    // Intended refusals are in the request's own log line: a second line for each would be too many under load.
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
