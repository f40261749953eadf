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

/** A heartbeat that is answered when it is written. */
interface WrittenHeartbeat {
  readonly agent: AgentIdentity;
  readonly config: ConfigReport | undefined;
}

/** Takes agents' heartbeats: most are answered from memory, without a statement. */
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
   * Takes in that an agent is alive, and what it says about its configuration if that is new. Waits for the database only
   * if there is such news, or if the agent could look dead should the process crash now; all that wait share one unit of work.
   * @param userAgent what the agent says of its version
   * @throws ERR_VALIDATION what it says about the configuration does not go together
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
    await this.agents.requireStillAdmitted(agent);
    const hasNews = config !== undefined && this.configStates.isNews(agent.id, config);
    if (hasNews || !this.liveness.note(agent.id)) {
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

  /** @returns for each the error that it is refused with; undefined for those that are stored */
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
