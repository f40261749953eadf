import { Column, Entity, PrimaryGeneratedColumn } from 'typeorm';

/** Every state of a task; `docs/architecture.md` has the picture. */
export const TASK_STATES = ['scheduled', 'queued', 'leased', 'completed', 'cancelled', 'dead'] as const;
export type TaskState = (typeof TASK_STATES)[number];

/** The final states of a task. Until then its row says `open`, and other tables tell which state it is in. */
export const FINISHED_STATES = ['completed', 'cancelled', 'dead'] as const;
export type FinishedState = (typeof FINISHED_STATES)[number];

/** Whether a task in this state has ended. */
export const isFinished = (state: TaskState | 'open'): state is FinishedState =>
  (FINISHED_STATES as readonly string[]).includes(state);

/** Why a task ended without a result. */
export const TASK_REASONS = ['max_attempts', 'not_after', 'operator'] as const;
export type TaskReason = (typeof TASK_REASONS)[number];

/** A task: one check of a target. */
@Entity('tasks')
export class TaskEntity {
  @PrimaryGeneratedColumn({ type: 'integer' })
  id!: number;

  @Column('text')
  kind!: string;

  /** The target of the check, derived by its kind; each target can have a limit. */
  @Column('text')
  target!: string;

  /** JSON, including the kind. */
  @Column('text')
  spec!: string;

  /** `open` until it ends: scheduled if `scheduled` has it, leased if it has a live lease, queued if `ready` has it. */
  @Column('text')
  state!: 'open' | FinishedState;

  /** Higher goes first. */
  @Column('integer')
  priority!: number;

  /** Not before this instant; set again for each later attempt. */
  @Column('bigint', { nullable: true })
  run_at!: number | null;

  /** No attempt begins from this instant on. */
  @Column('bigint', { nullable: true })
  not_after!: number | null;

  /** Attempts that ended and count: revoked ones do not. A live lease is one more. */
  @Column('integer')
  attempts!: number;

  @Column('integer')
  max_attempts!: number;

  /** At most one unfinished task has it. */
  @Column('text', { nullable: true })
  unique_key!: string | null;

  @Column('text', { nullable: true })
  reason!: TaskReason | null;

  /** The W3C Trace Context of its enqueue; null if there was none. */
  @Column('text', { nullable: true })
  traceparent!: string | null;

  @Column('bigint')
  created_at!: number;

  @Column('bigint')
  updated_at!: number;

  @Column('bigint', { nullable: true })
  finished_at!: number | null;
}
