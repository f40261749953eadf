import { Inject, Injectable } from '@nestjs/common';
import { Interval } from '@nestjs/schedule';
import { AgentOutcomes, type EndedAttempt } from '../agents/agent-outcomes';
import { AgentsService } from '../agents/agents.service';
import { Clock } from '../clock';
import { ConcurrencyService } from '../concurrency/concurrency.service';
import { Database } from '../database/database';
import type { Statements, Transaction } from '../database/statements';
import { ClaimWaiters } from '../queue/claim-waiters';
import { QueueMaintainer } from '../queue/maintenance';
import { TaskLog } from '../queue/task-log';
import { type TaskChange, TaskTransitions, type TransitionTask } from '../queue/transitions';
import { Continuity, type Interruption } from '../scheduling/continuity';
import { JobRunner } from '../scheduling/job-runner';
import { SETTINGS, type Settings } from '../settings';
import type { TraceContext } from '../tracing';
import { AttemptTraces, type EndedLease } from './attempt-traces';
import { LeaseMetrics } from './lease-metrics';
import {
  adjustDeadlines,
  countHeldByKind,
  countInWindows,
  countLeasedByTarget,
  deleteLeasesOf,
  earliestDeadline,
  endLeases,
  type HeldLease,
  type LeaseEnd,
  lockHeldBy,
  lockLiveOf,
  lockOverdue,
} from './leases.queries';
import { OverdueSearch } from './overdue-search';
import { afterFailedAttempt } from './retries';

const MINUTE_MS = 60_000;

/** A live lease that is to end, and what its task becomes. */
export interface Ending {
  readonly lease: HeldLease;
  readonly end: LeaseEnd;
  readonly change: Omit<TaskChange, 'task' | 'from'>;
  readonly agentTrace?: TraceContext | undefined;
}

/**
 * Ends leases: those that are reported, those whose deadline has passed, and those that are revoked because their task was
 * cancelled or their agent taken out of service. Their tasks change in the same unit of work.
 */
