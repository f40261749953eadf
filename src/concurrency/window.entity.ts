import { Column, Entity, PrimaryGeneratedColumn } from 'typeorm';

/**
 * The scope of a window: everything, one kind, or one target of a kind. `every_target` has the bounds that each target of a kind
 * inherits that has none of its own.
 */
export const WINDOW_SCOPES = ['global', 'kind', 'every_target', 'target'] as const;
export type WindowScope = (typeof WINDOW_SCOPES)[number];

/**
 * The key of a window: a kind and a target. A window of a kind has an empty target; that of everything has neither.
 */
export interface WindowKey {
  readonly kind: string;
  readonly target: string;
}

/** Returns a key as a text, for maps. */
export const keyOf = ({ kind, target }: WindowKey): string => `${kind}\0${target}`;

/**
 * A limit of leases at once, or a rate of starts, and what counts towards it. Without either there is no row. Rates are in starts
 * per 1,000 s.
 */
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

  /** 1 if its bounds are those of `every_target`. */
  @Column('integer')
  inherited!: 0 | 1;

  /** The most leases at once that an operator allows; null if there is no limit. */
  @Column('integer', { nullable: true })
  max_slots!: number | null;

  /** The highest rate that an operator allows; null if there is no bound. */
  @Column('bigint', { nullable: true })
  max_rate!: number | null;

  /** 1 if the rate adapts to what is reported of the target. */
  @Column('integer')
  adaptive!: 0 | 1;

  /** The most leases at once now; null if there is no limit. There may be more after it was lowered. */
  @Column('integer', { nullable: true })
  slots!: number | null;

  @Column('bigint')
  leased!: number;

  /** The rate now; null if there is none. */
  @Column('bigint', { nullable: true })
  rate!: number | null;

  /** The last start that was granted, of a wide window its place at the rate, in µs since the epoch; 0 if there was none. */
  @Column('bigint')
  last_start_us!: number;

  /** Of a wide window with a rate: its starts of the last and the next second, as JSON. */
  @Column('text', { nullable: true })
  recent_starts!: string | null;

  /** How many starts were granted since the rate was last decided about. */
  @Column('bigint')
  starts!: number;

  /** Until when the target asked for a pause, in ms since the epoch. */
  @Column('bigint', { nullable: true })
  hold_until!: number | null;

  /** Of an adaptive window: the state of the rule, as JSON. */
  @Column('text', { nullable: true })
  pacing!: string | null;

  /**
   * Of a target: the last task id that was checked for moving its queued tasks into its lane; null once all are
   * there.
   */
  @Column('bigint', { nullable: true })
  moved_through!: number | null;

  /** Of an inherited one: when it is deleted if it stays idle, in ms since the epoch. */
  @Column('bigint', { nullable: true })
  expires_at!: number | null;

  /** The same as `slots` and `leased`, for dashboards. */
  @Column({ type: 'integer', nullable: true, insert: false, update: false })
  limit!: number | null;

  @Column({ type: 'bigint', insert: false, update: false })
  in_flight!: number;
}

export type WindowRow = Omit<WindowEntity, 'limit' | 'in_flight' | 'pacing' | 'expires_at'>;

/** The scopes of windows that leases count in. */
export type CountingScope = Exclude<WindowScope, 'every_target'>;

/** A window that leases count in. */
export interface CountingWindow extends WindowRow {
  scope: CountingScope;
}

/** Why the rate of a window changed: an operator set it, or what was reported of the target. */
export const CHANGE_REASONS = [
  'operator',
  'pushed_back',
  'failures',
  'slower',
  'room',
  'dead',
  'alive',
] as const;
export type ChangeReason = (typeof CHANGE_REASONS)[number];

/** A change of the limit or the rate of a window, which it names: an idle window is deleted and comes again. */
@Entity('concurrency_window_changes')
export class WindowChangeEntity {
  @PrimaryGeneratedColumn({ type: 'integer' })
  id!: number;

  @Column('text')
  scope!: WindowScope;

  @Column('text')
  kind!: string;

  @Column('text')
  target!: string;

  /** In ms since the epoch. */
  @Column('bigint')
  changed_at!: number;

  @Column('text')
  reason!: ChangeReason;

  @Column('bigint', { nullable: true })
  rate_before!: number | null;

  @Column('bigint', { nullable: true })
  rate_after!: number | null;

  /** What the decision rests on, as JSON. */
  @Column('text')
  evidence!: string;
}
