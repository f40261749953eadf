import { Inject, Injectable } from '@nestjs/common';
import { Clock } from '../clock';
import { Database } from '../database/database';
import { RowCache } from '../database/row-cache';
import type { Statements, Transaction } from '../database/statements';
import { type ApiError, fail } from '../errors';
import type { AgentIdentity } from '../http/control-plane-request';
import { hashToken, isAgentToken } from '../http/tokens';
import { Continuity } from '../scheduling/continuity';
import { SETTINGS, type Settings } from '../settings';
import { Lifecycle } from '../telemetry/lifecycle';
import type { AgentOrigin, AgentState } from './agent.entity';
import {
  deleteAgents,
  deleteOwnerTokens,
  findAgent,
  findCredentials,
  findIdByHostnameKey,
  insertAgent,
  isKnown,
  type KnownAgent,
  listHostnames,
  listLabelsNamed,
  listNewestCredentials,
  lockServiceStates,
  markFirstLeases,
  movePreviousTokenExpiries,
  updateState,
  updateToken,
  voidPreviousToken,
} from './agents.queries';
import { type Credentials, type HeldToken, isInService, matchToken, refusalOf } from './credentials';
import { hostnameKey } from './hostnames';
import type { Labels } from './labels';
import { Liveness } from './liveness';

/** How long the token before a rotation still works, unless the new one is used earlier, in milliseconds. */
const OVERLAP_MS = 600_000;

/** The length of the trial of an openly registered agent, in milliseconds. */
export const TRIAL_MS = 86_400_000;

/** The topic of changes of agents' credentials and states; the message is the id. */
const CREDENTIALS = 'agents';

/** The number of agents whose credentials are in memory; the others are looked up. */
const CACHED_AGENTS = 100_000;
/** The number of agents, the newest, whose credentials are loaded at the start. */
const KNOWN_AT_START = 20_000;

/** The permissions of an agent in the unit of work that has locked it. */
export interface Standing {
  /** The error that refuses its call; undefined if it is allowed. */
  readonly refusal: ApiError | undefined;
  /** Whether it may be granted leases: not while it drains. */
  readonly takesWork: boolean;
  /** Whether it ever held a lease, see {@link AgentsService.noteFirstLeases}. */
  readonly hadLease: boolean;
}

/** What another folder does in the transaction that takes agents out of service. */
export interface DeactivationListener {
  /** Takes its locks that come before those of agents; called before the unit locks an agent. */
  begin(tx: Transaction): Promise<void>;
  /** Called with the ids of the locked agents. */
  deactivate(tx: Transaction, agentIds: readonly number[]): Promise<void>;
}

/** Counts the live leases of each of the agents; agents without any are left out. */
export type LeaseCounter = (
  statements: Statements,
  agentIds: readonly number[],
) => Promise<Map<number, number>>;

