import { OverdueSearch } from './overdue-search';

const T = 1_000_000;

describe('the search for overdue leases', () => {
  let running = 0;
  let search: OverdueSearch;

  beforeEach(() => {
    running = 0;
    jest.spyOn(performance, 'now').mockImplementation(() => running);
    search = new OverdueSearch();
  });
  afterEach(() => jest.restoreAllMocks());

  /** Searches at an instant. @returns where it began; undefined if it was not needed */
  const searchAt = (now: number, earliest?: number, tookMs = 0): number | undefined => {
    if (!search.begin(now)) return undefined;
    const { start } = search;
    search.end(earliest, tookMs);
    return start;
  };

  it('begins at the start, then some seconds before the earliest deadline that it found', () => {
    expect(searchAt(T, T + 10_000)).toBe(0);
    expect(searchAt(T, T + 10_000)).toBe(T - 5_000);
    expect(searchAt(T + 20_000, T + 10_000)).toBe(T - 5_000);
  });

  it('is not needed before a lease can be overdue', () => {
    searchAt(T, T + 60_000);
    expect(searchAt(T + 44_999)).toBeUndefined();
    expect(searchAt(T + 45_000)).toBe(T + 45_000);
  });

  it('goes on from now if there is no live lease', () => {
    searchAt(T);
    expect(searchAt(T + 1_000)).toBe(T - 15_000);
    expect(searchAt(T + 2_000)).toBe(T - 14_000);
  });

  it('begins at the start again after a minute, and later if that took long', () => {
    searchAt(T, T + 1_000);
    running = 59_999;
    expect(searchAt(T + 59_999, T + 1_000)).toBe(T - 14_000);
    running = 60_000;
    expect(searchAt(T + 60_000, T + 1_000, 6_000)).toBe(0);
    running = 179_999;
    expect(searchAt(T + 179_999, T + 1_000)).toBe(T - 14_000);
    running = 180_000;
    expect(searchAt(T + 180_000, T + 1_000)).toBe(0);
  });

  it('begins at the start again if the clock was set back', () => {
    searchAt(T, T + 60_000);
    expect(searchAt(T - 1)).toBe(0);
  });
});
