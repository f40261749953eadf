import { Injectable } from '@nestjs/common';
import { ConcurrencyService } from '../concurrency/concurrency.service';
import type { PacedOutcome } from '../concurrency/pacing';
import { keyOf } from '../concurrency/window.entity';
import { type ChangedWindow, unlimited, Windows } from '../concurrency/windows';
import { Database } from '../database/database';
import type { Transaction } from '../database/statements';
import { ClaimWaiters } from './claim-waiters';
import { QueueDepth } from './depth';
import { Lanes, type LaneTask } from './lanes';
import {
  countInLanes,
  insertLanes,
  openDueLanes,
  type Position,
  type ReadyRow,
  removeReady,
} from './lanes.queries';
import { QueueMetrics } from './queue-metrics';
import { type FinishedState, isFinished, type TaskReason, type TaskState } from './task.entity';
import { TaskLog } from './task-log';
import {
  deleteTasks,
  type FinishedRow,
  insertExpiries,
  insertFinished,
  insertScheduled,
  insertTasks,
  insertUniqueKeys,
  type NewTaskRow,
  removeExpiries,
  removeFinished,
  removeScheduled,
  removeUniqueKeys,
  reopenTasks,
  selectTakenTasks,
  updateTasks,
} from './transitions.queries';

/** The columns of a task that transitions need. */
export interface TransitionTask extends LaneTask {
  readonly unique_key: string | null;
  readonly traceparent: string | null;
}

/** A task that goes from one state to another. */
export interface TaskChange {
  readonly task: TransitionTask;
  readonly from: TaskState;
  readonly to: TaskState;
  /**
   * Attempts that count from now on; required if it was leased, unless it goes to `queued`, which does not change its row. Leave
   * it out for a task that waited: its number is known for certain only once it was taken out.
   */
  readonly attempts?: number;
  /** When it becomes due; required if it goes to `scheduled`. */
  readonly runAt?: number;
  /** Why it is cancelled or dead. */
  readonly reason?: TaskReason;
  /** If it was leased: what was reported of its target. Called only if the rate of the target adapts. */
  readonly outcome?: () => PacedOutcome;
}

/** A new task with its first state. */
export interface CreatedTask {
  readonly id: number;
  readonly state: 'scheduled' | 'queued';
}

/** A task that a claim has taken from the queue. */
export interface TakenTask extends TransitionTask {
  readonly spec: string;
  /** Attempts that count so far. */
  readonly attempts: number;
  /** Where it was queued. */
  readonly row: ReadyRow;
}

/** A task that is leased. */
export interface GrantedTask extends TakenTask {
  /** When its agent may start, in ms since the epoch; null if at once. */
  readonly startAt: number | null;
}

/**
 * The topic of tasks that became ready; the message has their kind and number, and the first position in the shared
 * lane.
 */
const READY = 'ready';
type ReadyMessage = [kind: string, count: number, laneId?: number, rank?: number, id?: number];

/** How often one claim moves tasks of targets with a new limit into their lanes, and the most tasks at a time. */
const MAX_DIVERSIONS = 4;
const MAX_DIVERTED = 2_048;

/**
 * The only writer of the states of tasks. Callers change a state in the unit of work that has locked the task, or
 * deleted its row from `ready` or `scheduled`. Updates everything that depends on the state: lanes, slots of windows,
 * depth, finished tasks, reserved keys, and waiting claims.
 */
