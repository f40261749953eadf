import { isDeepStrictEqual } from 'node:util';
import { Inject, Injectable } from '@nestjs/common';
import { Clock, toTimestamp } from '../clock';
import { ConfigService } from '../config/config.service';
import { CoalescedWrite } from '../database/coalesced-write';
import { Database } from '../database/database';
import { RowCache } from '../database/row-cache';
import type { Statements, Transaction } from '../database/statements';
import { fail } from '../errors';
import type { AgentIdentity, Charge, OperatorIdentity } from '../http/decorators';
import { olderThan, type Page, pageOf } from '../http/pagination';
import { hashToken, isWellFormed, mintToken, sameHash } from '../http/tokens';
import { AuditLog } from '../operators/audit-log';
import { Continuity, type Interruption } from '../scheduling/continuity';
import { SETTINGS, type Settings } from '../settings';
import type { AgentEntity, AgentState, HeartbeatEntity, LabelEntity } from './agent.entity';
import type {
  AgentCredentials,
  AgentsQuery,
  AgentView,
  CreateAgentRequest,
  HeartbeatRequest,
  HeartbeatResponse,
  RegisterResponse,
} from './agents.dto';
import { type ConfigReport, ConfigStates, configReportOf } from './config-states';
import { type Enrollment, EnrollmentService } from './enrollment.service';
import { type Labels, parseLabel } from './labels';

/** How long the token before a rotation works on, unless the new one is used sooner, in milliseconds. */
const OVERLAP_MS = 600_000;

/** So many agents' credentials are kept in memory; the rest is looked up. */
const CACHED_AGENTS = 100_000;

/** Whom a transition lets through, and where it leads. */
const TRANSITIONS = {
  disable: { from: ['active', 'draining', 'disabled'], to: 'disabled' },
  enable: { from: ['active', 'draining', 'disabled'], to: 'active' },
  drain: { from: ['active', 'draining'], to: 'draining' },
  revoke: { from: ['active', 'draining', 'disabled', 'revoked'], to: 'revoked' },
} as const satisfies Record<string, { from: readonly AgentState[]; to: AgentState }>;

/** What an operator can do to an agent, besides deleting it. */
export type AgentTransition = keyof typeof TRANSITIONS;

/** An agent with when it was last heard of. */
type KnownAgent = AgentEntity & Pick<HeartbeatEntity, 'last_heartbeat_at'>;

const SELECT_AGENT = `SELECT a.*, h.last_heartbeat_at FROM agents a JOIN agent_heartbeats h ON h.agent_id = a.id`;

type Credentials = Pick<
  AgentEntity,
  'id' | 'state' | 'token_hash' | 'token_expires_at' | 'previous_token_hash' | 'previous_token_expires_at'
>;

/** What a caller of `/register` shows for itself. */
export interface Proof {
  agentId?: number;
  token?: string;
  enrollmentToken?: string;
}

/** A sign of life on its way into the tables. */
interface Heartbeat {
  readonly agentId: number;
  readonly config: ConfigReport | undefined;
}

/** The token that a caller goes on using until it has the new one. */
interface HeldToken {
  readonly hash: string;
  readonly expiresAt: number | null;
}

/** Called in the transaction that puts agents out, with their ids. */
export type OutListener = (tx: Transaction, agentIds: readonly number[]) => Promise<void>;

/** Tells how many live leases each of the agents has; agents without any are left out. */
export type LeaseCounter = (
  statements: Statements,
  agentIds: readonly number[],
) => Promise<Map<number, number>>;

