import { setImmediate as nextTurn } from 'node:timers/promises';
import type { OnlineTaker } from '../agents/agent-kinds.queries';
import type { Count } from './task-ahead';

/** How many agents are looked at for room at a time, and in all. */
const AGENTS_AT_ONCE = 1_000;
const MAX_AGENTS = 10_000;
/** How many leases are counted in all, and how many are read with their task's kind. */
const MAX_LEASES = 250_000;
const MAX_KINDS_LOOKED_AT = 20_000;
/** Of how many agents the leases are read with their kinds before the event loop serves others. */
const LOOKED_AT_ONCE = 50;

/** What is read to find room for leases of a kind. */
export interface RoomReader {
  /** Agents that are online and take the kind, by ids above one. */
  takers(aboveId: number, limit: number): Promise<readonly OnlineTaker[]>;
  /** How many live leases of any kind each of the agents holds; undefined if they hold more than `most` in all. */
  held(agentIds: readonly number[], most: number): Promise<ReadonlyMap<number, number> | undefined>;
  /** How many live leases of the kind each of the agents holds. */
  heldOfKind(agentIds: readonly number[]): Promise<ReadonlyMap<number, number>>;
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
  const given = (id: number) => (id === holder ? 1 : 0);
  let [looked, counted, lookedAt, aboveId] = [0, 0, 0, 0];
  let withRoom = 0;
  let isUndecided = false;
  let free = 0;
  while (looked < MAX_AGENTS) {
    const takers = await reader.takers(aboveId, AGENTS_AT_ONCE);
    const held = await reader.held(idsOf(takers), MAX_LEASES - counted);
    if (!held) return { with_room: withRoom || null, free: { count: free, isExact: false } };
    counted += [...held.values()].reduce((sum, count) => sum + count, 0);
    const heldBy = (id: number) => (held.get(id) ?? 0) - given(id);
    // None has less than no room, though the limit may have been lowered under what it holds.
    free += takers.reduce((sum, { id }) => sum + Math.max(0, maxLeasesPerAgent - heldBy(id)), 0);
    if (withRoom === 0) {
      // One that holds fewer of all kinds than it asks for of this one has room: nothing must be read of the leases' tasks.
      withRoom = takers.filter(
        ({ id, capacity }) => heldBy(id) < Math.min(capacity ?? Infinity, maxLeasesPerAgent),
      ).length;
    }
    if (withRoom === 0) {
      const undecided = takers.filter(({ id }) => heldBy(id) < maxLeasesPerAgent);
      const looksAt = undecided.filter(({ id }) => {
        lookedAt += heldBy(id);
        return lookedAt <= MAX_KINDS_LOOKED_AT;
      });
      withRoom = await countByKind(reader, looksAt, given);
      if (looksAt.length < undecided.length) isUndecided = true;
    }
    const isAll = takers.length < AGENTS_AT_ONCE;
    if (isAll || (withRoom > 0 && free >= needed))
      return {
        with_room: withRoom === 0 && isUndecided ? null : withRoom,
        free: { count: free, isExact: isAll },
      };
    looked += takers.length;
    aboveId = takers.at(-1)?.id ?? aboveId;
  }
  const isAll = (await reader.takers(aboveId, 1)).length === 0;
  return {
    with_room: withRoom === 0 && (isUndecided || !isAll) ? null : withRoom,
    free: { count: free, isExact: isAll },
  };
}

/** How many of the agents hold fewer leases of the kind than they ask for, as far as it takes to find some. */
async function countByKind(
  reader: RoomReader,
  takers: readonly OnlineTaker[],
  given: (agentId: number) => number,
): Promise<number> {
  for (let begin = 0; begin < takers.length; begin += LOOKED_AT_ONCE) {
    const some = takers.slice(begin, begin + LOOKED_AT_ONCE);
    const ofKind = await reader.heldOfKind(idsOf(some));
    const withRoom = some.filter(
      ({ id, capacity }) => (ofKind.get(id) ?? 0) - given(id) < (capacity ?? Infinity),
    );
    if (withRoom.length > 0) return withRoom.length;
    await nextTurn();
  }
  return 0;
}

const idsOf = (takers: readonly OnlineTaker[]): number[] => takers.map(({ id }) => id);
