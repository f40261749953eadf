import { context, ROOT_CONTEXT, type Span, SpanKind, TraceFlags, trace } from '@opentelemetry/api';
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks';
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-proto';
import {
  defaultResource,
  detectResources,
  envDetector,
  resourceFromAttributes,
  serviceInstanceIdDetector,
} from '@opentelemetry/resources';
import {
  AlwaysOffSampler,
  AlwaysOnSampler,
  BatchSpanProcessor,
  ParentBasedSampler,
  RandomIdGenerator,
  type ReadableSpan,
  type Sampler,
  type SpanExporter,
  TraceIdRatioBasedSampler,
  TracerProvider,
} from '@opentelemetry/sdk-trace';
import type { Logger } from 'pino';
import type { TraceSettings } from '../trace-settings';
import { type SpanStart, setTracing, type TraceContext, type Tracing } from '../tracing';

/** The service's name unless OTEL_SERVICE_NAME sets another. */
const SERVICE_NAME = 'dns-agent-control-plane';
/** How often lost spans are logged, in ms. */
const WARN_INTERVAL_MS = 60_000;

const KINDS = { server: SpanKind.SERVER, consumer: SpanKind.CONSUMER } as const;

/**
 * Starts sending traces by OTLP over HTTP, as the `OTEL_*` variables say; OpenTelemetry itself reads the endpoint, headers and
 * timeouts of the exporter. This is the only file that loads OpenTelemetry.
 * @returns a function that sends the waiting spans, within the given time in ms, and ends tracing
 */
export function startTracing(settings: TraceSettings, logger: Logger): (withinMs: number) => Promise<void> {
  const ids = new PresetIds();
  const exporter = new WatchedExporter(new OTLPTraceExporter(), settings.batch.maxQueueSize, logger);
  const provider = new TracerProvider({
    resource: defaultResource()
      .merge(resourceFromAttributes({ 'service.name': SERVICE_NAME }))
      .merge(detectResources({ detectors: [serviceInstanceIdDetector] }))
      .merge(detectResources({ detectors: [envDetector] })),
    sampler: samplerOf(settings),
    idGenerator: ids,
    spanProcessors: [
      // First in the list, because the batch processor drops spans silently if its queue is full.
      { onEnd: (span) => exporter.expect(span), onStart: noop, forceFlush: done, shutdown: done },
      new BatchSpanProcessor({ exporter, ...settings.batch }),
    ],
  });
  // Global, so that spans of extensions that use OpenTelemetry themselves join the same traces.
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
  trace.setGlobalTracerProvider(provider);
  setTracing(new OpenTelemetryTracing(provider.getTracer(SERVICE_NAME), ids, exporter));
  return async (withinMs) => {
    setTracing(undefined);
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, withinMs);
    });
    // The exporter logs the spans that could not be sent.
    await Promise.race([provider.shutdown().catch(() => undefined), late]);
    clearTimeout(timer);
  };
}

class OpenTelemetryTracing implements Tracing {
  constructor(
    private readonly tracer: ReturnType<TracerProvider['getTracer']>,
    private readonly ids: PresetIds,
    private readonly exporter: WatchedExporter,
  ) {}

  get lost(): number {
    return this.exporter.lostTotal;
  }

  start(name: string, { parent, kind, attributes, links, startedAt, spanId }: SpanStart): Span {
    this.ids.next = spanId;
    return this.tracer.startSpan(
      name,
      { kind: kind && KINDS[kind], attributes, links, startTime: startedAt },
      parent ? trace.setSpan(ROOT_CONTEXT, spanOf(parent)) : ROOT_CONTEXT,
    );
  }

  active(): Span | undefined {
    return trace.getActiveSpan();
  }

  run<T>(span: Span | undefined, work: () => T): T {
    return context.with(span ? trace.setSpan(context.active(), span) : ROOT_CONTEXT, work);
  }
}

