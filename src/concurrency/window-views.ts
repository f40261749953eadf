import { toTimestamp } from '../clock';
import type { WindowChangeView, WindowView } from './concurrency.dto';
import type { ChangeReason, WindowRow } from './window.entity';
import { hasBounds, perSecond, type RoomColumns, roomNow } from './window-bounds';
import type { WindowChange } from './windows.queries';

/** The target that stands for every target of a kind. */
export const EVERY = '*';

/** What a window is of which there is no row. */
export const NO_WINDOW = {
  ...{ id: 0, inherited: 0 as const, max_slots: null, max_rate: null, adaptive: 0 as const, slots: null },
  ...{ leased: 0, rate: null },
  ...{ last_start_us: 0, recent_starts: null, hold_until: null },
} satisfies Partial<WindowRow>;

/**
 * Returns a window as operators see it.
 * @param now in ms since the epoch
 */
export function viewOf(
  row: RoomColumns & { id: number; target: string },
  queued: number,
  now: number,
): WindowView {
  const { id, scope, kind, target, inherited, slots, max_slots, rate, max_rate, adaptive, leased } = row;
  const room = roomNow(row, now);
  return {
    id: id === 0 ? null : id,
    scope,
    kind: kind || null,
    target: scope === 'every_target' ? EVERY : target || null,
    inherited: inherited === 1,
    limit: slots,
    max_limit: max_slots,
    rate: perSecond(rate),
    max_rate: perSecond(max_rate),
    adaptive: adaptive === 1,
    hold_until: row.hold_until !== null && row.hold_until > now ? toTimestamp(row.hold_until) : null,
    leased: !hasBounds(row) || scope === 'every_target' ? null : leased,
    queued,
    available: room === Number.POSITIVE_INFINITY || scope === 'every_target' ? null : room,
  };
}

/** The evidence of a change: the bounds that an operator set, or what the pacing rule decided by. */
interface Evidence {
  readonly limit?: number | null;
  readonly maxRate?: number | null;
  readonly adaptive?: boolean;
  readonly ok?: number;
  readonly bad?: number;
  readonly rttRatio?: number | null;
  readonly measured?: number;
}

/** Returns a change of a window as operators see it. */
export function changeViewOf(change: WindowChange): WindowChangeView {
  const evidence = JSON.parse(change.evidence) as Evidence;
  const { ok = null, bad = null, rttRatio = null, measured = null } = evidence;
  const { limit = null, maxRate = null, adaptive = null } = evidence;
  return {
    changed_at: toTimestamp(change.changed_at),
    reason: change.reason,
    rate_before: perSecond(change.rate_before),
    rate_after: perSecond(change.rate_after),
    message:
      change.reason === 'operator' && limit === null && maxRate === null && adaptive === false
        ? 'An operator lifted it.'
        : messageOf(change.reason, evidence),
    max_limit: limit,
    max_rate: perSecond(maxRate),
    adaptive,
    answered: ok,
    failed: bad,
    rtt_ratio: rttRatio,
    measured_rate: perSecond(measured),
  };
}

/** Says in one sentence why a rate changed. */
function messageOf(reason: ChangeReason, { ok = 0, bad = 0, rttRatio = null }: Evidence): string {
  const checks = ok + bad;
  switch (reason) {
    case 'operator':
      return 'An operator set it.';
    case 'pushed_back':
      return `The target refused checks or asked for a pause: ${bad} of ${checks} checks were not answered.`;
    case 'failures':
      return `${percent(bad, checks)} % of ${checks} checks timed out or could not reach the target.`;
    case 'slower':
      return `The target answers ${(rttRatio ?? 1).toFixed(1)} times as slowly as at best.`;
    case 'room':
      return `${percent(ok, checks)} % of ${checks} checks were answered, about as fast as at best.`;
    case 'dead':
      return `None of ${checks} checks was answered.`;
    case 'alive':
      return 'The target answers again.';
  }
}

const percent = (part: number, whole: number): number => Math.round((100 * part) / Math.max(1, whole));
