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

/** A host that wants to become an agent. */
@AgentBody()
export class RegisterRequest {
  // The page fills the example in, so it names nobody: a silent agent of that name would be taken over.
  /** The name that the identity is kept by, such as `probe-fra-1`; without one each registration makes a new identity. */
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

  /** In place of the header `X-Enrollment-Token`. */
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

/** What an agent proves by who it is. */
export class AgentCredentials {
  @ApiProperty({ example: 1 })
  agent_id!: number;

  /** Goes into `X-Agent-Token`; it is shown here only. */
  @ApiProperty({ example: 'dcpa_4fXfrkyE4tpFq3JnTGpUQW4wYV0H8d4WkQ9bGmT2nXo3kPzA1' })
  auth_token!: string;
}

/** An identity and how to keep it. */
export class RegisterResponse extends AgentCredentials {
  /** How long a lease lasts if it is not extended, in milliseconds. */
  @ApiProperty({ example: 60_000 })
  lease_duration_ms!: number;

  /** An agent that is silent for longer counts as offline, in milliseconds. */
  @ApiProperty({ example: 45_000 })
  heartbeat_timeout_ms!: number;
}

/** A sign of life. */
@AgentBody()
export class HeartbeatRequest {
  /** The caller's own id. */
  @ApiProperty({ example: 1 })
  @IsId()
  agent_id!: number;

  /** The revision that the agent uses, or tried to. Send it with each heartbeat: the same again costs nothing. */
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

  /** How that went; goes with `config_revision`. */
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

/** Until when the next sign of life is due. */
export class HeartbeatResponse {
  @ApiProperty({ example: 1 })
  agent_id!: number;

  /** Milliseconds left, counted from when the agent sent the request. */
  @ApiProperty({ example: 45_000 })
  next_deadline_ms!: number;

  /** The revision of the configuration in force; left out while there is none. */
  @ApiProperty({ required: false, example: 'a3f1c2d4e5b60718' })
  config_revision?: string;
}

/** How an agent stands: an operator's decision if there is one, else whether its heartbeat is in time. */
export const AGENT_STATUSES = ['online', 'offline', 'draining', 'disabled', 'revoked'] as const;
export type AgentStatus = (typeof AGENT_STATUSES)[number];

/** How an agent stands to the configuration in force: what it said of that one, that it speaks of another, or nothing. */
export const CONFIG_STANDINGS = [...CONFIG_STATUSES, 'other', 'unsaid'] as const;
export type ConfigStanding = (typeof CONFIG_STANDINGS)[number];

/** Which agents to list. */
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

  /** Only agents with this label, `name:value`; if it is given more than once, with all of them. */
  @Transform(({ value }) => (value === undefined ? undefined : [value].flat()))
  @Field({ ...LABEL_FILTERS, optional: true, example: ['region:fra'] })
  label?: string[];

  @ApiPropertyOptional({
    description: 'Only agents that came with this enrollment token.',
    type: 'integer',
    minimum: 1,
    example: 1,
  })
  @OptionalIdInQuery()
  enrollment_token_id?: number;

  @ApiPropertyOptional({
    description:
      'True: only agents of which, in the last hour, at least 5 attempts ended and more than half by an error, by being given back or by expiring. False: only the others.',
    type: Boolean,
    example: true,
  })
  @Transform(({ value }) => (value === 'true' ? true : value === 'false' ? false : value))
  @IsOptional()
  @IsBoolean()
  failing?: boolean;

  @ApiPropertyOptional({
    description:
      'Only agents that said they applied the configuration in force, that they failed to, that they use another, or nothing.',
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
    description: 'Only agents that say they are of exactly this version.',
    maxLength: MAX_VERSION,
    example: 'dns-agent/1.4.2',
  })
  @IsOptional()
  @IsString()
  @MaxLength(MAX_VERSION)
  version?: string;
}

/** An agent that an operator makes, in place of its registration. */
export class CreateAgentRequest {
  /** No other agent may have it. */
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
   * Whether the token that it has is void at once, and its leases are revoked. Else that works until the new one is
   * first used, at most 10 minutes.
   */
  @ApiProperty({ required: false, nullable: true, type: Boolean, example: false })
  @IsOptional()
  @IsBoolean()
  revoke_old?: boolean | null;
}

/** An agent's labels. */
export class SetLabelsRequest {
  /** All that it is to have. */
  @Field(LABELS)
  labels!: Labels;
}

/** What an agent said last about its configuration. */
export class ConfigStateView {
  @ApiProperty({ example: 'a3f1c2d4e5b60718' })
  revision!: string;

  @ApiProperty({ enum: CONFIG_STATUSES, example: 'applied' })
  status!: ConfigStatus;

  /** Why it failed; null where the agent did not say. */
  @ApiProperty({ type: String, nullable: true, example: null })
  message!: string | null;

