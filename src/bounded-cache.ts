import { LRUCache } from 'lru-cache';

/**
 * Creates a cache that keeps the entries that were used last. Its memory grows with its entries: a cache that is bounded
 * by their number (`max`) takes the memory for all of them at once, so each counts as a size of 1.
 * @param most the most entries
 */
export const boundedCache = <Key extends {}, Value extends {}>(most: number): LRUCache<Key, Value> =>
  new LRUCache({ maxSize: most, sizeCalculation: () => 1 });
