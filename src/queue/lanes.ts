import { Injectable } from '@nestjs/common';
import type { WindowKey } from '../concurrency/window.entity';
import { Windows } from '../concurrency/windows';
import { selectMovedThrough, setMovedThrough } from '../concurrency/windows.queries';
import type { Transaction } from '../database/statements';
import {
  addToLanes,
  hasOwnLanes,
  insertLanes,
  insertReady,
  type LanePart,
  type Position,
  type ReadyRow,
  removeFromLanes,
  removeReady,
  START,
  selectLanes,
  selectOfTarget,
  selectOpenAmong,
  selectOpenLanes,
  selectReady,
  setLanesOpen,
  type TakableLane,
  takeReady,
} from './lanes.queries';

/** A queued task as its place in a lane needs it. */
export interface LaneTask extends WindowKey {
  readonly id: number;
  readonly priority: number;
  readonly not_after: number | null;
  /** When it could be claimed first, in ms since the epoch; now if that is left out. */
  readonly ready_at?: number;
}

/** How often one claim looks again for what others were taking while it looked. */
const MAX_ROUNDS = 4;
/** By how much it widens its look each time, and how many lanes of targets it looks at in the end. */
const WIDENING = 8;
const MAX_LANES = 512;

/** The rank of a task in its lane: the lower goes first. */
export const rankOf = (priority: number): number => (priority === 0 ? 0 : -priority);

/** Whether a position comes before another in the order of claiming. */
export const isBefore = (a: Position, b: Position): boolean =>
  a.rank < b.rank || (a.rank === b.rank && a.id < b.id);

/** Whether the best task of a lane, by the lane's row, is not one that can be taken; but for lanes that the unit itself took from. */
function hasStaleHead(
  lanes: readonly TakableLane[],
  isOwnDoing: (laneId: number) => boolean,
  found: readonly Pick<ReadyRow, 'lane_id' | 'task_id'>[],
): boolean {
  const takable = new Set(found.map(({ task_id: id }) => id));
  return lanes.some(
    ({ id, head_id: head, room }) =>
      head !== undefined && (room ?? 1) > 0 && !isOwnDoing(id) && !takable.has(head),
  );
}

/** What was read of a lane in memory: where its first task may be, and how often that was set back. */
interface Known {
  position: Position;
  generation: number;
}

/** What one unit of work has done to lanes of targets, settled when it has done all. */
interface Touched {
  readonly added: Map<number, { count: number; best: Position }>;
  readonly removed: Map<number, number>;
  /** How many tasks of lanes of targets it took for claims, of as many as their windows have room for. */
  readonly kept: Map<number, number>;
  readonly rooms: Map<number, number>;
  /** Those of targets whose windows became full, or have room again. */
  readonly switched: Map<string, { readonly key: WindowKey; readonly isOpen: boolean }>;
}

/**
 * Owns lanes and ready: which queued tasks are the same to a claim, and in what order they are claimed. All tasks of a kind
 * share a lane, but for those of a target that has a limit: they have a lane of their own, so that a claim never walks past
 * tasks that it may not take.
 */
@Injectable()
export class Lanes {
  /** The lanes that all tasks of a kind share; such a lane is never deleted. */
  private readonly shared = new Map<string, number>();
  /** The ids of all of them that were ever seen, those of units that are not committed included. */
  private readonly sharedIds = new Set<number>();
  /** By lane. A claim begins its search here: before it there are only deleted rows, which a held snapshot keeps. */
  private readonly known = new Map<number, Known>();
  private readonly touched = new WeakMap<Transaction, Touched>();
  private readonly ownLanes = new WeakMap<Transaction, Promise<boolean>>();

  constructor(private readonly windows: Windows) {}

  /** Where a search in a lane that tasks share begins. */
  positionOf(laneId: number): Position {
    return this.known.get(laneId)?.position ?? START;
  }

