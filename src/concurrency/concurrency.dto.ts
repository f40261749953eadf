import { ApiProperty, ApiPropertyOptional } from '@nestjs/swagger';
import { IsIn, IsOptional, IsString, MaxLength } from 'class-validator';
import { Field } from '../http/item-fields';
import { PageEnd, PageQuery } from '../http/pagination';
import { WINDOW_SCOPES, type WindowScope } from './window.entity';

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

/** A limit, with its leases and queued tasks. */
export class WindowView {
  @ApiProperty({ enum: WINDOW_SCOPES, example: 'target' })
  scope!: WindowScope;

  /** The kind; null for the global scope. */
  @ApiProperty({ type: String, nullable: true, example: 'dns' })
  kind!: string | null;

  /** The target; null for the wider scopes. */
  @ApiProperty({ type: String, nullable: true, example: '192.0.2.53:53' })
  target!: string | null;

  /** The most leases at once; null once it is lifted. */
  @ApiProperty({ type: 'integer', nullable: true, example: 10 })
  limit!: number | null;

  /** The live leases; more than the limit if it was lowered. Null without a limit: they are not counted then. */
  @ApiProperty({ type: 'integer', nullable: true, example: 7 })
  leased!: number | null;

  /** The queued tasks that it limits. Of a target with a new limit, those that are in its lane already. */
  @ApiProperty({ type: 'integer', example: 120 })
  queued!: number;

  /** The free slots; null without a limit. */
  @ApiProperty({ type: 'integer', nullable: true, example: 3 })
  available!: number | null;
}

/** A page of windows. */
export class WindowPage extends PageEnd {
  @ApiProperty({ type: [WindowView] })
  items!: WindowView[];
}

/** The limit of one window: of a target, with a kind and a target; of a kind; or of everything. */
export class LimitInput {
  /** A known kind; left out for the limit of everything. */
  @Field({ type: 'string', optional: true, minLength: 1, maxLength: 512, example: 'dns' })
  kind?: string | null;

  /** The target within the kind, in any spelling. */
  @Field({
    type: 'string',
    optional: true,
    minLength: 1,
    maxLength: 512,
    with: 'kind',
    example: '192.0.2.53:53',
  })
  target?: string | null;

  /** The most leases at once; null lifts the limit. */
  @Field({ type: 'integer', nullable: true, minimum: 0, maximum: 1_000_000, example: 10 })
  limit!: number | null;
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
