import { Injectable } from '@nestjs/common';
import { UnitConflict } from '../database/database-error';
import type { Transaction } from '../database/statements';
import type { CounterInstrument } from '../telemetry/meter';
import { Meter } from '../telemetry/meter';
import {
  applyOutcomes,
  boundState,
  firstState,
  leasesAllowed,
  type PacedOutcome,
  type PacingChange,
  type PacingState,
  packState,
  unpackState,
} from './pacing';
import { CountedStarts, type SpacedStarts } from './starts';
import { keyOf, type WindowKey, type WindowRow } from './window.entity';
import {
  boundsOf,
  everyTargetOf,
  hasBounds,
  inForce,
  leasesLeft,
  nextStartUs,
  type RoomColumns,
  roomNow,
  startsOf,
} from './window-bounds';
import {
  addLeased,
  deleteWindowsById,
  insertInherited,
  insertWindowChanges,
  type LockedWindow,
  lockInherited,
  lockWindows,
  type NamedWindow,
  selectLastLease,
  selectMovingWindows,
  selectTargetWindows,
  selectWideWindows,
  updateBounds,
  updatePacing,
  updateStarts,
} from './windows.queries';

/**
 * The name of the lock that units that grant or end leases share, and that a unit that sets limits holds exclusively.
 */
export const LIMITS_LOCK = 'limits';

/**
 * The name of the lock of a unit that adds inherited windows while the tasks of a kind are moved: it may add some several times, so
 * that two of them could wait for each other's.
 */
const INHERIT_LOCK = 'inherited-windows';

/** How long before its next start the lane of a target opens again, in ms: enough starts for a claim to be worth it. */
const OPEN_BEFORE_MS = 500;
/** From when on a unit counts as late, in ms. */
const LATE_MS = 100;
/** How long an inherited window is kept without leases, in ms: it remembers the pace of its target. */
export const IDLE_MS = 86_400_000;

/** A window after a change, with how its target's lane stands. */
export type ChangedWindow = Pick<WindowRow, 'id' | 'scope' | 'kind' | 'target'> & {
  /** How many more leases may be granted now. */
  readonly room: number;
  /** If there is no room only because the next start is too far ahead: when the lane opens, in ms since the epoch. */
  readonly opensAt: number | null;
};

/** Returns how a window stands that there is no longer. */
export const unlimited = ({ scope, kind, target }: NamedWindow): ChangedWindow => ({
  ...{ id: 0, scope, kind, target },
  room: Number.MAX_SAFE_INTEGER,
  opensAt: null,
});

/** A lease that ends, with what was found out of its target. */
export interface EndedLeaseKey extends WindowKey {
  /** Left out if nothing was reported. Called only for adaptive windows. */
  readonly outcome?: (() => PacedOutcome) | undefined;
}

/**
 * Returns how many more leases of a kind the windows of everything and of kinds have room for.
 * @param now in ms since the epoch
 */
export const roomIn = (wide: readonly WindowRow[], kind: string, now: number): number =>
  Math.min(
    ...wide
      .filter((window) => window.scope === 'global' || (window.scope === 'kind' && window.kind === kind))
      .map((window) => roomNow(window, now)),
    Number.POSITIVE_INFINITY,
  );

/** A locked window while its unit takes slots or releases them. */
interface Held {
  row: LockedWindow;
  taken: number;
  readonly starts: SpacedStarts | CountedStarts | undefined;
}

/**
 * The limits in one unit of work: no other unit can set one until this ends. Only windows with a limit or a rate are read, and
 * only those of this unit's leases are locked, at its end.
 */
export class UnitWindows {
  private readonly begunAt = performance.now();
  private readonly targets = new Map<string, WindowRow | undefined>();
  private moving: ReadonlySet<string> | undefined;

  constructor(
    private readonly tx: Transaction,
    /** Windows of everything, of kinds, and of every target of a kind. */
    readonly wide: readonly WindowRow[],
    /** Whether any target has a limit. */
    readonly hasTargets: boolean,
    private readonly changes: CounterInstrument<'reason'>,
  ) {}

  /** Returns the room of a kind's window and that of everything, as read when the unit began. */
  roomOf(kind: string): number {
    return roomIn(this.wide, kind, this.tx.now);
  }

  /**
   * Finds those targets that have a limit or a rate. One that inherits it gets a window of its own.
   */
  async limitedAmong<Key extends WindowKey>(keys: readonly Key[]): Promise<Key[]> {
    if (!this.hasTargets || keys.length === 0) return [];
    await this.load(keys);
    await this.inherit(keys);
    return keys.filter((key) => {
      const window = this.targets.get(keyOf(key));
      return window !== undefined && hasBounds(window);
    });
  }

