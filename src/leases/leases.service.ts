import { setImmediate as nextTurn } from 'node:timers/promises';
import { Inject, Injectable } from '@nestjs/common';
import type { AttemptOutcome } from '../agents/agent.entity';
import { AgentKinds, type Capacities } from '../agents/agent-kinds';
import { AgentOutcomes, type EndedAttempt } from '../agents/agent-outcomes';
import { AgentsService } from '../agents/agents.service';
import { Budgets } from '../agents/budgets';
import { Clock } from '../clock';
import { Database } from '../database/database';
import { Idempotency, type IdempotentCall } from '../database/idempotency';
import type { Statements, Transaction } from '../database/statements';
import { fail } from '../errors';
import type { AgentIdentity } from '../http/control-plane-request';
import { Continuity, type Interruption } from '../scheduling/continuity';
import { SETTINGS, type Settings } from '../settings';
import { parseTraceparent, type TraceContext } from '../tracing';
import { AttemptTraces, type EndedLease } from './attempt-traces';
import { backoffMs } from './backoff';
import { shareOut } from './claim-shares';
import { ClaimWaiters } from './claim-waiters';
import { messageOf } from './ended-attempts';
import type { LeaseState } from './lease.entity';
import { LeaseMetrics } from './lease-metrics';
import {
  type ClaimRequest,
  type ClaimResponse,
  type ExtendRequest,
  type ExtendResponse,
  judgeReport,
  type LeaseGrant,
  type RejectedReport,
  type ReportRequest,
  type ReportResponse,
  textOfObservations,
} from './leases.dto';
import { QueueDepth } from './queue-depth';
import type { Outcome, Standing } from './result.entity';
import type { TaskEntity, TaskReason, TaskState } from './task.entity';
import { type TakenReport, TaskKinds } from './task-kinds';
import { TaskLog } from './task-log';

/** The most leases that one claim grants. */
const MAX_CLAIM = 256;
const MAX_REPORTS = 1_000;
/** An extension is taken as at least so long, as far as a lease is: an agent that says less would lose what it works on. */
const MIN_EXTENSION_MS = 10_000;
/** How often a waiting claim looks by itself if other replicas can't wake it. */
const POLL_MS = 1_000;

/** A live lease with what is needed of its task to end it. */
interface HeldLease {
  id: number;
  task_id: number;
  kind: string;
  target: string;
  attempts: number;
  max_attempts: number;
  not_after: number | null;
  traceparent: string | null;
}

/** A lease of the caller as a report finds it. */
interface ReportedLease extends HeldLease {
  state: LeaseState;
  granted_at: number;
  reported: 'completed' | 'cancelled' | null;
  outcome: Outcome | null;
}

/** A lease that is to end. */
interface Ending {
  readonly id: number;
  readonly state: LeaseState;
  readonly outcome?: Outcome | null;
  readonly agentTrace?: TraceContext | undefined;
  readonly lease: Pick<HeldLease, 'task_id' | 'kind' | 'attempts' | 'traceparent'>;
}

/** What a task becomes when its lease ends. */
interface TaskEnd {
  id: number;
  kind: string;
  target: string;
  traceparent: string | null;
  to: TaskState;
  attempts: number;
  run_at: number | null;
  reason: TaskReason | null;
  /** Null if it did not end by itself. */
  attempt: EndedAttempt | null;
}

/** A task whose attempt completed it, and the agent said nothing of an error. */
type PlainEnd = TaskEnd & { readonly attempt: EndedAttempt };

const isPlain = (end: TaskEnd): end is PlainEnd => end.to === 'completed' && end.attempt?.message === null;

/** A result on its way into the table. */
interface StoredResult {
  task_id: number;
  lease_id: number;
  standing: Standing;
  report: 'completed' | 'cancelled';
  outcome: Outcome | null;
  /** JSON. */
  observations: string;
}

