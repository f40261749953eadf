import { AgentSamples, MAX_NAMES, MAX_NAMES_OF_AGENT } from './agent-samples';

const counters = (values: Record<string, number>) =>
  Object.entries(values).map(([name, value]) => ({ name, value }));

describe('AgentSamples', () => {
  const all = () => 0;
  let samples: AgentSamples;
  beforeEach(() => {
    samples = new AgentSamples();
  });
  const sums = (groupOf: (agentId: number) => number = all) =>
    [...samples.aggregates(groupOf)].flatMap((one) =>
      one.type === 'counter' ? [[one.name, one.group, one.sum]] : [],
    );

  it('agrees with a plain sum over any number of agents that come and go', () => {
    const model = new Map<number, number>();
    for (let round = 0; round < 20; round++) {
      for (let agentId = round * 37; agentId < round * 37 + 300; agentId++) {
        samples.take({ agentId, measuredAt: round, counters: counters({ a: agentId }), gauges: [] });
        model.set(agentId, agentId);
      }
      const kept = new Set([...model.keys()].filter((id) => id % 3 !== round % 3));
      samples.keepOnly(kept);
      for (const id of [...model.keys()]) if (!kept.has(id)) model.delete(id);
      expect(samples.agents).toBe(model.size);
      for (const group of [0, 1]) {
        const own = [...model.keys()].filter((id) => id % 2 === group);
        expect(sums((id) => id % 2)).toContainEqual(['a', group, own.reduce((sum, id) => sum + id, 0)]);
      }
    }
  });

  it('forgets a name when nobody says it any more, and has room for another', () => {
    for (let agentId = 1; agentId <= 5; agentId++)
      samples.take({
        agentId,
        measuredAt: 1,
        counters: Array.from({ length: MAX_NAMES_OF_AGENT + 10 }, (_, i) => ({
          name: `${agentId}/${i}`,
          value: 1,
        })),
        gauges: [],
      });
    expect(sums().length).toBe(MAX_NAMES);
    expect(samples.dropped).toBe(50);
    samples.take({ agentId: 9, measuredAt: 1, counters: counters({ late: 1 }), gauges: [] });
    expect(sums()).not.toContainEqual(['late', 0, 1]);
    samples.keepOnly(new Set([2, 3, 4, 5, 9]));
    samples.take({ agentId: 9, measuredAt: 2, counters: counters({ late: 1 }), gauges: [] });
    expect(sums()).toContainEqual(['late', 0, 1]);
    // A new agent in the place of one that went has none of its values.
    samples.take({ agentId: 10, measuredAt: 1, counters: counters({ mine: 2 }), gauges: [] });
    expect(sums((id) => (id === 10 ? 1 : 0)).filter(([, group]) => group === 1)).toEqual([['mine', 1, 2]]);
  });
});
