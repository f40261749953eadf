import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { gunzipSync } from 'node:zlib';
import protobuf from 'protobufjs';
import type { Json } from './api';

/** What is read here of opentelemetry/proto/collector/trace/v1 and trace/v1; fields by their numbers there. */
const PROTO = `
  syntax = "proto3";
  message Request { repeated ResourceSpans resource_spans = 1; }
  message ResourceSpans { Resource resource = 1; repeated ScopeSpans scope_spans = 2; }
  message Resource { repeated KeyValue attributes = 1; }
  message ScopeSpans { repeated Span spans = 2; }
  message KeyValue { string key = 1; Value value = 2; }
  message Value { oneof value { string string_value = 1; bool bool_value = 2; int64 int_value = 3; double double_value = 4; } }
  message Link { bytes trace_id = 1; bytes span_id = 2; repeated KeyValue attributes = 4; }
  message Status { int32 code = 3; }
  message Span {
    bytes trace_id = 1; bytes span_id = 2; bytes parent_span_id = 4; string name = 5; int32 kind = 6;
    fixed64 start_time_unix_nano = 7; fixed64 end_time_unix_nano = 8;
    repeated KeyValue attributes = 9; repeated Link links = 13; Status status = 15;
  }`;
const Request = protobuf.parse(PROTO, { keepCase: true }).root.lookupType('Request');

/** A span as it was sent. */
export interface SentSpan {
  readonly traceId: string;
  readonly spanId: string;
  /** Empty if it begins a trace. */
  readonly parentId: string;
  readonly name: string;
  readonly kind: number;
  readonly attributes: Readonly<Record<string, unknown>>;
  readonly links: readonly { traceId: string; spanId: string; is: unknown }[];
  readonly failed: boolean;
  readonly durationMs: number;
}

/** A collector of OTLP over HTTP with protobuf, on loopback. */
export class OtlpReceiver {
  readonly spans: SentSpan[] = [];
  /** Every byte that came, headers included. */
  raw = Buffer.alloc(0);
  resource: Readonly<Record<string, unknown>> = {};
  requests = 0;
  /** How it answers: 200, another status, or never. */
  answer: number | 'never' = 200;

  private constructor(private readonly server: Server) {}

  static async start(): Promise<OtlpReceiver> {
    const receiver = new OtlpReceiver(createServer());
    receiver.server.on('request', async (request, response) => {
      const body = await bodyOf(request);
      receiver.requests++;
      receiver.take(request, body);
      if (receiver.answer === 'never') return;
      response.writeHead(receiver.answer, { 'content-type': 'application/x-protobuf' }).end();
    });
    await once(receiver.server.listen(0, '127.0.0.1'), 'listening');
    return receiver;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  /** The spans of a name, in the order that they came. */
  named(name: string): SentSpan[] {
    return this.spans.filter((span) => span.name === name);
  }

  async stop(): Promise<void> {
    this.server.closeAllConnections();
    this.server.close();
    await once(this.server, 'close');
  }

  private take({ headers, url }: IncomingMessage, body: Buffer): void {
    const bytes = headers['content-encoding'] === 'gzip' ? gunzipSync(body) : body;
    this.raw = Buffer.concat([this.raw, Buffer.from(JSON.stringify([url, headers])), bytes]);
    const message = Request.toObject(Request.decode(bytes), { longs: Number }) as Json;
    for (const { resource, scope_spans: scopes = [] } of message.resource_spans ?? []) {
      this.resource = attributesOf(resource?.attributes);
      for (const { spans = [] } of scopes) for (const span of spans) this.spans.push(spanOf(span));
    }
  }
}

async function bodyOf(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

const hex = (bytes: Uint8Array | undefined): string => Buffer.from(bytes ?? []).toString('hex');

const attributesOf = (list: Json[] = []): Record<string, unknown> =>
  Object.fromEntries(list.map(({ key, value }) => [key, Object.values(value)[0]]));

const spanOf = (span: Json): SentSpan => ({
  traceId: hex(span.trace_id),
  spanId: hex(span.span_id),
  parentId: hex(span.parent_span_id),
  name: span.name,
  kind: span.kind,
  attributes: attributesOf(span.attributes),
  links: (span.links ?? []).map((link: Json) => ({
    traceId: hex(link.trace_id),
    spanId: hex(link.span_id),
    is: attributesOf(link.attributes)['control_plane.link'],
  })),
  failed: span.status?.code === 2,
  durationMs: (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6,
});
