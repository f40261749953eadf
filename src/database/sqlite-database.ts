import { DataSource } from 'typeorm';
import { Clock } from '../clock';
import type { Extension } from '../extensions';
import type { Settings, SqliteTarget } from '../settings';
import { Database } from './database';
import { sqliteDialect } from './dialect';
import { knownMigrations, migrate } from './migrations';
import { lockDatabase, readerOptions, unopened, writerOptions } from './sqlite';
import { SqliteStatements, type Statements, type Transaction } from './statements';
import { WriteQueue } from './write-queue';

/** A SQLite file, which this process has for itself, or a database in memory. */
export class SqliteDatabase extends Database {
  readonly clock = new Clock();
  readonly isShared = false;
  private readonly queue: WriteQueue;
  private closed: Promise<void> | undefined;

  private constructor(
    /** TypeORM's source for reading; on a file its connection can't write. */
    readonly source: DataSource,
    private readonly writer: DataSource,
    private readonly reader: Statements,
    private readonly unlock: () => void,
    /** Names of the migrations that were applied when it was opened. */
    readonly applied: readonly string[],
  ) {
    super();
    this.queue = new WriteQueue(writer.createQueryRunner(), sqliteDialect, (topic, message) =>
      this.deliver(topic, message),
    );
  }

  /**
   * Locks, opens and (unless the settings say no) migrates the database.
   * @param entities the classes that the query builder may use on {@link source}
   * @throws DatabaseError in use by another process, written by a newer version, or not migrated and told not to
   * @throws ExtensionError a migration of an extension failed
   */
  static async open(
    target: SqliteTarget,
    { migrateOnStart }: Pick<Settings, 'migrateOnStart'>,
    entities: DataSource['options']['entities'],
    extensions: readonly Extension[],
  ): Promise<SqliteDatabase> {
    const unlock = lockDatabase(target);
    const writer = new DataSource({
      ...writerOptions(target),
      migrations: knownMigrations(),
      entities,
    });
    let reader: DataSource | undefined;
    try {
      await writer.initialize().catch((error: unknown) => {
        throw unopened(target, error);
      });
      const applied = await migrate(writer, writer.createQueryRunner(), extensions, migrateOnStart);
      // A database in memory exists on one connection only, so its reads wait their turn in the queue.
      reader =
        target.path === ':memory:'
          ? writer
          : await new DataSource({ ...readerOptions(target), entities }).initialize();
      const statements = new SqliteStatements(reader.createQueryRunner(), sqliteDialect);
      return new SqliteDatabase(reader, writer, statements, unlock, applied);
    } catch (error) {
      if (reader?.isInitialized) await reader.destroy();
      if (writer.isInitialized) await writer.destroy();
      unlock();
      throw error;
    }
  }

  /**
   * Reads a database file beside whoever serves it, without its lock.
   * @throws DatabaseError it can't be opened
   */
  static async inspect<T>(target: SqliteTarget, work: (statements: Statements) => Promise<T>): Promise<T> {
    const source = new DataSource({ ...readerOptions(target), migrations: knownMigrations() });
    await source.initialize().catch((error: unknown) => {
      throw unopened(target, error);
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

  get insideWrite(): boolean {
    return this.queue.insideUnit;
  }

  /** There are no others. */
  get hearsOthers(): boolean {
    return true;
  }

  async exclusively(_name: string, work: () => Promise<void>): Promise<boolean> {
    await work();
    return true;
  }

  get writeQueueDepth(): number {
    return this.queue.depth;
  }

  /** Writes what waits, then closes the connections and gives the lock back. */
  close(): Promise<void> {
    this.closed ??= (async () => {
      await this.queue.idle();
      if (this.source.isInitialized) await this.source.destroy();
      if (this.writer.isInitialized) await this.writer.destroy();
      this.unlock();
    })();
    return this.closed;
  }
}
