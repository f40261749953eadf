import { Injectable } from '@nestjs/common';
import { keyOf, type WindowKey } from '../concurrency/window.entity';
import { type ChangedWindow, type UnitWindows, Windows } from '../concurrency/windows';
import { selectMovedThrough, setMovedThrough } from '../concurrency/windows.queries';
import { UnitConflict } from '../database/database-error';
import type { Statements, Transaction } from '../database/statements';
import {
  addToLanes,
  END,
  findBefore,
  hasOwnLanes,
  insertLanes,
  insertReady,
  isAnyReady,
  type LanePart,
  type LaneState,
  type Place,
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
  setLaneStates,
  type TakableLane,
  takeFound,
  takeReady,
} from './lanes.queries';

/** The columns of a queued task that its lane needs. */
export interface LaneTask extends WindowKey {
  readonly id: number;
  readonly priority: number;
  readonly not_after: number | null;
  /** When it became ready, in ms since the epoch; now if it is left out. */
  readonly ready_at?: number;
}

/** How often one claim looks again for what others were taking while it looked. */
const MAX_ROUNDS = 4;
/** By how much it widens its look each time, and how many lanes of targets it looks at in the end. */
const WIDENING = 8;
const MAX_LANES = 512;
/** How many tasks of each lane it reads at first, at least. */
const MIN_DEPTH = 2;

/** Computes the rank of a task in its lane: the lower goes first. */
export const rankOf = (priority: number): number => (priority === 0 ? 0 : -priority);

/** Whether a position comes before another in claim order. */
export const isBefore = (a: Position, b: Position): boolean =>
  a.rank < b.rank || (a.rank === b.rank && a.id < b.id);

/**
 * Where the search in a lane of a target begins: before its head there are only deleted rows, and what this unit has added.
 * @param added the best of that
 */
function startOf(
  { head_rank: rank, head_id: id }: Pick<TakableLane, 'head_rank' | 'head_id'>,
  added: Position | undefined,
): Position {
  if (rank === undefined || id === undefined) return START;
  return added && isBefore(added, { rank, id }) ? added : { rank, id };
}

/** An open lane with the room of its window; null if there is no limit. */
type RoomyLane = TakableLane & { readonly room: number | null };

const inClaimOrder = (a: Place, b: Place): number => a.rank - b.rank || a.task_id - b.task_id;