@Injectable()
export class TaskTransitions {
  constructor(
    private readonly lanes: Lanes,
    private readonly windows: Windows,
    private readonly depth: QueueDepth,
    private readonly waiters: ClaimWaiters,
    private readonly metrics: QueueMetrics,
    private readonly log: TaskLog,
    database: Database,
    concurrency: ConcurrencyService,
  ) {
    database.onAnnouncement(READY, (message) => {
      const [kind, count, laneId, rank, id] = JSON.parse(message) as ReadyMessage;
      if (laneId !== undefined) this.lanes.setBack(laneId, { rank, id } as Position);
      this.waiters.wake(kind, count);
    });
    database.onGap(() => {
      this.lanes.forgetPositions();
      this.waiters.wakeAll();
    });
    concurrency.onLimitsSet(async (tx, { set, lifted }) => {
      await insertLanes(
        tx,
        set.filter(({ scope }) => scope === 'target'),
      );
      await this.applyWindows(tx, [...set, ...lifted.map(unlimited)]);
    });
    concurrency.onIdleDeleted(async (tx, windows) => {
      // A task may be queued in the meantime, in a lane that nothing else would open.
      this.lanes.setStates(tx, windows.map(unlimited));
      await this.lanes.settle(tx);
    });
    concurrency.countWith({
      countQueued: async (statements, windows) => {
        const targets = windows.filter(({ scope }) => scope === 'target');
        const lanes = targets.length === 0 ? [] : await countInLanes(statements, targets);
        const inLane = new Map(lanes.map((lane) => [keyOf(lane), lane.queued]));
        const depths = (await this.depth.depths(statements)).filter(({ state }) => state === 'queued');
        return windows.map(({ scope, kind, target }) =>
          scope === 'target'
            ? (inLane.get(keyOf({ kind, target })) ?? 0)
            : depths
                .filter((depth) => scope === 'global' || depth.kind === kind)
                .reduce((sum, { count }) => sum + count, 0),
        );
      },
    });
  }

  /** Locks the limits until the unit ends. Call it before all other locks of a unit that changes states. */
  async begin(tx: Transaction): Promise<void> {
    await this.windows.of(tx);
  }

  /** The same, for a unit that takes tasks for claims: looks at the same time whether targets have lanes of their own. */
  async beginClaim(tx: Transaction): Promise<void> {
    await Promise.all([this.windows.of(tx), this.lanes.hasOwn(tx)]);
  }

  /** Creates tasks: queued ones, or scheduled ones if their `run_at` is ahead. @returns them in the order given */
  async create(tx: Transaction, rows: readonly NewTaskRow[]): Promise<CreatedTask[]> {
    if (rows.length === 0) return [];
    // Before all other locks.
    await this.windows.of(tx);
    const ids = await insertTasks(tx, rows);
    const tasks = rows.map((row, i) => ({ ...row, id: ids[i] as number }));
    await insertUniqueKeys(
      tx,
      tasks.flatMap(({ unique_key, id }) => (unique_key === null ? [] : [{ unique_key, task_id: id }])),
    );
    const isLater = ({ run_at: runAt }: NewTaskRow): boolean => runAt !== null && runAt > tx.now;
    const later = tasks.filter(isLater);
    const now = tasks.filter((task) => !isLater(task));
    await insertScheduled(
      tx,
      later.map(({ id, kind, run_at }) => ({ task_id: id, kind, run_at: run_at as number })),
    );
    await insertExpiries(tx, expiriesOf(tasks));
    const added = await this.lanes.add(tx, now);
    await this.depth.count(
      tx,
      tasks.map((task) => ({ kind: task.kind, from: null, to: isLater(task) ? 'scheduled' : 'queued' })),
    );
    await this.lanes.settle(tx);
    this.announceReady(tx, added);
    this.metrics.countEnqueued(tx, tasks);
    this.log.enqueued(tx, tasks);
    return tasks.map((task) => ({ id: task.id, state: isLater(task) ? 'scheduled' : 'queued' }));
  }

