import { Injectable } from '@nestjs/common';
import type { Transaction } from '../database/statements';
import type { WindowKey, WindowRow } from './window.entity';
import {
  addLeased,
  lockWindows,
  selectMovingWindows,
  selectTargetWindows,
  selectWideWindows,
} from './windows.queries';

/**
 * The name of the lock that units that grant or end leases share, and that a unit that sets limits holds exclusively.
 */
export const LIMITS_LOCK = 'limits';

const roomLeft = ({ slots, leased }: WindowRow): number => Math.max(0, slots - leased);

const keyOf = ({ kind, target }: WindowKey): string => `${kind}\0${target}`;

/** A window that has changed between full and not full. */
export type ChangedWindow = Pick<WindowRow, 'id' | 'scope' | 'kind' | 'target'> & { readonly room: number };

/** Returns how many more leases of a kind the windows of everything and of kinds have room for. */
export const roomIn = (wide: readonly WindowRow[], kind: string): number =>
  Math.min(
    ...wide.filter((window) => window.scope === 'global' || window.kind === kind).map(roomLeft),
    Number.POSITIVE_INFINITY,
  );

/**
 * The limits in one unit of work: no other unit can set one until this ends. Only windows with a limit are read, and
 * only those of this unit's leases are locked, at its end.
 */
export class UnitWindows {
  private readonly targets = new Map<string, WindowRow | undefined>();
  private moving: ReadonlySet<string> | undefined;

  constructor(
    private readonly tx: Transaction,
    /** Windows of everything and of kinds. */
    private readonly wide: readonly WindowRow[],
    /** Whether any target has a limit. */
    readonly hasTargets: boolean,
  ) {}

  /** Returns the room of a kind's window and that of everything, as read when the unit began. */
  roomOf(kind: string): number {
    return roomIn(this.wide, kind);
  }

  /** Returns the room of the window of everything. */
  get roomOfAll(): number {
    const all = this.wide.find(({ scope }) => scope === 'global');
    return all ? roomLeft(all) : Number.POSITIVE_INFINITY;
  }

  /** Finds the windows of those targets that have a limit. */
  async limitedAmong<Key extends WindowKey>(keys: readonly Key[]): Promise<Key[]> {
    if (!this.hasTargets || keys.length === 0) return [];
    await this.load(keys);
    return keys.filter((key) => this.targets.get(keyOf(key)) !== undefined);
  }

  /** Returns the room of a target's window, with the changes of this unit; without a limit there is no end to it. */
  async roomAt(key: WindowKey): Promise<number> {
    if (!this.hasTargets) return Number.POSITIVE_INFINITY;
    await this.load([key]);
    const window = this.targets.get(keyOf(key));
    return window ? roomLeft(window) : Number.POSITIVE_INFINITY;
  }

  /**
   * Whether the queued tasks of a target are still being moved into its lane, so that some may be in its kind's lane.
   */
  async isMoving(key: WindowKey): Promise<boolean> {
    if (!this.hasTargets) return false;
    this.moving ??= new Set((await selectMovingWindows(this.tx)).map(keyOf));
    return this.moving.has(keyOf(key));
  }

  /**
   * Takes a slot in every window of each lease, or in none: first come, first served.
   * @returns the leases that got their slots, and the windows that are full now
   */
  async take(leases: readonly WindowKey[]): Promise<{ fits: boolean[]; full: ChangedWindow[] }> {
    const windows = await this.lockFor(leases);
    if (windows.length === 0) return { fits: leases.map(() => true), full: [] };
    const taken = new Map(windows.map(({ id }) => [id, 0]));
    const leftIn = ({ id, slots, leased }: WindowRow) => slots - leased - (taken.get(id) as number);
    const fits = leases.map((lease) => {
      const own = windows.filter((window) => isWindowOf(window, lease));
      if (own.some((window) => leftIn(window) <= 0)) return false;
      for (const { id } of own) taken.set(id, (taken.get(id) as number) + 1);
      return true;
    });
    await addLeased(this.tx, taken);
    this.remember(windows, taken, 1);
    return {
      fits,
      full: windows.filter((window) => leftIn(window) <= 0).map((window) => ({ ...window, room: 0 })),
    };
  }

  /** Releases the slots of leases that ended. @returns the windows that were full and have room now */
  async giveBack(leases: readonly WindowKey[]): Promise<ChangedWindow[]> {
    const windows = await this.lockFor(leases);
    if (windows.length === 0) return [];
    const freed = new Map(
      windows.map((window) => [window.id, leases.filter((lease) => isWindowOf(window, lease)).length]),
    );
    await addLeased(this.tx, new Map([...freed].map(([id, count]) => [id, -count])));
    this.remember(windows, freed, -1);
    return windows
      .map((window) => ({ ...window, room: window.slots - window.leased + (freed.get(window.id) as number) }))
      .filter(({ slots, leased, room }) => leased >= slots && room > 0);
  }

  private async load(keys: readonly WindowKey[]): Promise<void> {
    const unknown = new Map(
      keys.filter((key) => !this.targets.has(keyOf(key))).map((key) => [keyOf(key), key] as const),
    );
    if (unknown.size === 0) return;
    for (const key of unknown.keys()) this.targets.set(key, undefined);
    for (const row of await selectTargetWindows(this.tx, [...unknown.values()]))
      this.targets.set(keyOf(row), row);
  }

  /** Locks the windows of leases, by ascending ids. */
  private async lockFor(leases: readonly WindowKey[]): Promise<WindowRow[]> {
    if (leases.length === 0 || (this.wide.length === 0 && !this.hasTargets)) return [];
    if (this.hasTargets) await this.load(leases);
    const kinds = new Set(leases.map(({ kind }) => kind));
    const ids = new Set(
      this.wide.filter(({ scope, kind }) => scope === 'global' || kinds.has(kind)).map(({ id }) => id),
    );
    for (const lease of leases) {
      const window = this.targets.get(keyOf(lease));
      if (window) ids.add(window.id);
    }
    return ids.size === 0 ? [] : lockWindows(this.tx, [...ids]);
  }

  /** Updates the windows in memory by the changes of this unit. */
  private remember(windows: readonly WindowRow[], counts: ReadonlyMap<number, number>, sign: 1 | -1): void {
    const known = new Map(
      [...this.wide, ...this.targets.values()].flatMap((window) => (window ? [[window.id, window]] : [])),
    );
    for (const { id, leased } of windows) {
      const window = known.get(id);
      if (window) window.leased = leased + sign * (counts.get(id) as number);
    }
  }
}

const isWindowOf = ({ scope, kind, target }: WindowRow, lease: WindowKey): boolean =>
  scope === 'global' || (kind === lease.kind && (scope === 'kind' || target === lease.target));

/** Provides the limits to each unit of work that grants or ends leases or queues tasks. */
@Injectable()
export class Windows {
  private readonly units = new WeakMap<Transaction, Promise<UnitWindows>>();

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
    return new UnitWindows(tx, wide, hasTargets);
  }
}
