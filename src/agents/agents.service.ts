import { isDeepStrictEqual } from 'node:util';
import { Inject, Injectable } from '@nestjs/common';
import { Clock, toTimestamp } from '../clock';
import { ConfigService } from '../config/config.service';
import { Batcher } from '../database/batcher';
import { Conditions } from '../database/conditions';
import { Database } from '../database/database';
import { RowCache } from '../database/row-cache';
import type { SqlValue, Statements, Transaction } from '../database/statements';
import { type ApiError, fail } from '../errors';
import type { AgentIdentity, OperatorIdentity } from '../http/control-plane-request';
import { olderThan, type Page, pageOf } from '../http/pagination';
import { hashToken, isAgentToken, mintToken, sameHash } from '../http/tokens';
import { AuditLog } from '../operators/audit-log';
import { Continuity, type Interruption } from '../scheduling/continuity';
import { SETTINGS, type Settings } from '../settings';
import { Lifecycle } from '../telemetry/lifecycle';
import type { AgentEntity, AgentOrigin, AgentState, HeartbeatEntity, LabelEntity } from './agent.entity';
import { AgentAbout } from './agent-about';
import { AgentKinds, KIND_KEPT_MS } from './agent-kinds';
import { AgentOutcomes, NONE } from './agent-outcomes';
import type {
  AgentCredentials,
  AgentsQuery,
  AgentView,
  CreateAgentRequest,
  HeartbeatRequest,
  HeartbeatResponse,
} from './agents.dto';
import { type ConfigReport, ConfigStates, configReportOf } from './config-states';
import { hostnameKey } from './hostnames';
import { type Labels, parseLabel } from './labels';

/** How long the token before a rotation works on, unless the new one is used sooner, in milliseconds. */
const OVERLAP_MS = 600_000;

/** How long an openly registered agent has to come to stay, in milliseconds. */
export const TRIAL_MS = 86_400_000;

/** What belongs to an agent alone, and goes with it. */
const DEPENDENT_TABLES = [
  'agent_labels',
  'agent_kinds',
  'agent_outcomes',
  'agent_last_errors',
  'agent_about',
  'agent_owner_tokens',
  'agent_config_states',
  'agent_usage',
  'agent_heartbeats',
];

/** Under which changes of agents' credentials and states are announced, by id. */
const CREDENTIALS = 'agents';

/** So many agents' credentials are kept in memory; the rest is looked up. */
const CACHED_AGENTS = 100_000;
/** How many agents are known from the start: the newest. */
const KNOWN_AT_START = 20_000;

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
export type KnownAgent = AgentEntity & Pick<HeartbeatEntity, 'last_heartbeat_at'>;

const CREDENTIAL_COLUMNS =
  'id, state, token_hash, token_expires_at, previous_token_hash, previous_token_expires_at';

const SELECT_AGENT = `SELECT a.*, h.last_heartbeat_at FROM agents a JOIN agent_heartbeats h ON h.agent_id = a.id`;

type Credentials = Pick<
  AgentEntity,
  'id' | 'state' | 'token_hash' | 'token_expires_at' | 'previous_token_hash' | 'previous_token_expires_at'
>;

type Standings = Credentials & Pick<AgentEntity, 'first_lease_at'>;

/** A sign of life on its way into the tables. */
interface Heartbeat {
  readonly agent: AgentIdentity;
  readonly config: ConfigReport | undefined;
}

/** The token that a caller goes on using until it has the new one. */
export interface HeldToken {
  readonly hash: string;
  readonly expiresAt: number | null;
}

