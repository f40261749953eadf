import { Column, Entity, PrimaryColumn } from 'typeorm';

/** The instant since when replicas have served the database without a gap, and the last instant when one did; one row. */
@Entity('service_continuity')
export class ContinuityEntity {
  @PrimaryColumn('integer')
  id!: number;

  @Column('bigint')
  since!: number;

  @Column('bigint')
  last_seen_at!: number;
}
