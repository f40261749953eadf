import type { DataSource } from 'typeorm';
import type { Extension } from '../extensions';
import type { Settings } from '../settings';
import type { Database } from './database';
import { missingMigrations, pendingMigrations } from './migrations';
import { PostgresDatabase } from './postgres-database';
import { type DatabaseReplacements, SqliteDatabase } from './sqlite-database';
import type { Statements } from './statements';

/**
 * Opens the database that the settings name and, unless they forbid it, migrates it.
 * @param entities the classes that the query builder may use on {@link Database.source}
 * @param extensions their migrations are applied after the program's own
 * @throws DatabaseError it can't be reached, is in use, was written by a newer version, or lacks migrations that the
 * settings forbid to apply
 */
export function openDatabase(
  settings: Pick<Settings, 'database' | 'migrateOnStart' | 'poolSize'> &
    Partial<Pick<Settings, 'minFreeDisk'>>,
  entities: DataSource['options']['entities'] = [],
  extensions: readonly Extension[] = [],
  replacements: DatabaseReplacements = {},
): Promise<Database> {
  const { database: target } = settings;
  return target.type === 'sqlite'
    ? SqliteDatabase.open(target, settings, entities, extensions, replacements)
    : PostgresDatabase.open(target, settings, entities, extensions, replacements);
}

/**
 * Checks which migrations a database lacks, without changing it.
 * @returns `all` if the program has no table in it yet
 */
export function missingMigrationsIn(
  target: Settings['database'],
  extensions: readonly Extension[],
): Promise<'nothing' | 'some' | 'all'> {
  return inspectDatabase(target, async ({ manager: { dataSource } }) => {
    if ((await pendingMigrations(dataSource)).length === dataSource.migrations.length) return 'all';
    const runner = dataSource.createQueryRunner();
    const missing = await missingMigrations(dataSource, runner, extensions).finally(() => runner.release());
    return missing.length > 0 ? 'some' : 'nothing';
  });
}

/** Reads a database, also while a server uses it. */
export function inspectDatabase<T>(
  target: Settings['database'],
  work: (statements: Statements) => Promise<T>,
): Promise<T> {
  return target.type === 'sqlite'
    ? SqliteDatabase.inspect(target, work)
    : PostgresDatabase.inspect(target, work);
}
