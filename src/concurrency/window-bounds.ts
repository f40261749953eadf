import { FIRST_RATE, MAX_RETRY_AFTER_MS, MIN_LEASED, type PacingBounds } from './pacing';
import { CountedStarts, intervalUs, SpacedStarts } from './starts';
import type { WindowRow } from './window.entity';

/** Converts a rate in starts a second to one in starts per 1,000 s, rounded down. */
export const perThousandSeconds = (rate: number): number => Math.floor(rate * 1_000 + 1e-6);

/** Converts a rate in starts per 1,000 s to one in starts a second. */
export function perSecond(rate: number): number;
export function perSecond(rate: number | null): number | null;
export function perSecond(rate: number | null): number | null {
  return rate === null ? null : rate / 1_000;
}

/** The highest rate, in starts per 1,000 s: a million a second. */
export const MAX_RATE = 1_000_000_000;

/** The columns that say how many leases a window has room for. */
export type RoomColumns = Pick<
  WindowRow,
  'scope' | 'kind' | 'inherited' | 'max_slots' | 'max_rate' | 'adaptive' | 'slots' | 'leased' | 'rate'
> &
  Pick<WindowRow, 'last_start_us' | 'recent_starts' | 'hold_until'>;

/** Whether a window has a limit, a rate, or adapts. */
export const hasBounds = ({
  max_slots,
  max_rate,
  adaptive,
}: Pick<WindowRow, 'max_slots' | 'max_rate' | 'adaptive'>): boolean =>
  max_slots !== null || max_rate !== null || adaptive === 1;

/**
 * Finds the window whose bounds the targets of a kind inherit; undefined if there is none, or its bounds were lifted.
 * @param windows that include it
 */
export const everyTargetOf = <Row extends WindowRow>(
  windows: readonly Row[],
  kind: string,
): Row | undefined =>
  windows.find((row) => row.scope === 'every_target' && row.kind === kind && hasBounds(row));

/** Whether a window is of everything or of a kind. */
export const isWide = ({ scope }: Pick<WindowRow, 'scope'>): boolean =>
  scope === 'global' || scope === 'kind';

/** The bounds of a window, as the pacing rule takes them. */
export const boundsOf = ({
  max_slots,
  max_rate,
}: Pick<WindowRow, 'max_slots' | 'max_rate'>): PacingBounds => ({
  maxRate: max_rate ?? MAX_RATE,
  limit: max_slots,
});

/**
 * Returns a window with the bounds that count now. Rows that inherit are updated by a job, so that a change of the bounds of every
 * target is in force at once however many targets there are.
 * @param wide the windows that include that of every target of its kind
 */
export function inForce<Row extends RoomColumns>(row: Row, wide: readonly WindowRow[]): Row {
  if (row.inherited === 0) return row;
  const { max_slots = null, max_rate = null, adaptive = 0 } = everyTargetOf(wide, row.kind) ?? {};
  const bounds = { max_slots, max_rate, adaptive };
  if (adaptive === 0) return { ...row, ...bounds, slots: max_slots, rate: max_rate };
  const isKnown = row.adaptive === 1;
  return {
    ...row,
    ...bounds,
    slots: least(isKnown ? row.slots : MIN_LEASED, max_slots),
    rate: least((isKnown ? row.rate : null) ?? FIRST_RATE, max_rate),
  };
}

const least = (a: number | null, b: number | null): number | null =>
  a === null ? b : b === null ? a : Math.min(a, b);

/** How many more leases a window's limit allows; without a limit there is no end to it. */
export const leasesLeft = ({ slots, leased }: Pick<WindowRow, 'slots' | 'leased'>): number =>
  slots === null ? Number.POSITIVE_INFINITY : Math.max(0, slots - leased);

/**
 * How many more leases a window has room for, by its limit and its rate.
 * @param now in ms since the epoch
 */
export function roomNow(row: RoomColumns, now: number): number {
  const left = leasesLeft(row);
  if (left === 0 || row.rate === null) return left;
  return Math.min(left, startsOf(row, row.rate, now).room());
}

/** Returns the starts of a window with a rate. */
export function startsOf(row: RoomColumns, rate: number, now: number): SpacedStarts | CountedStarts {
  const nextUs = nextStartUs(row, rate, now);
  return isWide(row)
    ? new CountedStarts(rate, nextUs, row.recent_starts, now)
    : new SpacedStarts(rate, nextUs, now);
}

/**
 * Returns the earliest next start of a window with a rate, in µs since the epoch: one interval after the last, and not before the
 * target wants to be asked again.
 */
export function nextStartUs(
  { last_start_us: lastUs, hold_until: holdUntil }: Pick<WindowRow, 'last_start_us' | 'hold_until'>,
  rate: number,
  now: number,
): number {
  const holdUs = Math.min(holdUntil ?? 0, now + MAX_RETRY_AFTER_MS) * 1_000;
  return Math.max(holdUs, lastUs === 0 ? 0 : lastUs + intervalUs(rate));
}
