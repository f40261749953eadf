import { ApiProperty, ApiPropertyOptional } from '@nestjs/swagger';
import { Transform } from 'class-transformer';
import { IsBoolean, IsIn, IsOptional, IsString, Matches, MaxLength } from 'class-validator';
import { IsName, OptionalIdInQuery } from '../http/fields';
import { Field, shown } from '../http/item-fields';
import { PageEnd, PageQuery } from '../http/pagination';
import { AgentBody, IsId } from '../http/validation';
import {
  AGENT_ORIGINS,
  type AgentOrigin,
  type AttemptOutcome,
  CONFIG_STATUSES,
  type ConfigStatus,
  ERROR_OUTCOMES,
  type ErrorOutcome,
} from './agent.entity';
import { MAX_VERSION } from './agent-about';
import { MAX_HOSTNAME } from './hostnames';
import { LABEL_FILTERS, LABELS, type Labels } from './labels';

/** A registration. */
@AgentBody()
export class RegisterRequest {
  // The documentation page sends the example, so it has no name: a silent agent with that name would be taken over.
  /** The name of the identity, such as `probe-fra-1`; without one each registration creates a new identity. */
  @ApiProperty({
    required: false,
    nullable: true,
    type: String,
    minLength: 1,
    maxLength: MAX_HOSTNAME,
    example: null,
  })
  @IsOptional()
  @IsName(MAX_HOSTNAME)
  hostname?: string | null;

  /** Alternative to the header `X-Enrollment-Token`. */
  @ApiProperty({
    required: false,
    nullable: true,
    type: String,
    maxLength: 512,
    writeOnly: true,
    example: null,
  })
  @IsOptional()
  @IsString()
  @MaxLength(512)
  enrollment_token?: string | null;
}

/** The credentials of an agent. */
export class AgentCredentials {
  @ApiProperty({ example: 1 })
  agent_id!: number;

  /** For the header `X-Agent-Token`; it is shown only here. */
  @ApiProperty({ example: 'dcpa_4fXfrkyE4tpFq3JnTGpUQW4wYV0H8d4WkQ9bGmT2nXo3kPzA1' })
  auth_token!: string;
}

/** An identity, and the times that an agent must keep. */
export class RegisterResponse extends AgentCredentials {
  /** How long a lease lasts if it is not extended, in milliseconds. */
  @ApiProperty({ example: 60_000 })
  lease_duration_ms!: number;

  /** An agent counts as offline if it is silent for longer, in milliseconds. */
  @ApiProperty({ example: 45_000 })
  heartbeat_timeout_ms!: number;
}

/** A heartbeat. */
@AgentBody()
export class HeartbeatRequest {
  /** The caller's own id. */
  @ApiProperty({ example: 1 })
  @IsId()
  agent_id!: number;

  /**
   * The revision that the agent applied or failed to apply. Send it with each heartbeat: repeating it costs nothing.
   */
  @ApiProperty({
    required: false,
    nullable: true,
    type: String,
    minLength: 1,
    maxLength: 64,
    example: null,
  })
  @IsOptional()
  @Matches(/^[\x21-\x7e]{1,64}$/, { message: 'must be 1 to 64 visible ASCII characters' })
  config_revision?: string | null;

  /** Whether it was applied; required with `config_revision`. */
  @ApiProperty({ required: false, nullable: true, enum: [...CONFIG_STATUSES, null], example: null })
  @IsOptional()
  @IsIn(CONFIG_STATUSES)
  config_status?: ConfigStatus | null;

  /** Why it failed, if it did. */
  @ApiProperty({ required: false, nullable: true, type: String, maxLength: 1_000, example: null })
  @IsOptional()
  @IsString()
  @MaxLength(1_000)
  config_message?: string | null;
}

/** The deadline of the next heartbeat, and the configuration in force. */
export class HeartbeatResponse {
  @ApiProperty({ example: 1 })
  agent_id!: number;

  /** Milliseconds until the next heartbeat is due, counted from when the agent sent the request. */
  @ApiProperty({ example: 45_000 })
  next_deadline_ms!: number;

  /** The revision of the configuration in force; left out if there is none. */
  @ApiProperty({ required: false, example: 'a3f1c2d4e5b60718' })
  config_revision?: string;
}

/** The status of an agent: the state that an operator set, else whether its heartbeat is in time. */
export const AGENT_STATUSES = ['online', 'offline', 'draining', 'disabled', 'revoked'] as const;
export type AgentStatus = (typeof AGENT_STATUSES)[number];

