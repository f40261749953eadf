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

/** For how long a call under an `Idempotency-Key` is the same one, in milliseconds. */
const REPEAT_MS = 600_000;

/** What a caller of `/register` shows for itself. */
export interface Proof {
  agentId?: number;
  token?: string;
  enrollmentToken?: string;
}

/** A call of `/register`. */
export interface Registration {
  readonly hostname?: string;
  readonly proof?: Proof;
  /** The caller's secret, by which it says that it sends the same call again. */
  readonly key?: string;
  /** Where the call comes from, for the audit log. */
  readonly address: string;
}

/** A call on its way, with what gives back what it was charged. */
interface Attempt {
  readonly registration: Registration;
  readonly shown: Shown;
  readonly call: IdempotentCall | undefined;
  readonly token: string;
  readonly charge: Charge;
  refund: () => void;
}

/** What is kept under a key: the registered agent, and the token that was issued last. */
interface Repeatable {
  readonly agent_id: number;
  readonly token_hash: string;
  /** When the first call was answered. */
  readonly at: number;
}

/** Decides who becomes which agent: new ones, those that come again, and who gets the name of one that is silent. */
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
   * Gives the caller an identity and a fresh token. A hostname that is known keeps its identity, and goes to somebody who
   * proves nothing only if the agent registered openly and has missed its heartbeat. The same call under the same key
   * answers for the same agent with a new token, for 10 minutes, and is not charged again.
   * @param charge the quota: charged when the registration succeeds, or to the address when it fails
   * @throws ERR_VALIDATION a key that is too short
   * @throws ERR_UNAUTHORIZED an enrollment token is needed and missing, or it is wrong
   * @throws ERR_CONFLICT the hostname belongs to another agent: retryable if that registered openly, or not at all; or the
   * key was used with another body, or for a registration that is superseded
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
        // A unit can be run again; what its first run took is given back.
        attempt.refund();
        return this.registerIn(tx, attempt);
      });
      await this.agents.learn(agentId);
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
   * Deletes the agents that registered openly and did not come to stay: last heard of within their first day, and silent
   * for a day since. One that no lease or stored metrics name goes without a trace, so that strangers can't fill the
   * table; of the others the id stays taken. Nothing is held against them before the service has run for an hour.
   * @returns how many were judged
   */
  async endTrials(): Promise<number> {
    if (this.continuity.runningSince() > this.clock.now() - HOUR_MS) return 0;
    return this.jobs.purge((limit) => this.database.write((tx) => this.endTrialsIn(tx, limit)));
  }

  @Cron(CronExpression.EVERY_HOUR)
  protected endTrialsHourly(): Promise<void> {
    return this.jobs.run('agent-trials', HOUR_MS, async () => void (await this.endTrials()));
  }

  /** Locks what the call is about, decides, and writes. @returns the agent's id */
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
   * Takes the key before anything else is waited for: the same call at the same time waits here, and then finds it.
   * @returns what was registered under it, if that is not too long ago
   */
  private async takeKey(tx: Transaction, call: IdempotentCall): Promise<Repeatable | undefined> {
    const earlier = await this.idempotency.find<Repeatable>(tx, call, true);
    if (!earlier) await this.idempotency.store(tx, call, null);
    return earlier && earlier.at > tx.now - REPEAT_MS ? earlier : undefined;
  }

  /** Locks the agent that the call is about; of a name that nobody has, the name. */
  private async lockAgent(
    tx: Transaction,
    { hostname }: Registration,
    repeated: Repeatable | undefined,
  ): Promise<KnownAgent | undefined> {
    if (repeated) return this.agents.lockById(tx, repeated.agent_id);
    return hostname === undefined ? undefined : this.agents.lockByHostname(tx, hostname);
  }

  /** @returns the agent's id */
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
    // To register is a sign of life.
    await this.liveness.record(tx, [known.id]);
    return known.id;
  }

  /** @throws ERR_VALIDATION a key that can't be a secret */
  private callOf({ key, hostname }: Registration, shown: Shown): IdempotentCall | undefined {
    if (key === undefined) return undefined;
    if (!/^[\x21-\x7e]{16,255}$/.test(key)) {
      throw fail('ERR_VALIDATION', {
        'idempotency-key': 'must be 16 to 255 visible ASCII characters; it is a secret of the caller',
      });
    }
    const enrolledWith = typeof shown === 'object' ? shown.hash : shown;
    return this.idempotency.call('register', hashToken(key), { hostname: hostname ?? null, enrolledWith });
  }

  /** Takes an agent from a holder that is silent: what it holds, what operators said of it, and its tokens. */
  private async handOver(tx: Transaction, known: KnownAgent, address: string): Promise<void> {
    // Of several in a row, the first is whose it was; those after it proved nothing.
    if (known.handed_over_at === null) {
      await deleteOwnerTokens(tx, known.id);
      const expiresAt = known.token_expires_at;
      // Both that it may hold: an answer with the newer one may have been lost.
      for (const hash of new Set([tokenInUse(known, tx.now).hash, known.token_hash]))
        await insertOwnerToken(tx, known.id, { hash, expiresAt });
    }
    await updateHandOver(tx, known.id, tx.now);
    await this.changeHolder(tx, known.id);
    const labels = (await listLabels(tx, [known.id])).get(known.id) ?? {};
    await deleteLabels(tx, known.id);
    const last_heartbeat_at = toTimestamp(this.liveness.heardAt(known));
    await this.recordHandOver(tx, known.id, address, false, { labels, last_heartbeat_at });
  }

  /** Gives an agent back to an owner; who has it meanwhile loses it at once. */
  private async handBack(tx: Transaction, known: KnownAgent, address: string): Promise<void> {
    await updateHandOver(tx, known.id, null);
    await deleteOwnerTokens(tx, known.id);
    await this.changeHolder(tx, known.id);
    const handed_over_at = toTimestamp(known.handed_over_at);
    await this.recordHandOver(tx, known.id, address, true, { handed_over_at });
  }

  /** Takes what the agent holds, and forgets what it takes, how its attempts ended and its version: of another machine now. */
  private async changeHolder(tx: Transaction, agentId: number): Promise<void> {
    await this.agents.deactivate(tx, agentId);
    await this.kinds.forget(tx, agentId);
    await this.outcomes.forget(tx, agentId);
    await this.about.forget(tx, agentId);
  }

  /** Records in the audit log that an agent has another holder, and whether that one proved to be its owner. */
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
   * Records that an agent showed an enrollment token: from now on it is handed over with proof only. The first time that
   * it comes with an issued one, that one's labels go over those there are.
   */
  private async enroll(tx: Transaction, agentId: number, enrollment: Enrollment | undefined): Promise<void> {
    await markEnrolled(tx, agentId);
    await deleteOwnerTokens(tx, agentId);
    if (!enrollment?.isCounted) return;
    await updateEnrollmentToken(tx, agentId, enrollment.tokenId);
    await upsertLabels(tx, agentId, enrollment.labels);
  }

  /** @returns how many were judged: as many as are due, up to the limit */
  private async endTrialsIn(tx: Transaction, limit: number): Promise<number> {
    const agents = (await lockEndedTrials(tx, limit)).map((agent) => ({
      ...agent,
      last_heartbeat_at: this.liveness.heardAt(agent),
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
  // An operator decided about it, or it came back after its first day.
  if ((state !== 'active' && state !== 'draining') || heardAt > registeredAt + TRIAL_MS) return 'stays';
  return heardAt + TRIAL_MS > now ? 'waits' : 'gone';
}

/** The hash of the token that is shown as this agent's; undefined if none is, or it can't be a token. */
function hashShownFor({ id }: KnownAgent, proof: Proof | undefined): string | undefined {
  if (proof?.agentId !== id || proof.token === undefined || !isAgentToken(proof.token)) return undefined;
  return hashToken(proof.token);
}
