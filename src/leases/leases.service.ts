import { Inject, Injectable } from '@nestjs/common';
import { AgentsService } from '../agents/agents.service';
import { Budgets } from '../agents/budgets';
import { answerOf, Batcher } from '../database/batcher';
import { Database } from '../database/database';
import type { Transaction } from '../database/statements';
import { type ApiError, fail } from '../errors';
import type { AgentIdentity } from '../http/control-plane-request';
import { type TakenReport, TaskKinds } from '../kinds/task-kinds';
import { TaskTransitions } from '../queue/transitions';
import { SETTINGS, type Settings } from '../settings';
import { parseTraceparent } from '../tracing';
import { type Ending, endOf, LeaseEndings } from './lease-endings';
import { LeaseMetrics } from './lease-metrics';
import {
  type ExtendRequest,
  type ExtendResponse,
  judgeReport,
  type ReportRequest,
  type ReportResponse,
} from './leases.dto';
import { extendLeases, keepLateReports, lockReported, selectSpecs } from './leases.queries';
import {
  bringsObservations,
  type Classified,
  classify,
  type JudgedItem,
  leaseIdsOf,
  messageOf,
  weightOf,
} from './reports';
import { afterFailedAttempt } from './retries';

const MAX_REPORTS = 1_000;
/** How many leases of calls share one unit of work: a unit of more would hold up those that come after it. */
export const MAX_LEASES_IN_UNIT = 1_024;
/** An extension is taken as at least so long, as far as a lease is: an agent that says less would lose what it works on. */
const MIN_EXTENSION_MS = 10_000;

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

/** Owns leases: which agent works on which task, until when, and what it reported. The lease's id is the fence. */
@Injectable()
export class LeasesService {
  private readonly extends: Batcher<ExtendCall, ExtendResponse | ApiError>;
  private readonly reports: Batcher<ReportCall, ReportResponse | ApiError>;

  constructor(
    private readonly database: Database,
    private readonly agents: AgentsService,
    private readonly budgets: Budgets,
    private readonly kinds: TaskKinds,
    private readonly transitions: TaskTransitions,
    private readonly endings: LeaseEndings,
    private readonly metrics: LeaseMetrics,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    this.extends = new Batcher(database, (tx, calls) => this.extendAll(tx, calls), {
      weightOf: ({ leaseIds }) => leaseIds.length,
      maxWeight: MAX_LEASES_IN_UNIT,
      keyOf: ({ agent }) => agent.id,
    });
    this.reports = new Batcher(database, (tx, calls) => this.reportAll(tx, calls), {
      weightOf: ({ items }) => weightOf(items),
      maxWeight: MAX_LEASES_IN_UNIT,
      keyOf: ({ agent }) => agent.id,
    });
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
    return answerOf(await this.extends.run({ agent, leaseIds: request.lease_ids, byMs }));
  }

  /**
   * Takes reports of leases: a completed one closes its task, a cancelled one returns it to the queue. What comes too late is
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
    return answerOf(await this.reports.run({ agent, items }));
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
    // Sent together, in this order. The leases of refused agents are not used.
    const [, refusals, rows] = await Promise.all([
      this.transitions.begin(tx),
      this.agents.refusals(
        tx,
        calls.map(({ agent }) => agent),
      ),
      lockReported(
        tx,
        calls.flatMap(({ agent, items }) => leaseIdsOf(items).map((id) => ({ id, agent_id: agent.id }))),
      ),
    ]);
    const leases = new Map(rows.map((lease) => [lease.id, lease]));
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
    await this.endings.end(
      tx,
      taken.flatMap(({ ends }) => ends.map((one) => this.endingOf(one, tx.now))),
    );
    await keepLateReports(
      tx,
      taken.flatMap(({ late }) =>
        late.map(({ lease, as, report, observations }) => ({
          ...{ id: lease.id, report: as, outcome: report.outcome ?? null, observations },
          ...{ failure: report.failure ?? null, rtt_ms: report.rtt_ms ?? null },
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

  private endingOf(
    { as, lease, report, observations, ending }: Classified['ends'][number],
    now: number,
  ): Ending {
    return {
      lease,
      end: {
        ...endOf(lease, as, ending),
        report: as,
        outcome: report.outcome ?? null,
        observations,
        error: ending === 'success' ? null : messageOf(report.observations ?? []),
        failure: report.failure ?? null,
        rtt_ms: report.rtt_ms ?? null,
      },
      change: {
        ...(as === 'completed'
          ? { to: 'completed', attempts: lease.attempt }
          : afterFailedAttempt(lease, now, this.settings)),
        outcome: () => ({
          ...this.kinds.signalOf(lease.kind, { ...report, report: as, received_at: now }),
          ...{ leaseId: lease.id, agentId: lease.agent_id, delayMs: now - lease.granted_at },
        }),
      },
      agentTrace: parseTraceparent(report.traceparent),
    };
  }

  /** Tells the kinds that want it of reports that took effect. */
  private async tellKinds(tx: Transaction, agentId: number, ends: Classified['ends']): Promise<void> {
    const wanted = ends.filter(({ lease }) => this.kinds.wantsReports(lease.kind));
    if (wanted.length === 0) return;
    const specs = await selectSpecs(
      tx,
      wanted.map(({ lease }) => lease.task_id),
    );
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
}

/** What a report needs of its agent's budget. */
function observedBytes({ ends, late }: Classified): number {
  let bytes = 0;
  for (const { observations } of [...ends, ...late])
    if (observations !== null) bytes += Buffer.byteLength(observations);
  return bytes;
}
