import { isDeepStrictEqual } from 'node:util';
import { Injectable } from '@nestjs/common';
import { Clock, toTimestamp } from '../clock';
import { ConfigService } from '../config/config.service';
import { Database } from '../database/database';
import type { Statements, Transaction } from '../database/statements';
import { fail } from '../errors';
import type { OperatorIdentity } from '../http/control-plane-request';
import { type Page, pageOf } from '../http/pagination';
import { mintToken } from '../http/tokens';
import { AuditLog } from '../operators/audit-log';
import type { AgentState } from './agent.entity';
import { AgentAbout } from './agent-about';
import { AgentKinds, KIND_TTL_MS } from './agent-kinds';
import { AgentOutcomes, NONE } from './agent-outcomes';
import type { AgentCredentials, AgentsQuery, AgentView, CreateAgentRequest } from './agents.dto';
import {
  deleteLabels,
  deleteOwnerTokens,
  findAgent,
  type KnownAgent,
  listLabels,
  upsertLabels,
} from './agents.queries';
import { AgentsService } from './agents.service';
import { ConfigStates } from './config-states';
import { tokenInUse } from './credentials';
import { listAgents } from './fleet.queries';
import type { Labels } from './labels';
import { Liveness } from './liveness';

/** The states from which each transition is allowed, and its new state. */
const TRANSITIONS = {
  disable: { from: ['active', 'draining', 'disabled'], to: 'disabled' },
  enable: { from: ['active', 'draining', 'disabled'], to: 'active' },
  drain: { from: ['active', 'draining'], to: 'draining' },
  revoke: { from: ['active', 'draining', 'disabled', 'revoked'], to: 'revoked' },
} as const satisfies Record<string, { from: readonly AgentState[]; to: AgentState }>;

/** The changes of an agent's state, except deletion. */
export type AgentTransition = keyof typeof TRANSITIONS;

