import { Column, Entity, PrimaryGeneratedColumn } from 'typeorm';
import type { AttemptOutcome } from '../agents/agent.entity';

/** Every state of a task; `docs/architecture.md` has the picture. */
export const TASK_STATES = [
  'scheduled',
  'waiting',
  'queued',
  'leased',
  'completed',
  'cancelled',
  'dead',
] as const;
export type TaskState = (typeof TASK_STATES)[number];

/** Why a task ended without a result. */
export const TASK_REASONS = ['max_attempts', 'not_after', 'operator'] as const;
export type TaskReason = (typeof TASK_REASONS)[number];

/** A check to be done once: what, where, and how far it has come. */
@Entity('tasks')
export class TaskEntity {
  @PrimaryGeneratedColumn({ type: 'integer' })
  id!: number;

  @Column('text')
  kind!: string;

  /** What the check is aimed at, as its kind derives it; limits are kept for each. */
  @Column('text')
  target!: string;

  /** JSON, with the kind repeated in it. */
  @Column('text')
  spec!: string;

  @Column('text')
  state!: TaskState;

  /** Higher goes first. */
  @Column('integer')
  priority!: number;

  /** Not before this instant; set again for each later attempt. */
  @Column('bigint', { nullable: true })
  run_at!: number | null;

  /** No attempt begins from this instant on. */
  @Column('bigint', { nullable: true })
  not_after!: number | null;

  /** Attempts begun that count: those taken back by an operator's hand do not. */
  @Column('integer')
  attempts!: number;

  @Column('integer')
  max_attempts!: number;

  /** At most one unfinished task has it. */
  @Column('text', { nullable: true })
  unique_key!: string | null;

  /** The live lease; there is one exactly while the task is leased. */
  @Column('bigint', { nullable: true })
  lease_id!: number | null;

  @Column('text', { nullable: true })
  reason!: TaskReason | null;

  @Column('bigint')
  created_at!: number;

  @Column('bigint')
  updated_at!: number;

  @Column('bigint', { nullable: true })
  finished_at!: number | null;

  /** The trace that it was enqueued in, as W3C Trace Context writes it; null if in none. */
  @Column('text', { nullable: true })
  traceparent!: string | null;

  // Of the last attempt that ended by itself: one that an operator cut off leaves them as they are, and so does a retry.

  @Column('bigint', { nullable: true })
  last_agent_id!: number | null;

  @Column('text', { nullable: true })
  last_outcome!: AttemptOutcome | null;

  /** What its agent said went wrong, as a JSON string: it may hold what a database can't keep as it is. */
  @Column('text', { nullable: true })
  last_error!: string | null;

  @Column('bigint', { nullable: true })
  last_ended_at!: number | null;
}
