import type { DataSource } from 'typeorm';
import type { Extension } from '../extensions';
import type { Settings } from '../settings';
import type { Database } from './database';
import { lackingMigrations, pendingMigrations } from './migrations';
import { PostgresDatabase } from './postgres-database';
import { type DatabaseReplacements, SqliteDatabase } from './sqlite-database';
import type { Statements } from './statements';

/**
 * Opens the database that the settings name and, unless they say no, migrates it.
 * @param entities the classes that the query builder may use on {@link Database.source}
 * @param extensions whose migrations are applied after the program's own
 * @throws DatabaseError it can't be reached or is in use, was written by a newer version, or is not migrated and told
 * not to
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
 * What a database lacks of what this version would migrate it to, found out without changing it.
 * @returns `all` if the program has no table in it yet
 */
export function lackingIn(
  target: Settings['database'],
  extensions: readonly Extension[],
): Promise<'nothing' | 'some' | 'all'> {
  return inspectDatabase(target, async ({ manager: { dataSource } }) => {
    if ((await pendingMigrations(dataSource)).length === dataSource.migrations.length) return 'all';
    const runner = dataSource.createQueryRunner();
    const lacking = await lackingMigrations(dataSource, runner, extensions).finally(() => runner.release());
    return lacking.length > 0 ? 'some' : 'nothing';
  });
}

/** Reads a database beside the process that serves it. */
export function inspectDatabase<T>(
  target: Settings['database'],
  work: (statements: Statements) => Promise<T>,
): Promise<T> {
  return target.type === 'sqlite'
    ? SqliteDatabase.inspect(target, work)
    : PostgresDatabase.inspect(target, work);
}
