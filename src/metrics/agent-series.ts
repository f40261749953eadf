import { setImmediate as nextTurn } from 'node:timers/promises';
import { Inject, Injectable } from '@nestjs/common';
import { Interval } from '@nestjs/schedule';
import { AgentsService } from '../agents/agents.service';
import { Liveness } from '../agents/liveness';
import { Clock } from '../clock';
import { Database } from '../database/database';
import type { Statements } from '../database/statements';
import { fitting } from '../http/pagination';
import { JobRunner } from '../scheduling/job-runner';
import { SETTINGS, type Settings } from '../settings';
import { type GaugeInstrument, Meter } from '../telemetry/meter';
import {
  type AgentEnvelope,
  AgentSamples,
  type Aggregate,
  labelOf,
  MAX_AGGREGATES,
  MAX_NAMES,
} from './agent-samples';
import type { MetricsEntity } from './metrics.entity';

/** How often it is looked who is silent, and what other replicas took, in milliseconds. */
const REFRESH_MS = 15_000;
/** How many envelopes one statement reads. */
const BATCH = 500;
/** A unit of work of another replica may be committed so much later than its instant, in milliseconds. */
const LATE_MS = 2_000;
/** How many groups the labels of the setting make at most; agents of others are together in one more. */
const MAX_GROUPS = 20;
const OTHER = 'other';
/** For how long a scrape may hold everybody up at once, in milliseconds. */
const SLICE_MS = 5;

type Found = Pick<MetricsEntity, 'id' | 'received_at'> & { bytes: number };

/**
 * Shows the agents' own metrics in `GET /metrics`: counters summed, gauges by their least, mean and greatest value, of the agents
 * that were heard of within two heartbeat timeouts.
 */
@Injectable()
export class AgentSeries {
  private readonly samples = new AgentSamples();
  private readonly sums: GaugeInstrument<string>;
  private readonly values: GaugeInstrument<string>;
  /** Which group each agent belongs to, by its place in {@link groups}. */
  private groupOf = new Map<number, number>();
  private groups: Record<string, string>[] = [];
  /** Up to where the stored envelopes have been read: when they were received, in ms since the epoch. */
  private readUpTo: number | undefined;

  constructor(
    meter: Meter,
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly agents: AgentsService,
    private readonly liveness: Liveness,
    private readonly jobs: JobRunner,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    this.jobs.declare('agent-series');
    const { metricsLabels: splitBy } = settings;
    this.sums = meter.gauge<string>({
      name: 'agent_samples',
      help: "Agents' own counters, summed over the agents that are heard of.",
      labels: ['name'],
      splitBy,
      maxSeries: MAX_NAMES * (MAX_GROUPS + 1),
    });
    this.values = meter.gauge<string>({
      name: 'agent_values',
      help: "Agents' own gauges: the least, mean and greatest value of the agents that are heard of.",
      labels: ['name', 'stat'],
      splitBy,
      maxSeries: 3 * MAX_NAMES * (MAX_GROUPS + 1),
    });
    meter.readCounter(
      {
        name: 'agent_samples_dropped_total',
        help: `Values of agents that are not shown, for there are more than ${MAX_NAMES} names.`,
      },
      () => this.samples.dropped,
    );
    meter.readGauge(
      {
        name: 'agent_series_hidden',
        help: `Sums and gauges of agents that are not shown, for there are more than ${MAX_AGGREGATES} of all names and groups.`,
      },
      () => this.samples.hidden,
    );
    meter.onScrape(() => this.show());
  }

  /** Takes an envelope that this process has stored. */
  take(envelope: AgentEnvelope): void {
    this.samples.take(envelope, this.clock.now());
  }

  @Interval('agent-series', REFRESH_MS)
  protected tick(): Promise<void> {
    return this.jobs.run('agent-series', REFRESH_MS, () => this.refresh(), { everywhere: true });
  }