  /**
   * Applies changes of state. Before that, the caller has taken a queued or scheduled task out of its table ({@link
   * takeOut}, {@link takeForClaim}), ended the lease of a leased one in this unit, or locked the row of a finished one.
   */
  async apply(tx: Transaction, changes: readonly TaskChange[]): Promise<void> {
    if (changes.length === 0) return;
    const { now } = tx;
    const unit = await this.windows.of(tx);
    const tasksTo = (...states: TaskState[]) =>
      changes.filter(({ to }) => states.includes(to)).map(({ task }) => task);

    const ended = changes.filter((change): change is TaskChange & { to: FinishedState } =>
      isFinished(change.to),
    );
    const waits = (state: TaskState) => state === 'scheduled' || state === 'queued';
    const [added] = await Promise.all([
      this.lanes.add(tx, tasksTo('queued')),
      updateTasks(
        tx,
        changes.flatMap(({ task, from, to, attempts, runAt, reason = null }) => {
          if (to === 'queued' || to === 'leased') return [];
          if (attempts === undefined && from === 'leased')
            throw new Error(`task ${task.id} becomes ${to} without a number of attempts`);
          const state = isFinished(to) ? to : 'open';
          return [
            {
              ...{ id: task.id, state, reason },
              ...(attempts === undefined ? {} : { attempts }),
              ...(runAt === undefined ? {} : { run_at: runAt }),
            },
          ];
        }),
      ),
      ...[...Map.groupBy(ended, ({ task, to }) => `${task.kind}\0${to}`).values()].map((some) => {
        const [{ task, to }] = some as [TaskChange & { to: FinishedState }];
        return insertFinished(
          tx,
          task.kind,
          to,
          some.map((change) => change.task.id),
        );
      }),
      removeUniqueKeys(
        tx,
        ended.flatMap(({ task }) => task.unique_key ?? []),
      ),
      insertScheduled(
        tx,
        changes.flatMap(({ task, to, runAt }) =>
          to === 'scheduled' ? [{ task_id: task.id, kind: task.kind, run_at: runAt ?? now }] : [],
        ),
      ),
      insertExpiries(
        tx,
        expiriesOf(changes.filter(({ from, to }) => waits(to) && !waits(from)).map(({ task }) => task)),
      ),
      removeExpiries(
        tx,
        expiriesOf(changes.filter(({ from, to }) => waits(from) && !waits(to)).map(({ task }) => task)),
      ),
      this.depth.count(
        tx,
        changes.map(({ task, from, to }) => ({ kind: task.kind, from, to })),
      ),
    ]);
    const changed = await unit.giveBack(
      changes
        .filter(({ from, to }) => from === 'leased' && to !== 'leased')
        .map(({ task: { kind, target }, outcome }) => ({ kind, target, outcome })),
    );
    this.announceReady(tx, added);
    await this.applyWindows(tx, changed);
    const dead = changes.filter(({ to }) => to === 'dead');
    this.metrics.countDead(
      tx,
      dead.map(({ task, reason = null }) => ({ kind: task.kind, reason })),
    );
    this.log.dead(
      tx,
      dead.map(({ task, reason = null }) => ({ ...task, reason })),
    );
    this.log.cancelled(tx, tasksTo('cancelled'));
  }

  /**
   * Reopens finished tasks whose rows the unit has locked: they are queued like new ones. No unfinished task may have
   * one of their keys.
   */
  async reopen(
    tx: Transaction,
    tasks: readonly (TransitionTask & { readonly state: FinishedState; readonly finished_at: number })[],
  ): Promise<void> {
    if (tasks.length === 0) return;
    await this.windows.of(tx);
    await reopenTasks(
      tx,
      tasks.map(({ id }) => id),
    );
    await removeFinished(
      tx,
      tasks.map(
        ({ id, kind, state, finished_at }): FinishedRow => ({ kind, state, finished_at, task_id: id }),
      ),
    );
    await insertUniqueKeys(
      tx,
      tasks.flatMap(({ unique_key, id }) => (unique_key === null ? [] : [{ unique_key, task_id: id }])),
    );
    const open = tasks.map((task) => ({
      ...task,
      not_after: task.not_after !== null && task.not_after > tx.now ? task.not_after : null,
    }));
    await insertExpiries(tx, expiriesOf(open));
    const added = await this.lanes.add(tx, open);
    await this.depth.count(
      tx,
      tasks.map(({ kind, state }) => ({ kind, from: state, to: 'queued' })),
    );
    await this.lanes.settle(tx);
    this.announceReady(tx, added);
    this.log.retried(tx, tasks);
  }

