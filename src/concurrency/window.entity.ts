import { Column, Entity, PrimaryGeneratedColumn } from 'typeorm';

/** How far a window reaches: everything, one kind, or one target of a kind. */
export const WINDOW_SCOPES = ['global', 'kind', 'target'] as const;
export type WindowScope = (typeof WINDOW_SCOPES)[number];

/** What a task counts under: a kind, and a target of it. A window of a kind has an empty target, that of everything neither. */
export interface WindowKey {
  readonly kind: string;
  readonly target: string;
}

/** A limit that an operator has set, and how many leases count in it. There is no row for what has no limit. */
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

  /** How many leases there may be at once. More may be there after the limit was lowered. */
  @Column('integer')
  slots!: number;

  @Column('bigint')
  leased!: number;

  /** Of a target: the last task id that was looked at to move its queued tasks into its lane; null once all are there. */
  @Column('bigint', { nullable: true })
  moved_through!: number | null;
}

export type WindowRow = WindowEntity;
