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
import type { TraceSettings } from '../settings';
import { type SpanStart, setTracing, type TraceContext, type Tracing } from '../tracing';

/** The name that spans are under if OTEL_SERVICE_NAME says no other. */
const SERVICE_NAME = 'dns-agent-control-plane';
/** How often it is logged that spans are not taken, in milliseconds. */
const COMPLAIN_EVERY_MS = 60_000;

const KINDS = { server: SpanKind.SERVER, consumer: SpanKind.CONSUMER } as const;

/**
 * Begins to send traces by OTLP over HTTP, as the `OTEL_*` variables say; the endpoint, headers and timeouts of the exporter
 * are read by OpenTelemetry itself. The only file that loads OpenTelemetry.
 * @returns what sends the spans that wait, for at most so many milliseconds, and ends it
 */
export function startTracing(settings: TraceSettings, logger: Logger): (withinMs: number) => Promise<void> {
  const ids = new ChosenIds();
  const exporter = new WatchedExporter(new OTLPTraceExporter(), settings.batch.maxQueueSize, logger);
  const provider = new TracerProvider({
    resource: defaultResource()
      .merge(resourceFromAttributes({ 'service.name': SERVICE_NAME }))
      .merge(detectResources({ detectors: [serviceInstanceIdDetector] }))
      .merge(detectResources({ detectors: [envDetector] })),
    sampler: samplerOf(settings),
    idGenerator: ids,
    spanProcessors: [
      // The first: what does not fit behind it is dropped without a word.
      { onEnd: (span) => exporter.expect(span), onStart: noop, forceFlush: done, shutdown: done },
      new BatchSpanProcessor({ exporter, ...settings.batch }),
    ],
  });
  // Global, so that an extension's own use of OpenTelemetry joins the same traces.
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
  trace.setGlobalTracerProvider(provider);
  setTracing(new OpenTelemetryTracing(provider.getTracer(SERVICE_NAME), ids, exporter));
  return async (withinMs) => {
    setTracing(undefined);
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, withinMs);
    });
    // What could not be sent is logged by the exporter.
    await Promise.race([provider.shutdown().catch(() => undefined), late]);
    clearTimeout(timer);
  };
}

class OpenTelemetryTracing implements Tracing {
  constructor(
    private readonly tracer: ReturnType<TracerProvider['getTracer']>,
    private readonly ids: ChosenIds,
    private readonly exporter: WatchedExporter,
  ) {}

  get lost(): number {
    return this.exporter.lostInAll;
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

/** Random ids, unless the id of the next span is known to others already. */
class ChosenIds extends RandomIdGenerator {
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
 * Counts the spans that are lost, and says so once a minute. Nothing of the error's text: it may hold what the collector
 * answered.
 */
class WatchedExporter implements SpanExporter {
  /** How many spans were lost since the start. */
  lostInAll = 0;
  private lost = 0;
  private isFailing = false;
  private complainedAt = Number.NEGATIVE_INFINITY;
  /** How many spans wait to be sent. */
  private waiting = 0;
  private dropped = 0;
  private saidFullAt = Number.NEGATIVE_INFINITY;

  constructor(
    private readonly exporter: SpanExporter,
    private readonly maxWaiting: number,
    private readonly logger: Logger,
  ) {}

  /** Counts a span that is about to wait to be sent, or to be dropped if too many do. */
  expect(span: ReadableSpan): void {
    if ((span.spanContext().traceFlags & TraceFlags.SAMPLED) === 0) return;
    if (this.waiting < this.maxWaiting) {
      this.waiting++;
      return;
    }
    this.lostInAll++;
    this.dropped++;
    if (performance.now() - this.saidFullAt < COMPLAIN_EVERY_MS) return;
    this.saidFullAt = performance.now();
    this.logger.warn(
      { spans: this.dropped, waiting: this.waiting },
      'more spans end than the collector of traces takes, and some are lost; take a share of the traces',
    );
    this.dropped = 0;
  }

  export(spans: ReadableSpan[], done: Parameters<SpanExporter['export']>[1]): void {
    this.waiting = Math.max(0, this.waiting - spans.length);
    this.exporter.export(spans, (result) => {
      // OpenTelemetry's ExportResultCode.SUCCESS.
      if (result.code === 0) this.onTaken();
      else this.onLost(spans.length, result.error);
      done(result);
    });
  }

  shutdown(): Promise<void> {
    return this.exporter.shutdown();
  }

  private onTaken(): void {
    if (this.isFailing) this.logger.info('the collector of traces takes spans again');
    this.isFailing = false;
    this.complainedAt = Number.NEGATIVE_INFINITY;
  }

  private onLost(count: number, error: unknown): void {
    this.isFailing = true;
    this.lostInAll += count;
    this.lost += count;
    if (performance.now() - this.complainedAt < COMPLAIN_EVERY_MS) return;
    this.complainedAt = performance.now();
    this.logger.warn(
      { spans: this.lost, reason: reasonOf(error) },
      'the collector of traces did not take spans, which are lost; the service goes on without',
    );
    this.lost = 0;
  }
}

/** A code of the system's, or the status of the collector's answer. */
function reasonOf(error: unknown): string {
  const { code, cause } = Object(error) as { code?: unknown; cause?: unknown };
  if (typeof code === 'number') return `status ${code}`;
  if (typeof code === 'string' && /^[A-Z][A-Z0-9_]{1,40}$/.test(code)) return code;
  return cause === undefined ? 'no answer' : reasonOf(cause);
}