  /** Returns the room of a target's window, with the changes of this unit; without a limit there is no end to it. */
  async roomAt(key: WindowKey): Promise<number> {
    if (!this.hasTargets) return Number.POSITIVE_INFINITY;
    await this.load([key]);
    const window = this.targets.get(keyOf(key));
    return window ? roomNow(window, this.tx.now) : Number.POSITIVE_INFINITY;
  }

  /** Returns how a target's window stands, with the changes of this unit; undefined if it has none. */
  async stateAt(key: WindowKey): Promise<ChangedWindow | undefined> {
    if (!this.hasTargets) return undefined;
    await this.load([key]);
    const window = this.targets.get(keyOf(key));
    return window && stateOf(window, this.tx.now);
  }

  /** Finds those targets, of which this unit has read the windows, that may have no lease at all. */
  stoppedAmong(keys: readonly WindowKey[]): ChangedWindow[] {
    return keys.flatMap((key) => {
      const window = this.targets.get(keyOf(key));
      return window?.slots === 0 ? [stateOf(window, this.tx.now)] : [];
    });
  }

  /** Whether every target of a kind inherits bounds. */
  hasInherited(kind: string): boolean {
    return everyTargetOf(this.wide, kind) !== undefined;
  }

  /** Returns the room of a window that was read in this unit. */
  roomOfRow(row: RoomColumns): number {
    return roomNow(inForce(row, this.wide), this.tx.now);
  }

  /**
   * Whether the queued tasks of a target are still being moved into its lane, so that some may be in its kind's lane.
   */
  async isMoving(key: WindowKey): Promise<boolean> {
    if (!this.hasTargets) return false;
    this.moving ??= new Set((await selectMovingWindows(this.tx)).filter(hasBounds).map(keyOf));
    return this.moving.has(keyOf(key)) || this.moving.has(keyOf({ kind: key.kind, target: '' }));
  }

  /**
   * Takes a slot and a start in every window of each lease, or in none: first come, first served.
   * @returns for each lease that it got a slot and when it may start, in ms since the epoch, null if at once; undefined
   *   for the others; and the windows that have no room now
   */
  async take(
    leases: readonly WindowKey[],
  ): Promise<{ starts: ({ readonly at: number | null } | undefined)[]; full: ChangedWindow[] }> {
    await this.limitedAmong(leases);
    const held = await this.lockFor(leases);
    if (held.length === 0) return { starts: leases.map(() => ({ at: null })), full: [] };
    const nowUs = this.nowForStarts * 1_000;
    const windowsOf = windowsOfLeases(held);
    const starts = leases.map((lease) => {
      const own = windowsOf(lease);
      if (own.some(({ row, taken }) => leasesLeft(row) - taken <= 0)) return undefined;
      const paced = own.flatMap((window) => window.starts ?? []);
      const atUs = earliestOf(paced, nowUs);
      if (atUs === Number.POSITIVE_INFINITY) return undefined;
      for (const window of own) window.taken++;
      for (const window of paced) window.take(atUs);
      return { at: paced.length === 0 ? null : Math.ceil(atUs / 1_000) };
    });
    for (const window of held) this.settle(window);
    const isPaced = ({ row }: Held) => row.rate !== null || row.inherited === 1;
    await addLeased(this.tx, countsOf(held.filter((window) => !isPaced(window))));
    const expiresAt = this.tx.now + IDLE_MS;
    await updateStarts(
      this.tx,
      held
        .filter((window) => isPaced(window) && window.taken > 0)
        .map(({ row }) => ({ ...row, expires_at: row.inherited ? expiresAt : null })),
    );
    this.remember(held);
    const full = held.map(({ row }) => stateOf(row, this.tx.now)).filter(({ room }) => room <= 0);
    return { starts, full };
  }

