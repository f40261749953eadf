import { Injectable } from '@nestjs/common';
import { boundedCache } from '../bounded-cache';
import { Clock, toTimestamp } from '../clock';
import type { Rollout } from '../config/config.dto';
import { ConfigService } from '../config/config.service';
import { Database } from '../database/database';
import type { Statements, Transaction } from '../database/statements';
import { fail } from '../errors';
import type { ConfigStateView, HeartbeatRequest } from './agents.dto';
import {
  type ConfigReport,
  countByRevision,
  countInService,
  listConfigStates,
  upsertConfigStates,
} from './config-states.queries';

/** The number of agents whose last report is in memory, so that repeating it costs nothing. */
const CACHED_AGENTS = 100_000;
/**
 * How long a report in memory counts as stored, in milliseconds: a notification of another replica can be lost
 * silently.
 */
const TRUSTED_MS = 60_000;
/** The topic of changed reports; the message is the agent's id. */
const CHANGED = 'agent-config-states';

/** Owns agent_config_states: the configuration that each agent last reported as applied or failed. */
@Injectable()
export class ConfigStates {
  private readonly stored = boundedCache<number, { readonly text: string; readonly at: number }>(
    CACHED_AGENTS,
  );

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    config: ConfigService,
  ) {
    database.onAnnouncement(CHANGED, (agentId) => this.stored.delete(Number(agentId)));
    database.onGap(() => this.stored.clear());
    config.countRolloutWith((statements, revisions) => this.countRollout(statements, revisions));
  }

  /**
   * Whether {@link store} would write this report, as far as this process knows. It trusts its memory while it receives
   * the announcements of other replicas, and for at most a minute.
   */
  hasChanged(agentId: number, report: ConfigReport): boolean {
    const known = this.stored.get(agentId);
    if (!known || !this.database.isListening || known.text !== textOf(report)) return true;
    const ageMs = this.clock.now() - known.at;
    return ageMs < 0 || ageMs >= TRUSTED_MS;
  }

  /** Stores the reports of agents in service if they changed. */
  async store(tx: Transaction, reports: ReadonlyMap<number, ConfigReport>): Promise<void> {
    const changes = [...reports].filter(([id, report]) => this.hasChanged(id, report));
    if (changes.length === 0) return;
    const changed = await upsertConfigStates(
      tx,
      changes.map(([agent_id, report]) => ({ agent_id, ...report })),
    );
    for (const agentId of changed) tx.announce(CHANGED, String(agentId));
    // After the announcement, which this process receives too.
    tx.afterCommit(() => {
      for (const [id, report] of changes) this.stored.set(id, { text: textOf(report), at: tx.now });
    });
  }

  /** Reads the last reports of agents; agents without one are left out. */
  async of(statements: Statements, agentIds: readonly number[]): Promise<Map<number, ConfigStateView>> {
    const rows = await listConfigStates(statements, agentIds);
    return new Map(
      rows.map(({ agent_id, revision, status, message, reported_at }) => [
        agent_id,
        {
          revision,
          status,
          message: message === null ? null : JSON.parse(message),
          reported_at: toTimestamp(reported_at),
        },
      ]),
    );
  }

  private async countRollout(
    statements: Statements,
    revisions: readonly string[],
  ): Promise<Map<string, Rollout>> {
    const inService = await countInService(statements);
    const counts = await countByRevision(statements, revisions);
    const rollouts = new Map<string, Rollout>();
    for (const revision of revisions)
      rollouts.set(revision, { applied: 0, failed: 0, in_service: inService });
    for (const { revision, status, count } of counts) (rollouts.get(revision) as Rollout)[status] = count;
    return rollouts;
  }
}

/**
 * Reads the report about the configuration from a heartbeat; undefined if it has none.
 * @throws ERR_VALIDATION a revision without a status, a status without a revision, a message without a failure
 */
export function configReportOf(heartbeat: HeartbeatRequest): ConfigReport | undefined {
  const { config_revision: revision, config_status: status, config_message: message } = heartbeat;
  if (!revision && !status && !message) return undefined;
  const problems: Record<string, string> = {};
  if (!revision) problems.config_revision = 'is required with config_status';
  if (!status) problems.config_status = 'is required with config_revision';
  if (message && status !== 'failed') problems.config_message = 'is allowed only if config_status is failed';
  if (!revision || !status || Object.keys(problems).length > 0) throw fail('ERR_VALIDATION', problems);
  return { revision, status, message: message == null ? null : JSON.stringify(message) };
}

const textOf = ({ revision, status, message }: ConfigReport): string =>
  `${revision} ${status} ${message ?? ''}`;
