import { setImmediate as nextTurn } from 'node:timers/promises';
import { Inject, Injectable } from '@nestjs/common';
import { AgentKinds, type Capacities } from '../agents/agent-kinds';
import { AgentOutcomes, type EndedAttempt } from '../agents/agent-outcomes';
import { AgentsService } from '../agents/agents.service';
import { Budgets } from '../agents/budgets';
import { Clock } from '../clock';
import { ConcurrencyService } from '../concurrency/concurrency.service';
import { Batcher } from '../database/batcher';
import { Database } from '../database/database';
import { UnitConflict } from '../database/database-error';
import { Idempotency, type IdempotentCall } from '../database/idempotency';
import type { Transaction } from '../database/statements';
import { ApiError, fail } from '../errors';
import type { AgentIdentity } from '../http/control-plane-request';
import { type TakenReport, TaskKinds } from '../kinds/task-kinds';
import { ClaimWaiters } from '../queue/claim-waiters';
import { QueueMaintainer } from '../queue/maintenance';
import { TaskLog } from '../queue/task-log';
import { type TakenTask, type TaskChange, TaskTransitions, type TransitionTask } from '../queue/transitions';
import { Continuity, type Interruption } from '../scheduling/continuity';
import { SETTINGS, type Settings } from '../settings';
import { parseTraceparent, type TraceContext } from '../tracing';
import { AttemptTraces, type EndedLease } from './attempt-traces';
import { backoffMs } from './backoff';
import { type ClaimPlan, planClaim, shareTasks } from './claim-shares';
import { LeaseMetrics } from './lease-metrics';
import {
  type ClaimRequest,
  type ClaimResponse,
  type ExtendRequest,
  type ExtendResponse,
  judgeReport,
  type LeaseGrant,
  type ReportRequest,
  type ReportResponse,
  textOfObservations,
} from './leases.dto';
import {
  adjustDeadlines,
  countHeldByKind,
  countInWindow,
  deleteLeasesOf,
  endLeases,
  extendLeases,
  type HeldLease,
  insertLeases,
  isAnyOverdue,
  keepLateReports,
  type LeaseEnd,
  lockHeldBy,
  lockLiveOf,
  lockOverdue,
  lockReported,
  selectLive,
} from './leases.queries';
import {
  bringsObservations,
  type Classified,
  classify,
  type JudgedItem,
  leaseIdsOf,
  messageOf,
} from './reports';

/** The most leases that one claim grants. */
const MAX_CLAIM = 256;
const MAX_REPORTS = 1_000;
/** How many leases of calls share one unit of work: a unit of more would hold up those that come after it. */
const MAX_LEASES_IN_UNIT = 1_024;
/** An extension is taken as at least so long, as far as a lease is: an agent that says less would lose what it works on. */
const MIN_EXTENSION_MS = 10_000;
/** How often a waiting claim looks by itself if other replicas can't wake it. */
const POLL_MS = 1_000;

/** A kind and how many leases of it an agent may have. */
type KindBudget = readonly [kind: string, count: number];

/** One look for tasks that a claim asks for. */
interface ClaimCall {
  readonly agent: AgentIdentity;
  readonly capacities: Capacities;
  /** Those of them that are above 0. */
  readonly wanted: readonly KindBudget[];
  readonly call: IdempotentCall | undefined;
  readonly hangUp: AbortSignal;
}

/** What one look for tasks came to; `open` are the kinds that the agent may be granted more of. */
type Look =
  | { readonly result: 'answer'; readonly leases: readonly LeaseGrant[] }
  | { readonly result: 'draining' }
  | { readonly result: 'nothing'; readonly open: readonly string[] };

const NO_LEASES: Look = { result: 'answer', leases: [] };

/** An agent's call that shares a unit of work with others. */
interface ExtendCall {
  readonly agent: AgentIdentity;
  readonly leaseIds: readonly number[];
  readonly byMs: number;
}

interface ReportCall {
  readonly agent: AgentIdentity;
  readonly items: readonly JudgedItem[];
}

