import { Inject, Injectable } from '@nestjs/common';
import { Clock } from '../clock';
import type { Transaction } from '../database/statements';
import { type ApiError, fail } from '../errors';
import { SETTINGS, type Settings } from '../settings';
import { addUsage } from './budgets.queries';

const DAY_MS = 86_400_000;

/** The setting of each budget. */
const SETTING = {
  metrics: 'metricsBytesPerDay',
  observations: 'observationsBytesPerDay',
} as const satisfies Record<string, keyof Settings>;

/** The budgets of an agent for each day. */
export type Budget = keyof typeof SETTING;

/**
 * Owns agent_usage: limits the bytes that each agent can store in a day of UTC, so that no agent can fill the disk.
 * Usage is in the database, so that the limit holds across restarts and replicas, and is counted in the unit of work
 * that stores the data.
 */
@Injectable()
export class Budgets {
  constructor(
    private readonly clock: Clock,
    @Inject(SETTINGS) private readonly settings: Settings,
  ) {}

  /**
   * Charges the bytes that agents are about to store, in one statement of the unit that stores them. The first write of
   * a day always fits, whatever its size, so that a refused write fits on the next day.
   * @param bytes of each agent, by its id
   * @returns the agents whose budget is not enough; nothing is charged for them
   */
  async take(tx: Transaction, budget: Budget, bytes: ReadonlyMap<number, number>): Promise<Set<number>> {
    const asked = [...bytes]
      .filter(([, count]) => count > 0)
      .map(([agent_id, count]) => ({ agent_id, bytes: count }));
    if (asked.length === 0) return new Set();
    const fitting = await addUsage(
      tx,
      budget,
      asked,
      Math.floor(tx.now / DAY_MS),
      this.settings[SETTING[budget]] ?? Number.MAX_SAFE_INTEGER,
    );
    const refused = new Set(asked.map(({ agent_id }) => agent_id));
    for (const agentId of fitting) refused.delete(agentId);
    return refused;
  }

  /** Charges one agent. @throws ERR_RATE_LIMITED its budget is not enough */
  async require(tx: Transaction, budget: Budget, agentId: number, bytes: number): Promise<void> {
    const refused = await this.take(tx, budget, new Map([[agentId, bytes]]));
    if (refused.size > 0) throw this.refusal(budget);
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
}
