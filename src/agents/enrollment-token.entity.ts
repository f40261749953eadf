import { Column, Entity, PrimaryGeneratedColumn } from 'typeorm';

/** A token for registering agents, issued by an admin; only its hash is stored. */
@Entity('enrollment_tokens')
export class EnrollmentTokenEntity {
  @PrimaryGeneratedColumn({ type: 'integer' })
  id!: number;

  /** Its purpose, for lists and the audit log. */
  @Column('text')
  name!: string;

  /** JSON: the labels of the agents that it enrolls. */
  @Column('text')
  labels!: string;

  /** SHA-256 of the token, in hex. */
  @Column('text', { unique: true })
  token_hash!: string;

  /** Null if it is not limited. */
  @Column('bigint', { nullable: true })
  max_uses!: number | null;

  /** The number of agents that it has enrolled. */
  @Column('bigint')
  uses!: number;

  @Column('bigint')
  created_at!: number;

  @Column('bigint', { nullable: true })
  expires_at!: number | null;

  @Column('bigint', { nullable: true })
  revoked_at!: number | null;
}
