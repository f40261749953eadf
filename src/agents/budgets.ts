import { Inject, Injectable } from '@nestjs/common';
import type { LRUCache } from 'lru-cache';
import { boundedCache } from '../bounded-cache';
import { Clock } from '../clock';
import type { Transaction } from '../database/statements';
import { type ApiError, fail } from '../errors';
import { SETTINGS, type Settings } from '../settings';
import { addUsage, type Usage } from './budgets.queries';

const DAY_MS = 86_400_000;

/** The setting of each budget. */
const SETTING = {
  metrics: 'metricsBytesPerDay',
  observations: 'observationsBytesPerDay',
} as const satisfies Record<string, keyof Settings>;

/** The budgets of an agent for each day. */
export type Budget = keyof typeof SETTING;

/** Bytes that are charged to an agent in the database, and that it has not stored yet. */
interface Advance {
  /** Days since the Unix epoch, UTC. */
  readonly day: number;
  /** The charged bytes of that day, when they were last read. */
  readonly used: number;
  left: number;
}

/** What an agent is charged in the database. */
interface Charge extends Usage {
  readonly held: Advance;
  /** The bytes that its advance covers. */
  readonly covered: number;
}

/** An advance is at most this share of the bytes that the agent has used today. */
const ADVANCE_SHARE = 1 / 32;
/** The share of a budget of which bytes may be charged in advance: the rest is exact, whatever replicas hold. */
const SHARE_IN_ADVANCE = 7 / 8;
/** The number of agents of which a budget's advance is in memory. */
const CACHED_AGENTS = 100_000;

/**
 * Owns agent_usage: limits the bytes that each agent can store in a day of UTC, so that no agent can fill the disk.
 * Usage is in the database, so that the limit holds across restarts and replicas, and is charged before the data is
 * stored. Some bytes are charged in advance and used up in memory, so that not every report changes its agent's row. What
 * is lost of an advance (in a crash, or because a unit failed) counts as used.
 */
@Injectable()
export class Budgets {
  private readonly advances: Record<Budget, LRUCache<number, Advance>> = {
    metrics: boundedCache(CACHED_AGENTS),
    observations: boundedCache(CACHED_AGENTS),
  };

  constructor(
    private readonly clock: Clock,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {}

  /**
   * Charges the bytes that agents are about to store, in the unit that stores them and in one statement; none if all have
   * advances. The first write of a day always fits, whatever its size, so that a refused write fits on the next day.
   * Rows are locked by ascending ids, so a unit calls it once.
   * @param bytes of each agent, by its id
   * @returns the agents whose budget is not enough; nothing is charged for them
   */
  async take(tx: Transaction, budget: Budget, bytes: ReadonlyMap<number, number>): Promise<Set<number>> {
    const day = Math.floor(tx.now / DAY_MS);
    const charges: Charge[] = [];
    for (const [agent_id, count] of bytes) {
      if (count <= 0) continue;
      const held = this.heldOf(budget, agent_id, day);
      const covered = Math.min(held.left, count);
      held.left -= covered;
      const advance = Math.floor(held.used * ADVANCE_SHARE);
      if (covered < count) charges.push({ agent_id, held, covered, bytes: count - covered, advance });
    }
    if (charges.length === 0) return new Set();
    const most = this.settings[SETTING[budget]] ?? Number.MAX_SAFE_INTEGER;
    const limits = { most, mostInAdvance: Math.floor(most * SHARE_IN_ADVANCE) };
    const charged = await addUsage(tx, budget, charges, day, limits);
    // An advance can be used once it is stored.
    tx.afterCommit(() => {
      for (const [agentId, { used, advance }] of charged) {
        const { left } = this.heldOf(budget, agentId, day);
        this.advances[budget].set(agentId, { day, used, left: left + advance });
      }
    });
    const refused = charges.filter(({ agent_id }) => !charged.has(agent_id));
    for (const { held, covered } of refused) held.left += covered;
    return new Set(refused.map(({ agent_id }) => agent_id));
  }

  /** Creates the error for a budget that is used up, retryable when the next day of UTC begins. */
  refusal(budget: Budget): ApiError {
    const name = `${budget}_bytes_per_day`;
    return fail(
      'ERR_RATE_LIMITED',
      { budget: name, limit: this.settings[SETTING[budget]] },
      {
        message: `This agent has stored as many bytes of ${budget} as it may in a day.`,
        retryAfterMs: DAY_MS - (this.clock.now() % DAY_MS),
      },
    );
  }

  /** What an agent holds of a day's budget. */
  private heldOf(budget: Budget, agentId: number, day: number): Advance {
    const held = this.advances[budget].get(agentId);
    return held?.day === day ? held : { day, used: 0, left: 0 };
  }
}
