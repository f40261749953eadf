import { once } from 'node:events';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { gunzipSync } from 'node:zlib';
import { parse } from 'protobufjs';

// Those fields of opentelemetry-proto that the tests read, with its numbers:
// https://github.com/open-telemetry/opentelemetry-proto/blob/v1.3.2/opentelemetry/proto/trace/v1/trace.proto
const { root } = parse(`syntax = "proto3";
message ExportTraceServiceRequest { repeated ResourceSpans resource_spans = 1; }
message ResourceSpans { Resource resource = 1; repeated ScopeSpans scope_spans = 2; }
message Resource { repeated KeyValue attributes = 1; }
message ScopeSpans { repeated Span spans = 2; }
message Span {
  bytes trace_id = 1; bytes span_id = 2; bytes parent_span_id = 4; string name = 5; int32 kind = 6;
  fixed64 start_time_unix_nano = 7; fixed64 end_time_unix_nano = 8;
  repeated KeyValue attributes = 9; repeated Link links = 13; Status status = 15;
  message Link { bytes trace_id = 1; bytes span_id = 2; repeated KeyValue attributes = 4; }
}
message Status { string message = 2; int32 code = 3; }
message KeyValue { string key = 1; AnyValue value = 2; }
message AnyValue { oneof value { string string_value = 1; bool bool_value = 2; int64 int_value = 3; double double_value = 4; } }
`);
const REQUEST = root.lookupType('ExportTraceServiceRequest');

/** A span as it was sent. */
export interface SentSpan {
  traceId: string;
  spanId: string;
  /** Empty at the root of a trace. */
  parentId: string;
  name: string;
  failed: boolean;
  attributes: Record<string, unknown>;
  links: { traceId: string; spanId: string; is: unknown }[];
}

/** A collector of traces: takes OTLP over HTTP as protobuf, and keeps what was sent. */
export class SpanCollector {
  readonly spans: SentSpan[] = [];
  readonly resources: Record<string, unknown>[] = [];
  /** Every body, unpacked, one after the other. */
  readonly bytes: Buffer[] = [];

  private constructor(private readonly server: Server) {}

  static async start(): Promise<SpanCollector> {
    const server = createServer().listen(0, '127.0.0.1');
    const receiver = new SpanCollector(server);
    server.on('request', async (request, response) => {
      const chunks: Buffer[] = [];
      for await (const chunk of request) chunks.push(chunk);
      const body = Buffer.concat(chunks);
      receiver.take(request.headers['content-encoding'] === 'gzip' ? gunzipSync(body) : body);
      response.setHeader('content-type', 'application/x-protobuf').end();
    });
    await once(server, 'listening');
    return receiver;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  /** The spans of a name. */
  named(name: string): SentSpan[] {
    return this.spans.filter((span) => span.name === name);
  }

  stop(): void {
    this.server.close();
    this.server.closeAllConnections();
  }

  private take(body: Buffer): void {
    this.bytes.push(body);
    const { resourceSpans = [] } = REQUEST.toObject(REQUEST.decode(body), { longs: Number });
    for (const { resource, scopeSpans = [] } of resourceSpans) {
      this.resources.push(plain(resource.attributes));
      for (const { spans = [] } of scopeSpans) this.spans.push(...spans.map(sent));
    }
  }
}

const hex = (bytes: Uint8Array | undefined): string => Buffer.from(bytes ?? []).toString('hex');

const plain = (attributes: { key: string; value: object }[] = []): Record<string, unknown> =>
  Object.fromEntries(attributes.map(({ key, value }) => [key, Object.values(value ?? {})[0]]));

const sent = (span: any): SentSpan => ({
  traceId: hex(span.traceId),
  spanId: hex(span.spanId),
  parentId: hex(span.parentSpanId),
  name: span.name,
  failed: span.status?.code === 2,
  attributes: plain(span.attributes),
  links: (span.links ?? []).map((link: any) => ({
    traceId: hex(link.traceId),
    spanId: hex(link.spanId),
    is: plain(link.attributes)['control_plane.link'],
  })),
});
