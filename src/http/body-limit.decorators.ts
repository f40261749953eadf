import { SetMetadata } from '@nestjs/common';

export const BODY_LIMIT = Symbol('body-limit');

/** How large a body a route takes that does not say so, in bytes. */
export const DEFAULT_BODY_LIMIT = 16 * 1024;
/** A body of many ids or labels, in bytes. */
export const MEDIUM_BODY = 64 * 1024;
/** The largest body that a route can take, in bytes. */
export const MAX_BODY = 4 * 1024 * 1024;

/** Takes bodies of up to this number of bytes, 4 MiB at most. A route without it takes 16 KiB. */
export function BodyLimit(bytes: number): MethodDecorator {
  if (!Number.isInteger(bytes) || bytes < 1 || bytes > MAX_BODY)
    throw new Error(`@BodyLimit(${bytes}): the limit must be from 1 to ${MAX_BODY} bytes`);
  return SetMetadata(BODY_LIMIT, bytes);
}
