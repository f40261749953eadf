import { Column, Entity, PrimaryGeneratedColumn } from 'typeorm';

/** A signed configuration bundle. The newest is in force until it expires. */
@Entity('agent_configs')
export class ConfigEntity {
  /** Always increases; agents refuse a bundle with a lower number than theirs. */
  @PrimaryGeneratedColumn({ type: 'integer' })
  seq!: number;

  @Column('text', { unique: true })
  revision!: string;

  @Column('bigint')
  issued_at!: number;

  @Column('bigint')
  expires_at!: number;

  /** Canonical JSON (RFC 8785). */
  @Column('text')
  config!: string;

  /** The id of the key that signed it. */
  @Column('text')
  kid!: string;

  /** Detached JWS. */
  @Column('text')
  signature!: string;
}
