import type { DataSource } from 'typeorm';
import type { Clock } from '../clock';
import { fail } from '../errors';
import type { BucketTable } from './bucket-table';
import type { Statements, Transaction } from './statements';

/** Receives what a unit of work announced, once it is committed. */
export type AnnouncementListener = (message: string) => void;

/** A transaction that ended: how many units of work shared it, and how long its commit took, in milliseconds. */
export interface Commit {
  readonly units: number;
  readonly durationMs: number;
  readonly failed: boolean;
}

/** What the database can tell of itself. What it does not know is left out. */
export interface DatabaseStats {
  /** Bytes of the database on its disk. */
  readonly sizeBytes?: number;
  /** Bytes that this process may still use of that disk. */
  readonly freeBytes?: number;
  /** Connections of the pool that are idle and in use, and how many callers wait for one. */
  readonly connections?: { readonly idle: number; readonly busy: number; readonly waiting: number };
}

/**
 * The database: one door for writes, one window for reads, and word of what other replicas wrote. Nothing else of the
 * program opens a transaction.
 */
export abstract class Database {
  private readonly listeners = new Map<string, AnnouncementListener[]>();
  private readonly gapListeners: (() => void)[] = [];
  private readonly lostListeners: ((reason: Error) => void)[] = [];
  private readonly commitListeners: ((commit: Commit) => void)[] = [];
  private lost: Error | undefined;

  /** TypeORM's source for reading. */
  abstract readonly source: DataSource;

  /** The one clock of everybody who uses this database. */
  abstract readonly clock: Clock;

  /** Names of the migrations that were applied when it was opened. */
  abstract readonly applied: readonly string[];

  /**
   * Does a unit of work in one transaction and answers when it is on the disk. Nothing but the transaction may be
   * awaited inside, and the method may not be called inside. What the unit throws undoes it and is thrown on. A unit can
   * be run again from its start, so it must not change anything but by its transaction.
   * @throws ERR_UNAVAILABLE when the commit fails; nothing is stored then, or nobody knows, as the message says
   */
  abstract write<T>(work: (tx: Transaction) => Promise<T>): Promise<T>;

  /**
   * How many units that calls were gathered for should run at once. Where units run side by side, more of them would wait for
   * each other's rows while fewer calls shared each.
   */
  abstract readonly maxGatheredUnits: number;

  /** Whether the caller is inside a unit of work, where it may not ask for another one. */
  abstract get insideWrite(): boolean;

  /** Reads what is committed; the statements inside may see different commits. */
  abstract read<T>(work: (statements: Statements) => Promise<T>): Promise<T>;

  /** Whether other processes may serve the same database. */
  abstract readonly mayHaveReplicas: boolean;

  /** Token buckets that replicas share; undefined if this process alone uses the database, so that its memory will do. */
  abstract readonly buckets: BucketTable | undefined;

  /**
   * Whether the service ends with this process: no other can serve the database while it is open here. Then each start follows an
   * interruption, and nobody reads meanwhile what is written for the next start.
   */
  abstract readonly endsWithProcess: boolean;

  /** Reads what other processes may have written meanwhile; does nothing if there can be none. */
  abstract readOthers(work: (statements: Statements) => Promise<void>): Promise<void>;

  /** True while announcements of other replicas arrive. If false, caches may be stale: look up, and poll. */
  abstract get isListening(): boolean;

  /**
   * Does something that only one replica may do at a time; it goes on when the connection that stands for it is lost, so
   * it must do no harm twice.
   * @param name what the replicas agree on by name
   * @returns whether it was done; not when another replica is at it
   */
  abstract exclusively(name: string, work: () => Promise<void>): Promise<boolean>;

  /** How many units of work wait to be written: the measure of overload. */
  abstract get writeQueueDepth(): number;

  /** What it can tell of itself now; waits for no unit of work. */
  abstract stats(): Promise<DatabaseStats>;

  /** How many times this process tried to commit: the same number again means that it wrote nothing meanwhile. */
  abstract get writes(): number;

  /**
   * Whether the disk is nearly full: what would fill it must be refused, so that what is needed to run the fleet and in an
   * emergency is still stored.
   */
  abstract get isSpaceLow(): boolean;

  /**
   * Resolves if the database takes writes; asks it, and waits for no unit of work.
   * @throws an error that says why it does not, within a few seconds
   */
  abstract ready(): Promise<void>;

  /** Writes what waits, then closes the connections. */
  abstract close(): Promise<void>;

  /** Keeps what would fill a disk that is nearly full from being stored. @throws ERR_UNAVAILABLE with reason `disk` */
  requireSpace(): void {
    if (this.isSpaceLow)
      throw fail(
        'ERR_UNAVAILABLE',
        { reason: 'disk' },
        { message: 'The disk of the database is nearly full; try again later.', retryAfterMs: 10_000 },
      );
  }

  /** Calls back once when this process may never write again: it must end, for another one serves the database. */
  onLost(listener: (reason: Error) => void): void {
    if (this.lost) listener(this.lost);
    else this.lostListeners.push(listener);
  }

  /** Calls back after each commit of this process, failed ones included. The listener must not throw. */
  onCommit(listener: (commit: Commit) => void): void {
    this.commitListeners.push(listener);
  }

  protected committed(commit: Commit): void {
    for (const listener of this.commitListeners) listener(commit);
  }

  /** Tells that this process may never write again. */
  protected lose(reason: Error): void {
    this.lost = reason;
    for (const listener of this.lostListeners.splice(0)) listener(reason);
  }

  /** Calls back with every message that is announced under a topic, by this process or another replica. */
  onAnnouncement(topic: string, listener: AnnouncementListener): void {
    this.listeners.set(topic, [...(this.listeners.get(topic) ?? []), listener]);
  }

  /** Calls back when announcements of other replicas may have been missed: what depends on them must be looked up again. */
  onGap(listener: () => void): void {
    this.gapListeners.push(listener);
  }

  /** Tells this process's listeners. */
  protected deliver(topic: string, message: string): void {
    for (const listener of this.listeners.get(topic) ?? []) listener(message);
  }

  protected gap(): void {
    for (const listener of this.gapListeners) listener();
  }
}
