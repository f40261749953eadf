import type { CountingWindow } from '../concurrency/window.entity';
import { type Around, type AskedTask, countAhead, type DueCount, type QueuedWindow } from './task-ahead';

const task = (fields: Partial<AskedTask> = {}): AskedTask => ({
  ...{ kind: 'dns', target: 'a:53', state: 'queued' },
  ...fields,
});

const windowOf = (fields: Partial<CountingWindow> = {}): CountingWindow => ({
  ...{ id: 1, scope: 'kind', kind: 'dns', target: '' },
  ...{ slots: 2, leased: 1, moved_through: null },
  ...{ inherited: 0 as const, max_slots: 2, max_rate: null, adaptive: 0 as const, rate: null },
  ...{ last_start_us: 0, recent_starts: null, starts: 0, hold_until: null },
  ...fields,
});

/** A window of the task, of a scope. */
const own = (scope: CountingWindow['scope'], fields: Partial<QueuedWindow> = {}): QueuedWindow => ({
  ...windowOf({ scope, kind: scope === 'global' ? '' : 'dns', target: scope === 'target' ? 'a:53' : '' }),
  queued: 0,
  ...fields,
});
const ALL = [own('target'), own('kind'), own('global')];

describe('countAhead', () => {
  const of = (kind: string, target: string, count: number) => ({ kind, target, count });
  const due = (kind: string, target: string, before: number, behind = 0): DueCount => ({
    ...{ kind, target, count: before + behind, before },
  });
  const ahead = (
    counts: ReturnType<typeof of>[],
    rooms: CountingWindow[],
    {
      own: ofTarget = 2,
      due: comeDue = [],
      ...around
    }: Partial<Omit<Around, 'own' | 'due'>> & { own?: number; due?: DueCount[] } = {},
  ) =>
    countAhead({
      task: task(),
      own: { count: ofTarget, isExact: true },
      others: { counts, isExact: true },
      due: { counts: comeDue, isExact: true },
      ...{ rooms, windows: ALL, waits: comeDue.length > 0 },
      ...around,
    });
  /** Of what is ahead: how many are before it in each window. */
  const beforeIn = ({ windows }: ReturnType<typeof ahead>) =>
    Object.fromEntries(windows.map((one) => [one.window.scope, one.before.count]));
  const heldIn = ({ windows }: ReturnType<typeof ahead>) =>
    Object.fromEntries(windows.map((one) => [one.window.scope, one.held]));

  it('counts all that have no limit of their own, and of limited targets as many as their windows have room for', () => {
    const counts = ahead(
      [of('dns', '', 3), of('dns', 'b:53', 5), of('dns', 'c:53', 4), of('dns', 'd:53', 7)],
      [
        windowOf({ scope: 'target', target: 'b:53', slots: 3, leased: 1 }),
        // More than its limit, which was lowered.
        windowOf({ scope: 'target', target: 'd:53', slots: 1, leased: 4 }),
      ],
    );
    expect(counts.leases).toEqual({ count: 2 + 3 + 2 + 4, isExact: true });
    expect(beforeIn(counts)).toEqual({ target: 2, kind: 11, global: 11 });
    // As they are: nothing changes meanwhile.
    expect(heldIn(counts)).toEqual({ target: 1, kind: 1, global: 1 });
  });

  it('counts those of its own target wherever they are, whatever room its window has', () => {
    const counts = ahead(
      [of('dns', '', 3), of('dns', 'a:53', 4)],
      [windowOf({ scope: 'target', target: 'a:53', slots: 1, leased: 1 })],
    );
    expect(beforeIn(counts)).toEqual({ target: 6, kind: 9, global: 9 });
  });

  it('counts those of other kinds as far as the windows of their kinds have room', () => {
    const counts = ahead(
      [of('dns', '', 1), of('http', '', 5), of('http', 'y:80', 5), of('tcp', 'z:1', 3), of('tcp', '', 2)],
      [
        // It is its own kind that the limit is raised of, if it has to be.
        windowOf({ kind: 'dns', slots: 1, leased: 1 }),
        windowOf({ kind: 'http', slots: 6, leased: 2 }),
        windowOf({ scope: 'target', kind: 'tcp', target: 'z:1', slots: 2, leased: 1 }),
      ],
    );
    expect(counts.leases.count).toBe(2 + 1);
    expect(beforeIn(counts)).toEqual({ target: 2, kind: 3, global: 3 + 4 + 1 + 2 });
  });

  it('counts those that come due before it with those that are queued, as far as their own windows have room', () => {
    const counts = ahead(
      [of('dns', 'b:53', 1)],
      [windowOf({ scope: 'target', target: 'b:53', slots: 3, leased: 0 })],
      { due: [due('dns', 'a:53', 4), due('dns', 'b:53', 5), due('http', 'x:80', 7)] },
    );
    expect(counts.leases).toEqual({ count: 2 + 4 + 3, isExact: true });
    expect(beforeIn(counts)).toEqual({ target: 6, kind: 9, global: 16 });
  });

  it('counts, while it waits, those behind it as far as there is room: they take slots first', () => {
    const windows = [
      own('target', { slots: 5, leased: 5, queued: 9 }),
      own('kind', { slots: 5, leased: 2, queued: 4 }),
      own('global', { slots: 9, leased: 2, queued: 7 }),
    ];
    const waits = { windows, waits: true, task: task({ state: 'scheduled' }) };
    // Two of them are before it: these are counted as such.
    expect(heldIn(ahead([], [], waits))).toEqual({ target: 5, kind: 2 + 2, global: 2 + 5 });
    expect(heldIn(ahead([], [], { ...waits, waits: false }))).toEqual({ target: 5, kind: 2, global: 2 });
    // Those that come due count too, if there is room.
    expect(
      heldIn(ahead([], [], { ...waits, due: [due('dns', 'b:53', 1, 1), due('tcp', 'b:1', 0, 4)] })),
    ).toEqual({ target: 5, kind: 2 + 3, global: 2 + 7 });
    // It does not stand behind itself, if its time is up.
    expect(heldIn(ahead([], [], { ...waits, task: task() }))).toEqual({
      target: 5,
      kind: 2 + 1,
      global: 2 + 4,
    });
  });

  it('counts the slot that it has itself as free by then: for one behind it, if there is one', () => {
    const leased = task({ state: 'leased' });
    const of = (queued: number, fields: Partial<QueuedWindow> = {}) =>
      heldIn(
        ahead([], [], {
          ...{ own: 0, task: leased, waits: true },
          windows: [own('kind', { slots: 2, leased: 2, queued, ...fields })],
        }),
      );
    expect([of(0), of(1), of(9)]).toEqual([{ kind: 1 }, { kind: 2 }, { kind: 2 }]);
    // Above the limit there is no room for others.
    expect(of(9, { leased: 4 })).toEqual({ kind: 3 });
    // Not all that are behind it are counted yet: there may be enough of them.
    expect(of(0, { moved_through: 7 })).toEqual({ kind: 2 });
  });

  it('is exact only as far as all that it rests on is', () => {
    const counts = (around: Partial<Around>) => {
      const { leases, windows } = countAhead({
        ...{ task: task(), windows: ALL, waits: false, rooms: [] },
        own: { count: 0, isExact: true },
        others: { counts: [], isExact: true },
        due: { counts: [], isExact: true },
        ...around,
      });
      return [leases.isExact, ...windows.map((one) => one.before.isExact)];
    };
    expect(counts({})).toEqual([true, true, true, true]);
    expect(counts({ others: { counts: [], isExact: false } })).toEqual([false, true, false, false]);
    expect(counts({ own: { count: 0, isExact: false } })).toEqual([false, false, false, false]);
    expect(counts({ due: { counts: [], isExact: false } })).toEqual([false, false, false, false]);
  });
});