  /**
   * Releases the slots of leases that ended, and lets what was reported of targets change their rates.
   * @returns the windows that have changed between room and none, or whose lanes open at another time
   */
  async giveBack(leases: readonly EndedLeaseKey[]): Promise<ChangedWindow[]> {
    const held = await this.lockFor(leases);
    if (held.length === 0) return [];
    const changed: ChangedWindow[] = [];
    const changes: { row: WindowRow; change: PacingChange }[] = [];
    const paced = new Set<Held>();
    let lastLease: Promise<number> | undefined;
    const leasesOf = leasesOfWindows(leases);
    for (const window of held) {
      const { row } = window;
      const own = leasesOf(row);
      const wasFull = leasesLeft(row) <= 0;
      window.taken = -own.length;
      let isPaceChanged = false;
      const outcomes = row.adaptive === 1 ? own.flatMap(({ outcome }) => outcome?.() ?? []) : [];
      if (outcomes.length > 0) {
        lastLease ??= selectLastLease(this.tx);
        paced.add(window);
        const change = this.pace(window, outcomes, await lastLease);
        if (change) changes.push({ row, change });
        isPaceChanged = window.row.rate !== row.rate || window.row.hold_until !== row.hold_until;
      }
      this.settle(window);
      const isFull = leasesLeft(window.row) <= 0;
      if (isPaceChanged || wasFull !== isFull) changed.push(stateOf(window.row, this.tx.now));
    }
    await addLeased(this.tx, countsOf(held.filter((window) => !paced.has(window))));
    await updatePacing(
      this.tx,
      [...paced].map(({ row }) => row),
    );
    this.remember(held);
    this.tx.afterCommit(() => {
      for (const { change } of changes) this.changes.add({ reason: change.reason });
    });
    await insertWindowChanges(
      this.tx,
      changes.map(({ row: { scope, kind, target }, change: { reason, before, after, ...evidence } }) => ({
        ...{ scope, kind, target, changed_at: this.tx.now, reason, rate_before: before, rate_after: after },
        evidence: JSON.stringify(evidence),
      })),
    );
    return changed;
  }

  /**
   * Updates windows that inherit their bounds, by ascending ids; deletes them if the bounds were lifted.
   * @returns the last id; undefined if there are no more
   */
  async updateInherited(
    kind: string,
    aboveId: number,
    limit: number,
  ): Promise<{ changed: ChangedWindow[]; last: number | undefined }> {
    const { now } = this.tx;
    const rows = await lockInherited(this.tx, kind, aboveId, limit);
    const lifted = rows.filter((row) => !hasBounds(inForce(row, this.wide)));
    await deleteWindowsById(
      this.tx,
      lifted.map(({ id }) => id),
    );
    const kept = rows.filter((row) => !lifted.includes(row)).map((row) => this.withState(row));
    await updateBounds(
      this.tx,
      kept.map((row) => ({ ...row, expires_at: now + IDLE_MS })),
    );
    this.know(kept);
    const changed = [...kept.map((row) => stateOf(row, this.tx.now)), ...lifted.map(unlimited)];
    return { changed, last: rows.length < limit ? undefined : rows.at(-1)?.id };
  }

  /** Returns an inherited window as it is stored: with the bounds that count now, and the state of its pacing within them. */
  private withState(row: LockedWindow): LockedWindow {
    const window = inForce(row, this.wide);
    const holdUntil = window.adaptive === 1 ? row.hold_until : null;
    return { ...window, ...nextColumns(row, window, this.tx.now, 0), hold_until: holdUntil };
  }

  /** Applies outcomes to an adaptive window. */
  private pace(
    window: Held,
    outcomes: readonly PacedOutcome[],
    lastLeaseId: number,
  ): PacingChange | undefined {
    const { row } = window;
    const { now } = this.tx;
    const bounds = boundsOf(row);
    const known = row.pacing === null ? undefined : unpackState(row.pacing);
    const before = known ? boundState(known, bounds) : firstState(now, 0, bounds);
    const { state, change } = applyOutcomes(before, outcomes, {
      now,
      lastLeaseId,
      starts: row.starts,
      bounds,
    });
    window.row = { ...row, ...columnsOf(state, row, now), pacing: packState(state) };
    if (isNewEpoch(before, state)) window.row.starts = 0;
    return change;
  }

  /**
   * The instant from which starts are granted, in ms since the epoch: later than that of a unit that has waited for locks, or its
   * agents would start at once what is for the time that has passed.
   */
  private get nowForStarts(): number {
    const passedMs = Math.floor(performance.now() - this.begunAt);
    return passedMs < LATE_MS ? this.tx.now : this.tx.now + passedMs;
  }

  /** Updates a row by what was taken. */
  private settle(window: Held): void {
    const { row, starts, taken } = window;
    window.row = { ...row, leased: row.leased + taken };
    if (taken > 0) window.row.starts += taken;
    if (starts && taken > 0) window.row.last_start_us = starts.last;
    if (starts instanceof CountedStarts && taken > 0) window.row.recent_starts = starts.text;
  }

