import { Injectable, Logger, type OnApplicationShutdown } from '@nestjs/common';
import { Cron, CronExpression, Interval } from '@nestjs/schedule';
import { Clock, toTimestamp } from '../clock';
import { Database } from '../database/database';
import type { SqlValue, Statements, Transaction } from '../database/statements';
import { Continuity } from '../scheduling/continuity';
import { JobRunner } from '../scheduling/job-runner';
import {
  ATTEMPT_OUTCOMES,
  type AttemptOutcome,
  ERROR_OUTCOMES,
  type ErrorOutcome,
  type LastErrorEntity,
} from './agent.entity';
import {
  addCounts,
  countFailing,
  cutFutureOutcomes,
  deleteOutcomesOf,
  HOUR_MS,
  listLastErrors,
  replaces,
  SPAN_MS,
  type SpanCounts,
  selectFailing,
  storeErrors,
  sumOutcomes,
  takeSpans,
} from './agent-outcomes.queries';
import type { AgentErrorView, OutcomeCounts, OutcomeWindows } from './agents.dto';

/** An attempt that ended, and was not revoked. */
export interface EndedAttempt {
  readonly agentId: number;
  readonly taskId: number;
  readonly outcome: AttemptOutcome;
  /** The error that the agent reported, as a JSON string. */
  readonly message: string | null;
}

const DAY_MS = 24 * HOUR_MS;
/** How often counts are written, in milliseconds: a crash loses those since the last time. */
const FLUSH_MS = 1_000;
/** The most agents and spans that wait to be written; attempts of others are not counted until then. */
const MAX_PENDING = 100_000;
/** The topic of deleted outcomes; the message is the agent's id. */
const DELETED = 'agent-outcomes';

/** Counts that are not written yet. */
interface Pending {
  counts: Map<string, SpanCounts>;
  /** By the agent's id. */
  errors: Map<number, LastErrorEntity>;
}

/**
 * Owns agent_outcomes and agent_last_errors: the recent outcomes of each agent's attempts, and its last error. Soft
 * state: counted in memory when the unit of work that ends an attempt is committed, and written within about a second.
 * A process that is killed loses counts that it has not written; each replica adds its own.
 */