  /** When it began to say so. */
  @ApiProperty({ format: 'date-time', example: '2026-01-01T00:00:30.000Z' })
  reported_at!: string;
}

/** How many attempts at tasks ended in each way. */
export class OutcomeCounts implements Record<AttemptOutcome, number> {
  @ApiProperty({ type: 'integer', example: 118 })
  success!: number;

  /** Completed, and the agent said that the target was silent: a finding, which does not count against the agent. */
  @ApiProperty({ type: 'integer', example: 3 })
  timeout!: number;

  /** Completed, and the agent said that the check failed. */
  @ApiProperty({ type: 'integer', example: 1 })
  error!: number;

  /** Completed, and the agent did not say how the check ended. */
  @ApiProperty({ type: 'integer', example: 0 })
  unsaid!: number;

  /** Given back by the agent. */
  @ApiProperty({ type: 'integer', example: 0 })
  cancelled!: number;

  /** Not heard of in time. */
  @ApiProperty({ type: 'integer', example: 0 })
  expired!: number;
}

/** How an agent's attempts ended lately. What an operator cut off does not count, nor what was reported too late. */
export class OutcomeWindows {
  /** In the last hour, to 10 minutes. */
  @ApiProperty({ type: OutcomeCounts })
  hour!: OutcomeCounts;

  /** In the last day, to an hour. */
  @ApiProperty({ type: OutcomeCounts })
  day!: OutcomeCounts;
}

/** What went wrong last with an agent. */
export class AgentErrorView {
  @ApiProperty({ format: 'date-time', example: '2026-01-01T00:00:30.000Z' })
  at!: string;

  @ApiProperty({ example: 1203 })
  task_id!: number;

  @ApiProperty({ enum: ERROR_OUTCOMES, example: 'error' })
  outcome!: ErrorOutcome;

  /** What the agent said of it, at most 300 characters; null if it did not. Never trust it: strangers may choose it. */
  @ApiProperty({ type: String, nullable: true, example: 'ECONNREFUSED' })
  message!: string | null;
}

/** An agent as operators see it. */
export class AgentView {
  @ApiProperty({ example: 1 })
  id!: number;

  @ApiProperty({ type: String, nullable: true, example: 'probe-fra-1' })
  hostname!: string | null;

  @ApiProperty(shown(LABELS))
  labels!: Labels;

  /** The kinds of tasks that it asked for by claims of the last day, sorted; empty for one that has not claimed yet. */
  @ApiProperty({ type: [String], example: ['dns', 'http'] })
  kinds!: string[];

  @ApiProperty({ enum: AGENT_STATUSES, example: 'online' })
  status!: AgentStatus;

  /** How it came in. One that registered openly is handed over without proof once it has missed its heartbeat. */
  @ApiProperty({ enum: AGENT_ORIGINS, example: 'open' })
  origin!: AgentOrigin;

  @ApiProperty({ format: 'date-time', example: '2026-01-01T00:00:00.000Z' })
  registered_at!: string;

  /** When its hostname went to somebody who proved nothing; null if it did not, or the owner has it back. */
  @ApiProperty({ type: String, nullable: true, format: 'date-time', example: null })
  handed_over_at!: string | null;

  /** The issued enrollment token that it came with last; null if it never showed one. */
  @ApiProperty({ type: 'integer', nullable: true, example: 1 })
  enrollment_token_id!: number | null;

  /** The registration, or its making by hand, counts as the first heartbeat. */
  @ApiProperty({ format: 'date-time', example: '2026-01-01T00:00:30.000Z' })
  last_heartbeat_at!: string;

  /** Null where the token does not expire. */
  @ApiProperty({ type: String, nullable: true, format: 'date-time', example: null })
  token_expires_at!: string | null;

  /** Tasks that it works on. */
  @ApiProperty({ example: 3 })
  live_leases!: number;

  /** The `User-Agent` of its claims and heartbeats; null if it sent none. What it says, and no more. */
  @ApiProperty({ type: String, nullable: true, example: 'dns-agent/1.4.2' })
  version!: string | null;

  @ApiProperty({ type: OutcomeWindows })
  outcomes!: OutcomeWindows;

  /**
   * The last attempt that ended by a timeout, an error, by being given back or by expiring; null if none did. One of which the
   * agent said nothing takes the place of one of which it said what went wrong only if it ended an hour later or more.
   */
  @ApiProperty({ type: AgentErrorView, nullable: true })
  last_error!: AgentErrorView | null;

  /** Null while it said nothing about its configuration. */
  @ApiProperty({ type: ConfigStateView, nullable: true })
  config!: ConfigStateView | null;
}

/** A page of agents. */
export class AgentPage extends PageEnd {
  @ApiProperty({ type: [AgentView] })
  items!: AgentView[];
}
