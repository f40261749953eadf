import { Injectable, type OnApplicationBootstrap } from '@nestjs/common';
import type { Transaction } from '../database/statements';
import { OUTCOMES, type Outcome } from '../kinds/observations';
import { TaskKinds } from '../kinds/task-kinds';
import { addByKind } from '../queue/count-by-kind';
import { type CounterInstrument, type HistogramInstrument, Meter } from '../telemetry/meter';
import type { RejectedReport } from './leases.dto';

/** Upper bounds in seconds. */
const HELD_BUCKETS = [0.01, 0.05, 0.1, 0.5, 1, 5, 15, 30, 60, 300, 1_800, 3_600];

/** The outcome of a completed lease whose report named none. */
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
 * Counts extended and ended leases once their unit of work is committed, so that a unit that is run again counts once.
 */
@Injectable()
export class LeaseMetrics implements OnApplicationBootstrap {
  private readonly extended: CounterInstrument<never>;
  private readonly completed: CounterInstrument<'kind' | 'outcome'>;
  private readonly cancelled: CounterInstrument<'kind'>;
  private readonly expired: CounterInstrument<'kind'>;
  private readonly revoked: CounterInstrument<never>;
  private readonly rejected: CounterInstrument<'reason'>;
  private readonly held: HistogramInstrument<'kind'>;

  constructor(
    meter: Meter,
    private readonly kinds: TaskKinds,
  ) {
    this.extended = meter.counter({
      name: 'leases_extended_total',
      help: 'Leases that their holder extended.',
    });
    this.completed = meter.counter({
      name: 'leases_completed_total',
      help: 'Leases that were reported as completed, by the outcome of the check.',
      labels: ['kind', 'outcome'],
    });
    this.cancelled = meter.counter({
      name: 'leases_cancelled_total',
      help: 'Leases that were reported as cancelled.',
      labels: ['kind'],
    });
    this.expired = meter.counter({
      name: 'leases_expired_total',
      help: 'Leases whose deadline passed without a report.',
      labels: ['kind'],
    });
    this.revoked = meter.counter({
      name: 'leases_revoked_total',
      help: 'Leases that an operator or a hand-over ended.',
    });
    this.rejected = meter.counter({
      name: 'reports_rejected_total',
      help: 'Reports of single leases that had no effect.',
      labels: ['reason'],
    });
    this.held = meter.histogram({
      name: 'lease_held_seconds',
      help: 'How long leases were held until their report.',
      labels: ['kind'],
      buckets: HELD_BUCKETS,
    });
  }

  /** Starts the series of the known kinds at 0, so that the first event is an increase. */
  onApplicationBootstrap(): void {
    for (const kind of this.kinds.names()) {
      for (const counter of [this.cancelled, this.expired]) counter.add({ kind }, 0);
      for (const outcome of [...OUTCOMES, UNSAID]) this.completed.add({ kind, outcome }, 0);
    }
    for (const reason of REJECTIONS) this.rejected.add({ reason }, 0);
    this.extended.add({}, 0);
    this.revoked.add({}, 0);
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
}
