import type { OnlineTaker } from '../agents/agent-kinds.queries';
import type { Count } from './task-ahead';

/** The number of agents whose room is counted at a time, and in total. */
const AGENTS_AT_ONCE = 1_000;
const MAX_AGENTS = 10_000;
/** The most leases that are counted in total. */
const MAX_LEASES = 250_000;

/** The live leases of an agent: of all kinds, and of the task's kind. */
export interface Held {
  readonly all: number;
  readonly ofKind: number;
}

/** The queries for counting room for leases of a kind. */
export interface RoomReader {
  /** Lists online agents that take the kind, by ids above `aboveId`. */
  takers(aboveId: number, limit: number): Promise<readonly OnlineTaker[]>;
  /**
   * Counts the leases of each agent, without those that hold none; undefined if there are more than `most` leases in
   * total.
   */
  held(agentIds: readonly number[], most: number): Promise<ReadonlyMap<number, Held> | undefined>;
}

/** The room of agents for leases of a kind. */
export interface Room {
  /**
   * The number of agents that hold fewer leases than they ask for, counted until some were found; null if too many
   * would have to be checked.
   */
  readonly with_room: number | null;
  /** The number of leases that they may still hold in total, counted until it is enough. */
  readonly free: Count;
}

/**
 * Counts the room of the online agents that take a kind, a bounded number at a time and in total.
 * @param needed the number of leases
 * @param holder an agent with one lease of the kind that counts as ended
 */
export async function countRoom(
  reader: RoomReader,
  maxLeasesPerAgent: number,
  needed: number,
  holder: number | undefined,
): Promise<Room> {
  let [looked, counted, aboveId, withRoom, free] = [0, 0, 0, 0, 0];
  const roomOf = (isAll: boolean): Room => ({
    with_room: withRoom === 0 && !isAll ? null : withRoom,
    free: { count: free, isExact: isAll },
  });
  while (looked < MAX_AGENTS) {
    const takers = await reader.takers(aboveId, AGENTS_AT_ONCE);
    const held = await reader.held(
      takers.map(({ id }) => id),
      MAX_LEASES - counted,
    );
    if (!held) return roomOf(false);
    for (const { id, capacity } of takers) {
      const { all, ofKind } = held.get(id) ?? { all: 0, ofKind: 0 };
      const ended = id === holder ? 1 : 0;
      // Never below zero, although the limit may have been lowered below the agent's leases.
      const room = Math.max(0, maxLeasesPerAgent - (all - ended));
      counted += all;
      free += room;
      if (room > 0 && ofKind - ended < (capacity ?? Infinity)) withRoom++;
    }
    const isAll = takers.length < AGENTS_AT_ONCE;
    if (isAll || (withRoom > 0 && free >= needed)) return roomOf(isAll);
    looked += takers.length;
    aboveId = takers.at(-1)?.id ?? aboveId;
  }
  return roomOf((await reader.takers(aboveId, 1)).length === 0);
}
