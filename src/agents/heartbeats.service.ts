import { Inject, Injectable } from '@nestjs/common';
import { ConfigService } from '../config/config.service';
import { Batcher } from '../database/batcher';
import { Database } from '../database/database';
import type { Transaction } from '../database/statements';
import type { ApiError } from '../errors';
import type { AgentIdentity } from '../http/control-plane-request';
import { SETTINGS, type Settings } from '../settings';
import { AgentAbout } from './agent-about';
import type { HeartbeatRequest, HeartbeatResponse } from './agents.dto';
import { AgentsService } from './agents.service';
import { ConfigStates, configReportOf } from './config-states';
import type { ConfigReport } from './config-states.queries';
import { Liveness } from './liveness';

/** A heartbeat that must be written before it is answered. */
interface WrittenHeartbeat {
  readonly agent: AgentIdentity;
  readonly config: ConfigReport | undefined;
}

/** Handles agents' heartbeats: most are answered from memory, without a statement. */
@Injectable()
export class HeartbeatsService {
  private readonly written: Batcher<WrittenHeartbeat, ApiError | undefined>;

  constructor(
    database: Database,
    private readonly agents: AgentsService,
    private readonly liveness: Liveness,
    private readonly config: ConfigService,
    private readonly configStates: ConfigStates,
    private readonly about: AgentAbout,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    this.written = new Batcher(database, (tx, heartbeats) => this.store(tx, heartbeats));
  }

  /**
   * Records a heartbeat, and the agent's report about its configuration if that changed. Waits for the database only if
   * the report changed, or if the agent would look offline after a crash at this instant; all heartbeats that wait
   * share one unit of work.
   * @param userAgent the agent's version
   * @throws ERR_VALIDATION the fields of the report are inconsistent
   * @throws ERR_UNAUTHORIZED the token was voided meanwhile
   * @throws ERR_TOKEN_EXPIRED the token expired meanwhile
   * @throws ERR_FORBIDDEN the agent was disabled or revoked meanwhile
   */
  async heartbeat(
    agent: AgentIdentity,
    request: HeartbeatRequest,
    userAgent?: string,
  ): Promise<HeartbeatResponse> {
    const config = configReportOf(request);
    await this.agents.requireStillValid(agent);
    const hasChanged = config !== undefined && this.configStates.hasChanged(agent.id, config);
    if (hasChanged || !this.liveness.note(agent.id)) {
      const refusal = await this.written.run({ agent, config });
      if (refusal) throw refusal;
    }
    this.about.note(agent.id, userAgent);
    const revision = this.config.currentRevision();
    return {
      agent_id: agent.id,
      next_deadline_ms: this.settings.heartbeatTimeoutMs,
      ...(revision === undefined ? {} : { config_revision: revision }),
    };
  }

  /** @returns for each heartbeat the error that refuses it; undefined if it is stored */
  private async store(
    tx: Transaction,
    heartbeats: readonly WrittenHeartbeat[],
  ): Promise<(ApiError | undefined)[]> {
    const refusals = await this.agents.refusals(
      tx,
      heartbeats.map(({ agent }) => agent),
    );
    const accepted = heartbeats.filter((_, i) => refusals[i] === undefined);
    await this.liveness.record(tx, [...new Set(accepted.map(({ agent }) => agent.id))]);
    const reports = new Map<number, ConfigReport>();
    for (const { agent, config } of accepted) if (config) reports.set(agent.id, config);
    await this.configStates.store(tx, reports);
    return refusals;
  }
}
