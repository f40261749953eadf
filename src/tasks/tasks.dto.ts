import { ApiProperty, ApiPropertyOptional, PickType } from '@nestjs/swagger';
import { IsBoolean, IsIn, IsOptional, IsString, Matches, MaxLength } from 'class-validator';
import { ATTEMPT_OUTCOMES, type AttemptOutcome } from '../agents/agent.entity';
import { OptionalIdInQuery } from '../http/fields';
import { Field } from '../http/item-fields';
import { PageEnd, PageQuery } from '../http/pagination';
import { NAME } from '../http/text';
import { IsTimestamp, TIMESTAMP } from '../http/timestamps';
import { IsId } from '../http/validation';
import { FAILURES, type Failure, Observation, OUTCOMES, type Outcome } from '../kinds/observations';
import { HoldsSpec } from '../kinds/spec-holders';
import { LEASE_STATES, type LeaseState, STANDINGS, type Standing } from '../leases/lease.entity';
import { TASK_REASONS, TASK_STATES, type TaskReason, type TaskState } from '../queue/task.entity';

const MAX_TASKS = 10_000;
const MAX_ATTEMPTS = 100;
const MAX_PRIORITY = 2_147_483_647;

/** A task to enqueue. */
@HoldsSpec({ isInput: true })
export class TaskInput {
  // Judged by the registry of kinds, with the spec.
  @Field({ type: 'unchecked', shown: { type: String }, example: 'dns' })
  kind!: string;

  /** What to do, in the form of the kind; it may repeat the kind. */
  @Field({
    type: 'unchecked',
    shown: { type: Object },
    example: { query: 'example.com', record_type: 'A' },
  })
  spec!: object;

  /** Higher goes first. */
  @Field({
    type: 'integer',
    optional: true,
    default: 0,
    minimum: -MAX_PRIORITY,
    maximum: MAX_PRIORITY,
    example: 0,
  })
  priority?: number | null;

  /** Not before this instant: RFC 3339, such as `2030-01-01T00:00:00Z`. */
  @Field({ type: 'string', optional: true, rule: TIMESTAMP, example: null })
  run_at?: string | null;

  /** No attempt begins from this instant on; the task is dead then. */
  @Field({ type: 'string', optional: true, rule: TIMESTAMP, example: null })
  not_after?: string | null;

  /** How often it is tried before it is dead. */
  @Field({
    type: 'integer',
    optional: true,
    default: 5,
    minimum: 1,
    maximum: MAX_ATTEMPTS,
    example: 5,
  })
  max_attempts?: number | null;

  /**
   * Such as `example.com/A/hourly`. While an unfinished task has this key, an equal one is not added: the answer names
   * the one that is there. One of another kind or spec is a conflict.
   */
  @Field({ type: 'string', optional: true, minLength: 1, maxLength: 255, rule: NAME, example: null })
  unique_key?: string | null;
}

/** Tasks to enqueue, all or none. */
export class EnqueueRequest {
  @Field({ type: 'list', items: TaskInput, noun: 'task', minItems: 1, maxItems: MAX_TASKS })
  tasks!: TaskInput[];
}

/** A task that was enqueued. */
export class EnqueuedTask {
  @ApiProperty({ example: 1203 })
  id!: number;

  @ApiProperty({ enum: TASK_STATES, example: 'queued' })
  state!: TaskState;
}

/** The tasks, in the order sent. */
export class EnqueueResponse {
  @ApiProperty({ type: [EnqueuedTask] })
  tasks!: EnqueuedTask[];
}

/** Which tasks to list. */
export class TasksQuery extends PageQuery {
  // A list by the last attempt, or of tasks that have ended, is in the order of when that was, so its cursor names an instant
  // besides the id; this pattern is in place of PageQuery's.
  @ApiPropertyOptional({ description: "The page before's `next_cursor`.", example: '1042' })
  @IsOptional()
  @Matches(/^[1-9]\d{0,14}(?:-[1-9]\d{0,14})?$/, { message: 'cursor must be the next_cursor of a page' })
  override cursor?: string = undefined;

