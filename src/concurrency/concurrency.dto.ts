import { ApiProperty, ApiPropertyOptional } from '@nestjs/swagger';
import { IsIn, IsOptional, IsString, MaxLength } from 'class-validator';
import { Field } from '../http/item-fields';
import { PageEnd, PageQuery } from '../http/pagination';
import { CHANGE_REASONS, type ChangeReason, WINDOW_SCOPES, type WindowScope } from './window.entity';

/** The filters of the list of windows. */
export class WindowsQuery extends PageQuery {
  @ApiPropertyOptional({
    description: 'Only windows of this scope.',
    enum: WINDOW_SCOPES,
    example: 'target',
  })
  @IsOptional()
  @IsIn(WINDOW_SCOPES)
  scope?: WindowScope;

  @ApiPropertyOptional({ description: 'Only windows of this kind.', example: 'dns' })
  @IsOptional()
  @IsString()
  @MaxLength(64)
  kind?: string;

  @ApiPropertyOptional({
    description: 'Only windows of this target, in any spelling.',
    example: '192.0.2.53:53',
  })
  @IsOptional()
  @IsString()
  @MaxLength(512)
  target?: string;
}

/** A limit or a rate, with the leases and queued tasks under it. */
export class WindowView {
  /** Null once it is lifted. */
  @ApiProperty({ type: 'integer', nullable: true, example: 12 })
  id!: number | null;

  @ApiProperty({ enum: WINDOW_SCOPES, example: 'target' })
  scope!: WindowScope;

  /** The kind; null for the global scope. */
  @ApiProperty({ type: String, nullable: true, example: 'dns' })
  kind!: string | null;

  /** The target; `*` for every target of the kind, null for the wider scopes. */
  @ApiProperty({ type: String, nullable: true, example: '192.0.2.53:53' })
  target!: string | null;

  /** Whether a target has the limit and the rate of every target of its kind, because it has none of its own. */
  @ApiProperty({ example: false })
  inherited!: boolean;

  /** The most leases at once now; null if there is no limit. An adaptive window has its own below `max_limit`. */
  @ApiProperty({ type: 'integer', nullable: true, example: 10 })
  limit!: number | null;

  /** The limit that an operator has set; null if there is none. */
  @ApiProperty({ type: 'integer', nullable: true, example: 10 })
  max_limit!: number | null;

  /** The starts a second now; null if there is no rate. */
  @ApiProperty({ type: 'number', format: 'double', nullable: true, example: 2.5 })
  rate!: number | null;

  /** The highest rate that an operator allows; null if there is no bound. */
  @ApiProperty({ type: 'number', format: 'double', nullable: true, example: 20 })
  max_rate!: number | null;

  /** Whether the rate adapts to what is reported of the target. */
  @ApiProperty({ example: true })
  adaptive!: boolean;

  /** Until when the target asked for a pause; null if it did not. */
  @ApiProperty({ type: String, format: 'date-time', nullable: true, example: null })
  hold_until!: string | null;

  /** The live leases; more than the limit if it was lowered. Null without a limit or a rate: they are not counted then. */
  @ApiProperty({ type: 'integer', nullable: true, example: 7 })
  leased!: number | null;

  /** The queued tasks that it limits. Of a target with a new limit, those that are in its lane already. */
  @ApiProperty({ type: 'integer', example: 120 })
  queued!: number;

  /** How many more leases may be granted now; null if there is no end to them. */
  @ApiProperty({ type: 'integer', nullable: true, example: 3 })
  available!: number | null;
}

/** A page of windows. */
export class WindowPage extends PageEnd {
  @ApiProperty({ type: [WindowView] })
  items!: WindowView[];
}

/** The limit and the rate of one window: of a target, of every target of a kind, of a kind, or of everything. */
export class LimitInput {
  /** A known kind; left out for everything. */
  @Field({ type: 'string', optional: true, minLength: 1, maxLength: 512, example: 'dns' })
  kind?: string | null;

  /** The target within the kind, in any spelling; `*` for every target of the kind that has no limit or rate of its own. */
  @Field({
    type: 'string',
    optional: true,
    minLength: 1,
    maxLength: 512,
    with: 'kind',
    example: '192.0.2.53:53',
  })
  target?: string | null;

  /** The most leases at once; null lifts the limit. Left out, it stays as it is. */
  @Field({ type: 'integer', optional: true, minimum: 0, maximum: 1_000_000, example: 10 })
  limit?: number | null;

  /**
   * The starts a second, in steps of 0.001; of an adaptive target, the highest rate. Null lifts it. Left out, it stays as it
   * is.
   */
  @Field({ type: 'number', optional: true, minimum: 0.001, maximum: 1_000_000, example: 2.5 })
  rate?: number | null;

  /**
   * Whether the rate adapts to what is reported of the target, within `limit` and `rate`; only for targets. Left out, it
   * stays as it is.
   */
  @Field({ type: 'boolean', optional: true, example: false })
  adaptive?: boolean | null;
}

/** Limits to set, all or none. */
export class SetLimitsRequest {
  @Field({ type: 'list', items: LimitInput, noun: 'limit', minItems: 1, maxItems: 1_000 })
  limits!: LimitInput[];
}

/** The windows whose limits were set, in the same order. */
export class SetLimitsResponse {
  @ApiProperty({ type: [WindowView] })
  windows!: WindowView[];
}

/** A change of a window's limit or rate. */
export class WindowChangeView {
  @ApiProperty({ type: String, format: 'date-time', example: '2026-01-02T03:04:05.678Z' })
  changed_at!: string;

  @ApiProperty({ enum: CHANGE_REASONS, example: 'failures' })
  reason!: ChangeReason;

  /** In starts a second; null if there was no rate. */
  @ApiProperty({ type: 'number', format: 'double', nullable: true, example: 12 })
  rate_before!: number | null;

  /** In starts a second; null if there is none. */
  @ApiProperty({ type: 'number', format: 'double', nullable: true, example: 8.4 })
  rate_after!: number | null;

  /** In one sentence, what it rests on. */
  @ApiProperty({ example: '31 % of 20 checks timed out or could not reach the target.' })
  message!: string;

  /** The limit that an operator set; null if there is none, or if the rate adapted. */
  @ApiProperty({ type: 'integer', nullable: true, example: null })
  max_limit!: number | null;

  /** The highest rate that an operator set; null if there is none, or if the rate adapted. */
  @ApiProperty({ type: 'number', format: 'double', nullable: true, example: null })
  max_rate!: number | null;

  /** Whether an operator had the rate adapt; null if it adapted. */
  @ApiProperty({ type: Boolean, nullable: true, example: null })
  adaptive!: boolean | null;

  /** Checks that the target answered since the decision before; null if an operator changed the rate. */
  @ApiProperty({ type: 'integer', nullable: true, example: 14 })
  answered!: number | null;

  /** Checks that timed out or could not reach the target; null if an operator changed the rate. */
  @ApiProperty({ type: 'integer', nullable: true, example: 6 })
  failed!: number | null;

  /** The median of round-trip times, each divided by its agent's shortest; null if none was reported. */
  @ApiProperty({ type: 'number', format: 'double', nullable: true, example: 1.2 })
  rtt_ratio!: number | null;

  /** The starts a second that were granted; null if an operator changed the rate. */
  @ApiProperty({ type: 'number', format: 'double', nullable: true, example: 11.5 })
  measured_rate!: number | null;
}

/** A page of changes, the latest first. */
export class WindowHistory extends PageEnd {
  @ApiProperty({ type: [WindowChangeView] })
  items!: WindowChangeView[];
}
