import { Inject, Injectable } from '@nestjs/common';
import { AgentsService } from '../agents/agents.service';
import { Budgets } from '../agents/budgets';
import { Clock } from '../clock';
import { Database } from '../database/database';
import { Idempotency, type IdempotentCall } from '../database/idempotency';
import type { Statements, Transaction } from '../database/statements';
import { type ErrorDetails, fail } from '../errors';
import type { AgentIdentity } from '../http/decorators';
import { Continuity, type Interruption } from '../scheduling/continuity';
import { SETTINGS, type Settings } from '../settings';
import { backoffMs } from './backoff';
import { ClaimWaiters } from './claim-waiters';
import type { LeaseState } from './lease.entity';
import type {
  ClaimRequest,
  ClaimResponse,
  ExtendRequest,
  ExtendResponse,
  LeaseGrant,
  LeaseReport,
  RejectedReport,
  ReportRequest,
  ReportResponse,
} from './leases.dto';
import { QueueDepth } from './queue-depth';
import type { Outcome, Standing } from './result.entity';
import type { TaskReason, TaskState } from './task.entity';
import { type TakenReport, TaskKinds } from './task-kinds';

/** The most leases that one claim grants. */
const MAX_CLAIM = 256;
const MAX_REPORTS = 1_000;
const MIN_EXTENSION_MS = 1_000;
/** How often a waiting claim looks by itself where it can't be woken by other replicas. */
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
}

/** A lease of the caller as a report finds it. */
interface ReportedLease extends HeldLease {
  state: LeaseState;
  reported: 'completed' | 'cancelled' | null;
  outcome: Outcome | null;
}

