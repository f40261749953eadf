/**
 * The catalogue of errors. Every error answer has one of these codes in the envelope
 * `{error, message, retryable, details?}`; `docs/control-plane-api.md` documents them.
 */
export const ERRORS = {
  ERR_VALIDATION: { status: 400, retryable: false, message: 'The request is not valid.' },
  ERR_UNAUTHORIZED: { status: 401, retryable: false, message: 'Credentials are missing or not accepted.' },
  ERR_TOKEN_EXPIRED: { status: 401, retryable: false, message: 'The token has expired; register again.' },
  ERR_FORBIDDEN: { status: 403, retryable: false, message: 'The caller may not do this.' },
  ERR_NOT_FOUND: { status: 404, retryable: false, message: 'There is no such resource.' },
  ERR_METHOD_NOT_ALLOWED: { status: 405, retryable: false, message: 'This path does not take this method.' },
  ERR_CONFLICT: { status: 409, retryable: false, message: 'The request conflicts with the current state.' },
  ERR_RATE_LIMITED: { status: 429, retryable: true, message: 'Too many requests; wait for Retry-After.' },
  ERR_BACKEND: { status: 500, retryable: true, message: 'The server failed; it is safe to try again.' },
  ERR_UNAVAILABLE: {
    status: 503,
    retryable: true,
    message: 'The server cannot answer now; try again later.',
  },
} as const;

/** One of the documented `ERR_*` codes. */
export type ErrorCode = keyof typeof ERRORS;

/** The details of an error for the client: field paths to messages, or facts about the conflict. */
export type ErrorDetails = Record<string, unknown>;

/** What an error changes compared to its row in the catalogue. */
export interface FailOptions {
  /** A sentence for the reader, instead of the catalogue's. */
  message?: string;
  /** A more exact HTTP status of the same class, such as 413 or 415 for `ERR_VALIDATION`. */
  status?: number;
  /** Whether the same request may succeed later. */
  retryable?: boolean;
  /** How long the client must wait, in ms; sent as `Retry-After` in whole seconds, rounded up. */
  retryAfterMs?: number;
  /** The underlying error, only for the log. */
  cause?: unknown;
}

/** An error of the catalogue. Create it with {@link fail}. */
export class ApiError extends Error {
  readonly status: number;
  readonly retryable: boolean;
  readonly retryAfterMs: number | undefined;

  constructor(
    readonly code: ErrorCode,
    readonly details?: ErrorDetails,
    options: FailOptions = {},
  ) {
    const entry = ERRORS[code];
    super(
      options.message ?? entry.message,
      options.cause === undefined ? undefined : { cause: options.cause },
    );
    this.name = 'ApiError';
    this.status = options.status ?? entry.status;
    this.retryable = options.retryable ?? entry.retryable;
    this.retryAfterMs = options.retryAfterMs;
  }
}

/** Creates an error to throw: `throw fail('ERR_CONFLICT', { hostname })`. */
export function fail(code: ErrorCode, details?: ErrorDetails, options?: FailOptions): ApiError {
  const { stackTraceLimit } = Error;
  // Nobody reads the stack of a client's error, and capturing it costs more than the rest of the refusal.
  if (ERRORS[code].status < 500) Error.stackTraceLimit = 0;
  try {
    return new ApiError(code, details, options);
  } finally {
    Error.stackTraceLimit = stackTraceLimit;
  }
}
