import { Inject, Injectable } from '@nestjs/common';
import { Cron, CronExpression } from '@nestjs/schedule';
import { boundedCache } from '../bounded-cache';
import { Clock } from '../clock';
import { Database } from '../database/database';
import type { Statements, Transaction } from '../database/statements';
import { Continuity } from '../scheduling/continuity';
import { JobRunner } from '../scheduling/job-runner';
import { SETTINGS, type Settings } from '../settings';
import {
  countTakers,
  cutFutureKinds,
  deleteKinds,
  deleteKindsAskedBefore,
  deleteKindsOf,
  findNearestTaker,
  listKinds,
  listOnlineTakers,
  type OnlineTaker,
  type StatusCount,
  type TakerFilter,
  upsertKinds,
} from './agent-kinds.queries';

const HOUR_MS = 3_600_000;
/** An agent no longer takes a kind if it has not asked for it for this time, in milliseconds. */
export const KIND_TTL_MS = 24 * HOUR_MS;
/** How often a kind is written again while an agent asks for it, in milliseconds. */
const REFRESH_MS = 600_000;
/**
 * The shortest time between two changes of a capacity that are written, in milliseconds: some agents ask for a
 * different number each time.
 */
const CHANGE_MS = 30_000;
/** The topic of removed kinds; the message is the agent's id. */
const REMOVED = 'agent-kinds';
/** The number of agents whose kinds are in memory, so that unchanged claims cost nothing. */
const CACHED_AGENTS = 100_000;

/** The most leases of each kind that an agent can hold. */
export type Capacities = readonly (readonly [kind: string, capacity: number])[];

/** The kinds that a claim asks for. */
export interface AskedKinds {
  readonly agentId: number;
  readonly capacities: Capacities;
}

/** The stored capacity of a kind. */
interface StoredCapacity {
  readonly capacity: number;
  readonly at: number;
}

/**
 * Owns agent_kinds: the kinds of tasks that each agent takes, and the most leases of each, from its claims. A capacity
 * of 0 removes a kind; a claim that leaves a kind out does not.
 */
@Injectable()
export class AgentKinds {
  private readonly written = boundedCache<number, ReadonlyMap<string, StoredCapacity>>(CACHED_AGENTS);

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly jobs: JobRunner,
    continuity: Continuity,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {
    this.jobs.declare('agent-kind-retention');
    database.onAnnouncement(REMOVED, (agentId) => this.written.delete(Number(agentId)));
    database.onGap(() => this.written.clear());
    continuity.onInterruption(async (tx, { now, lastSeen }) => {
      if (lastSeen > now) await cutFutureKinds(tx);
    });
  }

  /** Whether {@link learn} would write something for a claim. */
  isNews(agentId: number, capacities: Capacities, now: number): boolean {
    return this.changesOf(agentId, capacities, now).length > 0;
  }

  /**
   * Stores the kinds that claims ask for, in the unit that has locked their agents. If an agent has several claims, the
   * last counts. Writes only kinds that changed or were last written 10 minutes ago, in at most two statements:
   * unchanged claims cost none.
   */
  async learn(tx: Transaction, claims: readonly AskedKinds[]): Promise<void> {
    const { now } = tx;
    const asked = new Map(claims.map(({ agentId, capacities }) => [agentId, capacities]));
    const changes = [...asked].flatMap(([agent_id, capacities]) =>
      this.changesOf(agent_id, capacities, now).map(([kind, capacity]) => ({ agent_id, kind, capacity })),
    );
    if (changes.length === 0) return;
    const taken = changes.filter(({ capacity }) => capacity > 0);
    const refused = changes.filter(({ capacity }) => capacity === 0);
    // An agent never holds more than the setting allows.
    const limit = this.settings.maxLeasesPerAgent;
    if (taken.length > 0)
      await upsertKinds(
        tx,
        taken.map((kind) => ({ ...kind, capacity: Math.min(kind.capacity, limit) })),
      );
    // Another replica has them in its memory as written, and would not write them again.
    if (refused.length > 0)
      for (const agentId of await deleteKinds(tx, refused)) tx.announce(REMOVED, String(agentId));
    tx.afterCommit(() => {
      for (const [agentId, kinds] of Map.groupBy(changes, ({ agent_id }) => agent_id)) {
        const written = kinds.map(({ kind, capacity }) => [kind, { capacity, at: now }] as const);
        this.written.set(agentId, new Map([...(this.written.get(agentId) ?? []), ...written]));
      }
    });
  }

  /** Deletes an agent's kinds. */
  async clear(tx: Transaction, agentId: number): Promise<void> {
    await deleteKindsOf(tx, agentId);
    tx.announce(REMOVED, String(agentId));
  }

  /** Reads the kinds that each of the agents takes, sorted; agents without any are left out. */
  async of(statements: Statements, agentIds: readonly number[]): Promise<Map<number, string[]>> {
    const rows = await listKinds(statements, agentIds, this.askedSince());
    const kinds = new Map<number, string[]>();
    for (const [id, of] of Map.groupBy(rows, (row) => row.agent_id))
      kinds.set(id, of.map(({ kind }) => kind).sort());
    return kinds;
  }

  /**
   * Counts the agents that take a kind, by status. Reads all of them.
   * @param silentSince agents whose last heartbeat is not after this instant are offline, in ms since the epoch
   */
  countByStatus(statements: Statements, kind: string, silentSince: number): Promise<StatusCount[]> {
    return countTakers(statements, this.takersOf(kind, silentSince));
  }

  /**
   * Finds the agent with the latest heartbeat that takes a kind and is not online: first among draining agents that are
   * not silent, then offline ones, then draining and silent ones, then disabled ones.
   */
  findNearest(
    statements: Statements,
    kind: string,
    silentSince: number,
  ): Promise<{ id: number; status: 'draining' | 'offline' | 'disabled'; is_silent: number } | undefined> {
    return findNearestTaker(statements, this.takersOf(kind, silentSince));
  }

  /** Lists online agents that take a kind, by ids above `aboveId`, with their capacities. */
  listOnline(
    statements: Statements,
    kind: string,
    silentSince: number,
    aboveId: number,
    limit: number,
  ): Promise<OnlineTaker[]> {
    return listOnlineTakers(statements, this.takersOf(kind, silentSince), aboveId, limit);
  }

  /** Deletes kinds that agents have not asked for in a day. @returns the number of rows */
  purge(): Promise<number> {
    const before = this.askedSince();
    return this.jobs.purge((limit) => this.database.write((tx) => deleteKindsAskedBefore(tx, before, limit)));
  }

  @Cron(CronExpression.EVERY_HOUR)
  protected purgeHourly(): Promise<void> {
    return this.jobs.run('agent-kind-retention', HOUR_MS, async () => void (await this.purge()));
  }

  private askedSince(): number {
    return this.clock.now() - KIND_TTL_MS;
  }

  private takersOf(kind: string, silentSince: number): TakerFilter {
    return { kind, askedSince: this.askedSince(), silentSince };
  }

  private changesOf(agentId: number, capacities: Capacities, now: number): Capacities {
    const written = this.written.get(agentId);
    return capacities.filter(([kind, capacity]) => {
      const before = written?.get(kind);
      if (!before) return true;
      const age = now - before.at;
      const isSoon = before.capacity === 0 && capacity > 0;
      return age < 0 || isSoon || age >= (before.capacity === capacity ? REFRESH_MS : CHANGE_MS);
    });
  }
}
