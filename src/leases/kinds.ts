import { ApiProperty } from '@nestjs/swagger';
import {
  IsIn,
  IsInt,
  IsNumber,
  IsOptional,
  IsString,
  Matches,
  Max,
  MaxLength,
  Min,
  MinLength,
} from 'class-validator';
import { TaskKind, type TaskKindHandler } from './task-kinds';

const HOST = /^[^\s\p{Cc}/?#@\\]{1,255}$/u;
const HOST_MESSAGE = 'must be a host name or an address of 1 to 255 characters';

class DnsSpec {
  /** The name to look up. */
  @ApiProperty({ example: 'example.com', minLength: 1, maxLength: 255 })
  @IsString()
  @MinLength(1)
  @MaxLength(255)
  query!: string;

  /** The DNS server to ask; the agent's own resolver where it is left out. */
  @ApiProperty({ required: false, nullable: true, type: String, example: '192.0.2.53' })
  @IsOptional()
  @Matches(HOST, { message: HOST_MESSAGE })
  server?: string | null;

  /** The record type in capitals, such as AAAA; A where it is left out. */
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

/** A DNS lookup, aimed at the server asked, or at the resolvers of the agents. */
@TaskKind('dns', { spec: DnsSpec })
export class DnsKind implements TaskKindHandler<DnsSpec> {
  target(spec: DnsSpec): string {
    return spec.server?.toLowerCase() ?? 'resolver';
  }
}

const HTTP_METHODS = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'] as const;

class HttpSpec {
  /** An absolute http or https URL. */
  @ApiProperty({ example: 'https://example.com/health', maxLength: 2048 })
  @IsString()
  @MaxLength(2048)
  url!: string;

  /** GET where it is left out. */
  @ApiProperty({ required: false, nullable: true, enum: [...HTTP_METHODS, null], example: 'GET' })
  @IsOptional()
  @IsIn(HTTP_METHODS)
  method?: string | null;
}

/** An HTTP request, aimed at the URL's host. */
@TaskKind('http', { spec: HttpSpec })
export class HttpKind implements TaskKindHandler<HttpSpec> {
  check(spec: HttpSpec): { url?: string } {
    const url = URL.parse(spec.url);
    if (url === null || !/^https?:$/.test(url.protocol) || url.hostname === '')
      return { url: 'must be an http or https URL' };
    // Credentials would be stored in clear and shown to every viewer.
    return url.username !== '' || url.password !== '' ? { url: 'must not hold credentials' } : {};
  }

  target(spec: HttpSpec): string {
    return new URL(spec.url).host;
  }
}

class TcpSpec {
  @ApiProperty({ example: 'example.com' })
  @Matches(HOST, { message: HOST_MESSAGE })
  host!: string;

  @ApiProperty({ example: 443, minimum: 1, maximum: 65_535 })
  @IsInt()
  @Min(1)
  @Max(65_535)
  port!: number;
}

/** A TCP connection, aimed at host and port. */
@TaskKind('tcp', { spec: TcpSpec })
export class TcpKind implements TaskKindHandler<TcpSpec> {
  target(spec: TcpSpec): string {
    const host = spec.host.toLowerCase();
    return `${host.includes(':') && !host.startsWith('[') ? `[${host}]` : host}:${spec.port}`;
  }
}

class PingSpec {
  @ApiProperty({ example: '192.0.2.1' })
  @Matches(HOST, { message: HOST_MESSAGE })
  host!: string;

  /** How many echo requests. */
  @ApiProperty({ required: false, nullable: true, type: Number, example: 4, minimum: 1, maximum: 10_000 })
  @IsOptional()
  @IsInt()
  @Min(1)
  @Max(10_000)
  count?: number | null;

  /** Between two requests. */
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

  /** For each reply. */
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

  /** At most so many requests a second. */
  @ApiProperty({
    required: false,
    nullable: true,
    type: Number,
    example: 10,
    minimum: 0.001,
    maximum: 1_000_000,
  })
  @IsOptional()
  @IsNumber()
  @Min(0.001)
  @Max(1_000_000)
  rate_limit_per_sec?: number | null;
}

/** ICMP echo requests, aimed at the host. */
@TaskKind('ping', { spec: PingSpec })
export class PingKind implements TaskKindHandler<PingSpec> {
  target(spec: PingSpec): string {
    return spec.host.toLowerCase();
  }
}

class TraceSpec {
  @ApiProperty({ example: 'example.com' })
  @Matches(HOST, { message: HOST_MESSAGE })
  host!: string;

  @ApiProperty({ required: false, nullable: true, type: Number, example: 30, minimum: 1, maximum: 255 })
  @IsOptional()
  @IsInt()
  @Min(1)
  @Max(255)
  max_hops?: number | null;
}

/** The route to a host, aimed at the host. */
@TaskKind('trace', { spec: TraceSpec })
export class TraceKind implements TaskKindHandler<TraceSpec> {
  target(spec: TraceSpec): string {
    return spec.host.toLowerCase();
  }
}