/** Lists and changes agents for operators. */
@Injectable()
export class FleetService {
  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly agents: AgentsService,
    private readonly liveness: Liveness,
    private readonly config: ConfigService,
    private readonly configStates: ConfigStates,
    private readonly kinds: AgentKinds,
    private readonly outcomes: AgentOutcomes,
    private readonly about: AgentAbout,
    private readonly audit: AuditLog,
  ) {}

  /** Lists agents, newest first, without deleted ones. */
  async list(query: AgentsQuery): Promise<Page<AgentView>> {
    return this.database.read(async (statements) => {
      const rows = await listAgents(statements, query, {
        silentSince: this.liveness.silentSince(),
        kindsSince: this.clock.now() - KIND_TTL_MS,
        // Every revision has at least one character, so this one matches none.
        revisionInForce: this.config.currentRevision() ?? '',
        selectFailing: (bind) => this.outcomes.selectFailing(bind),
      });
      const page = pageOf(rows, query.limit, (row) => row.id);
      return { items: await this.viewsOf(statements, page.items), next_cursor: page.next_cursor };
    });
  }

  /** Reads an agent. @throws ERR_NOT_FOUND there is no such agent, or it was deleted */
  get(agentId: number): Promise<AgentView> {
    return this.database.read(async (statements) => {
      const agent = await findAgent(statements, agentId);
      if (!agent) throw notFound(agentId);
      return this.viewOf(statements, agent);
    });
  }

  /**
   * Creates an agent. Only the hash of its token is stored, so only this answer shows it.
   * @throws ERR_CONFLICT another agent has the hostname
   */
  async create(
    by: OperatorIdentity,
    { hostname: name, labels }: CreateAgentRequest,
  ): Promise<AgentCredentials> {
    const token = mintToken('dcpa_');
    const hostname = name ?? null;
    const credentials = await this.database.write(async (tx) => {
      if (hostname !== null && (await this.agents.lockByHostname(tx, hostname))) {
        throw fail(
          'ERR_CONFLICT',
          { hostname: 'belongs to another agent' },
          { message: 'The hostname is taken; rotate that agent, or delete it first.' },
        );
      }
      const id = await this.agents.insert(tx, hostname, 'operator', token);
      await upsertLabels(tx, id, labels ?? {});
      await this.audit.record(tx, by, {
        action: 'agent.create',
        subject: `agent/${id}`,
        after: { hostname, labels: labels ?? {} },
      });
      return { agent_id: id, auth_token: token };
    });
    await this.agents.cacheCredentials(credentials.agent_id);
    return credentials;
  }

  /**
   * Gives an agent a new token. The current one works until the new one is first used, at most 10 minutes; with
   * `revokeOld` it is void when this resolves, and the agent's leases are revoked.
   * @throws ERR_NOT_FOUND there is no such agent
   * @throws ERR_CONFLICT it is revoked
   */
  async rotate(by: OperatorIdentity, agentId: number, revokeOld: boolean): Promise<AgentCredentials> {
    const token = mintToken('dcpa_');
    const credentials = await this.database.write(async (tx) => {
      const agent = await this.lock(tx, agentId);
      if (agent.state === 'revoked') throw unchangeable(agent.state);
      await this.agents.replaceToken(tx, agentId, token, revokeOld ? undefined : tokenInUse(agent, tx.now));
      if (revokeOld) await this.agents.deactivate(tx, agentId);
      // The operator decides who owns the agent now.
      await deleteOwnerTokens(tx, agentId);
      await this.audit.record(tx, by, {
        action: 'agent.rotate',
        subject: `agent/${agentId}`,
        after: { revoke_old: revokeOld },
      });
      return { agent_id: agentId, auth_token: token };
    });
    await this.agents.cacheCredentials(credentials.agent_id);
    return credentials;
  }

  /**
   * Replaces all labels of an agent.
   * @throws ERR_NOT_FOUND there is no such agent
   */
  setLabels(by: OperatorIdentity, agentId: number, labels: Labels): Promise<AgentView> {
    return this.database.write(async (tx) => {
      const agent = await this.lock(tx, agentId);
      const before = (await listLabels(tx, [agentId])).get(agentId) ?? {};
      if (!isDeepStrictEqual(before, labels)) {
        await deleteLabels(tx, agentId);
        await upsertLabels(tx, agentId, labels);
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
   * Changes the state of an agent; in force when this resolves. If that takes the agent out of service, its leases are
   * revoked in the same transaction. Repeating it changes nothing.
   * @throws ERR_NOT_FOUND there is no such agent
   * @throws ERR_CONFLICT its state forbids it: a revoked agent stays revoked, a disabled one can't drain
   */
  change(by: OperatorIdentity, agentId: number, transition: AgentTransition): Promise<AgentView> {
    const { from, to } = TRANSITIONS[transition];
    return this.database.write(async (tx) => {
      const agent = await this.lock(tx, agentId);
      if (!(from as readonly AgentState[]).includes(agent.state)) throw unchangeable(agent.state);
      if (agent.state !== to) {
        await this.agents.setState(tx, agentId, to);
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
   * Deletes an agent; in force when this resolves. Its id stays taken and its results stay, its hostname is free.
   * @throws ERR_NOT_FOUND there is no such agent
   */
  async remove(by: OperatorIdentity, agentId: number): Promise<void> {
    await this.database.write(async (tx) => {
      const { state, hostname } = await this.lock(tx, agentId);
      await this.agents.setState(tx, agentId, 'deleted');
      await this.audit.record(tx, by, {
        action: 'agent.delete',
        subject: `agent/${agentId}`,
        before: { state, hostname },
      });
    });
  }

  private async lock(tx: Transaction, agentId: number): Promise<KnownAgent> {
    const agent = await this.agents.lockById(tx, agentId);
    if (!agent) throw notFound(agentId);
    return agent;
  }

  private async viewOf(statements: Statements, agent: KnownAgent): Promise<AgentView> {
    return (await this.viewsOf(statements, [agent]))[0] as AgentView;
  }

  private async viewsOf(statements: Statements, agents: readonly KnownAgent[]): Promise<AgentView[]> {
    const ids = agents.map((agent) => agent.id);
    const leases = await this.agents.liveLeasesOf(statements, ids);
    const labels = await listLabels(statements, ids);
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
          ? this.liveness.aliveMs(agent, now) > 0
            ? 'online'
            : 'offline'
          : (agent.state as AgentView['status']),
      origin: agent.origin,
      registered_at: toTimestamp(agent.registered_at),
      handed_over_at: toTimestamp(agent.handed_over_at),
      enrollment_token_id: agent.enrollment_token_id,
      last_heartbeat_at: toTimestamp(this.liveness.lastHeartbeatAt(agent)),
      token_expires_at: toTimestamp(agent.token_expires_at),
      live_leases: leases.get(agent.id) ?? 0,
      version: versions.get(agent.id) ?? null,
      outcomes: outcomes.get(agent.id) ?? { hour: { ...NONE }, day: { ...NONE } },
      last_error: errors.get(agent.id) ?? null,
      config: configs.get(agent.id) ?? null,
    }));
  }
}

const notFound = (agentId: number) => fail('ERR_NOT_FOUND', { agent_id: agentId });

const unchangeable = (state: string) =>
  fail('ERR_CONFLICT', { state }, { message: `A ${state} agent does not allow this change.` });
