import type { Attributes, AttributeValue, Link, Span } from '@opentelemetry/api';

/**
 * Traces for all parts of the program. OpenTelemetry is not loaded here: only if traces are sent, `telemetry/otlp.ts` is
 * loaded and sets {@link tracing}. Without it, a span costs one comparison.
 */

/** The position of a span in a trace, as in W3C Trace Context. */
export interface TraceContext {
  /** 32 lower-case hexadecimal digits. */
  readonly traceId: string;
  /** 16 lower-case hexadecimal digits. */
  readonly spanId: string;
  /** Bit 0: the trace is sampled. Bit 1: its id is random. */
  readonly flags: number;
}

/** How a span starts. */
export interface SpanStart {
  /** Its parent, in this process or another; without one it starts a trace. */
  readonly parent?: Span | TraceContext | undefined;
  readonly kind?: 'server' | 'consumer';
  readonly attributes?: Attributes;
  readonly links?: Link[];
  /** In ms since the Unix epoch; now by default. */
  readonly startedAt?: number;
  /** Its id, if others know it already. */
  readonly spanId?: string;
}

/** Sends traces. */
export interface Tracing {
  /** Starts a span. */
  start(name: string, options: SpanStart): Span;
  /** The span that the caller runs in. */
  active(): Span | undefined;
  /** Runs the work in a span; outside of every span if it is undefined. */
  run<T>(span: Span | undefined, work: () => T): T;
  /** How many spans were lost: the collector did not accept them, or too many were waiting. */
  readonly lost: number;
}

/** Sends traces; undefined if traces are off. */
export let tracing: Tracing | undefined;

/** Sets or removes the sender of traces. Call it before the application is built: parts of it check only once. */
export function setTracing(sender: Tracing | undefined): void {
  tracing = sender;
}

