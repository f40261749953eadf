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
import type { AgentEntity, OwnerTokenEntity } from './agent.entity';
import type { RegisterResponse } from './agents.dto';
import {
  AgentsService,
  currentToken,
  type HeldToken,
  type KnownAgent,
  outOfService,
  TRIAL_MS,
} from './agents.service';
import { type Enrollment, EnrollmentService, type Shown } from './enrollment.service';

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

/** What is kept under a key: who was registered, and the token that was given out last. */
interface Repeatable {
  readonly agent_id: number;
  readonly token_hash: string;
  /** When the first call was answered. */
  readonly at: number;
}

/** How an agent on trial stands. */
type OnTrial = Pick<AgentEntity, 'id' | 'state' | 'registered_at' | 'first_lease_at'> & {
  last_heartbeat_at: number;
  /** Null where it has stored nothing, metrics included. */
  day: number | null;
};

/** Decides who becomes which agent: new ones, those that come again, and who gets the name of one that is silent. */
@Injectable()
export class RegistrationService {
  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly continuity: Continuity,
    private readonly agents: AgentsService,
    private readonly enrollment: EnrollmentService,
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

  /** @returns the agent's id */
  private async registerIn(tx: Transaction, attempt: Attempt): Promise<number> {
    const { registration, shown, call, token, charge } = attempt;
    const { hostname, address } = registration;
    const earlier = call && (await this.idempotency.find<Repeatable>(tx, call, true));
    // Taken before anything else is waited for: the same call at the same time waits here, and then finds it.
    if (call && !earlier) await this.idempotency.store(tx, call, null);
    const repeated = earlier && earlier.at > tx.now - REPEAT_MS ? earlier : undefined;
    let known: KnownAgent | undefined;
    const lookUp = async (): Promise<number | null> => {
      if (repeated) known = await this.agents.lockById(tx, repeated.agent_id);
      else if (hostname !== undefined) known = await this.agents.lockByHostname(tx, hostname);
      return known?.enrollment_token_id ?? null;
    };
    const enrolledBy = await lookUp();
    const enrollment =
      typeof shown === 'object'
        ? await this.enrollment.use(tx, shown.hash, enrolledBy, lookUp, charge)
        : undefined;
    const isEnrolled = shown === 'setting' || enrollment !== undefined;
    if (known?.state === 'disabled' || known?.state === 'revoked') throw outOfService(known.state);
    let agentId: number;
    if (repeated) {
      // Whoever had the agent changed since then, or its token: the key proves nothing any more.
      if (known?.token_hash !== repeated.token_hash) throw superseded();
      agentId = known.id;
      const held = this.tokenShown(known, registration.proof, tx.now) ?? currentToken(known);
      await this.giveToken(tx, agentId, token, held);
    } else if (known) {
      agentId = known.id;
      const { by, held } = await this.judge(tx, known, registration.proof, isEnrolled, charge.waitMs);
      attempt.refund = await charge.success(tx, 'known');
      if (by === 'silence') await this.handOver(tx, known, address);
      if (by === 'return') await this.handBack(tx, known, address);
      await this.giveToken(tx, agentId, token, held);
    } else {
      attempt.refund = await charge.success(tx, 'new');
      agentId = await this.agents.insert(tx, hostname ?? null, isEnrolled ? 'enrolled' : 'open', token);
    }
    if (isEnrolled) await this.enroll(tx, agentId, enrollment);
    if (call) {
      const at = repeated?.at ?? tx.now;
      const repeatable: Repeatable = { agent_id: agentId, token_hash: hashToken(token), at };
      await this.idempotency.replace(tx, call, repeatable);
    }
    return agentId;
  }

  /** @throws ERR_VALIDATION a key that can't be a secret */
  private callOf({ key, hostname }: Registration, shown: Shown): IdempotentCall | undefined {
    if (key === undefined) return undefined;
    if (!/^[\x21-\x7e]{16,255}$/.test(key)) {
      throw fail('ERR_VALIDATION', {
        'idempotency-key': 'must be 16 to 255 visible ASCII characters, for it is a secret of the caller',
      });
    }
    const enrolledWith = typeof shown === 'object' ? shown.hash : shown;
    return this.idempotency.call('register', hashToken(key), { hostname: hostname ?? null, enrolledWith });
  }

