import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  lstatSync,
  openSync,
  readFileSync,
  readlinkSync,
  readSync,
  realpathSync,
  rmSync,
  type Stats,
  statSync,
} from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import Sqlite from 'better-sqlite3';
import type { DataSource, DataSourceOptions } from 'typeorm';
import type { SqliteTarget } from '../settings';
import { DatabaseError, DatabaseInUse } from './database-error';

/** Settings that the writer's connection must have, with the values that SQLite reports. */
const PRAGMAS = [
  ['journal_mode', 'wal'],
  // 2 is FULL: the log is on the disk before a commit returns, until letQueueSyncLog() lets the write queue sync it.
  ['synchronous', 2],
  ['foreign_keys', 1],
  ['busy_timeout', 5_000],
] as const;

/** Creates the options of the only connection that writes. */
export function writerOptions(target: SqliteTarget): DataSourceOptions {
  return {
    type: 'better-sqlite3',
    database: target.path,
    statementCacheSize: 500,
    prepareDatabase: (db: Sqlite.Database) => {
      for (const [name, wanted] of PRAGMAS) {
        db.pragma(`${name} = ${wanted}`);
        const got = db.pragma(name, { simple: true });
        // A database in memory has no write-ahead log; all other settings must be accepted.
        if (got !== wanted && !(target.path === ':memory:' && name === 'journal_mode')) {
          throw new DatabaseError(
            `SQLite did not accept ${name}=${wanted} for ${target.path} (it says ${got}).`,
          );
        }
      }
      // A page that changes often is copied into the database once for many commits, and pauses for checkpoints are
      // rare.
      db.pragma('wal_autocheckpoint = 8000');
      // For macOS only: SQLite's own syncs then flush the drive's cache too, as libuv's do.
      db.pragma('fullfsync = 1');
      db.pragma('checkpoint_fullfsync = 1');
      db.pragma('cache_size = -65536');
      db.pragma('temp_store = MEMORY');
      db.pragma('journal_size_limit = 67108864');
    },
  };
}

/** Creates the options of the read-only connection; the file must exist. */
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

/**
 * Opens a file for reading that may be another program's, without leaving new files beside it. If there is no log, it
 * opens the file writable: the last writable connection removes the log when it closes, under SQLite's own locks, and
 * with an empty log the close writes nothing. If there is a log, it opens the file read-only, because the close of a
 * writable connection would write the log into the file; SQLite may then create the index of the log (`-shm`).
 */
export function openForReading(path: string): Sqlite.Database {
  // SQLite finds the log beside the real file, not beside a link to it.
  const file = realPathOf(path);
  const hasLog = ['-wal', '-journal'].some((suffix) => existsSync(file + suffix));
  const db = new Sqlite(file, { readonly: hasLog, fileMustExist: true, timeout: 5_000 });
  db.pragma('query_only = 1');
  return db;
}

/** Converts SQLite's errors of opening to messages about the file; returns others unchanged. */
export function toOpenError(target: SqliteTarget, error: unknown): unknown {
  // Compare the name: the class belongs to the first copy of the driver that the process loaded.
  if ((error as Error | undefined)?.name !== 'SqliteError') return error;
  // SQLite reports an I/O error for a folder.
  if (statSync(target.path, { throwIfNoEntry: false })?.isFile() === false)
    return new DatabaseError(`${target.path} can't be opened: ${NOT_A_FILE}`);
  const { message, code } = error as InstanceType<typeof Sqlite.SqliteError>;
  if (isBusy(error))
    return new DatabaseInUse(
      `${target.path} is locked by another process (${code}): try again when that is done.`,
    );
  if (code === 'SQLITE_READONLY_ROLLBACK')
    return new DatabaseError(
      `${target.path} can't be opened: a change of it was interrupted (${code}). Start and stop the program that wrote it, which rolls it back.`,
    );
  const advice = /^SQLITE_(CANTOPEN|READONLY)/.test(code)
    ? ' The process must be able to write both the file and its folder.'
    : '';
  return new DatabaseError(`${target.path} can't be opened: ${message} (${code}).${advice}`);
}

