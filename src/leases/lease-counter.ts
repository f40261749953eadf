import { Injectable } from '@nestjs/common';
import { LRUCache } from 'lru-cache';
import { Database } from '../database/database';
import type { Transaction } from '../database/statements';
import { countHeldByKind } from './leases.queries';

/** The number of agents whose lowest id is in memory. */
const CACHED_AGENTS = 100_000;

/** The live leases of an agent. */
export interface HeldLeases {
  readonly byKind: ReadonlyMap<string, number>;
  /** The lowest of their ids; undefined if there are none. */
  readonly oldest: number | undefined;
}

const NONE: HeldLeases = { byKind: new Map(), oldest: undefined };

/**
 * Counts the live leases of agents for claims, from the lowest id that can still be live: before it there are only index
 * entries of leases that have ended, which an open snapshot keeps. The ids of an agent's leases ascend, because a claim
 * locks its agent, and a lease that has ended is never live again.
 */
@Injectable()
export class LeaseCounter {
  /** By agent: no lease with a lower id is live. */
  private readonly from = new LRUCache<number, number>({
    // By size: a cache with `max` takes the memory for all of them at once.
    maxSize: CACHED_AGENTS,
    sizeCalculation: () => 1,
  });

  constructor(private readonly database: Database) {
    // After a failover to a standby that was behind, ids may continue below the remembered ones.
    this.database.onGap(() => this.from.clear());
  }

  /** Counts the live leases of agents that the unit has locked. */
  async count(tx: Transaction, agentIds: readonly number[]): Promise<(agentId: number) => HeldLeases> {
    const rows = await countHeldByKind(
      tx,
      agentIds.map((agent_id) => ({ agent_id, from: this.from.get(agent_id) ?? 0 })),
    );
    const byAgent = Map.groupBy(rows, ({ agent_id }) => agent_id);
    return (agentId) => {
      const held = byAgent.get(agentId);
      if (!held) return NONE;
      return {
        byKind: new Map(held.map(({ kind, count }) => [kind, count])),
        oldest: Math.min(...held.map(({ oldest }) => oldest)),
      };
    };
  }

  /**
   * Remembers the lowest live id of an agent that the unit has locked, once the unit is committed.
   * @param oldest the lowest of those that it held and those that the unit grants
   */
  remember(tx: Transaction, agentId: number, oldest: number): void {
    // An earlier unit's effect may come later. Each is a bound for good.
    tx.afterCommit(() => this.from.set(agentId, Math.max(oldest, this.from.get(agentId) ?? 0)));
  }
}