  /** The lanes that are searched from somewhere else than the start. */
  get positions(): readonly (readonly [laneId: number, position: Position])[] {
    return [...this.known].map(([laneId, { position }]) => [laneId, position] as const);
  }

  /** Has the next search begin at this position, or before it: a task is there. */
  setBack(laneId: number, position: Position): void {
    // Also if nothing is known of it: a unit that is under way may be about to remember a later position.
    const known = this.known.get(laneId) ?? { position: START, generation: 0 };
    this.known.set(laneId, known);
    known.generation++;
    if (isBefore(position, known.position)) known.position = position;
  }

  /** Has all searches begin at the start: what was told of tasks may have been missed. */
  forgetPositions(): void {
    for (const laneId of this.known.keys()) this.setBack(laneId, START);
  }

  /**
   * Puts tasks into the lanes that they belong to. {@link settle} has to be called before the unit ends.
   * @returns the rows that were added
   */
  async add(tx: Transaction, tasks: readonly LaneTask[]): Promise<ReadyRow[]> {
    if (tasks.length === 0) return [];
    const laneOf = await this.lanesOf(tx, tasks);
    const rows = tasks.map(
      (task): ReadyRow => ({
        lane_id: laneOf(task).id,
        rank: rankOf(task.priority),
        task_id: task.id,
        kind: task.kind,
        ready_at: task.ready_at ?? tx.now,
        not_after: task.not_after,
      }),
    );
    await insertReady(tx, rows);
    for (const [i, task] of tasks.entries()) {
      const row = rows[i] as ReadyRow;
      if (laneOf(task).isOwn) this.noteAdded(tx, row);
      // Before the commit too: the next unit of the same transaction sees these rows already.
      else this.setBack(row.lane_id, { rank: row.rank, id: row.task_id });
    }
    return rows;
  }

  /** Puts taken tasks back to where they were. */
  async putBack(tx: Transaction, rows: readonly ReadyRow[]): Promise<void> {
    await insertReady(tx, rows);
    for (const row of rows) if (!this.isOfKind(row.lane_id)) this.noteAdded(tx, row);
  }

  /** Where each of the tasks may be queued: in the lane of its kind, and in that of its target if there is one. */
  async placesOf(
    tx: Transaction,
    tasks: readonly LaneTask[],
  ): Promise<Pick<ReadyRow, 'lane_id' | 'rank' | 'task_id'>[]> {
    const shared = await this.sharedLanes(tx, new Set(tasks.map(({ kind }) => kind)));
    const own = (await this.hasOwn(tx)) ? await selectLanes(tx, tasks) : [];
    const ownOf = new Map<string, number>(own.map(({ id, kind, target }) => [`${kind}\0${target}`, id]));
    return tasks.flatMap(({ id, kind, target, priority }) =>
      [shared.get(kind), ownOf.get(`${kind}\0${target}`)].flatMap((lane) =>
        lane === undefined ? [] : [{ lane_id: lane, rank: rankOf(priority), task_id: id }],
      ),
    );
  }

  /** Takes note that rows were taken out of `ready`. {@link settle} has to be called before the unit ends. */
  noteRemoved(tx: Transaction, rows: readonly ReadyRow[]): void {
    const { removed } = this.touchedIn(tx);
    for (const { lane_id: lane } of rows)
      if (!this.isOfKind(lane)) removed.set(lane, (removed.get(lane) ?? 0) + 1);
  }