/** Owns leases and results: who works on what, until when, and what came of it. The lease's id is the fence. */
@Injectable()
export class LeasesService {
  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly continuity: Continuity,
    private readonly agents: AgentsService,
    private readonly agentKinds: AgentKinds,
    private readonly budgets: Budgets,
    private readonly kinds: TaskKinds,
    private readonly depth: QueueDepth,
    private readonly waiters: ClaimWaiters,
    private readonly idempotency: Idempotency,
    private readonly metrics: LeaseMetrics,
    private readonly traces: AttemptTraces,
    private readonly log: TaskLog,
    private readonly outcomes: AgentOutcomes,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    continuity.onInterruption((tx, interruption) => this.adjustDeadlines(tx, interruption));
    agents.onDeactivated((tx, agentIds) => this.revokeHeldBy(tx, agentIds));
    agents.onChanged((agentId) => this.waiters.wakeAgent(agentId));
    agents.countLeasesWith((statements, agentIds) => this.countHeldBy(statements, agentIds));
  }

  /**
   * Grants leases on the best queued tasks of the kinds asked for: of each kind as many as the agent may hold besides those that
   * it holds, at most 256 in all. Waits up to `wait_ms` for some. A caller that has hung up gets none.
   * With a key, the same call again gives the leases of the first that are still live.
   * @throws ERR_VALIDATION a kind that there is not
   * @throws ERR_CONFLICT the key was used with another body, or its first call still runs (retryable)
   * @throws ERR_UNAUTHORIZED the token was voided, also while the call waited
   * @throws ERR_FORBIDDEN the agent was taken out of service, also while the call waited
   */
  async claim(
    agent: AgentIdentity,
    request: ClaimRequest,
    key: string | undefined,
    hangUp: AbortSignal,
  ): Promise<ClaimResponse> {
    // One turn of the event loop: the end of a caller that has hung up arrives right behind its request.
    await nextTurn();
    const capacities = Object.entries(request.capacities).sort(([a], [b]) => (a < b ? -1 : 1));
    this.kinds.checkKnown(capacities.map(([kind]) => kind));
    const waitMs = request.wait_ms ?? 0;
    if (key === undefined) return this.claimOrWait(agent, capacities, waitMs, undefined, hangUp);
    const call = this.idempotency.call(`claim:${agent.id}`, key, { capacities, waitMs });
    return this.idempotency.alone(call, () => this.claimOrWait(agent, capacities, waitMs, call, hangUp));
  }

  /**
   * Moves deadlines to now + `extend_by_ms` (taken as 10 s at least and the lease duration at most), never nearer than they
   * were and never past the lease's lifetime. What is not a live lease of the caller is listed as revoked.
   * @throws ERR_UNAUTHORIZED the token was voided meanwhile
   * @throws ERR_FORBIDDEN the agent was taken out of service
   */
  extend(agent: AgentIdentity, request: ExtendRequest): Promise<ExtendResponse> {
    // The lease duration counts if it is below the least extension.
    const byMs = Math.min(Math.max(request.extend_by_ms, MIN_EXTENSION_MS), this.settings.leaseDurationMs);
    return this.database.write(async (tx) => {
      await this.agents.requireInService(tx, agent);
      const { now } = tx;
      const rows = await tx.rows<{ id: number; deadline_at: number }>(
        `UPDATE leases
         SET deadline_at = ${tx.dialect.greatest('deadline_at', tx.dialect.least('$3', 'lifetime_ends_at'))}
         WHERE ${tx.dialect.isAmong('id', '$1')} AND agent_id = $2 AND state = 'active'
         RETURNING id, deadline_at`,
        JSON.stringify(request.lease_ids),
        agent.id,
        now + byMs,
      );
      const deadlines = new Map(rows.map((row) => [row.id, row.deadline_at]));
      const answer: ExtendResponse = { outcomes: [], revoked: [] };
      for (const id of request.lease_ids) {
        const deadlineAt = deadlines.get(id);
        if (deadlineAt === undefined) answer.revoked.push(id);
        else answer.outcomes.push({ lease_id: id, new_deadline_ms: Math.max(0, deadlineAt - now) });
      }
      this.metrics.countExtended(tx, rows.length);
      return answer;
    });
  }

  /**
   * Takes what came of leases: a completed one closes its task, a cancelled one gives it back. What comes too late is
   * kept as evidence and changes nothing; the same again is acknowledged again. Each report is judged alone: one that is not
   * valid is rejected, and its lease stays live.
   * @throws ERR_VALIDATION more than 1,000 reports
   * @throws ERR_UNAVAILABLE it brings observations, and the disk is nearly full
   * @throws ERR_UNAUTHORIZED the token was voided meanwhile
   * @throws ERR_FORBIDDEN the agent was taken out of service
   * @throws ERR_RATE_LIMITED the agent has stored as many observations as it may in a day; nothing of the report is taken
   */
  report(agent: AgentIdentity, request: ReportRequest): Promise<ReportResponse> {
    if (request.completed.length + request.cancelled.length > MAX_REPORTS)
      throw fail('ERR_VALIDATION', {
        cancelled: `must hold, with completed, at most ${MAX_REPORTS} reports`,
      });
    const judged = (['completed', 'cancelled'] as const).flatMap((as) =>
      request[as].map((item, i) => ({ as, item: judgeReport(item, `${as}.${i}`) })),
    );
    if (judged.some(({ item }) => !('reason' in item) && item.observations?.length))
      this.database.requireSpace();
    const { id: agentId } = agent;
    return this.database.write(async (tx) => {
      await this.agents.requireInService(tx, agent);
      const { now } = tx;
      const leases = await this.findReported(
        tx,
        agentId,
        judged.flatMap(({ item }) => ('reason' in item ? [] : [item.lease_id])),
      );
      const ends: TaskEnd[] = [];
      const ended: (Ending & { state: 'completed' | 'cancelled'; lease: ReportedLease })[] = [];
      const results: StoredResult[] = [];
      const rejected: RejectedReport[] = [];
      const taken: Omit<TakenReport, 'spec'>[] = [];
      for (const { item, as } of judged) {
        if ('reason' in item) {
          rejected.push(item);
          continue;
        }
        const observations = item.observations ?? [];
        const outcome = item.outcome ?? null;
        const lease = leases.get(item.lease_id);
        if (!lease) {
          rejected.push({ lease_id: item.lease_id, reason: 'unknown' });
          continue;
        }
        const keep = (standing: Standing) => {
          // A later report on the same lease in this call finds it as in a call of its own.
          Object.assign(lease, { reported: as, outcome });
          results.push({
            task_id: lease.task_id,
            lease_id: lease.id,
            standing,
            report: as,
            outcome,
            observations: textOfObservations(observations),
          });
        };
        if (lease.state === 'active') {
          ended.push({
            id: lease.id,
            state: as,
            outcome,
            agentTrace: parseTraceparent(item.traceparent),
            lease,
          });
          lease.state = as;
          const endedAs = as === 'completed' ? (outcome ?? 'unsaid') : as;
          ends.push({
            ...(as === 'completed' ? completed(lease) : this.givenBack(lease, now)),
            attempt: attemptOf(agentId, lease, endedAs, endedAs === 'success' ? [] : observations),
          });
          keep(as === 'completed' ? 'final' : 'attempt');
          if (this.kinds.wantsReports(lease.kind)) {
            taken.push({
              lease_id: lease.id,
              task_id: lease.task_id,
              agent_id: agentId,
              target: lease.target,
              report: as,
              outcome,
              observations: observations.map(({ name, value, unit }) => ({ name, value, unit })),
              received_at: now,
            });
          }
        } else if (lease.state === 'expired' || lease.state === 'revoked') {
          rejected.push({ lease_id: lease.id, reason: lease.state });
          if (lease.reported === null) keep('late');
        } else if (lease.reported !== as || lease.outcome !== outcome) {
          rejected.push({ lease_id: lease.id, reason: 'conflict' });
        }
      }
      await this.endLeases(tx, ended, now);
      await this.storeResults(tx, agentId, results, now);
      await this.endAttempts(tx, ends, now);
      await this.tellKinds(tx, taken);
      this.metrics.countReported(
        tx,
        ended.map(({ state, lease: { kind, outcome, granted_at } }) => ({
          ...{ kind, as: state, outcome },
          heldMs: now - granted_at,
        })),
        rejected,
      );
      const acknowledged = judged.length - rejected.length;
      return rejected.length > 0 ? { acknowledged, rejected } : { acknowledged };
    });
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
      const { now } = tx;
      const leases = await tx.rows<HeldLease & { agent_id: number }>(
        `${SELECT_HELD} WHERE l.state = 'active' AND l.deadline_at <= $1 ORDER BY l.deadline_at, l.id LIMIT $2
         ${tx.dialect.skipLocked('l', 't')}`,
        now,
        limit,
      );
      await this.endLeases(
        tx,
        leases.map((lease) => ({ id: lease.id, state: 'expired', lease })),
        now,
      );
      await this.endAttempts(
        tx,
        leases.map((lease) => ({
          ...this.givenBack(lease, now),
          attempt: attemptOf(lease.agent_id, lease, 'expired', []),
        })),
        now,
      );
      this.metrics.countExpired(tx, leases);
      return leases.length;
    });
  }

  /** Whether a lease's deadline has passed. */
  async anyOverdue(statements: Statements): Promise<boolean> {
    const row = await statements.first(
      `SELECT id FROM leases WHERE state = 'active' AND deadline_at <= $1 ORDER BY deadline_at LIMIT 1`,
      this.clock.now(),
    );
    return row !== undefined;
  }

  /**
   * After an interruption every live lease gets one more duration, for its holder could not reach a server before. If the
   * clock was set back, deadlines lie as far ahead as they did before, and no further.
   */
  private async adjustDeadlines(tx: Transaction, { now, lastSeen }: Interruption): Promise<void> {
    await tx.run(
      `UPDATE leases SET deadline_at = ${tx.dialect.greatest('$1', 'deadline_at + $2')}, lifetime_ends_at = lifetime_ends_at + $2
       WHERE state = 'active' AND (deadline_at < $1 OR $2 < 0)`,
      now + this.settings.leaseDurationMs,
      Math.min(0, now - lastSeen),
    );
  }

  /** Revokes live leases without touching their tasks; their holders' next extends list them. */
  async revoke(
    tx: Transaction,
    leases: readonly { id: number; task: Pick<TaskEntity, 'id' | 'kind' | 'attempts' | 'traceparent'> }[],
  ): Promise<void> {
    await this.endLeases(
      tx,
      leases.map(({ id, task }) => ({ id, state: 'revoked', lease: { ...task, task_id: task.id } })),
      tx.now,
    );
  }

  /**
   * Locks the live leases of tasks; before the tasks, as everybody does.
   * @returns which are locked; undefined if nobody else could change them anyway
   */
  async lockLive(tx: Transaction, taskIds: readonly number[]): Promise<Set<number> | undefined> {
    if (!tx.dialect.concurrent) return undefined;
    const rows = await tx.rows<{ id: number }>(
      `SELECT id FROM leases WHERE ${tx.dialect.isAmong('task_id', '$1')} AND state = 'active'
       ORDER BY id ${tx.dialect.forUpdate()}`,
      JSON.stringify(taskIds),
    );
    return new Set(rows.map(({ id }) => id));
  }

  private async claimOrWait(
    agent: AgentIdentity,
    capacities: Capacities,
    waitMs: number,
    call: IdempotentCall | undefined,
    hangUp: AbortSignal,
  ): Promise<ClaimResponse> {
    const wanted = capacities.filter(([, capacity]) => capacity > 0);
    if (wanted.length === 0) {
      await this.learnThatNone(agent, capacities);
      // There is nothing to look for; but a key that was used for something must not be taken for unused.
      if (call) await this.database.read((statements) => this.idempotency.find(statements, call));
      return { leases: [] };
    }
    const until = performance.now() + waitMs;
    const kinds = wanted.map(([kind]) => kind);
    const waiter = this.waiters.enlist(kinds, agent.id);
    try {
      for (;;) {
        const look = await this.claimNow(agent, capacities, wanted, call, hangUp);
        if (look.result === 'answer') {
          waiter.served();
          return { leases: [...look.leases] };
        }
        // Tasks of kinds that it may not have more of are for others.
        if (look.result === 'draining') waiter.stepAside();
        else waiter.standFor(look.open);
        waiter.served();
        const leftMs = until - performance.now();
        // Woken meanwhile or not: who asked not to wait any longer gets no other look, and its wake-up goes on to the next.
        if (leftMs <= 0) return { leases: [] };
        // Nobody tells of other replicas' work while their word does not arrive, and never of leases that end there.
        const isFull = look.result === 'nothing' && look.open.length < kinds.length;
        const isTold = this.database.isListening && !(isFull && this.database.isShared);
        const sleepMs = isTold ? leftMs : Math.min(leftMs, POLL_MS);
        if (
          !(await waiter.woken(sleepMs, hangUp)) &&
          (sleepMs === leftMs || hangUp.aborted || waiter.isReleased)
        )
          return { leases: [] };
        waiter.standFor(kinds);
      }
    } finally {
      waiter.leave();
    }
  }

  /** Takes in that a claim asks for none of the kinds that it names. */
  private async learnThatNone(agent: AgentIdentity, capacities: Capacities): Promise<void> {
    if (!this.agentKinds.isNews(agent.id, capacities, this.clock.now())) return;
    await this.database.write(async (tx) => {
      // An agent that is not in service gets the same answer, and nothing is learnt of it.
      const [refusal] = await this.agents.refusals(tx, [agent]);
      if (!refusal) await this.agentKinds.learn(tx, [{ agentId: agent.id, capacities }]);
    });
  }

  /** One look for tasks, in one transaction. */
  private claimNow(
    agent: AgentIdentity,
    capacities: Capacities,
    wanted: readonly KindBudget[],
    call: IdempotentCall | undefined,
    hangUp: AbortSignal,
  ): Promise<Look> {
    const { id: agentId } = agent;
    return this.database
      .write(async (tx): Promise<Look> => {
        // What nobody reads the answer of would be lost until it expires.
        if (hangUp.aborted) return NO_LEASES;
        // Alone: of two claims of an agent at once the second must see what the first was granted.
        const { takesWork, hadLease } = await this.agents.requireInService(tx, agent, 'alone');
        const { now } = tx;
        await this.agentKinds.learn(tx, [{ agentId, capacities }]);
        if (call) {
          const before = await this.idempotency.find<number[]>(tx, call);
          // If they have all ended, there is nothing more to wait for.
          if (before) return { result: 'answer', leases: await this.findLive(tx, agentId, before, now) };
        }
        if (!takesWork) return { result: 'draining' };
        const { budgets, room } = await this.budgetsOf(tx, agentId, wanted);
        if (budgets.length === 0) return { result: 'nothing', open: [] };
        const limit = Math.min(room, MAX_CLAIM);
        const candidates = await this.findBest(tx, budgets, limit, now);
        if (candidates.length === 0) return { result: 'nothing', open: budgets.map(([kind]) => kind) };
        const tasks = withinShares(candidates, budgets, limit);
        // What was locked and not taken is free again with the commit; a claim meanwhile may have passed over it.
        if (tx.dialect.concurrent && tasks.length < candidates.length)
          this.depth.announceReady(
            tx,
            budgets.map(([kind]) => kind),
            candidates.length - tasks.length,
          );
        if (!hadLease) await this.agents.noteFirstLeases(tx, [agentId]);
        const leases = await this.lease(tx, agentId, tasks, now);
        if (call) {
          await this.idempotency.store(
            tx,
            call,
            leases.map((lease) => lease.lease_id),
          );
        }
        // Where the statements took turns of the event loop, it may have hung up meanwhile.
        if (hangUp.aborted) throw new HungUp();
        return { result: 'answer', leases };
      })
      .catch((error: unknown) => {
        if (error instanceof HungUp) return NO_LEASES;
        throw error;
      });
  }

  /** How many leases of each kind the agent may get besides those that it holds, and how many in all. */
  private async budgetsOf(
    tx: Transaction,
    agentId: number,
    wanted: readonly KindBudget[],
  ): Promise<{ budgets: KindBudget[]; room: number }> {
    const rows = await tx.rows<{ kind: string; count: number }>(
      `SELECT t.kind, count(*) AS count FROM leases l JOIN tasks t ON t.id = l.task_id
       WHERE l.agent_id = $1 AND l.state = 'active' GROUP BY t.kind`,
      agentId,
    );
    const held = new Map(rows.map((row) => [row.kind, row.count]));
    const room = this.settings.maxLeasesPerAgent - rows.reduce((sum, { count }) => sum + count, 0);
    const budgets = wanted
      .map(([kind, capacity]): KindBudget => [kind, capacity - (held.get(kind) ?? 0)])
      .filter(([, budget]) => budget > 0);
    return room > 0 ? { budgets, room } : { budgets: [], room: 0 };
  }

  /** The best queued tasks of each kind, best first: as many as its budget, or a claim, may have. */
  private findBest(
    tx: Transaction,
    budgets: readonly KindBudget[],
    limit: number,
    now: number,
  ): Promise<CandidateTask[]> {
    const values: (string | number)[] = [now];
    const perKind = budgets.map(([kind, budget]) => {
      values.push(kind, Math.min(budget, limit));
      // A derived table each: a LIMIT must not reach across the union.
      return `SELECT id, kind, target, spec, priority, updated_at, attempts, traceparent
        FROM (SELECT id, kind, target, spec, priority, updated_at, attempts, traceparent FROM tasks
        WHERE state = 'queued' AND kind = $${values.length - 1} AND (not_after IS NULL OR not_after > $1)
        ORDER BY priority DESC, id LIMIT $${values.length} ${tx.dialect.skipLocked()}) AS k${values.length}`;
    });
    return tx.rows<CandidateTask>(`${perKind.join(' UNION ALL ')} ORDER BY priority DESC, id`, ...values);
  }

  private async lease(
    tx: Transaction,
    agentId: number,
    tasks: readonly CandidateTask[],
    now: number,
  ): Promise<LeaseGrant[]> {
    const { leaseDurationMs, leaseLifetimeMs } = this.settings;
    const ids = JSON.stringify(tasks.map((task) => task.id));
    const rows = await tx.rows<{ id: number; task_id: number }>(
      `INSERT INTO leases (task_id, agent_id, attempt, state, granted_at, deadline_at, lifetime_ends_at)
       SELECT id, $2, attempts + 1, 'active', $3, $4, $5 FROM tasks WHERE ${tx.dialect.isAmong('id', '$1')}
       RETURNING id, task_id`,
      ids,
      agentId,
      now,
      now + leaseDurationMs,
      now + leaseLifetimeMs,
    );
    await tx.run(
      `UPDATE tasks SET state = 'leased', attempts = attempts + 1, updated_at = $2,
         lease_id = (SELECT l.id FROM leases l WHERE l.task_id = tasks.id AND l.state = 'active')
       WHERE ${tx.dialect.isAmong('id', '$1')}`,
      ids,
      now,
    );
    await this.depth.shift(
      tx,
      tasks.map(({ kind, target }) => ({ kind, target, from: 'queued', to: 'leased' })),
    );
    this.metrics.countGranted(
      tx,
      // What becomes ready is changed then; waiting for its window to have room changes nothing in its row.
      tasks.map(({ kind, updated_at }) => ({ kind, readyAt: updated_at })),
    );
    const leaseOf = new Map(rows.map((row) => [row.task_id, row.id]));
    this.log.leased(
      tx,
      agentId,
      tasks.map(({ id, kind, traceparent, attempts }) => ({
        ...{ id, kind, traceparent, leaseId: leaseOf.get(id) as number, attempt: attempts + 1 },
      })),
    );
    return tasks.map((task) =>
      this.grantOf({ ...task, lease_id: leaseOf.get(task.id) as number }, leaseDurationMs),
    );
  }

  private grantOf(
    task: Pick<CandidateTask, 'id' | 'kind' | 'spec' | 'traceparent'> & { lease_id: number },
    leftMs: number,
  ): LeaseGrant {
    const traceparent = this.traces.traceparentOf(task.traceparent, task.lease_id);
    return {
      lease_id: task.lease_id,
      task_id: task.id,
      kind: task.kind,
      lease_until_ms: leftMs,
      spec: JSON.parse(task.spec),
      ...(traceparent === undefined ? {} : { traceparent }),
    };
  }

  /** Those of the leases that are still live, as they would be granted now. */
  private async findLive(
    tx: Transaction,
    agentId: number,
    leaseIds: readonly number[],
    now: number,
  ): Promise<LeaseGrant[]> {
    const rows = await tx.rows<{
      id: number;
      lease_id: number;
      kind: string;
      spec: string;
      traceparent: string | null;
      deadline_at: number;
    }>(
      `SELECT l.id AS lease_id, t.id, t.kind, t.spec, t.traceparent, l.deadline_at FROM leases l JOIN tasks t ON t.id = l.task_id
       WHERE ${tx.dialect.isAmong('l.id', '$1')} AND l.agent_id = $2 AND l.state = 'active'`,
      JSON.stringify(leaseIds),
      agentId,
    );
    const byId = new Map(rows.map((row) => [row.lease_id, row]));
    return leaseIds.flatMap((id) => {
      const row = byId.get(id);
      return row ? [this.grantOf(row, Math.max(0, row.deadline_at - now))] : [];
    });
  }

  private async findReported(
    tx: Transaction,
    agentId: number,
    leaseIds: readonly number[],
  ): Promise<Map<number, ReportedLease>> {
    if (leaseIds.length === 0) return new Map();
    if (tx.dialect.concurrent) {
      // Before they are read: of a row that had to be waited for, what was joined to it would be that of before. Their
      // tasks need no lock: nobody changes one that is leased without the lease, and one that is not stays as it is here.
      await tx.rows(
        `SELECT id FROM leases WHERE ${tx.dialect.isAmong('id', '$1')} AND agent_id = $2
         ORDER BY id ${tx.dialect.forUpdate()}`,
        JSON.stringify(leaseIds),
        agentId,
      );
    }
    // A foreign lease is not found, so it looks the same as one that there is not.
    const rows = await tx.rows<ReportedLease>(
      `SELECT l.id, l.state, l.granted_at, l.task_id, t.kind, t.target, t.attempts, t.max_attempts, t.not_after,
         t.traceparent, r.report AS reported, r.outcome
       FROM leases l JOIN tasks t ON t.id = l.task_id LEFT JOIN results r ON r.lease_id = l.id
       WHERE ${tx.dialect.isAmong('l.id', '$1')} AND l.agent_id = $2
       ORDER BY l.id`,
      JSON.stringify(leaseIds),
      agentId,
    );
    return new Map(rows.map((row) => [row.id, row]));
  }

  private async endLeases(tx: Transaction, leases: readonly Ending[], now: number): Promise<void> {
    const holders = new Set<number>();
    const rowOf = new Map<number, { agent_id: number; granted_at: number }>();
    for (const [state, ended] of Map.groupBy(leases, (lease) => lease.state)) {
      const rows = await tx.rows<{ id: number; agent_id: number; granted_at: number }>(
        `UPDATE leases SET state = $2, ended_at = $3 WHERE ${tx.dialect.isAmong('id', '$1')} AND state = 'active'
         RETURNING id, agent_id, granted_at`,
        JSON.stringify(ended.map(({ id }) => id)),
        state,
        now,
      );
      for (const row of rows) {
        holders.add(row.agent_id);
        rowOf.set(row.id, row);
      }
    }
    if (rowOf.size !== leases.length)
      throw new Error(`${leases.length} leases were to end, ${rowOf.size} were active`);
    // Not announced to other replicas: a claim there that waits for room looks by itself.
    tx.afterCommit(() => {
      for (const agentId of holders) this.waiters.wakeAgent(agentId);
    });
    this.metrics.countRevoked(tx, leases.filter(({ state }) => state === 'revoked').length);
    const endings = leases.map(({ id, state, outcome = null, agentTrace, lease }): EndedLease => {
      const { agent_id: agentId, granted_at: grantedAt } = rowOf.get(id) as {
        agent_id: number;
        granted_at: number;
      };
      const { task_id: taskId, kind, attempts: attempt, traceparent } = lease;
      return {
        ...{ id, taskId, agentId, kind, attempt, traceparent, state, outcome, grantedAt, agentTrace },
      };
    });
    this.log.ended(tx, endings);
    await this.traces.record(tx, endings);
  }

  private async storeResults(
    tx: Transaction,
    agentId: number,
    results: readonly StoredResult[],
    now: number,
  ): Promise<void> {
    if (results.length === 0) return;
    await this.budgets.require(tx, 'observations', agentId, observedBytes(results));
    await tx.run(
      `INSERT INTO results (task_id, lease_id, agent_id, standing, report, outcome, observations, received_at)
       SELECT task_id, lease_id, $2, standing, report, outcome, observations, $3
       FROM ${tx.dialect.rowset('$1', {
         task_id: 'integer',
         lease_id: 'integer',
         standing: 'text',
         report: 'text',
         outcome: 'text',
         observations: 'text',
       })} AS r`,
      JSON.stringify(results),
      agentId,
      now,
    );
  }

  /** Tells the kinds that want it of reports that took effect. */
  private async tellKinds(tx: Transaction, taken: readonly Omit<TakenReport, 'spec'>[]): Promise<void> {
    if (taken.length === 0) return;
    const rows = await tx.rows<{ id: number; kind: string; spec: string }>(
      `SELECT id, kind, spec FROM tasks WHERE ${tx.dialect.isAmong('id', '$1')}`,
      JSON.stringify(taken.map(({ task_id }) => task_id)),
    );
    const tasks = new Map(rows.map((row) => [row.id, row]));
    const byKind = Map.groupBy(taken, ({ task_id }) => tasks.get(task_id)?.kind as string);
    for (const [kind, reports] of byKind) {
      const specOf = ({ task_id }: { task_id: number }) => JSON.parse(tasks.get(task_id)?.spec as string);
      await this.kinds.tell(
        tx,
        kind,
        reports.map((report) => ({ ...report, spec: specOf(report) })),
      );
    }
  }

  /** Takes leased tasks to what they become, and the counters with them. */
  private async endAttempts(tx: Transaction, ends: readonly TaskEnd[], now: number): Promise<void> {
    if (ends.length === 0) return;
    const plain = ends.filter(isPlain);
    // Most tasks of a report end alike: one value for all costs less than a row for each.
    for (const alike of Map.groupBy(plain, ({ attempt }) => `${attempt.agentId} ${attempt.outcome}`).values())
      await this.completeAlike(tx, alike, now);
    await this.endEach(
      tx,
      ends.filter((end) => !isPlain(end)),
      now,
    );
    await this.depth.shift(
      tx,
      ends.map(({ kind, target, to }) => ({ kind, target, from: 'leased', to })),
    );
    this.metrics.countDead(tx, ends);
    this.log.dead(
      tx,
      ends.filter(({ to }) => to === 'dead'),
    );
    this.outcomes.count(
      tx,
      ends.flatMap(({ attempt }) => attempt ?? []),
    );
  }

  /** Completes tasks whose attempts the same agent ended with the same outcome and without a word on it. */
  private async completeAlike(tx: Transaction, ends: readonly PlainEnd[], now: number): Promise<void> {
    const [{ attempt }] = ends as [PlainEnd];
    await tx.run(
      `UPDATE tasks SET state = 'completed', reason = NULL, lease_id = NULL, updated_at = $2, finished_at = $2,
         last_outcome = $3, last_agent_id = $4, last_error = NULL, last_ended_at = $2
       WHERE ${tx.dialect.isAmong('id', '$1')}`,
      JSON.stringify(ends.map(({ id }) => id)),
      now,
      attempt.outcome,
      attempt.agentId,
    );
  }

  private async endEach(tx: Transaction, ends: readonly TaskEnd[], now: number): Promise<void> {
    if (ends.length === 0) return;
    await tx.run(
      `UPDATE tasks SET state = r.state, attempts = r.attempts, run_at = coalesce(r.run_at, tasks.run_at), reason = r.reason, lease_id = NULL,
         updated_at = $2, finished_at = CASE WHEN r.state IN ('completed', 'dead') THEN CAST($2 AS bigint) END,
         last_outcome = coalesce(r.outcome, tasks.last_outcome), last_agent_id = coalesce(r.agent_id, tasks.last_agent_id),
         last_error = CASE WHEN r.outcome IS NULL THEN tasks.last_error ELSE r.error END,
         last_ended_at = CASE WHEN r.outcome IS NULL THEN tasks.last_ended_at ELSE CAST($2 AS bigint) END
       FROM ${tx.dialect.rowset('$1', {
         id: 'integer',
         state: 'text',
         attempts: 'integer',
         run_at: 'integer',
         reason: 'text',
         outcome: 'text',
         agent_id: 'integer',
         error: 'text',
       })} AS r
       WHERE tasks.id = r.id AND ${tx.dialect.prefilterByList('tasks.id', '$3')}`,
      JSON.stringify(
        ends.map(({ id, to, attempts, run_at, reason, attempt }) => ({
          ...{ id, state: to, attempts, run_at, reason },
          ...{ outcome: attempt?.outcome, agent_id: attempt?.agentId, error: attempt?.message },
        })),
      ),
      now,
      JSON.stringify(ends.map(({ id }) => id)),
    );
  }

  /** What a task becomes whose attempt failed: scheduled for the next one, or dead. */
  private givenBack(lease: HeldLease, now: number): Omit<TaskEnd, 'attempt'> {
    const { task_id: id, kind, target, attempts, traceparent } = lease;
    const task = { id, kind, target, attempts, traceparent };
    if (attempts >= lease.max_attempts) return { ...task, to: 'dead', run_at: null, reason: 'max_attempts' };
    const runAt = now + backoffMs(attempts, this.settings.retryBackoffMs, this.settings.retryBackoffMaxMs);
    // Nothing could begin before the task's time is up: it is over now, not later.
    if (lease.not_after !== null && runAt >= lease.not_after) {
      return { ...task, to: 'dead', run_at: null, reason: 'not_after' };
    }
    return { ...task, to: 'scheduled', run_at: runAt, reason: null };
  }

  /** The agents' leases are revoked; their tasks go back at once, and the attempts that were cut off do not count. */
  private async revokeHeldBy(tx: Transaction, agentIds: readonly number[]): Promise<void> {
    const { now } = tx;
    const leases = await tx.rows<HeldLease>(
      `${SELECT_HELD} WHERE l.state = 'active' AND ${tx.dialect.isAmong('l.agent_id', '$1')}
       ORDER BY l.id ${tx.dialect.forUpdate('l', 't')}`,
      JSON.stringify(agentIds),
    );
    if (leases.length === 0) return;
    await this.endLeases(
      tx,
      leases.map((lease) => ({ id: lease.id, state: 'revoked', lease })),
      now,
    );
    await this.endAttempts(
      tx,
      // A leased task holds a slot of its windows already, so it need not ask for one; a lowered ceiling may take it.
      leases.map(({ task_id: id, kind, target, attempts, traceparent }) => ({
        id,
        kind,
        target,
        traceparent,
        to: 'queued',
        attempts: attempts - 1,
        run_at: null,
        reason: null,
        attempt: null,
      })),
      now,
    );
  }

  private async countHeldBy(
    statements: Statements,
    agentIds: readonly number[],
  ): Promise<Map<number, number>> {
    const rows = await statements.rows<{ agent_id: number; count: number }>(
      `SELECT agent_id, count(*) AS count FROM leases
       WHERE state = 'active' AND ${statements.dialect.isAmong('agent_id', '$1')} GROUP BY agent_id`,
      JSON.stringify(agentIds),
    );
    return new Map(rows.map((row) => [row.agent_id, row.count]));
  }
}

