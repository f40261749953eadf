import { Column, Entity, PrimaryColumn } from 'typeorm';

/** One change that an operator made. Rows are only ever added, each with a hash over itself and the one before. */
@Entity('audit_log')
export class AuditEntity {
  /** Without gaps from 1. */
  @PrimaryColumn('bigint')
  id!: number;

  @Column('bigint')
  at!: number;

  /** 0 where no token was used: the process itself, or its command line. */
  @Column('bigint')
  operator_token_id!: number;

  @Column('text')
  operator_name!: string;

  @Column('text')
  address!: string;

  /** What was done, such as `agent.disable`. */
  @Column('text')
  action!: string;

  /** On what, such as `agent/12`. */
  @Column('text')
  subject!: string;

  /** JSON, in short; null if there was nothing. */
  @Column('text', { nullable: true })
  before!: string | null;

  @Column('text', { nullable: true })
  after!: string | null;

  /** SHA-256 in hex, over the hash of the row before and this row. */
  @Column('text')
  hash!: string;
}

/** The end of the chain, in one row: who takes rows off the end of the log must change this too. */
@Entity('audit_head')
export class AuditHeadEntity {
  @PrimaryColumn('integer')
  id!: number;

  @Column('bigint')
  last_id!: number;

  @Column('text')
  last_hash!: string;
}