/**
 * The state that an agent reported for the configuration in force; `other`: it reported another revision; `unsaid`:
 * none.
 */
export const CONFIG_STANDINGS = [...CONFIG_STATUSES, 'other', 'unsaid'] as const;
export type ConfigStanding = (typeof CONFIG_STANDINGS)[number];

/** The filters of the list of agents. */
export class AgentsQuery extends PageQuery {
  @ApiPropertyOptional({
    description: 'Only agents of this status.',
    enum: AGENT_STATUSES,
    example: 'online',
  })
  @IsOptional()
  @IsIn(AGENT_STATUSES)
  status?: AgentStatus;

  @ApiPropertyOptional({
    description: 'Only the agent of this hostname, in any case and with or without a final dot.',
    minLength: 1,
    maxLength: MAX_HOSTNAME,
    example: 'probe-fra-1',
  })
  @IsOptional()
  @IsName(MAX_HOSTNAME)
  hostname?: string;

  /** Only agents with this label, `name:value`; if it is repeated, with all of them. */
  @Transform(({ value }) => (value === undefined ? undefined : [value].flat()))
  @Field({ ...LABEL_FILTERS, optional: true, example: ['region:fra'] })
  label?: string[];

  @ApiPropertyOptional({
    description: 'Only agents that showed this enrollment token last.',
    type: 'integer',
    minimum: 1,
    example: 1,
  })
  @OptionalIdInQuery()
  enrollment_token_id?: number;

  @ApiPropertyOptional({
    description:
      'True: only agents of which at least 5 attempts ended in the last hour, more than half of them as `error`, `cancelled` or `expired`. False: only the others.',
    type: Boolean,
    example: true,
  })
  @Transform(({ value }) => (value === 'true' ? true : value === 'false' ? false : value))
  @IsOptional()
  @IsBoolean()
  failing?: boolean;

  @ApiPropertyOptional({
    description:
      'Only agents that reported this state of the configuration in force. `other`: they reported another revision; `unsaid`: none.',
    enum: CONFIG_STANDINGS,
    example: 'failed',
  })
  @IsOptional()
  @IsIn(CONFIG_STANDINGS)
  config_status?: ConfigStanding;

  @ApiPropertyOptional({
    description: 'Only agents that take this kind of tasks, see `kinds`.',
    maxLength: 64,
    example: 'dns',
  })
  @IsOptional()
  @IsString()
  @MaxLength(64)
  kind?: string;

  @ApiPropertyOptional({
    description: 'Only agents that report exactly this version.',
    maxLength: MAX_VERSION,
    example: 'dns-agent/1.4.2',
  })
  @IsOptional()
  @IsString()
  @MaxLength(MAX_VERSION)
  version?: string;
}

/** An agent that an operator creates, so that it need not register. */
export class CreateAgentRequest {
  /** Must not belong to another agent. */
  @ApiProperty({
    required: false,
    nullable: true,
    type: String,
    minLength: 1,
    maxLength: MAX_HOSTNAME,
    example: 'probe-ams-1',
  })
  @IsOptional()
  @IsName(MAX_HOSTNAME)
  hostname?: string | null;

  @Field({ ...LABELS, optional: true })
  labels?: Labels | null;
}

/** How to change an agent's token. */
export class RotateRequest {
  /**
   * Whether its current token is void at once, and its leases are revoked. Otherwise that token works until the new one
   * is first used, at most 10 minutes.
   */
  @ApiProperty({ required: false, nullable: true, type: Boolean, example: false })
  @IsOptional()
  @IsBoolean()
  revoke_old?: boolean | null;
}

/** An agent's labels. */
export class SetLabelsRequest {
  /** All labels of the agent: others are removed. */
  @Field(LABELS)
  labels!: Labels;
}

/** The last state that an agent reported for its configuration. */
export class ConfigStateView {
  @ApiProperty({ example: 'a3f1c2d4e5b60718' })
  revision!: string;

  @ApiProperty({ enum: CONFIG_STATUSES, example: 'applied' })
  status!: ConfigStatus;

  /** Why it failed; null if the agent did not report it. */
  @ApiProperty({ type: String, nullable: true, example: null })
  message!: string | null;

  /** When it first reported this state. */
  @ApiProperty({ format: 'date-time', example: '2026-01-01T00:00:30.000Z' })
  reported_at!: string;
}

