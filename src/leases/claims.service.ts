import { setImmediate as nextTurn } from 'node:timers/promises';
import { Inject, Injectable } from '@nestjs/common';
import { AgentKinds, type Capacities } from '../agents/agent-kinds';
import { AgentsService } from '../agents/agents.service';
import { Clock } from '../clock';
import { answerOf, Batcher } from '../database/batcher';
import { Database } from '../database/database';
import { UnitConflict } from '../database/database-error';
import { Idempotency, type IdempotentCall } from '../database/idempotency';
import type { Transaction } from '../database/statements';
import { ApiError, fail } from '../errors';
import type { AgentIdentity } from '../http/control-plane-request';
import type { HangUpSignal } from '../http/hang-up';
import { TaskKinds } from '../kinds/task-kinds';
import { ClaimWaiters } from '../queue/claim-waiters';
import { TaskLog } from '../queue/task-log';
import { type GrantedTask, type TakenTask, TaskTransitions } from '../queue/transitions';
import { SETTINGS, type Settings } from '../settings';
import { AttemptTraces } from './attempt-traces';
import { type ClaimPlan, planClaim, shareTasks } from './claim-shares';
import { LeaseCounter } from './lease-counter';
import type { ClaimRequest, ClaimResponse, LeaseGrant } from './leases.dto';
import { insertLeases, selectLive } from './leases.queries';
import { MAX_LEASES_IN_UNIT } from './leases.service';

/** The most leases that one claim grants. */
const MAX_CLAIM = 256;
/** From when on a commit counts as a long one, in ms. */
const LATE_MS = 100;
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
  readonly hangUp: HangUpSignal;
}

/** A lease with its start, in ms from when it was granted; null if it has no rate. */
type GrantedLease = LeaseGrant & { readonly startInMs: number | null };

/** What one look for tasks came to; `open` are the kinds that the agent may be granted more of. */
type Look =
  | {
      readonly result: 'answer';
      readonly leases: readonly GrantedLease[];
      /** When their starts were computed, by `performance.now()`. */
      readonly readAt: number;
    }
  | { readonly result: 'draining' }
  | { readonly result: 'nothing'; readonly open: readonly string[] };

const NO_LEASES: Look = { result: 'answer', leases: [], readAt: 0 };

/** Grants leases: looks for tasks for the claims of agents, many of them in one unit of work, and has those wait that find none. */
@Injectable()
export class ClaimsService {
  private readonly claims: Batcher<ClaimCall, Look | ApiError>;

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly agents: AgentsService,
    private readonly agentKinds: AgentKinds,
    private readonly kinds: TaskKinds,
    private readonly transitions: TaskTransitions,
    private readonly waiters: ClaimWaiters,
    private readonly idempotency: Idempotency,
    private readonly counter: LeaseCounter,
    private readonly traces: AttemptTraces,
    private readonly log: TaskLog,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    this.claims = new Batcher(database, (tx, calls) => this.claimAll(tx, calls), {
      weightOf: ({ wanted }) => Math.min(MAX_CLAIM / 2, sumOf(wanted.map(([, count]) => count))),
      maxWeight: MAX_LEASES_IN_UNIT,
      // Of two claims of an agent the later must see what the earlier was granted.
      keyOf: ({ agent }) => agent.id,
    });
    agents.onChanged((agentId) => this.waiters.wakeAgent(agentId));
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
    hangUp: HangUpSignal,
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

