import type { LRUCache } from 'lru-cache';
import { boundedCache } from '../bounded-cache';
import type { Database } from './database';
import type { Statements, Transaction } from './statements';

/** How long a cached row of a shared database counts as current, in milliseconds. */
const MAX_AGE_MS = 5_000;

interface CachedRow<Row> {
  readonly row: Row;
  readonly readAt: number;
}

/**
 * Caches rows that every request needs. A unit that changes a row announces that in its transaction, and every replica
 * drops the row. Announcements can be lost silently, so on a shared database a row is also read again after 5 s.
 */
export class RowCache<Row extends object> {
  private readonly rows: LRUCache<string, CachedRow<Row>>;
  /** Counts the announced changes, so that a row that was read before a change is not cached after it. */
  private changes = 0;

  /**
   * @param topic the topic of the changes; the message is the row's key
   * @param max the most rows in the cache
   * @param now a clock that never goes back, in milliseconds
   */
  constructor(
    private readonly database: Pick<
      Database,
      'read' | 'mayHaveReplicas' | 'isListening' | 'onAnnouncement' | 'onGap'
    >,
    private readonly topic: string,
    private readonly max: number,
    private readonly now: () => number = () => performance.now(),
  ) {
    this.rows = boundedCache(max);
    database.onAnnouncement(topic, (key) => {
      this.changes++;
      this.rows.delete(key);
    });
    database.onGap(() => {
      this.changes++;
      this.rows.clear();
    });
  }

  /** Returns the row if it is cached and current: not while notifications do not arrive, and not if it is too old. */
  get(key: string): Row | undefined {
    if (!this.database.isListening) return undefined;
    const cached = this.rows.get(key);
    if (!cached || (this.database.mayHaveReplicas && this.now() - cached.readAt >= MAX_AGE_MS))
      return undefined;
    return cached.row;
  }

  /** Returns the cached row without checking that it is current: do not decide by it. */
  peek(key: string): Row | undefined {
    return this.rows.get(key)?.row;
  }

  /** Fills the cache in advance. */
  async fill(read: (statements: Statements) => Promise<ReadonlyMap<string, Row>>): Promise<void> {
    const before = this.changes;
    const readAt = this.now();
    const rows = await this.database.read(read);
    if (before === this.changes) for (const [key, row] of rows) this.rows.set(key, { row, readAt });
  }

  /**
   * Reads the row and, if it exists, caches it.
   * @param isWanted whether it may replace another row if the cache is full
   */
  async load(
    key: string,
    read: (statements: Statements) => Promise<Row | undefined>,
    isWanted: (row: Row) => boolean = () => true,
  ): Promise<Row | undefined> {
    const before = this.changes;
    const readAt = this.now();
    const row = await this.database.read(read);
    if (before !== this.changes) return row;
    if (!row) this.rows.delete(key);
    // A cached one is older than this.
    else if (this.rows.size < this.max || isWanted(row) || this.rows.has(key))
      this.rows.set(key, { row, readAt });
    return row;
  }

  /** Drops the row from every replica's cache, once the unit that changes it is committed. */
  announceChange(tx: Transaction, key: string): void {
    tx.announce(this.topic, key);
  }
}
