import { ApiProperty } from '@nestjs/swagger';
import { IsInt, IsOptional, Max, Min } from 'class-validator';
import { IsId, type ItemProblem, Items, isId } from '../http/validation';
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
}

/** A claim of work. */
export class ClaimRequest {
  /** The caller's own id. */
  @ApiProperty({ example: 1 })
  @IsId()
  agent_id!: number;

  /** How many tasks of each kind the agent can take; 256 in all at the most. */
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
export class ExtendRequest {
  /** The caller's own id. */
  @ApiProperty({ example: 1 })
  @IsId()
  agent_id!: number;

  /** At most 1,000 leases, each once. */
  @ApiProperty({ type: [Number], maxItems: 1_000, example: [4711] })
  @Items(checkLeaseIds)
  lease_ids!: number[];

  /** Counted from now, in milliseconds; clamped to 1,000 and the lease duration. */
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

  /** At most 100. */
  @ApiProperty({ required: false, nullable: true, type: [Observation], maxItems: 100 })
  observations?: Observation[] | null;

  /** What the check came to; `success` where a completed report leaves it out. */
  @ApiProperty({ required: false, nullable: true, enum: [...OUTCOMES, null], example: 'success' })
  outcome?: Outcome | null;
}

/** What came of leases, done or given back; 1,000 in all at the most. */
export class ReportRequest {
  /** The caller's own id. */
  @ApiProperty({ example: 1 })
  @IsId()
  agent_id!: number;

  /** Leases whose task is done, whatever the outcome of the check. */
  @ApiProperty({
    type: [LeaseReport],
    maxItems: 1_000,
    example: [
      {
        lease_id: 4711,
        outcome: 'success',
        observations: [{ name: 'rtt_ms', value: 12.5, unit: 'ms' }],
      },
    ],
  })
  @Items(checkReports)
  completed!: LeaseReport[];

  /** Leases given back: their tasks are tried again later. */
  @ApiProperty({
    type: [LeaseReport],
    maxItems: 1_000,
    example: [{ lease_id: 4712, outcome: 'timeout' }],
  })
  @Items(checkReports)
  cancelled!: LeaseReport[];
}

export const REJECT_REASONS = ['expired', 'revoked', 'unknown', 'conflict'] as const;

/** A report that had no effect. */
export class RejectedReport {
  @ApiProperty({ example: 4711 })
  lease_id!: number;

  /** What is known of an expired or revoked lease is kept as late evidence. */
  @ApiProperty({ enum: REJECT_REASONS, example: 'expired' })
  reason!: (typeof REJECT_REASONS)[number];
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

const MAX_LEASES = 1_000;
const MAX_OBSERVATIONS = 100;

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

const REPORT_FIELDS = new Set(['lease_id', 'observations', 'outcome']);
const OBSERVATION_FIELDS = new Set(['name', 'value', 'unit']);

function checkReports(value: unknown): ItemProblem | undefined {
  if (!Array.isArray(value) || value.length > MAX_LEASES)
    return ['', `must be a list of at most ${MAX_LEASES} reports`];
  const seen = new Set<unknown>();
  for (let i = 0; i < value.length; i++) {
    const report = value[i] as Record<string, unknown>;
    if (typeof report !== 'object' || report === null || Array.isArray(report))
      return [i, 'must be an object'];
    for (const name in report)
      if (!REPORT_FIELDS.has(name)) return [`${i}.${name}`, 'is not a field of a report'];
    const { lease_id, observations, outcome } = report;
    if (!isId(lease_id)) return [`${i}.lease_id`, 'must be an integer from 1 to 9007199254740991'];
    if (seen.has(lease_id)) return [`${i}.lease_id`, 'is in the list already'];
    seen.add(lease_id);
    if (outcome !== undefined && outcome !== null && !OUTCOMES.includes(outcome as Outcome)) {
      return [`${i}.outcome`, `must be one of ${OUTCOMES.join(', ')}`];
    }
    const problem = checkObservations(observations);
    if (problem) return [`${i}.observations${problem[0] === '' ? '' : `.${problem[0]}`}`, problem[1]];
  }
  return undefined;
}

function checkObservations(value: unknown): ItemProblem | undefined {
  if (value === undefined || value === null) return undefined;
  if (!Array.isArray(value) || value.length > MAX_OBSERVATIONS) {
    return ['', `must be a list of at most ${MAX_OBSERVATIONS} observations`];
  }
  for (let i = 0; i < value.length; i++) {
    const observation = value[i] as Record<string, unknown>;
    if (typeof observation !== 'object' || observation === null || Array.isArray(observation))
      return [i, 'must be an object'];
    for (const name in observation) {
      if (!OBSERVATION_FIELDS.has(name)) return [`${i}.${name}`, 'is not a field of an observation'];
    }
    const { name, unit } = observation;
    if (typeof name !== 'string' || name.length < 1 || name.length > 255)
      return [`${i}.name`, 'must be a string of 1 to 255 characters'];
    if (!('value' in observation)) return [`${i}.value`, 'must be there'];
    if (unit !== undefined && unit !== null && (typeof unit !== 'string' || unit.length > 64)) {
      return [`${i}.unit`, 'must be a string of at most 64 characters'];
    }
  }
  return undefined;
}
