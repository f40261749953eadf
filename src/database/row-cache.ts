import { LRUCache } from 'lru-cache';
import type { Database } from './database';
import type { Statements, Transaction } from './statements';

/**
 * Rows kept in memory, for what every request asks. As exact as announcements are: who changes a row announces it in the
 * same transaction, and it is looked up anew, by every replica.
 */
export class RowCache<Row extends object> {
  private readonly rows: LRUCache<string, Row>;
  /** Counts the changes, so that a row read before one is not kept after it. */
  private changes = 0;

  /**
   * @param topic under which changes are announced; the message is the row's key
   * @param max so many rows are kept, the others are looked up
   */
  constructor(
    private readonly database: Pick<Database, 'read' | 'hearsOthers' | 'onAnnouncement' | 'onGap'>,
    private readonly topic: string,
    max: number,
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

  /** The row, where it is kept and known to be current: not while word of other replicas does not arrive. */
  get(key: string): Row | undefined {
    return this.database.hearsOthers ? this.rows.get(key) : undefined;
  }

  /** Reads the row and, where there is one, keeps it. */
  async load(
    key: string,
    read: (statements: Statements) => Promise<Row | undefined>,
  ): Promise<Row | undefined> {
    const before = this.changes;
    const row = await this.database.read(read);
    if (row && before === this.changes) this.rows.set(key, row);
    return row;
  }

  /** Has every replica look the row up anew, once the unit that changes it is committed. */
  announceChange(tx: Transaction, key: string): void {
    tx.announce(this.topic, key);
  }
}
