import { ApiProperty } from '@nestjs/swagger';
import { IsName, OptionalInteger } from '../http/fields';
import { Field, shown } from '../http/item-fields';
import { PageEnd } from '../http/pagination';
import { MAX_TOKEN_LIFETIME_S } from '../http/tokens';
import { LABELS, type Labels } from './labels';

const MAX_USES = 1_000_000_000;

/** A new enrollment token. */
export class CreateEnrollmentTokenRequest {
  /** Its purpose, for lists and the audit log. */
  @ApiProperty({ minLength: 1, maxLength: 100, example: 'probes in Frankfurt' })
  @IsName(100)
  name!: string;

  /** Set on every agent that it enrolls. */
  @Field({ ...LABELS, optional: true })
  labels?: Labels | null;

  /** The most agents that it can enroll; unlimited if it is left out. */
  @OptionalInteger({ minimum: 1, maximum: MAX_USES, example: 100 })
  max_uses?: number | null;

  /** The seconds for which it is valid; forever if it is left out. */
  @OptionalInteger({ minimum: 1, maximum: MAX_TOKEN_LIFETIME_S, example: 86_400 })
  expires_in?: number | null;
}

/** An enrollment token, without its secret. */
export class EnrollmentTokenView {
  @ApiProperty({ example: 1 })
  id!: number;

  @ApiProperty({ example: 'probes in Frankfurt' })
  name!: string;

  @ApiProperty(shown(LABELS))
  labels!: Labels;

  /** Null if it is not limited. */
  @ApiProperty({ type: 'integer', nullable: true, example: 100 })
  max_uses!: number | null;

  /** The number of agents that it has enrolled. */
  @ApiProperty({ example: 12 })
  uses!: number;

  @ApiProperty({ format: 'date-time', example: '2026-01-01T00:00:00.000Z' })
  created_at!: string;

  /** Null if it does not expire. */
  @ApiProperty({ type: String, nullable: true, format: 'date-time', example: '2026-01-02T00:00:00.000Z' })
  expires_at!: string | null;

  /** Null until it is revoked. */
  @ApiProperty({ type: String, nullable: true, format: 'date-time', example: null })
  revoked_at!: string | null;
}

/** A new enrollment token, with its secret. */
export class CreatedEnrollmentToken extends EnrollmentTokenView {
  /** For the header `X-Enrollment-Token`; it is shown only here. */
  @ApiProperty({ example: 'dcpe_4fXfrkyE4tpFq3JnTGpUQW4wYV0H8d4WkQ9bGmT2nXo3kPzA1' })
  token!: string;
}

/** A page of enrollment tokens. */
export class EnrollmentTokenPage extends PageEnd {
  @ApiProperty({ type: [EnrollmentTokenView] })
  items!: EnrollmentTokenView[];
}
