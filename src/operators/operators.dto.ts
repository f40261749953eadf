import { ApiProperty, ApiPropertyOptional } from '@nestjs/swagger';
import { IsIn, IsOptional, IsString, Matches, MaxLength } from 'class-validator';
import { ROLES, type Role } from '../http/control-plane-request';
import { IsName, OptionalIdInQuery, OptionalInteger } from '../http/fields';
import { PageEnd, PageQuery } from '../http/pagination';
import { IsTimestamp } from '../http/timestamps';
import { MAX_TOKEN_LIFETIME_S } from '../http/tokens';

const KNOWN_ENTRY = /^[1-9]\d{0,14}:[0-9a-f]{64}$/;

/** A token to create. */
export class CreateOperatorTokenRequest {
  /** The operator's name, for lists, logs and the audit log. */
  @ApiProperty({ minLength: 1, maxLength: 100, example: 'alice' })
  @IsName(100)
  name!: string;

  /** Each role includes the ones before it. */
  @ApiProperty({ enum: ROLES, example: 'viewer' })
  @IsIn(ROLES)
  role!: Role;

  /** How many seconds it is valid; forever if absent. */
  @OptionalInteger({ minimum: 1, maximum: MAX_TOKEN_LIFETIME_S, example: 7_776_000 })
  expires_in?: number | null;
}

/** An operator's token, without its secret. */
export class OperatorTokenView {
  @ApiProperty({ example: 2 })
  id!: number;

  @ApiProperty({ example: 'alice' })
  name!: string;

  @ApiProperty({ enum: ROLES, example: 'viewer' })
  role!: Role;

  /** `setting`: from `CONTROL_PLANE_ADMIN_TOKEN`. `file`: created at the first start. `issued`: created by an operator. */
  @ApiProperty({ enum: ['setting', 'file', 'issued'], example: 'issued' })
  origin!: 'setting' | 'file' | 'issued';

  @ApiProperty({ format: 'date-time', example: '2026-01-01T00:00:00.000Z' })
  created_at!: string;

  /** Null if it does not expire. */
  @ApiProperty({ type: String, nullable: true, format: 'date-time', example: '2026-04-01T00:00:00.000Z' })
  expires_at!: string | null;

  /** Null until it is revoked. */
  @ApiProperty({ type: String, nullable: true, format: 'date-time', example: null })
  revoked_at!: string | null;

  /** To the minute; null until its first use. */
  @ApiProperty({ type: String, nullable: true, format: 'date-time', example: '2026-01-02T08:30:00.000Z' })
  last_used_at!: string | null;
}

/** A new token. */
export class CreatedOperatorToken extends OperatorTokenView {
  /** Send it in `Authorization: Bearer`. It is shown only here. */
  @ApiProperty({ example: 'dcpo_4fXfrkyE4tpFq3JnTGpUQW4wYV0H8d4WkQ9bGmT2nXo3kPzA1' })
  token!: string;
}

/** A page of operators' tokens. */
export class OperatorTokenPage extends PageEnd {
  @ApiProperty({ type: [OperatorTokenView] })
  items!: OperatorTokenView[];
}

/** Selects the changes to list. */
export class AuditQuery extends PageQuery {
  @ApiPropertyOptional({ description: 'Only this action.', maxLength: 100, example: 'agent.disable' })
  @IsOptional()
  @IsString()
  @MaxLength(100)
  action?: string;

  @ApiPropertyOptional({ description: 'Only changes of this subject.', maxLength: 300, example: 'agent/1' })
  @IsOptional()
  @IsString()
  @MaxLength(300)
  subject?: string;

  @ApiPropertyOptional({
    description: 'Only changes made with this token.',
    type: 'integer',
    minimum: 1,
    example: 2,
  })
  @OptionalIdInQuery()
  operator_token_id?: number;

  @ApiPropertyOptional({ description: 'Not before this instant.', example: '2026-01-01T00:00:00Z' })
  @IsOptional()
  @IsTimestamp()
  since?: string;

  @ApiPropertyOptional({ description: 'Before this instant.', example: '2100-01-01T00:00:00Z' })
  @IsOptional()
  @IsTimestamp()
  until?: string;
}

/** A change that an operator made. */
export class AuditView {
  /** Without gaps, from 1. */
  @ApiProperty({ example: 7 })
  id!: number;

  @ApiProperty({ format: 'date-time', example: '2026-01-01T00:00:00.000Z' })
  at!: string;

  /** Null if no token was used: the process itself, or its command line beside the database. */
  @ApiProperty({ type: 'integer', nullable: true, example: 2 })
  operator_token_id!: number | null;

  @ApiProperty({ example: 'alice' })
  operator_name!: string;

  /** Where the request came from. */
  @ApiProperty({ example: '192.0.2.7' })
  address!: string;

  @ApiProperty({ example: 'agent.disable' })
  action!: string;

  @ApiProperty({ example: 'agent/1' })
  subject!: string;

  /** The fields that changed; null if there were none. */
  @ApiProperty({
    type: 'object',
    additionalProperties: true,
    nullable: true,
    example: { state: 'active' },
  })
  before!: object | null;

  @ApiProperty({
    type: 'object',
    additionalProperties: true,
    nullable: true,
    example: { state: 'disabled' },
  })
  after!: object | null;

  /** SHA-256 over the previous entry's hash and this entry. */
  @ApiProperty({ example: '9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08' })
  hash!: string;
}

/** A page of changes. */
export class AuditPage extends PageEnd {
  @ApiProperty({ type: [AuditView] })
  items!: AuditView[];
}

/** An entry of the audit log that is known from elsewhere. */
export class VerificationQuery {
  @ApiPropertyOptional({
    description: 'An entry that must be in the log: `last_id:last_hash` of an earlier verification.',
    pattern: KNOWN_ENTRY.source,
    example: '7:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08',
  })
  @IsOptional()
  @Matches(KNOWN_ENTRY, { message: 'must be an id and its hash: 7:9f86d08…' })
  known?: string;
}

/** The result of verifying the audit log. */
export class AuditVerification {
  @ApiProperty({ example: true })
  intact!: boolean;

  /** How many entries there are. */
  @ApiProperty({ example: 7 })
  last_id!: number;

  /** Keep a copy elsewhere: a log that was rewritten as a whole has another hash. */
  @ApiProperty({ example: '9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08' })
  last_hash!: string;

  /** The first entry that is wrong. */
  @ApiProperty({ type: 'integer', nullable: true, example: null })
  broken_at!: number | null;

  @ApiProperty({ type: String, nullable: true, example: null })
  problem!: string | null;
}
