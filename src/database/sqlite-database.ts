import { stat } from 'node:fs/promises';
import { DataSource } from 'typeorm';
import { type Clock, SteadyClock } from '../clock';
import type { Extension } from '../extensions';
import type { Settings, SqliteTarget } from '../settings';
import { Checkpointer, type LogState } from './checkpointer';
import { Database, type DatabaseStats } from './database';
import { SyncFailed } from './database-error';
import { sqliteDialect } from './dialect';
import { DiskSpace, type FreeSpace } from './disk-space';
import { refuseForeign } from './foreign';
import { knownMigrations, migrate } from './migrations';
import {
  checkPath,
  letQueueSyncLog,
  lockDatabase,
  readerOptions,
  refuseOpenElsewhere,
  takeGeneration,
  toOpenError,
  watchPath,
  writerOptions,
} from './sqlite';
import { SqliteStatements, type Statements, type Transaction } from './statements';
import { type SyncFile, WriteAheadLog } from './write-ahead-log';
import { WriteQueue } from './write-queue';

/** The time limit of the check that the database accepts writes, in milliseconds. */
const READY_MS = 2_000;

/** Parts that a test can replace. */
export interface DatabaseReplacements {
  readonly clock?: Clock;
  readonly freeSpace?: FreeSpace;
  /** How long another program may hold the lock of a SQLite file, in milliseconds. */
  readonly lockWaitMs?: number;
  /** Syncs the log of a SQLite file to its disk. */
  readonly sync?: SyncFile;
  /** The number of pages of the log of a SQLite file that are copied into it at a time. */
  readonly checkpointPages?: number;
}

/** A SQLite file, which only this process uses, or a database in memory. */
export class SqliteDatabase extends Database {
  readonly mayHaveReplicas = false;
  readonly buckets = undefined;
  readonly endsWithProcess = true;
  /** The writer runs units one after the other anyway; queued ones share its commit. */
  readonly maxGatheredUnits = Number.POSITIVE_INFINITY;
  private readonly queue: WriteQueue;
  private readonly checkpointer: Checkpointer | undefined;
  private isDiskUnknown = false;
  private closed: Promise<void> | undefined;
  private probing: Promise<unknown> | undefined;

  private constructor(
    /** TypeORM's source for reading; on a file its connection can't write. */
    readonly source: DataSource,
    private readonly writer: DataSource,
    private readonly reader: Statements,
    private readonly unlock: () => void,
    private readonly generation: number,
    private readonly file: string | undefined,
    private readonly log: WriteAheadLog | undefined,
    private readonly disk: DiskSpace | undefined,
    readonly clock: Clock,
    /** Names of the migrations that were applied when it was opened. */
    readonly applied: readonly string[],
    { lockWaitMs, checkpointPages }: DatabaseReplacements,
  ) {
    super();
    const runner = writer.createQueryRunner();
    const isFileInPlace = file === undefined ? () => true : watchPath(file);
    this.queue = new WriteQueue(runner, sqliteDialect, {
      clock,
      generation,
      isInPlace: () => isFileInPlace() && (log?.isInPlace() ?? true),
      lockWaitMs,
      log,
      afterCommit: () => this.checkpointer?.afterCommit() ?? Promise.resolve(),
      deliver: (topic, message) => this.deliver(topic, message),
      freeDiskSpace: () => this.disk?.release() ?? false,
      onFenced: (reason) => {
        this.isDiskUnknown = reason instanceof SyncFailed;
        this.markLost(reason);
      },
      onCommit: (commit) => this.committed(commit),
    });
    this.checkpointer =
      file === undefined
        ? undefined
        : new Checkpointer(
            file,
            async () => (await runner.query('PRAGMA wal_checkpoint(NOOP)'))[0] as LogState,
            (error) => this.queue.fence(new SyncFailed(error)),
            checkpointPages,
          );
  }

