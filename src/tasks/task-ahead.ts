import type { WindowKey, WindowRow, WindowScope } from '../concurrency/window.entity';
import type { NamedWindow } from '../concurrency/windows.queries';
import type { TaskRow } from './tasks.queries';

/** A number that is a lower bound if it is not exact: counting stops at a limit. */
export interface Count {
  readonly count: number;
  readonly isExact: boolean;
}

/** The task in question. */
export type AskedTask = Pick<TaskRow, 'kind' | 'target' | 'state'>;

/** How many tasks of a target, or of all targets of a kind that have no limit: then the target is empty. */
export interface TargetCount extends WindowKey {
  readonly count: number;
}

/** How many tasks of a target come due, and how many of them are claimed before a task. */
export interface DueCount extends TargetCount {
  readonly before: number;
}

/** A window that a task counts in, with how many queued tasks are behind it. */
export type QueuedWindow = WindowRow & { readonly queued: number };

/** What a window of a task holds by the time that the task can be claimed. */
export interface InWindow {
  readonly window: QueuedWindow;
  /** How many tasks are claimed before it in this window, once it has room. */
  readonly before: Count;
  /** How many slots others may have taken by then. */
  readonly held: number;
}

/** How many tasks come before one. */
export interface Ahead {
  /** Those of its kind that can be claimed before it. */
  readonly leases: Count;
  /** Those in each of its windows. */
  readonly windows: readonly InWindow[];
}

/** What is read to count the tasks that come before one. */
export interface Around {
  readonly task: AskedTask;
  /** The windows that it counts in. */
  readonly windows: readonly QueuedWindow[];
  /** How many tasks in the lane of its target are before it; zero if the target has no limit: they are among the others then. */
  readonly own: Count;
  /** How many queued tasks of others are before it. */
  readonly others: { readonly counts: readonly TargetCount[]; readonly isExact: boolean };
  /** Whether it waits: others can be claimed meanwhile, also those behind it. */
  readonly waits: boolean;
  /** Those that come due until it has waited, and whether these are all. */
  readonly due: { readonly counts: readonly DueCount[]; readonly isExact: boolean };
  /** The windows of all of them. */
  readonly rooms: readonly WindowRow[];
}

/**
 * Counts the tasks that are claimed before one, once its windows have room: of each other target with a limit at most the room of
 * its window, of each other kind at most the room of the kind's.
 */
export function countAhead(around: Around): Ahead {
  const { task, windows, own, others, due } = around;
  const rooms = new Map(around.rooms.map((window) => [keyOf(window), roomOf(window)]));
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
  const before: Record<WindowScope, Count> = {
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

/** How many slots of a window others may have by the time that the task can be claimed: also those behind it, if it waits. */
function heldIn(window: QueuedWindow, before: number, { task, waits, due }: Around): number {
  // The slot that it has itself is free by then.
  const leased = window.leased - (task.state === 'leased' ? 1 : 0);
  if (!waits) return leased;
  const comeDue = sumOf(due.counts.filter((one) => isIn(window, one)));
  const isQueued = task.state === 'queued' ? 1 : 0;
  // Of a target whose tasks are still being moved into its lane, only some are counted.
  const behind = window.moved_through === null ? window.queued + comeDue - before - isQueued : Infinity;
  return leased + Math.min(Math.max(0, behind), roomOf({ slots: window.slots, leased }));
}

/** The sum of counts. */
export const sumOf = (counts: readonly { readonly count: number }[]): number =>
  counts.reduce((sum, { count }) => sum + count, 0);

/** Whether tasks of a target count in a window. */
const isIn = (window: NamedWindow, { kind, target }: WindowKey): boolean =>
  window.scope === 'global' ||
  (window.kind === kind && (window.scope === 'kind' || window.target === target));

const roomOf = ({ slots, leased }: Pick<WindowRow, 'slots' | 'leased'>): number =>
  Math.max(0, slots - leased);

const keyOf = ({ scope, kind, target }: NamedWindow): string => `${scope}\0${kind}\0${target}`;
