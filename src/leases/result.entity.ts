import { Column, Entity, PrimaryGeneratedColumn } from 'typeorm';

export const OUTCOMES = ['success', 'timeout', 'error'] as const;
export type Outcome = (typeof OUTCOMES)[number];

/** `final` closed the task, `attempt` gave it back, `late` came after the lease had ended and changed nothing. */
export const STANDINGS = ['final', 'attempt', 'late'] as const;
export type Standing = (typeof STANDINGS)[number];

/** What an agent reported for a lease. */
@Entity('results')
export class ResultEntity {
  @PrimaryGeneratedColumn({ type: 'integer' })
  id!: number;

  @Column('bigint')
  task_id!: number;

  @Column('bigint', { unique: true })
  lease_id!: number;

  @Column('bigint')
  agent_id!: number;

  @Column('text')
  standing!: Standing;

  @Column('text')
  report!: 'completed' | 'cancelled';

  @Column('text', { nullable: true })
  outcome!: Outcome | null;

  /** JSON list. */
  @Column('text')
  observations!: string;

  @Column('bigint')
  received_at!: number;
}