  /**
   * Locks and opens the database and, unless the settings forbid it, migrates it.
   * @param entities the classes that the query builder may use on {@link source}
   * @throws DatabaseError in use by another process, written by a newer version, or lacking migrations that the
   * settings forbid to apply
   * @throws ExtensionError a migration of an extension failed
   */
  static async open(
    target: SqliteTarget,
    {
      migrateOnStart,
      minFreeDisk = 0,
    }: Pick<Settings, 'migrateOnStart'> & Partial<Pick<Settings, 'minFreeDisk'>>,
    entities: DataSource['options']['entities'],
    extensions: readonly Extension[],
    replacements: DatabaseReplacements = {},
  ): Promise<SqliteDatabase> {
    const { clock = new SteadyClock(), freeSpace, sync } = replacements;
    // First, because SQLite creates files beside a file that it opens under another name.
    const isInMemory = target.path === ':memory:';
    const file = isInMemory ? undefined : checkPath(target.path);
    if (file !== undefined) await refuseOpenElsewhere(target, file);
    refuseForeign(target);
    const unlock = lockDatabase(target);
    const writer = new DataSource({
      ...writerOptions(target),
      migrations: knownMigrations(),
      entities,
    });
    let reader: DataSource | undefined;
    let log: WriteAheadLog | undefined;
    try {
      await writer.initialize().catch((error: unknown) => {
        throw toOpenError(target, error);
      });
      const applied = await migrate(writer, writer.createQueryRunner(), extensions, migrateOnStart);
      const generation = await takeGeneration(writer);
      if (file !== undefined) await letQueueSyncLog(writer);
      // A database in memory exists on one connection only, so reads go through the write queue.
      reader = isInMemory
        ? writer
        : await new DataSource({ ...readerOptions(target), entities }).initialize();
      const statements = new SqliteStatements(reader.createQueryRunner(), sqliteDialect);
      log = file === undefined ? undefined : new WriteAheadLog(file, sync);
      const disk = isInMemory ? undefined : new DiskSpace(target.path, minFreeDisk, freeSpace);
      await disk?.start();
      return new SqliteDatabase(
        reader,
        writer,
        statements,
        unlock,
        generation,
        file,
        log,
        disk,
        clock,
        applied,
        replacements,
      );
    } catch (error) {
      await log?.close();
      if (reader?.isInitialized) await reader.destroy();
      if (writer.isInitialized) await writer.destroy();
      unlock(true);
      throw error;
    }
  }

  /**
   * Reads a database file without its lock, also while a server uses it.
   * @throws DatabaseError it can't be opened, or is another program's
   */
  static async inspect<T>(target: SqliteTarget, work: (statements: Statements) => Promise<T>): Promise<T> {
    refuseForeign(target);
    const source = new DataSource({ ...readerOptions(target), migrations: knownMigrations() });
    await source.initialize().catch((error: unknown) => {
      throw toOpenError(target, error);
    });
    try {
      return await work(new SqliteStatements(source.createQueryRunner(), sqliteDialect));
    } finally {
      await source.destroy();
    }
  }

  write<T>(work: (tx: Transaction) => Promise<T>): Promise<T> {
    return this.queue.run(work);
  }

  read<T>(work: (statements: Statements) => Promise<T>): Promise<T> {
    return this.source === this.writer ? this.queue.run(work) : work(this.reader);
  }

  /** Does nothing: there are no other processes. */
  async readOthers(): Promise<void> {}

  get insideWrite(): boolean {
    return this.queue.insideUnit;
  }

  /** Always true: there are no other processes. */
  get isListening(): boolean {
    return true;
  }

  async exclusively(_name: string, work: () => Promise<void>): Promise<boolean> {
    await work();
    return true;
  }

  get writeQueueDepth(): number {
    return this.queue.depth;
  }

  get writes(): number {
    return this.queue.commits;
  }

  get isSpaceLow(): boolean {
    return this.disk?.isLow ?? false;
  }

  async stats(): Promise<DatabaseStats> {
    if (this.file === undefined) return {};
    const [size, log, freeBytes] = await Promise.all([
      sizeOf(this.file),
      // Changes that are not in the file itself yet.
      sizeOf(`${this.file}-wal`),
      this.disk?.freeBytes().catch(() => undefined),
    ]);
    return { sizeBytes: size + log, freeBytes };
  }

  async ready(): Promise<void> {
    await this.read((statements) => statements.rows('SELECT 1'));
    if (this.queue.problem === undefined) return;
    // Without readiness there are no other writes, so write the current generation again.
    this.probing ??= this.write((tx) => tx.run(`PRAGMA user_version = ${this.generation}`)).finally(() => {
      this.probing = undefined;
    });
    let overdue: NodeJS.Timeout | undefined;
    const late = new Promise((_, reject) => {
      overdue = setTimeout(() => reject(this.queue.problem), READY_MS);
    });
    await Promise.race([this.probing, late]).finally(() => clearTimeout(overdue));
  }

  /**
   * Writes the units that wait, then closes the connections and releases the lock. After a failed sync it keeps them:
   * the process must end.
   */
  close(): Promise<void> {
    this.closed ??= (async () => {
      await this.queue.idle();
      await this.disk?.stop();
      await this.checkpointer?.stop();
      await this.log?.close();
      if (this.source !== this.writer && this.source.isInitialized) await this.source.destroy();
      // Closing it would copy the log into the database, and the log may be damaged.
      if (this.isDiskUnknown) return;
      if (this.writer.isInitialized) await this.writer.destroy();
      this.unlock();
    })();
    return this.closed;
  }
}

/**
 * Reads the size of a file in bytes; 0 if it does not exist. By its name: closing a descriptor would end SQLite's
 * locks.
 */
const sizeOf = async (path: string): Promise<number> => (await stat(path).catch(() => ({ size: 0 }))).size;