// Versions after 00 may have more fields after another hyphen: https://www.w3.org/TR/trace-context/#versioning-of-traceparent
const TRACEPARENT =
  /^(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/;
const MAX_TRACEPARENT = 512;
const SAMPLED = 1;
const KNOWN_FLAGS = 3;

/** Parses a `traceparent` header. @returns undefined if it is missing or malformed: then the caller has no trace */
export function parseTraceparent(text: unknown): TraceContext | undefined {
  if (typeof text !== 'string' || text.length > MAX_TRACEPARENT) return undefined;
  const [, version, traceId, spanId, flags, more] = TRACEPARENT.exec(text) ?? [];
  if (traceId === undefined || spanId === undefined || (version === '00' && more !== undefined))
    return undefined;
  return { traceId, spanId, flags: Number.parseInt(flags as string, 16) & KNOWN_FLAGS };
}

/** Writes a `traceparent` header, in version 00. */
export const toTraceparent = ({ traceId, spanId, flags }: TraceContext): string =>
  `00-${traceId}-${spanId}-0${flags & KNOWN_FLAGS}`;

export const isSampled = ({ flags }: TraceContext): boolean => (flags & SAMPLED) !== 0;

/** The position of a span in its trace. */
export function contextOf(span: Span): TraceContext {
  const { traceId, spanId, traceFlags } = span.spanContext();
  return { traceId, spanId, flags: traceFlags };
}

/** Creates a link to a span. @param role what the linked span is to the one that links */
export const linkTo = ({ traceId, spanId, flags }: TraceContext, role: string): Link => ({
  context: { traceId, spanId, traceFlags: flags, isRemote: true },
  attributes: { 'control_plane.link': role },
});

/** The current trace, with the names of the log's fields; undefined if there is none. */
export function currentTrace(): { trace_id: string; span_id: string } | undefined {
  const span = tracing?.active();
  if (!span) return undefined;
  const { traceId, spanId } = span.spanContext();
  return { trace_id: traceId, span_id: spanId };
}

/** Spans with children. */
const parents = new WeakSet<Span>();

/** Starts a child of the current span. @returns undefined if there is no current span, or it is not recorded */
export function startChild(name: string, attributes?: Attributes, links?: Link[]): Span | undefined {
  const parent = tracing?.active();
  return parent && startBelow(parent, name, attributes, links);
}

/** Starts a child of a span. @returns undefined if the span is not recorded */
export function startBelow(
  parent: Span,
  name: string,
  attributes?: Attributes,
  links?: Link[],
): Span | undefined {
  if (!tracing || !parent.isRecording()) return undefined;
  parents.add(parent);
  return tracing.start(name, { parent, attributes, links });
}

/** Ends a span, as failed if there is a failure. */
export function endSpan(span: Span, failure?: { error: unknown }): void {
  if (failure) markFailed(span, typeOf(failure.error));
  span.end();
}

/** Marks a span as failed. @param type one of a few codes, never a message, which may hold what clients sent */
export function markFailed(span: Span, type: string): void {
  span.setAttribute('error.type', type).setStatus({ code: STATUS_ERROR });
}

/** SpanStatusCode.ERROR of OpenTelemetry, which is not loaded here. */
const STATUS_ERROR = 2;

/** The type of an error: its code if it has one, or its class. */
function typeOf(error: unknown): string {
  const code = (error as { code?: unknown } | null)?.code;
  if (typeof code === 'string' && /^[A-Z][A-Z0-9_]{1,40}$/.test(code)) return code;
  return error instanceof Error ? error.constructor.name : 'unknown';
}

/** Ends a span when the work settles. @returns the result of the work */
export async function endWith<T>(span: Span, work: Promise<T>): Promise<T> {
  try {
    const value = await work;
    endSpan(span);
    return value;
  } catch (error) {
    endSpan(span, { error });
    throw error;
  }
}

/** Runs the work in a span, if there is one. */
export const within = <T>(span: Span | undefined, work: () => T): T =>
  tracing && span ? tracing.run(span, work) : work();

/** Runs the work outside of every span, because it serves others than the caller. */
export const detached = <T>(work: () => T): T => (tracing ? tracing.run(undefined, work) : work());

/** Runs the work in a child of the current span, if that is recorded. */
export function inSpan<T>(name: string, work: () => Promise<T>, attributes?: Attributes): Promise<T> {
  const span = startChild(name, attributes);
  return span ? endWith(span, within(span, work)) : work();
}

/**
 * Runs the work in a trace of its own, which is sent only if the work failed or created spans in it: otherwise jobs that poll
 * four times a second would be most of the traces.
 */
export async function inTraceOfItsOwn<T>(
  name: string,
  work: () => Promise<T>,
  attributes?: Attributes,
): Promise<T> {
  if (!tracing) return work();
  const span = tracing.start(name, { attributes });
  try {
    const value = await tracing.run(span, work);
    // A span that is not ended is never sent.
    if (parents.has(span)) endSpan(span);
    return value;
  } catch (error) {
    endSpan(span, { error });
    throw error;
  }
}

/** Names of spans and attributes that an extension chooses. */
const NAME = /^[a-z][a-z0-9_]{0,63}$/;
const MAX_ATTRIBUTES = 16;

/** The attributes of an extension's span: numbers, booleans and words of the code. */
export type TraceAttributes = Readonly<Record<string, number | boolean | string>>;

/**
 * Runs the work in a child of the current span: that of the request, the unit of work or the job. Without one, or if traces
 * are off, it only runs the work. Errors of the work are rethrown, and recorded by their code or class.
 * @param name in lower_snake_case, of at most 64 characters, and written in the code: it is what spans are counted by
 * @param attributes at most 16, named likewise. Values are numbers, booleans or words in lower_snake_case; another text is
 * left out, because it may hold what clients sent
 * @throws TypeError a name is not of that form
 */
export function trace<T>(name: string, attributes: TraceAttributes, work: () => Promise<T>): Promise<T> {
  checkName(name, 'span');
  const parent = tracing?.active();
  if (!parent?.isRecording()) return work();
  return inSpan(name, work, permitted(attributes));
}

function permitted(attributes: TraceAttributes): Attributes {
  const taken: Record<string, AttributeValue> = {};
  for (const [name, value] of Object.entries(attributes).slice(0, MAX_ATTRIBUTES)) {
    checkName(name, 'attribute');
    if (typeof value === 'string' ? NAME.test(value) : typeof value === 'boolean' || Number.isFinite(value))
      taken[name] = value;
  }
  return taken;
}

/** Names that were checked already. */
const checked = new Set<string>();
const MAX_CHECKED = 1_000;

function checkName(name: string, of: string): void {
  if (checked.has(name)) return;
  if (!NAME.test(name)) throw new TypeError(`The name of a ${of} must be in lower_snake_case: ${NAME}`);
  if (checked.size < MAX_CHECKED) checked.add(name);
}
