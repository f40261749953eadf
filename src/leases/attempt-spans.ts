import { hash } from 'node:crypto';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { Injectable, Logger, type OnApplicationShutdown } from '@nestjs/common';
import { Database } from '../database/database';
import type { Statements, Transaction } from '../database/statements';
import {
  currentTrace,
  isSampled,
  linkTo,
  markFailed,
  parseTraceparent,
  type TraceContext,
  toTraceparent,
  tracing,
} from '../tracing';
import type { LeaseState } from './lease.entity';
import type { Outcome } from './result.entity';

/** Ended attempts whose spans wait to be made; what ends beyond that gets none. */
const MAX_WAITING = 4_000;
/** How many are made in one turn of the event loop, so that no request waits long. */
const BATCH = 200;
const SPAN_ID_DIGITS = 16;

/** An attempt that ended. */
export interface EndedAttempt {
  /** Of the lease. */
  readonly id: number;
  /** The context in which the agent did the check, if it said. */
  readonly traceparent?: string | undefined;
}

interface AttemptRow {
  id: number;
  task_id: number;
  agent_id: number;
  kind: string;
  attempt: number;
  state: LeaseState;
  granted_at: number;
  ended_at: number;
  outcome: Outcome | null;
  traceparent: string;
  /** The lease of the attempt before it. */
  before_id: number | null;
}

/**
 * Where an attempt stands in its task's trace. The id of its span follows from the trace and the lease, so that every replica
 * knows it and nothing needs to be stored.
 */
const attemptOf = ({ traceId, flags }: TraceContext, leaseId: number): TraceContext => ({
  traceId,
  spanId: hash('sha256', `${traceId} ${leaseId}`).slice(0, SPAN_ID_DIGITS),
  flags,
});

/** The `traceparent` that a lease gives to its agent: the attempt's, or if none is recorded, that of the task. */
export function traceparentOfLease(ofTask: string | null, leaseId: number): string | undefined {
  const task = parseTraceparent(ofTask);
  if (!task) return undefined;
  return toTraceparent(tracing && isSampled(task) ? attemptOf(task, leaseId) : task);
}

/** Makes a span for each attempt, when it has ended, in the trace that its task was enqueued in. */
@Injectable()
export class AttemptSpans implements OnApplicationShutdown {
  private readonly logger = new Logger('Traces');
  private waiting: (EndedAttempt & { endedBy: TraceContext | undefined })[] = [];
  private working: Promise<void> | undefined;

  constructor(private readonly database: Database) {}

  /** Has the spans made once the unit, in which the leases end, is committed. */
  ended(tx: Transaction, attempts: readonly EndedAttempt[]): void {
    if (!tracing || attempts.length === 0) return;
    const current = currentTrace();
    const endedBy = current && { traceId: current.trace_id, spanId: current.span_id, flags: 1 };
    tx.afterCommit(() => {
      for (const attempt of attempts.slice(0, MAX_WAITING - this.waiting.length))
        this.waiting.push({ ...attempt, endedBy });
      this.working ??= this.work();
    });
  }

  /** Makes those that wait. */
  async onApplicationShutdown(): Promise<void> {
    await this.working;
  }

  private async work(): Promise<void> {
    await nextTurn();
    try {
      while (tracing && this.waiting.length > 0) {
        const batch = this.waiting.splice(0, BATCH);
        const byId = new Map(batch.map((attempt) => [attempt.id, attempt]));
        const rows = await this.database.read((statements) => findAttempts(statements, [...byId.keys()]));
        for (const row of rows) makeSpan(row, byId.get(row.id));
        await nextTurn();
      }
    } catch (error) {
      this.waiting = [];
      this.logger.warn({ err: error }, 'the spans of attempts that ended are lost');
    } finally {
      this.working = undefined;
    }
  }
}

function findAttempts(statements: Statements, leaseIds: readonly number[]): Promise<AttemptRow[]> {
  // The last two digits are the flags; bit 0 says sampled.
  return statements.rows<AttemptRow>(
    `SELECT l.id, l.task_id, l.agent_id, t.kind, l.attempt, l.state, l.granted_at, l.ended_at, r.outcome, t.traceparent,
       (SELECT max(p.id) FROM leases p WHERE p.task_id = l.task_id AND p.id < l.id) AS before_id
     FROM leases l JOIN tasks t ON t.id = l.task_id LEFT JOIN results r ON r.lease_id = l.id
     WHERE ${statements.dialect.isAmong('l.id', '$1')} AND l.ended_at IS NOT NULL AND substr(t.traceparent, 55, 1) IN ('1', '3')`,
    JSON.stringify(leaseIds),
  );
}

function makeSpan(
  row: AttemptRow,
  ended: (EndedAttempt & { endedBy: TraceContext | undefined }) | undefined,
): void {
  const task = parseTraceparent(row.traceparent);
  if (!task || !tracing) return;
  const check = parseTraceparent(ended?.traceparent);
  const span = tracing.start(`attempt ${row.kind}`, {
    kind: 'consumer',
    parent: task,
    spanId: attemptOf(task, row.id).spanId,
    startedAt: row.granted_at,
    attributes: {
      'control_plane.task_id': row.task_id,
      'control_plane.lease_id': row.id,
      'control_plane.agent_id': row.agent_id,
      'control_plane.kind': row.kind,
      'control_plane.attempt': row.attempt,
      'control_plane.state': row.state,
      ...(row.outcome === null ? {} : { 'control_plane.outcome': row.outcome }),
    },
    links: [
      ...(row.before_id === null ? [] : [linkTo(attemptOf(task, row.before_id), 'attempt_before')]),
      ...(check ? [linkTo(check, 'check')] : []),
      ...(ended?.endedBy ? [linkTo(ended.endedBy, 'ended_by')] : []),
    ],
  });
  if (row.state === 'expired') markFailed(span, 'expired');
  span.end(row.ended_at);
}