/**
 * Locks the database against a second process. The lock is one of SQLite, on a file beside the real database file
 * (links are resolved), so that it is released however the process ends.
 * @returns a function that releases the lock; with `startFailed` it also removes a lock file that it has created
 * @throws DatabaseInUse another process uses the file
 * @throws DatabaseError its folder does not exist, or it can't be a database that this process can write
 */
export function lockDatabase(target: SqliteTarget): (startFailed?: boolean) => void {
  if (target.path === ':memory:') return () => undefined;
  const path = checkPath(target.path);
  const lockPath = `${path}-lock`;
  const isNew = !existsSync(lockPath);
  let lock: Sqlite.Database | undefined;
  try {
    lock = new Sqlite(lockPath, { timeout: 0 });
    lock.pragma('journal_mode = MEMORY');
    lock.exec('BEGIN EXCLUSIVE');
  } catch (error) {
    lock?.close();
    if (isBusy(error)) {
      throw new DatabaseInUse(
        `Another process is using ${target.path}. Stop it first: SQLite serves one process.`,
      );
    }
    throw toOpenError(target, error);
  }
  const held = lock;
  return (startFailed = false) => {
    // While the lock is held: a process that waits for it must not lock a deleted file.
    if (startFailed && isNew) rmSync(lockPath, { force: true });
    held.close();
  };
}

/** The number of tries to open a file that another process has open, and the pause between them, in milliseconds. */
const ATTEMPTS = 20;
const ATTEMPT_PAUSE_MS = 50;

/**
 * Checks that no process has the file open under another name, as after a move: SQLite finds the log by the name, so
 * two such processes would overwrite each other's changes. Leaves no file behind.
 * @param path the real path of the file, see {@link checkPath}
 * @throws DatabaseInUse a process has it open
 * @throws DatabaseError it can't be opened
 */
export async function refuseOpenElsewhere(target: SqliteTarget, path: string): Promise<void> {
  // If the index of a log is beside it, the file was last opened under this name: the lock and the generation are
  // enough then.
  if (!existsSync(path) || existsSync(`${path}-shm`)) return;
  for (let attempt = 1; isLocked(target, path); attempt++) {
    if (attempt === ATTEMPTS)
      throw new DatabaseInUse(
        `Another process has ${path} open by another name: it was moved while in use. Stop that process and rename the file ` +
          'to its old name, because the latest changes are in the log beside that name.',
      );
    await sleep(ATTEMPT_PAUSE_MS);
  }
}

/** Whether a process has a file open, under any name. */
function isLocked(target: SqliteTarget, path: string): boolean {
  let db: Sqlite.Database | undefined;
  try {
    db = new Sqlite(path, { timeout: 0 });
    // In this mode the first read locks the file itself, which all its names share, instead of the log's index.
    db.pragma('locking_mode = EXCLUSIVE');
    db.prepare('SELECT count(*) FROM sqlite_master').get();
    return false;
  } catch (error) {
    if (isBusy(error)) return true;
    throw toOpenError(target, error);
  } finally {
    db?.close();
  }
}

const isBusy = (error: unknown): boolean =>
  String((error as { code?: unknown } | null)?.code).startsWith('SQLITE_BUSY');

/**
 * Creates a check that a path still leads to the same file.
 * @param file the file; by default the one that the path leads to now
 * @returns the check
 */
export function watchPath(path: string, { dev, ino }: Stats = statSync(path)): () => boolean {
  return () => {
    const now = statSync(path, { throwIfNoEntry: false });
    return now?.dev === dev && now.ino === ino;
  };
}

const NOT_A_FILE = 'it is not a file.';

/** The first bytes of every SQLite file. */
const MAGIC = 'SQLite format 3\0';