  /**
   * Takes the best tasks of the kinds out of the queue: of each kind the given number at most, and of each limited target at most as many as
   * its window has room for. Which of them get their slots is decided at the end of the unit, see {@link Windows}.
   * {@link settle} has to be called before the unit ends.
   */
  async take(tx: Transaction, wanted: ReadonlyMap<string, number>): Promise<ReadyRow[]> {
    const shared = await this.sharedLanes(tx, new Set(wanted.keys()));
    const isMixed = await this.hasOwn(tx);
    const plain: LanePart[] = [];
    const taken: ReadyRow[] = [];
    for (const [kind, count] of wanted) {
      const laneId = shared.get(kind);
      if (count <= 0 || laneId === undefined) continue;
      const lanes = isMixed ? await this.openLanes(tx, kind, count) : [];
      if (lanes.length === 0) plain.push({ laneId, from: this.positionOf(laneId), limit: count });
      else taken.push(...(await this.takeMixed(tx, { kind, laneId }, lanes, count)));
    }
    const generations = new Map(plain.map(({ laneId }) => [laneId, this.known.get(laneId)?.generation ?? 0]));
    const ofShared = plain.length === 0 ? [] : await takeReady(tx, plain);
    this.rememberPositions(tx, ofShared, generations);
    taken.push(...ofShared);
    this.noteRemoved(tx, taken);
    return taken;
  }

  /** Of tasks that were taken, the best that their targets' windows have room for; and the others. */
  fit<Taken extends { readonly row: ReadyRow }>(
    tx: Transaction,
    tasks: readonly Taken[],
  ): { fitting: Taken[]; excess: Taken[] } {
    const { kept, rooms } = this.touchedIn(tx);
    const left = new Map([...rooms].map(([lane, room]) => [lane, room - (kept.get(lane) ?? 0)]));
    const fitting: Taken[] = [];
    const excess: Taken[] = [];
    for (const task of tasks.toSorted((a, b) => a.row.rank - b.row.rank || a.row.task_id - b.row.task_id)) {
      const { lane_id: lane } = task.row;
      const room = left.get(lane) ?? Number.POSITIVE_INFINITY;
      left.set(lane, room - 1);
      (room > 0 ? fitting : excess).push(task);
    }
    return { fitting, excess };
  }

  /** Has later takes of the unit leave the room that these tasks of lanes of targets need. */
  keep(tx: Transaction, rows: readonly ReadyRow[]): void {
    const { kept } = this.touchedIn(tx);
    for (const { lane_id: lane } of rows) if (!this.isOfKind(lane)) kept.set(lane, (kept.get(lane) ?? 0) + 1);
  }

  /**
   * Moves some of the queued tasks of a limited target into its lane.
   * @param windowId of the target's window
   * @param limit how many of the target's tasks are looked at
   * @returns whether there may be more
   */
  async moveNext(tx: Transaction, windowId: number, limit: number): Promise<boolean> {
    await this.windows.of(tx);
    const window = await selectMovedThrough(tx, windowId);
    if (!window || window.moved_through === null) return false;
    const tasks = await selectOfTarget(tx, window.target, window.moved_through, limit);
    const open = tasks.filter(({ kind, state }) => kind === window.kind && state === 'open');
    const shared = (await this.sharedLanes(tx, new Set([window.kind]))).get(window.kind) as number;
    const rows = await removeReady(
      tx,
      open.map(({ id, priority }) => ({ lane_id: shared, rank: rankOf(priority), task_id: id })),
    );
    const byId = new Map(open.map((task) => [task.id, task]));
    await this.add(
      tx,
      rows.map((row) => ({ ...(byId.get(row.task_id) as LaneTask), ready_at: row.ready_at })),
    );
    const isLast = tasks.length < limit;
    await setMovedThrough(tx, windowId, isLast ? null : (tasks.at(-1)?.id ?? null));
    await this.settle(tx);
    return !isLast;
  }

  /** Has the lanes of targets opened or closed. {@link settle} has to be called before the unit ends. */
  setOpen(tx: Transaction, keys: readonly WindowKey[], isOpen: boolean): void {
    if (keys.length === 0) return;
    const { switched } = this.touchedIn(tx);
    for (const key of keys) switched.set(`${key.kind}\0${key.target}`, { key, isOpen });
  }

