import { Column, Entity, PrimaryGeneratedColumn } from 'typeorm';
import type { Role } from '../http/control-plane-request';

/** A bearer token of an operator; only its hash is kept. */
@Entity('operator_tokens')
export class OperatorTokenEntity {
  @PrimaryGeneratedColumn({ type: 'integer' })
  id!: number;

  /** Whose it is, for logs and lists. */
  @Column('text')
  name!: string;

  @Column('text')
  role!: Role;

  /** Where it comes from: CONTROL_PLANE_ADMIN_TOKEN, the file made at first start, or another operator. */
  @Column('text')
  origin!: 'setting' | 'file' | 'issued';

  /** SHA-256 of the token, in hex; of one that a person chose, its slow hash: `scrypt$salt$key`. */
  @Column('text', { unique: true })
  token_hash!: string;

  @Column('bigint')
  created_at!: number;

  @Column('bigint', { nullable: true })
  expires_at!: number | null;

  @Column('bigint', { nullable: true })
  revoked_at!: number | null;

  /** To the minute: a write for every request would cost more than it tells. */
  @Column('bigint', { nullable: true })
  last_used_at!: number | null;
}
