import type { CountingScope, CountingWindow, WindowKey } from '../concurrency/window.entity';
import { leasesLeft } from '../concurrency/window-bounds';
import type { TaskRow } from './tasks.queries';

/** A number; a lower bound if it is not exact, because counting stops at a limit. */
export interface Count {
  readonly count: number;
  readonly isExact: boolean;
}

/** The task in question. */
export type AskedTask = Pick<TaskRow, 'kind' | 'target' | 'state'>;

/** The number of tasks of a target; with an empty target, of all targets of the kind without a limit. */
export interface TargetCount extends WindowKey {
  readonly count: number;
}

/** The number of a target's tasks that become due, and how many of them are claimed before the task. */
export interface DueCount extends TargetCount {
  readonly before: number;
}

/** A window of the task, with the number of queued tasks that it limits. */
export type QueuedWindow = CountingWindow & { readonly queued: number };

/** A window of the task at the instant when the task can be claimed. */
export interface InWindow {
  readonly window: QueuedWindow;
  /** The number of tasks that are claimed before it in this window, once it has room. */
  readonly before: Count;
  /** The number of slots that other tasks may have by then. */
  readonly held: number;
}

/** The tasks that are claimed before the task. */
export interface Ahead {
  /** The number of those of its kind. */
  readonly leases: Count;
  /** The number of those in each of its windows. */
  readonly windows: readonly InWindow[];
}

/** The data for counting the tasks that are claimed before the task. */
export interface Around {
  readonly task: AskedTask;
  /** The windows of the task. */
  readonly windows: readonly QueuedWindow[];
  /**
   * The number of tasks before it in the lane of its target; zero if the target has no limit, because they are among
   * the others then.
   */
  readonly own: Count;
  /** The number of queued tasks of other targets before it. */
  readonly others: { readonly counts: readonly TargetCount[]; readonly isExact: boolean };
  /** Whether it waits: meanwhile others can be claimed, also those behind it. */
  readonly waits: boolean;
  /** The tasks that become due while it waits, and whether these are all. */
  readonly due: { readonly counts: readonly DueCount[]; readonly isExact: boolean };
  /** The windows of all of them. */
  readonly rooms: readonly CountingWindow[];
}

/**
 * Counts the tasks that are claimed before the task, once its windows have room: of each other target with a limit at
 * most as many as its window has room for, of each other kind at most as many as the kind's window has room for.
 */
export function countAhead(around: Around): Ahead {
  const { task, windows, own, others, due } = around;
  const rooms = new Map(around.rooms.map((window) => [keyOf(window), leasesLeft(window)]));
  const isOwn = ({ kind, target }: WindowKey) => kind === task.kind && target === task.target;
  let ofTarget = own.count;
  const byTarget = new Map<string, TargetCount>();
  for (const one of [...others.counts, ...due.counts.map((one) => ({ ...one, count: one.before }))]) {
    if (isOwn(one)) {
      ofTarget += one.count;
      continue;
    }
    const key = keyOf({ ...one, scope: 'target' });
    byTarget.set(key, { ...one, count: (byTarget.get(key)?.count ?? 0) + one.count });
  }
  const byKind = new Map<string, number>();
  for (const [key, { kind, count }] of byTarget)
    byKind.set(kind, (byKind.get(kind) ?? 0) + Math.min(count, rooms.get(key) ?? Infinity));
  const ofKind = ofTarget + (byKind.get(task.kind) ?? 0);
  let inAll = ofKind;
  for (const [kind, count] of byKind)
    if (kind !== task.kind)
      inAll += Math.min(count, rooms.get(keyOf({ scope: 'kind', kind, target: '' })) ?? Infinity);

  const isExact = own.isExact && others.isExact && due.isExact;
  const before: Record<CountingScope, Count> = {
    target: { count: ofTarget, isExact: own.isExact && due.isExact },
    kind: { count: ofKind, isExact },
    global: { count: inAll, isExact },
  };
  return {
    leases: before.kind,
    windows: windows.map((window) => ({
      window,
      before: before[window.scope],
      held: heldIn(window, before[window.scope].count, around),
    })),
  };
}

/**
 * Counts the slots of a window that others may have when the task can be claimed, also those behind it if it waits.
 */
function heldIn(window: QueuedWindow, before: number, { task, waits, due }: Around): number {
  // Its own slot is free by then.
  const leased = window.leased - (task.state === 'leased' ? 1 : 0);
  if (!waits) return leased;
  const comeDue = sumOf(due.counts.filter((one) => isIn(window, one)));
  const isQueued = task.state === 'queued' ? 1 : 0;
  // While tasks are being moved into the lane of their target, only some are counted.
  const behind = window.moved_through === null ? window.queued + comeDue - before - isQueued : Infinity;
  return leased + Math.min(Math.max(0, behind), leasesLeft({ slots: window.slots, leased }));
}

/** Sums counts. */
export const sumOf = (counts: readonly { readonly count: number }[]): number =>
  counts.reduce((sum, { count }) => sum + count, 0);

/** Whether tasks of a target count in a window. */
const isIn = (window: QueuedWindow, { kind, target }: WindowKey): boolean =>
  window.scope === 'global' ||
  (window.kind === kind && (window.scope === 'kind' || window.target === target));

const keyOf = ({ scope, kind, target }: WindowKey & { readonly scope: CountingScope }): string =>
  `${scope}\0${kind}\0${target}`;
