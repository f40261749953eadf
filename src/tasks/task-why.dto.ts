import { ApiProperty, ApiPropertyOptional } from '@nestjs/swagger';
import { WINDOW_SCOPES, type WindowScope } from '../concurrency/window.entity';
import { OUTCOMES, type Outcome } from '../kinds/observations';
import { TASK_STATES, type TaskState } from '../queue/task.entity';

/** The reasons why a task does not run, in the order of checks; `ready`: nothing prevents it. */
export const WHY_REASONS = [
  'finished',
  'out_of_time',
  'leased',
  'not_yet',
  'backoff',
  'unknown_kind',
  'no_agent',
  'window_full',
  'paced',
  'agents_busy',
  'draining',
  'overloaded',
  'ready',
] as const;
export type WhyReason = (typeof WHY_REASONS)[number];

/** The actions that can let a task run. */
export const WHY_ACTIONS = [
  'wait_until',
  'retry_task',
  'raise_limit',
  'enable_agent',
  'start_agent',
  'bring_agent',
  'load_kind',
  'reduce_load',
  'start_server',
] as const;
export type WhyAction = (typeof WHY_ACTIONS)[number];

/** One of the changes that let a task run. */
export class WhyChange {
  /** The reason that it removes. */
  @ApiProperty({ enum: WHY_REASONS, example: 'window_full' })
  reason!: WhyReason;

  /**
   * `wait_until` an instant; `retry_task`: reopen this task; `raise_limit` of a window; `enable_agent`: a draining or
   * disabled one; `start_agent`: a silent one; `bring_agent`: a new one; `load_kind`: name the extension of the kind in
   * this server's settings; `reduce_load` of this server; `start_server`: this one is stopping.
   */
  @ApiProperty({ enum: WHY_ACTIONS, example: 'raise_limit' })
  action!: WhyAction;

  /** Of `wait_until`. */
  @ApiPropertyOptional({ format: 'date-time', example: '2026-01-01T00:01:00.000Z' })
  until?: string;

  /** Of `raise_limit`: the scope of the window. */
  @ApiPropertyOptional({ enum: WINDOW_SCOPES, example: 'kind' })
  scope?: WindowScope;

  /** Of `raise_limit`: the window's kind, null for everything. Else the kind that the agent must ask for. */
  @ApiPropertyOptional({ type: String, nullable: true, example: 'dns' })
  kind?: string | null;

  /** Of `raise_limit`: the window's target, null for a kind or everything. */
  @ApiPropertyOptional({ type: String, nullable: true, example: null })
  target?: string | null;

  /**
   * Of `raise_limit`: the lowest limit that is enough; null lifts the limit, if too many tasks are before this one to
   * count them.
   */
  @ApiPropertyOptional({ type: 'integer', nullable: true, example: 14 })
  limit?: number | null;

  /** Of `enable_agent` and `start_agent`. */
  @ApiPropertyOptional({ example: 7 })
  agent_id?: number;

  /**
   * Of changes that name or add an agent: the number of further leases of the kind that it must ask for, because the
   * tasks before this one come first.
   */
  @ApiPropertyOptional({ example: 3 })
  capacity?: number;

  /** The number of agents that must each ask for that, because the leases of one agent are limited. */
  @ApiPropertyOptional({ type: 'integer', example: 1 })
  agents?: number;

  /**
   * Whether that is enough: false if more tasks are before this one than are counted; of `wait_until`, if it may have to wait
   * longer.
   */
  @ApiPropertyOptional({ example: true })
  is_enough?: boolean;
}

/** The agent that holds a task. */
export class WhyLease {
  @ApiProperty({ example: 90_211 })
  lease_id!: number;

  @ApiProperty({ example: 7 })
  agent_id!: number;
}

/** The last failed attempt. */
export class WhyAttempt {
  @ApiProperty({ example: 90_207 })
  lease_id!: number;

  @ApiProperty({ example: 7 })
  agent_id!: number;

  @ApiProperty({ example: 1 })
  attempt!: number;

  /** How the lease ended: the agent cancelled it, or did not report in time. */
  @ApiProperty({ enum: ['cancelled', 'expired'], example: 'cancelled' })
  ended!: 'cancelled' | 'expired';

  /** The outcome that the agent reported; null if it reported none. */
  @ApiProperty({ enum: [...OUTCOMES, null], nullable: true, example: 'timeout' })
  outcome!: Outcome | null;

  @ApiProperty({ type: String, nullable: true, format: 'date-time', example: '2026-01-01T00:00:31.000Z' })
  ended_at!: string | null;
}

/**
 * The full window, of several the one that lacks most slots; or the one whose rate has the task wait, of several the one that has it
 * wait longest.
 */
