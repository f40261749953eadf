import { hash } from 'node:crypto';
import { Inject, Injectable } from '@nestjs/common';
import { Cron, CronExpression } from '@nestjs/schedule';
import { AgentsService } from '../agents/agents.service';
import { Budgets } from '../agents/budgets';
import { Clock, toTimestamp } from '../clock';
import { Batcher } from '../database/batcher';
import { Database } from '../database/database';
import type { Transaction } from '../database/statements';
import { ApiError, fail } from '../errors';
import type { AgentIdentity } from '../http/control-plane-request';
import { fitting, type Page, pageOf } from '../http/pagination';
import { parseTimestamp } from '../http/timestamps';
import { JobRunner } from '../scheduling/job-runner';
import { SETTINGS, type Settings } from '../settings';
import { AgentSeries } from './agent-series';
import {
  MAX_SAMPLES,
  type MetricsQuery,
  type MetricsRequest,
  type MetricsView,
  type Sample,
} from './metrics.dto';
import type { MetricsEntity } from './metrics.entity';
import {
  deleteEnvelopes,
  type Envelope,
  insertEnvelopes,
  listEnvelopes,
  selectEnvelopeIds,
  selectEnvelopes,
} from './metrics.queries';

const HOUR_MS = 3_600_000;

/** How far from the server's clock an envelope's timestamp may be. */
const MAX_AGE_MS = 30 * 24 * HOUR_MS;
const MAX_AHEAD_MS = 300_000;

/** The most text in one statement and in one unit, in characters: envelopes can be large, and many can arrive together. */
const STATEMENT_CHARS = 8 * 1024 * 1024;

/** An envelope with its agent. */
interface Arrival {
  readonly agent: AgentIdentity;
  readonly envelope: Envelope;
}