/** Owns agents: who they are, their tokens, their signs of life, and what operators decided about them. */
@Injectable()
export class AgentsService {
  private readonly outListeners: OutListener[] = [];
  private countLeases: LeaseCounter = () => Promise.resolve(new Map());
  /** By id. */
  private readonly credentials: RowCache<Credentials>;
  private readonly heartbeats: CoalescedWrite<Heartbeat, boolean>;

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly continuity: Continuity,
    private readonly config: ConfigService,
    private readonly configStates: ConfigStates,
    private readonly enrollment: EnrollmentService,
    private readonly audit: AuditLog,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    this.credentials = new RowCache(database, 'agents', CACHED_AGENTS);
    continuity.onInterruption((tx, interruption) => this.adjustInstants(tx, interruption));
    this.heartbeats = new CoalescedWrite(database, (tx, beats) => this.storeHeartbeats(tx, beats));
  }

  /** Has this called when agents are disabled, revoked, deleted or handed over, in the same transaction. */
  onOut(listener: OutListener): void {
    this.outListeners.push(listener);
  }

  /** Says who counts live leases for the lists of agents. */
  countLeasesWith(counter: LeaseCounter): void {
    this.countLeases = counter;
  }

  /**
   * Tells who presents this token. Answers from memory where the agent has called before.
   * @param beforeLookup called before the database is read; may throw to prevent it
   * @throws ERR_UNAUTHORIZED unknown agent or wrong token, in the same words
   * @throws ERR_TOKEN_EXPIRED the token was right once
   * @throws ERR_FORBIDDEN the agent is disabled or revoked
   */
  async authenticate(agentId: number, token: string, beforeLookup: () => void): Promise<AgentIdentity> {
    let agent = this.credentials.get(String(agentId));
    if (!agent) {
      // A typo shows by its checksum, before any read; where nothing is read, its hash is as good.
      if (!isWellFormed('dcpa_', token)) throw fail('ERR_UNAUTHORIZED');
      beforeLookup();
      agent = await this.credentials.load(String(agentId), (statements) =>
        statements.first<Credentials>(
          `SELECT id, state, token_hash, token_expires_at, previous_token_hash, previous_token_expires_at
           FROM agents WHERE id = $1`,
          agentId,
        ),
      );
    }
    const match = this.matchToken(agent, hashToken(token), this.clock.now());
    if (!agent || match === 'none' || agent.state === 'deleted') throw fail('ERR_UNAUTHORIZED');
    if (match === 'expired') throw fail('ERR_TOKEN_EXPIRED');
    if (agent.state === 'disabled' || agent.state === 'revoked') throw outOfService(agent.state);
    if (match === 'current' && agent.previous_token_hash !== null) await this.retirePreviousToken(agent);
    return { id: agent.id };
  }

  /**
   * Gives the caller an identity and a fresh token. A hostname that is known keeps its identity.
   * @param charge the quota: charged when the registration succeeds, or to the address when it fails
   * @throws ERR_UNAUTHORIZED an enrollment token is needed and missing, or it is wrong
   * @throws ERR_CONFLICT the hostname belongs to an agent that is alive and the caller is not proven to be it
   * @throws ERR_FORBIDDEN the hostname belongs to an agent that is disabled or revoked
   * @throws ERR_RATE_LIMITED the hostname (or address) registered too recently
   */
  async register(hostname: string | undefined, proof: Proof, charge: Charge): Promise<RegisterResponse> {
    const shown = this.enrollment.inspect(proof.enrollmentToken, charge);
    const token = mintToken('dcpa_');
    let refund = (): void => undefined;
    try {
      const agentId = await this.database.write(async (tx) => {
        // A unit can be run again; what its first run took is given back.
        refund();
        let known: KnownAgent | undefined;
        const enrolledBy = async (): Promise<number | null> => {
          if (hostname === undefined) return null;
          known = await tx.first<KnownAgent>(
            `${SELECT_AGENT} WHERE a.hostname = $1 AND a.state <> 'deleted' ${tx.dialect.forUpdate('a')}`,
            hostname,
          );
          return known?.enrollment_token_id ?? null;
        };
        const enrolled = await enrolledBy();
        const enrollment =
          typeof shown === 'object'
            ? await this.enrollment.use(tx, shown.hash, enrolled, enrolledBy, charge)
            : undefined;
        if (!known) {
          refund = await charge.success(tx);
          const id = await this.insertAgent(tx, hostname ?? null, token);
          await this.enroll(tx, id, enrollment);
          return id;
        }
        if (known.state === 'disabled' || known.state === 'revoked') throw outOfService(known.state);
        const proven = shown === 'setting' || enrollment !== undefined;
        const held = this.tokenHeld(known, proof, tx.now) ?? (proven ? currentToken(known) : undefined);
        if (!held) this.refuseWhileAlive(known, tx.now);
        refund = await charge.success(tx);
        await this.replaceToken(tx, known, token, held);
        await tx.run(
          'UPDATE agent_heartbeats SET last_heartbeat_at = $2 WHERE agent_id = $1',
          known.id,
          tx.now,
        );
        await this.enroll(tx, known.id, enrollment);
        return known.id;
      });
      return {
        agent_id: agentId,
        auth_token: token,
        lease_duration_ms: this.settings.leaseDurationMs,
        heartbeat_timeout_ms: this.settings.heartbeatTimeoutMs,
      };
    } catch (error) {
      refund();
      throw error;
    }
  }

  /**
   * Records a sign of life, and what it says about the agent's configuration where that is new. All that arrive while
   * the writer is busy share one statement.
   * @throws ERR_VALIDATION what it says about the configuration does not go together
   * @throws ERR_FORBIDDEN the agent was disabled, revoked or deleted meanwhile
   */
  async heartbeat(agentId: number, request: HeartbeatRequest): Promise<HeartbeatResponse> {
    if (!(await this.heartbeats.run({ agentId, config: configReportOf(request) })))
      throw outOfService('out of service');
    const revision = this.config.currentRevision();
    return {
      agent_id: agentId,
      next_deadline_ms: this.settings.heartbeatTimeoutMs,
      ...(revision === undefined ? {} : { config_revision: revision }),
    };
  }

  /**
   * Makes sure, in the transaction of a write for an agent, that it is still in service.
   * @returns whether it may be given new work: not while it drains
   * @throws ERR_FORBIDDEN it was disabled, revoked or deleted
   */
  async requireInService(tx: Transaction, agentId: number): Promise<boolean> {
    const row = await tx.first<{ state: AgentState }>(
      `SELECT state FROM agents WHERE id = $1 ${tx.dialect.forShare()}`,
      agentId,
    );
    if (row?.state !== 'active' && row?.state !== 'draining') throw outOfService(row?.state ?? 'deleted');
    return row.state === 'active';
  }

  /** Which of the agents are in service, in the transaction of a write for many of them at once. */
  async inService(tx: Transaction, agentIds: readonly number[]): Promise<Set<number>> {
    const rows = await tx.rows<{ id: number }>(
      `SELECT id FROM agents
       WHERE ${tx.dialect.isAmong('id', '$1')} AND state IN ('active', 'draining')
       ORDER BY id ${tx.dialect.forShare()}`,
      JSON.stringify(agentIds),
    );
    return new Set(rows.map((row) => row.id));
  }

  /** Lists agents, newest first; deleted ones are left out. */
  async list(query: AgentsQuery): Promise<Page<AgentView>> {
    return this.database.read(async (statements) => {
      const { hostname, status, label = [], enrollment_token_id: enrolledBy, limit } = query;
      const byHeartbeat = status === 'online' || status === 'offline';
      const labels = label.flatMap((one) => parseLabel(one) ?? []);
      // Only where they are asked for, so that their index leads to the agents and not the other way round.
      const labelled = label.map(
        (_, i) =>
          `AND a.id IN (SELECT agent_id FROM agent_labels WHERE name = $${8 + 2 * i} AND value = $${9 + 2 * i})`,
      );
      const rows = await statements.rows<KnownAgent>(
        `${SELECT_AGENT} WHERE a.id < $1 AND a.state <> 'deleted'
           AND (CAST($2 AS text) IS NULL OR a.hostname = $2) AND (CAST($3 AS text) IS NULL OR a.state = $3)
           AND (CAST($4 AS text) IS NULL OR (h.last_heartbeat_at > $5) = ($4 = 'online'))
           AND (CAST($6 AS bigint) IS NULL OR a.enrollment_token_id = $6) ${labelled.join(' ')}
         ORDER BY a.id DESC LIMIT $7`,
        olderThan(query),
        hostname ?? null,
        byHeartbeat ? 'active' : (status ?? null),
        byHeartbeat ? status : null,
        this.silentSince(),
        enrolledBy ?? null,
        limit + 1,
        ...labels,
      );
      const page = pageOf(rows, limit, (row) => row.id);
      return { items: await this.viewsOf(statements, page.items), next_cursor: page.next_cursor };
    });
  }

  /** @throws ERR_NOT_FOUND there is no such agent, or it was deleted */
  get(agentId: number): Promise<AgentView> {
    return this.database.read(async (statements) =>
      this.viewOf(statements, await findAgent(statements, agentId)),
    );
  }

  /** @throws ERR_NOT_FOUND there never was such an agent; a deleted one is known */
  async requireKnown(statements: Statements, agentId: number): Promise<void> {
    if (!(await statements.first('SELECT id FROM agents WHERE id = $1', agentId)))
      throw fail('ERR_NOT_FOUND', { agent_id: agentId });
  }

  /**
   * Makes an agent by hand. Only the hash of its token is kept, so this answer is the one that shows it.
   * @throws ERR_CONFLICT another agent has the hostname
   */
  create(by: OperatorIdentity, { hostname: name, labels }: CreateAgentRequest): Promise<AgentCredentials> {
    const token = mintToken('dcpa_');
    const hostname = name ?? null;
    return this.database.write(async (tx) => {
      const taken =
        hostname !== null &&
        (await tx.first(`SELECT id FROM agents WHERE hostname = $1 AND state <> 'deleted'`, hostname));
      if (taken) {
        throw fail(
          'ERR_CONFLICT',
          { hostname: 'belongs to another agent' },
          { message: 'The hostname is taken; rotate that agent, or delete it first.' },
        );
      }
      const id = await this.insertAgent(tx, hostname, token);
      await this.addLabels(tx, id, labels ?? {});
      await this.audit.record(tx, by, {
        action: 'agent.create',
        subject: `agent/${id}`,
        after: { hostname, labels: labels ?? {} },
      });
      return { agent_id: id, auth_token: token };
    });
  }

  /**
   * Gives an agent a new token. The one that it uses works on until the new one is first used, at most 10 minutes; with
   * `revokeOld` it is void when this is answered, and the leases of whoever holds it are revoked.
   * @throws ERR_NOT_FOUND there is no such agent
   * @throws ERR_CONFLICT it is revoked
   */
  rotate(by: OperatorIdentity, agentId: number, revokeOld: boolean): Promise<AgentCredentials> {
    const token = mintToken('dcpa_');
    return this.database.write(async (tx) => {
      const agent = await lockAgent(tx, agentId);
      if (agent.state === 'revoked') throw unchangeable(agent.state);
      await this.replaceToken(tx, agent, token, revokeOld ? undefined : this.tokenInUse(agent, tx.now));
      await this.audit.record(tx, by, {
        action: 'agent.rotate',
        subject: `agent/${agentId}`,
        after: { revoke_old: revokeOld },
      });
      return { agent_id: agentId, auth_token: token };
    });
  }

  /**
   * Replaces all labels of an agent.
   * @throws ERR_NOT_FOUND there is no such agent
   */
  setLabels(by: OperatorIdentity, agentId: number, labels: Labels): Promise<AgentView> {
    return this.database.write(async (tx) => {
      const agent = await lockAgent(tx, agentId);
      const before = (await labelsOf(tx, [agentId])).get(agentId) ?? {};
      if (!isDeepStrictEqual(before, labels)) {
        await tx.run('DELETE FROM agent_labels WHERE agent_id = $1', agentId);
        await this.addLabels(tx, agentId, labels);
        await this.audit.record(tx, by, {
          action: 'agent.label',
          subject: `agent/${agentId}`,
          before: { labels: before },
          after: { labels },
        });
      }
      return this.viewOf(tx, agent);
    });
  }

  /**
   * Changes what an operator decided about an agent, effective when it is answered. Whoever is put out loses its leases
   * in the same transaction. The same decision again changes nothing.
   * @throws ERR_NOT_FOUND there is no such agent
   * @throws ERR_CONFLICT its state forbids it: a revoked agent stays revoked, a disabled one can't drain
   */
  change(by: OperatorIdentity, agentId: number, transition: AgentTransition): Promise<AgentView> {
    const { from, to } = TRANSITIONS[transition];
    return this.database.write(async (tx) => {
      const agent = await lockAgent(tx, agentId);
      if (!(from as readonly AgentState[]).includes(agent.state)) {
        throw unchangeable(agent.state);
      }
      if (agent.state !== to) {
        await this.setState(tx, agentId, to);
        await this.audit.record(tx, by, {
          action: `agent.${transition}`,
          subject: `agent/${agentId}`,
          before: { state: agent.state },
          after: { state: to },
        });
      }
      return this.viewOf(tx, { ...agent, state: to });
    });
  }

  /**
   * Deletes an agent, effective when it is answered: its id stays taken and its results stay, its hostname is free.
   * @throws ERR_NOT_FOUND there is no such agent
   */
  async remove(by: OperatorIdentity, agentId: number): Promise<void> {
    await this.database.write(async (tx) => {
      const { state, hostname } = await lockAgent(tx, agentId);
      await this.setState(tx, agentId, 'deleted');
      await this.audit.record(tx, by, {
        action: 'agent.delete',
        subject: `agent/${agentId}`,
        before: { state, hostname },
      });
    });
  }

  private async storeHeartbeats(tx: Transaction, beats: Heartbeat[]): Promise<boolean[]> {
    const all = beats.map((beat) => beat.agentId);
    const alive = await tx.rows<{ id: number }>(
      `UPDATE agent_heartbeats SET last_heartbeat_at = $2
       WHERE ${tx.dialect.isAmong('agent_id', '$1')}
         AND EXISTS (SELECT 1 FROM agents a WHERE a.id = agent_heartbeats.agent_id AND a.state IN ('active', 'draining'))
       RETURNING agent_id AS id`,
      // Locked where somebody may put one out of service meanwhile.
      JSON.stringify(tx.dialect.concurrent ? [...(await this.inService(tx, all))] : all),
      tx.now,
    );
    const stored = new Set(alive.map((row) => row.id));
    const reports = new Map<number, ConfigReport>();
    for (const { agentId, config } of beats) if (config && stored.has(agentId)) reports.set(agentId, config);
    await this.configStates.store(tx, reports);
    return beats.map((beat) => stored.has(beat.agentId));
  }

  /** If the clock was set back, nobody counts as heard of in the future, and no token before a rotation works longer. */
  private async adjustInstants(tx: Transaction, { now, lastSeen }: Interruption): Promise<void> {
    if (lastSeen <= now) return;
    await tx.run('UPDATE agent_heartbeats SET last_heartbeat_at = $1 WHERE last_heartbeat_at > $1', now);
    await tx.run(
      `UPDATE agents SET previous_token_expires_at = ${tx.dialect.greatest('$1', 'previous_token_expires_at - $2')}
       WHERE previous_token_expires_at > $1`,
      now,
      lastSeen - now,
    );
  }

  private async setState(tx: Transaction, agentId: number, state: AgentState): Promise<void> {
    await tx.run('UPDATE agents SET state = $2, updated_at = $3 WHERE id = $1', agentId, state, tx.now);
    if (state !== 'active' && state !== 'draining') await this.putOut(tx, agentId);
    this.credentials.announceChange(tx, String(agentId));
  }

  private async putOut(tx: Transaction, agentId: number): Promise<void> {
    for (const listener of this.outListeners) await listener(tx, [agentId]);
  }

  /** Compares a token's hash with both that an agent may have; an unknown agent costs the same. */
  private matchToken(
    agent: Credentials | undefined,
    presented: string,
    now: number,
  ): 'current' | 'previous' | 'expired' | 'none' {
    const current = sameHash(agent?.token_hash ?? NOBODY, presented);
    const previous = sameHash(agent?.previous_token_hash ?? NOBODY, presented);
    if (current) return (agent?.token_expires_at ?? Infinity) > now ? 'current' : 'expired';
    if (previous) return (agent?.previous_token_expires_at ?? 0) > now ? 'previous' : 'expired';
    return 'none';
  }

  /** The new token was used: the one before it ends here. */
  private retirePreviousToken(agent: Credentials): Promise<void> {
    return this.database.write(async (tx) => {
      await tx.run(
        `UPDATE agents SET previous_token_hash = NULL, previous_token_expires_at = NULL WHERE id = $1 AND token_hash = $2`,
        agent.id,
        agent.token_hash,
      );
      this.credentials.announceChange(tx, String(agent.id));
    });
  }

  /** Which of the agent's tokens the caller shows; undefined where it shows none that works. */
  private tokenHeld(known: KnownAgent, proof: Proof, now: number): HeldToken | undefined {
    if (proof.agentId !== known.id || proof.token === undefined || !isWellFormed('dcpa_', proof.token))
      return undefined;
    const hash = hashToken(proof.token);
    const match = this.matchToken(known, hash, now);
    if (match === 'current') return currentToken(known);
    return match === 'previous' ? { hash, expiresAt: known.previous_token_expires_at } : undefined;
  }

  /** The token that an agent goes by: the one before, as long as the new one was not used. */
  private tokenInUse(agent: Credentials, now: number): HeldToken {
    const { previous_token_hash: hash, previous_token_expires_at: expiresAt } = agent;
    return hash !== null && (expiresAt ?? 0) > now ? { hash, expiresAt } : currentToken(agent);
  }

  /** @throws ERR_CONFLICT until the agent has missed its heartbeat */
  private refuseWhileAlive(known: KnownAgent, now: number): void {
    const leftMs = this.deadlineOf(known) - now;
    if (leftMs <= 0) return;
    throw fail(
      'ERR_CONFLICT',
      { hostname: 'belongs to an agent that is alive' },
      {
        message: 'The hostname is taken by a live agent; prove to be it, or wait.',
        retryable: true,
        retryAfterMs: leftMs,
      },
    );
  }

  private async insertAgent(tx: Transaction, hostname: string | null, token: string): Promise<number> {
    const { now } = tx;
    const row = await tx.first<{ id: number }>(
      `INSERT INTO agents (hostname, state, token_hash, token_expires_at, registered_at, updated_at)
       VALUES ($1, 'active', $2, $3, $4, $4) RETURNING id`,
      hostname,
      hashToken(token),
      this.tokenExpiry(now),
      now,
    );
    const { id } = row as { id: number };
    await tx.run('INSERT INTO agent_heartbeats (agent_id, last_heartbeat_at) VALUES ($1, $2)', id, now);
    return id;
  }

  /** Records an enrollment, the first time that the agent comes with that token; its labels go over those there are. */
  private async enroll(tx: Transaction, agentId: number, enrollment: Enrollment | undefined): Promise<void> {
    if (!enrollment?.counted) return;
    await tx.run('UPDATE agents SET enrollment_token_id = $2 WHERE id = $1', agentId, enrollment.tokenId);
    await this.addLabels(tx, agentId, enrollment.labels);
  }

  private async addLabels(tx: Transaction, agentId: number, labels: Labels): Promise<void> {
    const rows = Object.entries(labels).map(([name, value]) => ({ name, value }));
    await tx.run(
      `INSERT INTO agent_labels (agent_id, name, value)
       SELECT $1, name, value FROM ${tx.dialect.rowset('$2', { name: 'text', value: 'text' })} AS l WHERE true
       ON CONFLICT (agent_id, name) DO UPDATE SET value = excluded.value`,
      agentId,
      JSON.stringify(rows),
    );
  }

  /**
   * Gives a known agent a new token. One that proved itself may use the token that it holds a little longer, also where
   * that is the one before last because the answers with the newer ones were lost. Without a proof all are void.
   */
  private async replaceToken(
    tx: Transaction,
    known: KnownAgent,
    token: string,
    held: HeldToken | undefined,
  ): Promise<void> {
    const { now } = tx;
    await tx.run(
      `UPDATE agents SET token_hash = $2, token_expires_at = $3, previous_token_hash = $4, previous_token_expires_at = $5,
         updated_at = $6 WHERE id = $1`,
      known.id,
      hashToken(token),
      this.tokenExpiry(now),
      held?.hash ?? null,
      held ? Math.min(now + OVERLAP_MS, held.expiresAt ?? Infinity) : null,
      now,
    );
    if (!held) await this.putOut(tx, known.id);
    this.credentials.announceChange(tx, String(known.id));
  }

  private tokenExpiry(now: number): number | null {
    const { agentTokenLifetimeMs } = this.settings;
    return agentTokenLifetimeMs === 0 ? null : now + agentTokenLifetimeMs;
  }

  /** When an agent counts as silent. Time in which no server ran is not held against it. */
  private deadlineOf(agent: KnownAgent): number {
    return (
      Math.max(agent.last_heartbeat_at, this.continuity.runningSince()) + this.settings.heartbeatTimeoutMs
    );
  }

  /** Whose last heartbeat is not after this instant is silent: {@link deadlineOf} turned round, for SQL. */
  private silentSince(): number {
    const instant = this.clock.now() - this.settings.heartbeatTimeoutMs;
    return this.continuity.runningSince() > instant ? -1 : instant;
  }

  private async viewOf(statements: Statements, agent: KnownAgent): Promise<AgentView> {
    return (await this.viewsOf(statements, [agent]))[0] as AgentView;
  }

  private async viewsOf(statements: Statements, agents: readonly KnownAgent[]): Promise<AgentView[]> {
    const ids = agents.map((agent) => agent.id);
    const leases = await this.countLeases(statements, ids);
    const labels = await labelsOf(statements, ids);
    const configs = await this.configStates.of(statements, ids);
    const now = this.clock.now();
    return agents.map((agent) => ({
      id: agent.id,
      hostname: agent.hostname,
      labels: labels.get(agent.id) ?? {},
      status:
        agent.state === 'active'
          ? this.deadlineOf(agent) > now
            ? 'online'
            : 'offline'
          : (agent.state as AgentView['status']),
      registered_at: toTimestamp(agent.registered_at),
      enrollment_token_id: agent.enrollment_token_id,
      last_heartbeat_at: toTimestamp(agent.last_heartbeat_at),
      token_expires_at: toTimestamp(agent.token_expires_at),
      live_leases: leases.get(agent.id) ?? 0,
      config: configs.get(agent.id) ?? null,
    }));
  }
}

