import { hash } from 'node:crypto';
import { Injectable } from '@nestjs/common';
import type { Transaction } from '../database/statements';
import type { Outcome } from '../kinds/observations';
import {
  contextOf,
  isSampled,
  linkTo,
  markFailed,
  parseTraceparent,
  type TraceContext,
  toTraceparent,
  tracing,
} from '../tracing';
import type { LeaseState } from './lease.entity';
import { selectPreviousLeases } from './leases.queries';

/** The most attempts of one unit of work that get a span: a report of a thousand must not block other requests. */
const MAX_SPANS = 256;

/** A lease that ended, of a task that may belong to a trace. */
export interface EndedLease {
  readonly id: number;
  readonly taskId: number;
  readonly agentId: number;
  readonly kind: string;
  /** The number of the attempt, from 1. */
  readonly attempt: number;
  /** The trace context that the task was enqueued with. */
  readonly traceparent: string | null;
  readonly state: LeaseState;
  readonly outcome: Outcome | null;
  /** In ms since the epoch. */
  readonly grantedAt: number;
  /** The trace context of the agent's own span, if it reported one. */
  readonly agentTrace: TraceContext | undefined;
}

/**
 * Creates a span of each attempt at a task, in the trace of the task's enqueue. The span starts at the claim. The
 * replica that ends the lease creates it: its id is computed from the lease's id, so it need not be stored.
 */
@Injectable()
export class AttemptTraces {
  /**
   * Computes the trace context of a lease, the parent of the agent's own spans. The result is always the same.
   * @returns undefined if the task belongs to no trace
   */
  traceparentOf(traceparent: string | null, leaseId: number): string | undefined {
    const task = parseTraceparent(traceparent);
    if (!task) return undefined;
    // Without spans of ours, the agent continues the trace of the request that enqueued the task.
    return toTraceparent(tracing ? contextFor(task, leaseId) : task);
  }

  /** Creates the spans of attempts once the unit that ended them is committed. Reads nothing if traces are off. */
  async record(tx: Transaction, leases: readonly EndedLease[]): Promise<void> {
    if (!tracing) return;
    const traced = leases.flatMap((lease) => {
      const task = parseTraceparent(lease.traceparent);
      return task && isSampled(task) ? [{ ...lease, task }] : [];
    });
    if (traced.length === 0) return;
    const spanned = traced.slice(0, MAX_SPANS);
    const before = await selectPreviousLeases(
      tx,
      spanned.filter(({ attempt }) => attempt > 1),
    );
    const { now } = tx;
    const request = tracing.active();
    tx.afterCommit(() => {
      for (const lease of spanned) {
        const previous = before.get(lease.id);
        const spanId = spanIdOf(lease.task.traceId, lease.id);
        // An agent that returns the given trace context has created no span.
        const agentTrace = lease.agentTrace?.spanId === spanId ? undefined : lease.agentTrace;
        const links = [
          ...(previous === undefined ? [] : [linkTo(contextFor(lease.task, previous), 'previous_attempt')]),
          ...(agentTrace ? [linkTo(agentTrace, 'agent')] : []),
          ...(request ? [linkTo(contextOf(request), 'ended_by')] : []),
        ];
        const span = tracing?.start(`attempt ${lease.kind}`, {
          kind: 'consumer',
          parent: lease.task,
          spanId,
          startedAt: lease.grantedAt,
          links,
          attributes: {
            'control_plane.task_id': lease.taskId,
            'control_plane.lease_id': lease.id,
            'control_plane.agent_id': lease.agentId,
            'control_plane.attempt': lease.attempt,
            'control_plane.lease_state': lease.state,
            ...(lease.outcome === null ? {} : { 'control_plane.outcome': lease.outcome }),
          },
        });
        if (!span) continue;
        if (lease.state !== 'completed') markFailed(span, lease.state);
        span.end(now);
      }
    });
  }
}

const contextFor = (task: TraceContext, leaseId: number): TraceContext => ({
  ...task,
  spanId: spanIdOf(task.traceId, leaseId),
});

/** Computes the id of a lease's span: 64 bits that are not 0, the same on every replica. */
function spanIdOf(traceId: string, leaseId: number): string {
  const id = hash('sha256', `${traceId} lease ${leaseId}`, 'hex').slice(0, 16);
  return /^0+$/.test(id) ? '0000000000000001' : id;
}
