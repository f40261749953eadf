import { Inject, Injectable, Logger } from '@nestjs/common';
import type { Transaction } from '../database/statements';
import { SETTINGS, type Settings } from '../settings';
import { LineBudget } from '../telemetry/line-budget';
import { parseTraceparent } from '../tracing';
import type { TaskReason } from './task.entity';

/** The most lines a second, and at once, at the usual level. */
const NEWS: [perSecond: number, burst: number] = [1, 100];

/** The fields of a line for a lease that ended. */
export interface LoggedLease {
  readonly id: number;
  readonly taskId: number;
  readonly agentId: number;
  readonly kind: string;
  readonly attempt: number;
  readonly traceparent: string | null;
  readonly state: string;
  readonly outcome: string | null;
}

/** The fields of a line for a task. */
interface Named {
  readonly id: number;
  readonly kind: string;
  readonly traceparent: string | null;
}

/**
 * Logs the steps of tasks: each line has the `task_id`, and the `trace_id` if the task has one. Expired leases and dead
 * tasks are logged at the usual level, within a budget; all steps at `debug`.
 */
@Injectable()
export class TaskLog {
  private readonly logger = new Logger('Tasks');
  private readonly news = new LineBudget(...NEWS);
  /** The number of lines of each message that were left out since the last one. */
  private readonly suppressed = new Map<string, number>();
  private readonly isDetailed: boolean;

  constructor(@Inject(SETTINGS) { logLevel }: Settings) {
    this.isDetailed = logLevel === 'debug' || logLevel === 'trace';
  }

  /** Logs once the unit is committed. */
  enqueued(tx: Transaction, tasks: readonly Named[]): void {
    this.detail(tx, tasks, 'a task was enqueued', () => ({}));
  }

  /** Logs once the unit is committed. */
  leased(
    tx: Transaction,
    agentId: number,
    tasks: readonly (Named & { leaseId: number; attempt: number })[],
  ): void {
    this.detail(tx, tasks, 'a task was leased', ({ leaseId, attempt }) => ({
      ...{ lease_id: leaseId, agent_id: agentId, attempt },
    }));
  }

  /** Logs once the unit is committed. */
  ended(tx: Transaction, leases: readonly LoggedLease[]): void {
    const isNews = ({ state }: LoggedLease) => state === 'expired';
    if (!this.isDetailed && !leases.some(isNews)) return;
    tx.afterCommit(() => {
      for (const lease of leases) {
        const { taskId: id, kind, traceparent, state, outcome } = lease;
        const facts = {
          ...nameOf({ id, kind, traceparent }),
          ...{ lease_id: lease.id, agent_id: lease.agentId, attempt: lease.attempt, state },
          ...(outcome === null ? {} : { outcome }),
        };
        if (isNews(lease)) this.tell(facts, 'a lease expired');
        else if (this.isDetailed) this.logger.debug(facts, 'a lease ended');
      }
    });
  }

  /** Logs once the unit is committed. */
  cancelled(tx: Transaction, tasks: readonly Named[]): void {
    this.detail(tx, tasks, 'a task was cancelled', () => ({}));
  }

  /** Logs once the unit is committed. */
  retried(tx: Transaction, tasks: readonly Named[]): void {
    this.detail(tx, tasks, 'a task was retried', () => ({}));
  }

  /** Logs once the unit is committed. */
  dead(tx: Transaction, tasks: readonly (Named & { reason: TaskReason | null })[]): void {
    if (tasks.length > 0)
      tx.afterCommit(() => {
        for (const task of tasks) this.tell({ ...nameOf(task), reason: task.reason }, 'a task is dead');
      });
  }

  private detail<Task extends Named>(
    tx: Transaction,
    tasks: readonly Task[],
    message: string,
    factsOf: (task: Task) => object,
  ): void {
    if (!this.isDetailed || tasks.length === 0) return;
    tx.afterCommit(() => {
      for (const task of tasks) this.logger.debug({ ...nameOf(task), ...factsOf(task) }, message);
    });
  }

  /** Logs at the usual level within the budget; the next line has the number of lines that were left out. */
  private tell(facts: object, message: string): void {
    const suppressed = this.suppressed.get(message);
    if (this.isDetailed || this.news.take()) {
      this.suppressed.delete(message);
      this.logger.log({ ...facts, ...(suppressed === undefined ? {} : { suppressed }) }, message);
    } else this.suppressed.set(message, (suppressed ?? 0) + 1);
  }
}

/** Builds the fields of a line. `kind` is one of the registry's, so no field contains a client's text. */
const nameOf = ({ id, kind, traceparent }: Named) => ({
  task_id: id,
  kind,
  trace_id: parseTraceparent(traceparent)?.traceId,
});