  /**
   * Deletes tasks from `ready` and `scheduled`. Call it before the unit locks leases and tasks. Tasks in neither table
   * are leased or finished, or another unit is moving them.
   * @returns for each deleted task, in which table it was
   */
  async takeOut(tx: Transaction, tasks: readonly LaneTask[]): Promise<Map<number, 'queued' | 'scheduled'>> {
    if (tasks.length === 0) return new Map();
    await this.windows.of(tx);
    const rows = await removeReady(tx, await this.lanes.placesOf(tx, tasks));
    this.lanes.noteRemoved(tx, rows);
    const places = new Map<number, 'queued' | 'scheduled'>(rows.map((row) => [row.task_id, 'queued']));
    const scheduled = await removeScheduled(
      tx,
      tasks.flatMap(({ id }) => (places.has(id) ? [] : [id])),
    );
    for (const id of scheduled) places.set(id, 'scheduled');
    return places;
  }

  /**
   * Takes the best queued tasks of kinds for claims, up to the room of their windows; sometimes more than are wanted.
   * Call {@link lease} with them before the unit ends.
   * @param wanted the most tasks of each kind
   */
  async takeForClaim(tx: Transaction, wanted: ReadonlyMap<string, number>): Promise<TakenTask[]> {
    const unit = await this.windows.of(tx);
    const missing = new Map([...wanted].map(([kind, count]) => [kind, Math.min(count, unit.roomOf(kind))]));
    const taken: TakenTask[] = [];
    for (let diversions = 0; missing.size > 0; diversions++) {
      const rows = await this.lanes.take(tx, missing);
      const tasks = await selectTaken(tx, rows);
      const strays: TakenTask[] = [];
      for (const task of tasks) {
        const isStray =
          unit.hasTargets && this.lanes.isOfKind(tx, task.row.lane_id) && (await unit.isMoving(task));
        (isStray ? strays : taken).push(task);
      }
      missing.clear();
      if (strays.length === 0) break;
      // Their target was limited a moment ago: they belong into its lane, and a claim that finds them moves them there.
      await this.addMoved(tx, strays);
      // More of them are likely: the next look takes more of them at a time.
      const { fitting } = this.lanes.fit(tx, taken);
      for (const kind of new Set(strays.map((stray) => stray.kind))) {
        const most = Math.min(wanted.get(kind) ?? 0, unit.roomOf(kind));
        const left = most - fitting.filter((task) => task.kind === kind).length;
        if (left <= 0) continue;
        missing.set(kind, Math.min(MAX_DIVERTED, left * 4 ** (diversions + 1)));
        // What is behind them is for claims that wait, this one too: the next unit looks on.
        if (diversions === MAX_DIVERSIONS) wake(tx, kind, left);
      }
      if (diversions === MAX_DIVERSIONS) break;
    }
    // Each look took as many of a lane as its window has room for, so that the best of them all are among them.
    const { fitting, excess } = this.lanes.fit(tx, taken);
    await this.lanes.putBack(
      tx,
      excess.map(({ row }) => row),
    );
    this.announceReady(
      tx,
      excess.map(({ row }) => row),
    );
    this.lanes.keep(
      tx,
      fitting.map(({ row }) => row),
    );
    return fitting;
  }

  /**
   * Takes slots for tasks that were taken for claims, in the given order. Puts back tasks without a slot, and those
   * that no claim wants.
   * @returns the tasks to lease
   */
  async lease(
    tx: Transaction,
    wanted: readonly TakenTask[],
    unwanted: readonly TakenTask[],
  ): Promise<{ leased: GrantedTask[]; written: Promise<void> }> {
    const unit = await this.windows.of(tx);
    const { starts, full } = await unit.take(wanted);
    const leased = wanted.flatMap((task, i): GrantedTask[] => {
      const start = starts[i];
      return start ? [{ ...task, startAt: start.at }] : [];
    });
    const spare = unwanted.map(({ row }) => row);
    const refused = wanted.flatMap(({ row }, i) => (starts[i] ? [] : [row]));
    this.lanes.setStates(tx, full);
    const write = async (): Promise<void> => {
      await Promise.all([
        this.lanes.putBack(tx, [...spare, ...refused]),
        removeExpiries(tx, expiriesOf(leased)),
        this.depth.count(
          tx,
          leased.map(({ kind }) => ({ kind, from: 'queued', to: 'leased' })),
        ),
      ]);
      await this.lanes.settle(tx);
    };
    // A claim meanwhile may have missed them.
    this.announceReady(tx, spare);
    // Those without a slot or a start it would be refused too, again and again: claims are woken once there is room.
    this.announceReady(tx, refused, false);
    this.metrics.countGranted(
      tx,
      leased.map(({ kind, row }) => ({ kind, readyAt: row.ready_at })),
    );
    return { leased, written: write() };
  }