  private async claimOrWait(
    agent: AgentIdentity,
    capacities: Capacities,
    waitMs: number,
    call: IdempotentCall | undefined,
    hangUp: HangUpSignal,
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
        const look = answerOf(await this.claims.run({ agent, capacities, wanted, call, hangUp }));
        if (look.result === 'answer') {
          waiter.served();
          return { leases: withStarts(look.leases, look.readAt) };
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
    const readAt = performance.now();
    const looks = new Map<ClaimCall, Look | ApiError>();
    // What nobody reads the answer of would be lost until it expires.
    const alive = calls.filter((call) => {
      if (call.hangUp.aborted) looks.set(call, NO_LEASES);
      return !call.hangUp.aborted;
    });
    const callers = alive.map(({ agent }) => agent);
    // Sent together, in this order: the limits are locked first, then the agents.
    const [, standings, held] = await Promise.all([
      this.transitions.beginClaim(tx),
      this.agents.standingsOf(tx, callers, 'alone'),
      this.counter.count(
        tx,
        callers.map(({ id }) => id),
      ),
    ]);
    const plans: (ClaimPlan<TakenTask> & { readonly call: ClaimCall })[] = [];
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
          held.of(call.agent.id),
          this.settings.maxLeasesPerAgent,
          MAX_CLAIM,
        );
        if (!standing.hadLease) firstLeases.push(call.agent.id);
        plans.push({ ...plan, call });
      }
    }
    const { unwanted } = await shareTasks(plans, (wanted) => this.transitions.takeForClaim(tx, wanted));
    const isAlive = ({ call }: { call: ClaimCall }) => !call.hangUp.aborted;
    const { leased: granted, written } = await this.transitions.lease(
      tx,
      plans.filter(isAlive).flatMap(({ tasks }) => tasks),
      [...unwanted, ...plans.filter((plan) => !isAlive(plan)).flatMap(({ tasks }) => tasks)],
    );
    const grantedOf = new Map(granted.map((task) => [task.id, task]));
    const leased = plans.map((plan) => ({
      plan,
      tasks: plan.tasks.flatMap(({ id }) => grantedOf.get(id) ?? []),
    }));
    const [leaseOf] = await Promise.all([
      insertLeases(
        tx,
        leased.flatMap(({ plan, tasks }) =>
          tasks.map(({ id, kind, attempts, startAt }) => ({
            ...{ task_id: id, agent_id: plan.call.agent.id, kind, attempt: attempts + 1, start_at: startAt },
          })),
        ),
        // A unit that waited for a lock may find a task that became ready after its instant, when another attempt ended.
        granted.reduce((at, { row }) => Math.max(at, row.ready_at), tx.now),
        this.settings.leaseDurationMs,
        this.settings.leaseLifetimeMs,
      ),
      written,
    ]);
    const served = new Set(
      leased.filter(({ tasks }) => tasks.length > 0).map(({ plan }) => plan.call.agent.id),
    );
    await this.agents.noteFirstLeases(
      tx,
      firstLeases.filter((id) => served.has(id)),
    );
    for (const { plan, tasks } of leased) {
      const { call, open } = plan;
      held.remember(
        call.agent.id,
        tasks.map(({ id }) => leaseOf.get(id) as number),
      );
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
      looks.set(call, { result: 'answer', leases: grants, readAt });
    }
    // Where the statements took turns of the event loop, one may have hung up meanwhile: again, without it.
    if (leased.some(({ plan, tasks }) => tasks.length > 0 && !isAlive(plan)))
      throw new UnitConflict('a caller hung up');
    return calls.map((call) => looks.get(call) ?? NO_LEASES);
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
      // Their starts may all have passed: they stay as far apart, or the agent would start all of them at once.
      const starts = [...live.values()].flatMap((row) => row.start_at ?? []);
      const from = Math.min(tx.now, ...starts);
      const leases = before.flatMap((id) => {
        const row = live.get(id);
        if (!row) return [];
        const grant = this.grantOf(row, row.lease_id, Math.max(0, row.deadline_at - tx.now));
        return [{ ...grant, startInMs: startIn(row.start_at, from) }];
      });
      return { result: 'answer', leases, readAt: performance.now() };
    } catch (error) {
      if (error instanceof ApiError && error.code === 'ERR_CONFLICT') return error;
      throw error;
    }
  }

  private grant(
    tx: Transaction,
    agentId: number,
    tasks: readonly GrantedTask[],
    leaseOf: ReadonlyMap<number, number>,
  ): GrantedLease[] {
    const leased = tasks.map((task) => ({ task, leaseId: leaseOf.get(task.id) as number }));
    this.log.leased(
      tx,
      agentId,
      leased.map(({ task: { id, kind, traceparent, attempts }, leaseId }) => ({
        ...{ id, kind, traceparent, leaseId, attempt: attempts + 1 },
      })),
    );
    return leased.map(({ task, leaseId }) => ({
      ...this.grantOf(task, leaseId, this.settings.leaseDurationMs),
      startInMs: startIn(task.startAt, tx.now),
    }));
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
}

/** In how many ms an agent may start; null if there is no rate. */
const startIn = (startAt: number | null, now: number): number | null =>
  startAt === null ? null : Math.max(0, startAt - now);

/**
 * Has starts count from the answer: what the commit took has passed of them. After a long one they stay as far apart, or those whose
 * time has passed would all start at once.
 */
function withStarts(leases: readonly GrantedLease[], readAt: number): LeaseGrant[] {
  const tookMs = Math.max(0, Math.floor(performance.now() - readAt));
  const first = leases.reduce((least, { startInMs }) => Math.min(least, startInMs ?? least), tookMs);
  const passedMs = tookMs < LATE_MS ? tookMs : first;
  return leases.map(({ startInMs, ...lease }) =>
    startInMs === null ? lease : { ...lease, start_in_ms: Math.max(0, startInMs - passedMs) },
  );
}

const sumOf = (numbers: readonly number[]): number => numbers.reduce((sum, one) => sum + one, 0);
