import { hash } from 'node:crypto';
import { Inject, Injectable } from '@nestjs/common';
import { Cron, CronExpression } from '@nestjs/schedule';
import { AgentsService } from '../agents/agents.service';
import { Clock, toTimestamp } from '../clock';
import { CoalescedWrite } from '../database/coalesced-write';
import { Database } from '../database/database';
import type { Transaction } from '../database/statements';
import { fail } from '../errors';
import { fitting, type Page, pageOf } from '../http/pagination';
import { parseTimestamp } from '../http/timestamps';
import { JobRunner } from '../scheduling/job-runner';
import { SETTINGS, type Settings } from '../settings';
import {
  MAX_SAMPLES,
  type MetricsQuery,
  type MetricsRequest,
  type MetricsView,
  type Sample,
} from './metrics.dto';
import type { MetricsEntity } from './metrics.entity';

const HOUR_MS = 3_600_000;

/** How far from the server's clock an envelope's timestamp may be. */
const MAX_AGE_MS = 30 * 24 * HOUR_MS;
const MAX_AHEAD_MS = 300_000;

/** How much text goes into one statement: envelopes can be large, and many at once. */
const STATEMENT_CHARS = 8 * 1024 * 1024;

/** An envelope on its way into the table. */
type Envelope = Omit<MetricsEntity, 'id' | 'received_at'>;

/** Owns agent_metrics: the envelopes that agents send, each stored once. */
@Injectable()
export class MetricsService {
  private readonly envelopes: CoalescedWrite<Envelope, number | undefined>;

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly agents: AgentsService,
    private readonly jobs: JobRunner,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    this.envelopes = new CoalescedWrite(database, (tx, envelopes) => this.store(tx, envelopes));
  }

  /**
   * Stores an envelope, durably. The same envelope of the same agent again is not stored again. All that arrive while the
   * writer is busy share one statement.
   * @returns the envelope's id
   * @throws ERR_VALIDATION the timestamp is too old or ahead, or there are too many samples
   * @throws ERR_FORBIDDEN the agent was disabled, revoked or deleted meanwhile
   */
  async ingest(agentId: number, request: MetricsRequest): Promise<string> {
    const measuredAt = this.checkLimits(request);
    const counters = textOf(request.counters);
    const gauges = textOf(request.gauges);
    const id = await this.envelopes.run({
      agent_id: agentId,
      // Of the timestamp as it was sent: two that differ by less than a millisecond are not the same.
      envelope_hash: hash('sha256', `${request.timestamp}\n${counters}\n${gauges}`, 'hex'),
      measured_at: measuredAt,
      counters,
      gauges,
    });
    if (id === undefined)
      throw fail('ERR_FORBIDDEN', undefined, { message: 'This agent is out of service.' });
    return String(id);
  }

  /**
   * Lists an agent's envelopes by the time they were measured, the latest first. Those of a deleted agent are there too.
   * @throws ERR_NOT_FOUND there never was such an agent
   */
  list(agentId: number, query: MetricsQuery): Promise<Page<MetricsView>> {
    const [beforeAt, beforeId] = query.cursor?.split('-').map(Number) ?? [];
    return this.database.read(async (statements) => {
      await this.agents.requireKnown(statements, agentId);
      const found = await statements.rows<{ id: number; measured_at: number; bytes: number }>(
        `SELECT id, measured_at, octet_length(counters) + octet_length(gauges) AS bytes FROM agent_metrics
         WHERE agent_id = $1 AND measured_at >= $2 AND measured_at < $3 AND (measured_at, id) < ($4, $5)
         ORDER BY measured_at DESC, id DESC LIMIT $6`,
        agentId,
        instantOf(query.from) ?? 0,
        instantOf(query.to) ?? Number.MAX_SAFE_INTEGER,
        beforeAt ?? Number.MAX_SAFE_INTEGER,
        beforeId ?? Number.MAX_SAFE_INTEGER,
        query.limit + 1,
      );
      const page = pageOf(found, fitting(found, query.limit), (row) => `${row.measured_at}-${row.id}`);
      const rows = await statements.rows<MetricsEntity>(
        `SELECT * FROM agent_metrics WHERE ${statements.dialect.isAmong('id', '$1')}
         ORDER BY measured_at DESC, id DESC`,
        JSON.stringify(page.items.map((row) => row.id)),
      );
      return { items: rows.map(viewOf), next_cursor: page.next_cursor };
    });
  }

  /** Deletes envelopes that were received longer ago than the settings keep them. @returns how many */
  purge(): Promise<number> {
    const before = this.clock.now() - this.settings.metricsRetentionMs;
    return this.jobs.purge((limit) =>
      this.database.write((tx) =>
        tx.run(
          `DELETE FROM agent_metrics WHERE id IN (
             SELECT id FROM agent_metrics WHERE received_at < $1 ORDER BY received_at LIMIT $2)`,
          before,
          limit,
        ),
      ),
    );
  }

  @Cron(CronExpression.EVERY_HOUR)
  protected purgeHourly(): Promise<void> {
    return this.jobs.run('metrics-retention', HOUR_MS, async () => void (await this.purge()));
  }

  /** What the fields' own decorators can't see: the clock, and both lists together. @returns the timestamp in ms */
  private checkLimits(request: MetricsRequest): number {
    const problems: Record<string, string> = {};
    const measuredAt = parseTimestamp(request.timestamp) as number;
    const now = this.clock.now();
    if (measuredAt < now - MAX_AGE_MS) problems.timestamp = 'must not be older than 30 days';
    if (measuredAt > now + MAX_AHEAD_MS) problems.timestamp = 'must not be more than 5 minutes ahead';
    if ((request.counters?.length ?? 0) + (request.gauges?.length ?? 0) > MAX_SAMPLES)
      problems.gauges = `must have at most ${MAX_SAMPLES} samples together with counters`;
    if (Object.keys(problems).length > 0) throw fail('ERR_VALIDATION', problems);
    return measuredAt;
  }

  /** @returns the id of each envelope; undefined where its agent is out of service */
  private async store(tx: Transaction, envelopes: Envelope[]): Promise<(number | undefined)[]> {
    const inService = await this.agents.inService(
      tx,
      envelopes.map((envelope) => envelope.agent_id),
    );
    const accepted = envelopes.filter((envelope) => inService.has(envelope.agent_id));
    const { now } = tx;
    for (const batch of batchesOf(accepted)) {
      await tx.run(
        `INSERT INTO agent_metrics (agent_id, envelope_hash, measured_at, received_at, counters, gauges)
         SELECT agent_id, envelope_hash, measured_at, $2, counters, gauges
         FROM ${tx.dialect.rowset('$1', {
           agent_id: 'integer',
           envelope_hash: 'text',
           measured_at: 'integer',
           counters: 'text',
           gauges: 'text',
         })} AS r
         WHERE true
         ON CONFLICT (agent_id, envelope_hash) DO NOTHING`,
        JSON.stringify(batch),
        now,
      );
    }
    const stored = await tx.rows<{ id: number; agent_id: number; envelope_hash: string }>(
      `SELECT m.id, m.agent_id, m.envelope_hash
       FROM ${tx.dialect.rowset('$1', { agent_id: 'integer', envelope_hash: 'text' })} AS r
       JOIN agent_metrics m ON m.agent_id = r.agent_id AND m.envelope_hash = r.envelope_hash`,
      JSON.stringify(accepted.map(({ agent_id, envelope_hash }) => ({ agent_id, envelope_hash }))),
    );
    const ids = new Map(stored.map((row) => [keyOf(row), row.id]));
    return envelopes.map((envelope) => ids.get(keyOf(envelope)));
  }
}

