import { LRUCache } from 'lru-cache';
import type { Database } from './database';
import type { Statements, Transaction } from './statements';

/** How long a row of a database that others write too is trusted, in milliseconds, whatever is announced. */
const MAX_AGE_MS = 5_000;

interface Kept<Row> {
  readonly row: Row;
  readonly readAt: number;
}

/**
 * Rows kept in memory, for what every request asks. As exact as announcements are: a unit that changes a row announces it in the
 * same transaction, and every replica looks it up again. An announcement can be lost without a trace, so on a shared database
 * a row is looked up again after 5 s in any case.
 */
export class RowCache<Row extends object> {
  private readonly rows: LRUCache<string, Kept<Row>>;
  /** Counts the changes, so that a row read before one is not kept after it. */
  private changes = 0;

  /**
   * @param topic under which changes are announced; the message is the row's key
   * @param max how many rows are kept; the others are looked up
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
    // By size: a cache with `max` takes the memory for all its rows at once.
    this.rows = new LRUCache({ maxSize: max, sizeCalculation: () => 1 });
    database.onAnnouncement(topic, (key) => {
      this.changes++;
      this.rows.delete(key);
    });
    database.onGap(() => {
      this.changes++;
      this.rows.clear();
    });
  }

  /** The row, if it is kept and known to be current: not while notifications don't arrive, nor when it is too old. */
  get(key: string): Row | undefined {
    if (!this.database.isListening) return undefined;
    const kept = this.rows.get(key);
    if (!kept || (this.database.mayHaveReplicas && this.now() - kept.readAt >= MAX_AGE_MS)) return undefined;
    return kept.row;
  }

  /** The row as it was when it was read last, if it is kept. It may have changed since: decide nothing by it. */
  peek(key: string): Row | undefined {
    return this.rows.get(key)?.row;
  }

  /** Keeps rows before anybody asks for them; they may have changed when they are asked for, as others have. */
  async fill(read: (statements: Statements) => Promise<ReadonlyMap<string, Row>>): Promise<void> {
    const before = this.changes;
    const readAt = this.now();
    const rows = await this.database.read(read);
    if (before === this.changes) for (const [key, row] of rows) this.rows.set(key, { row, readAt });
  }

  /**
   * Reads the row and, if there is one, keeps it.
   * @param isWanted whether it may take the place of another row, if there are as many as may be kept
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
    // One that is kept already is older than this.
    else if (this.rows.size < this.max || isWanted(row) || this.rows.has(key))
      this.rows.set(key, { row, readAt });
    return row;
  }

  /** Has every replica look the row up again, once the unit that changes it is committed. */
  announceChange(tx: Transaction, key: string): void {
    tx.announce(this.topic, key);
  }
}
