import type { LimitedWindow, Place } from '../concurrency/concurrency.service';
import type { WindowScope } from '../concurrency/window.entity';
import type { TaskEntity } from './task.entity';

/** A number that is a lower bound if it is not exact: counting stops at a limit. */
export interface Count {
  readonly count: number;
  readonly isExact: boolean;
}

/** The task in question. */
export type AskedTask = Pick<TaskEntity, 'kind' | 'target' | 'state'>;

/** How many tasks of a place. */
export interface PlaceCount extends Place {
  readonly count: number;
}

/** How many tasks of a place come due, and how many of them are handed out before a task. */
export interface DueCount extends PlaceCount {
  readonly before: number;
}

/** How many tasks come before one. */
export interface Ahead {
  /** For a lease of its kind, besides those that are queued. */
  readonly leases: Count;
  /** For a place in each of its windows, by scope. */
  readonly places: Readonly<Record<WindowScope, Count>>;
}

/** What is read to count the tasks that come before one. */
export interface Around {
  readonly task: AskedTask;
  /** How many of its target wait and are before it. */
  readonly own: Count;
  /** How many of other targets wait and are before it. */
  readonly waiting: { readonly places: readonly PlaceCount[]; readonly isExact: boolean };
  /** Those that come due until it has waited. */
  readonly due: readonly DueCount[];
  /** Those that are queued and end until then, as their time is up: they leave their places to others. */
  readonly leaving: readonly PlaceCount[];
  /** Whether these are all that come due, and all that leave. */
  readonly isCounted: boolean;
  /** The windows with a limit, of any of them. */
  readonly rooms: readonly LimitedWindow[];
  /** Those with a limit that it counts in itself. */
  readonly windows: readonly LimitedWindow[];
}

/**
 * Counts the tasks that come before one, once its windows have room: of others as many as their own windows let in. Places go to
 * the best first, so the count is exact, unless the task waits: tasks behind it that come due meanwhile can take the room that
 * there is.
 */
export function countAhead(around: Around): Ahead {
  const { task, own, waiting, due, leaving, windows, isCounted } = around;
  const { kind, target } = task;
  const left = countByWindow(leaving);
  const rooms = new Map(
    around.rooms.map((window) => [keyOf(window), roomOf(window) + (left.get(keyOf(window)) ?? 0)]),
  );
  const isOwn = (place: Place) => place.kind === kind && place.target === target;
  const before = new Map<string, PlaceCount>();
  const dueBefore = due.map((place) => ({ ...place, count: place.before }));
  for (const { kind, target, count } of [...waiting.places, ...dueBefore]) {
    if (isOwn({ kind, target })) continue;
    const key = keyOf({ scope: 'target', kind, target });
    before.set(key, { kind, target, count: (before.get(key)?.count ?? 0) + count });
  }
  const byKind = new Map<string, number>();
  for (const [key, { kind: of, count }] of before)
    byKind.set(of, (byKind.get(of) ?? 0) + Math.min(count, rooms.get(key) ?? Infinity));
  const ofTarget = own.count + (due.find(isOwn)?.before ?? 0);
  const ofKind = ofTarget + (byKind.get(kind) ?? 0);
  let inAll = ofKind;
  for (const [other, count] of byKind)
    if (other !== kind)
      inAll += Math.min(count, rooms.get(keyOf({ scope: 'kind', kind: other, target: '' })) ?? Infinity);

  const isExact = own.isExact && waiting.isExact && isCounted;
  const behind = countByWindow(due.map((place) => ({ ...place, count: place.count - place.before })));
  const leaves = holdsPlace(task) ? 1 : 0;
  // The windows are nested: a place that is left in the widest lets in a task that takes one in the narrower too.
  const leftInAny = leaves + Math.max(0, ...windows.map((window) => left.get(keyOf(window)) ?? 0));
  /** How many tasks behind it are there first: those that come due, and those that wait for the places that are left. */
  const inRoom = (scope: WindowScope): number => {
    const window = windows.find((one) => one.scope === scope);
    if (!window) return 0;
    const key = keyOf(window);
    return Math.min(
      (behind.get(key) ?? 0) + Math.min(window.waiting, leftInAny),
      roomOf(window) + leaves + (left.get(key) ?? 0),
    );
  };
  const place = (scope: WindowScope, count: number, isExact: boolean): Count => ({
    count: count + inRoom(scope),
    isExact,
  });
  return {
    leases: { count: ofKind, isExact },
    places: {
      target: place('target', ofTarget, own.isExact && isCounted),
      kind: place('kind', ofKind, isExact),
      global: place('global', inAll, isExact),
    },
  };
}

/** Whether a task takes a place in its windows as it is. */
export const holdsPlace = ({ state }: AskedTask): boolean => state === 'leased' || state === 'queued';

/** The sum of counts. */
export const sumOf = (counts: readonly { readonly count: number }[]): number =>
  counts.reduce((sum, { count }) => sum + count, 0);

/** How many of the tasks count in each window, by its key. */
function countByWindow(places: readonly PlaceCount[]): Map<string, number> {
  const counts = new Map<string, number>();
  for (const { kind, target, count } of places)
    for (const window of [
      { scope: 'target', kind, target } as const,
      { scope: 'kind', kind, target: '' } as const,
      { scope: 'global', kind: '', target: '' } as const,
    ])
      counts.set(keyOf(window), (counts.get(keyOf(window)) ?? 0) + count);
  return counts;
}

const roomOf = ({ limit, queued, leased }: LimitedWindow): number => Math.max(0, limit - queued - leased);

const keyOf = ({ scope, kind, target }: Pick<LimitedWindow, 'scope' | 'kind' | 'target'>): string =>
  `${scope}\0${kind}\0${target}`;
