import { Column, Entity, PrimaryGeneratedColumn } from 'typeorm';
import type { Role } from '../http/control-plane-request';

/** A bearer token of an operator; only its hash is stored. */
@Entity('operator_tokens')
export class OperatorTokenEntity {
  @PrimaryGeneratedColumn({ type: 'integer' })
  id!: number;

  /** The operator's name, for logs and lists. */
  @Column('text')
  name!: string;

  @Column('text')
  role!: Role;

  /** `setting`: from CONTROL_PLANE_ADMIN_TOKEN. `file`: created at the first start. `issued`: created by an operator. */
  @Column('text')
  origin!: 'setting' | 'file' | 'issued';

  /** SHA-256 of the token, in hex; for a secret that a person chose, a slow hash: `scrypt$salt$key`. */
  @Column('text', { unique: true })
  token_hash!: string;

  @Column('bigint')
  created_at!: number;

  @Column('bigint', { nullable: true })
  expires_at!: number | null;

  @Column('bigint', { nullable: true })
  revoked_at!: number | null;

  /** To the minute, so that not every request costs a write. */
  @Column('bigint', { nullable: true })
  last_used_at!: number | null;
}
