import { Column, Entity, PrimaryGeneratedColumn } from 'typeorm';

export const LEASE_STATES = ['active', 'completed', 'cancelled', 'expired', 'revoked'] as const;
export type LeaseState = (typeof LEASE_STATES)[number];

/** One attempt at a task by one agent. Its id is the fencing token: later attempts have greater ones. */
@Entity('leases')
export class LeaseEntity {
  @PrimaryGeneratedColumn({ type: 'integer' })
  id!: number;

  @Column('bigint')
  task_id!: number;

  @Column('bigint')
  agent_id!: number;

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
}
