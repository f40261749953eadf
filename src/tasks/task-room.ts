import type { OnlineTaker } from '../agents/agent-kinds.queries';
import type { Count } from './task-ahead';

/** How many agents are looked at for room at a time, and in all. */
const AGENTS_AT_ONCE = 1_000;
const MAX_AGENTS = 10_000;
/** How many leases are counted in all. */
const MAX_LEASES = 250_000;

/** How many live leases an agent holds: of any kind, and of the one in question. */
export interface Held {
  readonly all: number;
  readonly ofKind: number;
}

/** What is read to find room for leases of a kind. */
export interface RoomReader {
  /** Agents that are online and take the kind, by ids above one. */
  takers(aboveId: number, limit: number): Promise<readonly OnlineTaker[]>;
  /** What each of the agents holds, but for those that hold nothing; undefined if that is more than `most` leases in all. */
  held(agentIds: readonly number[], most: number): Promise<ReadonlyMap<number, Held> | undefined>;
}

/** What room agents have for leases of a kind. */
export interface Room {
  /** How many hold fewer than they ask for, as far as it took to find some; null if too much would have to be looked at. */
  readonly with_room: number | null;
  /** How many more leases they may hold in all: as far as it took to find as many as are needed. */
  readonly free: Count;
}

/**
 * Counts the room of the agents that are online and take a kind, a bounded number at a time and in all.
 * @param needed how many leases it is about
 * @param holder an agent of which one lease of the kind counts as ended
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
      // None has less than no room, though the limit may have been lowered under what it holds.
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