  /** Takes what other replicas stored, or what was stored before the start, and forgets the agents that are silent. */
  async refresh(): Promise<void> {
    const heardSince = this.clock.now() - 2 * this.settings.heartbeatTimeoutMs;
    if (this.readUpTo === undefined)
      await this.database.read((statements) => this.readStored(statements, heardSince));
    else await this.database.readOthers((statements) => this.readStored(statements, heardSince));
    const heard = await this.database.read((statements) => this.liveness.heardSince(statements, heardSince));
    await this.sortIntoGroups();
    this.samples.keepOnly(heard, heardSince);
  }

  private async readStored(statements: Statements, heardSince: number): Promise<void> {
    // After a clock that was set back, nothing is later than what was read.
    const upTo = Math.min(this.readUpTo ?? heardSince, this.clock.now());
    let [at, id] = [Math.max(heardSince, upTo - LATE_MS), 0];
    for (;;) {
      const found = await statements.rows<Found>(
        `SELECT id, received_at, octet_length(counters) + octet_length(gauges) AS bytes FROM agent_metrics
         WHERE received_at >= $1 AND (received_at > $1 OR id > $2) ORDER BY received_at, id LIMIT $3`,
        at,
        id,
        BATCH,
      );
      const batch = found.slice(0, fitting(found, BATCH));
      const last = batch.at(-1);
      if (!last) break;
      const rows = await statements.rows<MetricsEntity>(
        `SELECT agent_id, measured_at, received_at, counters, gauges FROM agent_metrics
         WHERE ${statements.dialect.isAmong('id', '$1')}`,
        JSON.stringify(batch.map((row) => row.id)),
      );
      for (const {
        agent_id: agentId,
        measured_at: measuredAt,
        received_at: receivedAt,
        counters,
        gauges,
      } of rows)
        this.samples.take(
          { ...{ agentId, measuredAt }, counters: JSON.parse(counters), gauges: JSON.parse(gauges) },
          receivedAt,
        );
      [at, id] = [last.received_at, last.id];
    }
    this.readUpTo = at;
  }

  private async sortIntoGroups(): Promise<void> {
    const { metricsLabels: names } = this.settings;
    if (names.length === 0) return;
    const labels = await this.database.read((statements) => this.agents.labelsNamed(statements, names));
    const known = new Map<string, number>();
    const groups: Record<string, string>[] = [];
    const groupOf = new Map<number, number>();
    // By their values, so that the same few are shown whatever order the agents come in.
    const rest = JSON.stringify(names.map(() => OTHER));
    const texts = [...new Set([...labels.values()].map((own) => textOf(names, own)))]
      // Whose labels say "other" themselves are among the others, or there would be two of one name.
      .filter((text) => text !== rest)
      .sort()
      .slice(0, MAX_GROUPS);
    for (const text of texts) {
      known.set(text, groups.length);
      const values = JSON.parse(text) as string[];
      groups.push(Object.fromEntries(names.map((name, i) => [name, labelOf(values[i] as string)])));
    }
    groups.push(Object.fromEntries(names.map((name) => [name, OTHER])));
    for (const [agentId, own] of labels) {
      const group = known.get(textOf(names, own));
      if (group !== undefined) groupOf.set(agentId, group);
    }
    this.groups = groups;
    this.groupOf = groupOf;
  }

  private async show(): Promise<void> {
    const { groups, groupOf } = this;
    const rest = Math.max(0, groups.length - 1);
    const shown: Aggregate[] = [];
    let since = performance.now();
    for (const one of this.samples.aggregates((agentId) => groupOf.get(agentId) ?? rest)) {
      shown.push(one);
      if (performance.now() - since < SLICE_MS) continue;
      await nextTurn();
      since = performance.now();
    }
    this.sums.reset();
    this.values.reset();
    for (const one of shown) {
      const labels = { name: one.name, ...groups[one.group] };
      if (one.type === 'counter') this.sums.set(labels, one.sum);
      else
        for (const stat of ['min', 'mean', 'max'] as const) this.values.set({ ...labels, stat }, one[stat]);
    }
  }
}

const textOf = (names: readonly string[], labels: Readonly<Record<string, string>>): string =>
  JSON.stringify(names.map((name) => labels[name] ?? ''));
