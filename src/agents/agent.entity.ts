import { Column, Entity, PrimaryColumn, PrimaryGeneratedColumn } from 'typeorm';

/** What an operator decided about an agent. `deleted` is a tombstone: the id stays taken, its results stay. */
export const AGENT_STATES = ['active', 'draining', 'disabled', 'revoked', 'deleted'] as const;
export type AgentState = (typeof AGENT_STATES)[number];

/**
 * How an agent came in. One that registered openly proved nothing, so its hostname can go to somebody else while it is
 * silent; the others are handed over with proof only.
 */
export const AGENT_ORIGINS = ['open', 'enrolled', 'operator'] as const;
export type AgentOrigin = (typeof AGENT_ORIGINS)[number];

/** What an agent says of a configuration that it fetched. */
export const CONFIG_STATUSES = ['applied', 'failed'] as const;
export type ConfigStatus = (typeof CONFIG_STATUSES)[number];

/**
 * How an attempt at a task ends. `unsaid`: its agent completed it and did not say how the check ended. `cancelled`: its
 * agent gave it back. `expired`: nothing was heard of it in time. One that an operator cut off did not end by itself and is none.
 */
export const ATTEMPT_OUTCOMES = ['success', 'timeout', 'error', 'unsaid', 'cancelled', 'expired'] as const;
export type AttemptOutcome = (typeof ATTEMPT_OUTCOMES)[number];

/** Outcomes that are shown as the last error: of the others there is nothing to say. */
export const ERROR_OUTCOMES = ['timeout', 'error', 'cancelled', 'expired'] as const;
export type ErrorOutcome = (typeof ERROR_OUTCOMES)[number];

/** A probe that registered. */
@Entity('agents')
export class AgentEntity {
  @PrimaryGeneratedColumn({ type: 'integer' })
  id!: number;

  /** The name it registers by, as it was sent; one without has a new identity at each registration. */
  @Column('text', { nullable: true })
  hostname!: string | null;

  /** What hostnames are compared by, see hostnames.ts. */
  @Column('text', { nullable: true })
  hostname_key!: string | null;

  /** An agent that registered openly and shows an enrollment token later is `enrolled` from then on. */
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

  /** The token before the last rotation, as long as it still works. */
  @Column('text', { nullable: true })
  previous_token_hash!: string | null;

  @Column('bigint', { nullable: true })
  previous_token_expires_at!: number | null;

  /** The issued enrollment token that it came with last; null if it never showed one. */
  @Column('bigint', { nullable: true })
  enrollment_token_id!: number | null;

  @Column('bigint')
  registered_at!: number;

  /** When it went to somebody who proved nothing; null again once an owner has it back. */
  @Column('bigint', { nullable: true })
  handed_over_at!: number | null;

  /** When it is decided whether an openly registered agent came to stay; null once that is decided, and for the others. */
  @Column('bigint', { nullable: true })
  trial_ends_at!: number | null;

  /** Null while it never held a lease: then it may be deleted without a trace. */
  @Column('bigint', { nullable: true })
  first_lease_at!: number | null;
}

/** One label of an agent. A table of its own, so that agents are found by them through an index. */
@Entity('agent_labels')
export class LabelEntity {
  @PrimaryColumn('bigint')
  agent_id!: number;

  @PrimaryColumn('text')
  name!: string;

  @Column('text')
  value!: string;
}

/** A token of who had an agent before it was handed over without proof: it proves that the agent is theirs, and no more. */
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

/** What an agent has stored on the last day on which it stored anything. */
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
}

/** When an agent was last heard of. Apart from {@link AgentEntity}, because it changes all the time and nothing else does. */
@Entity('agent_heartbeats')
export class HeartbeatEntity {
  @PrimaryColumn('bigint')
  agent_id!: number;

  /** The registration counts as the first. */
  @Column('bigint')
  last_heartbeat_at!: number;
}

/** What an agent said last about its configuration. */
@Entity('agent_config_states')
export class ConfigStateEntity {
  @PrimaryColumn('bigint')
  agent_id!: number;

  /** As the agent has it; not always one of ours. */
  @Column('text')
  revision!: string;

  @Column('text')
  status!: ConfigStatus;

  /** Why it failed, as a JSON string: it may hold what a database can't keep as it is. */
  @Column('text', { nullable: true })
  message!: string | null;

  /** When it began to say so. */
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

  /** When it asked for the kind, to some minutes. */
  @Column('bigint')
  asked_at!: number;

  /** How many leases of the kind it was willing to hold at once; null is not known. */
  @Column('integer', { nullable: true })
  capacity!: number | null;
}

/** How an agent's attempts ended in a span of time. */
@Entity('agent_outcomes')
export class OutcomesEntity {
  @PrimaryColumn('bigint')
  agent_id!: number;

  /** How long the span is: 10 minutes in the last hour, then an hour. */
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

/** What went wrong last with an agent. */
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

  /** What the agent said of it, as a JSON string: it may hold what a database can't keep as it is. */
  @Column('text', { nullable: true })
  message!: string | null;
}

/** What an agent says of itself. */
@Entity('agent_about')
export class AboutEntity {
  @PrimaryColumn('bigint')
  agent_id!: number;

  @Column('text')
  version!: string;

  /** When it began to say so. */
  @Column('bigint')
  said_at!: number;
}