/** What results need of an agent's budget: those without observations need nothing. */
function observedBytes(results: readonly StoredResult[]): number {
  let bytes = 0;
  for (const { observations } of results) if (observations !== '[]') bytes += Buffer.byteLength(observations);
  return bytes;
}

interface CandidateTask {
  id: number;
  kind: string;
  target: string;
  spec: string;
  /** When it became ready to be claimed. */
  updated_at: number;
  /** Those begun before. */
  attempts: number;
  traceparent: string | null;
}

/** A kind and how many leases of it an agent may have. */
type KindBudget = readonly [kind: string, count: number];

/** What one look for tasks came to; `open` are the kinds that the agent may be granted more of. */
type Look =
  | { result: 'answer'; leases: readonly LeaseGrant[] }
  | { result: 'draining' }
  | { result: 'nothing'; open: readonly string[] };

/** Undoes a claim whose caller is gone. */
class HungUp extends Error {}

const NO_LEASES: Look = { result: 'answer', leases: [] };

/** The tasks that a claim takes: of each kind its share, the best first. */
function withinShares(
  candidates: readonly CandidateTask[],
  budgets: readonly KindBudget[],
  limit: number,
): readonly CandidateTask[] {
  if (candidates.length <= limit) return candidates;
  const available = Map.groupBy(candidates, ({ kind }) => kind);
  const left = shareOut(
    budgets.map(([kind, asked]) => ({ kind, asked, available: available.get(kind)?.length ?? 0 })),
    limit,
  );
  return candidates.filter(({ kind }) => {
    const share = left.get(kind) ?? 0;
    left.set(kind, share - 1);
    return share > 0;
  });
}

const SELECT_HELD = `SELECT l.id, l.task_id, l.agent_id, t.kind, t.target, t.attempts, t.max_attempts, t.not_after, t.traceparent
  FROM leases l JOIN tasks t ON t.id = l.task_id`;

function completed({
  task_id: id,
  kind,
  target,
  attempts,
  traceparent,
}: HeldLease): Omit<TaskEnd, 'attempt'> {
  return { id, kind, target, traceparent, to: 'completed', attempts, run_at: null, reason: null };
}

/** How an attempt ended; for the agent's counts and the task. */
const attemptOf = (
  agentId: number,
  { task_id: taskId }: HeldLease,
  outcome: AttemptOutcome,
  observations: Parameters<typeof messageOf>[0],
): EndedAttempt => ({ agentId, taskId, outcome, message: messageOf(observations) });
