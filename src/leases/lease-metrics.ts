import { Injectable, type OnApplicationBootstrap } from '@nestjs/common';
import type { Transaction } from '../database/statements';
import { type CounterInstrument, type HistogramInstrument, Meter } from '../telemetry/meter';
import type { RejectedReport } from './leases.dto';
import { OUTCOMES, type Outcome } from './result.entity';
import { TASK_REASONS, type TaskReason } from './task.entity';
import { TaskKinds } from './task-kinds';

/** Upper bounds in seconds: from at once to as long as a queue that nobody works on. */
const WAIT_BUCKETS = [0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 600, 900, 1_200, 1_800, 7_200, 43_200];
const HELD_BUCKETS = [0.01, 0.05, 0.1, 0.5, 1, 5, 15, 30, 60, 300, 1_800, 3_600];

/** A completed lease whose report did not say what came of the check. */
const UNSAID = 'unsaid';

const REJECTIONS: readonly RejectedReport['reason'][] = [
  'invalid',
  'expired',
  'revoked',
  'unknown',
  'conflict',
];

/** A lease that ended by a report. */
interface ReportedEnd {
  readonly kind: string;
  readonly as: 'completed' | 'cancelled';
  readonly outcome: Outcome | null;
  readonly heldMs: number;
}

/**
 * Counts what becomes of tasks and leases, once the unit of work that does it is committed: what is undone, or done again, counts
 * once.
 */
@Injectable()
export class LeaseMetrics implements OnApplicationBootstrap {
  private readonly enqueued: CounterInstrument<'kind'>;
  private readonly granted: CounterInstrument<'kind'>;
  private readonly extended: CounterInstrument<never>;
  private readonly completed: CounterInstrument<'kind' | 'outcome'>;
  private readonly cancelled: CounterInstrument<'kind'>;
  private readonly expired: CounterInstrument<'kind'>;
  private readonly revoked: CounterInstrument<never>;
  private readonly rejected: CounterInstrument<'reason'>;
  private readonly dead: CounterInstrument<'kind' | 'reason'>;
  private readonly wait: HistogramInstrument<'kind'>;
  private readonly held: HistogramInstrument<'kind'>;

  constructor(
    meter: Meter,
    private readonly kinds: TaskKinds,
  ) {
    this.enqueued = meter.counter({
      name: 'tasks_enqueued_total',
      help: 'Tasks that were enqueued.',
      labels: ['kind'],
    });
    this.granted = meter.counter({
      name: 'leases_granted_total',
      help: 'Leases that were granted.',
      labels: ['kind'],
    });
    this.extended = meter.counter({
      name: 'leases_extended_total',
      help: 'Leases whose deadline was moved by their holder.',
    });
    this.completed = meter.counter({
      name: 'leases_completed_total',
      help: 'Leases that were reported completed, by what came of the check.',
      labels: ['kind', 'outcome'],
    });
    this.cancelled = meter.counter({
      name: 'leases_cancelled_total',
      help: 'Leases that their holder gave back.',
      labels: ['kind'],
    });
    this.expired = meter.counter({
      name: 'leases_expired_total',
      help: 'Leases whose deadline passed without a report.',
      labels: ['kind'],
    });
    this.revoked = meter.counter({
      name: 'leases_revoked_total',
      help: 'Leases that an operator ended, or a hand-over.',
    });
    this.rejected = meter.counter({
      name: 'reports_rejected_total',
      help: 'Reports on single leases that had no effect.',
      labels: ['reason'],
    });
    this.dead = meter.counter({
      name: 'tasks_dead_total',
      help: 'Tasks that ended without a result.',
      labels: ['kind', 'reason'],
    });
    this.wait = meter.histogram({
      name: 'task_wait_seconds',
      help: 'How long tasks waited for a claim: since they were enqueued, due, or put back by an operator.',
      labels: ['kind'],
      buckets: WAIT_BUCKETS,
    });
    this.held = meter.histogram({
      name: 'lease_held_seconds',
      help: 'How long leases were held until their report.',
      labels: ['kind'],
      buckets: HELD_BUCKETS,
    });
  }

  /** Begins the series of the known kinds at 0, so that the first of something is an increase. */
  onApplicationBootstrap(): void {
    for (const kind of this.kinds.names()) {
      for (const counter of [this.enqueued, this.granted, this.cancelled, this.expired])
        counter.add({ kind }, 0);
      for (const outcome of [...OUTCOMES, UNSAID]) this.completed.add({ kind, outcome }, 0);
      for (const reason of TASK_REASONS) if (reason !== 'operator') this.dead.add({ kind, reason }, 0);
    }
    for (const reason of REJECTIONS) this.rejected.add({ reason }, 0);
    this.extended.add({}, 0);
    this.revoked.add({}, 0);
  }

  countEnqueued(tx: Transaction, tasks: readonly { kind: string }[]): void {
    addByKind(tx, this.enqueued, tasks);
  }

  /** @param tasks with when each could have been claimed first, in ms since the epoch */
  countGranted(tx: Transaction, tasks: readonly { kind: string; readyAt: number }[]): void {
    const { now } = tx;
    addByKind(tx, this.granted, tasks);
    tx.afterCommit(() => {
      for (const { kind, readyAt } of tasks) this.wait.observe({ kind }, Math.max(0, now - readyAt) / 1_000);
    });
  }

  countExtended(tx: Transaction, leases: number): void {
    if (leases > 0) tx.afterCommit(() => this.extended.add({}, leases));
  }

  countReported(
    tx: Transaction,
    ends: readonly ReportedEnd[],
    rejected: readonly Pick<RejectedReport, 'reason'>[],
  ): void {
    tx.afterCommit(() => {
      for (const { kind, as, outcome, heldMs } of ends) {
        if (as === 'completed') this.completed.add({ kind, outcome: outcome ?? UNSAID });
        else this.cancelled.add({ kind });
        this.held.observe({ kind }, Math.max(0, heldMs) / 1_000);
      }
      for (const { reason } of rejected) this.rejected.add({ reason });
    });
  }

  countExpired(tx: Transaction, leases: readonly { kind: string }[]): void {
    addByKind(tx, this.expired, leases);
  }

  countRevoked(tx: Transaction, leases: number): void {
    if (leases > 0) tx.afterCommit(() => this.revoked.add({}, leases));
  }

  /** Counts those that are dead. */
  countDead(
    tx: Transaction,
    tasks: readonly { kind: string; to: string; reason: TaskReason | null }[],
  ): void {
    const dead = tasks.filter(({ to }) => to === 'dead');
    if (dead.length > 0)
      tx.afterCommit(() => {
        for (const { kind, reason } of dead) this.dead.add({ kind, reason: reason ?? 'unknown' });
      });
  }
}

function addByKind(
  tx: Transaction,
  counter: CounterInstrument<'kind'>,
  items: readonly { kind: string }[],
): void {
  if (items.length === 0) return;
  const counts = new Map<string, number>();
  for (const { kind } of items) counts.set(kind, (counts.get(kind) ?? 0) + 1);
  tx.afterCommit(() => {
    for (const [kind, count] of counts) counter.add({ kind }, count);
  });
}