const keyOf = (row: Pick<MetricsEntity, 'agent_id' | 'envelope_hash'>): string =>
  `${row.agent_id} ${row.envelope_hash}`;

const instantOf = (text: string | undefined): number | undefined =>
  text === undefined ? undefined : parseTimestamp(text);

/** Samples in the one form that they are stored, compared and shown in: fields in order, no unit where there is none. */
function textOf(samples: readonly Sample[] | null | undefined): string {
  return JSON.stringify(
    (samples ?? []).map(({ name, value, unit }) => ({ name, value, unit: unit ?? undefined })),
  );
}

/** Splits envelopes so that the text of each part is of a size that a statement takes. */
function* batchesOf(envelopes: readonly Envelope[]): Generator<Envelope[]> {
  let batch: Envelope[] = [];
  let chars = 0;
  for (const envelope of envelopes) {
    batch.push(envelope);
    chars += envelope.counters.length + envelope.gauges.length;
    if (chars >= STATEMENT_CHARS) {
      yield batch;
      batch = [];
      chars = 0;
    }
  }
  if (batch.length > 0) yield batch;
}

function viewOf(row: MetricsEntity): MetricsView {
  return {
    id: String(row.id),
    timestamp: toTimestamp(row.measured_at),
    received_at: toTimestamp(row.received_at),
    counters: JSON.parse(row.counters),
    gauges: JSON.parse(row.gauges),
  };
}