  @ApiPropertyOptional({ description: 'Only tasks in this state.', enum: TASK_STATES, example: 'queued' })
  @IsOptional()
  @IsIn(TASK_STATES)
  state?: TaskState;

  @ApiPropertyOptional({ description: 'Only tasks of this kind.', example: 'dns' })
  @IsOptional()
  @IsString()
  @MaxLength(64)
  kind?: string;

  @ApiPropertyOptional({
    description: 'Only tasks aimed at this target, in any spelling.',
    example: '192.0.2.53:53',
  })
  @IsOptional()
  @IsString()
  @MaxLength(512)
  target?: string;

  @ApiPropertyOptional({
    description:
      'Only tasks that this agent holds, and those that nobody holds whose last attempt was its. With `outcome`, `from` or `to`: only the latter.',
    type: 'integer',
    minimum: 1,
    example: 12,
  })
  @OptionalIdInQuery()
  agent_id?: number;

  @ApiPropertyOptional({
    description: 'Only tasks whose last attempt ended so.',
    enum: ATTEMPT_OUTCOMES,
    example: 'error',
  })
  @IsOptional()
  @IsIn(ATTEMPT_OUTCOMES)
  outcome?: AttemptOutcome;

  @ApiPropertyOptional({
    description: 'Only tasks whose last attempt ended at this instant or later: RFC 3339.',
    format: 'date-time',
    example: '2026-01-01T00:00:00Z',
  })
  @IsOptional()
  @IsTimestamp()
  from?: string;

  @ApiPropertyOptional({
    description: 'Only tasks whose last attempt ended before this instant: RFC 3339.',
    format: 'date-time',
    example: '2026-01-02T00:00:00Z',
  })
  @IsOptional()
  @IsTimestamp()
  to?: string;
}

/** The states that a cancel is for, and a retry, in the order that many tasks are gone through. */
export const CANCELLABLE = ['scheduled', 'queued', 'leased'] as const;
export const RETRYABLE = ['dead', 'cancelled'] as const;

/** Which tasks to change: those that match all that is given. */
export abstract class BulkRequest {
  abstract state?: TaskState | null;

  /** Only tasks of this kind. */
  @ApiProperty({ required: false, nullable: true, type: String, maxLength: 64, example: 'dns' })
  @IsOptional()
  @IsString()
  @MaxLength(64)
  kind?: string | null;

  /** Only tasks aimed at this target, in any spelling. */
  @ApiProperty({ required: false, nullable: true, type: String, maxLength: 512, example: '192.0.2.53' })
  @IsOptional()
  @IsString()
  @MaxLength(512)
  target?: string | null;

  /**
   * Only tasks that this agent holds, and those that nobody holds whose last attempt was its. With `outcome`, `from` or
   * `to`: only the latter.
   */
  @ApiProperty({ required: false, nullable: true, type: 'integer', minimum: 1, example: 12 })
  @IsOptional()
  @IsId()
  agent_id?: number | null;

  /** Only tasks whose last attempt ended so. */
  @ApiProperty({ required: false, nullable: true, enum: [...ATTEMPT_OUTCOMES, null], example: 'expired' })
  @IsOptional()
  @IsIn(ATTEMPT_OUTCOMES)
  outcome?: AttemptOutcome | null;

  /** Only tasks whose last attempt ended at this instant or later: RFC 3339. */
  @ApiProperty({
    required: false,
    nullable: true,
    type: String,
    format: 'date-time',
    example: '2026-01-01T00:00:00Z',
  })
  @IsOptional()
  @IsTimestamp()
  from?: string | null;

  /** Only tasks whose last attempt ended before this instant: RFC 3339. */
  @ApiProperty({
    required: false,
    nullable: true,
    type: String,
    format: 'date-time',
    example: '2026-01-02T00:00:00Z',
  })
  @IsOptional()
  @IsTimestamp()
  to?: string | null;