/** Whether the best task of a lane, by the lane's row, is not one that can be taken; but for lanes that the unit itself took from. */
function hasStaleHead(
  lanes: readonly RoomyLane[],
  isOwnDoing: (laneId: number) => boolean,
  heads: readonly Place[],
): boolean {
  const takable = new Set(heads.map(({ task_id: id }) => id));
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

/** The changes of one unit of work to lanes of targets, applied at its end. */
interface Touched {
  readonly added: Map<number, { count: number; best: Position }>;
  readonly removed: Map<number, number>;
  /** How many tasks of lanes of targets it took for claims, of as many as their windows have room for. */
  readonly kept: Map<number, number>;
  readonly rooms: Map<number, number>;
  /** Those of targets whose windows became full, or have room again. */
  readonly switched: Map<string, LaneState & WindowKey>;
}

/**
 * Owns lanes and ready: the queued tasks in claim order. All tasks of a kind share a lane, except those of a target
 * that has a limit: each such target has its own lane, so that a claim never scans tasks that a limit holds back.
 */
@Injectable()
export class Lanes {
  /** The shared lane of each kind, which is never deleted. */
  private readonly shared = new Map<string, number>();
  private readonly sharedIds = new Set<number>();
  /**
   * The shared lanes that a unit has found or added, by kind: until it is committed they may be rolled back, and SQLite gives
   * their ids to other lanes then.
   */
  private readonly foundIn = new WeakMap<Transaction, Map<string, number>>();
  /**
   * The position at which a claim begins its search, by lane: before it there are only deleted rows, which an open
   * snapshot keeps.
   */
  private readonly known = new Map<number, Known>();
  private readonly touched = new WeakMap<Transaction, Touched>();
  private readonly ownLanes = new WeakMap<Transaction, Promise<boolean>>();

  constructor(private readonly windows: Windows) {}

  /** Returns the position at which a search in a shared lane begins. */
  positionOf(laneId: number): Position {
    return this.known.get(laneId)?.position ?? START;
  }

  /** The lanes that are not searched from the start. */
  get positions(): readonly (readonly [laneId: number, position: Position])[] {
    return [...this.known].map(([laneId, { position }]) => [laneId, position] as const);
  }

  /** Sets the search position back to this one, because a task was added there. */
  setBack(laneId: number, position: Position): void {
    // Also if there is no position: a running unit may be about to set a later one.
    const known = this.known.get(laneId) ?? { position: START, generation: 0 };
    this.known.set(laneId, known);
    known.generation++;
    if (isBefore(position, known.position)) known.position = position;
  }

  /** Resets all searches to the start, because announcements of tasks may be lost. */
  forgetPositions(): void {
    for (const laneId of this.known.keys()) this.setBack(laneId, START);
  }

  /**
   * Adds tasks to their lanes. Call {@link settle} before the unit ends.
   * @returns the added rows
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

  /** Puts taken tasks back into their lanes. */
  async putBack(tx: Transaction, rows: readonly ReadyRow[]): Promise<void> {
    await insertReady(tx, rows);
    for (const row of rows) if (!this.isOfKind(tx, row.lane_id)) this.noteAdded(tx, row);
  }

  /** Lists the lanes that each task may be in: its kind's, and its target's if there is one. */
  async placesOf(tx: Transaction, tasks: readonly LaneTask[]): Promise<Place[]> {
    const shared = await this.sharedLanes(tx, new Set(tasks.map(({ kind }) => kind)));
    const own = (await this.hasOwn(tx)) ? await selectLanes(tx, tasks) : [];
    const ownOf = new Map<string, number>(own.map((lane) => [keyOf(lane), lane.id]));
    return tasks.flatMap(({ id, kind, target, priority }) =>
      [shared.get(kind), ownOf.get(keyOf({ kind, target }))].flatMap((lane) =>
        lane === undefined ? [] : [{ lane_id: lane, rank: rankOf(priority), task_id: id }],
      ),
    );
  }

  /** Records that rows were deleted from `ready`. Call {@link settle} before the unit ends. */
  noteRemoved(tx: Transaction, rows: readonly ReadyRow[]): void {
    const { removed } = this.touchedIn(tx);
    for (const { lane_id: lane } of rows)
      if (!this.isOfKind(tx, lane)) removed.set(lane, (removed.get(lane) ?? 0) + 1);
  }

  /**
   * Takes the best tasks of the kinds from the queue: of each kind at most the given number, and of each target with a
   * limit at most as many as its window has room for. {@link Windows} decides at the end of the unit which of them get
   * slots. Call {@link settle} before the unit ends.
   */
  async take(tx: Transaction, wanted: ReadonlyMap<string, number>): Promise<ReadyRow[]> {
    const shared = await this.sharedLanes(tx, new Set(wanted.keys()));
    const isMixed = await this.hasOwn(tx);
    const plain: LanePart[] = [];
    const generations = new Map<number, number>();
    const taken: ReadyRow[] = [];
    for (const [kind, count] of wanted) {
      const laneId = shared.get(kind);
      if (count <= 0 || laneId === undefined) continue;
      const lanes = isMixed ? await this.openLanes(tx, kind, count) : [];
      if (lanes.length === 0) {
        // Read together: a position that is set back from now on must not be moved forward by what is found from here.
        plain.push({ laneId, from: this.positionOf(laneId), limit: count });
        generations.set(laneId, this.known.get(laneId)?.generation ?? 0);
      } else taken.push(...(await this.takeMixed(tx, { kind, laneId }, lanes, count)));
    }
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
    for (const task of tasks.toSorted((a, b) => inClaimOrder(a.row, b.row))) {
      const { lane_id: lane } = task.row;
      const room = left.get(lane) ?? Number.POSITIVE_INFINITY;
      left.set(lane, room - 1);
      (room > 0 ? fitting : excess).push(task);
    }
    return { fitting, excess };
  }

  /**
   * Whether there is a task of a kind that a claim can be granted, as far as limits of targets go.
   * @param now in ms since the epoch
   */
  async hasReady(statements: Statements, kind: string, now: number): Promise<boolean> {
    const laneId = this.shared.get(kind) ?? (await selectLanes(statements, [{ kind, target: '' }]))[0]?.id;
    return laneId !== undefined && isAnyReady(statements, kind, laneId, this.positionOf(laneId), now);
  }

  /** Has later takes of the unit leave the room that these tasks of lanes of targets need. */
  keep(tx: Transaction, rows: readonly ReadyRow[]): void {
    const { kept } = this.touchedIn(tx);
    for (const { lane_id: lane } of rows)
      if (!this.isOfKind(tx, lane)) kept.set(lane, (kept.get(lane) ?? 0) + 1);
  }

  /**
   * Moves some of the queued tasks of a target with a limit into its lane.
   * @param windowId of the target's window
   * @param limit the most tasks of the target that are read
   * @returns the moved tasks, and whether there may be more
   */
  async moveNext(
    tx: Transaction,
    windowId: number,
    limit: number,
  ): Promise<{ moved: LaneTask[]; isLast: boolean }> {
    await this.windows.of(tx);
    const window = await selectMovedThrough(tx, windowId);
    if (!window || window.moved_through === null) return { moved: [], isLast: true };
    const tasks = await selectOfTarget(tx, window.target, window.moved_through, limit);
    const open = tasks.filter(({ kind, state }) => kind === window.kind && state === 'open');
    const shared = (await this.sharedLanes(tx, new Set([window.kind]))).get(window.kind) as number;
    const rows = await removeReady(
      tx,
      open.map(({ id, priority }) => ({ lane_id: shared, rank: rankOf(priority), task_id: id })),
    );
    const byId = new Map(open.map((task) => [task.id, task]));
    const moved = rows.map((row) => ({ ...(byId.get(row.task_id) as LaneTask), ready_at: row.ready_at }));
    await this.add(tx, moved);
    const isLast = tasks.length < limit;
    await setMovedThrough(tx, windowId, isLast ? null : (tasks.at(-1)?.id ?? null));
    await this.settle(tx);
    return { moved, isLast };
  }

  /**
   * Takes tasks out of the lane that a kind's tasks share.
   * @returns them, and whether the lane is empty
   */
  async takeShared(
    tx: Transaction,
    kind: string,
    limit: number,
  ): Promise<{ rows: ReadyRow[]; isEmpty: boolean }> {
    await this.windows.of(tx);
    const laneId = (await this.sharedLanes(tx, new Set([kind]))).get(kind) as number;
    const rows = await takeReady(tx, [{ laneId, from: START, limit }]);
    // Others may hold some.
    return { rows, isEmpty: rows.length < limit && !(await findBefore(tx, laneId, END)) };
  }

  /** Opens or closes lanes of targets by their windows. Call {@link settle} before the unit ends. */
  setStates(tx: Transaction, windows: readonly ChangedWindow[]): void {
    const targets = windows.filter(({ scope }) => scope === 'target');
    if (targets.length === 0) return;
    const { switched } = this.touchedIn(tx);
    for (const { kind, target, room, opensAt } of targets)
      switched.set(keyOf({ kind, target }), { kind, target, isOpen: room > 0, opensAt });
  }

  /**
   * Updates lanes of targets by the rows that the unit added to and deleted from `ready`, and by their windows. Call it
   * once, after all other locks: lanes are locked after windows, all of them by ascending ids.
   */
  async settle(tx: Transaction): Promise<void> {
    const touched = this.touched.get(tx);
    if (!touched) return;
    this.touched.delete(tx);
    const { added, removed } = touched;
    const { switched } = touched;
    const lanes = switched.size === 0 ? [] : await selectLanes(tx, [...switched.values()]);
    // Lock before the statements that read, so that they see the rows of other units.
    await tx.lockRows('lanes', [
      ...new Set([...added.keys(), ...removed.keys(), ...lanes.map(({ id }) => id)]),
    ]);
    await setLaneStates(
      tx,
      lanes.map((lane) => ({ ...(switched.get(keyOf(lane)) as LaneState), id: lane.id })),
    );
    const counted = await addToLanes(
      tx,
      [...added].map(([id, { count, best }]) => ({ id, count, rank: best.rank, head: best.id })),
    );
    // One of a target whose window was idle was deleted meanwhile, after that: nobody would find its tasks. The unit runs again.
    if (counted < added.size) throw new UnitConflict('a lane was deleted');
    await removeFromLanes(tx, removed);
  }

  /** Finds or adds the shared lanes of these kinds. */
  async sharedLanes(tx: Transaction, kinds: ReadonlySet<string>): Promise<ReadonlyMap<string, number>> {
    const keys = [...kinds].filter((kind) => !this.shared.has(kind)).map((kind) => ({ kind, target: '' }));
    if (keys.length === 0) return this.shared;
    const foundHere = this.foundIn.get(tx) ?? new Map<string, number>();
    this.foundIn.set(tx, foundHere);
    let lanes = await selectLanes(tx, keys);
    if (lanes.length < keys.length) {
      await insertLanes(tx, keys);
      lanes = await selectLanes(tx, keys);
    }
    const found = lanes.map(({ kind, id }) => [kind, id] as const);
    for (const [kind, id] of found) foundHere.set(kind, id);
    tx.afterCommit(() => {
      for (const [kind, id] of found) {
        this.shared.set(kind, id);
        this.sharedIds.add(id);
      }
    });
    return new Map([...this.shared, ...found]);
  }

  /**
   * Lists the open lanes of a kind's targets: the best committed ones, and those to which this unit has added tasks.
   */
  private async openLanes(tx: Transaction, kind: string, limit: number): Promise<RoomyLane[]> {
    const found: TakableLane[] = await selectOpenLanes(tx, kind, limit);
    const known = new Set(found.map(({ id }) => id));
    // Their best tasks are not in the lanes' rows before settle().
    const own = [...(this.touched.get(tx)?.added.keys() ?? [])].filter((id) => !known.has(id));
    if (own.length > 0) found.push(...(await selectOpenAmong(tx, kind, own)));
    const unit = await this.windows.of(tx);
    // Lanes without a window may be of targets that have come to inherit a limit.
    await unit.limitedAmong(found.flatMap(({ target, window }) => (window ? [] : [{ kind, target }])));
    const { rooms } = this.touchedIn(tx);
    const lanes: RoomyLane[] = [];
    for (const lane of found) {
      const { window } = lane;
      const room = window ? unit.roomOfRow(window) : await unit.roomAt({ kind, target: lane.target });
      lanes.push({ ...lane, room: room === Number.POSITIVE_INFINITY ? null : room });
      if (room !== Number.POSITIVE_INFINITY) rooms.set(lane.id, room);
    }
    return lanes;
  }

  /** Takes the best tasks of the shared lane and of open lanes of targets. */
  private async takeMixed(
    tx: Transaction,
    shared: { readonly kind: string; readonly laneId: number },
    first: readonly RoomyLane[],
    count: number,
  ): Promise<ReadyRow[]> {
    const taken: ReadyRow[] = [];
    // Windows count what the unit took, here and before, when it ends.
    const { added, kept, removed } = this.touchedIn(tx);
    const takenOf = new Map(kept);
    const from = this.positionOf(shared.laneId);
    let lanes = first;
    let looked = count;
    for (let round = 0; round < MAX_ROUNDS && taken.length < count; round++) {
      const wanted = count - taken.length;
      const parts = [
        { laneId: shared.laneId, from, limit: wanted },
        ...lanes.map(({ id, room, ...lane }) => ({
          laneId: id,
          from: startOf(lane, added.get(id)?.best),
          limit: Math.min(wanted, (room ?? wanted) - (takenOf.get(id) ?? 0)),
        })),
      ].filter(({ limit }) => limit > 0);
      const { best, heads } = await this.findBest(tx, parts, wanted);
      const mayBeMore = lanes.length >= looked && looked < MAX_LANES;
      const widen = async () => {
        looked = Math.min(looked * WIDENING, MAX_LANES);
        lanes = await this.openLanes(tx, shared.kind, looked);
      };
      if (
        mayBeMore &&
        round + 1 < MAX_ROUNDS &&
        hasStaleHead(lanes, (lane) => removed.has(lane) || takenOf.has(lane), heads)
      ) {
        await widen();
        continue;
      }
      const got = best.length === 0 ? [] : await takeFound(tx, best);
      for (const { lane_id: lane } of got) takenOf.set(lane, (takenOf.get(lane) ?? 0) + 1);
      taken.push(...got);
      if (taken.length === count) break;
      if (mayBeMore) await widen();
      // Others hold what is missing.
      else if (got.length === 0) break;
    }
    return taken;
  }

  /**
   * Finds the best tasks of lanes, of each at most its limit. Of each lane it reads a few first, and more only of those
   * whose next tasks may be among the best.
   * @returns those, in claim order, and the first of each lane
   */
  private async findBest(
    tx: Transaction,
    parts: readonly LanePart[],
    wanted: number,
  ): Promise<{ best: Place[]; heads: Place[] }> {
    const found = new Map<number, Place[]>();
    let unread = parts;
    let depth = Math.max(MIN_DEPTH, Math.ceil((2 * wanted) / parts.length));
    for (;;) {
      const read = Map.groupBy(await selectReady(tx, unread, depth, tx.now), (place) => place.lane_id);
      for (const { laneId, limit } of unread) found.set(laneId, (read.get(laneId) ?? []).slice(0, limit));
      const best = [...found.values()].flat().sort(inClaimOrder).slice(0, wanted);
      const last = best.length < wanted ? undefined : best.at(-1);
      unread = unread.filter(({ laneId, limit }) => {
        const places = found.get(laneId) as Place[];
        const end = places.at(-1);
        return places.length === depth && depth < limit && !(end && last && inClaimOrder(end, last) > 0);
      });
      if (unread.length === 0) return { best, heads: [...found.values()].flatMap(([first]) => first ?? []) };
      depth *= WIDENING;
    }
  }

  /** Finds the lane of each task. */
  private async lanesOf(
    tx: Transaction,
    tasks: readonly WindowKey[],
  ): Promise<(task: WindowKey) => { id: number; isOwn: boolean }> {
    const shared = await this.sharedLanes(tx, new Set(tasks.map(({ kind }) => kind)));
    const unit = await this.windows.of(tx);
    const limited = await unit.limitedAmong(tasks);
    const own = await this.ownLanesOf(tx, limited, unit);
    const isLimited = new Set(limited.map(keyOf));
    return (task) => {
      const key = keyOf(task);
      const id = isLimited.has(key) ? own.get(key) : shared.get(task.kind);
      if (id === undefined) throw new Error(`${task.kind} at ${task.target} has no lane`);
      return { id, isOwn: isLimited.has(key) };
    };
  }

  /** Finds or adds the lanes of targets with limits. */
  private async ownLanesOf(
    tx: Transaction,
    keys: readonly WindowKey[],
    unit: UnitWindows,
  ): Promise<Map<string, number>> {
    const targets = [...new Map(keys.map((key) => [keyOf(key), key])).values()];
    if (targets.length === 0) return new Map();
    let lanes = await selectLanes(tx, targets);
    if (lanes.length < targets.length) {
      await insertLanes(tx, targets);
      this.ownLanes.set(tx, Promise.resolve(true));
      lanes = await selectLanes(tx, targets);
      // New lanes are open. That of a target with a limit of 0 is never taken from, which would close it.
      this.setStates(tx, unit.stoppedAmong(targets));
    }
    return new Map(lanes.map((lane) => [keyOf(lane), lane.id]));
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

  /** Whether a lane is a kind's shared lane. Call {@link sharedLanes} for the kind before, in the same unit. */
  isOfKind(tx: Transaction, laneId: number): boolean {
    return this.sharedIds.has(laneId) || [...(this.foundIn.get(tx)?.values() ?? [])].includes(laneId);
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

  /**
   * Once the unit is committed, moves the search positions of these lanes to its first task, unless a task was added
   * before that.
   */
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
