import { ApiProperty, ApiPropertyOptional } from '@nestjs/swagger';
import { IsInt, IsOptional, Max, Min } from 'class-validator';
import type { ErrorDetails } from '../errors';
import { Field, ID, itemCheck } from '../http/item-fields';
import { faultOf, textOfMember } from '../http/json-body';
import { AgentBody, IsId, isId } from '../http/validation';
import { Observation, OUTCOMES, type Outcome } from '../kinds/observations';
import { HoldsSpec } from '../kinds/spec-holders';

const MAX_LEASES = 1_000;

/** What a lease gives to its agent. */
@HoldsSpec()
export class LeaseGrant {
  /** Names the lease in extends and reports; greater than that of any lease before. */
  @ApiProperty({ example: 4711 })
  lease_id!: number;

  @ApiProperty({ example: 1203 })
  task_id!: number;

  @ApiProperty({ example: 'dns' })
  kind!: string;

  /** Milliseconds left, counted from when the agent sent the request. */
  @ApiProperty({ example: 60_000 })
  lease_until_ms!: number;

  /** What to do, in the form of the kind, with the kind repeated in it. */
  @ApiProperty({ type: Object, example: { kind: 'dns', query: 'example.com', record_type: 'A' } })
  spec!: object;

  /** Where the lease stands in its task's trace, by W3C Trace Context: the agent's own spans go below it. Left out if there is none. */
  @ApiProperty({ required: false, example: '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01' })
  traceparent?: string;
}

/** A claim of work. */
@AgentBody()
export class ClaimRequest {
  /** The caller's own id. */
  @ApiProperty({ example: 1 })
  @IsId()
  agent_id!: number;

  /**
   * How many leases of each kind the agent is willing to hold at once, those that it holds already included. One claim grants
   * at most 256; the kinds share them in proportion.
   */
  @Field({
    type: 'map',
    values: { type: 'integer', minimum: 0 },
    noun: 'kind',
    example: { dns: 10, http: 2 },
  })
  capacities!: Record<string, number>;

  /** How long to wait for work if there is none, in milliseconds. */
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

/** The leases granted; none if there is nothing to do. */
export class ClaimResponse {
  @ApiProperty({ type: [LeaseGrant] })
  leases!: LeaseGrant[];
}

/** A wish for more time. */
@AgentBody()
export class ExtendRequest {
  /** The caller's own id. */
  @ApiProperty({ example: 1 })
  @IsId()
  agent_id!: number;

  // The page fills examples in, so they name no lease: it could be one that the authorized agent holds.
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

  /** Counted from now, in milliseconds; taken as at least 10,000 and at most the lease duration. */
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

  /** Milliseconds left, counted from when the agent sent the request. */
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

/** The result of one lease. */
export class LeaseReport {
  @Field({ ...ID, example: 4711 })
  lease_id!: number;

  /** At most 1,000. */
  @Field({ type: 'list', optional: true, items: Observation, noun: 'observation', maxItems: 1_000 })
  observations?: Observation[] | null;

  /** What the check came to; null if it is not said. */
  @Field({ type: 'choice', optional: true, of: OUTCOMES, example: 'success' })
  outcome?: Outcome | null;

  /** Where the agent's own work stands in the trace, by W3C Trace Context. One that is malformed counts as none. */
  @Field({
    type: 'unchecked',
    optional: true,
    shown: { type: String },
    example: '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01',
  })
  traceparent?: string | null;
}

/** Reports, of which each is judged alone: see {@link judgeReport}. */
const REPORTS = {
  type: 'list',
  items: LeaseReport,
  noun: 'report',
  maxItems: MAX_LEASES,
  judgedAlone: true,
  example: [],
} as const;

/** Results of leases, done or given back; at most 1,000 in all. Each is judged alone. */
@AgentBody()
export class ReportRequest {
  /** The caller's own id. */
  @ApiProperty({ example: 1 })
  @IsId()
  agent_id!: number;

  // As in an extend: the examples name no lease.
  /** Leases whose task is done, whatever the outcome of the check. */
  @Field(REPORTS)
  completed!: unknown[];

  /** Leases given back: their tasks are tried again later. */
  @Field(REPORTS)
  cancelled!: unknown[];
}

export const REJECT_REASONS = ['expired', 'revoked', 'unknown', 'conflict', 'invalid'] as const;

/** A report that had no effect. */
export class RejectedReport {
  /** As it was sent; 0 if the report is invalid and names no lease that can be read. */
  @ApiProperty({ example: 4711 })
  lease_id!: number;

  /** What is known of an expired or revoked lease is kept as late evidence. The lease of an invalid report stays live. */
  @ApiProperty({ enum: REJECT_REASONS, example: 'expired' })
  reason!: (typeof REJECT_REASONS)[number];

  /** What is wrong with an invalid report: paths in the request to messages. */
  @ApiPropertyOptional({
    type: 'object',
    additionalProperties: true,
    example: { 'completed.0.observations.3.name': 'is required' },
  })
  details?: ErrorDetails;
}

/** How many reports were taken. */
export class ReportResponse {
  /** Reports that have effect, repeats included. */
  @ApiProperty({ example: 1 })
  acknowledged!: number;

  /** Left out if none was rejected. */
  @ApiProperty({ type: [RejectedReport], required: false })
  rejected?: RejectedReport[];
}

const problemOfReport = itemCheck(LeaseReport);

/**
 * Judges one item of a report.
 * @param path where it stands in the body, for the details
 * @returns the report, or why it is rejected
 */
export function judgeReport(item: unknown, path: string): LeaseReport | RejectedReport {
  const invalid = (details: ErrorDetails): RejectedReport => {
    const { lease_id } = Object(item) as { lease_id?: unknown };
    return { lease_id: isId(lease_id) ? lease_id : 0, reason: 'invalid', details };
  };
  // What the parser found is said first: of a name that is there twice, the value that is left may be right.
  const fault = faultOf(Object(item));
  if (fault) return invalid(fault);
  const problem = problemOfReport(item);
  if (problem) {
    const [at, message] = problem;
    return invalid({ [at === '' ? path : `${path}.${at}`]: message });
  }
  const { lease_id, observations, outcome, traceparent } = item as LeaseReport;
  return {
    lease_id,
    outcome: outcome ?? null,
    observations: observations ?? [],
    // As the specification says: what can't be read is as if it were not there.
    traceparent: typeof traceparent === 'string' ? traceparent : null,
  };
}

/** The observations of a report as they are stored and shown: values as they were sent, unknown fields left out. */
export function textOfObservations(observations: readonly Observation[]): string {
  const texts = observations.map((observation) => {
    const unit = observation.unit === undefined ? '' : `,"unit":${JSON.stringify(observation.unit)}`;
    return `{"name":${JSON.stringify(observation.name)},"value":${textOfMember(observation, 'value')}${unit}}`;
  });
  return `[${texts.join(',')}]`;
}