  /** True to mean every task; then nothing else may be given. */
  @ApiProperty({ required: false, nullable: true, type: Boolean, example: false })
  @IsOptional()
  @IsBoolean()
  all?: boolean | null;

  /** True to change nothing and only count. */
  @ApiProperty({ required: false, nullable: true, type: Boolean, default: false, example: true })
  @IsOptional()
  @IsBoolean()
  dry_run?: boolean | null;
}

/** Which unfinished tasks to cancel. */
export class BulkCancelRequest extends BulkRequest {
  /** Only tasks in this state; every unfinished one if it is left out. */
  @ApiProperty({ required: false, nullable: true, enum: [...CANCELLABLE, null], example: 'queued' })
  @IsOptional()
  @IsIn(CANCELLABLE)
  state?: (typeof CANCELLABLE)[number] | null;
}

/** Which ended tasks to retry. */
export class BulkRetryRequest extends BulkRequest {
  /** Only tasks in this state; dead and cancelled ones if it is left out. */
  @ApiProperty({ required: false, nullable: true, enum: [...RETRYABLE, null], example: 'dead' })
  @IsOptional()
  @IsIn(RETRYABLE)
  state?: (typeof RETRYABLE)[number] | null;
}

/** The result of changing many tasks. */
export class BulkAnswer {
  /** How many matched when the request began. */
  @ApiProperty({ type: 'integer', example: 1_200 })
  matched!: number;

  /** How many of them were changed. */
  @ApiProperty({ type: 'integer', example: 1_200 })
  changed!: number;
}

/** A task as operators see it. */
@HoldsSpec()
export class TaskView {
  @ApiProperty({ example: 1203 })
  id!: number;

  @ApiProperty({ example: 'dns' })
  kind!: string;

  /** What it is aimed at, as the kind derives it from the spec. */
  @ApiProperty({ example: '192.0.2.53:53' })
  target!: string;

  @ApiProperty({
    type: Object,
    example: { kind: 'dns', query: 'example.com', record_type: 'A', server: '192.0.2.53' },
  })
  spec!: object;

  @ApiProperty({ enum: TASK_STATES, example: 'queued' })
  state!: TaskState;

  /** Why it is cancelled or dead. */
  @ApiProperty({ enum: [...TASK_REASONS, null], nullable: true, example: null })
  reason!: TaskReason | null;

  @ApiProperty({ type: 'integer', example: 0 })
  priority!: number;

  @ApiProperty({ type: String, nullable: true, format: 'date-time', example: null })
  run_at!: string | null;

  @ApiProperty({ type: String, nullable: true, format: 'date-time', example: null })
  not_after!: string | null;

  /** Attempts begun; those that an operator's decision cut off do not count. */
  @ApiProperty({ type: 'integer', example: 1 })
  attempts!: number;

  @ApiProperty({ type: 'integer', example: 5 })
  max_attempts!: number;

  @ApiProperty({ type: String, nullable: true, example: null })
  unique_key!: string | null;

  @ApiProperty({ format: 'date-time', example: '2026-01-01T00:00:00.000Z' })
  created_at!: string;

  @ApiProperty({ format: 'date-time', example: '2026-01-01T00:00:01.000Z' })
  updated_at!: string;

  @ApiProperty({ type: String, nullable: true, format: 'date-time', example: null })
  finished_at!: string | null;

  /** How its last attempt ended; null while none has. A revoked attempt does not count; a retry keeps the last one. */
  @ApiProperty({ enum: [...ATTEMPT_OUTCOMES, null], nullable: true, example: 'success' })
  last_outcome!: AttemptOutcome | null;

  /** What the agent of that attempt said went wrong, at most 300 characters. Never trust it: strangers may choose it. */
  @ApiProperty({ type: String, nullable: true, example: null })
  last_error!: string | null;

  /** The agent of that attempt. */
  @ApiProperty({ type: 'integer', nullable: true, example: 12 })
  last_agent_id!: number | null;