  /**
   * Brings lanes of targets in step with what the unit put into `ready` and took out of it, and with their windows. Comes last of
   * all that it locks, and once: lanes are locked after windows, all of them by ascending ids.
   */
  async settle(tx: Transaction): Promise<void> {
    const touched = this.touched.get(tx);
    if (!touched) return;
    this.touched.delete(tx);
    const { added, removed } = touched;
    const switched = [...touched.switched.values()];
    const keysTo = (isOpen: boolean) => switched.filter((one) => one.isOpen === isOpen).map(({ key }) => key);
    const lanes = switched.length === 0 ? [] : await selectLanes(tx, [...keysTo(true), ...keysTo(false)]);
    // Before the statements that look: what other units put into these lanes they must see.
    await tx.lockRows('lanes', [
      ...new Set([...added.keys(), ...removed.keys(), ...lanes.map(({ id }) => id)]),
    ]);
    for (const isOpen of [true, false]) await setLanesOpen(tx, keysTo(isOpen), isOpen);
    await addToLanes(
      tx,
      [...added].map(([id, { count, best }]) => ({ id, count, rank: best.rank, head: best.id })),
    );
    await removeFromLanes(tx, removed);
  }

  /** The lanes that tasks of these kinds share, added if there is none. */
  async sharedLanes(tx: Transaction, kinds: ReadonlySet<string>): Promise<ReadonlyMap<string, number>> {
    const keys = [...kinds].filter((kind) => !this.shared.has(kind)).map((kind) => ({ kind, target: '' }));
    if (keys.length === 0) return this.shared;
    let lanes = await selectLanes(tx, keys);
    if (lanes.length < keys.length) {
      await insertLanes(tx, keys);
      lanes = await selectLanes(tx, keys);
    }
    const found = lanes.map(({ kind, id }) => [kind, id] as const);
    for (const [, id] of found) this.sharedIds.add(id);
    tx.afterCommit(() => {
      for (const [kind, id] of found) this.shared.set(kind, id);
    });
    return new Map([...this.shared, ...found]);
  }

  /** The open lanes of a kind's targets: the best by what is committed, and those that this unit has put tasks into. */
  private async openLanes(tx: Transaction, kind: string, limit: number): Promise<TakableLane[]> {
    const lanes: TakableLane[] = await selectOpenLanes(tx, kind, limit);
    const known = new Set(lanes.map(({ id }) => id));
    // Their best tasks are not in the lanes' rows before the unit settles.
    const own = [...(this.touched.get(tx)?.added.keys() ?? [])].filter((id) => !known.has(id));
    if (own.length > 0) lanes.push(...(await selectOpenAmong(tx, kind, own)));
    const { rooms } = this.touchedIn(tx);
    for (const { id, room } of lanes) if (room !== null) rooms.set(id, room);
    return lanes;
  }

  /**
   * Takes from the lane that tasks share and from open lanes of targets, the best of all. Looks at more lanes if those with the
   * best heads have less than they show: a head's time to begin is over, or another unit is taking it.
   */
  private async takeMixed(
    tx: Transaction,
    shared: { readonly kind: string; readonly laneId: number },
    first: readonly TakableLane[],
    count: number,
  ): Promise<ReadyRow[]> {
    const taken: ReadyRow[] = [];
    // Windows count what the unit took, here and before, when it ends.
    const { kept, removed } = this.touchedIn(tx);
    const takenOf = new Map(kept);
    const from = this.positionOf(shared.laneId);
    let lanes = first;
    let looked = count;
    for (let round = 0; round < MAX_ROUNDS && taken.length < count; round++) {
      const wanted = count - taken.length;
      const parts = [
        { laneId: shared.laneId, from, limit: wanted },
        ...lanes.map(({ id, room }) => ({
          laneId: id,
          from: START,
          limit: Math.min(wanted, (room ?? wanted) - (takenOf.get(id) ?? 0)),
        })),
      ].filter(({ limit }) => limit > 0);
      const found = await selectReady(tx, parts, tx.now);
      const mayBeMore = lanes.length >= looked && looked < MAX_LANES;
      const widen = async () => {
        looked = Math.min(looked * WIDENING, MAX_LANES);
        lanes = await this.openLanes(tx, shared.kind, looked);
      };
      if (
        mayBeMore &&
        round + 1 < MAX_ROUNDS &&
        hasStaleHead(lanes, (lane) => removed.has(lane) || takenOf.has(lane), found)
      ) {
        await widen();
        continue;
      }
      const best = found.sort((a, b) => a.rank - b.rank || a.task_id - b.task_id).slice(0, wanted);
      const counts = new Map<number, number>();
      for (const { lane_id: lane } of best) counts.set(lane, (counts.get(lane) ?? 0) + 1);
      const got = await takeReady(
        tx,
        [...counts].map(([laneId, limit]) => ({
          laneId,
          from: laneId === shared.laneId ? from : START,
          limit,
        })),
      );
      for (const { lane_id: lane } of got) takenOf.set(lane, (takenOf.get(lane) ?? 0) + 1);
      taken.push(...got);
      if (taken.length === count) break;
      if (mayBeMore) await widen();
      // Others hold what is missing.
      else if (got.length === 0) break;
    }
    return taken;
  }

