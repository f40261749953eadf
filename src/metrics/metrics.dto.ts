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
  // Names may be of what was observed, and so are kept whatever characters they have.
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

/** What an agent measured at one instant: 1,000 samples in all at most. */
@AgentBody()
export class MetricsRequest {
  /** The caller's own id; left out, null or 0 means the caller too. */
  @ApiProperty({ required: false, nullable: true, type: Number, minimum: 0, example: 1 })
  @IsOptional()
  @IsInt()
  @Min(0)
  @Max(Number.MAX_SAFE_INTEGER)
  agent_id?: number | null;

  // No example: any would be too old one day. The page shows the present for a date-time without one.
  /** When it was measured: RFC 3339, from 30 days ago to 5 minutes ahead. */
  @ApiProperty({ type: String, format: 'date-time', maxLength: 64 })
  @IsTimestamp()
  timestamp!: string;

  /** Values that only grow. */
  @Field(SAMPLES)
  counters?: Sample[] | null;

  /** Values that go up and down. */
  @Field(SAMPLES)
  gauges?: Sample[] | null;
}

/** The envelope is stored. */
export class MetricsResponse {
  @ApiProperty({ enum: [true], example: true })
  accepted!: true;

  /** Names the envelope; the same for the same envelope. */
  @ApiProperty({ example: '73' })
  id!: string;
}

/** Which envelopes to list. */
export class MetricsQuery extends PageQuery {
  // The order is by time, so the cursor names an instant besides the id; this pattern is in place of PageQuery's.
  @ApiPropertyOptional({ description: "The page before's `next_cursor`.", example: '1767225600000-73' })
  @IsOptional()
  @Matches(/^(?:0|[1-9]\d{0,14})-[1-9]\d{0,14}$/, { message: 'cursor must be the next_cursor of a page' })
  override cursor?: string = undefined;

  @ApiPropertyOptional({
    description: 'Only what was measured at this instant or later: RFC 3339.',
    format: 'date-time',
    example: '2026-01-01T00:00:00Z',
  })
  @IsOptional()
  @IsTimestamp()
  from?: string;

  @ApiPropertyOptional({
    description: 'Only what was measured before this instant: RFC 3339.',
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
  /** Fewer than asked for where they would be too large together; `next_cursor` says whether there are more. */
  @ApiProperty({ type: [MetricsView] })
  items!: MetricsView[];
}
