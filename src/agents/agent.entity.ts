import { Column, Entity, PrimaryColumn, PrimaryGeneratedColumn } from 'typeorm';

/** The state of an agent, set by operators. `deleted` is a tombstone: the id stays taken, its results stay. */
export const AGENT_STATES = ['active', 'draining', 'disabled', 'revoked', 'deleted'] as const;
export type AgentState = (typeof AGENT_STATES)[number];

/**
 * How an agent was added. An agent that registered openly has shown no proof, so its hostname can be handed over while
 * it is silent; the others are handed over only with proof.
 */
export const AGENT_ORIGINS = ['open', 'enrolled', 'operator'] as const;
export type AgentOrigin = (typeof AGENT_ORIGINS)[number];

/** What an agent reports about a configuration that it fetched. */
export const CONFIG_STATUSES = ['applied', 'failed'] as const;
export type ConfigStatus = (typeof CONFIG_STATUSES)[number];

/**
 * The outcomes of attempts at tasks. `unsaid`: completed, and the report named no outcome. `cancelled`: returned by the
 * agent. `expired`: not reported in time. A revoked attempt has no outcome.
 */
export const ATTEMPT_OUTCOMES = ['success', 'timeout', 'error', 'unsaid', 'cancelled', 'expired'] as const;
export type AttemptOutcome = (typeof ATTEMPT_OUTCOMES)[number];

/** Outcomes that are shown as the last error. */
export const ERROR_OUTCOMES = ['timeout', 'error', 'cancelled', 'expired'] as const;
export type ErrorOutcome = (typeof ERROR_OUTCOMES)[number];

/** A probe that registered. */
@Entity('agents')
export class AgentEntity {
  @PrimaryGeneratedColumn({ type: 'integer' })
  id!: number;

  /** The name that it registers by, as sent; without one each registration creates a new identity. */
  @Column('text', { nullable: true })
  hostname!: string | null;

  /** The form of the hostname for comparisons, see hostnames.ts. */
  @Column('text', { nullable: true })
  hostname_key!: string | null;

  /** Becomes `enrolled` if an agent that registered openly shows an enrollment token later. */
  @Column('text')
  origin!: AgentOrigin;

  @Column('text')
  state!: AgentState;

  /** SHA-256 of the token, in hex. */
  @Column('text')
  token_hash!: string;

  /** Null if tokens do not expire. */
  @Column('bigint', { nullable: true })
  token_expires_at!: number | null;

  /** The token before the last rotation, while it still works. */
  @Column('text', { nullable: true })
  previous_token_hash!: string | null;

  @Column('bigint', { nullable: true })
  previous_token_expires_at!: number | null;

  /** The issued enrollment token that it showed last; null if it never showed one. */
  @Column('bigint', { nullable: true })
  enrollment_token_id!: number | null;

  @Column('bigint')
  registered_at!: number;

  /** When it was handed over without proof; null again once an owner has it back. */
  @Column('bigint', { nullable: true })
  handed_over_at!: number | null;

  /** When the trial of an openly registered agent ends; null once it has ended, and for the others. */
  @Column('bigint', { nullable: true })
  trial_ends_at!: number | null;

  /** Null if it never held a lease: then all its rows may be deleted. */
  @Column('bigint', { nullable: true })
  first_lease_at!: number | null;
}

/** One label of an agent, in a separate table, so that agents are found by labels through an index. */
@Entity('agent_labels')
export class LabelEntity {
  @PrimaryColumn('bigint')
  agent_id!: number;

  @PrimaryColumn('text')
  name!: string;

  @Column('text')
  value!: string;
}

/**
 * A token of the earlier holder of an agent that was handed over without proof. It is proof for registering again,
 * and nothing else.
 */
@Entity('agent_owner_tokens')
export class OwnerTokenEntity {
  @PrimaryColumn('bigint')
  agent_id!: number;

  @PrimaryColumn('text')
  token_hash!: string;

  /** Null if tokens do not expire. */
  @Column('bigint', { nullable: true })
  expires_at!: number | null;
}

/** The bytes that an agent has stored on its last day with writes. */
@Entity('agent_usage')
export class UsageEntity {
  @PrimaryColumn('bigint')
  agent_id!: number;

  /** Days since the Unix epoch, UTC. */
  @Column('integer')
  day!: number;

  @Column('bigint')
  metrics_bytes!: number;

  @Column('bigint')
  observations_bytes!: number;

  /** The bytes that the last charge counted in advance. */
  @Column('bigint')
  advance!: number;
}

/** The last heartbeat of an agent. Separate from {@link AgentEntity}, because it changes far more often. */
@Entity('agent_heartbeats')
export class HeartbeatEntity {
  @PrimaryColumn('bigint')
  agent_id!: number;

  /** The registration counts as the first. */
  @Column('bigint')
  last_heartbeat_at!: number;
}

/** The last state that an agent reported for its configuration. */
@Entity('agent_config_states')
export class ConfigStateEntity {
  @PrimaryColumn('bigint')
  agent_id!: number;

  /** As the agent reported it; not always a known revision. */
  @Column('text')
  revision!: string;

  @Column('text')
  status!: ConfigStatus;

  /** Why it failed, as a JSON string, because databases can't store all characters. */
  @Column('text', { nullable: true })
  message!: string | null;

  /** When it first reported this state. */
  @Column('bigint')
  reported_at!: number;
}

/** A kind of tasks that an agent asked for. */
@Entity('agent_kinds')
export class AgentKindEntity {
  @PrimaryColumn('bigint')
  agent_id!: number;

  @PrimaryColumn('text')
  kind!: string;

  /** When it last asked for the kind, exact to some minutes. */
  @Column('bigint')
  asked_at!: number;

  /** The most leases of the kind at once; null if unknown. */
  @Column('integer', { nullable: true })
  capacity!: number | null;
}

/** The outcomes of an agent's attempts in a span of time. */
@Entity('agent_outcomes')
export class OutcomesEntity {
  @PrimaryColumn('bigint')
  agent_id!: number;

  /** The length of the span: 10 minutes in the last hour, then an hour. */
  @PrimaryColumn('bigint')
  span_ms!: number;

  @PrimaryColumn('bigint')
  starts_at!: number;

  @Column('bigint')
  success!: number;

  @Column('bigint')
  timeout!: number;

  @Column('bigint')
  error!: number;

  @Column('bigint')
  unsaid!: number;

  @Column('bigint')
  cancelled!: number;

  @Column('bigint')
  expired!: number;
}

/** The last error of an agent. */
@Entity('agent_last_errors')
export class LastErrorEntity {
  @PrimaryColumn('bigint')
  agent_id!: number;

  @Column('bigint')
  at!: number;

  @Column('bigint')
  task_id!: number;

  @Column('text')
  outcome!: ErrorOutcome;

  /** The agent's message, as a JSON string, because databases can't store all characters. */
  @Column('text', { nullable: true })
  message!: string | null;
}

/** The version that an agent reports. */
@Entity('agent_about')
export class AboutEntity {
  @PrimaryColumn('bigint')
  agent_id!: number;

  @Column('text')
  version!: string;

  /** When it first reported this version. */
  @Column('bigint')
  said_at!: number;
}