/** What an agent that is in service may do. */
export interface Standing {
  /** Whether it may be given new work: not while it drains. */
  readonly takesWork: boolean;
  /** Whether it ever held a lease, see {@link AgentsService.noteFirstLease}. */
  readonly hadLease: boolean;
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
  private readonly heartbeats: Batcher<Heartbeat, ApiError | undefined>;

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly continuity: Continuity,
    private readonly config: ConfigService,
    private readonly configStates: ConfigStates,
    private readonly audit: AuditLog,
    @Inject(SETTINGS) private readonly settings: Settings,
    private readonly lifecycle: Lifecycle,
    private readonly kinds: AgentKinds,
    private readonly outcomes: AgentOutcomes,
    private readonly about: AgentAbout,
  ) {
    this.credentials = new RowCache(database, CREDENTIALS, CACHED_AGENTS);
    continuity.onInterruption((tx, interruption) => this.adjustInstants(tx, interruption));
    this.heartbeats = new Batcher(database, (tx, beats) => this.storeHeartbeats(tx, beats));
  }

  /**
   * Learns the agents' tokens, so that right ones need no look-up: that may be refused at an address from which others are
   * guessing.
   */
  async onModuleInit(): Promise<void> {
    if (!this.lifecycle.serves) return;
    await this.credentials.fill(async (statements) => {
      const rows = await statements.rows<Credentials>(
        `SELECT ${CREDENTIAL_COLUMNS} FROM agents WHERE state <> 'deleted' ORDER BY id DESC LIMIT $1`,
        KNOWN_AT_START,
      );
      return new Map(rows.map((row) => [String(row.id), row]));
    });
  }

  /** Learns the token of an agent that has just got it, for the same reason. */
  async learn(agentId: number): Promise<void> {
    // If it fails, the agent's next call looks it up.
    await this.readCredentials(agentId).catch(() => undefined);
  }

  /** Has this called when agents are disabled, revoked, deleted or handed over, in the same transaction. */
  onOut(listener: OutListener): void {
    this.outListeners.push(listener);
  }

  /** Calls back when what an agent may do may have changed, its tokens included, by this process or another replica. */
  onChanged(listener: (agentId: number) => void): void {
    this.database.onAnnouncement(CREDENTIALS, (id) => listener(Number(id)));
  }

  /** Says who counts live leases for the lists of agents. */
  countLeasesWith(counter: LeaseCounter): void {
    this.countLeases = counter;
  }

  /**
   * Tells who presents this token. Right credentials are answered from memory if the agent has called before; wrong ones
   * cost one read, whether there is such an agent or not, so that their time does not tell which ids are taken.
   * @param beforeLookup called with the credential before the database is read for it; may throw to prevent that
   * @throws ERR_UNAUTHORIZED unknown agent or wrong token, in the same words
   * @throws ERR_TOKEN_EXPIRED the token was right once
   * @throws ERR_FORBIDDEN the agent is disabled or revoked
   */
  async authenticate(
    agentId: number,
    token: string,
    beforeLookup: (credential: string) => void,
  ): Promise<AgentIdentity> {
    const key = String(agentId);
    const tokenHash = hashToken(token);
    const isOf = (row: Credentials | undefined) =>
      this.matchToken(row, tokenHash, this.clock.now()) !== 'none';
    let agent = this.credentials.get(key);
    if (!isOf(agent)) {
      // A typo shows by its checksum, before any read; where nothing is read, its hash is as good.
      if (!isAgentToken(token)) throw fail('ERR_UNAUTHORIZED');
      // What was right a moment ago is no guess: the row is only too old to rely on.
      if (!isOf(this.credentials.peek(key))) beforeLookup(`agent:${key}:${tokenHash}`);
      // Guessing ids must not take the place of agents that call.
      agent = await this.readCredentials(agentId, isOf);
    }
    const refusal = this.refusalOf(agent, { tokenHash }, this.clock.now());
    if (!agent || refusal) throw refusal ?? fail('ERR_UNAUTHORIZED');
    if (agent.token_hash === tokenHash && agent.previous_token_hash !== null)
      await this.retirePreviousToken(agent);
    return { id: agent.id, tokenHash };
  }

  private readCredentials(
    agentId: number,
    isWanted?: (row: Credentials) => boolean,
  ): Promise<Credentials | undefined> {
    return this.credentials.load(
      String(agentId),
      (statements) =>
        statements.first<Credentials>(`SELECT ${CREDENTIAL_COLUMNS} FROM agents WHERE id = $1`, agentId),
      isWanted,
    );
  }

  /**
   * Records a sign of life, and what it says about the agent's configuration where that is new. All that arrive while
   * the writer is busy share one statement.
   * @param userAgent what the agent says of its version
   * @throws ERR_VALIDATION what it says about the configuration does not go together
   * @throws ERR_UNAUTHORIZED the token was voided meanwhile
   * @throws ERR_FORBIDDEN the agent was disabled or revoked meanwhile
   */
  async heartbeat(
    agent: AgentIdentity,
    request: HeartbeatRequest,
    userAgent?: string,
  ): Promise<HeartbeatResponse> {
    const refusal = await this.heartbeats.run({ agent, config: configReportOf(request) });
    if (refusal) throw refusal;
    this.about.note(agent.id, userAgent);
    const revision = this.config.currentRevision();
    return {
      agent_id: agent.id,
      next_deadline_ms: this.settings.heartbeatTimeoutMs,
      ...(revision === undefined ? {} : { config_revision: revision }),
    };
  }

  /**
   * Makes sure, in the transaction of a write for an agent, that it is still in service and that the token still works
   * with which it was authenticated: what an operator or a hand-over ended since then has no effect any more.
   * @param alone whether nobody else may write for it until the unit ends
   * @throws ERR_UNAUTHORIZED the token was voided, or the agent deleted
   * @throws ERR_TOKEN_EXPIRED the token expired while the call waited
   * @throws ERR_FORBIDDEN the agent was disabled or revoked
   */
  async requireInService(tx: Transaction, agent: AgentIdentity, alone?: 'alone'): Promise<Standing> {
    const row = (await this.credentialsOf(tx, [agent.id], alone)).get(agent.id);
    const refusal = this.refusalOf(row, agent, tx.now);
    if (!row || refusal) throw refusal ?? fail('ERR_UNAUTHORIZED');
    return { takesWork: row.state === 'active', hadLease: row.first_lease_at !== null };
  }

  /**
   * {@link requireInService} for many calls at once.
   * @returns for each of them, in their order, the error that it is to be refused with; undefined for those that may go on
   */
  async refusals(tx: Transaction, agents: readonly AgentIdentity[]): Promise<(ApiError | undefined)[]> {
    const rows = await this.credentialsOf(
      tx,
      agents.map(({ id }) => id),
    );
    return agents.map((agent) => this.refusalOf(rows.get(agent.id), agent, tx.now));
  }

  /** Records that an agent holds its first lease: from now on there are rows that name it. */
  async noteFirstLease(tx: Transaction, agentId: number): Promise<void> {
    await tx.run(
      'UPDATE agents SET first_lease_at = $2 WHERE id = $1 AND first_lease_at IS NULL',
      agentId,
      tx.now,
    );
  }

  /** Lists agents, newest first; deleted ones are left out. */
  async list(query: AgentsQuery): Promise<Page<AgentView>> {
    return this.database.read(async (statements) => {
      const { hostname, status, label = [], enrollment_token_id: enrolledBy, limit } = query;
      const byHeartbeat = status === 'online' || status === 'offline';
      const filters = new Conditions(`a.state <> 'deleted'`)
        .add(query.cursor === undefined ? undefined : olderThan(query), (id) => `a.id < ${id}`)
        .add(hostname === undefined ? undefined : hostnameKey(hostname), (key) => `a.hostname_key = ${key}`)
        .add(byHeartbeat ? 'active' : status, (state) => `a.state = ${state}`)
        .add(byHeartbeat ? this.silentSince() : undefined, (since) =>
          status === 'online' ? `h.last_heartbeat_at > ${since}` : `h.last_heartbeat_at <= ${since}`,
        )
        .add(enrolledBy, (id) => `a.enrollment_token_id = ${id}`);
      const joined = this.join(query, filters);
      if (query.failing !== undefined)
        filters.require(
          `a.id ${query.failing ? 'IN' : 'NOT IN'} (${this.outcomes.selectFailing((value) => filters.bind(value))})`,
        );
      for (const [name, value] of label.flatMap((one) => [parseLabel(one) ?? []]))
        filters.add(
          name,
          (of) =>
            `a.id IN (SELECT agent_id FROM agent_labels WHERE name = ${of} AND value = ${filters.bind(value ?? '')})`,
        );
      const most = filters.bind(limit + 1);
      const rows = await statements.rows<KnownAgent>(
        `${SELECT_AGENT} ${joined.tables} ${filters.where} ORDER BY ${joined.id} DESC LIMIT ${most}`,
        ...filters.values,
      );
      const page = pageOf(rows, limit, (row) => row.id);
      return { items: await this.viewsOf(statements, page.items), next_cursor: page.next_cursor };
    });
  }

  /**
   * Joins the tables that an index finds agents in by what they said. The order is by the first one's ids, so that a page is read
   * along its index: of a join's two equal columns SQLite does not see that either will do.
   */
  private join(
    { version, kind, config_status: standing }: AgentsQuery,
    filters: Conditions,
  ): { tables: string; id: string } {
    const joins: string[] = [];
    const ids: string[] = [];
    const add = (table: string, as: string, condition: string) => {
      joins.push(`JOIN ${table} ${as} ON ${as}.agent_id = a.id`);
      ids.push(`${as}.agent_id`);
      filters.require(condition);
    };
    if (version !== undefined) add('agent_about', 'v', `v.version = ${filters.bind(version)}`);
    if (kind !== undefined)
      add(
        'agent_kinds',
        'k',
        `k.kind = ${filters.bind(kind)} AND k.asked_at > ${filters.bind(this.clock.now() - KIND_KEPT_MS)}`,
      );
    // A revision has a character at least: this is none.
    const inForce = this.config.currentRevision() ?? '';
    if (standing === 'applied' || standing === 'failed')
      add(
        'agent_config_states',
        's',
        `s.revision = ${filters.bind(inForce)} AND s.status = ${filters.bind(standing)}`,
      );
    else if (standing === 'other') {
      const revision = filters.bind(inForce);
      filters.require(
        `a.id IN (SELECT agent_id FROM agent_config_states WHERE revision < ${revision} OR revision > ${revision})`,
      );
    } else if (standing === 'unsaid')
      filters.require('NOT EXISTS (SELECT 1 FROM agent_config_states s WHERE s.agent_id = a.id)');
    return { tables: joins.join(' '), id: ids[0] ?? 'a.id' };
  }

  /** @throws ERR_NOT_FOUND there is no such agent, or it was deleted */
  get(agentId: number): Promise<AgentView> {
    return this.database.read(async (statements) =>
      this.viewOf(statements, await findAgent(statements, agentId)),
    );
  }

  /** Which agents were heard of after an instant, in ms since the epoch. */
  async heardSince(statements: Statements, instant: number): Promise<Set<number>> {
    const rows = await statements.rows<{ agent_id: number }>(
      'SELECT agent_id FROM agent_heartbeats WHERE last_heartbeat_at > $1',
      instant,
    );
    return new Set(rows.map((row) => row.agent_id));
  }

  /** The labels of these names, of every agent that has one. */
  labelsNamed(statements: Statements, names: readonly string[]): Promise<Map<number, Labels>> {
    return labelsWhere(
      statements,
      `name IN (SELECT name FROM ${statements.dialect.rowset('$1', { name: 'text' })} AS r)`,
      names.map((name) => ({ name })),
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
  async create(
    by: OperatorIdentity,
    { hostname: name, labels }: CreateAgentRequest,
  ): Promise<AgentCredentials> {
    const token = mintToken('dcpa_');
    const hostname = name ?? null;
    const credentials = await this.database.write(async (tx) => {
      if (hostname !== null && (await this.lockByHostname(tx, hostname))) {
        throw fail(
          'ERR_CONFLICT',
          { hostname: 'belongs to another agent' },
          { message: 'The hostname is taken; rotate that agent, or delete it first.' },
        );
      }
      const id = await this.insert(tx, hostname, 'operator', token);
      await this.addLabels(tx, id, labels ?? {});
      await this.audit.record(tx, by, {
        action: 'agent.create',
        subject: `agent/${id}`,
        after: { hostname, labels: labels ?? {} },
      });
      return { agent_id: id, auth_token: token };
    });
    await this.learn(credentials.agent_id);
    return credentials;
  }

  /**
   * Gives an agent a new token. The one that it uses works on until the new one is first used, at most 10 minutes; with
   * `revokeOld` it is void when this is answered, and the leases of whoever holds it are revoked.
   * @throws ERR_NOT_FOUND there is no such agent
   * @throws ERR_CONFLICT it is revoked
   */
  async rotate(by: OperatorIdentity, agentId: number, revokeOld: boolean): Promise<AgentCredentials> {
    const token = mintToken('dcpa_');
    const credentials = await this.database.write(async (tx) => {
      const agent = await this.lockKnown(tx, agentId);
      if (agent.state === 'revoked') throw unchangeable(agent.state);
      await this.replaceToken(tx, agentId, token, revokeOld ? undefined : this.tokenInUse(agent, tx.now));
      if (revokeOld) await this.putOut(tx, agentId);
      // The operator says whose the agent is now.
      await this.forgetOwners(tx, agentId);
      await this.audit.record(tx, by, {
        action: 'agent.rotate',
        subject: `agent/${agentId}`,
        after: { revoke_old: revokeOld },
      });
      return { agent_id: agentId, auth_token: token };
    });
    await this.learn(credentials.agent_id);
    return credentials;
  }

  /**
   * Replaces all labels of an agent.
   * @throws ERR_NOT_FOUND there is no such agent
   */
  setLabels(by: OperatorIdentity, agentId: number, labels: Labels): Promise<AgentView> {
    return this.database.write(async (tx) => {
      const agent = await this.lockKnown(tx, agentId);
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
      const agent = await this.lockKnown(tx, agentId);
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
      const { state, hostname } = await this.lockKnown(tx, agentId);
      await this.setState(tx, agentId, 'deleted');
      await this.audit.record(tx, by, {
        action: 'agent.delete',
        subject: `agent/${agentId}`,
        before: { state, hostname },
      });
    });
  }

  /** @returns for each the error that it is refused with; undefined where it is stored */
  private async storeHeartbeats(
    tx: Transaction,
    beats: readonly Heartbeat[],
  ): Promise<(ApiError | undefined)[]> {
    const refusals = await this.refusals(
      tx,
      beats.map(({ agent }) => agent),
    );
    const stored = beats.filter((_, i) => refusals[i] === undefined);
    await tx.run(
      `UPDATE agent_heartbeats SET last_heartbeat_at = $2 WHERE ${tx.dialect.isAmong('agent_id', '$1')}`,
      JSON.stringify(stored.map(({ agent }) => agent.id)),
      tx.now,
    );
    const reports = new Map<number, ConfigReport>();
    for (const { agent, config } of stored) if (config) reports.set(agent.id, config);
    await this.configStates.store(tx, reports);
    return refusals;
  }

  /** What each of the agents may be told apart by; nobody changes it until the unit ends. Unknown ones are left out. */
  private async credentialsOf(
    tx: Transaction,
    agentIds: readonly number[],
    alone?: 'alone',
  ): Promise<Map<number, Standings>> {
    const rows = await tx.rows<Standings>(
      `SELECT ${CREDENTIAL_COLUMNS}, first_lease_at FROM agents
       WHERE ${tx.dialect.isAmong('id', '$1')} ORDER BY id ${alone ? tx.dialect.forUpdate() : tx.dialect.forShare()}`,
      JSON.stringify([...new Set(agentIds)]),
    );
    return new Map(rows.map((row) => [row.id, row]));
  }

  /** Why a call may not go on; the token is judged first, as when it came. */
  private refusalOf(
    row: Credentials | undefined,
    { tokenHash }: Pick<AgentIdentity, 'tokenHash'>,
    now: number,
  ): ApiError | undefined {
    const match = this.matchToken(row, tokenHash, now);
    if (!row || match === 'none' || row.state === 'deleted') return fail('ERR_UNAUTHORIZED');
    if (match === 'expired') return fail('ERR_TOKEN_EXPIRED');
    return row.state === 'active' || row.state === 'draining' ? undefined : outOfService(row.state);
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
    await tx.run('UPDATE agents SET state = $2 WHERE id = $1', agentId, state);
    if (state !== 'active' && state !== 'draining') await this.putOut(tx, agentId);
    if (state === 'revoked' || state === 'deleted') await this.forgetOwners(tx, agentId);
    this.credentials.announceChange(tx, String(agentId));
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

  // What a registration is made of, in its transaction.

  /**
   * The agent that has a hostname, however that is spelled; nobody else changes it, or writes for it, until the unit ends.
   * @returns undefined where no agent has it, or only deleted ones
   */
  lockByHostname(tx: Transaction, hostname: string): Promise<KnownAgent | undefined> {
    return this.lock(tx, `hostname_key = $1`, hostnameKey(hostname));
  }

  /** The same for an id. @returns undefined where there is no such agent, or it was deleted */
  lockById(tx: Transaction, agentId: number): Promise<KnownAgent | undefined> {
    return this.lock(tx, 'id = $1', agentId);
  }

  /** Which of the agent's tokens is shown; undefined where it is none that works. */
  tokenHeld(known: Credentials, shown: string, now: number): HeldToken | undefined {
    const match = this.matchToken(known, shown, now);
    if (match === 'current') return currentToken(known);
    return match === 'previous' ? { hash: shown, expiresAt: known.previous_token_expires_at } : undefined;
  }

  /** Makes an agent that is in service. @returns its id */
  async insert(
    tx: Transaction,
    hostname: string | null,
    origin: AgentOrigin,
    token: string,
  ): Promise<number> {
    const { now } = tx;
    const row = await tx.first<{ id: number }>(
      `INSERT INTO agents (hostname, hostname_key, origin, state, token_hash, token_expires_at, registered_at, trial_ends_at)
       VALUES ($1, $2, $3, 'active', $4, $5, $6, $7) RETURNING id`,
      hostname,
      hostname === null ? null : hostnameKey(hostname),
      origin,
      hashToken(token),
      this.tokenExpiry(now),
      now,
      origin === 'open' ? now + TRIAL_MS : null,
    );
    const { id } = row as { id: number };
    await tx.run('INSERT INTO agent_heartbeats (agent_id, last_heartbeat_at) VALUES ($1, $2)', id, now);
    return id;
  }

  /** Lays labels over those that an agent has. */
  async addLabels(tx: Transaction, agentId: number, labels: Labels): Promise<void> {
    const rows = Object.entries(labels).map(([name, value]) => ({ name, value }));
    if (rows.length === 0) return;
    await tx.run(
      `INSERT INTO agent_labels (agent_id, name, value)
       SELECT $1, name, value FROM ${tx.dialect.rowset('$2', { name: 'text', value: 'text' })} AS l WHERE true
       ON CONFLICT (agent_id, name) DO UPDATE SET value = excluded.value`,
      agentId,
      JSON.stringify(rows),
    );
  }

  /** Forgets which kinds an agent takes, how its attempts ended and what version it says: of another machine from now on. */
  async forgetWhatItDid(tx: Transaction, agentId: number): Promise<void> {
    await this.kinds.forget(tx, agentId);
    await this.outcomes.forget(tx, agentId);
    await this.about.forget(tx, agentId);
  }

  /** Takes all labels from an agent. @returns those that it had */
  async dropLabels(tx: Transaction, agentId: number): Promise<Labels> {
    const before = (await labelsOf(tx, [agentId])).get(agentId) ?? {};
    await tx.run('DELETE FROM agent_labels WHERE agent_id = $1', agentId);
    return before;
  }

  /**
   * Gives a known agent a new token. One that proved itself may use the token that it holds a little longer, also if that
   * is the one before last because the answers with the newer ones were lost. All others are void when this is committed.
   */
  async replaceToken(
    tx: Transaction,
    agentId: number,
    token: string,
    held: HeldToken | undefined,
  ): Promise<void> {
    const { now } = tx;
    await tx.run(
      `UPDATE agents SET token_hash = $2, token_expires_at = $3, previous_token_hash = $4, previous_token_expires_at = $5
       WHERE id = $1`,
      agentId,
      hashToken(token),
      this.tokenExpiry(now),
      held?.hash ?? null,
      held ? Math.min(now + OVERLAP_MS, held.expiresAt ?? Infinity) : null,
    );
    this.credentials.announceChange(tx, String(agentId));
  }

  /** Revokes what the agent holds, for whoever has held it is not the one who has it now. */
  async putOut(tx: Transaction, agentId: number): Promise<void> {
    for (const listener of this.outListeners) await listener(tx, [agentId]);
  }

  /** From now on only who has the agent now can prove that it is theirs. */
  async forgetOwners(tx: Transaction, agentId: number): Promise<void> {
    await tx.run('DELETE FROM agent_owner_tokens WHERE agent_id = $1', agentId);
  }

  /** Takes an agent out for good; its id stays taken, its hostname is free. */
  async markDeleted(tx: Transaction, agentId: number): Promise<void> {
    await this.setState(tx, agentId, 'deleted');
  }

  /**
   * Deletes agents without a trace. Only for agents that no lease or envelope of metrics names.
   * @param agentIds of agents that the unit has locked
   */
  async erase(tx: Transaction, agentIds: readonly number[]): Promise<void> {
    if (agentIds.length === 0) return;
    for (const table of [...DEPENDENT_TABLES, 'agents'])
      await tx.run(
        `DELETE FROM ${table} WHERE ${tx.dialect.isAmong(table === 'agents' ? 'id' : 'agent_id', '$1')}`,
        JSON.stringify(agentIds),
      );
    for (const id of agentIds) this.credentials.announceChange(tx, String(id));
  }

  private async lockKnown(tx: Transaction, agentId: number): Promise<KnownAgent> {
    const agent = await this.lockById(tx, agentId);
    if (!agent) throw fail('ERR_NOT_FOUND', { agent_id: agentId });
    return agent;
  }

  private async lock(tx: Transaction, condition: string, value: SqlValue): Promise<KnownAgent | undefined> {
    const agent = await tx.first<AgentEntity>(
      `SELECT * FROM agents WHERE ${condition} AND state <> 'deleted' ${tx.dialect.forUpdate()}`,
      value,
    );
    if (!agent) return undefined;
    // Read when the lock is held: of a row that had to be waited for, what is joined to it would be that of before.
    const heartbeat = await tx.first<Pick<HeartbeatEntity, 'last_heartbeat_at'>>(
      'SELECT last_heartbeat_at FROM agent_heartbeats WHERE agent_id = $1',
      agent.id,
    );
    return { ...agent, last_heartbeat_at: heartbeat?.last_heartbeat_at ?? agent.registered_at };
  }

  /** The token that an agent goes by: the one before, as long as the new one was not used. */
  tokenInUse(agent: Credentials, now: number): HeldToken {
    const { previous_token_hash: hash, previous_token_expires_at: expiresAt } = agent;
    return hash !== null && (expiresAt ?? 0) > now ? { hash, expiresAt } : currentToken(agent);
  }

  private tokenExpiry(now: number): number | null {
    const { agentTokenLifetimeMs } = this.settings;
    return agentTokenLifetimeMs === 0 ? null : now + agentTokenLifetimeMs;
  }

  /** How long an agent still counts as alive, in milliseconds; negative once it has missed its heartbeat. */
  aliveMs(agent: KnownAgent, now: number): number {
    return this.deadlineOf(agent) - now;
  }

  /** When an agent counts as silent. Time in which no server ran is not held against it. */
  private deadlineOf(agent: KnownAgent): number {
    return (
      Math.max(agent.last_heartbeat_at, this.continuity.runningSince()) + this.settings.heartbeatTimeoutMs
    );
  }

  /** Whose last heartbeat is not after this instant is offline, in ms since the epoch: {@link deadlineOf} turned round, for SQL. */
  silentSince(): number {
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
    const kinds = await this.kinds.of(statements, ids);
    const configs = await this.configStates.of(statements, ids);
    const outcomes = await this.outcomes.of(statements, ids);
    const errors = await this.outcomes.lastErrorsOf(statements, ids);
    const versions = await this.about.of(statements, ids);
    const now = this.clock.now();
    return agents.map((agent) => ({
      id: agent.id,
      hostname: agent.hostname,
      labels: labels.get(agent.id) ?? {},
      kinds: kinds.get(agent.id) ?? [],
      status:
        agent.state === 'active'
          ? this.deadlineOf(agent) > now
            ? 'online'
            : 'offline'
          : (agent.state as AgentView['status']),
      origin: agent.origin,
      registered_at: toTimestamp(agent.registered_at),
      handed_over_at: toTimestamp(agent.handed_over_at),
      enrollment_token_id: agent.enrollment_token_id,
      last_heartbeat_at: toTimestamp(agent.last_heartbeat_at),
      token_expires_at: toTimestamp(agent.token_expires_at),
      live_leases: leases.get(agent.id) ?? 0,
      version: versions.get(agent.id) ?? null,
      outcomes: outcomes.get(agent.id) ?? { hour: { ...NONE }, day: { ...NONE } },
      last_error: errors.get(agent.id) ?? null,
      config: configs.get(agent.id) ?? null,
    }));
  }
}

/** A hash that no token has. */
const NOBODY = '-'.repeat(64);

export function currentToken({ token_hash: hash, token_expires_at: expiresAt }: Credentials): HeldToken {
  return { hash, expiresAt };
}

export function outOfService(state: string) {
  return fail('ERR_FORBIDDEN', { state }, { message: `This agent is ${state}.` });
}

function unchangeable(state: string) {
  return fail('ERR_CONFLICT', { state }, { message: `A ${state} agent can't be changed so.` });
}

/** The labels of each of the agents; agents without any are left out. */
const labelsOf = (statements: Statements, agentIds: readonly number[]): Promise<Map<number, Labels>> =>
  labelsWhere(statements, statements.dialect.isAmong('agent_id', '$1'), agentIds);

async function labelsWhere(
  statements: Statements,
  condition: string,
  among: readonly unknown[],
): Promise<Map<number, Labels>> {
  const rows = await statements.rows<LabelEntity>(
    `SELECT agent_id, name, value FROM agent_labels WHERE ${condition} ORDER BY agent_id, name`,
    JSON.stringify(among),
  );
  const labels = new Map<number, Labels>();
  for (const { agent_id: id, name, value } of rows) labels.set(id, { ...labels.get(id), [name]: value });
  return labels;
}

async function findAgent(statements: Statements, agentId: number): Promise<KnownAgent> {
  const agent = await statements.first<KnownAgent>(
    `${SELECT_AGENT} WHERE a.id = $1 AND a.state <> 'deleted'`,
    agentId,
  );
  if (!agent) throw fail('ERR_NOT_FOUND', { agent_id: agentId });
  return agent;
}
