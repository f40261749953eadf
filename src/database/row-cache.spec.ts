import { RowCache } from './row-cache';
import type { Statements } from './statements';

interface Row {
  readonly value: number;
}

/** A database that tells how often it was read, and is told what happens. */
function database({ mayHaveReplicas }: { mayHaveReplicas: boolean }) {
  let announce = (_key: string): void => undefined;
  let gap = (): void => undefined;
  const state = { reads: 0, row: { value: 1 } as Row | undefined, isListening: true, mayHaveReplicas };
  return Object.assign(state, {
    read: <T>(work: (statements: Statements) => Promise<T>) => {
      state.reads++;
      return work({} as Statements);
    },
    onAnnouncement: (_topic: string, listener: (key: string) => void) => {
      announce = listener;
    },
    onGap: (listener: () => void) => {
      gap = listener;
    },
    announce: (key: string) => announce(key),
    gap: () => gap(),
  });
}

describe('RowCache', () => {
  let now = 0;
  const cacheOf = (db: ReturnType<typeof database>, max = 10) => {
    const cache = new RowCache<Row>(db, 'rows', max, () => now);
    const load = (isWanted?: (row: Row) => boolean) => cache.load('a', async () => db.row, isWanted);
    return { cache, load };
  };

  beforeEach(() => {
    now = 1_000;
  });

  it('keeps a row of a shared database for 5 s, however well announcements seem to arrive', async () => {
    const { cache, load } = cacheOf(database({ mayHaveReplicas: true }));
    await load();
    now += 4_999;
    expect(cache.get('a')).toEqual({ value: 1 });
    now += 1;
    expect(cache.get('a')).toBeUndefined();
    expect(cache.peek('a')).toEqual({ value: 1 });
    await load();
    expect(cache.get('a')).toEqual({ value: 1 });
  });

  it('keeps a row for as long as it takes if nobody else can change it', async () => {
    const { cache, load } = cacheOf(database({ mayHaveReplicas: false }));
    await load();
    now += 86_400_000;
    expect(cache.get('a')).toEqual({ value: 1 });
  });

  it('answers nothing while announcements do not arrive, and forgets what was announced or may have been', async () => {
    const db = database({ mayHaveReplicas: true });
    const { cache, load } = cacheOf(db);
    await load();
    db.isListening = false;
    expect(cache.get('a')).toBeUndefined();
    db.isListening = true;
    expect(cache.get('a')).toEqual({ value: 1 });
    db.announce('a');
    expect([cache.get('a'), cache.peek('a')]).toEqual([undefined, undefined]);
    await load();
    db.gap();
    expect(cache.peek('a')).toBeUndefined();
  });

  it('does not keep what nobody wants, what changed while it was read, nor what is gone', async () => {
    const db = database({ mayHaveReplicas: true });
    const { cache, load } = cacheOf(db, 1);
    // What nobody wants takes nobody's place.
    await cache.load('b', async () => ({ value: 5 }));
    expect(await load(() => false)).toEqual({ value: 1 });
    expect([cache.peek('a'), cache.peek('b')]).toEqual([undefined, { value: 5 }]);
    db.announce('b');
    await load(() => false);
    expect(cache.peek('a')).toEqual({ value: 1 });
    const reading = load();
    db.announce('a');
    await reading;
    expect(cache.peek('a')).toBeUndefined();
    await load();
    db.row = { value: 2 };
    // The old one must not stay in its place.
    await load(() => false);
    expect(cache.peek('a')).toEqual({ value: 2 });
    db.row = undefined;
    await load();
    expect(cache.peek('a')).toBeUndefined();
  });

  it('is filled before anybody asks, but not with what changed while it was read', async () => {
    const db = database({ mayHaveReplicas: true });
    const { cache } = cacheOf(db);
    const filling = cache.fill(async () => new Map([['a', { value: 1 }]]));
    db.announce('b');
    await filling;
    expect(cache.peek('a')).toBeUndefined();
    await cache.fill(async () => new Map([['a', { value: 1 }]]));
    expect(cache.get('a')).toEqual({ value: 1 });
  });
});