  /** For each task the lane that it belongs to. */
  private async lanesOf(
    tx: Transaction,
    tasks: readonly WindowKey[],
  ): Promise<(task: WindowKey) => { id: number; isOwn: boolean }> {
    const shared = await this.sharedLanes(tx, new Set(tasks.map(({ kind }) => kind)));
    const unit = await this.windows.of(tx);
    const limited = await unit.limitedAmong(tasks);
    const own = new Map<string, number>(
      limited.length === 0
        ? []
        : (await selectLanes(tx, limited)).map(({ kind, target, id }) => [`${kind}\0${target}`, id] as const),
    );
    const isLimited = new Set<string>(limited.map(({ kind, target }) => `${kind}\0${target}`));
    return (task) => {
      const key = `${task.kind}\0${task.target}`;
      const id = isLimited.has(key) ? own.get(key) : shared.get(task.kind);
      if (id === undefined) throw new Error(`${task.kind} at ${task.target} has no lane`);
      return { id, isOwn: isLimited.has(key) };
    };
  }

  /** Whether any target has a lane of its own, as far as the unit has to know. */
  hasOwn(tx: Transaction): Promise<boolean> {
    let known = this.ownLanes.get(tx);
    if (!known) {
      known = hasOwnLanes(tx);
      this.ownLanes.set(tx, known);
    }
    return known;
  }

  /** Whether a lane is one that all tasks of a kind share. */
  isOfKind(laneId: number): boolean {
    return this.sharedIds.has(laneId);
  }

  private touchedIn(tx: Transaction): Touched {
    let touched = this.touched.get(tx);
    if (!touched) {
      touched = {
        ...{ added: new Map(), removed: new Map(), switched: new Map() },
        ...{ kept: new Map(), rooms: new Map() },
      };
      this.touched.set(tx, touched);
    }
    return touched;
  }

  private noteAdded(tx: Transaction, { lane_id: lane, rank, task_id: id }: ReadyRow): void {
    const { added } = this.touchedIn(tx);
    const before = added.get(lane);
    const position = { rank, id };
    added.set(lane, {
      count: (before?.count ?? 0) + 1,
      best: before && isBefore(before.best, position) ? before.best : position,
    });
  }

  /** Once the unit is committed, searches of these lanes begin at what it took first; unless a task came in before that. */
  private rememberPositions(
    tx: Transaction,
    taken: readonly ReadyRow[],
    generations: ReadonlyMap<number, number>,
  ): void {
    const first = new Map<number, Position>();
    for (const { lane_id: lane, rank, task_id: id } of taken) {
      const before = first.get(lane);
      if (!before || isBefore({ rank, id }, before)) first.set(lane, { rank, id });
    }
    tx.afterCommit(() => {
      for (const [lane, position] of first) {
        const known = this.known.get(lane);
        if (!known) this.known.set(lane, { position, generation: 0 });
        else if (known.generation === generations.get(lane) && isBefore(known.position, position))
          known.position = position;
      }
    });
  }
}
