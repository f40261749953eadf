import { Injectable } from '@nestjs/common';
import { boundedCache } from '../bounded-cache';
import { Database } from '../database/database';
import type { Transaction } from '../database/statements';
import { countHeldByKind } from './leases.queries';

/** The number of agents whose lowest id is in memory. */
const CACHED_AGENTS = 100_000;

/** The live leases of agents. */
export interface CountedLeases {
  /** How many of each kind an agent holds. */
  of(agentId: number): ReadonlyMap<string, number>;
  /**
   * Remembers from which id on an agent's leases can be live, once the unit is committed.
   * @param granted the ids of those that the unit grants
   */
  remember(agentId: number, granted: readonly number[]): void;
}

/**
 * Counts the live leases of agents for claims, from the lowest id that can still be live: before it there are only index
 * entries of leases that have ended, which an open snapshot keeps. The ids of an agent's leases ascend, because a claim
 * locks its agent, and a lease that has ended is never live again.
 */
@Injectable()
export class LeaseCounter {
  /** By agent: no lease with a lower id is live. */
  private readonly from = boundedCache<number, number>(CACHED_AGENTS);

  /** Counts gaps: what was read before one may not be true after it. */
  private gaps = 0;

  constructor(database: Database) {
    // After a failover to a standby that was behind, leases that had ended may be live again.
    database.onGap(() => {
      this.gaps++;
      this.from.clear();
    });
  }

  /** Counts the live leases of agents that the unit has locked. */
  async count(tx: Transaction, agentIds: readonly number[]): Promise<CountedLeases> {
    const { gaps } = this;
    const rows = await countHeldByKind(
      tx,
      agentIds.map((agent_id) => ({ agent_id, from: this.from.get(agent_id) ?? 0 })),
    );
    const byAgent = Map.groupBy(rows, ({ agent_id }) => agent_id);
    return {
      of: (agentId) => new Map(byAgent.get(agentId)?.map(({ kind, count }) => [kind, count])),
      remember: (agentId, granted) => {
        const ids = [...(byAgent.get(agentId)?.map(({ oldest }) => oldest) ?? []), ...granted];
        if (ids.length === 0) return;
        const oldest = Math.min(...ids);
        tx.afterCommit(() => {
          // An earlier unit's effect may come later. Each is a bound for good.
          if (gaps === this.gaps) this.from.set(agentId, Math.max(oldest, this.from.get(agentId) ?? 0));
        });
      },
    };
  }
}
