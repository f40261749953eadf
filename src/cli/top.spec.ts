import { pageOf, type Snapshot, worstAgents } from './top';

const LOOK: Snapshot = {
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
  isDraining: false,
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
    expect(page).toMatch(/^dns +- +30 +- +1,200 +- +3 min$/m);
    expect(page).toMatch(/^tcp +- +- +- +- +2 +-$/m);
    expect(page.match(/^none$/gm)).toHaveLength(2);
  });

  it('leaves out counts that are seldom more than 0, and says that the server stops', () => {
    const fleet = { online: 1, offline: 0, draining: 0, disabled: 2, revoked: 0 };
    const page = pageOf({ ...LOOK, fleet, config: { applied: 0, other: 0, unsaid: 3 } }, undefined);
    expect(page).toMatch(/^FLEET .* online 1 {2}offline 0 {2}disabled 2$/m);
    expect(page).toMatch(/^CONFIG {2}applied 0 {2}unsaid 3$/m);
    expect(page).not.toContain('stops');
    expect(pageOf({ ...LOOK, isDraining: true }, undefined)).toMatch(/^2026-\S+ {2}the server stops$/m);
  });

  it.each([
    [24, 5, 5, [4, 5]],
    [24, 0, 5, [0, 5]],
    [24, 5, 0, [5, 0]],
    [24, 5, 1, [5, 1]],
    [17, 5, 5, [1, 1]],
    [40, 5, 5, [5, 5]],
    // There is always one of each, and the terminal cuts it off.
    [10, 5, 5, [1, 1]],
  ])('fits into %i lines: of %i targets and %i agents it shows %j', (maxLines, targets, agents, shown) => {
    const hour = { success: 0, timeout: 0, error: 5, cancelled: 0, expired: 0 };
    const look: Snapshot = {
      ...LOOK,
      targets: Array.from({ length: targets }, (_, i) => ({
        ...{ kind: 'dns', target: `target-${i}`, last_error: null },
        ...{ error: 1, timeout: 0, expired: 0, cancelled: 0 },
      })),
      agents: Array.from({ length: agents }, (_, i) => ({
        ...{ id: i, hostname: `agent-${i}`, status: 'online', outcomes: { hour }, last_error: null },
      })),
    };
    const page = pageOf(look, undefined, maxLines);
    expect([page.match(/target-/g)?.length ?? 0, page.match(/agent-/g)?.length ?? 0]).toEqual(shown);
    if (maxLines >= 17) expect(page.split('\n').length).toBeLessThanOrEqual(maxLines);
  });

  it('computes rates between two snapshots; deletions by retention make none negative', () => {
    const [completed, queued, dead] = LOOK.stats.depths as [object, object, object];
    const later = (counts: [number, number, number], ms: number): Snapshot => ({
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
