import { SetMetadata } from '@nestjs/common';

export const BODY_LIMIT = Symbol('body-limit');

/** The body limit of a route without `@BodyLimit`, in bytes. */
export const DEFAULT_BODY_LIMIT = 16 * 1024;
/** The limit for bodies with many ids or labels, in bytes. */
export const MEDIUM_BODY = 64 * 1024;
/** The largest body that a route can take, in bytes. */
export const MAX_BODY = 4 * 1024 * 1024;

/** Sets the largest body that a route accepts, in bytes, at most 4 MiB. The default is 16 KiB. */
export function BodyLimit(bytes: number): MethodDecorator {
  if (!Number.isInteger(bytes) || bytes < 1 || bytes > MAX_BODY)
    throw new Error(`@BodyLimit(${bytes}): the limit must be from 1 to ${MAX_BODY} bytes`);
  return SetMetadata(BODY_LIMIT, bytes);
}
