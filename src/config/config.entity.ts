import { Column, Entity, PrimaryGeneratedColumn } from 'typeorm';

/** A signed configuration bundle. The newest that has not expired is in force. */
@Entity('agent_configs')
export class ConfigEntity {
  /** Only grows; an agent refuses a lower one. */
  @PrimaryGeneratedColumn({ type: 'integer' })
  seq!: number;

  @Column('text', { unique: true })
  revision!: string;

  @Column('bigint')
  issued_at!: number;

  @Column('bigint')
  expires_at!: number;

  /** JSON. */
  @Column('text')
  config!: string;

  /** Names the key that signed it. */
  @Column('text')
  kid!: string;

  /** Detached JWS. */
  @Column('text')
  signature!: string;
}
