import { Column, Entity, PrimaryColumn } from 'typeorm';

/** Since when some replica has served the database without a gap, and when one last did; in one row. */
@Entity('service_continuity')
export class ContinuityEntity {
  @PrimaryColumn('integer')
  id!: number;

  @Column('bigint')
  since!: number;

  @Column('bigint')
  last_seen_at!: number;
}
