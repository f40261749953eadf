import { Inject, Injectable } from '@nestjs/common';
import { Clock } from '../clock';
import { ConfigService } from '../config/config.service';
import { Database } from '../database/database';
import { SETTINGS, type Settings } from '../settings';
import { Meter } from '../telemetry/meter';
import { AgentOutcomes } from './agent-outcomes';
import { AGENT_STATUSES } from './agents.dto';
import { type AgeGroup, countByConfigState, groupByHeartbeatAge } from './fleet-metrics.queries';
import { Liveness } from './liveness';

/** Upper bounds of the age of heartbeats, in seconds. */
const AGE_BUCKETS = [5, 10, 15, 30, 45, 60, 90, 120, 300, 600, 3_600];

/** The states of agents in service by the configuration in force. */
const CONFIG_STATES = ['applied', 'failed', 'other', 'unsaid'] as const;

/** Shows the metrics of the fleet, which are the same on each replica, by one statement for all agents. */
@Injectable()
export class FleetMetrics {
  constructor(
    meter: Meter,
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly liveness: Liveness,
    private readonly config: ConfigService,
    private readonly outcomes: AgentOutcomes,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    const byStatus = meter.gauge({ name: 'agents', help: 'Agents by status.', labels: ['status'] });
    const ages = meter.snapshot({
      name: 'agent_heartbeat_age_seconds',
      help: 'Age of the last heartbeats of the agents in service.',
      buckets: AGE_BUCKETS,
    });
    const silent = meter.gauge({
      name: 'agents_silent',
      help: 'Agents in service whose last heartbeat is older than twice the timeout.',
    });
    const failing = meter.gauge({
      name: 'agents_failing',
      help: 'Agents in service of which at least 5 attempts ended in the last hour, more than half of them as error, cancelled or expired.',
    });
    const configs = meter.gauge({
      name: 'config_agents',
      help: 'Agents in service by the state that they reported for the configuration in force; other: another revision, unsaid: none.',
      labels: ['state'],
    });
    const expiry = meter.gauge({
      name: 'config_expires_timestamp_seconds',
      help: 'When the configuration in force expires, in seconds since the epoch; absent if none is in force.',
    });
    meter.onScrape(async () => {
      const groups = await this.readAges();
      const counts = Object.fromEntries(AGENT_STATUSES.map((status) => [status, 0]));
      const add = (status: string, count: number) => {
        counts[status] = (counts[status] ?? 0) + count;
      };
      let silentAgents = 0;
      let inService = 0;
      const inBuckets = new Array<number>(AGE_BUCKETS.length + 1).fill(0);
      let sumMs = 0;
      for (const group of groups) {
        if (group.state === 'active') {
          add('online', group.online);
          add('offline', group.count - group.online);
        } else add(group.state, group.count);
        if (group.state !== 'active' && group.state !== 'draining') continue;
        inService += group.count;
        silentAgents += group.silent;
        sumMs += group.ages;
        inBuckets[group.bucket] = (inBuckets[group.bucket] ?? 0) + group.count;
      }
      for (const [status, count] of Object.entries(counts)) byStatus.set({ status }, count);
      ages.set(inBuckets, sumMs / 1_000);
      silent.set({}, silentAgents);
      failing.set({}, await this.database.read((statements) => this.outcomes.countFailing(statements)));
      const states = await this.readConfigStates(inService);
      for (const state of CONFIG_STATES) configs.set({ state }, states[state]);
      const expiresAt = this.config.expiryInForce();
      if (expiresAt === undefined) expiry.reset();
      else expiry.set({}, expiresAt / 1_000);
    });
  }

  private readAges(): Promise<AgeGroup[]> {
    const bounds = AGE_BUCKETS.map((seconds) => seconds * 1_000);
    return this.database.read((statements) =>
      groupByHeartbeatAge(statements, bounds, {
        now: this.clock.now(),
        silentSince: this.liveness.silentSince(),
        silentAfterMs: 2 * this.settings.heartbeatTimeoutMs,
      }),
    );
  }

  private async readConfigStates(inService: number): Promise<Record<(typeof CONFIG_STATES)[number], number>> {
    const inForce = this.config.currentRevision() ?? '';
    const rows = await this.database.read((statements) => countByConfigState(statements, inForce));
    const states = { applied: 0, failed: 0, other: 0, unsaid: 0 };
    for (const { state, count } of rows) states[state] = count;
    const said = states.applied + states.failed + states.other;
    return { ...states, unsaid: Math.max(0, inService - said) };
  }
}
