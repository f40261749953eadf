import { setTimeout as sleep } from 'node:timers/promises';
import { Inject, Injectable } from '@nestjs/common';
import { Cron, CronExpression, Interval } from '@nestjs/schedule';
import { Clock } from '../clock';
import type { WindowRow } from '../concurrency/window.entity';
import { hasBounds, isWide } from '../concurrency/window-bounds';
import { roomIn, Windows } from '../concurrency/windows';
import {
  endEveryTargetUpdate,
  limitLastStarts,
  selectMovingWindows,
  selectWideWindows,
} from '../concurrency/windows.queries';
import { Database } from '../database/database';
import { Idempotency } from '../database/idempotency';
import type { Statements, Transaction } from '../database/statements';
import { Continuity } from '../scheduling/continuity';
import { JobRunner } from '../scheduling/job-runner';
import { SETTINGS, type Settings } from '../settings';
import { ClaimWaiters } from './claim-waiters';
import { QueueDepth } from './depth';
import { hasDeltas } from './depth.queries';
import { Lanes } from './lanes';
import { deleteIdleLanes, findBefore, forgetOpenings, isAnyLaneDue } from './lanes.queries';
import { FINISHED_STATES } from './task.entity';
import { type TaskChange, TaskTransitions } from './transitions';
import {
  isAnyDue,
  selectExpired,
  selectTransitionTasks,
  takeDue,
  takeFinishedBefore,
} from './transitions.queries';

/** The interval of ticks, in milliseconds: promises within a second have several tries. */
const TICK_MS = 250;
const SECOND_MS = 1_000;
const HOUR_MS = 3_600_000;
/** The most rows of one transaction of a tick, so that requests wait only briefly. */
const BATCH = 500;
/**
 * The number of a target's tasks that are moved into its lane at a time, and the pause between, in milliseconds, for
 * claims.
 */
const MOVED_AT_ONCE = 500;
const MOVE_PAUSE_MS = 10;
/** The largest share of time for checking for tasks before search positions. */
const CHECK_SHARE = 0.01;

/** Timed work of another folder. */
export interface DueWork {
  /** Whether there is something to do. Reads committed rows. */
  isDue(statements: Statements): Promise<boolean>;
  /** Does a part of it in its own transaction. @returns the number of rows: less than the limit if all is done */
  run(limit: number): Promise<number>;
}

/** Called in the transaction that deletes tasks, with their ids. */
export type DeletionListener = (tx: Transaction, taskIds: readonly number[]) => Promise<void>;

/**
 * Runs the timed work of the queue: expires leases, queues scheduled tasks, ends tasks whose `not_after` has passed,
 * deletes old ones; and maintains counts, lanes and search positions.
 */
