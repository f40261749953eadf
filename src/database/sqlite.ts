import { existsSync } from 'node:fs';
import { dirname } from 'node:path';
import Sqlite from 'better-sqlite3';
import type { DataSourceOptions } from 'typeorm';
import type { SqliteTarget } from '../settings';
import { DatabaseError, DatabaseInUse } from './database-error';

/** What the writer's connection must have, and what SQLite answers when it has it. */
const PRAGMAS = [
  ['journal_mode', 'wal'],
  // 2 is FULL: the log is on the disk before a commit returns, so an answered write survives a power cut.
  ['synchronous', 2],
  ['foreign_keys', 1],
  ['busy_timeout', 5_000],
] as const;

/** Options of the one connection that writes. */
export function writerOptions(target: SqliteTarget): DataSourceOptions {
  return {
    type: 'better-sqlite3',
    database: target.path,
    statementCacheSize: 500,
    prepareDatabase: (db: Sqlite.Database) => {
      for (const [name, wanted] of PRAGMAS) {
        db.pragma(`${name} = ${wanted}`);
        const got = db.pragma(name, { simple: true });
        // A database in memory has no log to write ahead of; everything else must be as asked.
        if (got !== wanted && !(target.path === ':memory:' && name === 'journal_mode')) {
          throw new DatabaseError(
            `SQLite did not accept ${name}=${wanted} for ${target.path} (it says ${got}).`,
          );
        }
      }
      // A page that changes often is copied into the database once for many commits, and the pauses of it are rare.
      db.pragma('wal_autocheckpoint = 8000');
      db.pragma('cache_size = -65536');
      db.pragma('temp_store = MEMORY');
      db.pragma('journal_size_limit = 67108864');
    },
  };
}

/** Options of the connection that only reads; the file must be there already. */
export function readerOptions(target: SqliteTarget): DataSourceOptions {
  return {
    type: 'better-sqlite3',
    database: target.path,
    readonly: true,
    statementCacheSize: 500,
    prepareDatabase: (db: Sqlite.Database) => {
      db.pragma('busy_timeout = 5000');
      db.pragma('cache_size = -65536');
    },
  };
}

/** What to tell of an error at opening: SQLite's own is about the file, anything else is passed on. */
export function unopened(target: SqliteTarget, error: unknown): unknown {
  if (!(error instanceof Sqlite.SqliteError)) return error;
  const advice = /^SQLITE_(CANTOPEN|READONLY)/.test(error.code)
    ? ' The process must be able to write both the file and its folder.'
    : '';
  return new DatabaseError(`${target.path} can't be opened: ${error.message} (${error.code}).${advice}`);
}

/**
 * Keeps a second process off the file. The lock is SQLite's own, on a file beside the database, so that it goes with
 * the process however that ends.
 * @returns what gives the lock back.
 * @throws DatabaseInUse where another process has the file
 * @throws DatabaseError where its folder is not there
 */
export function lockDatabase(target: SqliteTarget): () => void {
  if (target.path === ':memory:') return () => undefined;
  const folder = dirname(target.path);
  if (!existsSync(folder))
    throw new DatabaseError(`The folder ${folder} of the database does not exist; create it.`);
  let lock: Sqlite.Database | undefined;
  try {
    lock = new Sqlite(`${target.path}-lock`, { timeout: 0 });
    lock.pragma('journal_mode = MEMORY');
    lock.exec('BEGIN EXCLUSIVE');
  } catch (error) {
    lock?.close();
    if ((error as { code?: string }).code?.startsWith('SQLITE_BUSY')) {
      throw new DatabaseInUse(
        `Another process is using ${target.path}. Stop it first: SQLite serves one process.`,
      );
    }
    throw unopened(target, error);
  }
  const held = lock;
  return () => held.close();
}