  /** Remembers rows as they are after this unit. */
  private remember(held: readonly Held[]): void {
    const wide = new Map(this.wide.map((row) => [row.id, row]));
    for (const { row } of held) {
      const own = wide.get(row.id);
      if (own) Object.assign(own, row);
      else this.targets.set(keyOf(row), row);
    }
  }

  private async load(keys: readonly WindowKey[]): Promise<void> {
    const unknown = new Map(
      keys.filter((key) => !this.targets.has(keyOf(key))).map((key) => [keyOf(key), key] as const),
    );
    if (unknown.size === 0) return;
    for (const key of unknown.keys()) this.targets.set(key, undefined);
    this.know(await selectTargetWindows(this.tx, [...unknown.values()]));
  }

  /** Adds windows for those targets that inherit the bounds of every target of their kind. */
  private async inherit(keys: readonly WindowKey[]): Promise<void> {
    const templates = new Map(
      this.wide.filter((row) => row.scope === 'every_target' && hasBounds(row)).map((row) => [row.kind, row]),
    );
    if (templates.size === 0) return;
    const missing = new Map(
      keys
        .filter((key) => templates.has(key.kind) && this.targets.get(keyOf(key)) === undefined)
        .map((key) => [keyOf(key), { kind: key.kind, target: key.target }] as const),
    );
    if (missing.size === 0) return;
    if ([...templates.values()].some((row) => row.moved_through !== null))
      await this.tx.lockName(INHERIT_LOCK, 'exclusive');
    const { now } = this.tx;
    const isAdaptive = [...missing.values()].some(({ kind }) => templates.get(kind)?.adaptive === 1);
    const lastLeaseId = isAdaptive ? await selectLastLease(this.tx) : 0;
    await insertInherited(
      this.tx,
      [...missing.values()].map((key) => {
        const template = templates.get(key.kind) as WindowRow;
        return { ...key, ...firstColumns(template, now, lastLeaseId), expires_at: now + IDLE_MS };
      }),
    );
    this.know(await selectTargetWindows(this.tx, [...missing.values()]));
  }

  private know(rows: readonly WindowRow[]): void {
    for (const row of rows) {
      // Also without bounds: its count must stay right until it is deleted.
      this.targets.set(keyOf(row), inForce(row, this.wide));
    }
  }

  /** Locks the windows of leases, by ascending ids. */
  private async lockFor(leases: readonly WindowKey[]): Promise<Held[]> {
    if (leases.length === 0 || (this.wide.length === 0 && !this.hasTargets)) return [];
    if (this.hasTargets) await this.load(leases);
    const kinds = new Set(leases.map(({ kind }) => kind));
    const ids = new Set(
      this.wide
        .filter(({ scope, kind }) => scope === 'global' || (scope === 'kind' && kinds.has(kind)))
        .map(({ id }) => id),
    );
    for (const lease of leases) {
      const window = this.targets.get(keyOf(lease));
      if (window) ids.add(window.id);
    }
    if (ids.size === 0) return [];
    const rows = await lockWindows(this.tx, [...ids]);
    // One that was idle was deleted meanwhile: the unit runs again.
    if (rows.length < ids.size) throw new UnitConflict('a window was deleted');
    const now = this.nowForStarts;
    return rows.map((locked) => {
      const row = inForce(locked, this.wide);
      return { row, taken: 0, starts: row.rate === null ? undefined : startsOf(row, row.rate, now) };
    });
  }
}

/**
 * Returns how a window stands.
 * @param now in ms since the epoch
 */
export function stateOf(row: WindowRow, now: number): ChangedWindow {
  const { id, scope, kind, target } = row;
  const room = roomNow(row, now);
  const isPaced = room <= 0 && leasesLeft(row) > 0;
  const opensAt =
    isPaced && row.rate !== null
      ? Math.floor(nextStartUs(row, row.rate, now) / 1_000) - OPEN_BEFORE_MS
      : null;
  return { id, scope, kind, target, room, opensAt };
}

/** The columns of a window that a state of the pacing rule sets. */
function columnsOf(
  state: PacingState,
  row: Pick<WindowRow, 'max_slots' | 'max_rate'>,
  now: number,
): Pick<WindowRow, 'rate' | 'slots' | 'hold_until'> {
  const { rate, holdUntil } = state;
  return {
    rate,
    slots: leasesAllowed(state, boundsOf(row)),
    hold_until: holdUntil > now ? holdUntil : null,
  };
}

