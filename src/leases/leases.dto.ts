import { ApiProperty, ApiPropertyOptional } from '@nestjs/swagger';
import { IsInt, IsOptional, Max, Min } from 'class-validator';
import type { ErrorDetails } from '../errors';
import { faultOf, type MemberShape, textOfMember } from '../http/json-body';
import { AgentBody, IsId, type ItemProblem, Items, isId } from '../http/validation';
import { OUTCOMES, type Outcome } from './result.entity';

/** What a lease gives to its agent. */
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
  @ApiProperty({
    type: 'object',
    additionalProperties: { type: 'integer', minimum: 0 },
    example: { dns: 10, http: 2 },
  })
  @Items(checkCapacities)
  capacities!: Record<string, number>;

  /** How long to wait for work where there is none, in milliseconds. */
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

/** The leases granted; none where there is nothing to do. */
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
  @ApiProperty({ type: [Number], maxItems: 1_000, example: [] })
  @Items(checkLeaseIds)
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

/** What became of each lease. */
export class ExtendResponse {
  @ApiProperty({ type: [ExtendOutcome] })
  outcomes!: ExtendOutcome[];

  /** Ids that are not active leases of the caller: stop working on them. */
  @ApiProperty({ type: [Number], example: [] })
  revoked!: number[];
}

/** One thing that a check observed. */
export class Observation {
  @ApiProperty({ example: 'rtt_ms', minLength: 1, maxLength: 255 })
  name!: string;

  /** Any JSON. */
  @ApiProperty({
    anyOf: [
      { type: 'number', format: 'double', nullable: true },
      ...(['string', 'boolean', 'object'] as const).map((type) => ({ type, nullable: true })),
      { type: 'array', items: {}, nullable: true },
    ],
    example: 12.5,
  })
  value!: unknown;

  @ApiProperty({ required: false, nullable: true, type: String, maxLength: 64, example: 'ms' })
  unit?: string | null;
}

/** What came of one lease. */
export class LeaseReport {
  @ApiProperty({ example: 4711 })
  lease_id!: number;

  /** At most 1,000. */
  @ApiProperty({ required: false, nullable: true, type: [Observation], maxItems: 1_000 })
  observations?: Observation[] | null;

  /** What the check came to; null if it is not said. */
  @ApiProperty({ required: false, nullable: true, enum: [...OUTCOMES, null], example: 'success' })
  outcome?: Outcome | null;

  /** Where the agent's own work stands in the trace, by W3C Trace Context. One that is malformed counts as none. */
  @ApiProperty({
    required: false,
    nullable: true,
    type: String,
    example: '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01',
  })
  traceparent?: string | null;
}

const MAX_LEASES = 1_000;

/** What is read of a list of {@link LeaseReport}s. */
const REPORTS: MemberShape = {
  judgedAlone: MAX_LEASES,
  members: {
    lease_id: {},
    outcome: {},
    traceparent: {},
    observations: { members: { name: {}, value: { asSent: true }, unit: {} } },
  },
};

/** What came of leases, done or given back; at most 1,000 in all. Each is judged alone. */
@AgentBody({ completed: REPORTS, cancelled: REPORTS })
export class ReportRequest {
  /** The caller's own id. */
  @ApiProperty({ example: 1 })
  @IsId()
  agent_id!: number;

  // As in an extend: the examples name no lease.
  /** Leases whose task is done, whatever the outcome of the check. */
  @ApiProperty({ type: [LeaseReport], maxItems: 1_000, example: [] })
  @Items(checkReports)
  completed!: unknown[];

  /** Leases given back: their tasks are tried again later. */
  @ApiProperty({ type: [LeaseReport], maxItems: 1_000, example: [] })
  @Items(checkReports)
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

  /** Left out where none was rejected. */
  @ApiProperty({ type: [RejectedReport], required: false })
  rejected?: RejectedReport[];
}

const MAX_OBSERVATIONS = 1_000;
const MAX_NAME = 255;
const MAX_UNIT = 64;

function checkCapacities(value: unknown): ItemProblem | undefined {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    return ['', 'must be an object of kinds to numbers'];
  for (const [kind, capacity] of Object.entries(value)) {
    if (!Number.isSafeInteger(capacity) || capacity < 0) return [kind, 'must be an integer of at least 0'];
  }
  return undefined;
}

function checkLeaseIds(value: unknown): ItemProblem | undefined {
  if (!Array.isArray(value) || value.length > MAX_LEASES)
    return ['', `must be a list of at most ${MAX_LEASES} lease ids`];
  const seen = new Set<unknown>();
  for (let i = 0; i < value.length; i++) {
    if (!isId(value[i])) return [i, 'must be an integer from 1 to 9007199254740991'];
    if (seen.has(value[i])) return [i, 'is in the list already'];
    seen.add(value[i]);
  }
  return undefined;
}

function checkReports(value: unknown): ItemProblem | undefined {
  return Array.isArray(value) && value.length <= MAX_LEASES
    ? undefined
    : ['', `must be a list of at most ${MAX_LEASES} reports`];
}

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
  if (typeof item !== 'object' || item === null || Array.isArray(item))
    return invalid({ [path]: 'must be an object' });
  const fault = faultOf(item);
  if (fault) return invalid(fault);
  const { lease_id, observations, outcome, traceparent } = item as Record<string, unknown>;
  if (!isGiven(lease_id)) return invalid({ [`${path}.lease_id`]: 'is required' });
  if (!isId(lease_id))
    return invalid({ [`${path}.lease_id`]: 'must be an integer from 1 to 9007199254740991' });
  if (isGiven(outcome) && !OUTCOMES.includes(outcome as Outcome))
    return invalid({ [`${path}.outcome`]: `must be one of ${OUTCOMES.join(', ')}` });
  const problem = checkObservations(observations);
  if (problem) {
    const [at, message] = problem;
    return invalid({ [`${path}.observations${at === '' ? '' : `.${at}`}`]: message });
  }
  return {
    lease_id,
    outcome: (outcome ?? null) as Outcome | null,
    observations: (observations ?? []) as Observation[],
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

const isGiven = (value: unknown): boolean => value !== undefined && value !== null;

function checkObservations(value: unknown): ItemProblem | undefined {
  if (!isGiven(value)) return undefined;
  if (!Array.isArray(value) || value.length > MAX_OBSERVATIONS) {
    return ['', `must be a list of at most ${MAX_OBSERVATIONS} observations`];
  }
  for (let i = 0; i < value.length; i++) {
    const observation = value[i] as Record<string, unknown>;
    if (typeof observation !== 'object' || observation === null || Array.isArray(observation))
      return [i, 'must be an object'];
    const { name, unit } = observation;
    // What is observed is chosen by strangers, and so may its name be: any characters will do.
    if (!isGiven(name)) return [`${i}.name`, 'is required'];
    if (typeof name !== 'string') return [`${i}.name`, 'must be a string'];
    if (name.length < 1 || name.length > MAX_NAME)
      return [`${i}.name`, `must have 1 to ${MAX_NAME} characters`];
    if (!Object.hasOwn(observation, 'value')) return [`${i}.value`, 'is required'];
    if (isGiven(unit) && typeof unit !== 'string') return [`${i}.unit`, 'must be a string'];
    if (isGiven(unit) && (unit as string).length > MAX_UNIT)
      return [`${i}.unit`, `must have at most ${MAX_UNIT} characters`];
  }
  return undefined;
}