@Injectable()
export class AgentOutcomes implements OnApplicationShutdown {
  private readonly logger = new Logger('AgentOutcomes');
  private counts: Pending['counts'] = new Map();
  private errors: Pending['errors'] = new Map();
  /** The counts that are being written. */
  private writing: Pending | undefined;

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly jobs: JobRunner,
    continuity: Continuity,
  ) {
    database.onAnnouncement(DELETED, (id) => {
      const agentId = Number(id);
      for (const pending of [{ counts: this.counts, errors: this.errors }, this.writing]) {
        pending?.errors.delete(agentId);
        for (const [key, { agent_id }] of pending?.counts ?? [])
          if (agent_id === agentId) pending?.counts.delete(key);
      }
    });
    continuity.onInterruption(async (tx, { now, lastSeen }) => {
      if (lastSeen > now) await cutFutureOutcomes(tx);
    });
  }

  /** Counts attempts once the unit that ends them is committed. It adds no statement to the unit. */
  count(tx: Transaction, attempts: readonly EndedAttempt[]): void {
    if (attempts.length === 0) return;
    const { now } = tx;
    tx.afterCommit(() => {
      for (const attempt of attempts) this.take(attempt, now);
    });
  }

  /**
   * Writes the counts since the last time, in one unit of work of two statements.
   * @throws ERR_UNAVAILABLE they could not be written, and are kept for the next time
   */
  async flush(): Promise<void> {
    const { counts, errors } = this;
    if (counts.size === 0 && errors.size === 0) return;
    this.counts = new Map();
    this.errors = new Map();
    this.writing = { counts, errors };
    try {
      await this.database.write(async (tx) => {
        // Both statements lock rows in the order of ids, so that two replicas do not deadlock. If the clock was set
        // back meanwhile, move counts in the future to now.
        const spanNow = tx.now - (tx.now % SPAN_MS);
        await addCounts(tx, SPAN_MS, notAfter([...counts.values()], spanNow));
        await storeErrors(
          tx,
          [...errors.values()].map((error) => ({ ...error, at: Math.min(error.at, tx.now) })),
        );
      });
    } catch (error) {
      for (const [key, pending] of counts) {
        const later = this.counts.get(key);
        if (later) for (const outcome of ATTEMPT_OUTCOMES) later[outcome] += pending[outcome];
        else this.counts.set(key, pending);
      }
      for (const [agentId, pending] of errors) {
        const later = this.errors.get(agentId);
        if (!later || !replaces(later, pending)) this.errors.set(agentId, pending);
      }
      throw error;
    } finally {
      this.writing = undefined;
    }
  }

  /** Deletes an agent's outcomes, including counts that are not written yet. */
  async clear(tx: Transaction, agentId: number): Promise<void> {
    await deleteOutcomesOf(tx, agentId);
    tx.announce(DELETED, String(agentId));
  }

  /** Reads the outcomes of each agent's attempts in the last hour and day; agents without any are left out. */
  async of(statements: Statements, agentIds: readonly number[]): Promise<Map<number, OutcomeWindows>> {
    const now = this.clock.now();
    const rows = await sumOutcomes(statements, agentIds, {
      hourStart: hourStart(now),
      dayStart: now - DAY_MS,
      now,
    });
    const countsOf = (row: (typeof rows)[number], window: 'hour' | 'day') => {
      const counts: OutcomeCounts = { ...NONE };
      for (const outcome of ATTEMPT_OUTCOMES) counts[outcome] = row[`${window}_${outcome}`];
      return counts;
    };
    return new Map(
      rows.map((row) => [row.agent_id, { hour: countsOf(row, 'hour'), day: countsOf(row, 'day') }]),
    );
  }

  /** Reads the last error of each agent; agents without one are left out. */
  async lastErrorsOf(
    statements: Statements,
    agentIds: readonly number[],
  ): Promise<Map<number, AgentErrorView>> {
    const rows = await listLastErrors(statements, agentIds);
    return new Map(
      rows.map(({ agent_id, at, task_id, outcome, message }) => [
        agent_id,
        { at: toTimestamp(at), task_id, outcome, message: message === null ? null : JSON.parse(message) },
      ]),
    );
  }

  /**
   * Builds a query for the ids of failing agents, see docs/control-plane-api.md. It reads only the counts of agents
   * with a failed attempt in the last hour.
   * @param bind names the parameter of a value
   */
  selectFailing(bind: (value: SqlValue) => string): string {
    const now = this.clock.now();
    return selectFailing(hourStart(now), now, bind);
  }

  /**
   * Counts the failing agents in service, in one statement that reads only the counts of agents with a failed
   * attempt.
   */
  countFailing(statements: Statements): Promise<number> {
    const now = this.clock.now();
    return countFailing(statements, hourStart(now), now);
  }

  /**
   * Combines spans that are older than an hour to hours, and deletes those older than a day. The sums of the last hour
   * and day do not change.
   */
  async compact(): Promise<void> {
    const now = this.clock.now();
    await this.jobs.purge((limit) => this.combineSpans(hourStart(now), limit));
    await this.jobs.purge((limit) =>
      this.database.write(async (tx) => (await takeSpans(tx, HOUR_MS, now - DAY_MS - HOUR_MS, limit)).length),
    );
  }

  @Interval('agent-outcomes', FLUSH_MS)
  protected flushOften(): Promise<void> {
    return this.jobs.run('agent-outcomes', FLUSH_MS, () => this.flush(), { everywhere: true });
  }

  @Cron(CronExpression.EVERY_10_MINUTES)
  protected compactOften(): Promise<void> {
    return this.jobs.run('agent-outcome-retention', SPAN_MS, () => this.compact());
  }

  /** Writes the last counts: all requests have been answered, and the database is still open. */
  async onApplicationShutdown(): Promise<void> {
    await this.flush().catch((error: unknown) => {
      this.logger.warn({ err: error }, "the last counts of agents' outcomes could not be written");
    });
  }

  private take({ agentId, taskId, outcome, message }: EndedAttempt, at: number): void {
    const starts_at = at - (at % SPAN_MS);
    const key = `${agentId} ${starts_at}`;
    let counts = this.counts.get(key);
    if (!counts && this.counts.size < MAX_PENDING) {
      counts = { agent_id: agentId, starts_at, ...NONE };
      this.counts.set(key, counts);
    }
    if (counts) counts[outcome]++;
    if (!isError(outcome)) return;
    const last = this.errors.get(agentId);
    const error = { agent_id: agentId, at, task_id: taskId, outcome, message };
    if (last ? replaces(error, last) : this.errors.size < MAX_PENDING) this.errors.set(agentId, error);
  }

  /** @returns the number of spans that it combined */
  private combineSpans(before: number, limit: number): Promise<number> {
    return this.database.write(async (tx) => {
      const spans = await takeSpans(tx, SPAN_MS, before, limit);
      const hours = new Map<string, SpanCounts>();
      for (const { agent_id, starts_at: at, ...counts } of spans) {
        const starts_at = at - (at % HOUR_MS);
        const key = `${agent_id} ${starts_at}`;
        const hour = hours.get(key) ?? { agent_id, starts_at, ...NONE };
        for (const outcome of ATTEMPT_OUTCOMES) hour[outcome] += counts[outcome];
        hours.set(key, hour);
      }
      await addCounts(tx, HOUR_MS, [...hours.values()]);
      return spans.length;
    });
  }
}

const isError = (outcome: AttemptOutcome): outcome is ErrorOutcome =>
  (ERROR_OUTCOMES as readonly string[]).includes(outcome);

/** Counts of an agent without attempts. */
export const NONE: Readonly<OutcomeCounts> = {
  success: 0,
  timeout: 0,
  error: 0,
  unsaid: 0,
  cancelled: 0,
  expired: 0,
};

/** Spans that begin after this instant count as the last hour, which is therefore up to 10 minutes longer. */
const hourStart = (now: number): number => now - HOUR_MS - SPAN_MS;

/** Moves the counts of later spans to the current one. */
function notAfter(counts: readonly SpanCounts[], spanNow: number): SpanCounts[] {
  if (counts.every(({ starts_at }) => starts_at <= spanNow)) return [...counts];
  const merged = new Map<string, SpanCounts>();
  for (const each of counts) {
    const starts_at = Math.min(each.starts_at, spanNow);
    const key = `${each.agent_id} ${starts_at}`;
    const known = merged.get(key);
    if (!known) merged.set(key, { ...each, starts_at });
    else for (const outcome of ATTEMPT_OUTCOMES) known[outcome] += each[outcome];
  }
  return [...merged.values()];
}
