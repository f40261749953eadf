import type { DataSource } from 'typeorm';
import type { Clock } from '../clock';
import { fail } from '../errors';
import type { BucketTable } from './bucket-table';
import type { Statements, Transaction } from './statements';

/** Receives an announcement of a unit of work, once that is committed. */
export type AnnouncementListener = (message: string) => void;

/**
 * A transaction that ended: the number of units of work that shared it, and the duration of its commit, in
 * milliseconds.
 */
export interface Commit {
  readonly units: number;
  readonly durationMs: number;
  readonly failed: boolean;
}

/** Figures of the database. Unknown ones are left out. */
export interface DatabaseStats {
  /** Bytes of the database on its disk. */
  readonly sizeBytes?: number;
  /** Bytes that this process may still use of that disk. */
  readonly freeBytes?: number;
  /** Connections of the pool that are idle and in use, and the number of callers that wait for one. */
  readonly connections?: { readonly idle: number; readonly busy: number; readonly waiting: number };
}

/**
 * The database: one method for writes, one for reads, and announcements of the writes of other replicas. No other part
 * of the program opens a transaction.
 */
export abstract class Database {
  private readonly listeners = new Map<string, AnnouncementListener[]>();
  private readonly gapListeners: (() => void)[] = [];
  private readonly lostListeners: ((reason: Error) => void)[] = [];
  private readonly commitListeners: ((commit: Commit) => void)[] = [];
  private lost: Error | undefined;

  /** TypeORM's source for reading. */
  abstract readonly source: DataSource;

  /** The clock that all users of this database share. */
  abstract readonly clock: Clock;

  /** Names of the migrations that were applied when it was opened. */
  abstract readonly applied: readonly string[];

  /**
   * Runs a unit of work in one transaction and resolves when it is on the disk. The unit must await only its
   * transaction, and must not call this method. If it throws, it is rolled back and the error is thrown on. A unit can
   * be run again from its start, so it must change things only through its transaction.
   * @throws ERR_UNAVAILABLE the commit failed; the message says whether the change is certainly not stored
   */
  abstract write<T>(work: (tx: Transaction) => Promise<T>): Promise<T>;

  /**
   * The most units of a Batcher that should run at once. If units run in parallel, more of them would wait for
   * each other's rows, and each would combine fewer calls.
   */
  abstract readonly maxGatheredUnits: number;

  /** Whether the caller is inside a unit of work, and so must not call {@link write}. */
  abstract get insideWrite(): boolean;

  /** Reads committed rows; the statements inside may see different commits. */
  abstract read<T>(work: (statements: Statements) => Promise<T>): Promise<T>;

  /** Whether other processes may serve the same database. */
  abstract readonly mayHaveReplicas: boolean;

  /**
   * Token buckets that replicas share; undefined if only this process uses the database, so that its memory is
   * enough.
   */
  abstract readonly buckets: BucketTable | undefined;

  /**
   * Whether the service ends with this process, because no other can serve the database while it is open here. Then
   * each start follows an interruption, and no process reads rows that are written for the next start.
   */
  abstract readonly endsWithProcess: boolean;

  /** Reads rows that other processes may have written; does nothing if there can be no other process. */
  abstract readOthers(work: (statements: Statements) => Promise<void>): Promise<void>;

  /** True while announcements of other replicas arrive. If false, caches may be stale: look up, and poll. */
  abstract get isListening(): boolean;

  /**
   * Runs work that only one replica may run at a time. It continues if the connection that holds the lock is lost, so
   * it must be harmless if two replicas run it.
   * @param name the name of the lock
   * @returns whether it ran; false if another replica runs it
   */
  abstract exclusively(name: string, work: () => Promise<void>): Promise<boolean>;

  /** The number of units of work that wait to be written: a measure of overload. */
  abstract get writeQueueDepth(): number;

  /** Reads the current figures; does not wait for units of work. */
  abstract stats(): Promise<DatabaseStats>;

  /** The number of commits that this process has tried. If it did not change, the process wrote nothing meanwhile. */
  abstract get writes(): number;

  /**
   * Whether the disk is nearly full. Bulk writes must be refused then, so that the fleet's calls and the operations for
   * an emergency can still be stored.
   */
  abstract get isSpaceLow(): boolean;

  /**
   * Resolves if the database accepts writes; asks it, and does not wait for units of work.
   * @throws an error with the reason, within a few seconds
   */
  abstract ready(): Promise<void>;

  /** Writes the units that wait, then closes the connections. */
  abstract close(): Promise<void>;

  /** Refuses a bulk write if the disk is nearly full. @throws ERR_UNAVAILABLE with reason `disk` */
  requireSpace(): void {
    if (this.isSpaceLow)
      throw fail(
        'ERR_UNAVAILABLE',
        { reason: 'disk' },
        { message: 'The disk of the database is nearly full; try again later.', retryAfterMs: 10_000 },
      );
  }

  /** Subscribes to the loss of the database: this process may never write again, and must end. Called once. */
  onLost(listener: (reason: Error) => void): void {
    if (this.lost) listener(this.lost);
    else this.lostListeners.push(listener);
  }

  /** Subscribes to commits of this process, failed ones included. The listener must not throw. */
  onCommit(listener: (commit: Commit) => void): void {
    this.commitListeners.push(listener);
  }

  protected committed(commit: Commit): void {
    for (const listener of this.commitListeners) listener(commit);
  }

  /** Calls the listeners of {@link onLost}: this process may never write again. */
  protected markLost(reason: Error): void {
    this.lost = reason;
    for (const listener of this.lostListeners.splice(0)) listener(reason);
  }

  /** Subscribes to the announcements of a topic, by this process or another replica. */
  onAnnouncement(topic: string, listener: AnnouncementListener): void {
    this.listeners.set(topic, [...(this.listeners.get(topic) ?? []), listener]);
  }

  /** Subscribes to gaps: announcements of other replicas may be lost, so cached data must be read again. */
  onGap(listener: () => void): void {
    this.gapListeners.push(listener);
  }

  /** Calls this process's listeners of a topic. */
  protected deliver(topic: string, message: string): void {
    for (const listener of this.listeners.get(topic) ?? []) listener(message);
  }

  protected gap(): void {
    for (const listener of this.gapListeners) listener();
  }
}