/** Owns agents: their identities, their tokens, and whether they are in service. Other domains use this service. */
@Injectable()
export class AgentsService {
  private readonly deactivationListeners: DeactivationListener[] = [];
  private countLeases: LeaseCounter = () => Promise.resolve(new Map());
  /** By id. */
  private readonly credentials: RowCache<Credentials>;

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    continuity: Continuity,
    @Inject(SETTINGS) private readonly settings: Settings,
    private readonly lifecycle: Lifecycle,
    private readonly liveness: Liveness,
  ) {
    this.credentials = new RowCache(database, CREDENTIALS, CACHED_AGENTS);
    // If the clock was set back, replaced tokens must not work longer because of it.
    continuity.onInterruption(async (tx, { now, lastSeen }) => {
      if (lastSeen > now) await movePreviousTokenExpiries(tx, lastSeen - now);
    });
  }

  /**
   * Loads the agents' tokens, so that valid ones need no look-up, which may be refused at an address from which others
   * are guessing.
   */
  async onModuleInit(): Promise<void> {
    if (!this.lifecycle.serves) return;
    await this.credentials.fill(async (statements) => {
      const rows = await listNewestCredentials(statements, KNOWN_AT_START);
      return new Map(rows.map((row) => [String(row.id), row]));
    });
  }

  /** Caches an agent's new token, for the same reason. */
  async cacheCredentials(agentId: number): Promise<void> {
    // If it fails, the agent's next call looks it up.
    await this.readCredentials(agentId).catch(() => undefined);
  }

  /**
   * Subscribes to agents that are taken out of service (disabled, revoked, deleted) or get another holder. The listener
   * runs in the same transaction.
   */
  onDeactivated(listener: DeactivationListener): void {
    this.deactivationListeners.push(listener);
  }

  /** Subscribes to changes of agents' states and tokens, by this process or another replica. */
  onChanged(listener: (agentId: number) => void): void {
    this.database.onAnnouncement(CREDENTIALS, (id) => listener(Number(id)));
  }

  /** Sets the function that counts live leases, for {@link liveLeasesOf}. */
  countLeasesWith(counter: LeaseCounter): void {
    this.countLeases = counter;
  }

  /** Counts the live leases of each of the agents; agents without any are left out. */
  liveLeasesOf(statements: Statements, agentIds: readonly number[]): Promise<Map<number, number>> {
    return this.countLeases(statements, agentIds);
  }

  /**
   * {@link authenticate} for the usual case: the agent is in memory, in service, and presents its only token.
   * @returns undefined in any other case, which {@link authenticate} decides
   */
  recall(agentId: number, token: string): AgentIdentity | undefined {
    const agent = this.credentials.get(String(agentId));
    if (!agent || agent.previous_token_hash !== null) return undefined;
    const tokenHash = hashToken(token);
    const isRight = matchToken(agent, tokenHash, this.clock.now()) === 'current';
    // The hash that is in memory already, in place of the copy.
    return isRight && isInService(agent) ? { id: agent.id, tokenHash: agent.token_hash } : undefined;
  }

  /**
   * Authenticates an agent. Valid credentials are answered from memory if the agent has called before; wrong ones cost
   * one read, whether or not the agent exists, so that the time does not reveal which ids exist.
   * @param beforeLookup called with the credential before the database is read for it; may throw to prevent that
   * @throws ERR_UNAUTHORIZED unknown agent or wrong token, with the same message
   * @throws ERR_TOKEN_EXPIRED the token has expired
   * @throws ERR_FORBIDDEN the agent is disabled or revoked
   */
  async authenticate(
    agentId: number,
    token: string,
    beforeLookup: (credential: string) => void,
  ): Promise<AgentIdentity> {
    const key = String(agentId);
    const tokenHash = hashToken(token);
    const isOf = (row: Credentials | undefined) => matchToken(row, tokenHash, this.clock.now()) !== 'none';
    let agent = this.credentials.get(key);
    if (!isOf(agent)) {
      // The checksum reveals a typo without a read.
      if (!isAgentToken(token)) throw fail('ERR_UNAUTHORIZED');
      // A credential that was valid a moment ago is not a guess: its cached row is only too old.
      if (!isOf(this.credentials.peek(key))) beforeLookup(`agent:${key}:${tokenHash}`);
      // Guessed ids must not evict agents that call.
      agent = await this.readCredentials(agentId, isOf);
    }
    const refusal = refusalOf(agent, { tokenHash }, this.clock.now());
    if (!agent || refusal) throw refusal ?? fail('ERR_UNAUTHORIZED');
    if (agent.token_hash === tokenHash && agent.previous_token_hash !== null)
      await this.retirePreviousToken(agent);
    return { id: agent.id, tokenHash };
  }

  /**
   * Checks that an authenticated agent is still in service and its token still valid, for calls without a write that
   * must be refused at commit. As exact as a read: at once on the replica that changed it, within 5 s on others.
   * @throws ERR_UNAUTHORIZED, ERR_TOKEN_EXPIRED, ERR_FORBIDDEN as {@link requireInService}
   */
  async requireStillValid(agent: AgentIdentity): Promise<void> {
    const row = this.credentials.get(String(agent.id)) ?? (await this.readCredentials(agent.id));
    const refusal = refusalOf(row, agent, this.clock.now());
    if (refusal) throw refusal;
  }

  /**
   * Checks, in the transaction of a write for an agent, that it is still in service and that the token of the call is
   * still valid, so that a revoked or handed-over agent changes nothing more.
   * @param alone whether other units must not write for it until this one ends
   * @throws ERR_UNAUTHORIZED the token was voided, or the agent deleted
   * @throws ERR_TOKEN_EXPIRED the token expired while the call waited
   * @throws ERR_FORBIDDEN the agent was disabled or revoked
   */
  async requireInService(tx: Transaction, agent: AgentIdentity, alone?: 'alone'): Promise<Standing> {
    const [standing] = (await this.standingsOf(tx, [agent], alone)) as [Standing];
    if (standing.refusal) throw standing.refusal;
    return standing;
  }

  /**
   * Checks many calls as {@link requireInService} does, in one statement, which locks their agents by ascending ids.
   * @returns the permissions for each call, in order; a refused call does not fail the others
   */
  async standingsOf(tx: Transaction, agents: readonly AgentIdentity[], alone?: 'alone'): Promise<Standing[]> {
    if (agents.length === 0) return [];
    const ids = agents.map(({ id }) => id);
    const rows = await lockServiceStates(tx, ids, alone ? 'update' : 'share');
    return agents.map((agent) => {
      const row = rows.get(agent.id);
      const refusal = refusalOf(row, agent, tx.now);
      return {
        refusal,
        takesWork: refusal === undefined && row?.state === 'active',
        hadLease: row !== undefined && row.first_lease_at !== null,
      };
    });
  }

  /** Returns the `refusal` of each of {@link standingsOf}. */
  async refusals(tx: Transaction, agents: readonly AgentIdentity[]): Promise<(ApiError | undefined)[]> {
    return (await this.standingsOf(tx, agents)).map(({ refusal }) => refusal);
  }

  /** Records that agents hold their first lease: from now on leases refer to them. */
  async noteFirstLeases(tx: Transaction, agentIds: readonly number[]): Promise<void> {
    if (agentIds.length > 0) await markFirstLeases(tx, agentIds);
  }

  /** Reads the labels with these names, of every agent that has one. */
  labelsNamed(statements: Statements, names: readonly string[]): Promise<Map<number, Labels>> {
    return listLabelsNamed(statements, names);
  }

  /** Reads the hostnames of these agents; null for one without. */
  async hostnamesOf(statements: Statements, ids: readonly number[]): Promise<Map<number, string | null>> {
    return new Map((await listHostnames(statements, ids)).map(({ id, hostname }) => [id, hostname]));
  }

  /** Checks that an agent exists or was deleted. @throws ERR_NOT_FOUND there never was such an agent */
  async requireKnown(statements: Statements, agentId: number): Promise<void> {
    if (!(await isKnown(statements, agentId))) throw fail('ERR_NOT_FOUND', { agent_id: agentId });
  }

  // The parts of registrations and operators' changes, called in their transactions.

  /**
   * Locks a hostname, in any spelling, and the agent that has it: until the unit ends no other unit can take the name,
   * change the agent, or write for it.
   * @returns undefined if no agent has it, or only deleted ones
   */
  async lockByHostname(tx: Transaction, hostname: string): Promise<KnownAgent | undefined> {
    const key = hostnameKey(hostname);
    // A free name has no row to lock.
    await tx.lockName(`hostname:${key}`, 'exclusive');
    const id = await findIdByHostnameKey(tx, key);
    return id === undefined ? undefined : this.lockById(tx, id);
  }

  /**
   * Locks an agent: until the unit ends no other unit can change it or write for it. @returns undefined if it does
   * not exist
   */
  async lockById(tx: Transaction, agentId: number): Promise<KnownAgent | undefined> {
    // Sent together, in this order.
    await Promise.all([this.begin(tx), tx.lockRows('agents', [agentId])]);
    return findAgent(tx, agentId);
  }

  /** Takes the locks that come before those of agents. Call it before the unit locks agents that it may deactivate. */
  async begin(tx: Transaction): Promise<void> {
    await Promise.all(this.deactivationListeners.map((listener) => listener.begin(tx)));
  }

  /** Creates an agent that is in service. @returns its id */
  async insert(
    tx: Transaction,
    hostname: string | null,
    origin: AgentOrigin,
    token: string,
  ): Promise<number> {
    const current = this.newToken(token, tx.now);
    const id = await insertAgent(tx, {
      hostname,
      hostname_key: hostname === null ? null : hostnameKey(hostname),
      origin,
      token_hash: current.hash,
      token_expires_at: current.expiresAt,
      trial_ends_at: origin === 'open' ? tx.now + TRIAL_MS : null,
    });
    await this.liveness.begin(tx, id);
    return id;
  }

  /**
   * Gives an agent a new token. A caller with proof may use the token that it holds for a while, also if that is the
   * one before last because the answers with newer ones were lost. All other tokens are void when this is committed.
   */
  async replaceToken(
    tx: Transaction,
    agentId: number,
    token: string,
    held: HeldToken | undefined,
  ): Promise<void> {
    const previous = held && {
      hash: held.hash,
      expiresAt: Math.min(tx.now + OVERLAP_MS, held.expiresAt ?? Infinity),
    };
    await updateToken(tx, agentId, this.newToken(token, tx.now), previous);
    this.credentials.announceChange(tx, String(agentId));
  }

  /** Changes the state of an agent. If that takes it out of service, its leases are revoked. */
  async setState(tx: Transaction, agentId: number, state: AgentState): Promise<void> {
    await updateState(tx, agentId, state);
    if (state !== 'active' && state !== 'draining') await this.deactivate(tx, agentId);
    if (state === 'revoked' || state === 'deleted') await deleteOwnerTokens(tx, agentId);
    this.credentials.announceChange(tx, String(agentId));
  }

  /** Revokes the leases of an agent that the unit has locked, because it is out of service or has another holder. */
  async deactivate(tx: Transaction, agentId: number): Promise<void> {
    for (const listener of this.deactivationListeners) await listener.deactivate(tx, [agentId]);
  }

  /**
   * Deletes all rows of agents. Only for agents without leases and metrics.
   * @param agentIds of agents that the unit has locked
   */
  async erase(tx: Transaction, agentIds: readonly number[]): Promise<void> {
    if (agentIds.length === 0) return;
    await deleteAgents(tx, agentIds);
    for (const id of agentIds) this.credentials.announceChange(tx, String(id));
  }

  private readCredentials(
    agentId: number,
    isWanted?: (row: Credentials) => boolean,
  ): Promise<Credentials | undefined> {
    return this.credentials.load(
      String(agentId),
      (statements) => findCredentials(statements, agentId),
      isWanted,
    );
  }

  /** Voids the previous token, because the new one was used. */
  private retirePreviousToken(agent: Credentials): Promise<void> {
    return this.database.write(async (tx) => {
      await voidPreviousToken(tx, agent.id, agent.token_hash);
      this.credentials.announceChange(tx, String(agent.id));
    });
  }

  private newToken(token: string, now: number): HeldToken {
    const { agentTokenLifetimeMs } = this.settings;
    return {
      hash: hashToken(token),
      expiresAt: agentTokenLifetimeMs === 0 ? null : now + agentTokenLifetimeMs,
    };
  }
}
