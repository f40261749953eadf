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
import type { AgentErrorView, OutcomeCounts, OutcomeWindows } from './agents.dto';

/** An attempt that ended by itself. */
export interface EndedAttempt {
  readonly agentId: number;
  readonly taskId: number;
  readonly outcome: AttemptOutcome;
  /** What its agent said went wrong, as a JSON string. */
  readonly message: string | null;
}

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;
/** The spans that attempts of the last hour are counted in, in milliseconds; older ones are rolled up to hours. */
const SPAN_MS = 10 * MINUTE_MS;
/**
 * An error that says what went wrong is not hidden by what ends without a word within so long, in milliseconds: an agent whose
 * disk is full says so once, and then lets its leases expire.
 */
const SPEAKS_MS = HOUR_MS;
/** How often the counts are written, in milliseconds: so much of them can be lost. */
const FLUSH_MS = 1_000;
/** What is counted of so many agents waits to be written; of others nothing is counted until it is. */
const MAX_PENDING = 100_000;
/** Under which it is announced that an agent's outcomes are forgotten, by its id. */
const FORGOTTEN = 'agent-outcomes';

/** An agent fails if so many of its attempts ended in the last hour, and more than half of them badly. */
const MIN_ENDED = 5;

/** In the order of the table's columns. */
const COUNTED = ATTEMPT_OUTCOMES.join(', ');
const ENDED = ATTEMPT_OUTCOMES.join(' + ');
/**
 * What counts against the agent. A timeout does not: to find that a target is silent is its work, and when one goes silent that
 * the whole fleet probes, the agents that are broken must stand out. As the partial index says it, word for word.
 */
const FAILED = 'error + cancelled + expired';

/** What an agent's attempts in one span came to; in memory, not written yet. */
interface PendingCounts extends OutcomeCounts {
  readonly agent_id: number;
  readonly starts_at: number;
}

/** What is counted and not written yet. */
interface Pending {
  counts: Map<string, PendingCounts>;
  /** By the agent's id. */
  errors: Map<number, LastErrorEntity>;
}

/**
 * Owns agent_outcomes and agent_last_errors: how each agent's attempts ended lately, and what went wrong last. Soft state: counted
 * in memory when the unit of work that ends an attempt is committed, and written within about a second. A process that is killed
 * loses what it has not written; each replica adds its own.
 */
