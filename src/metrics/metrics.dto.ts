import { ApiProperty, ApiPropertyOptional } from '@nestjs/swagger';
import { IsInt, IsOptional, Matches, Max, Min } from 'class-validator';
import type { MemberShape } from '../http/json-body';
import { PageEnd, PageQuery } from '../http/pagination';
import { IsTimestamp } from '../http/timestamps';
import { AgentBody, type ItemProblem, Items } from '../http/validation';

/** How many samples an envelope holds at most, counters and gauges together. */
export const MAX_SAMPLES = 1_000;

/** One measured value. */
export class Sample {
  @ApiProperty({ example: 'queries_total', minLength: 1, maxLength: 255 })
  name!: string;

  @ApiProperty({ type: Number, format: 'double', example: 1_042 })
  value!: number;

  @ApiProperty({ required: false, nullable: true, type: String, maxLength: 64, example: '1' })
  unit?: string | null;
}

const SAMPLES: MemberShape = { members: { name: {}, value: {}, unit: {} } };

/** What an agent measured at one instant: 1,000 samples in all at most. */
@AgentBody({ counters: SAMPLES, gauges: SAMPLES })
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
  @ApiProperty({ required: false, nullable: true, type: [Sample], maxItems: MAX_SAMPLES })
  @Items(checkSamples)
  counters?: Sample[] | null;

  /** Values that go up and down. */
  @ApiProperty({ required: false, nullable: true, type: [Sample], maxItems: MAX_SAMPLES })
  @Items(checkSamples)
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

function checkSamples(value: unknown): ItemProblem | undefined {
  if (value === undefined || value === null) return undefined;
  if (!Array.isArray(value) || value.length > MAX_SAMPLES)
    return ['', `must be a list of at most ${MAX_SAMPLES} samples`];
  for (let i = 0; i < value.length; i++) {
    const sample = value[i] as Record<string, unknown>;
    if (typeof sample !== 'object' || sample === null || Array.isArray(sample))
      return [i, 'must be an object'];
    const { name, value: measured, unit } = sample;
    // Names may be of what was observed, and so are kept whatever characters they have.
    if (name === undefined || name === null) return [`${i}.name`, 'is required'];
    if (typeof name !== 'string') return [`${i}.name`, 'must be a string'];
    if (name.length < 1 || name.length > 255) return [`${i}.name`, 'must have 1 to 255 characters'];
    if (measured === undefined || measured === null) return [`${i}.value`, 'is required'];
    if (typeof measured !== 'number') return [`${i}.value`, 'must be a number'];
    if (unit === undefined || unit === null) continue;
    if (typeof unit !== 'string') return [`${i}.unit`, 'must be a string'];
    if (unit.length > 64) return [`${i}.unit`, 'must have at most 64 characters'];
  }
  return undefined;
}
