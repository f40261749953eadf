import { ApiProperty, ApiPropertyOptional } from '@nestjs/swagger';
import { IsInt, IsOptional, Matches, Max, Min } from 'class-validator';
import { Field } from '../http/item-fields';
import { PageEnd, PageQuery } from '../http/pagination';
import { IsTimestamp } from '../http/timestamps';
import { AgentBody } from '../http/validation';

/** How many samples an envelope holds at most, counters and gauges together. */
export const MAX_SAMPLES = 1_000;

/** One measured value. */
export class Sample {
  // Names can contain observed data, so all characters are accepted.
  @Field({ type: 'string', minLength: 1, maxLength: 255, example: 'queries_total' })
  name!: string;

  @Field({ type: 'number', example: 1_042 })
  value!: number;

  @Field({ type: 'string', optional: true, maxLength: 64, example: '1' })
  unit?: string | null;
}

const SAMPLES = {
  type: 'list',
  optional: true,
  items: Sample,
  noun: 'sample',
  maxItems: MAX_SAMPLES,
} as const;

/** An agent's measurements at one instant: at most 1,000 samples in total. */
@AgentBody()
export class MetricsRequest {
  /** The caller's own id. If absent, null or 0, it is the caller too. */
  @ApiProperty({ required: false, nullable: true, type: Number, minimum: 0, example: 1 })
  @IsOptional()
  @IsInt()
  @Min(0)
  @Max(Number.MAX_SAFE_INTEGER)
  agent_id?: number | null;

  // No example: it would become too old. Without one, the documentation page shows the current time.
  /** When it was measured: RFC 3339, from 30 days ago to 5 minutes ahead. */
  @ApiProperty({ type: String, format: 'date-time', maxLength: 64 })
  @IsTimestamp()
  timestamp!: string;

  /** Values that only increase. */
  @Field(SAMPLES)
  counters?: Sample[] | null;

  /** Values that go up and down. */
  @Field(SAMPLES)
  gauges?: Sample[] | null;
}

/** The id of the stored envelope. */
export class MetricsResponse {
  @ApiProperty({ enum: [true], example: true })
  accepted!: true;

  /** The envelope's id; a repeated envelope has the same one. */
  @ApiProperty({ example: '73' })
  id!: string;
}

/** Selects the envelopes to list. */
export class MetricsQuery extends PageQuery {
  // The order is by time, so the cursor holds an instant and an id; this pattern replaces PageQuery's.
  @ApiPropertyOptional({
    description: 'The `next_cursor` of the previous page.',
    example: '1767225600000-73',
  })
  @IsOptional()
  @Matches(/^(?:0|[1-9]\d{0,14})-[1-9]\d{0,14}$/, { message: 'cursor must be the next_cursor of a page' })
  override cursor?: string = undefined;

  @ApiPropertyOptional({
    description: 'Only envelopes measured at this instant or later: RFC 3339.',
    format: 'date-time',
    example: '2026-01-01T00:00:00Z',
  })
  @IsOptional()
  @IsTimestamp()
  from?: string;

  @ApiPropertyOptional({
    description: 'Only envelopes measured before this instant: RFC 3339.',
    format: 'date-time',
    example: '2026-01-02T00:00:00Z',
  })
  @IsOptional()
  @IsTimestamp()
  to?: string;
}

/** A stored envelope. */
export class MetricsView {
  @ApiProperty({ example: '73' })
  id!: string;

  /** When the agent measured it, by its own clock. */
  @ApiProperty({ format: 'date-time', example: '2026-01-01T00:00:00.000Z' })
  timestamp!: string;

  @ApiProperty({ format: 'date-time', example: '2026-01-01T00:00:01.250Z' })
  received_at!: string;

  @ApiProperty({ type: [Sample] })
  counters!: Sample[];

  @ApiProperty({ type: [Sample] })
  gauges!: Sample[];
}

/** A page of envelopes. */
export class MetricsPage extends PageEnd {
  /** Fewer than the limit if they would be too large together; `next_cursor` says whether there are more. */
  @ApiProperty({ type: [MetricsView] })
  items!: MetricsView[];
}