@Injectable()
export class AgentOutcomes implements OnApplicationShutdown {
  private readonly logger = new Logger('AgentOutcomes');
  private counts: Pending['counts'] = new Map();
  private errors: Pending['errors'] = new Map();
  /** What is being written. */
  private writing: Pending | undefined;

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly jobs: JobRunner,
    continuity: Continuity,
  ) {
    database.onAnnouncement(FORGOTTEN, (id) => {
      const agentId = Number(id);
      for (const pending of [{ counts: this.counts, errors: this.errors }, this.writing]) {
        pending?.errors.delete(agentId);
        for (const [key, { agent_id }] of pending?.counts ?? [])
          if (agent_id === agentId) pending?.counts.delete(key);
      }
    });
    continuity.onInterruption(async (tx, { now, lastSeen }) => {
      if (lastSeen <= now) return;
      // If the clock was set back, what is counted in the future would count as the last hour when that comes.
      await tx.run('DELETE FROM agent_outcomes WHERE starts_at > $1', now);
      await tx.run('UPDATE agent_last_errors SET at = $1 WHERE at > $1', now);
    });
  }

  /** Counts attempts once the unit that ends them is committed. Costs the unit no statement. */
  count(tx: Transaction, attempts: readonly EndedAttempt[]): void {
    if (attempts.length === 0) return;
    const { now } = tx;
    tx.afterCommit(() => {
      for (const attempt of attempts) this.take(attempt, now);
    });
  }

  /**
   * Writes what was counted since the last time, in one unit of work of two statements.
   * @throws ERR_UNAVAILABLE it could not be written, and is kept for the next time
   */
  async flush(): Promise<void> {
    const { counts, errors } = this;
    if (counts.size === 0 && errors.size === 0) return;
    this.counts = new Map();
    this.errors = new Map();
    this.writing = { counts, errors };
    try {
      await this.database.write(async (tx) => {
        // Of two replicas each would wait for the other, but for the order.
        // If the clock was set back meanwhile, what waits is not of the future.
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

  /** Forgets how an agent's attempts ended, what is counted and not written yet included. */
  async forget(tx: Transaction, agentId: number): Promise<void> {
    for (const table of ['agent_outcomes', 'agent_last_errors'])
      await tx.run(`DELETE FROM ${table} WHERE agent_id = $1`, agentId);
    tx.announce(FORGOTTEN, String(agentId));
  }

  /** How each of the agents' attempts ended in the last hour and day; agents without any are left out. */
  async of(statements: Statements, agentIds: readonly number[]): Promise<Map<number, OutcomeWindows>> {
    const now = this.clock.now();
    const inHour = `span_ms = ${SPAN_MS} AND starts_at > $2`;
    const rows = await statements.rows<Record<string, number> & { agent_id: number }>(
      `SELECT agent_id, ${ATTEMPT_OUTCOMES.map(
        (outcome) =>
          `sum(${outcome}) AS day_${outcome}, sum(CASE WHEN ${inHour} THEN ${outcome} ELSE 0 END) AS hour_${outcome}`,
      ).join(', ')}
       FROM agent_outcomes
       WHERE ${statements.dialect.isAmong('agent_id', '$1')} AND starts_at + span_ms > $3 AND starts_at <= $4
       GROUP BY agent_id`,
      JSON.stringify(agentIds),
      hourBegan(now),
      now - DAY_MS,
      now,
    );
    const countsOf = (row: Record<string, number>, window: 'hour' | 'day') => {
      const counts: OutcomeCounts = { ...NONE };
      for (const outcome of ATTEMPT_OUTCOMES) counts[outcome] = row[`${window}_${outcome}`] ?? 0;
      return counts;
    };
    return new Map(
      rows.map((row) => [row.agent_id, { hour: countsOf(row, 'hour'), day: countsOf(row, 'day') }]),
    );
  }

  /** What went wrong last with each of the agents; those with which nothing did are left out. */
  async lastErrorsOf(
    statements: Statements,
    agentIds: readonly number[],
  ): Promise<Map<number, AgentErrorView>> {
    const rows = await statements.rows<LastErrorEntity>(
      `SELECT * FROM agent_last_errors WHERE ${statements.dialect.isAmong('agent_id', '$1')}`,
      JSON.stringify(agentIds),
    );
    return new Map(
      rows.map(({ agent_id, at, task_id, outcome, message }) => [
        agent_id,
        { at: toTimestamp(at), task_id, outcome, message: message === null ? null : JSON.parse(message) },
      ]),
    );
  }

  /**
   * A query for the ids of the agents that fail: see docs/control-plane-api.md. It reads the counts of those alone of which an
   * attempt failed in the last hour.
   * @param bind names the parameter of a value
   */
  selectFailing(bind: (value: SqlValue) => string): string {
    const now = this.clock.now();
    const span = `span_ms = ${SPAN_MS} AND starts_at > ${bind(hourBegan(now))} AND starts_at <= ${bind(now)}`;
    return `SELECT agent_id FROM agent_outcomes
      WHERE agent_id IN (SELECT agent_id FROM agent_outcomes WHERE ${FAILED} > 0 AND ${span}) AND ${span}
      GROUP BY agent_id HAVING sum(${ENDED}) >= ${MIN_ENDED} AND 2 * sum(${FAILED}) > sum(${ENDED})`;
  }

  /** How many agents in service fail. One statement; it reads the counts of agents of which an attempt failed. */
  async countFailing(statements: Statements): Promise<number> {
    const values: SqlValue[] = [];
    const failing = this.selectFailing((value) => `$${values.push(value)}`);
    const row = await statements.first<{ count: number }>(
      `SELECT count(*) AS count FROM (${failing}) AS f JOIN agents a ON a.id = f.agent_id
       WHERE a.state IN ('active', 'draining')`,
      ...values,
    );
    return row?.count ?? 0;
  }

  /**
   * Rolls spans that are older than an hour up to hours, and deletes what is older than a day. Both windows count the same before
   * and after.
   */
  async upkeep(): Promise<void> {
    const now = this.clock.now();
    await this.jobs.purge((limit) => this.rollUp(hourBegan(now), limit));
    await this.jobs.purge((limit) =>
      this.database.write(async (tx) => (await takeSpans(tx, HOUR_MS, now - DAY_MS - HOUR_MS, limit)).length),
    );
  }

  @Interval('agent-outcomes', FLUSH_MS)
  protected flushOften(): Promise<void> {
    return this.jobs.run('agent-outcomes', FLUSH_MS, () => this.flush(), { everywhere: true });
  }

  @Cron(CronExpression.EVERY_10_MINUTES)
  protected upkeepOften(): Promise<void> {
    return this.jobs.run('agent-outcome-retention', SPAN_MS, () => this.upkeep());
  }

  /** The last requests have been answered, and the database is still open. */
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

  /** @returns how many spans it took in */
  private rollUp(before: number, limit: number): Promise<number> {
    return this.database.write(async (tx) => {
      const spans = await takeSpans(tx, SPAN_MS, before, limit);
      const hours = new Map<string, PendingCounts>();
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

/** No attempt. */
export const NONE: Readonly<OutcomeCounts> = {
  success: 0,
  timeout: 0,
  error: 0,
  unsaid: 0,
  cancelled: 0,
  expired: 0,
};

/** Spans that begin after this instant are of the last hour, which so is up to 10 minutes longer. */
const hourBegan = (now: number): number => now - HOUR_MS - SPAN_MS;

/** Counts with none of a later span than this: those are added to it. */
function notAfter(counts: readonly PendingCounts[], spanNow: number): PendingCounts[] {
  if (counts.every(({ starts_at }) => starts_at <= spanNow)) return [...counts];
  const merged = new Map<string, PendingCounts>();
  for (const each of counts) {
    const starts_at = Math.min(each.starts_at, spanNow);
    const key = `${each.agent_id} ${starts_at}`;
    const known = merged.get(key);
    if (!known) merged.set(key, { ...each, starts_at });
    else for (const outcome of ATTEMPT_OUTCOMES) known[outcome] += each[outcome];
  }
  return [...merged.values()];
}

async function addCounts(tx: Transaction, spanMs: number, counts: readonly PendingCounts[]): Promise<void> {
  if (counts.length === 0) return;
  const columns = Object.fromEntries(
    ['agent_id', 'starts_at', ...ATTEMPT_OUTCOMES].map((name) => [name, 'integer'] as const),
  );
  await tx.run(
    `INSERT INTO agent_outcomes (agent_id, span_ms, starts_at, ${COUNTED})
     SELECT agent_id, $2, starts_at, ${COUNTED} FROM ${tx.dialect.rowset('$1', columns)} AS r
     WHERE true ORDER BY agent_id, starts_at
     ON CONFLICT (agent_id, span_ms, starts_at) DO UPDATE SET
       ${ATTEMPT_OUTCOMES.map((outcome) => `${outcome} = agent_outcomes.${outcome} + excluded.${outcome}`).join(', ')}`,
    JSON.stringify(counts),
    spanMs,
  );
}

/**
 * Whether an error is shown in place of another, whichever came first: two replicas write in any order. The upsert of
 * {@link storeErrors} decides the same.
 */
function replaces(next: LastErrorEntity, last: LastErrorEntity): boolean {
  if ((next.message === null) === (last.message === null)) return next.at >= last.at;
  return next.message === null ? next.at >= last.at + SPEAKS_MS : next.at > last.at - SPEAKS_MS;
}

async function storeErrors(tx: Transaction, errors: readonly LastErrorEntity[]): Promise<void> {
  if (errors.length === 0) return;
  await tx.run(
    `INSERT INTO agent_last_errors (agent_id, at, task_id, outcome, message)
     SELECT agent_id, at, task_id, outcome, message
     FROM ${tx.dialect.rowset('$1', {
       agent_id: 'integer',
       at: 'integer',
       task_id: 'integer',
       outcome: 'text',
       message: 'text',
     })} AS r
     WHERE true ORDER BY agent_id
     ON CONFLICT (agent_id) DO UPDATE SET at = excluded.at, task_id = excluded.task_id, outcome = excluded.outcome,
       message = excluded.message
     WHERE CASE
       WHEN (excluded.message IS NULL) = (agent_last_errors.message IS NULL) THEN excluded.at >= agent_last_errors.at
       WHEN excluded.message IS NULL THEN excluded.at >= agent_last_errors.at + $2
       ELSE excluded.at > agent_last_errors.at - $2 END`,
    JSON.stringify(errors),
    SPEAKS_MS,
  );
}

/** Takes spans out of the table that begin at an instant or before. */
function takeSpans(
  tx: Transaction,
  spanMs: number,
  through: number,
  limit: number,
): Promise<PendingCounts[]> {
  return tx.rows<PendingCounts>(
    `DELETE FROM agent_outcomes WHERE (agent_id, span_ms, starts_at) IN (
       SELECT agent_id, span_ms, starts_at FROM agent_outcomes WHERE span_ms = $1 AND starts_at <= $2
       ORDER BY starts_at LIMIT $3 ${tx.dialect.skipLocked()})
     AND span_ms = $1 AND starts_at <= $2
     RETURNING agent_id, starts_at, ${COUNTED}`,
    spanMs,
    through,
    limit,
  );
}
