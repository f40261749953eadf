import { ApiProperty, ApiPropertyOptional } from '@nestjs/swagger';
import { WINDOW_SCOPES, type WindowScope } from '../concurrency/window.entity';
import { OUTCOMES, type Outcome } from '../kinds/observations';
import { TASK_STATES, type TaskState } from '../queue/task.entity';

/** What can keep a task from running; `ready` is nothing. In the order in which they bind. */
export const WHY_REASONS = [
  'finished',
  'out_of_time',
  'leased',
  'not_yet',
  'backoff',
  'unknown_kind',
  'no_agent',
  'window_full',
  'agents_busy',
  'draining',
  'overloaded',
  'ready',
] as const;
export type WhyReason = (typeof WHY_REASONS)[number];

/** What can be done so that a task can run. */
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

/** One change of those that let a task run. */
export class WhyChange {
  /** The reason that it takes away. */
  @ApiProperty({ enum: WHY_REASONS, example: 'window_full' })
  reason!: WhyReason;

  /**
   * `wait_until` an instant; `retry_task`: reopen this task; `raise_limit` of a window; `enable_agent`: one that drains or is
   * disabled; `start_agent`: one that is silent; `bring_agent`: another one; `load_kind`: name the extension of the kind in
   * this server's settings; `reduce_load` of this server; `start_server`: this one stops.
   */
  @ApiProperty({ enum: WHY_ACTIONS, example: 'raise_limit' })
  action!: WhyAction;

  /** Of `wait_until`. */
  @ApiPropertyOptional({ format: 'date-time', example: '2026-01-01T00:01:00.000Z' })
  until?: string;

  /** Of `raise_limit`: which window. */
  @ApiPropertyOptional({ enum: WINDOW_SCOPES, example: 'kind' })
  scope?: WindowScope;

  /** Of `raise_limit`: the window's kind, null for everything. Else the kind that the agent must ask for. */
  @ApiPropertyOptional({ type: String, nullable: true, example: 'dns' })
  kind?: string | null;

  /** Of `raise_limit`: the window's target, null for a kind or everything. */
  @ApiPropertyOptional({ type: String, nullable: true, example: null })
  target?: string | null;

  /** Of `raise_limit`: the least that is enough; null lifts the limit, if too many tasks to count are before this one. */
  @ApiPropertyOptional({ type: 'integer', nullable: true, example: 14 })
  limit?: number | null;

  /** Of `enable_agent` and `start_agent`. */
  @ApiPropertyOptional({ example: 7 })
  agent_id?: number;

  /** Of changes that name or bring an agent: how many more leases of the kind it must ask for; those before the task come first. */
  @ApiPropertyOptional({ example: 3 })
  capacity?: number;

  /** How many agents it takes that each ask for that: how many leases one may hold at once is limited. */
  @ApiPropertyOptional({ type: 'integer', example: 1 })
  agents?: number;

  /** Whether that is enough: not if more tasks are before this one than are counted. */
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

/** The attempt that failed last. */
export class WhyAttempt {
  @ApiProperty({ example: 90_207 })
  lease_id!: number;

  @ApiProperty({ example: 7 })
  agent_id!: number;

  @ApiProperty({ example: 1 })
  attempt!: number;

  /** How the lease ended: the agent gave it back, or did not report in time. */
  @ApiProperty({ enum: ['cancelled', 'expired'], example: 'cancelled' })
  ended!: 'cancelled' | 'expired';

  /** What the agent said came of it; null if it did not say. */
  @ApiProperty({ enum: [...OUTCOMES, null], nullable: true, example: 'timeout' })
  outcome!: Outcome | null;

  @ApiProperty({ type: String, nullable: true, format: 'date-time', example: '2026-01-01T00:00:31.000Z' })
  ended_at!: string | null;
}

/** The window that is full; of several, the one that is furthest from having room. */
export class WhyWindow {
  @ApiProperty({ enum: WINDOW_SCOPES, example: 'kind' })
  scope!: WindowScope;

  @ApiProperty({ type: String, nullable: true, example: 'dns' })
  kind!: string | null;

  @ApiProperty({ type: String, nullable: true, example: null })
  target!: string | null;

  @ApiProperty({ example: 10 })
  limit!: number;

  /** How many leases there are, each of which takes a slot. */
  @ApiProperty({ example: 10 })
  leased!: number;

  /** How many tasks are queued behind it. Of a target whose limit is new, those that are in its lane already. */
  @ApiProperty({ example: 120 })
  queued!: number;

  /** How many tasks are claimed before this one, once the window has room. */
  @ApiProperty({ example: 3 })
  before!: number;

  /** Whether `before` is exact; else it is a lower bound. */
  @ApiProperty({ example: true })
  before_is_exact!: boolean;

  /** When the task may have a slot, in milliseconds from now, at the pace of the last minutes; null if that is not known. */
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

  /** How many of those online hold fewer leases than they ask for, of those that it took to look at; null if too many are busy to tell. */
  @ApiProperty({ type: 'integer', nullable: true, example: 3 })
  with_room!: number | null;

  /** When one of those online asked for the kind last, to about ten minutes; null if none is online. */
  @ApiProperty({ type: String, nullable: true, format: 'date-time', example: '2026-01-01T00:00:00.000Z' })
  last_asked_at!: string | null;
}

/** Why a task does not run, and what would let it. */
export class TaskWhy {
  @ApiProperty({ example: 1203 })
  task_id!: number;

  @ApiProperty({ example: 'dns' })
  kind!: string;

  @ApiProperty({ example: '192.0.2.53:53' })
  target!: string;

  @ApiProperty({ enum: TASK_STATES, example: 'queued' })
  state!: TaskState;

  /** The one that binds; `ready` if none does, and `finished` if there is nothing left to do. */
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
   * The least that has to change, all of it and in this order, for a claim to be granted the task, if nothing else happens
   * meanwhile; the limits in one request. Empty if nothing has to.
   */
  @ApiProperty({ type: [WhyChange] })
  changes!: WhyChange[];

  /** Until when it can't run: `run_at`, the next attempt's instant, or the lease's deadline. */
  @ApiProperty({ type: String, nullable: true, format: 'date-time', example: null })
  until!: string | null;

  @ApiProperty({ example: 0 })
  attempts!: number;

  @ApiProperty({ example: 5 })
  max_attempts!: number;

  /** How many queued tasks of its kind can be claimed before it; null if it is not queued itself. */
  @ApiProperty({ type: 'integer', nullable: true, example: 3 })
  before!: number | null;

  /** Whether `before` is exact; else it is a lower bound. */
  @ApiProperty({ example: true })
  before_is_exact!: boolean;

  /** If it is leased. */
  @ApiProperty({ type: WhyLease, nullable: true })
  lease!: WhyLease | null;

  /** If it waits for its next attempt. */
  @ApiProperty({ type: WhyAttempt, nullable: true })
  last_attempt!: WhyAttempt | null;

  /** If a window is full. */
  @ApiProperty({ type: WhyWindow, nullable: true })
  window!: WhyWindow | null;

  /** Null for a finished task. */
  @ApiProperty({ type: WhyAgents, nullable: true })
  agents!: WhyAgents | null;

  /** This server's load in percent of its limit; null if it is not overloaded. */
  @ApiProperty({ type: 'integer', nullable: true, example: null })
  load_percent!: number | null;
}
