import type { DataSource } from 'typeorm';
import type { Extension } from '../extensions';
import type { Settings } from '../settings';
import type { Database } from './database';
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

/** Reads a database beside whoever serves it. */
export function inspectDatabase<T>(
  target: Settings['database'],
  work: (statements: Statements) => Promise<T>,
): Promise<T> {
  return target.type === 'sqlite'
    ? SqliteDatabase.inspect(target, work)
    : PostgresDatabase.inspect(target, work);
}
