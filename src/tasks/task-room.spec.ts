import type { OnlineTaker } from '../agents/agent-kinds.queries';
import { countRoom, type Held, type RoomReader } from './task-room';

/** An agent that is online, and what it holds: of the kind, and of others. */
type Agent = OnlineTaker & { readonly ofKind?: number; readonly others?: number };

const fleet = (count: number, agent: Omit<Agent, 'id'>): Agent[] =>
  Array.from({ length: count }, (_, i) => ({ id: i + 1, ...agent }));

/** Counts the room of a fleet that is kept in memory. @returns also how many agents and leases were looked at */
async function roomOf(
  agents: readonly Agent[],
  { max = 1_000, needed = 1, holder }: { max?: number; needed?: number; holder?: number } = {},
) {
  const byId = new Map(agents.map((agent) => [agent.id, agent]));
  const seen = { agents: 0, leases: 0 };
  const reader: RoomReader = {
    takers: async (aboveId, limit) => {
      const page = agents.filter(({ id }) => id > aboveId).slice(0, limit);
      seen.agents += page.length;
      return page;
    },
    held: async (ids, most) => {
      const held = new Map<number, Held>();
      for (const id of ids) {
        const { ofKind = 0, others = 0 } = byId.get(id) as Agent;
        if (ofKind + others > 0) held.set(id, { all: ofKind + others, ofKind });
      }
      const count = [...held.values()].reduce((sum, { all }) => sum + all, 0);
      if (count > most) return undefined;
      seen.leases += count;
      return held;
    },
  };
  const { with_room: withRoom, free } = await countRoom(reader, max, needed, holder);
  return { withRoom, free: free.count, isExact: free.isExact, seen };
}

describe('countRoom', () => {
  it('counts the agents that hold fewer than they ask for, and what all may hold', async () => {
    const agents: Agent[] = [
      { id: 1, capacity: 5, ofKind: 5 },
      { id: 2, capacity: 5, ofKind: 2 },
      { id: 3, capacity: null, ofKind: 9, others: 1 },
      // It asks for more than it may hold.
      { id: 4, capacity: 50, others: 10 },
    ];
    expect(await roomOf(agents, { max: 10 })).toMatchObject({ withRoom: 1, free: 5 + 8, isExact: true });
    expect(await roomOf([])).toMatchObject({ withRoom: 0, free: 0, isExact: true });
  });

  it('is with room if it may hold more in all, and asks for more of the kind than it holds of it', async () => {
    const busy = fleet(120, { capacity: 3, ofKind: 3 });
    const mixed: Agent = { id: 121, capacity: 3, ofKind: 1, others: 2 };
    expect(await roomOf([...busy, mixed])).toMatchObject({ withRoom: 1 });
    expect(await roomOf([...busy, { ...mixed, ofKind: 3, others: 0 }])).toMatchObject({ withRoom: 0 });
    expect(await roomOf([...busy, mixed], { max: 3 })).toMatchObject({ withRoom: 0 });
  });

  it('counts the lease that the holder has as ended', async () => {
    const full = fleet(3, { capacity: 4, ofKind: 4 });
    expect(await roomOf(full, { max: 4 })).toMatchObject({ withRoom: 0, free: 0 });
    expect(await roomOf(full, { max: 4, holder: 2 })).toMatchObject({ withRoom: 1, free: 1 });
    // It may hold more, and asks for no more.
    const mixed = fleet(3, { capacity: 4, ofKind: 4, others: 1 });
    expect(await roomOf(mixed)).toMatchObject({ withRoom: 0 });
    expect(await roomOf(mixed, { holder: 2 })).toMatchObject({ withRoom: 1 });
  });

  it('gives nobody less than no room: the limit may have been lowered', async () => {
    const agents = [...fleet(2, { capacity: 9, ofKind: 9 }), { id: 3, capacity: 9 }];
    expect(await roomOf(agents, { max: 4 })).toMatchObject({ withRoom: 1, free: 4 });
  });

  it('goes on until there is as much as is needed, and no further', async () => {
    const agents = fleet(3_500, { capacity: 1 });
    expect(await roomOf(agents, { max: 1, needed: 1_000 })).toMatchObject({
      ...{ withRoom: 1_000, free: 1_000, isExact: false },
      seen: { agents: 1_000 },
    });
    expect(await roomOf(agents, { max: 1, needed: 1_001 })).toMatchObject({
      ...{ withRoom: 2_000, free: 2_000, isExact: false },
      seen: { agents: 2_000 },
    });
    expect(await roomOf(agents, { max: 1, needed: 3_501 })).toMatchObject({ free: 3_500, isExact: true });
    const last = [...fleet(2_500, { capacity: 1, ofKind: 1 }), { id: 2_501, capacity: 1 }];
    expect(await roomOf(last, { max: 1 })).toMatchObject({ withRoom: 1, free: 1, isExact: true });
  });

  it('tells what it knows after 10,000 agents', async () => {
    const full = fleet(10_000, { capacity: 1, ofKind: 1 });
    expect(await roomOf(full, { max: 1 })).toMatchObject({ withRoom: 0, free: 0, isExact: true });
    expect(await roomOf([...full, { id: 10_001, capacity: 1, ofKind: 1 }], { max: 1 })).toMatchObject({
      withRoom: null,
      isExact: false,
    });
    const idle = fleet(10_001, { capacity: 1 });
    expect(await roomOf(idle, { max: 1, needed: 10_001 })).toMatchObject({
      ...{ withRoom: 10_000, free: 10_000, isExact: false },
      seen: { agents: 10_001 },
    });
  });

  it('tells what it knows after 250,000 leases', async () => {
    const full = fleet(2_000, { capacity: 200, ofKind: 200 });
    expect(await roomOf(full, { max: 200 })).toMatchObject({ withRoom: null, isExact: false });
    const nearly = fleet(2_000, { capacity: 200, ofKind: 199 });
    expect(await roomOf(nearly, { max: 200, needed: 1_500 })).toMatchObject({
      ...{ withRoom: 1_000, free: 1_000, isExact: false },
      seen: { leases: 199_000 },
    });
    const later = [...fleet(1_000, { capacity: 200, ofKind: 200 }), { id: 1_001, capacity: 1 }];
    expect(await roomOf(later)).toMatchObject({ withRoom: 1, isExact: true, seen: { leases: 200_000 } });
  });
});