/** A hash that no token has. */
const NOBODY = '-'.repeat(64);

function currentToken({ token_hash: hash, token_expires_at: expiresAt }: Credentials): HeldToken {
  return { hash, expiresAt };
}

function outOfService(state: string) {
  return fail('ERR_FORBIDDEN', { state }, { message: `This agent is ${state}.` });
}

function unchangeable(state: string) {
  return fail('ERR_CONFLICT', { state }, { message: `A ${state} agent can't be changed so.` });
}

/** The labels of each of the agents; agents without any are left out. */
async function labelsOf(statements: Statements, agentIds: readonly number[]): Promise<Map<number, Labels>> {
  const rows = await statements.rows<LabelEntity>(
    `SELECT agent_id, name, value FROM agent_labels
     WHERE ${statements.dialect.isAmong('agent_id', '$1')} ORDER BY agent_id, name`,
    JSON.stringify(agentIds),
  );
  const labels = new Map<number, Labels>();
  for (const { agent_id: id, name, value } of rows) labels.set(id, { ...labels.get(id), [name]: value });
  return labels;
}

async function findAgent(statements: Statements, agentId: number, lock = ''): Promise<KnownAgent> {
  const agent = await statements.first<KnownAgent>(
    `${SELECT_AGENT} WHERE a.id = $1 AND a.state <> 'deleted' ${lock}`,
    agentId,
  );
  if (!agent) throw fail('ERR_NOT_FOUND', { agent_id: agentId });
  return agent;
}

/** {@link findAgent} for a change: nobody else changes the agent, or writes for it, until the unit ends. */
const lockAgent = (tx: Transaction, agentId: number) => findAgent(tx, agentId, tx.dialect.forUpdate('a'));