  /** When that attempt ended. */
  @ApiProperty({ type: String, nullable: true, format: 'date-time', example: '2026-01-01T00:00:02.000Z' })
  last_ended_at!: string | null;
}

/** What an agent reported for a lease. */
export class ResultView {
  /** `final` closed the task, `attempt` returned it to the queue, `late` came after the lease had ended and changed nothing. */
  @ApiProperty({ enum: STANDINGS, example: 'final' })
  standing!: Standing;

  @ApiProperty({ enum: ['completed', 'cancelled'], example: 'completed' })
  report!: 'completed' | 'cancelled';

  @ApiProperty({ enum: [...OUTCOMES, null], nullable: true, example: 'success' })
  outcome!: Outcome | null;

  /** What went wrong, as the agent says. */
  @ApiProperty({ enum: [...FAILURES, null], nullable: true, example: null })
  failure!: Failure | null;

  /** The round-trip time to the target in ms, as the agent says. */
  @ApiProperty({ type: 'number', format: 'double', nullable: true, example: 12.5 })
  rtt_ms!: number | null;

  @ApiProperty({ type: [Observation] })
  observations!: Observation[];

  @ApiProperty({ format: 'date-time', example: '2026-01-01T00:00:02.000Z' })
  received_at!: string;
}

/** One attempt: a lease, and what its agent reported. */
export class AttemptView {
  @ApiProperty({ example: 4711 })
  lease_id!: number;

  @ApiProperty({ example: 1 })
  agent_id!: number;

  /** Counts from 1; a revoked attempt is not counted. */
  @ApiProperty({ type: 'integer', example: 1 })
  attempt!: number;

  @ApiProperty({ enum: LEASE_STATES, example: 'completed' })
  state!: LeaseState;

  @ApiProperty({ format: 'date-time', example: '2026-01-01T00:00:01.000Z' })
  granted_at!: string;

  /** When its agent was told to start; null if there was no rate. */
  @ApiProperty({ type: String, nullable: true, format: 'date-time', example: null })
  start_at!: string | null;

  @ApiProperty({ format: 'date-time', example: '2026-01-01T00:01:01.000Z' })
  deadline_at!: string;

  @ApiProperty({ type: String, nullable: true, format: 'date-time', example: '2026-01-01T00:00:02.000Z' })
  ended_at!: string | null;

  /** Null while nothing was reported. */
  @ApiProperty({ type: ResultView, nullable: true })
  result!: ResultView | null;
}

/** A task with its history. */
export class TaskDetail extends TaskView {
  /** Every attempt, oldest first; the newest of them where all would be too much for one answer. */
  @ApiProperty({ type: [AttemptView] })
  leases!: AttemptView[];

  /** What to send as `cursor` for the attempts before these; null if there are none. */
  @ApiProperty({ type: String, nullable: true, example: null })
  next_cursor!: string | null;
}

/** Which attempts of a task to show. */
export class AttemptsQuery extends PickType(PageQuery, ['cursor']) {}

/** A page of tasks. */
export class TaskPage extends PageEnd {
  @ApiProperty({ type: [TaskView] })
  items!: TaskView[];
}

/** How many tasks of a kind are in a state. */
export class DepthView {
  @ApiProperty({ example: 'dns' })
  kind!: string;

  @ApiProperty({ enum: TASK_STATES, example: 'queued' })
  state!: TaskState;

  @ApiProperty({ type: 'integer', example: 1_200 })
  count!: number;

  /** How long ago the oldest of them was created, in milliseconds; null for finished tasks. */
  @ApiProperty({ type: 'integer', nullable: true, example: 5_300 })
  oldest_age_ms!: number | null;
}

/** How deep the queue is. */
export class TaskStats {
  @ApiProperty({ type: [DepthView] })
  depths!: DepthView[];

  /** How long ago the oldest queued task of any kind was created, in milliseconds; null if none is queued. */
  @ApiProperty({ type: 'integer', nullable: true, example: 5_300 })
  oldest_queued_age_ms!: number | null;
}
