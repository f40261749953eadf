import { ApiProperty, ApiPropertyOptional } from '@nestjs/swagger';
import { IsInt, IsOptional, Max, Min } from 'class-validator';
import type { ErrorDetails } from '../errors';
import { Field, ID, itemCheck } from '../http/item-fields';
import { faultOf, lengthOfMember, textOfMember } from '../http/json-body';
import { AgentBody, IsId, isId } from '../http/validation';
import { FAILURES, type Failure, Observation, OUTCOMES, type Outcome } from '../kinds/observations';
import { MAX_SIGNAL_MS } from '../kinds/signals';
import { HoldsSpec } from '../kinds/spec-holders';

const MAX_LEASES = 1_000;

/** A granted lease, with its task. */
@HoldsSpec()
export class LeaseGrant {
  /** Identifies the lease in extends and reports; greater than that of every earlier lease. */
  @ApiProperty({ example: 4711 })
  lease_id!: number;

  @ApiProperty({ example: 1203 })
  task_id!: number;

  @ApiProperty({ example: 'dns' })
  kind!: string;

  /** Milliseconds until the deadline, counted from when the agent sent the request. */
  @ApiProperty({ example: 60_000 })
  lease_until_ms!: number;

  /**
   * How many milliseconds to wait before the start of the check, counted from the arrival of the answer. Left out if the target has
   * no rate.
   */
  @ApiProperty({ required: false, example: 400 })
  start_in_ms?: number;

  /** The spec of the task, with its kind. */
  @ApiProperty({ type: Object, example: { kind: 'dns', query: 'example.com', record_type: 'A' } })
  spec!: object;

  /**
   * The lease's W3C Trace Context in the trace of its task: the parent of the agent's own spans. Left out if there is
   * none.
   */
  @ApiProperty({ required: false, example: '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01' })
  traceparent?: string;
}

/** A claim of tasks. */
@AgentBody()
export class ClaimRequest {
  /** The caller's own id. */
  @ApiProperty({ example: 1 })
  @IsId()
  agent_id!: number;

  /**
   * The most leases of each kind that the agent can hold at once, including those that it holds already. One claim
   * grants at most 256, which the kinds share in proportion.
   */
  @Field({
    type: 'map',
    values: { type: 'integer', minimum: 0 },
    noun: 'kind',
    example: { dns: 10, http: 2 },
  })
  capacities!: Record<string, number>;

  /** How long to wait for tasks if there are none, in milliseconds. */
  @ApiProperty({
    required: false,
    nullable: true,
    type: Number,
    minimum: 0,
    maximum: 30_000,
    example: 0,
  })
  @IsOptional()
  @IsInt()
  @Min(0)
  @Max(30_000)
  wait_ms?: number | null;
}

/** The granted leases; empty if there are no tasks. */
export class ClaimResponse {
  @ApiProperty({ type: [LeaseGrant] })
  leases!: LeaseGrant[];
}

/** A request for later deadlines. */
@AgentBody()
export class ExtendRequest {
  /** The caller's own id. */
  @ApiProperty({ example: 1 })
  @IsId()
  agent_id!: number;

  // The documentation page sends the examples, so they name no lease: the authorized agent could hold it.
  /** At most 1,000 leases, each once. */
  @Field({
    type: 'list',
    items: ID,
    noun: 'lease id',
    maxItems: MAX_LEASES,
    uniqueItems: true,
    example: [],
  })
  lease_ids!: number[];

  /** From now, in milliseconds; raised to at least 10,000 and limited to the lease duration. */
  @ApiProperty({ example: 30_000 })
  @IsInt()
  @Min(0)
  @Max(Number.MAX_SAFE_INTEGER)
  extend_by_ms!: number;
}

/** A lease with its deadline. */
export class ExtendOutcome {
  @ApiProperty({ example: 4711 })
  lease_id!: number;

  /** Milliseconds until the deadline, counted from when the agent sent the request. */
  @ApiProperty({ example: 60_000 })
  new_deadline_ms!: number;
}

/** The result for each lease. */
export class ExtendResponse {
  @ApiProperty({ type: [ExtendOutcome] })
  outcomes!: ExtendOutcome[];

  /** Ids that are not active leases of the caller: stop working on them. */
  @ApiProperty({ type: [Number], example: [] })
  revoked!: number[];
}

/** The report of one lease. */
export class LeaseReport {
  @Field({ ...ID, example: 4711 })
  lease_id!: number;

  /** At most 1,000. */
  @Field({ type: 'list', optional: true, items: Observation, noun: 'observation', maxItems: 1_000 })
  observations?: Observation[] | null;

  /** The outcome of the check; null if it is not given. */
  @Field({ type: 'choice', optional: true, of: OUTCOMES, example: 'success' })
  outcome?: Outcome | null;

