import { createParamDecorator, type ExecutionContext } from '@nestjs/common';
import type { Span } from '@opentelemetry/api';
import { contextOf, parseTraceparent, type TraceContext, toTraceparent } from '../tracing';
import type { ControlPlaneRequest } from './control-plane-request';

/** The spans of requests that are under way; null of one that gets none. */
export const spans = new WeakMap<object, Span | null>();

/** The trace that a request belongs to: where its span stands, or if it has none, what its caller says if it is known. */
export function traceOf(request: ControlPlaneRequest): TraceContext | undefined {
  const span = spans.get(request);
  if (span) return contextOf(span);
  const isKnown = request.agent !== undefined || request.operator !== undefined;
  return isKnown ? parseTraceparent(request.headers.traceparent) : undefined;
}

/** The `traceparent` of what a request brings about; undefined if it belongs to no trace. */
export const Traceparent = createParamDecorator((_: unknown, context: ExecutionContext) => {
  const found = traceOf(context.switchToHttp().getRequest<ControlPlaneRequest>());
  return found && toTraceparent(found);
});
