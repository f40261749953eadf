import { Column, Entity, PrimaryGeneratedColumn } from 'typeorm';

/** An envelope of metrics as an agent sent it. */
@Entity('agent_metrics')
export class MetricsEntity {
  @PrimaryGeneratedColumn({ type: 'integer' })
  id!: number;

  @Column('bigint')
  agent_id!: number;

  /** SHA-256 of the envelope's content, so that a repeated envelope is stored once. */
  @Column('text')
  envelope_hash!: string;

  /** The agent's timestamp. */
  @Column('bigint')
  measured_at!: number;

  @Column('bigint')
  received_at!: number;

  /** JSON list. */
  @Column('text')
  counters!: string;

  /** JSON list. */
  @Column('text')
  gauges!: string;
}
