import { Inject, Injectable } from '@nestjs/common';
import { Cron, CronExpression } from '@nestjs/schedule';
import { LRUCache } from 'lru-cache';
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
/** A kind that an agent has not asked for in so long, in milliseconds, is none that it takes. */
export const KIND_KEPT_MS = 24 * HOUR_MS;
/** How often it is written that an agent still asks for a kind, in milliseconds. */
const REFRESH_MS = 600_000;
/** How soon another capacity than before is written, in milliseconds: some agents ask for another number each time. */
const CHANGE_MS = 30_000;
/** Under which it is announced that kinds of an agent were removed, by its id. */
const REMOVED = 'agent-kinds';
/** The number of agents whose last request is kept in memory, so that the same again costs nothing. */
const REMEMBERED_AGENTS = 100_000;

/** How many leases of each kind an agent is willing to hold. */
export type Capacities = readonly (readonly [kind: string, capacity: number])[];

/** What a claim of an agent asks for. */
export interface AskedKinds {
  readonly agentId: number;
  readonly capacities: Capacities;
}

/** What was written of a kind. */
interface Asked {
  readonly capacity: number;
  readonly at: number;
}

/**
 * Owns agent_kinds: which kinds of tasks each agent takes, and how many at once, learned from its claims. A kind that it
 * asks none of is one that it does not take; one that a claim leaves out may be asked for by the next.
 */
@Injectable()
export class AgentKinds {
  private readonly written = new LRUCache<number, ReadonlyMap<string, Asked>>({
    // By size: a cache with `max` takes the memory for all of them at once.
    maxSize: REMEMBERED_AGENTS,
    sizeCalculation: () => 1,
  });

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

  /** Whether a claim says something that {@link learn} would write. */
  isNews(agentId: number, capacities: Capacities, now: number): boolean {
    return this.newsOf(agentId, capacities, now).length > 0;
  }

  /**
   * Takes in, in the unit of claims that has locked their agents, what they ask for; of several of an agent the last counts.
   * Writes only what is new, or was last written 10 minutes ago, in at most two statements: the same claims again cost none.
   */
  async learn(tx: Transaction, claims: readonly AskedKinds[]): Promise<void> {
    const { now } = tx;
    const asked = new Map(claims.map(({ agentId, capacities }) => [agentId, capacities]));
    const news = [...asked].flatMap(([agent_id, capacities]) =>
      this.newsOf(agent_id, capacities, now).map(([kind, capacity]) => ({ agent_id, kind, capacity })),
    );
    if (news.length === 0) return;
    const taken = news.filter(({ capacity }) => capacity > 0);
    const refused = news.filter(({ capacity }) => capacity === 0);
    // More than an agent may hold in all says no more.
    const most = this.settings.maxLeasesPerAgent;
    if (taken.length > 0)
      await upsertKinds(
        tx,
        taken.map((kind) => ({ ...kind, capacity: Math.min(kind.capacity, most) })),
      );
    // Another replica believes that they are written, and would not write them if the agent asks it for them.
    if (refused.length > 0)
      for (const agentId of await deleteKinds(tx, refused)) tx.announce(REMOVED, String(agentId));
    tx.afterCommit(() => {
      for (const [agentId, kinds] of Map.groupBy(news, ({ agent_id }) => agent_id)) {
        const written = kinds.map(({ kind, capacity }) => [kind, { capacity, at: now }] as const);
        this.written.set(agentId, new Map([...(this.written.get(agentId) ?? []), ...written]));
      }
    });
  }

  /** Forgets what an agent asked for. */
  async forget(tx: Transaction, agentId: number): Promise<void> {
    await deleteKindsOf(tx, agentId);
    tx.announce(REMOVED, String(agentId));
  }

  /** The kinds that each of the agents takes, sorted; agents that take none are left out. */
  async of(statements: Statements, agentIds: readonly number[]): Promise<Map<number, string[]>> {
    const rows = await listKinds(statements, agentIds, this.askedSince());
    const kinds = new Map<number, string[]>();
    for (const [id, of] of Map.groupBy(rows, (row) => row.agent_id))
      kinds.set(id, of.map(({ kind }) => kind).sort());
    return kinds;
  }

  /**
   * How many agents of each status take a kind. Reads all of them, and writes nothing.
   * @param silentSince agents whose last heartbeat is not after this instant are offline, in ms since the epoch
   */
  census(statements: Statements, kind: string, silentSince: number): Promise<StatusCount[]> {
    return countTakers(statements, this.takersOf(kind, silentSince));
  }

  /**
   * Of the agents that take a kind and are not online, the one heard of last: first of those that drain and are heard of, then of
   * those offline, then of those that drain and are silent.
   */
  nearest(
    statements: Statements,
    kind: string,
    silentSince: number,
  ): Promise<{ id: number; status: 'draining' | 'offline' | 'disabled'; is_silent: number } | undefined> {
    return findNearestTaker(statements, this.takersOf(kind, silentSince));
  }

  /** Agents that are online and take a kind, by ids above one, with how many leases of it they are willing to hold. */
  onlineTakers(
    statements: Statements,
    kind: string,
    silentSince: number,
    aboveId: number,
    limit: number,
  ): Promise<OnlineTaker[]> {
    return listOnlineTakers(statements, this.takersOf(kind, silentSince), aboveId, limit);
  }

  /** Deletes what agents have not asked for in a day. @returns how many rows */
  purge(): Promise<number> {
    const before = this.askedSince();
    return this.jobs.purge((limit) => this.database.write((tx) => deleteKindsAskedBefore(tx, before, limit)));
  }

  @Cron(CronExpression.EVERY_HOUR)
  protected purgeHourly(): Promise<void> {
    return this.jobs.run('agent-kind-retention', HOUR_MS, async () => void (await this.purge()));
  }

  private askedSince(): number {
    return this.clock.now() - KIND_KEPT_MS;
  }

  private takersOf(kind: string, silentSince: number): TakerFilter {
    return { kind, askedSince: this.askedSince(), silentSince };
  }

  private newsOf(agentId: number, capacities: Capacities, now: number): Capacities {
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
