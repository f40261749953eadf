import { Column, Entity, PrimaryColumn } from 'typeorm';

/** One change that an operator made. Rows are only added, each with a hash over itself and the previous row's hash. */
@Entity('audit_log')
export class AuditEntity {
  /** Without gaps from 1. */
  @PrimaryColumn('bigint')
  id!: number;

  @Column('bigint')
  at!: number;

  /** 0 if no token was used: by the process itself, or its command line. */
  @Column('bigint')
  operator_token_id!: number;

  @Column('text')
  operator_name!: string;

  @Column('text')
  address!: string;

  /** A noun and a verb: `agent.disable`. */
  @Column('text')
  action!: string;

  /** A noun and an id: `agent/12`. */
  @Column('text')
  subject!: string;

  /** The fields that changed, as JSON; null if there were none. */
  @Column('text', { nullable: true })
  before!: string | null;

  @Column('text', { nullable: true })
  after!: string | null;

  /** SHA-256 in hex, over the previous row's hash and this row. */
  @Column('text')
  hash!: string;
}

/** The end of the chain, in one row, so that removing rows at the end of the log is detected. */
@Entity('audit_head')
export class AuditHeadEntity {
  @PrimaryColumn('integer')
  id!: number;

  @Column('bigint')
  last_id!: number;

  @Column('text')
  last_hash!: string;
}
