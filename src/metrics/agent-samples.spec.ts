import { AgentSamples, MAX_AGGREGATES, MAX_NAMES, MAX_NAMES_OF_AGENT } from './agent-samples';

const counters = (values: Record<string, number>) =>
  Object.entries(values).map(([name, value]) => ({ name, value }));

const NOW = 1_000_000;

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
        samples.take({ agentId, measuredAt: round, counters: counters({ a: agentId }), gauges: [] }, NOW);
        model.set(agentId, agentId);
      }
      const kept = new Set([...model.keys()].filter((id) => id % 3 !== round % 3));
      samples.retain(kept);
      for (const id of [...model.keys()]) if (!kept.has(id)) model.delete(id);
      expect(samples.agents).toBe(model.size);
      for (const group of [0, 1]) {
        const own = [...model.keys()].filter((id) => id % 2 === group);
        expect(sums((id) => id % 2)).toContainEqual(['a', group, own.reduce((sum, id) => sum + id, 0)]);
      }
    }
  });

  it('removes a name that no agent sends any more, and has room for another', () => {
    for (let agentId = 1; agentId <= 5; agentId++)
      samples.take(
        {
          agentId,
          measuredAt: 1,
          counters: Array.from({ length: MAX_NAMES_OF_AGENT + 10 }, (_, i) => ({
            name: `${agentId}/${i}`,
            value: 1,
          })),
          gauges: [],
        },
        NOW,
      );
    expect(sums().length).toBe(MAX_NAMES);
    expect(samples.dropped).toBe(50);
    // An envelope that arrives twice is dropped once.
    samples.take({ agentId: 9, measuredAt: 1, counters: counters({ late: 1 }), gauges: [] }, NOW);
    expect(samples.dropped).toBe(51);
    samples.take({ agentId: 9, measuredAt: 1, counters: counters({ late: 1 }), gauges: [] }, NOW);
    expect(sums()).not.toContainEqual(['late', 0, 1]);
    samples.retain(new Set([2, 3, 4, 5, 9]));
    samples.take({ agentId: 9, measuredAt: 2, counters: counters({ late: 1 }), gauges: [] }, NOW);
    expect(sums()).toContainEqual(['late', 0, 1]);
    // A new agent that reuses a slot has none of its previous values.
    samples.take({ agentId: 10, measuredAt: 1, counters: counters({ mine: 2 }), gauges: [] }, NOW);
    expect(sums((id) => (id === 10 ? 1 : 0)).filter(([, group]) => group === 1)).toEqual([['mine', 1, 2]]);
  });

  it('removes a value that an agent no longer sends, but not the values of an agent that sends seldom', () => {
    const MINUTE_MS = 60_000;
    const gauges = (...names: string[]) => names.map((name) => ({ name, value: 1 }));
    samples.take({ agentId: 1, measuredAt: 0, counters: [], gauges: gauges('kept', 'dropped') }, 0);
    samples.take({ agentId: 2, measuredAt: 0, counters: [], gauges: gauges('seldom') }, 0);
    const shown = () => [...samples.aggregates(all)].map(({ name }) => name).sort();
    samples.take({ agentId: 1, measuredAt: MINUTE_MS, counters: [], gauges: gauges('kept') }, MINUTE_MS);
    samples.retain(new Set([1, 2]), 0);
    expect(shown()).toEqual(['dropped', 'kept', 'seldom']);
    samples.retain(new Set([1, 2]), MINUTE_MS);
    expect(shown()).toEqual(['kept', 'seldom']);
  });

  it('accepts the values of an agent whose clock was set back, after long enough', () => {
    const say = (value: number, measuredAt: number, now: number) =>
      samples.take({ agentId: 1, measuredAt, counters: counters({ c: value }), gauges: [] }, now);
    const now = NOW + 10_000_000;
    say(1, now, now);
    say(2, now - 3_600_000, now + 1_000);
    expect(sums()).toEqual([['c', 0, 1]]);
    samples.retain(new Set([1]), now + 90_000);
    say(3, now - 3_500_000, now + 91_000);
    expect(sums()).toEqual([['c', 0, 3]]);
  });

  it('counts values from a clock that is ahead as measured now, and accepts values of any size', () => {
    samples.take(
      { agentId: 1, measuredAt: NOW + 300_000, counters: [], gauges: [{ name: 'g', value: 1 }] },
      NOW,
    );
    samples.take(
      { agentId: 1, measuredAt: NOW + 60_000, counters: [], gauges: [{ name: 'g', value: 2 }] },
      NOW + 1,
    );
    const huge = 1.7e308;
    for (const agentId of [2, 3])
      samples.take(
        { agentId, measuredAt: NOW, counters: counters({ c: huge }), gauges: [{ name: 'h', value: huge }] },
        NOW,
      );
    expect([...samples.aggregates(all)]).toEqual([
      { type: 'gauge', name: 'g', group: 0, min: 2, mean: 2, max: 2 },
      { type: 'counter', name: 'c', group: 0, sum: Number.MAX_VALUE },
      { type: 'gauge', name: 'h', group: 0, min: huge, mean: huge, max: huge },
    ]);
  });

  it('shows a bounded number of sums, whatever the groups', () => {
    for (let agentId = 0; agentId < 100; agentId++)
      samples.take(
        {
          agentId,
          measuredAt: 1,
          counters: Array.from({ length: 50 }, (_, i) => ({ name: `n${i}`, value: 1 })),
          gauges: [],
        },
        NOW,
      );
    expect([...samples.aggregates((id) => id)]).toHaveLength(MAX_AGGREGATES);
    expect([samples.dropped, samples.hidden]).toEqual([0, 3_000]);
  });
});
