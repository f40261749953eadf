import { type Look, pageOf, worstAgents } from './top';

const LOOK: Look = {
  at: Date.UTC(2026, 0, 1),
  stats: {
    depths: [
      { kind: 'dns', state: 'completed', count: 1_200, oldest_age_ms: null },
      { kind: 'dns', state: 'queued', count: 30, oldest_age_ms: 200_000 },
      { kind: 'tcp', state: 'dead', count: 2, oldest_age_ms: null },
    ],
    oldest_queued_age_ms: 200_000,
  },
  fleet: { online: 9_812, offline: 3 },
  config: { applied: 9_800 },
  isPublished: true,
  silent: 2,
  failing: 0,
  agents: [],
  targets: [],
};

describe('worstAgents', () => {
  it('are those of which most attempts failed, however new', () => {
    const agent = (id: number, error: number, timeout = 0) => ({
      ...{ id, outcomes: { hour: { success: 1, timeout, error, cancelled: 0, expired: 1 } } },
    });
    const newest = [9, 8, 7, 6, 5].map((id) => agent(id, 5, 900));
    expect(worstAgents([...newest, agent(1, 200), agent(2, 300)]).map(({ id }) => id)).toEqual([
      2, 1, 9, 8, 7,
    ]);
  });
});

describe('the page', () => {
  it('shows counts, ages, and that nothing goes wrong', () => {
    const page = pageOf(LOOK, undefined);
    expect(page).toContain('FLEET   failing 0  silent 2  online 9,812  offline 3');
    expect(page).toContain('rates: -');
    expect(page).toMatch(/^dns +- +- +30 +- +1,200 +- +3 min$/m);
    expect(page).toMatch(/^tcp +- +- +- +- +- +2 +-$/m);
    expect(page.match(/^none$/gm)).toHaveLength(2);
  });

  it('reckons rates between two looks; what retention deletes makes none negative', () => {
    const [completed, queued, dead] = LOOK.stats.depths as [object, object, object];
    const later = (counts: [number, number, number], ms: number): Look => ({
      ...LOOK,
      at: LOOK.at + ms,
      stats: {
        ...LOOK.stats,
        depths: [completed, queued, dead].map((depth, i) => ({ ...depth, count: counts[i] })) as never,
      },
    });
    expect(pageOf(later([1_500, 20, 3], 2_000), LOOK)).toContain(
      'enqueued 146/s  completed 150/s  dead 0.5/s',
    );
    expect(pageOf(later([200, 30, 2], 2_000), LOOK)).toContain('enqueued 0.0/s  completed 0.0/s  dead 0.0/s');
    expect(pageOf(later([1_500, 20, 3], 0), LOOK)).toContain('rates: -');
  });
});
