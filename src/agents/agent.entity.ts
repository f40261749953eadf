import { Column, Entity, PrimaryColumn, PrimaryGeneratedColumn } from 'typeorm';

/** What an operator decided about an agent. `deleted` is a tombstone: the id stays taken, its results stay. */
export const AGENT_STATES = ['active', 'draining', 'disabled', 'revoked', 'deleted'] as const;
export type AgentState = (typeof AGENT_STATES)[number];

/** What an agent says of a configuration that it fetched. */
export const CONFIG_STATUSES = ['applied', 'failed'] as const;
export type ConfigStatus = (typeof CONFIG_STATUSES)[number];

/** A probe that registered. */
@Entity('agents')
export class AgentEntity {
  @PrimaryGeneratedColumn({ type: 'integer' })
  id!: number;

  /** The name it registers by; one without has a new identity at each registration. */
  @Column('text', { nullable: true })
  hostname!: string | null;

  @Column('text')
  state!: AgentState;

  /** SHA-256 of the token, in hex. */
  @Column('text')
  token_hash!: string;

  /** Null where tokens do not expire. */
  @Column('bigint', { nullable: true })
  token_expires_at!: number | null;

  /** The token before the last rotation, as long as it still works. */
  @Column('text', { nullable: true })
  previous_token_hash!: string | null;

  @Column('bigint', { nullable: true })
  previous_token_expires_at!: number | null;

  /** The issued enrollment token that it came with last; null where it never showed one. */
  @Column('bigint', { nullable: true })
  enrollment_token_id!: number | null;

  @Column('bigint')
  registered_at!: number;

  @Column('bigint')
  updated_at!: number;
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

/** When an agent was last heard of. Apart from {@link AgentEntity}, for it changes all the time and nothing else does. */
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

  /** Why it failed. */
  @Column('text', { nullable: true })
  message!: string | null;

  /** When it began to say so. */
  @Column('bigint')
  reported_at!: number;
}