  /**
   * Moves some of the queued tasks of a target with a limit into its lane.
   * @param windowId of the target's window
   * @param limit the most tasks of the target that are read
   * @returns whether there may be more
   */
  async moveNext(tx: Transaction, windowId: number, limit: number): Promise<boolean> {
    const { moved, isLast } = await this.lanes.moveNext(tx, windowId, limit);
    await this.announceMoved(tx, moved);
    return !isLast;
  }

  /**
   * Moves some of the queued tasks in a kind's lane into the lanes of their targets, all of which have inherited a limit.
   * @returns whether there may be more
   */
  async moveShared(tx: Transaction, kind: string, limit: number): Promise<boolean> {
    const unit = await this.windows.of(tx);
    // Lifted meanwhile: they would be put back into the same lane, again and again.
    if (!unit.hasInherited(kind)) return false;
    const { rows, isEmpty } = await this.lanes.takeShared(tx, kind, limit);
    const tasks = await selectTaken(tx, rows);
    await this.addMoved(tx, tasks);
    await this.lanes.settle(tx);
    return !isEmpty;
  }

  /**
   * Updates some of the windows that inherit the bounds of every target of a kind, after these were changed or lifted.
   * @param aboveId of windows
   * @returns the last id that was updated; undefined if there are no more
   */
  async updateInherited(
    tx: Transaction,
    kind: string,
    aboveId: number,
    limit: number,
  ): Promise<number | undefined> {
    const unit = await this.windows.of(tx);
    const { changed, last } = await unit.updateInherited(kind, aboveId, limit);
    this.lanes.setStates(tx, changed);
    await this.lanes.settle(tx);
    // Most of many targets are idle: no claim needs to look for their tasks.
    const lanes = changed.length === 0 ? [] : await countInLanes(tx, changed);
    const queued = new Map(lanes.map((lane) => [keyOf(lane), lane.queued]));
    await this.wakeFor(
      tx,
      changed.map((window) => {
        const waiting = queued.get(keyOf(window)) ?? 0;
        return { ...window, room: Math.min(window.room, waiting) };
      }),
    );
    return last;
  }

  /**
   * Opens the lanes whose next start is near, and wakes claims for them.
   * @returns their number
   */
  async openDue(tx: Transaction, limit: number): Promise<number> {
    const unit = await this.windows.of(tx);
    const lanes = await openDueLanes(tx, tx.now, limit);
    await unit.limitedAmong(lanes);
    const rooms = new Map<string, number>();
    const full: ChangedWindow[] = [];
    for (const { kind, target, queued } of lanes) {
      const window = await unit.stateAt({ kind, target });
      rooms.set(kind, (rooms.get(kind) ?? 0) + Math.min(queued, window?.room ?? queued));
      if (window && window.room <= 0) full.push(window);
    }
    // After an interruption all are due. Open without room, they would hide those that have some from claims.
    this.lanes.setStates(tx, full);
    await this.lanes.settle(tx);
    for (const [kind, room] of rooms) if (room > 0) wake(tx, kind, room);
    return lanes.length;
  }

  /** Deletes finished tasks that were deleted from `finished_tasks`. */
  async delete(tx: Transaction, rows: readonly FinishedRow[]): Promise<void> {
    if (rows.length === 0) return;
    await deleteTasks(
      tx,
      rows.map((row) => row.task_id),
    );
    await this.depth.count(
      tx,
      rows.map(({ kind, state }) => ({ kind, from: state, to: null })),
    );
  }