/** A live lease that is to end, and what its task becomes. */
interface Ending {
  readonly lease: HeldLease;
  readonly end: LeaseEnd;
  readonly change: Omit<TaskChange, 'task' | 'from'>;
  readonly agentTrace?: TraceContext | undefined;
}

/** Owns leases: which agent works on which task, until when, and what it reported. The lease's id is the fence. */
@Injectable()
export class LeasesService {
  private readonly claims: Batcher<ClaimCall, Look | ApiError>;
  private readonly extends: Batcher<ExtendCall, ExtendResponse | ApiError>;
  private readonly reports: Batcher<ReportCall, ReportResponse | ApiError>;

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly continuity: Continuity,
    private readonly agents: AgentsService,
    private readonly agentKinds: AgentKinds,
    private readonly budgets: Budgets,
    private readonly kinds: TaskKinds,
    private readonly transitions: TaskTransitions,
    private readonly waiters: ClaimWaiters,
    private readonly idempotency: Idempotency,
    private readonly metrics: LeaseMetrics,
    private readonly traces: AttemptTraces,
    private readonly log: TaskLog,
    private readonly outcomes: AgentOutcomes,
    maintainer: QueueMaintainer,
    concurrency: ConcurrencyService,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    this.claims = new Batcher(database, (tx, calls) => this.claimAll(tx, calls), {
      weightOf: ({ wanted }) => Math.min(MAX_CLAIM / 2, sumOf(wanted.map(([, count]) => count))),
      maxWeight: MAX_LEASES_IN_UNIT,
      // Of two claims of an agent the later must see what the earlier was granted.
      keyOf: ({ agent }) => agent.id,
    });
    this.extends = new Batcher(database, (tx, calls) => this.extendAll(tx, calls), {
      weightOf: ({ leaseIds }) => leaseIds.length,
      maxWeight: MAX_LEASES_IN_UNIT,
      keyOf: ({ agent }) => agent.id,
    });
    this.reports = new Batcher(database, (tx, calls) => this.reportAll(tx, calls), {
      weightOf: ({ items }) => items.length,
      maxWeight: MAX_LEASES_IN_UNIT,
      keyOf: ({ agent }) => agent.id,
    });
    continuity.onInterruption((tx, interruption) => this.adjustDeadlines(tx, interruption));
    agents.onDeactivated((tx, agentIds) => this.revokeHeldBy(tx, agentIds));
    agents.onChanged((agentId) => this.waiters.wakeAgent(agentId));
    agents.countLeasesWith(async (statements, agentIds) => {
      const held = new Map<number, number>();
      for (const { agent_id: id, count } of await countHeldByKind(statements, agentIds))
        held.set(id, (held.get(id) ?? 0) + count);
      return held;
    });
    maintainer.addDueWork({
      isDue: (statements) => isAnyOverdue(statements, this.clock.now()),
      run: (limit) => this.expireOverdue(limit),
    });
    maintainer.onTasksDeleted(deleteLeasesOf);
    concurrency.countWith({
      countLeased: (statements, windows) =>
        Promise.all(windows.map((window) => countInWindow(statements, window))),
    });
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
  async extend(agent: AgentIdentity, request: ExtendRequest): Promise<ExtendResponse> {
    // The lease duration counts if it is below the least extension.
    const byMs = Math.min(Math.max(request.extend_by_ms, MIN_EXTENSION_MS), this.settings.leaseDurationMs);
    return orThrow(await this.extends.run({ agent, leaseIds: request.lease_ids, byMs }));
  }

