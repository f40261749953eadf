import { ApiProperty } from '@nestjs/swagger';
import { IsOptional, Matches, MaxLength } from 'class-validator';
import {
  type ErrorDetails,
  type TakenReport,
  TaskKind,
  type TaskKindHandler,
  type Transaction,
} from 'dns-agent-control-plane/extension';
import { DomainsService } from './domains.service';

const DOMAIN = /^(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]$/i;
const SERVER = /^[a-z0-9.-]{1,253}(?::\d{1,5})?$/i;

/** What a whois task takes. */
export class WhoisSpec {
  @ApiProperty({ description: 'The domain to ask about.', example: 'example.com', maxLength: 253 })
  @MaxLength(253)
  @Matches(DOMAIN, { message: 'must be a domain such as example.com' })
  domain!: string;

  @ApiProperty({
    description:
      'The whois server, with its port where that is not 43; the one of IANA where it is left out.',
    required: false,
    nullable: true,
    type: String,
    example: 'whois.example.net',
  })
  @IsOptional()
  @Matches(SERVER, { message: 'must be a host, or host:port' })
  server?: string | null;
}

/** Asks a whois server about a domain. */
@TaskKind('whois', { spec: WhoisSpec })
export class WhoisKind implements TaskKindHandler<WhoisSpec> {
  constructor(private readonly domains: DomainsService) {}

  check({ server }: WhoisSpec): ErrorDetails {
    const port = Number(server?.split(':')[1] ?? 43);
    return port >= 1 && port <= 65_535 ? {} : { server: 'must have a port from 1 to 65535' };
  }

  /** Tasks that ask the same server share a window: a ceiling on it is kept across the fleet. */
  target({ server }: WhoisSpec): string {
    return server?.toLowerCase() ?? 'whois.iana.org';
  }

  onReports(tx: Transaction, reports: readonly TakenReport<WhoisSpec>[]): Promise<void> {
    return this.domains.record(tx, reports);
  }
}
