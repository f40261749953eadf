import { createParamDecorator, type ExecutionContext } from '@nestjs/common';
import type { Span } from '@opentelemetry/api';
import { contextOf, parseTraceparent, type TraceContext, toTraceparent } from '../tracing';
import type { ControlPlaneRequest } from './control-plane-request';

/** The spans of open requests; null for a request that is not traced. */
export const spans = new WeakMap<object, Span | null>();

/** The trace that a request belongs to: its span's, or without a span that of its `traceparent` if the caller is authenticated. */
export function traceOf(request: ControlPlaneRequest): TraceContext | undefined {
  const span = spans.get(request);
  if (span) return contextOf(span);
  const isKnown = request.agent !== undefined || request.operator !== undefined;
  return isKnown ? parseTraceparent(request.headers.traceparent) : undefined;
}

/** The `traceparent` for what a request causes; undefined if it belongs to no trace. */
export const Traceparent = createParamDecorator((_: unknown, context: ExecutionContext) => {
  const found = traceOf(context.switchToHttp().getRequest<ControlPlaneRequest>());
  return found && toTraceparent(found);
});
