import { Injectable, type OnApplicationBootstrap } from '@nestjs/common';
import { Clock } from '../clock';
import { Database } from '../database/database';
import type { Transaction } from '../database/statements';
import { TaskKinds } from '../kinds/task-kinds';
import { type CounterInstrument, type HistogramInstrument, Meter } from '../telemetry/meter';
import { addByKind } from './count-by-kind';
import { QueueDepth } from './depth';
import { countStopped } from './lanes.queries';
import { TASK_REASONS, type TaskReason } from './task.entity';

/** Upper bounds in seconds: from at once to the wait in a stalled queue. */
const WAIT_BUCKETS = [0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 600, 900, 1_200, 1_800, 7_200, 43_200];

/**
 * Shows the depth of the queue, the same on each replica, and counts the tasks that enter and leave it, once their unit
 * of work is committed, so that a unit that is run again counts once.
 */
@Injectable()
export class QueueMetrics implements OnApplicationBootstrap {
  private readonly enqueued: CounterInstrument<'kind'>;
  private readonly granted: CounterInstrument<'kind'>;
  private readonly dead: CounterInstrument<'kind' | 'reason'>;
  private readonly wait: HistogramInstrument<'kind'>;

  constructor(
    meter: Meter,
    database: Database,
    depth: QueueDepth,
    clock: Clock,
    private readonly kinds: TaskKinds,
  ) {
    this.enqueued = meter.counter({
      name: 'tasks_enqueued_total',
      help: 'Enqueued tasks.',
      labels: ['kind'],
    });
    this.granted = meter.counter({
      name: 'leases_granted_total',
      help: 'Granted leases.',
      labels: ['kind'],
    });
    this.dead = meter.counter({
      name: 'tasks_dead_total',
      help: 'Tasks that ended without a result.',
      labels: ['kind', 'reason'],
    });
    this.wait = meter.histogram({
      name: 'task_wait_seconds',
      help: 'How long tasks waited for a claim, since they were enqueued, due, or retried by an operator.',
      labels: ['kind'],
      buckets: WAIT_BUCKETS,
    });
    const tasks = meter.gauge({
      name: 'tasks',
      help: 'Tasks in the database.',
      labels: ['kind', 'state'],
    });
    const oldest = meter.gauge({
      name: 'oldest_queued_task_age_seconds',
      help: 'Time since the oldest queued task was enqueued.',
      labels: ['kind'],
    });
    const stopped = meter.gauge({
      name: 'tasks_stopped',
      help: 'Queued tasks whose target has a limit of 0.',
      labels: ['kind'],
    });
    meter.onScrape(async () => {
      const [depths, stops] = await database.read(async (statements) => [
        await depth.depthsWithOldest(statements),
        await countStopped(statements),
      ]);
      const now = clock.now();
      for (const gauge of [tasks, oldest, stopped]) gauge.reset();
      for (const { kind, queued } of stops) if (queued > 0) stopped.set({ kind }, queued);
      for (const { kind, state, count, oldest_created_at: since } of depths) {
        tasks.set({ kind, state }, count);
        if (state === 'queued' && since !== null) oldest.set({ kind }, Math.max(0, now - since) / 1_000);
      }
    });
  }

  /** Starts the series of the known kinds at 0, so that the first event is an increase. */
  onApplicationBootstrap(): void {
    for (const kind of this.kinds.names()) {
      for (const counter of [this.enqueued, this.granted]) counter.add({ kind }, 0);
      for (const reason of TASK_REASONS) if (reason !== 'operator') this.dead.add({ kind, reason }, 0);
    }
  }

  countEnqueued(tx: Transaction, tasks: readonly { kind: string }[]): void {
    addByKind(tx, this.enqueued, tasks);
  }

  /** @param tasks each with the instant when it became ready, in ms since the epoch */
  countGranted(tx: Transaction, tasks: readonly { kind: string; readyAt: number }[]): void {
    if (tasks.length === 0) return;
    const { now } = tx;
    addByKind(tx, this.granted, tasks);
    tx.afterCommit(() => {
      for (const { kind, readyAt } of tasks) this.wait.observe({ kind }, Math.max(0, now - readyAt) / 1_000);
    });
  }

  countDead(tx: Transaction, tasks: readonly { kind: string; reason: TaskReason | null }[]): void {
    if (tasks.length > 0)
      tx.afterCommit(() => {
        for (const { kind, reason } of tasks) this.dead.add({ kind, reason: reason ?? 'unknown' });
      });
  }
}
