import { Injectable } from '@nestjs/common';
import { LRUCache } from 'lru-cache';
import { toTimestamp } from '../clock';
import type { Rollout } from '../config/config.dto';
import { ConfigService } from '../config/config.service';
import type { Statements, Transaction } from '../database/statements';
import { fail } from '../errors';
import type { ConfigStateEntity } from './agent.entity';
import type { ConfigStateView, HeartbeatRequest } from './agents.dto';

/** What so many agents said last is kept in memory, so that the same again costs nothing. */
const REMEMBERED_AGENTS = 100_000;

/** What an agent says about its configuration; the message as it is stored. */
export type ConfigReport = Pick<ConfigStateEntity, 'revision' | 'status' | 'message'>;

/** Owns agent_config_states: which configuration each agent said last that it uses, or could not. */
@Injectable()
export class ConfigStates {
  private readonly stored = new LRUCache<number, string>({
    // By size: a cache with `max` takes the memory for all of them at once.
    maxSize: REMEMBERED_AGENTS,
    sizeCalculation: () => 1,
  });

  constructor(config: ConfigService) {
    config.countRolloutWith((statements, revisions) => this.countRollout(statements, revisions));
  }

  /** Stores what agents in service say, as far as it is not what they said before. */
  async store(tx: Transaction, reports: ReadonlyMap<number, ConfigReport>): Promise<void> {
    const news = [...reports].filter(([id, report]) => this.stored.get(id) !== textOf(report));
    if (news.length === 0) return;
    await tx.run(
      `INSERT INTO agent_config_states (agent_id, revision, status, message, reported_at)
       SELECT agent_id, revision, status, message, $2
       FROM ${tx.dialect.rowset('$1', {
         agent_id: 'integer',
         revision: 'text',
         status: 'text',
         message: 'text',
       })} AS r
       WHERE true
       ON CONFLICT (agent_id) DO UPDATE SET revision = excluded.revision, status = excluded.status,
         message = excluded.message, reported_at = excluded.reported_at
       WHERE agent_config_states.revision <> excluded.revision OR agent_config_states.status <> excluded.status
         OR agent_config_states.message IS DISTINCT FROM excluded.message`,
      JSON.stringify(news.map(([agent_id, report]) => ({ agent_id, ...report }))),
      tx.now,
    );
    // What an agent says to another replica is not known here.
    if (tx.dialect.concurrent) return;
    tx.afterCommit(() => {
      for (const [id, report] of news) this.stored.set(id, textOf(report));
    });
  }

  /** What the agents said last; those that said nothing yet are left out. */
  async of(statements: Statements, agentIds: readonly number[]): Promise<Map<number, ConfigStateView>> {
    const rows = await statements.rows<ConfigStateEntity>(
      `SELECT * FROM agent_config_states WHERE ${statements.dialect.isAmong('agent_id', '$1')}`,
      JSON.stringify(agentIds),
    );
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
    const all = await statements.first<{ count: number }>(
      `SELECT count(*) AS count FROM agents WHERE state IN ('active', 'draining')`,
    );
    const counts = await statements.rows<{ revision: string; status: 'applied' | 'failed'; count: number }>(
      `SELECT s.revision, s.status, count(*) AS count
       FROM agent_config_states s JOIN agents a ON a.id = s.agent_id
       WHERE s.revision IN (SELECT revision FROM ${statements.dialect.rowset('$1', { revision: 'text' })} AS r)
         AND a.state IN ('active', 'draining')
       GROUP BY s.revision, s.status`,
      JSON.stringify(revisions.map((revision) => ({ revision }))),
    );
    const rollouts = new Map<string, Rollout>();
    for (const revision of revisions)
      rollouts.set(revision, { applied: 0, failed: 0, in_service: all?.count ?? 0 });
    for (const { revision, status, count } of counts) (rollouts.get(revision) as Rollout)[status] = count;
    return rollouts;
  }
}

/**
 * What a heartbeat says about the configuration; undefined where it says nothing.
 * @throws ERR_VALIDATION a revision without a status, a status without a revision, a message without a failure
 */
export function configReportOf(heartbeat: HeartbeatRequest): ConfigReport | undefined {
  const { config_revision: revision, config_status: status, config_message: message } = heartbeat;
  if (!revision && !status && !message) return undefined;
  const problems: Record<string, string> = {};
  if (!revision) problems.config_revision = 'must be there with config_status';
  if (!status) problems.config_status = 'must be there with config_revision';
  if (message && status !== 'failed')
    problems.config_message = 'must be there only where config_status is failed';
  if (!revision || !status || Object.keys(problems).length > 0) throw fail('ERR_VALIDATION', problems);
  return { revision, status, message: message == null ? null : JSON.stringify(message) };
}

const textOf = ({ revision, status, message }: ConfigReport): string =>
  `${revision} ${status} ${message ?? ''}`;
