import type { Span } from '@opentelemetry/api';
import type { FastifyInstance, FastifyReply } from 'fastify';
import { Clock } from '../clock';
import type { ControlPlaneRequest } from '../http/control-plane-request';
import { type RequestEnds, UNANSWERED } from '../http/request-ends';
import { spans } from '../http/trace-context';
import { markFailed, parseTraceparent, tracing } from '../tracing';
import { HEALTH_PATHS } from './health.controller';
import { LineBudget } from './line-budget';

/** Requests without credentials that get a span, per second and at once: they must not crowd out the others. */
const ANONYMOUS: [perSecond: number, burst: number] = [20, 100];

const READS = new Set(['GET', 'HEAD']);
/** Other methods are counted together, since clients can invent them: https://opentelemetry.io/docs/specs/semconv/http/http-spans/ */
export const METHODS: ReadonlySet<string> = new Set([
  'GET',
  'HEAD',
  'POST',
  'PUT',
  'PATCH',
  'DELETE',
  'OPTIONS',
]);

/**
 * Creates a span for each request, with its method, the pattern of its route and its status; never a path, query, header or
 * body. It continues the caller's trace if the caller is authenticated. A request that is refused before its body is read gets
 * a span without duration.
 */
export class RequestSpans {
  private readonly anonymous = new LineBudget(...ANONYMOUS);
  private readonly clock = new Clock();

  /** Traces the requests of a server from now on, if traces are sent. */
  attach(http: FastifyInstance, ends: RequestEnds): void {
    if (!tracing) return;
    // Not earlier: the callbacks of the body's stream would lose the span.
    http.addHook('preValidation', (request, reply, done) => {
      const span = this.begin(request, reply);
      if (tracing && span) tracing.run(span, done);
      else done();
    });
    ends.onEnd((request, reply, isAnswered) => {
      const span = spans.get(request) ?? (spans.has(request) ? undefined : this.begin(request, reply));
      if (span) end(span, reply, isAnswered);
    });
  }

  private begin(request: ControlPlaneRequest, reply: FastifyReply): Span | undefined {
    const { url: route } = request.routeOptions;
    const method = METHODS.has(request.method) ? request.method : '_OTHER';
    const isAuthenticated = request.agent !== undefined || request.operator !== undefined;
    const isProbe =
      route !== undefined && (HEALTH_PATHS.has(route) || (route === '/metrics' && READS.has(method)));
    const isTraced = !isProbe && (isAuthenticated || this.anonymous.take());
    const span = isTraced
      ? tracing?.start(route === undefined ? 'unknown' : `${method} ${route}`, {
          kind: 'server',
          // Clients without credentials must not decide which traces are sampled.
          parent: isAuthenticated ? parseTraceparent(request.headers.traceparent) : undefined,
          startedAt: this.clock.now() - reply.elapsedTime,
          attributes: {
            'http.request.method': method,
            ...(route === undefined ? {} : { 'http.route': route }),
          },
        })
      : undefined;
    spans.set(request, span ?? null);
    return span;
  }
}

function end(span: Span, reply: FastifyReply, isAnswered: boolean): void {
  if (!span.isRecording()) return;
  if (isAnswered) span.setAttribute('http.response.status_code', reply.statusCode);
  if (!isAnswered) markFailed(span, UNANSWERED);
  else if (reply.statusCode >= 500) markFailed(span, String(reply.statusCode));
  span.end();
}
