import { Column, Entity, PrimaryGeneratedColumn } from 'typeorm';
import type { AttemptOutcome } from '../agents/agent.entity';
import type { Failure, Outcome } from '../kinds/observations';

export const LEASE_STATES = ['active', 'completed', 'cancelled', 'expired', 'revoked'] as const;
export type LeaseState = (typeof LEASE_STATES)[number];

/** `final` ended the task, `attempt` returned it, `late` arrived after the lease had ended and changed nothing. */
export const STANDINGS = ['final', 'attempt', 'late'] as const;
export type Standing = (typeof STANDINGS)[number];

/** What a report was to the task, by the state in which its lease ended; a live lease has no report. */
export const standingOf = (state: LeaseState): Standing =>
  state === 'completed' ? 'final' : state === 'cancelled' ? 'attempt' : 'late';

/**
 * One attempt at a task by one agent, and what was reported of it. Its id is the fencing token: later attempts have greater
 * ones.
 */
@Entity('leases')
export class LeaseEntity {
  @PrimaryGeneratedColumn({ type: 'integer' })
  id!: number;

  @Column('bigint')
  task_id!: number;

  @Column('bigint')
  agent_id!: number;

  /** The task's. */
  @Column('text')
  kind!: string;

  @Column('integer')
  attempt!: number;

  @Column('text')
  state!: LeaseState;

  @Column('bigint')
  granted_at!: number;

  @Column('bigint')
  deadline_at!: number;

  /** Extensions end here. */
  @Column('bigint')
  lifetime_ends_at!: number;

  @Column('bigint', { nullable: true })
  ended_at!: number | null;

  /** How it ended; null while it is live. */
  @Column('text', { nullable: true })
  ending!: AttemptOutcome | 'revoked' | null;

  /** As what it was reported; null until it was, also after it had ended. */
  @Column('text', { nullable: true })
  report!: 'completed' | 'cancelled' | null;

  @Column('text', { nullable: true })
  outcome!: Outcome | null;

  /** JSON list; null if there are none. */
  @Column('text', { nullable: true })
  observations!: string | null;

  /** What its agent said went wrong, as a JSON string: it may hold what a database can't keep as it is. */
  @Column('text', { nullable: true })
  error!: string | null;

  @Column('bigint', { nullable: true })
  reported_at!: number | null;

  /** When its agent was told to start, in ms since the epoch; null if there was no rate, and it could start at once. */
  @Column('bigint', { nullable: true })
  start_at!: number | null;

  /** What went wrong, as its agent says; null if it says nothing. */
  @Column('text', { nullable: true })
  failure!: Failure | null;

  /** The round-trip time to the target, in ms, as its agent measured it. */
  @Column('double precision', { nullable: true })
  rtt_ms!: number | null;
}