/** Owns agent_metrics: the envelopes that agents send, each stored once. */
@Injectable()
export class MetricsService {
  private readonly envelopes: Batcher<Arrival, number | ApiError>;

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly agents: AgentsService,
    private readonly budgets: Budgets,
    private readonly jobs: JobRunner,
    private readonly series: AgentSeries,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    this.jobs.declare('metrics-retention');
    this.envelopes = new Batcher(database, (tx, arrivals) => this.store(tx, arrivals), {
      weightOf: ({ envelope: { counters, gauges } }) => counters.length + gauges.length,
      maxWeight: STATEMENT_CHARS,
      // Of two envelopes of an agent each fits into its budget or not.
      keyOf: ({ agent }) => agent.id,
    });
  }

  /**
   * Stores an envelope durably. An envelope that the agent has sent before is not stored again. All envelopes that arrive
   * while the writer is busy share one statement.
   * @returns the envelope's id
   * @throws ERR_VALIDATION the timestamp is too old or ahead, or there are too many samples
   * @throws ERR_UNAUTHORIZED the token became invalid meanwhile
   * @throws ERR_FORBIDDEN the agent was disabled or revoked meanwhile
   * @throws ERR_RATE_LIMITED the agent has used up its bytes for the day
   */
  async ingest(agent: AgentIdentity, request: MetricsRequest): Promise<string> {
    const measuredAt = this.checkLimits(request);
    const counters = textOf(request.counters);
    const gauges = textOf(request.gauges);
    const id = await this.envelopes.run({
      agent,
      envelope: {
        agent_id: agent.id,
        // Over the timestamp as it was sent: envelopes less than a millisecond apart are different.
        envelope_hash: hash('sha256', `${request.timestamp}\n${counters}\n${gauges}`, 'hex'),
        measured_at: measuredAt,
        counters,
        gauges,
      },
    });
    if (id instanceof ApiError) throw id;
    this.series.take({
      agentId: agent.id,
      measuredAt,
      counters: request.counters ?? [],
      gauges: request.gauges ?? [],
    });
    return String(id);
  }

  /**
   * Lists an agent's envelopes by the time of measurement, latest first. Works for deleted agents too.
   * @throws ERR_NOT_FOUND there never was such an agent
   */
  list(agentId: number, query: MetricsQuery): Promise<Page<MetricsView>> {
    const [beforeAt, beforeId] = query.cursor?.split('-').map(Number) ?? [];
    return this.database.read(async (statements) => {
      await this.agents.requireKnown(statements, agentId);
      const found = await listEnvelopes(
        statements,
        agentId,
        [instantOf(query.from) ?? 0, instantOf(query.to) ?? Number.MAX_SAFE_INTEGER],
        [beforeAt ?? Number.MAX_SAFE_INTEGER, beforeId ?? Number.MAX_SAFE_INTEGER],
        query.limit + 1,
      );
      const page = pageOf(found, fitting(found, query.limit), (row) => `${row.measured_at}-${row.id}`);
      const rows = await selectEnvelopes(
        statements,
        page.items.map((row) => row.id),
      );
      return { items: rows.map(viewOf), next_cursor: page.next_cursor };
    });
  }

  /** Deletes envelopes whose retention time is over. @returns how many */
  purge(): Promise<number> {
    const before = this.clock.now() - this.settings.metricsRetentionMs;
    return this.jobs.purge((limit) => this.database.write((tx) => deleteEnvelopes(tx, before, limit)));
  }

  @Cron(CronExpression.EVERY_HOUR)
  protected purgeHourly(): Promise<void> {
    return this.jobs.run('metrics-retention', HOUR_MS, async () => void (await this.purge()));
  }

  /** Checks what the fields' decorators can't: the timestamp's age, and both lists together. @returns the timestamp in ms */
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

  /** @returns for each envelope its id, or the error that refuses it */
  private async store(tx: Transaction, arrivals: readonly Arrival[]): Promise<(number | ApiError)[]> {
    const refusals = await this.agents.refusals(
      tx,
      arrivals.map(({ agent }) => agent),
    );
    const envelopes = arrivals.filter((_, i) => !refusals[i]).map(({ envelope }) => envelope);
    const known = await this.idsOf(tx, envelopes);
    const news = envelopes.filter((envelope) => !known.has(keyOf(envelope)));
    const affordable = await this.charge(tx, news);
    for (const batch of batchesOf(affordable)) await insertEnvelopes(tx, batch);
    const stored = await this.idsOf(tx, affordable);
    return arrivals.map(({ envelope }, i) => {
      const key = keyOf(envelope);
      return refusals[i] ?? known.get(key) ?? stored.get(key) ?? this.budgets.refusal('metrics');
    });
  }

  /** Charges new envelopes, of different agents, to their budgets. @returns those that fit */
  private async charge(tx: Transaction, envelopes: readonly Envelope[]): Promise<Envelope[]> {
    const bytes = envelopes.map((one) => [one.agent_id, bytesOf(one)] as const);
    const refused = await this.budgets.take(tx, 'metrics', new Map(bytes));
    return envelopes.filter(({ agent_id: id }) => !refused.has(id));
  }

  /** Reads the ids of those envelopes that are stored, by {@link keyOf}. */
  private async idsOf(tx: Transaction, envelopes: readonly Envelope[]): Promise<Map<string, number>> {
    if (envelopes.length === 0) return new Map();
    const rows = await selectEnvelopeIds(tx, envelopes);
    return new Map(rows.map((row) => [keyOf(row), row.id]));
  }
}

const bytesOf = ({ counters, gauges }: Envelope): number =>
  Buffer.byteLength(counters) + Buffer.byteLength(gauges);

const keyOf = (row: Pick<MetricsEntity, 'agent_id' | 'envelope_hash'>): string =>
  `${row.agent_id} ${row.envelope_hash}`;

const instantOf = (text: string | undefined): number | undefined =>
  text === undefined ? undefined : parseTimestamp(text);

/** Serializes samples to the form that is stored, compared and shown: fields in order, without empty units. */
function textOf(samples: readonly Sample[] | null | undefined): string {
  return JSON.stringify(
    (samples ?? []).map(({ name, value, unit }) => ({ name, value, unit: unit ?? undefined })),
  );
}

/** Splits envelopes into batches whose text fits into one statement. */
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
