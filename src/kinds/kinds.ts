import { ApiProperty } from '@nestjs/swagger';
import { IsIn, IsInt, IsOptional, IsString, Matches, Max, MaxLength, Min, MinLength } from 'class-validator';
import { dnsEvidence, httpEvidence, pingEvidence, tcpEvidence, traceEvidence } from './evidence';
import {
  canonicalHost,
  HOST_FORM,
  HOST_PORT_FORM,
  hostPortOf,
  IsDnsName,
  IsDnsServer,
  IsHost,
  joinHostPort,
  parseDnsServer,
  parseHostPort,
  parseWebUrl,
  storedDnsServer,
  storedHost,
} from './targets';
import { TaskKind, type TaskKindHandler } from './task-kinds';

/** The target of DNS lookups without a server: the agents' own resolvers. */
const RESOLVER = 'resolver';

class DnsSpec {
  /** The name to look up. */
  @ApiProperty({ example: 'example.com', minLength: 1, maxLength: 255 })
  @IsString()
  @MinLength(1)
  @MaxLength(255)
  @IsDnsName()
  query!: string;

  /** The DNS server to ask, as host or host:port. Default: the agent's own resolver. */
  @ApiProperty({ required: false, nullable: true, type: String, example: '192.0.2.53' })
  @IsOptional()
  @IsDnsServer()
  server?: string | null;

  /** The record type in capitals, such as AAAA. Default: A. */
  @ApiProperty({
    required: false,
    nullable: true,
    type: String,
    example: 'A',
    pattern: '^[A-Z][A-Z0-9]{0,15}$',
  })
  @IsOptional()
  @Matches(/^[A-Z][A-Z0-9]{0,15}$/, { message: 'must be a record type in capitals, such as AAAA' })
  record_type?: string | null;
}

/** A DNS lookup. Its target is the DNS server with its port, or `resolver` for the agents' own resolvers. */
@TaskKind('dns', { spec: DnsSpec })
export class DnsKind implements TaskKindHandler<DnsSpec> {
  readonly signalOf = dnsEvidence;
  readonly targetForm =
    "must be a DNS server, such as 192.0.2.53:53 or [2001:db8::53]:53, or 'resolver' for the agents' own";

  target({ server }: DnsSpec): string {
    return (server && this.parseTarget(server === RESOLVER ? `${server}:53` : server)) || RESOLVER;
  }

  /** `resolver` means the agents' own resolvers; a server with that name is `resolver:53`. */
  parseTarget(text: string): string | undefined {
    if (text === RESOLVER) return RESOLVER;
    const server = parseDnsServer(text);
    return server && joinHostPort(server);
  }

  canonicalFields({ server }: DnsSpec): Partial<DnsSpec> {
    return server ? { server: storedDnsServer(server) } : {};
  }
}

const HTTP_METHODS = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'] as const;

class HttpSpec {
  /** An absolute http or https URL. */
  @ApiProperty({ example: 'https://example.com/health', maxLength: 2048 })
  @IsString()
  @MaxLength(2048)
  url!: string;

  /** Default: GET. */
  @ApiProperty({ required: false, nullable: true, enum: [...HTTP_METHODS, null], example: 'GET' })
  @IsOptional()
  @IsIn(HTTP_METHODS)
  method?: string | null;
}

/** An HTTP request. Its target is the URL's host and port. */
@TaskKind('http', { spec: HttpSpec })
export class HttpKind implements TaskKindHandler<HttpSpec> {
  readonly signalOf = httpEvidence;
  readonly targetForm = HOST_PORT_FORM;

  check({ url }: HttpSpec): { url?: string } {
    const parsed = parseWebUrl(url);
    return typeof parsed === 'string' ? { url: parsed } : {};
  }

  target({ url }: HttpSpec): string {
    return joinHostPort(hostPortOf(new URL(url)));
  }

  parseTarget(text: string): string | undefined {
    return parseTargetWithPort(text);
  }

  canonicalFields({ url }: HttpSpec): Partial<HttpSpec> {
    return { url: new URL(url).href };
  }
}

class TcpSpec {
  @ApiProperty({ example: 'example.com' })
  @IsHost()
  host!: string;

  @ApiProperty({ example: 443, minimum: 1, maximum: 65_535 })
  @IsInt()
  @Min(1)
  @Max(65_535)
  port!: number;
}

/** A TCP connection. Its target is the host and port. */
@TaskKind('tcp', { spec: TcpSpec })
export class TcpKind implements TaskKindHandler<TcpSpec> {
  readonly signalOf = tcpEvidence;
  readonly targetForm = HOST_PORT_FORM;

  target({ host, port }: TcpSpec): string {
    return joinHostPort({ host: canonicalHost(host) ?? host, port });
  }

  parseTarget(text: string): string | undefined {
    return parseTargetWithPort(text);
  }

  canonicalFields({ host }: TcpSpec): Partial<TcpSpec> {
    return { host: storedHost(host) };
  }
}

function parseTargetWithPort(text: string): string | undefined {
  const target = parseHostPort(text);
  return target && joinHostPort(target);
}

/** A kind whose target is a host without a port. */
abstract class HostKind implements TaskKindHandler<{ host: string }> {
  readonly targetForm = HOST_FORM;

  target({ host }: { host: string }): string {
    return canonicalHost(host) ?? host;
  }

  parseTarget(text: string): string | undefined {
    return canonicalHost(text);
  }

  canonicalFields({ host }: { host: string }): { host: string } {
    return { host: storedHost(host) };
  }
}

class PingSpec {
  @ApiProperty({ example: '192.0.2.1' })
  @IsHost()
  host!: string;

  /** How many echo requests to send. */
  @ApiProperty({ required: false, nullable: true, type: Number, example: 4, minimum: 1, maximum: 10_000 })
  @IsOptional()
  @IsInt()
  @Min(1)
  @Max(10_000)
  count?: number | null;

  /** The time between two requests. */
  @ApiProperty({
    required: false,
    nullable: true,
    type: Number,
    example: 1_000,
    minimum: 1,
    maximum: 3_600_000,
  })
  @IsOptional()
  @IsInt()
  @Min(1)
  @Max(3_600_000)
  interval_ms?: number | null;

  /** How long to wait for each reply. */
  @ApiProperty({
    required: false,
    nullable: true,
    type: Number,
    example: 2_000,
    minimum: 1,
    maximum: 3_600_000,
  })
  @IsOptional()
  @IsInt()
  @Min(1)
  @Max(3_600_000)
  timeout_ms?: number | null;

  /** The maximum number of requests per second. */
  @ApiProperty({
    required: false,
    nullable: true,
    type: 'integer',
    example: 10,
    minimum: 1,
    maximum: 1_000_000,
  })
  @IsOptional()
  @IsInt()
  @Min(1)
  @Max(1_000_000)
  rate_limit_per_sec?: number | null;
}

/** ICMP echo requests. The target is the host. */
@TaskKind('ping', { spec: PingSpec })
export class PingKind extends HostKind {
  readonly signalOf = pingEvidence;
}

class TraceSpec {
  @ApiProperty({ example: 'example.com' })
  @IsHost()
  host!: string;

  @ApiProperty({ required: false, nullable: true, type: Number, example: 30, minimum: 1, maximum: 255 })
  @IsOptional()
  @IsInt()
  @Min(1)
  @Max(255)
  max_hops?: number | null;
}

/** A trace of the route to a host. The target is the host. */
@TaskKind('trace', { spec: TraceSpec })
export class TraceKind extends HostKind {
  readonly signalOf = traceEvidence;
}