  /**
   * Announces tasks that became ready to all replicas, which search their lanes from there.
   * @param wakes whether that wakes waiting claims
   */
  private announceReady(tx: Transaction, rows: readonly ReadyRow[], wakes = true): void {
    for (const [kind, some] of Map.groupBy(rows, (row) => row.kind)) {
      const shared = some.filter((row) => this.lanes.isOfKind(tx, row.lane_id));
      const first = shared.reduce<ReadyRow | undefined>(
        (best, row) =>
          !best || row.rank < best.rank || (row.rank === best.rank && row.task_id < best.task_id)
            ? row
            : best,
        undefined,
      );
      const place = first ? ([first.lane_id, first.rank, first.task_id] as const) : [];
      tx.announce(READY, JSON.stringify([kind, wakes ? some.length : 0, ...place]));
    }
  }

  /** Adds tasks that were taken out of their kind's lane to the lanes of their targets. */
  private async addMoved(tx: Transaction, tasks: readonly TakenTask[]): Promise<void> {
    await this.lanes.add(
      tx,
      tasks.map((task) => ({ ...task, ready_at: task.row.ready_at })),
    );
    await this.announceMoved(tx, tasks);
  }

  /** Wakes waiting claims for tasks that were moved into the lanes of their targets: a claim meanwhile may have missed them. */
  private async announceMoved(tx: Transaction, tasks: readonly LaneTask[]): Promise<void> {
    const unit = await this.windows.of(tx);
    for (const some of Map.groupBy(tasks, keyOf).values()) {
      const [{ kind, target }] = some as [LaneTask];
      // Of those that the limit holds back nobody need know.
      const count = Math.min(some.length, await unit.roomAt({ kind, target }));
      if (count > 0) wake(tx, kind, count);
    }
  }

  /** Opens and closes the lanes of windows that have changed, and wakes waiting claims for those with room. */
  private async applyWindows(tx: Transaction, changed: readonly ChangedWindow[]): Promise<void> {
    this.lanes.setStates(tx, changed);
    await this.lanes.settle(tx);
    await this.wakeFor(
      tx,
      changed.filter(({ room, scope }) => room > 0 && scope !== 'every_target'),
    );
  }

  /** Wakes waiting claims for tasks whose windows have room again. */
  private async wakeFor(tx: Transaction, opened: readonly ChangedWindow[]): Promise<void> {
    const rooms = new Map<string, number>();
    for (const { scope, kind, room } of opened)
      for (const one of scope === 'global' ? await this.depth.kinds(tx) : [kind])
        rooms.set(one, Math.min((rooms.get(one) ?? 0) + room, Number.MAX_SAFE_INTEGER));
    for (const [kind, room] of rooms) if (room > 0) wake(tx, kind, room);
  }
}

/** Wakes this number of claims that wait for a kind, here and on other replicas, once the unit is committed. */
const wake = (tx: Transaction, kind: string, count: number): void =>
  tx.announce(READY, JSON.stringify([kind, count]));

const expiriesOf = (tasks: readonly { readonly id: number; readonly not_after: number | null }[]) =>
  tasks.flatMap(({ id, not_after }) => (not_after === null ? [] : [{ not_after, task_id: id }]));

/** Reads the tasks of rows that were deleted from `ready`, in claim order. */
async function selectTaken(tx: Transaction, rows: readonly ReadyRow[]): Promise<TakenTask[]> {
  if (rows.length === 0) return [];
  const tasks = await selectTakenTasks(
    tx,
    rows.map((row) => row.task_id),
  );
  const byId = new Map(tasks.map((task) => [task.id, task]));
  return [...rows]
    .sort((a, b) => a.rank - b.rank || a.task_id - b.task_id)
    .flatMap((row) => {
      const task = byId.get(row.task_id);
      return task ? [{ ...task, row }] : [];
    });
}