  /**
   * Decides by what a caller may have a known agent.
   * @param waitMs how long the quota does not let it in
   * @throws ERR_CONFLICT it may not, or not yet
   */
  private async judge(
    tx: Transaction,
    known: KnownAgent,
    proof: Proof | undefined,
    isEnrolled: boolean,
    waitMs: number,
  ): Promise<Takeover> {
    const held = this.tokenShown(known, proof, tx.now);
    if (held) return { by: 'proof', held };
    const owned = await this.ownerTokenShown(tx, known.id, proof);
    // Whoever it was handed over to without proof does not keep it beside an owner.
    if (owned || (isEnrolled && known.handed_over_at !== null)) return { by: 'return', held: owned };
    if (isEnrolled) return { by: 'proof', held: currentToken(known) };
    if (known.origin !== 'open') {
      throw fail(
        'ERR_CONFLICT',
        { hostname: 'belongs to another agent' },
        {
          message:
            'The hostname belongs to an agent that is handed over only with proof: its token, or an enrollment token.',
        },
      );
    }
    const aliveMs = this.agents.aliveMs(known, tx.now);
    if (aliveMs > 0) {
      throw fail(
        'ERR_CONFLICT',
        { hostname: 'belongs to an agent that is alive' },
        {
          message:
            `The hostname ${known.hostname} belongs to an agent that is online. Register with its token to replace it, ` +
            'or wait until it is offline.',
          retryable: true,
          retryAfterMs: Math.max(aliveMs, waitMs),
        },
      );
    }
    return { by: 'silence', held: undefined };
  }

  private tokenShown(known: KnownAgent, proof: Proof | undefined, now: number): HeldToken | undefined {
    const hash = proof?.agentId === known.id ? hashOf(proof) : undefined;
    return hash === undefined ? undefined : this.agents.tokenHeld(known, hash, now);
  }

  /** The token of an earlier holder, from whom the agent was taken. */
  private async ownerTokenShown(
    tx: Transaction,
    agentId: number,
    proof: Proof | undefined,
  ): Promise<HeldToken | undefined> {
    const hash = proof?.agentId === agentId ? hashOf(proof) : undefined;
    if (hash === undefined) return undefined;
    const row = await tx.first<OwnerTokenEntity>(
      `SELECT * FROM agent_owner_tokens
       WHERE agent_id = $1 AND token_hash = $2 AND (expires_at IS NULL OR expires_at > $3)`,
      agentId,
      hash,
      tx.now,
    );
    return row && { hash, expiresAt: row.expires_at };
  }

  /** Takes an agent from whoever is silent: what it holds, what operators said of it, and its tokens. */
  private async handOver(tx: Transaction, known: KnownAgent, address: string): Promise<void> {
    const { now } = tx;
    // Of several in a row, the first is whose it was; those after it proved nothing.
    if (known.handed_over_at === null) {
      await this.agents.forgetOwners(tx, known.id);
      // Both that it may hold: an answer with the newer one may have been lost.
      for (const hash of new Set([this.agents.tokenInUse(known, now).hash, known.token_hash]))
        await tx.run(
          'INSERT INTO agent_owner_tokens (agent_id, token_hash, expires_at) VALUES ($1, $2, $3)',
          known.id,
          hash,
          known.token_expires_at,
        );
    }
    await tx.run('UPDATE agents SET handed_over_at = $2 WHERE id = $1', known.id, now);
    await this.agents.putOut(tx, known.id);
    await this.agents.forgetWhatItDid(tx, known.id);
    const labels = await this.agents.dropLabels(tx, known.id);
    const last_heartbeat_at = toTimestamp(known.last_heartbeat_at);
    await this.recordHandOver(tx, known.id, address, false, { labels, last_heartbeat_at });
  }