/** What a task becomes when its lease ends. */
interface TaskEnd {
  id: number;
  kind: string;
  target: string;
  to: TaskState;
  attempts: number;
  run_at: number | null;
  reason: TaskReason | null;
}

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
    private readonly budgets: Budgets,
    private readonly kinds: TaskKinds,
    private readonly depth: QueueDepth,
    private readonly waiters: ClaimWaiters,
    private readonly idempotency: Idempotency,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    continuity.onInterruption((tx, interruption) => this.adjustDeadlines(tx, interruption));
    agents.onOut((tx, agentIds) => this.revokeHeldBy(tx, agentIds));
    agents.onChanged((agentId) => this.waiters.wakeAgent(agentId));
    agents.countLeasesWith((statements, agentIds) => this.countHeldBy(statements, agentIds));
  }

  /**
   * Grants leases on the best queued tasks of the kinds asked for, 256 at the most; waits up to `wait_ms` for some.
   * With a key, the same call again gives the leases of the first that are still live.
   * @throws ERR_VALIDATION a kind that there is not
   * @throws ERR_CONFLICT the key was used with another body, or its first call still runs (retryable)
   * @throws ERR_UNAUTHORIZED the token was voided, also while the call waited
   * @throws ERR_FORBIDDEN the agent was put out of service, also while the call waited
   */
  async claim(
    agent: AgentIdentity,
    request: ClaimRequest,
    key: string | undefined,
    hangUp: AbortSignal,
  ): Promise<ClaimResponse> {
    const capacities = Object.entries(request.capacities).sort(([a], [b]) => (a < b ? -1 : 1));
    this.kinds.checkKnown(capacities.map(([kind]) => kind));
    const wanted = capacities.filter(([, capacity]) => capacity > 0);
    const waitMs = request.wait_ms ?? 0;
    if (key === undefined) return this.claimOrWait(agent, wanted, waitMs, undefined, hangUp);
    const call = this.idempotency.call(`claim:${agent.id}`, key, { capacities, waitMs });
    return this.idempotency.alone(call, () => this.claimOrWait(agent, wanted, waitMs, call, hangUp));
  }

  /**
   * Moves deadlines to now + `extend_by_ms` (clamped to 1 s and the lease duration), never nearer than they were and
   * never past the lease's lifetime. What is not a live lease of the caller is listed as revoked.
   * @throws ERR_UNAUTHORIZED the token was voided meanwhile
   * @throws ERR_FORBIDDEN the agent was put out of service
   */
  extend(agent: AgentIdentity, request: ExtendRequest): Promise<ExtendResponse> {
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
      return answer;
    });
  }

  /**
   * Takes what came of leases: a completed one closes its task, a cancelled one gives it back. What comes too late is
   * kept as evidence and changes nothing; the same again is acknowledged again.
   * @throws ERR_VALIDATION the same lease twice, or more than 1,000
   * @throws ERR_UNAVAILABLE it brings observations, and the disk is nearly full
   * @throws ERR_UNAUTHORIZED the token was voided meanwhile
   * @throws ERR_FORBIDDEN the agent was put out of service
   * @throws ERR_RATE_LIMITED the agent has stored as many observations as it may in a day; nothing of the report is taken
   */
  report(agent: AgentIdentity, request: ReportRequest): Promise<ReportResponse> {
    const problems = checkReportAsWhole(request);
    if (problems) throw fail('ERR_VALIDATION', problems);
    const brings = ({ observations }: LeaseReport) => (observations?.length ?? 0) > 0;
    if (request.completed.some(brings) || request.cancelled.some(brings)) this.database.requireSpace();
    const reports = [
      ...request.completed.map((report) => ({
        report,
        as: 'completed' as const,
        outcome: report.outcome ?? 'success',
      })),
      ...request.cancelled.map((report) => ({
        report,
        as: 'cancelled' as const,
        outcome: report.outcome ?? null,
      })),
    ];
    const { id: agentId } = agent;
    return this.database.write(async (tx) => {
      await this.agents.requireInService(tx, agent);
      const { now } = tx;
      const leases = await this.findReported(
        tx,
        agentId,
        reports.map(({ report }) => report.lease_id),
      );
      const ends: TaskEnd[] = [];
      const ended: { id: number; state: LeaseState }[] = [];
      const results: StoredResult[] = [];
      const rejected: RejectedReport[] = [];
      const taken: Omit<TakenReport, 'spec'>[] = [];
      for (const { report, as, outcome } of reports) {
        const lease = leases.get(report.lease_id);
        if (!lease) {
          rejected.push({ lease_id: report.lease_id, reason: 'unknown' });
          continue;
        }
        const keep = (standing: Standing) =>
          results.push({
            task_id: lease.task_id,
            lease_id: lease.id,
            standing,
            report: as,
            outcome,
            observations: JSON.stringify(report.observations ?? []),
          });
        if (lease.state === 'active') {
          ended.push({ id: lease.id, state: as });
          ends.push(as === 'completed' ? completed(lease) : this.givenBack(lease, now));
          keep(as === 'completed' ? 'final' : 'attempt');
          if (this.kinds.wantsReports(lease.kind)) {
            taken.push({
              lease_id: lease.id,
              task_id: lease.task_id,
              agent_id: agentId,
              target: lease.target,
              report: as,
              outcome,
              observations: report.observations ?? [],
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
      const acknowledged = reports.length - rejected.length;
      return rejected.length > 0 ? { acknowledged, rejected } : { acknowledged };
    });
  }

  /**
   * Expires leases whose deadline has passed: their tasks go back, or are dead after the last attempt. Expires none while
   * an interruption of the service is not dealt with: their holders could not reach it.
   * @param limit how many at the most
   * @returns how many
   */
  expireOverdue(limit: number): Promise<number> {
    return this.database.write(async (tx) => {
      if (!(await this.continuity.isUnbroken(tx))) return 0;
      const { now } = tx;
      const leases = await tx.rows<HeldLease>(
        `${SELECT_HELD} WHERE l.state = 'active' AND l.deadline_at <= $1 ORDER BY l.deadline_at, l.id LIMIT $2
         ${tx.dialect.skipLocked('l', 't')}`,
        now,
        limit,
      );
      await this.endLeases(
        tx,
        leases.map(({ id }) => ({ id, state: 'expired' })),
        now,
      );
      await this.endAttempts(
        tx,
        leases.map((lease) => this.givenBack(lease, now)),
        now,
      );
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
  async revoke(tx: Transaction, leaseIds: readonly number[]): Promise<void> {
    await this.endLeases(
      tx,
      leaseIds.map((id) => ({ id, state: 'revoked' })),
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
    wanted: readonly [string, number][],
    waitMs: number,
    call: IdempotentCall | undefined,
    hangUp: AbortSignal,
  ): Promise<ClaimResponse> {
    if (wanted.length === 0) {
      // There is nothing to look for; but a key that was used for something must not be taken for unused.
      if (call) await this.database.read((statements) => this.idempotency.find(statements, call));
      return { leases: [] };
    }
    const until = performance.now() + waitMs;
    const waiter = this.waiters.enlist(
      wanted.map(([kind]) => kind),
      agent.id,
    );
    try {
      for (;;) {
        const granted = await this.claimNow(agent, wanted, call);
        if (granted === 'draining') {
          waiter.stepAside();
        } else {
          waiter.served();
          if (granted.length > 0 || granted === REPLAYED_NONE) return { leases: [...granted] };
        }
        const leftMs = until - performance.now();
        // Where word of other replicas does not arrive, there is nothing to wait for but time.
        const sleepMs = this.database.isListening ? leftMs : Math.min(leftMs, POLL_MS);
        if (
          !(await waiter.woken(sleepMs, hangUp)) &&
          (sleepMs === leftMs || hangUp.aborted || waiter.isReleased)
        )
          return { leases: [] };
      }
    } finally {
      waiter.leave();
    }
  }

  /** One look for tasks, in one transaction. */
  private claimNow(
    agent: AgentIdentity,
    wanted: readonly [string, number][],
    call: IdempotentCall | undefined,
  ): Promise<readonly LeaseGrant[] | 'draining'> {
    const { id: agentId } = agent;
    return this.database.write(async (tx) => {
      const { takesWork, hadLease } = await this.agents.requireInService(tx, agent);
      const { now } = tx;
      if (call) {
        const before = await this.idempotency.find<number[]>(tx, call);
        if (before) {
          const live = await this.findLive(tx, agentId, before, now);
          return live.length > 0 ? live : REPLAYED_NONE;
        }
      }
      if (!takesWork) return 'draining';
      const tasks = await this.takeBest(tx, wanted, now);
      if (tasks.length === 0) return [];
      // Of each kind as many were locked as all of them together may be; what was not taken is free again with the commit.
      if (tx.dialect.concurrent && wanted.length > 1 && tasks.length === MAX_CLAIM)
        this.depth.announceReady(
          tx,
          wanted.map(([kind]) => kind),
          MAX_CLAIM,
        );
      if (!hadLease) await this.agents.noteFirstLease(tx, agentId);
      const leases = await this.lease(tx, agentId, tasks, now);
      if (call) {
        await this.idempotency.store(
          tx,
          call,
          leases.map((lease) => lease.lease_id),
        );
      }
      return leases;
    });
  }

  /** The best queued tasks: of each kind no more than its capacity, in all no more than one claim may have. */
  private takeBest(
    tx: Transaction,
    wanted: readonly [string, number][],
    now: number,
  ): Promise<CandidateTask[]> {
    const values: (string | number)[] = [now];
    const perKind = wanted.map(([kind, capacity]) => {
      values.push(kind, Math.min(capacity, MAX_CLAIM));
      // A derived table each: a LIMIT must not reach across the union.
      return `SELECT id, kind, target, spec, priority FROM (SELECT id, kind, target, spec, priority FROM tasks
        WHERE state = 'queued' AND kind = $${values.length - 1} AND (not_after IS NULL OR not_after > $1)
        ORDER BY priority DESC, id LIMIT $${values.length} ${tx.dialect.skipLocked()}) AS k${values.length}`;
    });
    return tx.rows<CandidateTask>(
      `${perKind.join(' UNION ALL ')} ORDER BY priority DESC, id LIMIT ${MAX_CLAIM}`,
      ...values,
    );
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
    const leaseOf = new Map(rows.map((row) => [row.task_id, row.id]));
    return tasks.map((task) => ({
      lease_id: leaseOf.get(task.id) as number,
      task_id: task.id,
      kind: task.kind,
      lease_until_ms: leaseDurationMs,
      spec: JSON.parse(task.spec),
    }));
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
      task_id: number;
      kind: string;
      spec: string;
      deadline_at: number;
    }>(
      `SELECT l.id, l.task_id, t.kind, t.spec, l.deadline_at FROM leases l JOIN tasks t ON t.id = l.task_id
       WHERE ${tx.dialect.isAmong('l.id', '$1')} AND l.agent_id = $2 AND l.state = 'active'`,
      JSON.stringify(leaseIds),
      agentId,
    );
    const byId = new Map(rows.map((row) => [row.id, row]));
    return leaseIds.flatMap((id) => {
      const row = byId.get(id);
      if (!row) return [];
      const lease_until_ms = Math.max(0, row.deadline_at - now);
      return [
        { lease_id: id, task_id: row.task_id, kind: row.kind, lease_until_ms, spec: JSON.parse(row.spec) },
      ];
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
      `SELECT l.id, l.state, l.task_id, t.kind, t.target, t.attempts, t.max_attempts, t.not_after,
         r.report AS reported, r.outcome
       FROM leases l JOIN tasks t ON t.id = l.task_id LEFT JOIN results r ON r.lease_id = l.id
       WHERE ${tx.dialect.isAmong('l.id', '$1')} AND l.agent_id = $2
       ORDER BY l.id`,
      JSON.stringify(leaseIds),
      agentId,
    );
    return new Map(rows.map((row) => [row.id, row]));
  }

  private async endLeases(
    tx: Transaction,
    leases: readonly { id: number; state: LeaseState }[],
    now: number,
  ): Promise<void> {
    let touched = 0;
    for (const [state, ended] of Map.groupBy(leases, (lease) => lease.state)) {
      touched += await tx.run(
        `UPDATE leases SET state = $2, ended_at = $3 WHERE ${tx.dialect.isAmong('id', '$1')} AND state = 'active'`,
        JSON.stringify(ended.map(({ id }) => id)),
        state,
        now,
      );
    }
    if (touched !== leases.length)
      throw new Error(`${leases.length} leases were to end, ${touched} were active`);
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
    await tx.run(
      `UPDATE tasks SET state = r.state, attempts = r.attempts, run_at = coalesce(r.run_at, tasks.run_at), reason = r.reason, lease_id = NULL,
         updated_at = $2, finished_at = CASE WHEN r.state IN ('completed', 'dead') THEN CAST($2 AS bigint) END
       FROM ${tx.dialect.rowset('$1', { id: 'integer', state: 'text', attempts: 'integer', run_at: 'integer', reason: 'text' })} AS r
       WHERE tasks.id = r.id AND ${tx.dialect.isBoundTo('tasks.id', '$3')}`,
      JSON.stringify(
        ends.map(({ id, to, attempts, run_at, reason }) => ({ id, state: to, attempts, run_at, reason })),
      ),
      now,
      JSON.stringify(ends.map(({ id }) => id)),
    );
    await this.depth.shift(
      tx,
      ends.map(({ kind, target, to }) => ({ kind, target, from: 'leased', to })),
    );
  }

  /** What a task becomes whose attempt failed: scheduled for the next one, or dead. */
  private givenBack(lease: HeldLease, now: number): TaskEnd {
    const { task_id: id, kind, target, attempts } = lease;
    if (attempts >= lease.max_attempts)
      return { id, kind, target, to: 'dead', attempts, run_at: null, reason: 'max_attempts' };
    const runAt = now + backoffMs(attempts, this.settings.retryBackoffMs, this.settings.retryBackoffMaxMs);
    // Nothing could begin before the task's time is up: it is over now, not later.
    if (lease.not_after !== null && runAt >= lease.not_after) {
      return { id, kind, target, to: 'dead', attempts, run_at: null, reason: 'not_after' };
    }
    return { id, kind, target, to: 'scheduled', attempts, run_at: runAt, reason: null };
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
      leases.map(({ id }) => ({ id, state: 'revoked' })),
      now,
    );
    await this.endAttempts(
      tx,
      // A leased task holds a slot of its windows already, so it need not ask for one; a lowered ceiling may take it.
      leases.map(({ task_id: id, kind, target, attempts }) => ({
        id,
        kind,
        target,
        to: 'queued',
        attempts: attempts - 1,
        run_at: null,
        reason: null,
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

type CandidateTask = { id: number; kind: string; target: string; spec: string };

/** Says that a key's leases have all ended: the answer is empty, and nothing more is to be waited for. */
const REPLAYED_NONE: readonly LeaseGrant[] = Object.freeze([]);

const SELECT_HELD = `SELECT l.id, l.task_id, t.kind, t.target, t.attempts, t.max_attempts, t.not_after
  FROM leases l JOIN tasks t ON t.id = l.task_id`;

function completed({ task_id: id, kind, target, attempts }: HeldLease): TaskEnd {
  return { id, kind, target, to: 'completed', attempts, run_at: null, reason: null };
}

/** What a report's two lists must be together. */
function checkReportAsWhole({ completed, cancelled }: ReportRequest): ErrorDetails | undefined {
  if (completed.length + cancelled.length > MAX_REPORTS) {
    return { cancelled: `must hold, with completed, at most ${MAX_REPORTS} reports` };
  }
  const ids = new Set(completed.map((report: LeaseReport) => report.lease_id));
  const both = cancelled.findIndex((report) => ids.has(report.lease_id));
  return both === -1 ? undefined : { [`cancelled.${both}.lease_id`]: 'is in completed too' };
}
