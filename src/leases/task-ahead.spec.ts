import type { LimitedWindow } from '../concurrency/concurrency.service';
import { type Around, type AskedTask, countAhead, type DueCount } from './task-ahead';

const task = (fields: Partial<AskedTask> = {}): AskedTask => ({
  ...{ kind: 'dns', target: 'a:53', state: 'waiting' },
  ...fields,
});

const window = (fields: Partial<LimitedWindow> = {}): LimitedWindow => ({
  ...{ scope: 'kind', kind: 'dns', target: '' },
  ...{ limit: 2, leased: 1, queued: 1, waiting: 1 },
  ...fields,
});

describe('countAhead', () => {
  const place = (kind: string, target: string, count: number) => ({ kind, target, count });
  const due = (kind: string, target: string, before: number, behind = 0): DueCount => ({
    ...{ kind, target, count: before + behind, before },
  });
  const ahead = (
    places: ReturnType<typeof place>[],
    rooms: LimitedWindow[],
    { own = 2, ...around }: Partial<Omit<Around, 'own'>> & { own?: number } = {},
  ) =>
    countAhead({
      task: task(),
      own: { count: own, isExact: true },
      waiting: { places, isExact: true },
      ...{ due: [], leaving: [], rooms, windows: [], isCounted: true },
      ...around,
    });

  it('counts those of other targets as far as their own windows let them in', () => {
    const counts = ahead(
      [place('dns', 'a:53', 2), place('dns', 'b:53', 5), place('dns', 'c:53', 4)],
      [window({ scope: 'target', target: 'b:53', limit: 3, leased: 1, queued: 1 })],
    );
    expect(counts).toEqual({
      leases: { count: 7, isExact: true },
      places: {
        target: { count: 2, isExact: true },
        kind: { count: 7, isExact: true },
        global: { count: 7, isExact: true },
      },
    });
  });

  it('counts those of other kinds as far as the windows of their kinds let them in', () => {
    const counts = ahead(
      [place('http', 'x:80', 5), place('http', 'y:80', 5), place('tcp', 'z:1', 3)],
      [
        window({ kind: 'http', limit: 6, leased: 2, queued: 0 }),
        // More than its limit: that was lowered.
        window({ scope: 'target', kind: 'tcp', target: 'z:1', limit: 1, leased: 4, queued: 0 }),
      ],
    );
    expect(counts.leases.count).toBe(2);
    expect(counts.places.kind.count).toBe(2);
    expect(counts.places.global.count).toBe(2 + 4);
  });

  it('counts those that come due before it with those that wait, as far as their own windows let them in', () => {
    const counts = ahead(
      [place('dns', 'b:53', 1)],
      [window({ scope: 'target', target: 'b:53', limit: 3, leased: 0, queued: 0 })],
      { due: [due('dns', 'a:53', 4), due('dns', 'b:53', 5), due('http', 'x:80', 7)] },
    );
    expect(counts).toMatchObject({
      leases: { count: 2 + 4 + 3, isExact: true },
      places: { target: { count: 6 }, kind: { count: 9 }, global: { count: 16 } },
    });
  });

  it('counts those that come due behind it for the room that is there, and for no lease', () => {
    const windows = [
      window({ limit: 5, leased: 2, queued: 1, waiting: 0 }),
      window({ scope: 'target', target: 'a:53', limit: 5, leased: 5, queued: 0, waiting: 0 }),
    ];
    const behind = { windows, due: [due('dns', 'a:53', 1, 3)] };
    expect(ahead([], [], behind)).toMatchObject({
      leases: { count: 3 },
      // No place of everything is counted: it has no limit.
      places: { target: { count: 3 }, kind: { count: 3 + 2 }, global: { count: 3 } },
    });
    // The place that it leaves itself is given to one of them too, or to one that waits.
    const leased = task({ state: 'leased' });
    expect(ahead([], [], { ...behind, task: leased }).places).toMatchObject({
      target: { count: 3 + 1 },
      kind: { count: 3 + 3 },
    });
    const waiting = windows.map((one) => ({ ...one, waiting: 1 }));
    expect(ahead([], [], { windows: waiting, task: leased }).places).toMatchObject({
      target: { count: 2 + 1 },
      kind: { count: 2 + 1 },
    });
    expect(ahead([], [], { windows: waiting }).places.kind.count).toBe(2);
  });

  it('counts those that get the places of tasks whose time is up meanwhile', () => {
    const waits = [place('dns', 'b:53', 5), place('http', 'x:80', 5)];
    const rooms = [
      window({ scope: 'target', target: 'b:53', limit: 2, leased: 0, queued: 2 }),
      window({ kind: 'http', limit: 2, leased: 2, queued: 0 }),
    ];
    expect(ahead(waits, rooms)).toMatchObject({ leases: { count: 2 }, places: { global: { count: 2 } } });
    const leaving = [place('dns', 'b:53', 1), place('dns', 'c:53', 9), place('http', 'y:80', 2)];
    expect(ahead(waits, rooms, { leaving })).toMatchObject({
      leases: { count: 2 + 1, isExact: true },
      places: { target: { count: 2 }, kind: { count: 3 }, global: { count: 3 + 2 } },
    });
    // Of its own window: the place goes to one that waits, or comes due.
    const windows = [window({ limit: 2, leased: 0, queued: 2, waiting: 3 })];
    expect(ahead([], [], { windows, leaving }).places.kind.count).toBe(2 + 3);
    const one = [place('dns', 'a:53', 1)];
    expect(ahead([], [], { windows, leaving: one }).places.kind.count).toBe(2 + 1);
    expect(ahead([], [], { windows, leaving: one, due: [due('dns', 'a:53', 0, 4)] }).places.kind.count).toBe(
      2 + 1,
    );
  });

  it('counts one that takes a place of the target, as one of the kind is left by a task of another', () => {
    const windows = [
      window({ limit: 1, leased: 0, queued: 1, waiting: 1 }),
      window({ scope: 'target', target: 'a:53', limit: 1, leased: 0, queued: 0, waiting: 1 }),
    ];
    const leaving = [place('dns', 'c:53', 1)];
    expect(ahead([], [], { own: 0, windows, leaving }).places).toMatchObject({
      target: { count: 1 },
      kind: { count: 1 },
    });
    expect(ahead([], [], { own: 0, windows, leaving: [place('tcp', 'c:1', 1)] }).places).toMatchObject({
      target: { count: 0 },
      kind: { count: 0 },
    });
  });

  it('is not exact if more come due or leave than were counted', () => {
    const { leases, places } = ahead([], [], { isCounted: false });
    expect([leases, places.target, places.kind, places.global].map(({ isExact }) => isExact)).toEqual([
      ...[false, false, false, false],
    ]);
  });
});