export class WhyWindow {
  @ApiProperty({ enum: WINDOW_SCOPES, example: 'kind' })
  scope!: WindowScope;

  @ApiProperty({ type: String, nullable: true, example: 'dns' })
  kind!: string | null;

  @ApiProperty({ type: String, nullable: true, example: null })
  target!: string | null;

  /** Null if there is only a rate. */
  @ApiProperty({ type: 'integer', nullable: true, example: 10 })
  limit!: number | null;

  /** The starts a second now; null if there is no rate. */
  @ApiProperty({ type: 'number', format: 'double', nullable: true, example: null })
  rate!: number | null;

  /** The live leases, each of which takes a slot. */
  @ApiProperty({ example: 10 })
  leased!: number;

  /** The queued tasks that it limits. Of a target with a new limit, those that are in its lane already. */
  @ApiProperty({ example: 120 })
  queued!: number;

  /** The number of tasks that are claimed before this one, once the window has room. */
  @ApiProperty({ example: 3 })
  before!: number;

  /** Whether `before` is exact; else it is a lower bound. */
  @ApiProperty({ example: true })
  before_is_exact!: boolean;

  /**
   * When the task may get a slot, in milliseconds from now, at the rate of the window, or as fast as tasks ended in the last minutes;
   * null if unknown.
   */
  @ApiProperty({ type: 'integer', nullable: true, example: 14_000 })
  estimate_ms!: number | null;
}

/** The agents that asked for the kind in the last day. */
export class WhyAgents {
  @ApiProperty({ example: 5 })
  online!: number;

  @ApiProperty({ example: 3 })
  offline!: number;

  @ApiProperty({ example: 1 })
  draining!: number;

  @ApiProperty({ example: 2 })
  disabled!: number;

  /**
   * The number of online agents that hold fewer leases than they ask for, among those that were checked; null if too
   * many are busy to find one.
   */
  @ApiProperty({ type: 'integer', nullable: true, example: 3 })
  with_room!: number | null;

  /** When an online agent last asked for the kind, exact to about ten minutes; null if none is online. */
  @ApiProperty({ type: String, nullable: true, format: 'date-time', example: '2026-01-01T00:00:00.000Z' })
  last_asked_at!: string | null;
}

/** Why a task does not run, and the changes that would let it run. */
export class TaskWhy {
  @ApiProperty({ example: 1203 })
  task_id!: number;

  @ApiProperty({ example: 'dns' })
  kind!: string;

  @ApiProperty({ example: '192.0.2.53:53' })
  target!: string;

  @ApiProperty({ enum: TASK_STATES, example: 'queued' })
  state!: TaskState;

  /** The first reason; `ready` if nothing prevents it, `finished` if the task has ended. */
  @ApiProperty({ enum: WHY_REASONS, example: 'window_full' })
  reason!: WhyReason;

  /** The reason and the changes in words; do not parse them. */
  @ApiProperty({
    example:
      'The window of dns is full: of 10 slots 10 are leased, and 3 tasks are before it. ' +
      'To let it run: raise the limit of dns to 14.',
  })
  message!: string;

  /**
   * The smallest changes, all of them and in this order, after which a claim can be granted the task, if nothing else
   * happens meanwhile. Set the limits in one request. Empty if no change is needed.
   */
  @ApiProperty({ type: [WhyChange] })
  changes!: WhyChange[];

  /** The instant until which it can't run: `run_at`, the next attempt, or the lease's deadline. */
  @ApiProperty({ type: String, nullable: true, format: 'date-time', example: null })
  until!: string | null;

  @ApiProperty({ example: 0 })
  attempts!: number;

  @ApiProperty({ example: 5 })
  max_attempts!: number;

  /** The number of queued tasks of its kind that can be claimed before it; null if it is not queued itself. */
  @ApiProperty({ type: 'integer', nullable: true, example: 3 })
  before!: number | null;

  /** Whether `before` is exact; else it is a lower bound. */
  @ApiProperty({ example: true })
  before_is_exact!: boolean;

  /** Set if it is leased. */
  @ApiProperty({ type: WhyLease, nullable: true })
  lease!: WhyLease | null;

  /** Set if it waits for its next attempt. */
  @ApiProperty({ type: WhyAttempt, nullable: true })
  last_attempt!: WhyAttempt | null;

  /** Set if a window is full. */
  @ApiProperty({ type: WhyWindow, nullable: true })
  window!: WhyWindow | null;

  /** Null for a finished task. */
  @ApiProperty({ type: WhyAgents, nullable: true })
  agents!: WhyAgents | null;

  /** This server's load in percent of its limit; null if it is not overloaded. */
  @ApiProperty({ type: 'integer', nullable: true, example: null })
  load_percent!: number | null;
}
