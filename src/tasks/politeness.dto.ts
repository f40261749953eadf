import { ApiProperty, ApiPropertyOptional } from '@nestjs/swagger';
import { IsOptional, IsString, Length, Matches } from 'class-validator';
import {
  CHANGE_REASONS,
  type ChangeReason,
  WINDOW_SCOPES,
  type WindowScope,
} from '../concurrency/window.entity';

/** The target and the day to report on. */
export class PolitenessQuery {
  @ApiProperty({ description: 'The kind of the checks.', minLength: 1, maxLength: 64, example: 'dns' })
  @IsString()
  @Length(1, 64)
  kind!: string;

  @ApiProperty({
    description: 'Their target, in any spelling.',
    minLength: 1,
    maxLength: 512,
    example: '192.0.2.53',
  })
  @IsString()
  @Length(1, 512)
  target!: string;

  @ApiPropertyOptional({
    description: 'A date in UTC, not after today; today if it is left out.',
    format: 'date',
    example: '2026-01-02',
  })
  @IsOptional()
  @Matches(/^\d{4}-\d{2}-\d{2}$/, { message: 'day must be a date such as 2026-01-31' })
  day?: string;
}

/** A greatest number, and when it was first reached. */
export class PeakView {
  @ApiProperty({ type: 'integer', example: 6 })
  count!: number;

  /** Null if the number is 0. */
  @ApiProperty({ type: String, format: 'date-time', nullable: true, example: '2026-01-02T10:11:12.345Z' })
  at!: string | null;
}

/** How the checks that started on the day ended. */
export class CheckOutcomes {
  /** Reported as a success. */
  @ApiProperty({ type: 'integer', example: 1190 })
  success!: number;

  /** Reported as timed out. */
  @ApiProperty({ type: 'integer', example: 30 })
  timeout!: number;

  /** Reported as an error. */
  @ApiProperty({ type: 'integer', example: 9 })
  error!: number;

  /** Reported without an outcome. */
  @ApiProperty({ type: 'integer', example: 0 })
  unsaid!: number;

  /** Returned by the agent. */
  @ApiProperty({ type: 'integer', example: 3 })
  cancelled!: number;

  /** Not reported in time. */
  @ApiProperty({ type: 'integer', example: 2 })
  expired!: number;

  /** Taken from the agent by an operator. */
  @ApiProperty({ type: 'integer', example: 0 })
  revoked!: number;

  /** Not ended yet. */
  @ApiProperty({ type: 'integer', example: 0 })
  live!: number;
}

/** How many of the checks an agent was told to start. */
export class AgentChecks {
  @ApiProperty({ type: 'integer', example: 12 })
  agent_id!: number;

  /** Null if the agent has none, or is no longer kept. */
  @ApiProperty({ type: String, nullable: true, example: 'probe-fra-1' })
  hostname!: string | null;

  @ApiProperty({ type: 'integer', example: 640 })
  checks!: number;
}

/** A limit, a rate, or both, for as long as they stayed the same. */
export class RuleView {
  /** What it bounds: everything, the kind, every target of the kind for itself, or this target. */
  @ApiProperty({ enum: WINDOW_SCOPES, example: 'every_target' })
  scope!: WindowScope;

  /** From when it held; at the earliest the beginning of the day. */
  @ApiProperty({ type: String, format: 'date-time', example: '2026-01-02T00:00:00.000Z' })
  from!: string;

  /** Until when; null if it held until the end of the day, or still does. */
  @ApiProperty({ type: String, format: 'date-time', nullable: true, example: null })
  to!: string | null;

  /** The most leases at once; null if there was no limit. */
  @ApiProperty({ type: 'integer', nullable: true, example: 10 })
  limit!: number | null;

  /** The starts a second; null if there was no rate. Of an adaptive rule the highest, as far as it is recorded. */
  @ApiProperty({ type: 'number', format: 'double', nullable: true, example: 5 })
  rate!: number | null;

  /** The highest rate that an operator allowed; null if there was no bound. */
  @ApiProperty({ type: 'number', format: 'double', nullable: true, example: 5 })
  max_rate!: number | null;

  /** Whether the rate adapted to what was reported of the target. */
  @ApiProperty({ example: false })
  adaptive!: boolean;

  /** Why it began: `operator` set it, or what was reported of the target changed the rate. */
  @ApiProperty({ enum: CHANGE_REASONS, example: 'operator' })
  reason!: ChangeReason;
}

/** How a target was treated on a day. */
export class PolitenessReport {
  @ApiProperty({ example: 'dns' })
  kind!: string;

  @ApiProperty({ example: '192.0.2.53:53' })
  target!: string;

  /** The beginning of the day. */
  @ApiProperty({ type: String, format: 'date-time', example: '2026-01-02T00:00:00.000Z' })
  from!: string;

  /** Its end, exclusive. */
  @ApiProperty({ type: String, format: 'date-time', example: '2026-01-03T00:00:00.000Z' })
  to!: string;

  /** Later checks are not in the report. */
  @ApiProperty({ type: String, format: 'date-time', example: '2026-01-05T09:00:00.000Z' })
  generated_at!: string;

  /** False if tasks of this day may have been deleted, because they are no longer kept. */
  @ApiProperty({ example: true })
  is_complete!: boolean;

  /** False if there were too many tasks to read; the numbers are lower bounds then. */
  @ApiProperty({ example: true })
  is_exact!: boolean;

  /** Checks that agents were told to start on the day. */
  @ApiProperty({ type: 'integer', example: 1234 })
  checks!: number;

  @ApiProperty({ type: String, format: 'date-time', nullable: true, example: '2026-01-02T00:00:01.234Z' })
  first_start_at!: string | null;

  @ApiProperty({ type: String, format: 'date-time', nullable: true, example: '2026-01-02T23:59:58.001Z' })
  last_start_at!: string | null;

  /** The most starts within any 1,000 ms, and the first of these starts. */
  @ApiProperty({ type: PeakView })
  most_starts_in_a_second!: PeakView;

  /** The most checks at once, also those that began on the day before. */
  @ApiProperty({ type: PeakView })
  peak_concurrent!: PeakView;

  @ApiProperty({ type: CheckOutcomes })
  outcomes!: CheckOutcomes;

  /** How many agents were told to start them. */
  @ApiProperty({ type: 'integer', example: 2 })
  agents!: number;

  /** The agents with the most checks, at most 100. */
  @ApiProperty({ type: [AgentChecks] })
  by_agent!: AgentChecks[];

  /** Which limits and rates held, the earliest first, at most 500. Those of the beginning of the day are the first. */
  @ApiProperty({ type: [RuleView] })
  rules!: RuleView[];

  /** How many later ones are left out. */
  @ApiProperty({ type: 'integer', example: 0 })
  rules_left_out!: number;
}