/** The first columns of a window with the given bounds. */
export function firstColumns(
  { max_slots, max_rate, adaptive }: Pick<WindowRow, 'max_slots' | 'max_rate' | 'adaptive'>,
  now: number,
  lastLeaseId: number,
): Pick<LockedWindow, 'max_slots' | 'max_rate' | 'adaptive' | 'slots' | 'rate' | 'pacing'> {
  const bounds = { max_slots, max_rate, adaptive };
  if (adaptive === 0) return { ...bounds, slots: max_slots, rate: max_rate, pacing: null };
  const state = firstState(now, lastLeaseId, boundsOf(bounds));
  const { rate, slots } = columnsOf(state, bounds, now);
  return { ...bounds, rate, slots, pacing: packState(state) };
}

/** The columns of a window whose bounds change: an adaptive one keeps what it knows of its target. */
export function nextColumns(
  row: LockedWindow | undefined,
  bounds: Pick<WindowRow, 'max_slots' | 'max_rate' | 'adaptive'>,
  now: number,
  lastLeaseId: number,
): ReturnType<typeof firstColumns> {
  const { max_slots, max_rate, adaptive } = bounds;
  const known = adaptive === 1 && row?.pacing ? unpackState(row.pacing) : undefined;
  if (!known) return firstColumns({ max_slots, max_rate, adaptive }, now, lastLeaseId);
  const state = boundState(known, boundsOf(bounds));
  const { rate, slots } = columnsOf(state, bounds, now);
  return { max_slots, max_rate, adaptive, rate, slots, pacing: packState(state) };
}

const isNewEpoch = (before: PacingState, after: PacingState): boolean =>
  before.epochLeaseId !== after.epochLeaseId;

/** Returns the earliest instant at which all windows allow a start; infinite if there is none in time. */
function earliestOf(windows: readonly Pick<SpacedStarts, 'earliest'>[], nowUs: number): number {
  let at = nowUs;
  for (;;) {
    const before = at;
    for (const window of windows) at = window.earliest(at);
    if (at === before || at === Number.POSITIVE_INFINITY) return at;
  }
}

const countsOf = (held: readonly Held[]): Map<number, number> =>
  new Map(held.map(({ row, taken }) => [row.id, taken]));

/** Finds the windows of a lease. */
function windowsOfLeases(held: readonly Held[]): (lease: WindowKey) => Held[] {
  const ofAll = held.filter(({ row }) => row.scope === 'global');
  const byKind = Map.groupBy(held, ({ row }) => (row.scope === 'kind' ? row.kind : ''));
  const byTarget = new Map(
    held.flatMap((one) => (one.row.scope === 'target' ? [[keyOf(one.row), one]] : [])),
  );
  return (lease) => {
    const own = byTarget.get(keyOf(lease));
    return [...ofAll, ...(byKind.get(lease.kind) ?? []), ...(own ? [own] : [])];
  };
}

/** Finds the leases of a window. */
function leasesOfWindows<Lease extends WindowKey>(
  leases: readonly Lease[],
): (window: WindowRow) => readonly Lease[] {
  const byKind = Map.groupBy(leases, ({ kind }) => kind);
  const byTarget = Map.groupBy(leases, keyOf);
  return (window) => {
    if (window.scope === 'global') return leases;
    return (window.scope === 'kind' ? byKind.get(window.kind) : byTarget.get(keyOf(window))) ?? [];
  };
}

/** Provides the limits to each unit of work that grants or ends leases or queues tasks. */
@Injectable()
export class Windows {
  private readonly units = new WeakMap<Transaction, Promise<UnitWindows>>();
  private readonly changes: CounterInstrument<'reason'>;

  constructor(meter: Meter) {
    this.changes = meter.counter({
      name: 'window_rate_changes_total',
      help: 'Changes of the rates of adaptive targets.',
      labels: ['reason'],
    });
  }

  /** Locks and returns the limits until the unit ends. Call it before all other locks. */
  of(tx: Transaction): Promise<UnitWindows> {
    const known = this.units.get(tx);
    if (known) return known;
    const begun = this.begin(tx);
    this.units.set(tx, begun);
    return begun;
  }

  private async begin(tx: Transaction): Promise<UnitWindows> {
    // One after the other at the server, and sent together where the connection can: what is read must be of after the lock.
    const [, { wide, hasTargets }] = await Promise.all([
      tx.lockName(LIMITS_LOCK, 'shared'),
      selectWideWindows(tx),
    ]);
    return new UnitWindows(tx, wide, hasTargets, this.changes);
  }
}