  /** Gives an agent back to an owner; who has it meanwhile loses it at once. */
  private async handBack(tx: Transaction, known: KnownAgent, address: string): Promise<void> {
    await tx.run('UPDATE agents SET handed_over_at = NULL WHERE id = $1', known.id);
    await this.agents.forgetOwners(tx, known.id);
    await this.agents.putOut(tx, known.id);
    await this.agents.forgetWhatItDid(tx, known.id);
    const handed_over_at = toTimestamp(known.handed_over_at);
    await this.recordHandOver(tx, known.id, address, true, { handed_over_at });
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

  /** To register is a sign of life. */
  private async giveToken(
    tx: Transaction,
    agentId: number,
    token: string,
    held: HeldToken | undefined,
  ): Promise<void> {
    await this.agents.replaceToken(tx, agentId, token, held);
    await tx.run('UPDATE agent_heartbeats SET last_heartbeat_at = $2 WHERE agent_id = $1', agentId, tx.now);
  }

  /**
   * Records that an agent showed an enrollment token: from now on it is handed over with proof only. The first time that
   * it comes with an issued one, that one's labels go over those there are.
   */
  private async enroll(tx: Transaction, agentId: number, enrollment: Enrollment | undefined): Promise<void> {
    await tx.run(
      `UPDATE agents SET origin = 'enrolled', trial_ends_at = NULL, handed_over_at = NULL WHERE id = $1 AND origin = 'open'`,
      agentId,
    );
    await this.agents.forgetOwners(tx, agentId);
    if (!enrollment?.counted) return;
    await tx.run('UPDATE agents SET enrollment_token_id = $2 WHERE id = $1', agentId, enrollment.tokenId);
    await this.agents.addLabels(tx, agentId, enrollment.labels);
  }

  /** @returns how many were judged: as many as are due, up to the limit */
  private async endTrialsIn(tx: Transaction, limit: number): Promise<number> {
    const { now } = tx;
    const due = await tx.rows<{ id: number }>(
      `SELECT id FROM agents WHERE trial_ends_at <= $1 ORDER BY trial_ends_at LIMIT $2 ${tx.dialect.skipLocked()}`,
      now,
      limit,
    );
    if (due.length === 0) return 0;
    // Read when they are locked: a heartbeat that came before that counts.
    const agents = await tx.rows<OnTrial>(
      `SELECT a.id, a.state, a.registered_at, a.first_lease_at, h.last_heartbeat_at, u.day
       FROM agents a JOIN agent_heartbeats h ON h.agent_id = a.id LEFT JOIN agent_usage u ON u.agent_id = a.id
       WHERE ${tx.dialect.isAmong('a.id', '$1')}`,
      JSON.stringify(due.map(({ id }) => id)),
    );
    const verdicts = Map.groupBy(agents, (agent) => verdictOn(agent, now));
    const stays = (verdicts.get('stays') ?? []).map(({ id }) => ({ id, ends: null }));
    const waits = (verdicts.get('waits') ?? []).map(({ id, last_heartbeat_at: heardAt }) => ({
      id,
      ends: heardAt + TRIAL_MS,
    }));
    await tx.run(
      `UPDATE agents SET trial_ends_at = r.ends
       FROM ${tx.dialect.rowset('$1', { id: 'integer', ends: 'integer' })} AS r WHERE agents.id = r.id`,
      JSON.stringify([...stays, ...waits]),
    );
    const gone = verdicts.get('gone') ?? [];
    const isNamed = ({ first_lease_at: firstLeaseAt, day }: OnTrial) => firstLeaseAt !== null || day !== null;
    for (const { id } of gone.filter(isNamed)) await this.agents.markDeleted(tx, id);
    const traceless = gone.filter((agent) => !isNamed(agent)).map(({ id }) => id);
    await this.agents.erase(tx, traceless);
    if (gone.length > 0) {
      // One entry for all of them: who floods the service with registrations must not flood the log.
      await this.audit.record(tx, PROCESS, {
        action: 'agent.expire',
        subject: 'agents',
        before: { ids: gone.map(({ id }) => id) },
      });
    }
    return due.length;
  }
}

/** By what a caller comes to have a known agent, and which token it may use a little longer. */
interface Takeover {
  /** `proof`: it has it already; `return`: it had it before others took it; `silence`: nobody else seems to need it. */
  readonly by: 'proof' | 'return' | 'silence';
  readonly held: HeldToken | undefined;
}

function verdictOn(agent: OnTrial, now: number): 'stays' | 'waits' | 'gone' {
  const { state, registered_at: registeredAt, last_heartbeat_at: heardAt } = agent;
  // An operator decided about it, or it came back after its first day.
  if ((state !== 'active' && state !== 'draining') || heardAt > registeredAt + TRIAL_MS) return 'stays';
  return heardAt + TRIAL_MS > now ? 'waits' : 'gone';
}

function hashOf({ token }: Proof): string | undefined {
  return token !== undefined && isAgentToken(token) ? hashToken(token) : undefined;
}

function superseded() {
  return fail(
    'ERR_CONFLICT',
    { 'idempotency-key': 'was used for a registration that is superseded' },
    { message: 'The agent of this key has another token by now, or is gone; register under another key.' },
  );
}