  /**
   * Takes reports of leases: a completed one closes its task, a cancelled one gives it back. What comes too late is
   * kept as evidence and changes nothing; the same again is acknowledged again. Each report is judged alone: one that is not
   * valid is rejected, and its lease stays live.
   * @throws ERR_VALIDATION more than 1,000 reports
   * @throws ERR_UNAVAILABLE it brings observations, and the disk is nearly full
   * @throws ERR_UNAUTHORIZED the token was voided meanwhile
   * @throws ERR_FORBIDDEN the agent was taken out of service
   * @throws ERR_RATE_LIMITED the agent has stored as many observations as it may in a day; nothing of the report is taken
   */
  async report(agent: AgentIdentity, request: ReportRequest): Promise<ReportResponse> {
    if (request.completed.length + request.cancelled.length > MAX_REPORTS)
      throw fail('ERR_VALIDATION', {
        cancelled: `must hold, with completed, at most ${MAX_REPORTS} reports`,
      });
    const items = (['completed', 'cancelled'] as const).flatMap((as) =>
      request[as].map((item, i) => ({ as, item: judgeReport(item, `${as}.${i}`) })),
    );
    if (bringsObservations(items)) this.database.requireSpace();
    return orThrow(await this.reports.run({ agent, items }));
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
      const leases = await lockOverdue(tx, limit);
      await this.end(
        tx,
        leases.map((lease) => ({
          lease,
          end: endOf(lease, 'expired', 'expired'),
          change: this.afterFailure(lease, tx.now),
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
        const look = orThrow(await this.claims.run({ agent, capacities, wanted, call, hangUp }));
        if (look.result === 'answer') {
          waiter.served();
          return { leases: [...look.leases] };
        }
        // Tasks of kinds that it may not have more of are for others.
        if (look.result === 'draining') waiter.stepAside();
        else waiter.standFor(look.open);
        waiter.served();
        const leftMs = until - performance.now();
        // Woken meanwhile or not: a caller that asked not to wait longer gets no other look, and its wake-up goes to the next.
        if (leftMs <= 0) return { leases: [] };
        // Nobody tells of other replicas' work while their announcements do not arrive, and never of leases that end there.
        const isFull = look.result === 'nothing' && look.open.length < kinds.length;
        const isTold = this.database.isListening && !(isFull && !this.database.endsWithProcess);
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

  /** Remembers that a claim asks for none of the kinds that it names. */
  private async learnThatNone(agent: AgentIdentity, capacities: Capacities): Promise<void> {
    if (!this.agentKinds.isNews(agent.id, capacities, this.clock.now())) return;
    await this.database.write(async (tx) => {
      // An agent that is not in service gets the same answer, and nothing is learnt of it.
      const [refusal] = await this.agents.refusals(tx, [agent]);
      if (!refusal) await this.agentKinds.learn(tx, [{ agentId: agent.id, capacities }]);
    });
  }

  /** One look for tasks for each of several claims, of different agents, in one transaction. */
  private async claimAll(tx: Transaction, calls: readonly ClaimCall[]): Promise<(Look | ApiError)[]> {
    await this.transitions.begin(tx);
    const looks = new Map<ClaimCall, Look | ApiError>();
    // What nobody reads the answer of would be lost until it expires.
    const alive = calls.filter((call) => {
      if (call.hangUp.aborted) looks.set(call, NO_LEASES);
      return !call.hangUp.aborted;
    });
    const standings = await this.agents.standingsOf(
      tx,
      alive.map(({ agent }) => agent),
      'alone',
    );
    const plans: (ClaimPlan<TakenTask> & { readonly call: ClaimCall })[] = [];
    const held = await this.heldBy(
      tx,
      alive.map(({ agent }) => agent.id),
    );
    await this.agentKinds.learn(
      tx,
      alive
        .filter((_, i) => !standings[i]?.refusal)
        .map(({ agent, capacities }) => ({ agentId: agent.id, capacities })),
    );
    const firstLeases: number[] = [];
    for (const [i, call] of alive.entries()) {
      const standing = standings[i];
      if (!standing || standing.refusal) {
        looks.set(call, standing?.refusal ?? fail('ERR_UNAUTHORIZED'));
        continue;
      }
      const repeated = call.call && (await this.repeat(tx, call.agent.id, call.call));
      if (repeated) looks.set(call, repeated);
      else if (!standing.takesWork) looks.set(call, { result: 'draining' });
      else {
        const plan = planClaim<TakenTask>(
          call.wanted,
          held.get(call.agent.id) ?? new Map(),
          this.settings.maxLeasesPerAgent,
          MAX_CLAIM,
        );
        if (!standing.hadLease) firstLeases.push(call.agent.id);
        plans.push({ ...plan, call });
      }
    }
    const { unwanted } = await shareTasks(plans, (wanted) => this.transitions.takeForClaim(tx, wanted));
    const isAlive = ({ call }: { call: ClaimCall }) => !call.hangUp.aborted;
    const granted = await this.transitions.lease(
      tx,
      plans.filter(isAlive).flatMap(({ tasks }) => tasks),
      [...unwanted, ...plans.filter((plan) => !isAlive(plan)).flatMap(({ tasks }) => tasks)],
    );
    const isGranted = new Set(granted.map(({ id }) => id));
    const leased = plans.map((plan) => ({
      plan,
      tasks: plan.tasks.filter(({ id }) => isGranted.has(id)),
    }));
    const leaseOf = await insertLeases(
      tx,
      leased.flatMap(({ plan, tasks }) =>
        tasks.map(({ id, kind, attempts }) => ({
          ...{ task_id: id, agent_id: plan.call.agent.id, kind, attempt: attempts + 1 },
        })),
      ),
      this.settings.leaseDurationMs,
      this.settings.leaseLifetimeMs,
    );
    const served = new Set(
      leased.filter(({ tasks }) => tasks.length > 0).map(({ plan }) => plan.call.agent.id),
    );
    await this.agents.noteFirstLeases(
      tx,
      firstLeases.filter((id) => served.has(id)),
    );
    for (const { plan, tasks } of leased) {
      const { call, open } = plan;
      if (tasks.length === 0) {
        looks.set(call, { result: 'nothing', open });
        continue;
      }
      const grants = this.grant(tx, call.agent.id, tasks, leaseOf);
      if (call.call)
        await this.idempotency.store(
          tx,
          call.call,
          grants.map((lease) => lease.lease_id),
        );
      looks.set(call, { result: 'answer', leases: grants });
    }
    // Where the statements took turns of the event loop, one may have hung up meanwhile: again, without it.
    if (leased.some(({ plan, tasks }) => tasks.length > 0 && !isAlive(plan)))
      throw new UnitConflict('a caller hung up');
    return calls.map((call) => looks.get(call) ?? NO_LEASES);
  }

  /** How many leases of each kind each of the agents holds. */
  private async heldBy(
    tx: Transaction,
    agentIds: readonly number[],
  ): Promise<Map<number, Map<string, number>>> {
    const held = new Map<number, Map<string, number>>();
    for (const { agent_id: id, kind, count } of await countHeldByKind(tx, agentIds))
      held.set(id, (held.get(id) ?? new Map<string, number>()).set(kind, count));
    return held;
  }

  /** What a call under a key is answered that was answered before: if its leases have all ended, nothing. */
  private async repeat(
    tx: Transaction,
    agentId: number,
    call: IdempotentCall,
  ): Promise<Look | ApiError | undefined> {
    try {
      const before = await this.idempotency.find<number[]>(tx, call);
      if (!before) return undefined;
      const live = new Map((await selectLive(tx, agentId, before)).map((row) => [row.lease_id, row]));
      const leases = before.flatMap((id) => {
        const row = live.get(id);
        return row ? [this.grantOf(row, row.lease_id, Math.max(0, row.deadline_at - tx.now))] : [];
      });
      return { result: 'answer', leases };
    } catch (error) {
      if (error instanceof ApiError && error.code === 'ERR_CONFLICT') return error;
      throw error;
    }
  }

  private grant(
    tx: Transaction,
    agentId: number,
    tasks: readonly TakenTask[],
    leaseOf: ReadonlyMap<number, number>,
  ): LeaseGrant[] {
    const leased = tasks.map((task) => ({ task, leaseId: leaseOf.get(task.id) as number }));
    this.log.leased(
      tx,
      agentId,
      leased.map(({ task: { id, kind, traceparent, attempts }, leaseId }) => ({
        ...{ id, kind, traceparent, leaseId, attempt: attempts + 1 },
      })),
    );
    return leased.map(({ task, leaseId }) => this.grantOf(task, leaseId, this.settings.leaseDurationMs));
  }

  private grantOf(
    task: Pick<TakenTask, 'id' | 'kind' | 'spec' | 'traceparent'>,
    leaseId: number,
    leftMs: number,
  ): LeaseGrant {
    const traceparent = this.traces.traceparentOf(task.traceparent, leaseId);
    return {
      lease_id: leaseId,
      task_id: task.id,
      kind: task.kind,
      lease_until_ms: leftMs,
      spec: JSON.parse(task.spec),
      ...(traceparent === undefined ? {} : { traceparent }),
    };
  }

  private async extendAll(
    tx: Transaction,
    calls: readonly ExtendCall[],
  ): Promise<(ExtendResponse | ApiError)[]> {
    const refusals = await this.agents.refusals(
      tx,
      calls.map(({ agent }) => agent),
    );
    const { now } = tx;
    const rows = await extendLeases(
      tx,
      calls.flatMap(({ agent, leaseIds, byMs }, i) =>
        refusals[i] ? [] : leaseIds.map((id) => ({ id, agent_id: agent.id, until: now + byMs })),
      ),
    );
    // By holder too: the calls of several agents share the unit, and a lease of another looks as if there were none.
    const deadlines = new Map(rows.map((row) => [`${row.agent_id}/${row.id}`, row.deadline_at]));
    this.metrics.countExtended(tx, rows.length);
    return calls.map(({ agent, leaseIds }, i) => {
      const refusal = refusals[i];
      if (refusal) return refusal;
      const answer: ExtendResponse = { outcomes: [], revoked: [] };
      for (const id of leaseIds) {
        const deadlineAt = deadlines.get(`${agent.id}/${id}`);
        if (deadlineAt === undefined) answer.revoked.push(id);
        else answer.outcomes.push({ lease_id: id, new_deadline_ms: Math.max(0, deadlineAt - now) });
      }
      return answer;
    });
  }

  private async reportAll(
    tx: Transaction,
    calls: readonly ReportCall[],
  ): Promise<(ReportResponse | ApiError)[]> {
    await this.transitions.begin(tx);
    const refusals = await this.agents.refusals(
      tx,
      calls.map(({ agent }) => agent),
    );
    const leases = new Map(
      (
        await lockReported(
          tx,
          calls.flatMap(({ agent, items }, i) =>
            refusals[i] ? [] : leaseIdsOf(items).map((id) => ({ id, agent_id: agent.id })),
          ),
        )
      ).map((lease) => [lease.id, lease]),
    );
    const classified = calls.map(({ agent, items }, i) =>
      refusals[i] ? undefined : { agent, ...classify(agent.id, items, leases) },
    );
    const bytes = new Map(
      classified.flatMap((one) => (one ? [[one.agent.id, observedBytes(one)] as const] : [])),
    );
    const overBudget = await this.budgets.take(tx, 'observations', bytes);
    const taken = classified
      .filter((one) => one !== undefined)
      .filter(({ agent }) => !overBudget.has(agent.id));
    await this.end(
      tx,
      taken.flatMap(({ ends }) => ends.map((one) => this.endingOf(one, tx.now))),
    );
    await keepLateReports(
      tx,
      taken.flatMap(({ late }) =>
        late.map(({ lease, as, report }) => ({
          ...{
            id: lease.id,
            report: as,
            outcome: report.outcome ?? null,
            observations: textOf(report.observations),
          },
        })),
      ),
    );
    for (const one of taken) await this.tellKinds(tx, one.agent.id, one.ends);
    this.metrics.countReported(
      tx,
      taken.flatMap(({ ends }) =>
        ends.map(({ as, lease, report }) => ({
          ...{ kind: lease.kind, as, outcome: report.outcome ?? null, heldMs: tx.now - lease.granted_at },
        })),
      ),
      taken.flatMap(({ rejected }) => rejected),
    );
    return classified.map((one, i) => {
      if (!one) return refusals[i] as ApiError;
      if (overBudget.has(one.agent.id)) return this.budgets.refusal('observations');
      const { acknowledged, rejected } = one;
      return rejected.length > 0 ? { acknowledged, rejected: [...rejected] } : { acknowledged };
    });
  }

  private endingOf({ as, lease, report, ending }: Classified['ends'][number], now: number): Ending {
    return {
      lease,
      end: {
        ...endOf(lease, as, ending),
        report: as,
        outcome: report.outcome ?? null,
        observations: textOf(report.observations),
        error: ending === 'success' ? null : messageOf(report.observations ?? []),
      },
      change:
        as === 'completed' ? { to: 'completed', attempts: lease.attempt } : this.afterFailure(lease, now),
      agentTrace: parseTraceparent(report.traceparent),
    };
  }

  /** What a task becomes whose attempt failed: scheduled for the next one, or dead. */
  private afterFailure(lease: HeldLease, now: number): Ending['change'] {
    const { attempt: attempts, not_after: notAfter } = lease;
    if (attempts >= lease.max_attempts) return { to: 'dead', attempts, reason: 'max_attempts' };
    const runAt = now + backoffMs(attempts, this.settings.retryBackoffMs, this.settings.retryBackoffMaxMs);
    // Nothing could begin before the task's time is up: it is over now, not later.
    if (notAfter !== null && runAt >= notAfter) return { to: 'dead', attempts, reason: 'not_after' };
    return { to: 'scheduled', attempts, runAt };
  }

  /** Ends live leases that the unit has locked, and takes their tasks to what they become. */
  private async end(tx: Transaction, endings: readonly Ending[]): Promise<void> {
    if (endings.length === 0) return;
    await this.endLeases(tx, endings);
    await this.transitions.apply(
      tx,
      endings.map(({ lease, change }) => ({ task: taskOf(lease), from: 'leased', ...change })),
    );
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

  /** Tells the kinds that want it of reports that took effect. */
  private async tellKinds(tx: Transaction, agentId: number, ends: Classified['ends']): Promise<void> {
    const wanted = ends.filter(({ lease }) => this.kinds.wantsReports(lease.kind));
    if (wanted.length === 0) return;
    const rows = await tx.rows<{ id: number; spec: string }>(
      `SELECT id, spec FROM tasks WHERE ${tx.dialect.isAmong('id', '$1')}`,
      JSON.stringify(wanted.map(({ lease }) => lease.task_id)),
    );
    const specs = new Map(rows.map((row) => [row.id, row.spec]));
    for (const [kind, some] of Map.groupBy(wanted, ({ lease }) => lease.kind))
      await this.kinds.tell(
        tx,
        kind,
        some.map(
          ({ as, lease, report }): TakenReport => ({
            lease_id: lease.id,
            task_id: lease.task_id,
            agent_id: agentId,
            target: lease.target,
            spec: JSON.parse(specs.get(lease.task_id) as string) as object,
            report: as,
            outcome: report.outcome ?? null,
            observations: (report.observations ?? []).map(({ name, value, unit }) => ({ name, value, unit })),
            received_at: tx.now,
          }),
        ),
      );
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
    await this.transitions.begin(tx);
    const leases = await lockHeldBy(tx, agentIds);
    await this.end(
      tx,
      leases.map((lease) => ({ lease, end: endOf(lease, 'revoked', 'revoked'), change: { to: 'queued' } })),
    );
  }
}

const sumOf = (numbers: readonly number[]): number => numbers.reduce((sum, one) => sum + one, 0);

/** @throws the error that a call in a shared unit was answered with */
function orThrow<Answer>(answer: Answer | ApiError): Answer {
  if (answer instanceof ApiError) throw answer;
  return answer;
}

/** The end of a lease of which nothing is reported. */
const endOf = ({ id }: HeldLease, state: LeaseEnd['state'], ending: LeaseEnd['ending']): LeaseEnd => ({
  id,
  state,
  ending,
  report: null,
  outcome: null,
  observations: null,
  error: null,
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

/** Observations as they are stored: null if there are none. */
const textOf = (observations: Parameters<typeof textOfObservations>[0] | null | undefined): string | null =>
  observations?.length ? textOfObservations(observations) : null;

/** What a report needs of its agent's budget. */
function observedBytes({ ends, late }: Classified): number {
  let bytes = 0;
  for (const { report } of [...ends, ...late]) {
    const text = textOf(report.observations);
    if (text !== null) bytes += Buffer.byteLength(text);
  }
  return bytes;
}
