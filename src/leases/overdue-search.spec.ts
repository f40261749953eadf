import { OverdueSearch } from './overdue-search';

const T = 1_000_000;

describe('the search for overdue leases', () => {
  let search: OverdueSearch;

  beforeEach(() => {
    search = new OverdueSearch(60_000);
  });

  /** Searches at an instant. @returns where it began; undefined if it was not needed */
  const searchAt = (now: number, earliest?: number): number | undefined => {
    if (!search.begin(now)) return undefined;
    const { start } = search;
    search.end(start, earliest);
    return start;
  };

  it('begins at the start, then some seconds before the earliest deadline that it found', () => {
    expect(searchAt(T, T + 10_000)).toBe(0);
    expect(searchAt(T, T + 15_000)).toBe(T - 10_000);
    // One that was found late is not overtaken.
    expect(searchAt(T + 20_000, T + 9_000)).toBe(T - 5_000);
    expect(searchAt(T + 20_000, T + 9_000)).toBe(T - 5_000);
  });

  it('is not needed before a lease can be overdue', () => {
    searchAt(T, T + 60_000);
    expect(searchAt(T + 39_999)).toBeUndefined();
    expect(searchAt(T + 40_000)).toBe(T + 40_000);
  });

  it('finds new leases although those before them last longer', () => {
    searchAt(T, T + 600_000);
    expect(searchAt(T + 40_000, T + 60_000)).toBe(T + 40_000);
  });

  it('goes on to the end of new leases if there is no live one', () => {
    searchAt(T);
    expect(searchAt(T + 39_999)).toBeUndefined();
    expect(searchAt(T + 40_000)).toBe(T + 40_000);
  });

  it('goes by what became known while it ran', () => {
    searchAt(T, T + 60_000);
    search.begin(T + 40_000);
    const { start } = search;
    search.reset(T - 50_000);
    search.end(start, T + 100_000);
    expect(searchAt(T + 40_000)).toBe(T - 50_000);
  });

  it('begins earlier if an earlier deadline is known, or the clock was set back', () => {
    searchAt(T, T + 60_000);
    search.reset(T - 50_000);
    expect(searchAt(T + 1, T + 60_000)).toBe(T - 50_000);
    expect(searchAt(T)).toBe(0);
  });
});
