import { ApiProperty, ApiPropertyOptional } from '@nestjs/swagger';
import { IsIn, IsOptional, IsString, MaxLength } from 'class-validator';
import { Field } from '../http/item-fields';
import { PageEnd, PageQuery } from '../http/pagination';
import { WINDOW_SCOPES, type WindowScope } from './window.entity';

/** Which windows to list. */
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

/** A limit, and what it holds. */
export class WindowView {
  @ApiProperty({ enum: WINDOW_SCOPES, example: 'target' })
  scope!: WindowScope;

  /** The kind; null for the global scope. */
  @ApiProperty({ type: String, nullable: true, example: 'dns' })
  kind!: string | null;

  /** The target; null for the wider scopes. */
  @ApiProperty({ type: String, nullable: true, example: '192.0.2.53:53' })
  target!: string | null;

  /** How many leases there may be at once; null once it is lifted. */
  @ApiProperty({ type: 'integer', nullable: true, example: 10 })
  limit!: number | null;

  /** How many leases there are. More than the limit if it was lowered: they run on. Null without a limit: nothing is counted then. */
  @ApiProperty({ type: 'integer', nullable: true, example: 7 })
  leased!: number | null;

  /** How many tasks are queued behind it. Of a target whose limit is new, those that are in its lane already. */
  @ApiProperty({ type: 'integer', example: 120 })
  queued!: number;

  /** How many more leases it allows now; null without a limit. */
  @ApiProperty({ type: 'integer', nullable: true, example: 3 })
  available!: number | null;
}

/** A page of windows. */
export class WindowPage extends PageEnd {
  @ApiProperty({ type: [WindowView] })
  items!: WindowView[];
}

/** The limit of one window: of a target if a kind and a target are given, of a kind, or of everything. */
export class LimitInput {
  /** One of the kinds that there are; left out for the limit of everything. */
  @Field({ type: 'string', optional: true, minLength: 1, maxLength: 512, example: 'dns' })
  kind?: string | null;

  /** The target within the kind, in any spelling of it. */
  @Field({
    type: 'string',
    optional: true,
    minLength: 1,
    maxLength: 512,
    with: 'kind',
    example: '192.0.2.53:53',
  })
  target?: string | null;

  /** How many leases there may be at once; null lifts the limit. */
  @Field({ type: 'integer', nullable: true, minimum: 0, maximum: 1_000_000, example: 10 })
  limit!: number | null;
}

/** Limits to set, all or none. */
export class SetLimitsRequest {
  @Field({ type: 'list', items: LimitInput, noun: 'limit', minItems: 1, maxItems: 1_000 })
  limits!: LimitInput[];
}

/** The windows whose limits were set, in the order given. */
export class SetLimitsResponse {
  @ApiProperty({ type: [WindowView] })
  windows!: WindowView[];
}
