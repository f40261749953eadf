import { DataSource } from 'typeorm';
import type { Extension } from '../extensions';
import type { Settings } from '../settings';
import { sqliteDialect } from './dialect';
import { ExtensionMigrations, knownMigrations, migrate, pendingMigrations } from './migrations';
import { DatabaseError, lockDatabase, readerOptions, unopened, writerOptions } from './sqlite';
import { SqliteStatements, type Statements, type Transaction } from './statements';
import { WriteQueue } from './write-queue';

/**
 * The database: one door for writes, one window for reads. Nothing else of the program opens a transaction.
 */
export class Database {
  private closed: Promise<void> | undefined;

  private constructor(
    /** TypeORM's source for reading; on a file its connection can't write. */
    readonly source: DataSource,
    private readonly writer: DataSource,
    private readonly queue: WriteQueue,
    private readonly reader: Statements,
    private readonly unlock: () => void,
    /** Names of the migrations that were applied when it was opened. */
    readonly applied: readonly string[],
  ) {}

  /**
   * Locks, opens and (unless the settings say no) migrates the database.
   * @param entities the classes that the query builder may use on {@link source}
   * @param extensions whose migrations are applied after the program's own
   * @throws DatabaseError in use by another process, written by a newer version, or not migrated and told not to
   * @throws ExtensionError a migration of an extension failed
   */
  static async open(
    settings: Pick<Settings, 'database' | 'migrateOnStart'>,
    entities: DataSource['options']['entities'] = [],
    extensions: readonly Extension[] = [],
  ): Promise<Database> {
    const unlock = lockDatabase(settings.database);
    const writer = new DataSource({
      ...writerOptions(settings.database),
      migrations: knownMigrations(),
      entities,
    });
    let reader: DataSource | undefined;
    try {
      await writer.initialize().catch((error: unknown) => {
        throw unopened(settings.database, error);
      });
      const runner = writer.createQueryRunner();
      const theirs = extensions.map((extension) => new ExtensionMigrations(extension, runner));
      const pending = await pendingMigrations(writer);
      for (const migrations of theirs) pending.push(...(await migrations.pending()));
      if (pending.length > 0 && !settings.migrateOnStart) {
        throw new DatabaseError(
          `The database lacks ${pending.length} migration(s), and CONTROL_PLANE_MIGRATE_ON_START is false: ` +
            'run "node dist/main.js --migrate-only" first.',
        );
      }
      await migrate(writer);
      for (const migrations of theirs) await migrations.apply();
      const queue = new WriteQueue(runner, sqliteDialect);
      // A database in memory exists on one connection only, so its reads wait their turn in the queue.
      reader =
        settings.database.path === ':memory:'
          ? writer
          : await new DataSource({ ...readerOptions(settings.database), entities }).initialize();
      const statements = new SqliteStatements(reader.createQueryRunner(), sqliteDialect);
      return new Database(reader, writer, queue, statements, unlock, pending);
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
  static async inspect<T>(
    target: Settings['database'],
    work: (statements: Statements) => Promise<T>,
  ): Promise<T> {
    const source = new DataSource({ ...readerOptions(target), migrations: knownMigrations() });
    await source.initialize().catch((error) => {
      throw unopened(target, error);
    });
    try {
      return await work(new SqliteStatements(source.createQueryRunner(), sqliteDialect));
    } finally {
      await source.destroy();
    }
  }

  /**
   * Does a unit of work in one transaction and answers when it is on the disk. Nothing but the transaction may be
   * awaited inside, and the method may not be called inside. What the unit throws undoes it and is thrown on.
   * @throws ERR_UNAVAILABLE when the commit fails; nothing is stored then
   */
  write<T>(work: (tx: Transaction) => Promise<T>): Promise<T> {
    return this.queue.run(work);
  }

  /** Whether the caller is inside a unit of work, where it may not ask for another one. */
  get insideWrite(): boolean {
    return this.queue.insideUnit;
  }

  /** Reads what is committed; the statements inside may see different commits. */
  read<T>(work: (statements: Statements) => Promise<T>): Promise<T> {
    return this.source === this.writer ? this.queue.run(work) : work(this.reader);
  }

  /** How many units of work wait to be written: the measure of overload. */
  get writeQueueDepth(): number {
    return this.queue.depth;
  }

  /** Answers when the database can be read; {@link Statements} errors pass through. */
  async ping(): Promise<void> {
    await this.read((statements) => statements.rows('SELECT 1'));
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