/** The number of attempts by outcome. */
export class OutcomeCounts implements Record<AttemptOutcome, number> {
  @ApiProperty({ type: 'integer', example: 118 })
  success!: number;

  /** Completed, and the target did not answer: a finding, which does not count as a failure of the agent. */
  @ApiProperty({ type: 'integer', example: 3 })
  timeout!: number;

  /** Completed, and the check failed. */
  @ApiProperty({ type: 'integer', example: 1 })
  error!: number;

  /** Completed, and the report named no outcome. */
  @ApiProperty({ type: 'integer', example: 0 })
  unsaid!: number;

  /** Returned by the agent. */
  @ApiProperty({ type: 'integer', example: 0 })
  cancelled!: number;

  /** Not reported in time. */
  @ApiProperty({ type: 'integer', example: 0 })
  expired!: number;
}

/** The recent outcomes of an agent's attempts, without revoked attempts and late reports. */
export class OutcomeWindows {
  /** In the last hour, and up to 10 minutes more. */
  @ApiProperty({ type: OutcomeCounts })
  hour!: OutcomeCounts;

  /** In the last day, and up to an hour more. */
  @ApiProperty({ type: OutcomeCounts })
  day!: OutcomeCounts;
}

/** The last error of an agent. */
export class AgentErrorView {
  @ApiProperty({ format: 'date-time', example: '2026-01-01T00:00:30.000Z' })
  at!: string;

  @ApiProperty({ example: 1203 })
  task_id!: number;

  @ApiProperty({ enum: ERROR_OUTCOMES, example: 'error' })
  outcome!: ErrorOutcome;

  /**
   * The agent's message, at most 300 characters; null without one. Do not trust it: it may contain text from the
   * target.
   */
  @ApiProperty({ type: String, nullable: true, example: 'ECONNREFUSED' })
  message!: string | null;
}

/** An agent. */
export class AgentView {
  @ApiProperty({ example: 1 })
  id!: number;

  @ApiProperty({ type: String, nullable: true, example: 'probe-fra-1' })
  hostname!: string | null;

  @ApiProperty(shown(LABELS))
  labels!: Labels;

  /** The kinds of tasks that its claims of the last day asked for, sorted; empty if it has not claimed. */
  @ApiProperty({ type: [String], example: ['dns', 'http'] })
  kinds!: string[];

  @ApiProperty({ enum: AGENT_STATUSES, example: 'online' })
  status!: AgentStatus;

  /**
   * How it was added. An agent that registered openly is handed over without proof once it has missed its heartbeat.
   */
  @ApiProperty({ enum: AGENT_ORIGINS, example: 'open' })
  origin!: AgentOrigin;

  @ApiProperty({ format: 'date-time', example: '2026-01-01T00:00:00.000Z' })
  registered_at!: string;

  /** When it was handed over without proof; null if it was not, or the owner has it back. */
  @ApiProperty({ type: String, nullable: true, format: 'date-time', example: null })
  handed_over_at!: string | null;

  /** The issued enrollment token that it came with last; null if it never showed one. */
  @ApiProperty({ type: 'integer', nullable: true, example: 1 })
  enrollment_token_id!: number | null;

  /** The registration, or the creation by an operator, counts as the first heartbeat. */
  @ApiProperty({ format: 'date-time', example: '2026-01-01T00:00:30.000Z' })
  last_heartbeat_at!: string;

  /** Null if the token does not expire. */
  @ApiProperty({ type: String, nullable: true, format: 'date-time', example: null })
  token_expires_at!: string | null;

  /** The number of its live leases. */
  @ApiProperty({ example: 3 })
  live_leases!: number;

  /** The `User-Agent` of its claims and heartbeats, which is not verified; null if it sent none. */
  @ApiProperty({ type: String, nullable: true, example: 'dns-agent/1.4.2' })
  version!: string | null;

  @ApiProperty({ type: OutcomeWindows })
  outcomes!: OutcomeWindows;

  /**
   * The last attempt that ended as `timeout`, `error`, `cancelled` or `expired`; null if none did. An attempt without a
   * message replaces one with a message only if it ended at least an hour later.
   */
  @ApiProperty({ type: AgentErrorView, nullable: true })
  last_error!: AgentErrorView | null;

  /** Null if it reported no configuration. */
  @ApiProperty({ type: ConfigStateView, nullable: true })
  config!: ConfigStateView | null;
}

/** A page of agents. */
export class AgentPage extends PageEnd {
  @ApiProperty({ type: [AgentView] })
  items!: AgentView[];
}
