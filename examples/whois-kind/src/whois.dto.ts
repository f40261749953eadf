import { ApiProperty } from '@nestjs/swagger';
import { IsOptional, Matches, MaxLength } from 'class-validator';

const DOMAIN = /^(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]$/i;
/** A host, or host:port. */
export const SERVER = /^[a-z0-9.-]{1,253}(?::\d{1,5})?$/i;

/** The spec of a whois task. */
export class WhoisSpec {
  @ApiProperty({ description: 'The domain to ask about.', example: 'example.com', maxLength: 253 })
  @MaxLength(253)
  @Matches(DOMAIN, { message: 'must be a domain such as example.com' })
  domain!: string;

  @ApiProperty({
    description: 'The whois server, with its port if that is not 43. Default: the server of IANA.',
    required: false,
    nullable: true,
    type: String,
    example: 'whois.example.net',
  })
  @IsOptional()
  @Matches(SERVER, { message: 'must be a host, or host:port' })
  server?: string | null;
}
