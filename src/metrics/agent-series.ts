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
import { listReceived, selectSamples } from './metrics.queries';

/** How often silent agents are removed, and other replicas' envelopes are read, in ms. */
const REFRESH_MS = 15_000;
/** How many envelopes one statement reads. */
const BATCH = 500;
/** How much later than its instant another replica may commit a unit of work, in ms. */
const LATE_MS = 2_000;
/** How many groups there are at most, by the labels of the setting; one more holds all other agents. */
const MAX_GROUPS = 20;
const OTHER = 'other';
/** After this time, in ms, a scrape yields to the event loop, so that it does not delay requests. */
const SLICE_MS = 5;

/**
 * Shows the agents' own metrics in `GET /metrics`: the sum of each counter, and the minimum, mean and maximum of each gauge.
 * Includes only agents that were seen within two heartbeat timeouts.
 */
@Injectable()
export class AgentSeries {
  private readonly samples = new AgentSamples();
  private readonly sums: GaugeInstrument<string>;
  private readonly values: GaugeInstrument<string>;
  /** The index in {@link groups} of each agent's group. */
  private groupOf = new Map<number, number>();
  private groups: Record<string, string>[] = [];
  /** When the last envelope that was read from the database was received, in ms since the epoch. */
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
      help: "Agents' own counters, summed over the agents that are not silent.",
      labels: ['name'],
      splitBy,
      maxSeries: MAX_NAMES * (MAX_GROUPS + 1),
    });
    this.values = meter.gauge<string>({
      name: 'agent_values',
      help: "Agents' own gauges: the minimum, mean and maximum of the agents that are not silent.",
      labels: ['name', 'stat'],
      splitBy,
      maxSeries: 3 * MAX_NAMES * (MAX_GROUPS + 1),
    });
    meter.readCounter(
      {
        name: 'agent_samples_dropped_total',
        help: `Values of agents that are not shown because there are more than ${MAX_NAMES} names.`,
      },
      () => this.samples.dropped,
    );
    meter.readGauge(
      {
        name: 'agent_series_hidden',
        help: `Sums and gauges of agents that are not shown because there are more than ${MAX_AGGREGATES} of all names and groups.`,
      },
      () => this.samples.hidden,
    );
    meter.onScrape(() => this.show());
  }

  /** Adds an envelope that this process has stored. */
  take(envelope: AgentEnvelope): void {
    this.samples.take(envelope, this.clock.now());
  }

  @Interval('agent-series', REFRESH_MS)
  protected tick(): Promise<void> {
    return this.jobs.run('agent-series', REFRESH_MS, () => this.refresh(), { everywhere: true });
  }

  /** Reads the envelopes that other replicas stored, or that were stored before the start, and removes silent agents. */
  async refresh(): Promise<void> {
    const seenSince = this.clock.now() - 2 * this.settings.heartbeatTimeoutMs;
    if (this.readUpTo === undefined)
      await this.database.read((statements) => this.readStored(statements, seenSince));
    else await this.database.readOthers((statements) => this.readStored(statements, seenSince));
    const seen = await this.database.read((statements) => this.liveness.seenSince(statements, seenSince));
    await this.sortIntoGroups();
    this.samples.retain(seen, seenSince);
  }

  private async readStored(statements: Statements, seenSince: number): Promise<void> {
    // If the clock was set back, new envelopes are earlier than the last one that was read.
    const upTo = Math.min(this.readUpTo ?? seenSince, this.clock.now());
    let [at, id] = [Math.max(seenSince, upTo - LATE_MS), 0];
    while (true) {
      const found = await listReceived(statements, at, id, BATCH);
      const batch = found.slice(0, fitting(found, BATCH));
      const last = batch.at(-1);
      if (!last) break;
      const rows = await selectSamples(
        statements,
        batch.map((row) => row.id),
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
    // Sorted by value, so that the same groups are shown in whatever order the agents are listed.
    const rest = JSON.stringify(names.map(() => OTHER));
    const texts = [...new Set([...labels.values()].map((own) => textOf(names, own)))]
      // Agents whose own labels are "other" join the rest, or two groups would have the same name.
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
