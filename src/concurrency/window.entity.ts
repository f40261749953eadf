import { Column, Entity, PrimaryGeneratedColumn } from 'typeorm';

/** The scope of a window: everything, one kind, or one target of a kind. */
export const WINDOW_SCOPES = ['global', 'kind', 'target'] as const;
export type WindowScope = (typeof WINDOW_SCOPES)[number];

/**
 * The key of a window: a kind and a target. A window of a kind has an empty target; that of everything has neither.
 */
export interface WindowKey {
  readonly kind: string;
  readonly target: string;
}

/** A limit that an operator has set, and its live leases. Without a limit there is no row. */
@Entity('concurrency_windows')
export class WindowEntity {
  @PrimaryGeneratedColumn({ type: 'integer' })
  id!: number;

  @Column('text')
  scope!: WindowScope;

  /** Empty for the global scope. */
  @Column('text')
  kind!: string;

  /** Empty, except for the target scope. */
  @Column('text')
  target!: string;

  /** The most leases at once. There may be more after the limit was lowered. */
  @Column('integer')
  slots!: number;

  @Column('bigint')
  leased!: number;

  /**
   * Of a target: the last task id that was checked for moving its queued tasks into its lane; null once all are
   * there.
   */
  @Column('bigint', { nullable: true })
  moved_through!: number | null;
}

export type WindowRow = WindowEntity;