@Injectable()
export class LeaseEndings {
  private readonly search: OverdueSearch;

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly continuity: Continuity,
    private readonly transitions: TaskTransitions,
    private readonly waiters: ClaimWaiters,
    private readonly metrics: LeaseMetrics,
    private readonly traces: AttemptTraces,
    private readonly log: TaskLog,
    private readonly outcomes: AgentOutcomes,
    private readonly jobs: JobRunner,
    agents: AgentsService,
    maintainer: QueueMaintainer,
    concurrency: ConcurrencyService,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    this.search = new OverdueSearch(settings.leaseDurationMs);
    jobs.declare('overdue-search');
    // After a failover to a standby that was behind, leases that had ended may be live again.
    database.onGap(() => this.search.reset());
    continuity.onInterruption((tx, interruption) => this.adjustDeadlines(tx, interruption));
    agents.onDeactivated({
      begin: (tx) => this.transitions.begin(tx),
      deactivate: (tx, agentIds) => this.revokeHeldBy(tx, agentIds),
    });
    agents.countLeasesWith(async (statements, agentIds) => {
      const held = new Map<number, number>();
      for (const { agent_id: id, count } of await countHeldByKind(
        statements,
        agentIds.map((agent_id) => ({ agent_id, from: 0 })),
      ))
        held.set(id, (held.get(id) ?? 0) + count);
      return held;
    });
    maintainer.addDueWork({
      isDue: (statements) => this.isAnyOverdue(statements),
      run: (limit) => this.expireOverdue(limit),
    });
    maintainer.onTasksDeleted(deleteLeasesOf);
    concurrency.countWith({ countLeased: countInWindows, countLeasedByTarget });
  }

  /**
   * Expires leases whose deadline has passed: their tasks go back, or are dead after the last attempt. Expires none while
   * an interruption of the service is not dealt with: their holders could not reach it.
   * @param limit how many at most
   * @returns how many
   */
  expireOverdue(limit: number): Promise<number> {
    return this.database.write(async (tx) => {
      if (!(await this.continuity.isUnbroken(tx))) return 0;
      await this.transitions.begin(tx);
      const leases = await lockOverdue(tx, this.search.start, limit);
      await this.end(
        tx,
        leases.map((lease) => ({
          lease,
          end: endOf(lease, 'expired', 'expired'),
          change: afterFailedAttempt(lease, tx.now, this.settings),
        })),
      );
      this.metrics.countExpired(tx, leases);
      return leases.length;
    });
  }

  /**
   * Revokes the live leases of tasks that an operator cancels, in the unit that cancels them; their holders' next extends list them.
   * @returns what they were
   */
  async revokeLiveOf(
    tx: Transaction,
    tasks: readonly { readonly id: number; readonly kind: string }[],
    isWanted: (lease: HeldLease) => boolean = () => true,
  ): Promise<HeldLease[]> {
    const leases = (await lockLiveOf(tx, tasks)).filter(isWanted);
    await this.endLeases(
      tx,
      leases.map((lease) => ({ lease, end: endOf(lease, 'revoked', 'revoked') })),
    );
    return leases;
  }

  /** Ends live leases that the unit has locked, and takes their tasks to what they become. */
  async end(tx: Transaction, endings: readonly Ending[]): Promise<void> {
    if (endings.length === 0) return;
    await Promise.all([
      this.endLeases(tx, endings),
      this.transitions.apply(
        tx,
        endings.map(({ lease, change }) => ({ task: taskOf(lease), from: 'leased', ...change })),
      ),
    ]);
    this.outcomes.count(
      tx,
      endings.flatMap(({ lease, end: { ending, error } }): EndedAttempt[] =>
        ending === 'revoked'
          ? []
          : [{ agentId: lease.agent_id, taskId: lease.task_id, outcome: ending, message: error }],
      ),
    );
  }

  private async endLeases(
    tx: Transaction,
    endings: readonly Pick<Ending, 'lease' | 'end' | 'agentTrace'>[],
  ): Promise<void> {
    if (endings.length === 0) return;
    await endLeases(
      tx,
      endings.map(({ end }) => end),
    );
    // Not announced to other replicas: a claim there that waits for room looks by itself.
    const holders = new Set(endings.map(({ lease }) => lease.agent_id));
    tx.afterCommit(() => {
      for (const agentId of holders) this.waiters.wakeAgent(agentId);
    });
    this.metrics.countRevoked(tx, endings.filter(({ end }) => end.state === 'revoked').length);
    const ended = endings.map(({ lease, end, agentTrace }): EndedLease => {
      const {
        id,
        task_id: taskId,
        agent_id: agentId,
        kind,
        attempt,
        traceparent,
        granted_at: grantedAt,
      } = lease;
      const { state, outcome } = end;
      return {
        ...{ id, taskId, agentId, kind, attempt, traceparent, state, outcome, grantedAt },
        agentTrace,
      };
    });
    this.log.ended(tx, ended);
    await this.traces.record(tx, ended);
  }

  /**
   * Looks for a live lease with an earlier deadline than the tick expects, from the start: another replica, or this one
   * before a restart, may have had a shorter lease duration.
   */
  async searchAll(): Promise<void> {
    const earliest = await this.database.read((statements) => earliestDeadline(statements, 0));
    if (earliest !== undefined) this.search.reset(earliest);
  }

  @Interval('overdue-search', MINUTE_MS)
  protected searchOften(): Promise<void> {
    return this.jobs.run('overdue-search', MINUTE_MS, () => this.searchAll(), { everywhere: true });
  }

  /** Whether a live lease's deadline has passed. */
  private async isAnyOverdue(statements: Statements): Promise<boolean> {
    const now = this.clock.now();
    if (!this.search.begin(now)) return false;
    const { start } = this.search;
    const earliest = await earliestDeadline(statements, start);
    this.search.end(start, earliest);
    return earliest !== undefined && earliest <= now;
  }

  /**
   * After an interruption every live lease gets one more duration, for its holder could not reach a server before. If the
   * clock was set back, deadlines lie as far ahead as they did before, and no further.
   */
  private adjustDeadlines(tx: Transaction, { now, lastSeen }: Interruption): Promise<void> {
    return adjustDeadlines(tx, now + this.settings.leaseDurationMs, Math.min(0, now - lastSeen));
  }

  /** Revokes the agents' leases; their tasks are queued again at once, and the attempts that were cut off do not count. */
  private async revokeHeldBy(tx: Transaction, agentIds: readonly number[]): Promise<void> {
    const leases = await lockHeldBy(tx, agentIds);
    await this.end(
      tx,
      leases.map((lease) => ({ lease, end: endOf(lease, 'revoked', 'revoked'), change: { to: 'queued' } })),
    );
  }
}

/** The end of a lease of which nothing is reported. */
export const endOf = ({ id }: HeldLease, state: LeaseEnd['state'], ending: LeaseEnd['ending']): LeaseEnd => ({
  id,
  state,
  ending,
  report: null,
  outcome: null,
  observations: null,
  error: null,
  failure: null,
  rtt_ms: null,
});

const taskOf = ({
  task_id: id,
  kind,
  target,
  priority,
  not_after,
  unique_key,
  traceparent,
}: HeldLease): TransitionTask => ({
  ...{ id, kind, target, priority, not_after, unique_key, traceparent },
});
