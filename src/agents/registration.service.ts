import { Inject, Injectable } from '@nestjs/common';
import { Cron, CronExpression } from '@nestjs/schedule';
import { Clock, toTimestamp } from '../clock';
import { Database } from '../database/database';
import { Idempotency, type IdempotentCall } from '../database/idempotency';
import type { Transaction } from '../database/statements';
import { fail } from '../errors';
import type { Charge } from '../http/control-plane-request';
import { hashToken, isAgentToken, mintToken } from '../http/tokens';
import { AuditLog, PROCESS } from '../operators/audit-log';
import { Continuity } from '../scheduling/continuity';
import { JobRunner } from '../scheduling/job-runner';
import { SETTINGS, type Settings } from '../settings';
import { AgentAbout } from './agent-about';
import { AgentKinds } from './agent-kinds';
import { AgentOutcomes } from './agent-outcomes';
import type { RegisterResponse } from './agents.dto';
import { deleteLabels, deleteOwnerTokens, type KnownAgent, listLabels, upsertLabels } from './agents.queries';
import { AgentsService, TRIAL_MS } from './agents.service';
import { tokenInUse } from './credentials';
import { type Enrollment, EnrollmentService, type Shown } from './enrollment.service';
import { Liveness } from './liveness';
import {
  type AgentOnTrial,
  findOwnerToken,
  insertOwnerToken,
  lockEndedTrials,
  markEnrolled,
  updateEnrollmentToken,
  updateHandOver,
  updateTrialEnds,
} from './registration.queries';
import { decideRegistration, type RegistrationDecision } from './registration-decision';

const HOUR_MS = 3_600_000;

/** How long a call under an `Idempotency-Key` can be repeated, in milliseconds. */
const REPEAT_MS = 600_000;

/** The credentials of a caller of `/register`. */
export interface Proof {
  agentId?: number;
  token?: string;
  enrollmentToken?: string;
}

/** A call of `/register`. */
export interface Registration {
  readonly hostname?: string;
  readonly proof?: Proof;
  /** The caller's secret for repeating the call. */
  readonly key?: string;
  /** The caller's address, for the audit log. */
  readonly address: string;
}

/** A call in progress, with the function that refunds its charge. */
interface Attempt {
  readonly registration: Registration;
  readonly shown: Shown;
  readonly call: IdempotentCall | undefined;
  readonly token: string;
  readonly charge: Charge;
  refund: () => void;
}

/** The stored result of a key: the registered agent, and its last token. */
interface Repeatable {
  readonly agent_id: number;
  readonly token_hash: string;
  /** When the first call was answered. */
  readonly at: number;
}

/**
 * Registers agents: new ones, known ones that register again, and callers that take over a silent agent's hostname.
 */
