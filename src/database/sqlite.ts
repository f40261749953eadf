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

/** What the writer's connection must have, and what SQLite answers when it has it. */
const PRAGMAS = [
  ['journal_mode', 'wal'],
  // 2 is FULL: the log is on the disk before a commit returns, until the write queue syncs it: leaveLogToQueue().
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
      // Only macOS knows these: SQLite's own syncs empty the drive's cache there too, as libuv's do.
      db.pragma('fullfsync = 1');
      db.pragma('checkpoint_fullfsync = 1');
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

/**
 * Opens a file to read it that may be another program's, and leaves no file beside it that was not there: the last
 * connection that may write takes the log away when it closes, under SQLite's own locks, and one that may only read leaves
 * it. With nothing in the log such a close writes nothing. If there is a log already, only reading is safe: the close would
 * write what is in it into the file. The index beside a log (`-shm`) may be made then.
 */
export function openToRead(path: string): Sqlite.Database {
  // SQLite finds the log beside the file itself, whatever links lead to it.
  const file = realPathOf(path);
  const hasLog = ['-wal', '-journal'].some((suffix) => existsSync(file + suffix));
  const db = new Sqlite(file, { readonly: hasLog, fileMustExist: true, timeout: 5_000 });
  db.pragma('query_only = 1');
  return db;
}

/** What to tell of an error at opening: SQLite's own is about the file, anything else is passed on. */
export function toOpenError(target: SqliteTarget, error: unknown): unknown {
  // By its name: the class is the one of the first copy of the driver that the process loaded.
  if ((error as Error | undefined)?.name !== 'SqliteError') return error;
  // SQLite calls a folder a failure of the disk.
  if (statSync(target.path, { throwIfNoEntry: false })?.isFile() === false)
    return new DatabaseError(`${target.path} can't be opened: ${NOT_A_FILE}`);
  const { message, code } = error as InstanceType<typeof Sqlite.SqliteError>;
  if (isBusy(error))
    return new DatabaseInUse(
      `${target.path} is locked by another process (${code}): try again when that is done.`,
    );
  if (code === 'SQLITE_READONLY_ROLLBACK')
    return new DatabaseError(
      `${target.path} can't be opened: a change of it was broken off (${code}). Start and stop the program that wrote it, which undoes that.`,
    );
  const advice = /^SQLITE_(CANTOPEN|READONLY)/.test(code)
    ? ' The process must be able to write both the file and its folder.'
    : '';
  return new DatabaseError(`${target.path} can't be opened: ${message} (${code}).${advice}`);
}

/**
 * Keeps a second process off the file. The lock is SQLite's own, on a file beside the database, so that it goes with
 * the process however that ends; beside the file itself, whatever links lead to it.
 * @returns what gives the lock back; if told that nothing came of it, without leaving a file behind
 * @throws DatabaseInUse another process has the file
 * @throws DatabaseError its folder is not there, or it can't be a database that this process writes
 */
export function lockDatabase(target: SqliteTarget): (nothingCameOfIt?: boolean) => void {
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
  return (nothingCameOfIt = false) => {
    // While the lock is held: a process that waits for it must not get one on a file without a name.
    if (nothingCameOfIt && isNew) rmSync(lockPath, { force: true });
    held.close();
  };
}

/** How often, and after how many milliseconds each, a file is tried again that somebody has open. */
const ATTEMPTS = 20;
const ATTEMPT_PAUSE_MS = 50;

/**
 * Makes sure that nobody has a file open by another name, as after a move: SQLite finds the log by the name, so two such
 * processes would each write over what the other stored. Leaves nothing beside the file.
 * @param path the file's own path, see {@link checkPath}
 * @throws DatabaseInUse a process has it open
 * @throws DatabaseError it can't be opened
 */
export async function refuseOpenElsewhere(target: SqliteTarget, path: string): Promise<void> {
  // With the index of a log beside it the file was opened by this name, last or still: then the lock and the generation tell.
  if (!existsSync(path) || existsSync(`${path}-shm`)) return;
  for (let attempt = 1; isLocked(target, path); attempt++) {
    if (attempt === ATTEMPTS)
      throw new DatabaseInUse(
        `Another process has ${path} open by another name: it was moved while in use. Stop that process and give the file ` +
          'its old name back, since what was stored last is in the log beside that.',
      );
    await sleep(ATTEMPT_PAUSE_MS);
  }
}

/** Whether some process has a file open, by any name. */
function isLocked(target: SqliteTarget, path: string): boolean {
  let db: Sqlite.Database | undefined;
  try {
    db = new Sqlite(path, { timeout: 0 });
    // In this mode the first read locks the file itself, which all its names share, in place of the log's index.
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
 * Watches whether a path still leads to a file.
 * @param file the one that it leads to now, if left out
 * @returns what tells whether it does
 */
export function watchName(path: string, { dev, ino }: Stats = statSync(path)): () => boolean {
  return () => {
    const now = statSync(path, { throwIfNoEntry: false });
    return now?.dev === dev && now.ino === ino;
  };
}

const NOT_A_FILE = 'it is not a file.';

/** What every SQLite file begins with. */
const MAGIC = 'SQLite format 3\0';

/**
 * Ensures that a path can be that of a database, before anything is made beside it.
 * @returns the file's own path, whatever links lead to it
 * @throws DatabaseError it can't: no folder, no file, no database, not writable, or with several names
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
  // SQLite finds its log by the file's name: a process that opens it by another one reads a state that is not current, and writes it.
  if (stats.nlink > 1)
    throw refuse('it has several names (hard links), and SQLite loses data then; copy it, and remove one.');
  if (isMountPoint(file))
    throw refuse('it is mounted by itself, so its log would be elsewhere; mount its folder.');
  if (stats.size > 0 && readStart(file, MAGIC.length) !== MAGIC) throw refuse('it is not a database.');
  return file;
}

/** The path of the file that a path leads to, also if there is none yet. */
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

/** Whether something is mounted at this very path, as far as the system tells. */
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
 * Takes the next generation of a database: the number, kept as SQLite's `user_version`, by which a process knows in each
 * of its transactions that no other one has opened the file to write since.
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
 * Leaves it to the write queue to sync commits and to run checkpoints. First brings all that is in the log into the
 * database file and onto the disk: a process before this one may have ended because it could not sync it. While another
 * program reads an older state, what that needs stays in the log, and is copied by a later checkpoint.
 */
export async function leaveLogToQueue(writer: DataSource): Promise<void> {
  // From here on the queue waits for other programs, for SQLite's own waiting would block the event loop.
  await writer.query('PRAGMA busy_timeout = 0');
  await writer.query('PRAGMA wal_checkpoint(TRUNCATE)');
  await writer.query('PRAGMA wal_autocheckpoint = 0');
  // A commit is written and not synced, a checkpoint syncs both files: https://www.sqlite.org/pragma.html#pragma_synchronous
  await writer.query('PRAGMA synchronous = NORMAL');
}
