import { Column, Entity, PrimaryGeneratedColumn } from 'typeorm';

/** A token that admins give to the people who set agents up; only its hash is kept. */
@Entity('enrollment_tokens')
export class EnrollmentTokenEntity {
  @PrimaryGeneratedColumn({ type: 'integer' })
  id!: number;

  /** What it is for, for lists and the audit log. */
  @Column('text')
  name!: string;

  /** JSON: the labels that it gives. */
  @Column('text')
  labels!: string;

  /** SHA-256 of the token, in hex. */
  @Column('text', { unique: true })
  token_hash!: string;

  /** Null if it is not limited. */
  @Column('bigint', { nullable: true })
  max_uses!: number | null;

  /** How many agents it has enrolled. */
  @Column('bigint')
  uses!: number;

  @Column('bigint')
  created_at!: number;

  @Column('bigint', { nullable: true })
  expires_at!: number | null;

  @Column('bigint', { nullable: true })
  revoked_at!: number | null;
}