@Injectable()
export class RegistrationService {
  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly continuity: Continuity,
    private readonly agents: AgentsService,
    private readonly liveness: Liveness,
    private readonly enrollment: EnrollmentService,
    private readonly kinds: AgentKinds,
    private readonly outcomes: AgentOutcomes,
    private readonly about: AgentAbout,
    private readonly idempotency: Idempotency,
    private readonly audit: AuditLog,
    private readonly jobs: JobRunner,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    this.jobs.declare('agent-trials');
  }

  /**
   * Gives the caller an identity and a new token. A known hostname keeps its identity, and is handed over without proof
   * only if the agent registered openly and has missed its heartbeat. For 10 minutes, the same call under the same key
   * returns the same agent with a new token, and is not charged again.
   * @param charge the quota: charged when the registration succeeds, or to the address when it fails
   * @throws ERR_VALIDATION the key is too short
   * @throws ERR_UNAUTHORIZED an enrollment token is needed and missing, or it is wrong
   * @throws ERR_CONFLICT the hostname belongs to another agent (retryable if that registered openly), the key was used
   * with another body, or its registration is superseded
   * @throws ERR_FORBIDDEN the hostname belongs to an agent that is disabled or revoked
   * @throws ERR_RATE_LIMITED the hostname (or address) registered too recently, or all callers together too often
   */
  async register(registration: Registration, charge: Charge): Promise<RegisterResponse> {
    const shown = this.enrollment.inspect(registration.proof?.enrollmentToken, charge);
    const call = this.callOf(registration, shown);
    const token = mintToken('dcpa_');
    const attempt: Attempt = { registration, shown, call, token, charge, refund: () => undefined };
    try {
      const agentId = await this.database.write((tx) => {
        // A unit can be run again: refund the charge of its first run.
        attempt.refund();
        return this.registerIn(tx, attempt);
      });
      await this.agents.cacheCredentials(agentId);
      return {
        agent_id: agentId,
        auth_token: token,
        lease_duration_ms: this.settings.leaseDurationMs,
        heartbeat_timeout_ms: this.settings.heartbeatTimeoutMs,
      };
    } catch (error) {
      attempt.refund();
      throw error;
    }
  }

  /**
   * Deletes agents that registered openly, sent their last heartbeat within their first day, and have been silent for a
   * day. If an agent has no leases and metrics, its rows are deleted, so that unauthenticated clients can't fill the
   * table; of the others the id stays taken. Does nothing before the service has run for an hour.
   * @returns the number of agents whose trial was checked
   */
  async endTrials(): Promise<number> {
    if (this.continuity.runningSince() > this.clock.now() - HOUR_MS) return 0;
    return this.jobs.purge((limit) => this.database.write((tx) => this.endTrialsIn(tx, limit)));
  }

  @Cron(CronExpression.EVERY_HOUR)
  protected endTrialsHourly(): Promise<void> {
    return this.jobs.run('agent-trials', HOUR_MS, async () => void (await this.endTrials()));
  }

  /** Locks the hostname and its agent, decides, and writes. @returns the agent's id */
  private async registerIn(tx: Transaction, attempt: Attempt): Promise<number> {
    const { registration, shown, call, token, charge } = attempt;
    const repeated = call && (await this.takeKey(tx, call));
    const known = await this.lockAgent(tx, registration, repeated);
    const enrollment =
      typeof shown === 'object'
        ? await this.enrollment.requireUsable(tx, shown.hash, known?.enrollment_token_id ?? null, charge)
        : undefined;
    const isEnrolled = shown === 'setting' || enrollment !== undefined;
    const shownHash = known && hashShownFor(known, registration.proof);
    const decision = decideRegistration({
      now: tx.now,
      known,
      aliveMs: known ? this.liveness.aliveMs(known, tx.now) : 0,
      shownHash,
      ownerToken:
        known && shownHash !== undefined ? await findOwnerToken(tx, known.id, shownHash) : undefined,
      isEnrolled,
      repeatedTokenHash: repeated?.token_hash,
      waitMs: charge.waitMs,
    });
    if (enrollment) await this.enrollment.use(tx, enrollment, charge);
    if (decision.action !== 'repeat')
      attempt.refund = await charge.success(tx, decision.action === 'create' ? 'new' : 'known');
    const agentId = await this.carryOut(tx, decision, registration, token);
    if (isEnrolled) await this.enroll(tx, agentId, enrollment);
    if (call) {
      const at = repeated?.at ?? tx.now;
      const repeatable: Repeatable = { agent_id: agentId, token_hash: hashToken(token), at };
      await this.idempotency.replace(tx, call, repeatable);
    }
    return agentId;
  }

  /**
   * Locks the key before any other lock: a concurrent call with the same key waits here, and then finds the result.
   * @returns the result of the key, if it is recent enough
   */
  private async takeKey(tx: Transaction, call: IdempotentCall): Promise<Repeatable | undefined> {
    const earlier = await this.idempotency.find<Repeatable>(tx, call, true);
    if (!earlier) await this.idempotency.store(tx, call, null);
    return earlier && earlier.at > tx.now - REPEAT_MS ? earlier : undefined;
  }

  /** Locks the agent that the call is about, or its hostname if no agent has that. */
  private async lockAgent(
    tx: Transaction,
    { hostname }: Registration,
    repeated: Repeatable | undefined,
  ): Promise<KnownAgent | undefined> {
    if (repeated) return this.agents.lockById(tx, repeated.agent_id);
    return hostname === undefined ? undefined : this.agents.lockByHostname(tx, hostname);
  }

  /** Carries the decision out. @returns the agent's id */
  private async carryOut(
    tx: Transaction,
    decision: RegistrationDecision,
    { hostname, address }: Registration,
    token: string,
  ): Promise<number> {
    if (decision.action === 'create') return this.agents.insert(tx, hostname ?? null, decision.origin, token);
    const { known } = decision;
    if (decision.action === 'hand-over') await this.handOver(tx, known, address);
    if (decision.action === 'hand-back') await this.handBack(tx, known, address);
    await this.agents.replaceToken(tx, known.id, token, decision.held);
    // A registration counts as a heartbeat.
    await this.liveness.record(tx, [known.id]);
    return known.id;
  }

  /** Identifies the call by its key. @throws ERR_VALIDATION the key is too short for a secret */
  private callOf({ key, hostname }: Registration, shown: Shown): IdempotentCall | undefined {
    if (key === undefined) return undefined;
    if (!/^[\x21-\x7e]{16,255}$/.test(key)) {
      throw fail('ERR_VALIDATION', {
        'idempotency-key': 'must be 16 to 255 visible ASCII characters, because it is a secret of the caller',
      });
    }
    const enrolledWith = typeof shown === 'object' ? shown.hash : shown;
    return this.idempotency.call('register', hashToken(key), { hostname: hostname ?? null, enrolledWith });
  }

  /** Hands a silent agent over to another holder: revokes its leases, deletes its labels, and voids its tokens. */
  private async handOver(tx: Transaction, known: KnownAgent, address: string): Promise<void> {
    // After several hand-overs in a row, only the first holder is the owner.
    if (known.handed_over_at === null) {
      await deleteOwnerTokens(tx, known.id);
      const expiresAt = known.token_expires_at;
      // Both tokens that it may hold: the answer with the newer one may have been lost.
      for (const hash of new Set([tokenInUse(known, tx.now).hash, known.token_hash]))
        await insertOwnerToken(tx, known.id, { hash, expiresAt });
    }
    await updateHandOver(tx, known.id, tx.now);
    await this.changeHolder(tx, known.id);
    const labels = (await listLabels(tx, [known.id])).get(known.id) ?? {};
    await deleteLabels(tx, known.id);
    const last_heartbeat_at = toTimestamp(this.liveness.lastHeartbeatAt(known));
    await this.recordHandOver(tx, known.id, address, false, { labels, last_heartbeat_at });
  }

  /** Gives an agent back to its owner; the current holder loses it at once. */
  private async handBack(tx: Transaction, known: KnownAgent, address: string): Promise<void> {
    await updateHandOver(tx, known.id, null);
    await deleteOwnerTokens(tx, known.id);
    await this.changeHolder(tx, known.id);
    const handed_over_at = toTimestamp(known.handed_over_at);
    await this.recordHandOver(tx, known.id, address, true, { handed_over_at });
  }

  /** Revokes the agent's leases, and deletes its kinds, outcomes and version: it is another machine now. */
  private async changeHolder(tx: Transaction, agentId: number): Promise<void> {
    await this.agents.deactivate(tx, agentId);
    await this.kinds.clear(tx, agentId);
    await this.outcomes.clear(tx, agentId);
    await this.about.clear(tx, agentId);
  }

  /** Records a change of the holder in the audit log, and whether the new one had proof. */
  private recordHandOver(
    tx: Transaction,
    agentId: number,
    address: string,
    proof: boolean,
    before: object,
  ): Promise<void> {
    return this.audit.record(
      tx,
      { ...PROCESS, address },
      { action: 'agent.hand-over', subject: `agent/${agentId}`, before, after: { proof } },
    );
  }

  /**
   * Records that an agent showed an enrollment token: from now on it is handed over only with proof. If it uses an
   * issued token for the first time, the token's labels replace those with the same names.
   */
  private async enroll(tx: Transaction, agentId: number, enrollment: Enrollment | undefined): Promise<void> {
    await markEnrolled(tx, agentId);
    await deleteOwnerTokens(tx, agentId);
    if (!enrollment?.isCounted) return;
    await updateEnrollmentToken(tx, agentId, enrollment.tokenId);
    await upsertLabels(tx, agentId, enrollment.labels);
  }

  /** @returns the number of agents whose trial was checked: all that are due, up to the limit */
  private async endTrialsIn(tx: Transaction, limit: number): Promise<number> {
    await this.agents.begin(tx);
    const agents = (await lockEndedTrials(tx, limit)).map((agent) => ({
      ...agent,
      last_heartbeat_at: this.liveness.lastHeartbeatAt(agent),
    }));
    if (agents.length === 0) return 0;
    const verdicts = Map.groupBy(agents, (agent) => verdictOn(agent, tx.now));
    const stays = (verdicts.get('stays') ?? []).map(({ id }) => ({ id, ends: null }));
    const waits = (verdicts.get('waits') ?? []).map(({ id, last_heartbeat_at: heardAt }) => ({
      id,
      ends: heardAt + TRIAL_MS,
    }));
    await updateTrialEnds(tx, [...stays, ...waits]);
    const gone = verdicts.get('gone') ?? [];
    const isNamed = ({ first_lease_at: firstLeaseAt, day }: AgentOnTrial) =>
      firstLeaseAt !== null || day !== null;
    for (const { id } of gone.filter(isNamed)) await this.agents.setState(tx, id, 'deleted');
    await this.agents.erase(
      tx,
      gone.filter((agent) => !isNamed(agent)).map(({ id }) => id),
    );
    if (gone.length > 0) {
      // One entry for all of them: a flood of registrations must not flood the log.
      await this.audit.record(tx, PROCESS, {
        action: 'agent.expire',
        subject: 'agents',
        before: { ids: gone.map(({ id }) => id) },
      });
    }
    return agents.length;
  }
}

function verdictOn(agent: AgentOnTrial, now: number): 'stays' | 'waits' | 'gone' {
  const { state, registered_at: registeredAt, last_heartbeat_at: heardAt } = agent;
  // An operator changed its state, or it was online after its first day.
  if ((state !== 'active' && state !== 'draining') || heardAt > registeredAt + TRIAL_MS) return 'stays';
  return heardAt + TRIAL_MS > now ? 'waits' : 'gone';
}

/**
 * Returns the hash of the token that the caller sent for this agent; undefined if it sent none, or a malformed one.
 */
function hashShownFor({ id }: KnownAgent, proof: Proof | undefined): string | undefined {
  if (proof?.agentId !== id || proof.token === undefined || !isAgentToken(proof.token)) return undefined;
  return hashToken(proof.token);
}
