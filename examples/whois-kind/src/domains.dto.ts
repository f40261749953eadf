import { ApiProperty, ApiPropertyOptional } from '@nestjs/swagger';
import { IsOptional } from 'class-validator';
import { IsTimestamp, PageEnd, PageQuery } from 'dns-agent-control-plane/extension';

/** The filters of the list. */
export class DomainsQuery extends PageQuery {
  @ApiPropertyOptional({
    description: 'Only domains whose registration ends before this instant.',
    format: 'date-time',
    example: '2027-01-01T00:00:00Z',
  })
  @IsOptional()
  @IsTimestamp()
  expires_before?: string;
}

/** The latest result of a domain. */
export class DomainView {
  @ApiProperty({ example: 'example.com' })
  domain!: string;

  @ApiProperty({ description: 'The server that answered.', example: 'whois.iana.org' })
  server!: string;

  @ApiProperty({ type: String, nullable: true, example: 'Example Registrar, Inc.' })
  registrar!: string | null;

  @ApiProperty({ type: String, nullable: true, format: 'date-time', example: '2027-08-13T04:00:00.000Z' })
  expires_at!: string | null;

  @ApiProperty({ format: 'date-time', example: '2026-01-01T00:00:00.000Z' })
  checked_at!: string;
}

/** A page of domains, the latest check first. */
export class DomainPage extends PageEnd {
  @ApiProperty({ type: [DomainView] })
  items!: DomainView[];
}
