import { setTimeout as sleep } from 'node:timers/promises';
import { Inject, Injectable } from '@nestjs/common';
import { Cron, CronExpression, Interval } from '@nestjs/schedule';
import { Clock } from '../clock';
import { Windows } from '../concurrency/windows';
import { selectMovingWindows } from '../concurrency/windows.queries';
import { Database } from '../database/database';
import { Idempotency } from '../database/idempotency';
import type { Statements, Transaction } from '../database/statements';
import { Continuity } from '../scheduling/continuity';
import { JobRunner } from '../scheduling/job-runner';
import { SETTINGS, type Settings } from '../settings';
import { QueueDepth } from './depth';
import { hasDeltas } from './depth.queries';
import { Lanes } from './lanes';
import { deleteIdleLanes, findBefore } from './lanes.queries';
import { FINISHED_STATES } from './task.entity';
import { type TaskChange, TaskTransitions } from './transitions';
import {
  isAnyDue,
  selectExpired,
  selectTransitionTasks,
  takeDue,
  takeFinishedBefore,
} from './transitions.queries';

/** How often time is looked at: what was promised within a second has several tries. */
const TICK_MS = 250;
const SECOND_MS = 1_000;
const HOUR_MS = 3_600_000;
/** How many rows one transaction of a tick takes, so that no request waits long behind it. */
const BATCH = 500;
/** How many tasks of a target are moved into its lane at a time, and the pause between, in milliseconds: claims go on meanwhile. */
const MOVED_AT_ONCE = 500;
const MOVE_PAUSE_MS = 10;
/** Checking for tasks before where searches begin takes at most this share of the time. */
const CHECK_SHARE = 0.05;

/** What time does to something that another folder owns. */
export interface DueWork {
  /** Whether there is something to do. Reads what is committed. */
  isDue(statements: Statements): Promise<boolean>;
  /** Does some of it in a transaction of its own. @returns how much it did: less than the limit if that was all */
  run(limit: number): Promise<number>;
}

/** Called in the transaction that deletes tasks, with their ids. */
export type DeletionListener = (tx: Transaction, taskIds: readonly number[]) => Promise<void>;

/**
 * Does what time does to the queue: leases expire, scheduled tasks are queued, tasks whose `not_after` has come are dead, old
 * ones are deleted; and keeps counts, lanes and positions in order.
 */
@Injectable()
export class QueueMaintainer {
  private readonly dueWork: DueWork[] = [];
  private readonly deletionListeners: DeletionListener[] = [];
  private checkAt = Number.NEGATIVE_INFINITY;

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly continuity: Continuity,
    private readonly jobs: JobRunner,
    private readonly transitions: TaskTransitions,
    private readonly lanes: Lanes,
    private readonly windows: Windows,
    private readonly depth: QueueDepth,
    private readonly idempotency: Idempotency,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    for (const name of ['reaper', 'queue-counts', 'lane-moves', 'task-retention']) this.jobs.declare(name);
  }

  /** Has this looked at with every tick, before tasks are. */
  addDueWork(work: DueWork): void {
    this.dueWork.push(work);
  }

  /** Calls back, in the transaction, when tasks are deleted. */
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
   * Does what is due: leases past their deadline, scheduled tasks whose instant has come, tasks whose time is up.
   * After an outage of the service nothing expires before every live lease has had one more lease duration.
   */
  async reap(): Promise<void> {
    await this.continuity.refresh();
    this.continuity.runningSince();
    // By the read connection first: an idle service writes nothing.
    const due = await this.database.read(async (statements) => ({
      work: await Promise.all(this.dueWork.map((work) => work.isDue(statements))),
      tasks: await isAnyDue(statements, this.clock.now()),
    }));
    for (const [i, work] of this.dueWork.entries())
      if (due.work[i]) while ((await work.run(BATCH)) === BATCH);
    if (due.tasks) {
      while ((await this.endExpired(BATCH)) === BATCH);
      while ((await this.queueDue(BATCH)) === BATCH);
    }
    await this.checkPositions();
  }

  /** Adds up the changes of counts that units have left. */
  async foldCounts(): Promise<void> {
    const any = await this.database.read(hasDeltas);
    if (any) await this.database.write((tx) => this.depth.fold(tx));
  }

  /** Moves the queued tasks of targets that have a limit into their lanes, until all are there. */
  async moveTasks(): Promise<void> {
    const moving = await this.database.read((statements) => selectMovingWindows(statements));
    for (const { id } of moving)
      while (await this.database.write((tx) => this.lanes.moveNext(tx, id, MOVED_AT_ONCE)))
        await sleep(MOVE_PAUSE_MS);
  }

  /** Deletes tasks that ended longer ago than they are kept, with their leases; lanes and keys that nobody needs any more. */
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
   * Queues scheduled tasks whose instant has come.
   * @param limit how many at most
   * @returns how many
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
   * Ends tasks that nobody holds and whose `not_after` has come.
   * @param limit how many at most
   * @returns how many
   */
  private endExpired(limit: number): Promise<number> {
    return this.database.write(async (tx) => {
      await this.windows.of(tx);
      const tasks = await selectTransitionTasks(tx, await selectExpired(tx, tx.now, limit));
      const places = await this.transitions.takeOut(tx, tasks);
      const changes = tasks.flatMap((task): TaskChange[] => {
        const from = places.get(task.id);
        return from ? [{ task, from, to: 'dead', attempts: task.attempts, reason: 'not_after' }] : [];
      });
      await this.transitions.apply(tx, changes);
      return changes.length;
    });
  }

  /**
   * Looks for tasks before where searches of lanes begin: there are none, unless a claim of another replica was undone or word of
   * tasks was lost. Only reads; while a snapshot is held it walks over all that was deleted since, so it is done seldom then.
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
