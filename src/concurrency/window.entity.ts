import { Column, Entity, PrimaryGeneratedColumn } from 'typeorm';

/** How far a window reaches: everything, one kind, or one target of a kind. */
export const WINDOW_SCOPES = ['global', 'kind', 'target'] as const;
export type WindowScope = (typeof WINDOW_SCOPES)[number];

/** How many tasks of a scope are ready, leased and waiting, and how many may be ready and leased at once. */
@Entity('concurrency_windows')
export class WindowEntity {
  @PrimaryGeneratedColumn({ type: 'integer' })
  id!: number;

  @Column('text')
  scope!: WindowScope;

  /** Empty for the global scope. */
  @Column('text')
  kind!: string;

  /** Empty but for the target scope. */
  @Column('text')
  target!: string;

  /** The most that may be ready and leased together; null is unlimited. */
  @Column('integer', { nullable: true })
  ceiling!: number | null;

  @Column('bigint')
  ready!: number;

  @Column('bigint')
  leased!: number;

  @Column('bigint')
  waiting!: number;

  @Column('bigint')
  updated_at!: number;

  /** From then on the row may go, provided that nothing counts in it and it has no ceiling. */
  @Column('bigint')
  expires_at!: number;
}