@Injectable()
export class QueueMaintainer {
  private readonly dueWork: DueWork[] = [];
  private readonly deletionListeners: DeletionListener[] = [];
  private checkAt = Number.NEGATIVE_INFINITY;
  private wakeAt = Number.NEGATIVE_INFINITY;

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly continuity: Continuity,
    private readonly jobs: JobRunner,
    private readonly transitions: TaskTransitions,
    private readonly lanes: Lanes,
    private readonly windows: Windows,
    private readonly depth: QueueDepth,
    private readonly waiters: ClaimWaiters,
    private readonly idempotency: Idempotency,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    for (const name of ['reaper', 'queue-counts', 'lane-moves', 'task-retention']) this.jobs.declare(name);
    // After the clock was set back, starts may be far ahead.
    continuity.onInterruption(async (tx, { now }) => {
      await limitLastStarts(tx, now);
      await forgetOpenings(tx);
    });
  }

  /** Adds work that runs at every tick, before the queue's own. */
  addDueWork(work: DueWork): void {
    this.dueWork.push(work);
  }

  /** Subscribes to the deletion of tasks. The listener runs in the transaction. */
  onTasksDeleted(listener: DeletionListener): void {
    this.deletionListeners.push(listener);
  }

  @Interval('reaper', TICK_MS)
  protected tick(): Promise<void> {
    return this.jobs.run('reaper', TICK_MS, () => this.reap(), { everywhere: true });
  }

  @Interval('queue-counts', SECOND_MS)
  protected everySecond(): Promise<void> {
    return this.jobs.run('queue-counts', SECOND_MS, () => this.foldCounts());
  }

  @Interval('lane-moves', TICK_MS)
  protected moveOften(): Promise<void> {
    return this.jobs.run('lane-moves', TICK_MS, () => this.moveTasks());
  }

  @Cron(CronExpression.EVERY_HOUR)
  protected hourly(): Promise<void> {
    return this.jobs.run('task-retention', HOUR_MS, () => this.purge());
  }

  /**
   * Runs the work that is due: leases past their deadline, scheduled tasks, tasks whose `not_after` has passed. After
   * an outage of the service nothing expires before every live lease has had one more lease duration.
   */
  async reap(): Promise<void> {
    await this.continuity.refresh();
    this.continuity.runningSince();
    // Check through the read connection first: an idle service writes nothing.
    const due = await this.database.read(async (statements) => ({
      work: await Promise.all(this.dueWork.map((work) => work.isDue(statements))),
      tasks: await isAnyDue(statements, this.clock.now()),
      lanes: await isAnyLaneDue(statements, this.clock.now()),
    }));
    for (const [i, work] of this.dueWork.entries())
      if (due.work[i]) while ((await work.run(BATCH)) === BATCH);
    if (due.tasks) {
      while ((await this.endExpired(BATCH)) === BATCH);
      while ((await this.queueDue(BATCH)) === BATCH);
    }
    if (due.lanes) while ((await this.database.write((tx) => this.transitions.openDue(tx, BATCH))) === BATCH);
    await this.checkPositions();
    await this.wakeWaiting();
  }

  /** Sums up the changes of counts. */
  async foldCounts(): Promise<void> {
    const any = await this.database.read(hasDeltas);
    if (any) await this.database.write((tx) => this.depth.fold(tx));
  }

  /** Moves the queued tasks of targets with a limit into their lanes, until all are there. */
  async moveTasks(): Promise<void> {
    const moving = await this.database.read((statements) => selectMovingWindows(statements));
    for (const window of moving) {
      if (window.scope === 'every_target') await this.updateEveryTarget(window);
      else
        while (await this.database.write((tx) => this.transitions.moveNext(tx, window.id, MOVED_AT_ONCE)))
          await sleep(MOVE_PAUSE_MS);
    }
  }

  /**
   * Brings the targets of a kind up to date after the bounds of every target were set, changed or lifted: their windows, and
   * their tasks that are still in the kind's lane.
   */
  private async updateEveryTarget(window: WindowRow): Promise<void> {
    const { id, kind, moved_through: change } = window;
    let isMoved = !hasBounds(window);
    while (!isMoved) {
      const isLeft = await this.database.write((tx) => this.transitions.moveShared(tx, kind, MOVED_AT_ONCE));
      isMoved = !isLeft;
      await sleep(MOVE_PAUSE_MS);
    }
    let last: number | undefined = 0;
    while (last !== undefined) {
      const above: number = last;
      last = await this.database.write((tx) =>
        this.transitions.updateInherited(tx, kind, above, MOVED_AT_ONCE),
      );
      await sleep(MOVE_PAUSE_MS);
    }
    // Unless there was another change meanwhile.
    await this.database.write((tx) => endEveryTargetUpdate(tx, id, change ?? 0));
  }

  /** Deletes tasks whose retention time is over, with their leases; and lanes and keys that are no longer needed. */
  async purge(): Promise<void> {
    const now = this.clock.now();
    const kinds = await this.database.read((statements) => this.depth.kinds(statements));
    for (const kind of kinds)
      for (const state of FINISHED_STATES)
        await this.jobs.purge((limit) =>
          this.database.write(async (tx) => {
            const rows = await takeFinishedBefore(
              tx,
              kind,
              state,
              now - this.settings.taskRetentionMs,
              limit,
            );
            const ids = rows.map((row) => row.task_id);
            if (ids.length > 0) for (const listener of this.deletionListeners) await listener(tx, ids);
            await this.transitions.delete(tx, rows);
            return rows.length;
          }),
        );
    await this.jobs.purge((limit) =>
      this.database.write(async (tx) => {
        await this.windows.of(tx);
        return deleteIdleLanes(tx, limit);
      }),
    );
    const keysBefore = now - this.settings.idempotencyRetentionMs;
    await this.jobs.purge((limit) =>
      this.database.write((tx) => this.idempotency.forget(tx, keysBefore, limit)),
    );
  }

  /**
   * Queues scheduled tasks that are due.
   * @param limit the most tasks
   * @returns their number
   */
  private queueDue(limit: number): Promise<number> {
    return this.database.write(async (tx) => {
      await this.windows.of(tx);
      const tasks = await selectTransitionTasks(tx, await takeDue(tx, limit));
      await this.transitions.apply(
        tx,
        tasks.map((task): TaskChange => ({ task, from: 'scheduled', to: 'queued' })),
      );
      return tasks.length;
    });
  }

  /**
   * Ends tasks without a live lease whose `not_after` has passed.
   * @param limit the most tasks
   * @returns their number
   */
  private endExpired(limit: number): Promise<number> {
    return this.database.write(async (tx) => {
      await this.windows.of(tx);
      const tasks = await selectTransitionTasks(tx, await selectExpired(tx, tx.now, limit));
      const places = await this.transitions.takeOut(tx, tasks);
      const changes = tasks.flatMap((task): TaskChange[] => {
        const from = places.get(task.id);
        return from ? [{ task, from, to: 'dead', reason: 'not_after' }] : [];
      });
      await this.transitions.apply(tx, changes);
      return changes.length;
    });
  }

  /**
   * Wakes claims that wait although there is a task that could be granted. Within a rate of everything or of a kind, room comes with
   * time: at each tick as many as there is room for. For other kinds one a second: an announcement may have been lost, or another
   * unit that had locked the task was rolled back.
   */
  private async wakeWaiting(): Promise<void> {
    const { kinds } = this.waiters;
    if (kinds.length === 0) return;
    const isForAll = performance.now() >= this.wakeAt;
    if (isForAll) this.wakeAt = performance.now() + SECOND_MS;
    const now = this.clock.now();
    const wakeUps = await this.database.read(async (statements) => {
      const { wide } = await selectWideWindows(statements);
      const found = new Map<string, number>();
      for (const kind of kinds) {
        const isPaced = wide.some(
          (row) => row.rate !== null && isWide(row) && (!row.kind || row.kind === kind),
        );
        const room = isPaced || isForAll ? roomIn(wide, kind, now) : 0;
        if (room > 0 && (await this.lanes.hasReady(statements, kind, now)))
          found.set(kind, isPaced ? room : 1);
      }
      return found;
    });
    for (const [kind, count] of wakeUps) this.waiters.wake(kind, count);
  }

  /**
   * Checks for tasks before the search positions of lanes. There are none, unless a claim of another replica was rolled
   * back or an announcement was lost. Only reads; while a snapshot is open it scans all rows that were deleted since, so
   * it runs rarely then.
   */
  private async checkPositions(): Promise<void> {
    const startedAt = performance.now();
    if (startedAt < this.checkAt) return;
    for (const [laneId, position] of this.lanes.positions) {
      const first = await this.database.read((statements) => findBefore(statements, laneId, position));
      if (first) this.lanes.setBack(laneId, first);
    }
    const tookMs = performance.now() - startedAt;
    this.checkAt = startedAt + Math.max(SECOND_MS, tookMs / CHECK_SHARE);
  }
}
