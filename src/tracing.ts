import type { Attributes, AttributeValue, Link, Span } from '@opentelemetry/api';

/**
 * Traces, for all parts of the program. Nothing of OpenTelemetry is loaded here: `telemetry/otlp.ts` is, only if traces are
 * sent, and puts itself in as {@link tracing}. Without it, a span costs one comparison.
 */

/** Where a span stands in a trace, as W3C Trace Context has it. */
export interface TraceContext {
  /** 32 lower-case hexadecimal digits. */
  readonly traceId: string;
  /** 16 lower-case hexadecimal digits. */
  readonly spanId: string;
  /** Bit 0: the trace is sampled. Bit 1: its id is random. */
  readonly flags: number;
}

/** How a span begins. */
export interface SpanStart {
  /** The span that it is below, in this process or another; it begins a trace if there is none. */
  readonly parent?: Span | TraceContext | undefined;
  readonly kind?: 'server' | 'consumer';
  readonly attributes?: Attributes;
  readonly links?: Link[];
  /** Milliseconds since the Unix epoch; now if it is not said. */
  readonly startedAt?: number;
  /** The id that others know it by already. */
  readonly spanId?: string;
}

/** What sends traces. */
export interface Tracing {
  start(name: string, options: SpanStart): Span;
  /** The span that the caller runs in. */
  active(): Span | undefined;
  /** Does the work in a span; in none if that is undefined. */
  run<T>(span: Span | undefined, work: () => T): T;
  /** How many spans were to be sent and were not: the collector did not take them, or too many waited for it. */
  readonly lost: number;
}

/** What sends traces; undefined if nothing does. */
export let tracing: Tracing | undefined;

/** Sends traces by this from now on, or no longer. Before the application is built: parts of it look once. */
export function setTracing(sender: Tracing | undefined): void {
  tracing = sender;
}

// Versions after 00 may say more behind another hyphen: https://www.w3.org/TR/trace-context/#versioning-of-traceparent
const TRACEPARENT =
  /^(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/;
const MAX_TRACEPARENT = 512;
const SAMPLED = 1;
const KNOWN_FLAGS = 3;

/** Reads a `traceparent` header. @returns undefined if it is missing or malformed, as if the caller had no trace */
export function parseTraceparent(text: unknown): TraceContext | undefined {
  if (typeof text !== 'string' || text.length > MAX_TRACEPARENT) return undefined;
  const [, version, traceId, spanId, flags, more] = TRACEPARENT.exec(text) ?? [];
  if (traceId === undefined || spanId === undefined || (version === '00' && more !== undefined))
    return undefined;
  return { traceId, spanId, flags: Number.parseInt(flags as string, 16) & KNOWN_FLAGS };
}

/** The text of a `traceparent` header, in version 00. */
export const toTraceparent = ({ traceId, spanId, flags }: TraceContext): string =>
  `00-${traceId}-${spanId}-0${flags & KNOWN_FLAGS}`;

export const isSampled = ({ flags }: TraceContext): boolean => (flags & SAMPLED) !== 0;

/** Where a span stands. */
export function contextOf(span: Span): TraceContext {
  const { traceId, spanId, traceFlags } = span.spanContext();
  return { traceId, spanId, flags: traceFlags };
}

/** A link to a span, which says what that one is to the span that links. */
export const linkTo = ({ traceId, spanId, flags }: TraceContext, is: string): Link => ({
  context: { traceId, spanId, traceFlags: flags, isRemote: true },
  attributes: { 'control_plane.link': is },
});

/** The trace that the caller runs in, as the log names it; undefined if there is none. */
export function currentTrace(): { trace_id: string; span_id: string } | undefined {
  const span = tracing?.active();
  if (!span) return undefined;
  const { traceId, spanId } = span.spanContext();
  return { trace_id: traceId, span_id: spanId };
}

/** Spans that others were made below. */
const parents = new WeakSet<Span>();

/** Begins a span below the one that the caller runs in. @returns undefined if there is none, or it is not recorded */
export function startChild(name: string, attributes?: Attributes, links?: Link[]): Span | undefined {
  const parent = tracing?.active();
  return parent && startBelow(parent, name, attributes, links);
}

/** Begins a span below another. @returns undefined if that is not recorded */
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

/** Ends a span with what came of it. */
export function endSpan(span: Span, failure?: { error: unknown }): void {
  if (failure) markFailed(span, typeOf(failure.error));
  span.end();
}

/** Says that what a span is about failed. @param type one of few, never a message: that may hold what clients sent */
export function markFailed(span: Span, type: string): void {
  span.setAttribute('error.type', type).setStatus({ code: STATUS_ERROR });
}

/** OpenTelemetry's SpanStatusCode.ERROR, which is not loaded here. */
const STATUS_ERROR = 2;

/** What an error is, in a word that is in the code: one of ours by its code, or its class. */
function typeOf(error: unknown): string {
  const code = (error as { code?: unknown } | null)?.code;
  if (typeof code === 'string' && /^[A-Z][A-Z0-9_]{1,40}$/.test(code)) return code;
  return error instanceof Error ? error.constructor.name : 'unknown';
}

/** Ends a span when the work is done. @returns what the work does */
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

/** Does the work in a span, if there is one. */
export const within = <T>(span: Span | undefined, work: () => T): T =>
  tracing && span ? tracing.run(span, work) : work();

/** Does the work outside of every span: it goes on for others than the caller. */
export const detached = <T>(work: () => T): T => (tracing ? tracing.run(undefined, work) : work());

/** Does the work in a span below the one that the caller runs in, if that is recorded. */
export function inSpan<T>(name: string, work: () => Promise<T>, attributes?: Attributes): Promise<T> {
  const span = startChild(name, attributes);
  return span ? endWith(span, within(span, work)) : work();
}

/**
 * Does the work in a trace of its own, which is sent if the work failed or made spans in it: what looks four times a second
 * whether there is something to do would else be most of what is sent.
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
    // A span that does not end is never sent.
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

/** An attribute of an extension's span: numbers, yes or no, and words of the code. */
export type TraceAttributes = Readonly<Record<string, number | boolean | string>>;

/**
 * Does the work in a span below that of the request, the unit of work or the job that it is part of. Without one, or if
 * traces are off, it only does the work. What the work throws is thrown on, and the span says its code or class.
 * @param name in lower_snake_case, of at most 64 characters, and written in the code: it is what spans are counted by
 * @param attributes at most 16, named likewise. Values are numbers, booleans or words in lower_snake_case; another text is
 * left out, for it may hold what strangers sent
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

/** Names that were found to be right. */
const checked = new Set<string>();
const MAX_CHECKED = 1_000;

function checkName(name: string, of: string): void {
  if (checked.has(name)) return;
  if (!NAME.test(name)) throw new TypeError(`The name of a ${of} must be in lower_snake_case: ${NAME}`);
  if (checked.size < MAX_CHECKED) checked.add(name);
}