  /**
   * What went wrong with the check, for the rate of starts at its target: `refused` and `throttled` lower it, `timeout` and
   * `unreachable` do if there are many; `local` (the agent's own trouble) and `policy` (its owner's rules) do not count.
   * Null: the kind of the task decides by the observations and the outcome.
   */
  @Field({ type: 'choice', optional: true, of: FAILURES, example: null })
  failure?: Failure | null;

  /** How long the target took to answer, in milliseconds. Null: the kind of the task looks for it in the observations. */
  @Field({ type: 'number', optional: true, minimum: 0, maximum: MAX_SIGNAL_MS, example: 12.5 })
  rtt_ms?: number | null;

  /** The W3C Trace Context of the agent's own span. Ignored if malformed. */
  @Field({
    type: 'unchecked',
    optional: true,
    shown: { type: String },
    example: '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01',
  })
  traceparent?: string | null;
}

/** Reports, each of which is validated alone: see {@link judgeReport}. */
const REPORTS = {
  type: 'list',
  items: LeaseReport,
  noun: 'report',
  maxItems: MAX_LEASES,
  judgedAlone: true,
  example: [],
} as const;

/** The reports of leases, completed and cancelled, at most 1,000 in total. Each is validated alone. */
@AgentBody()
export class ReportRequest {
  /** The caller's own id. */
  @ApiProperty({ example: 1 })
  @IsId()
  agent_id!: number;

  // As in an extend: the examples name no lease.
  /** Leases whose task is completed, whatever the outcome of the check. */
  @Field(REPORTS)
  completed!: unknown[];

  /** Returned leases: their tasks are retried later. */
  @Field(REPORTS)
  cancelled!: unknown[];
}

export const REJECT_REASONS = ['expired', 'revoked', 'unknown', 'conflict', 'invalid'] as const;

/** A report that had no effect. */
export class RejectedReport {
  /** As it was sent; 0 if the report is invalid and its lease id is missing or unreadable. */
  @ApiProperty({ example: 4711 })
  lease_id!: number;

  /** The result of an expired or revoked lease is stored as late. The lease of an invalid report stays live. */
  @ApiProperty({ enum: REJECT_REASONS, example: 'expired' })
  reason!: (typeof REJECT_REASONS)[number];

  /** The errors of an invalid report: paths in the request to messages. */
  @ApiPropertyOptional({
    type: 'object',
    additionalProperties: true,
    example: { 'completed.0.observations.3.name': 'is required' },
  })
  details?: ErrorDetails;
}

/** The number of acknowledged reports, and the rejected ones. */
export class ReportResponse {
  /** The number of reports that have effect, repeats included. */
  @ApiProperty({ example: 1 })
  acknowledged!: number;

  /** Left out if none was rejected. */
  @ApiProperty({ type: [RejectedReport], required: false })
  rejected?: RejectedReport[];
}

const problemOfReport = itemCheck(LeaseReport);

/**
 * Validates one item of a report.
 * @param path its path in the body, for the details
 * @returns the report, or the rejection with its reason
 */
export function judgeReport(item: unknown, path: string): LeaseReport | RejectedReport {
  const invalid = (details: ErrorDetails): RejectedReport => {
    const { lease_id } = Object(item) as { lease_id?: unknown };
    return { lease_id: isId(lease_id) ? lease_id : 0, reason: 'invalid', details };
  };
  // Report the parser's errors first: after a duplicate name the remaining value may be valid.
  const fault = faultOf(Object(item));
  if (fault) return invalid(fault);
  const problem = problemOfReport(item);
  if (problem) {
    const [at, message] = problem;
    return invalid({ [at === '' ? path : `${path}.${at}`]: message });
  }
  const { lease_id, observations, outcome, failure, rtt_ms, traceparent } = item as LeaseReport;
  return {
    lease_id,
    outcome: outcome ?? null,
    failure: failure ?? null,
    rtt_ms: rtt_ms ?? null,
    observations: observations ?? [],
    // The specification says: ignore a value that can't be parsed.
    traceparent: typeof traceparent === 'string' ? traceparent : null,
  };
}

/** About how long the text of observations is, in characters; it costs much less than the text. */
export const lengthOfObservations = (observations: readonly Observation[]): number =>
  observations.reduce((sum, one) => sum + one.name.length + lengthOfMember(one, 'value'), 0);

/** Serializes the observations of a report for storage and answers: values as sent, without unknown fields. */
export function textOfObservations(observations: readonly Observation[]): string {
  const texts = observations.map((observation) => {
    const unit = observation.unit === undefined ? '' : `,"unit":${JSON.stringify(observation.unit)}`;
    return `{"name":${JSON.stringify(observation.name)},"value":${textOfMember(observation, 'value')}${unit}}`;
  });
  return `[${texts.join(',')}]`;
}