/**
 * Checks that a path can be that of a database, before anything is created beside it.
 * @returns the real path of the file, with links resolved
 * @throws DatabaseError the folder does not exist, or the path is not a file, not a database, not writable, or has
 * several names
 */
export function checkPath(path: string): string {
  const refuse = (problem: string) => new DatabaseError(`${path} can't be opened: ${problem}`);
  const file = realPathOf(path);
  const folder = dirname(file);
  if (!existsSync(folder))
    throw new DatabaseError(`The folder ${folder} of the database does not exist; create it.`);
  const stats = statSync(file, { throwIfNoEntry: false });
  if (stats === undefined) return file;
  if (!stats.isFile()) throw refuse(NOT_A_FILE);
  try {
    for (const each of [file, folder]) accessSync(each, constants.R_OK | constants.W_OK);
  } catch {
    throw refuse('the process must be able to write both the file and its folder.');
  }
  // SQLite finds its log by the file's name: a process that opens it under another name would read and write an old
  // state.
  if (stats.nlink > 1)
    throw refuse('it has several names (hard links), so SQLite would lose data; copy it, and remove one.');
  if (isMountPoint(file))
    throw refuse('it is mounted by itself, so its log would be elsewhere; mount its folder.');
  if (stats.size > 0 && readStart(file, MAGIC.length) !== MAGIC) throw refuse('it is not a database.');
  return file;
}

/** Resolves the links of a path, also if the file does not exist yet. */
function realPathOf(path: string): string {
  if (existsSync(path)) return realpathSync(path);
  if (lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink())
    return realPathOf(resolve(dirname(path), readlinkSync(path)));
  return existsSync(dirname(path)) ? join(realpathSync(dirname(path)), basename(path)) : path;
}

function readStart(path: string, length: number): string {
  const file = openSync(path, 'r');
  try {
    const start = Buffer.alloc(length);
    readSync(file, start, 0, length, 0);
    return start.toString('latin1');
  } finally {
    closeSync(file);
  }
}

/** Whether this path is a mount point; false if the system does not tell. */
function isMountPoint(path: string): boolean {
  try {
    return readFileSync('/proc/self/mountinfo', 'utf8')
      .split('\n')
      .some(
        (line) =>
          line
            .split(' ')[4]
            ?.replace(/\\(\d{3})/g, (_, code) => String.fromCharCode(Number.parseInt(code, 8))) === path,
      );
  } catch {
    return false;
  }
}

/**
 * Takes the next generation of a database, a number in SQLite's `user_version`. Each transaction of a process checks
 * it, and so notices that another process has opened the file for writing since.
 */
export async function takeGeneration(writer: DataSource): Promise<number> {
  await writer.query('BEGIN IMMEDIATE');
  try {
    const [row] = (await writer.query('PRAGMA user_version')) as { user_version: number }[];
    const generation = ((row?.user_version ?? 0) % 0x7fff_ffff) + 1;
    await writer.query(`PRAGMA user_version = ${generation}`);
    await writer.query('COMMIT');
    return generation;
  } catch (error) {
    await writer.query('ROLLBACK').catch(() => undefined);
    throw error;
  }
}

/**
 * Lets the write queue sync commits and run checkpoints. First copies the whole log into the database file and syncs
 * it, because an earlier process may have ended after a failed sync. Pages that another program's open snapshot needs
 * stay in the log until a later checkpoint.
 */
export async function letQueueSyncLog(writer: DataSource): Promise<void> {
  // From now on the queue waits for other programs: SQLite's busy timeout would block the event loop.
  await writer.query('PRAGMA busy_timeout = 0');
  await writer.query('PRAGMA wal_checkpoint(TRUNCATE)');
  await writer.query('PRAGMA wal_autocheckpoint = 0');
  // A commit is written and not synced, a checkpoint syncs both files: https://www.sqlite.org/pragma.html#pragma_synchronous
  await writer.query('PRAGMA synchronous = NORMAL');
}