function spanOf(parent: Span | TraceContext): Span {
  if ('spanContext' in parent) return parent;
  const { traceId, spanId, flags } = parent;
  return trace.wrapSpanContext({ traceId, spanId, traceFlags: flags, isRemote: true });
}

/** Generates random ids, unless the id of the next span is given. */
class PresetIds extends RandomIdGenerator {
  next: string | undefined;

  override generateSpanId(): string {
    const id = this.next ?? super.generateSpanId();
    this.next = undefined;
    return id;
  }
}

function samplerOf({ sampler, ratio }: TraceSettings): Sampler {
  const isParentBased = sampler.startsWith('parentbased_');
  const root = rootSampler(isParentBased ? sampler.slice('parentbased_'.length) : sampler, ratio);
  return isParentBased ? new ParentBasedSampler({ root }) : root;
}

function rootSampler(name: string, ratio: number): Sampler {
  if (name === 'traceidratio') return new TraceIdRatioBasedSampler(ratio);
  return name === 'always_off' ? new AlwaysOffSampler() : new AlwaysOnSampler();
}

const noop = (): void => undefined;
const done = (): Promise<void> => Promise.resolve();

/**
 * Counts lost spans, and logs them once a minute, without the error's text, which may hold what the collector answered.
 */
class WatchedExporter implements SpanExporter {
  /** How many spans were lost since the start. */
  lostTotal = 0;
  private lost = 0;
  private isFailing = false;
  private warnedAt = Number.NEGATIVE_INFINITY;
  /** How many spans wait to be sent. */
  private waiting = 0;
  private dropped = 0;
  private warnedFullAt = Number.NEGATIVE_INFINITY;

  constructor(
    private readonly exporter: SpanExporter,
    private readonly maxWaiting: number,
    private readonly logger: Logger,
  ) {}

  /** Counts a span that will wait to be sent, or be dropped if too many wait. */
  expect(span: ReadableSpan): void {
    if ((span.spanContext().traceFlags & TraceFlags.SAMPLED) === 0) return;
    if (this.waiting < this.maxWaiting) {
      this.waiting++;
      return;
    }
    this.lostTotal++;
    this.dropped++;
    if (performance.now() - this.warnedFullAt < WARN_INTERVAL_MS) return;
    this.warnedFullAt = performance.now();
    this.logger.warn(
      { spans: this.dropped, waiting: this.waiting },
      'more spans end than the collector of traces accepts, and some are lost; sample fewer traces',
    );
    this.dropped = 0;
  }

  export(spans: ReadableSpan[], done: Parameters<SpanExporter['export']>[1]): void {
    this.waiting = Math.max(0, this.waiting - spans.length);
    this.exporter.export(spans, (result) => {
      // OpenTelemetry's ExportResultCode.SUCCESS.
      if (result.code === 0) this.onAccepted();
      else this.onLost(spans.length, result.error);
      done(result);
    });
  }

  shutdown(): Promise<void> {
    return this.exporter.shutdown();
  }

  private onAccepted(): void {
    if (this.isFailing) this.logger.info('the collector of traces accepts spans again');
    this.isFailing = false;
    this.warnedAt = Number.NEGATIVE_INFINITY;
  }

  private onLost(count: number, error: unknown): void {
    this.isFailing = true;
    this.lostTotal += count;
    this.lost += count;
    if (performance.now() - this.warnedAt < WARN_INTERVAL_MS) return;
    this.warnedAt = performance.now();
    this.logger.warn(
      { spans: this.lost, reason: reasonOf(error) },
      'the collector of traces did not accept spans, which are lost; the service continues without them',
    );
    this.lost = 0;
  }
}

/** The system's error code, or the status of the collector's answer. */
function reasonOf(error: unknown): string {
  const { code, cause } = Object(error) as { code?: unknown; cause?: unknown };
  if (typeof code === 'number') return `status ${code}`;
  if (typeof code === 'string' && /^[A-Z][A-Z0-9_]{1,40}$/.test(code)) return code;
  return cause === undefined ? 'no answer' : reasonOf(cause);
}
