import {
  closeSync,
  existsSync,
  fsyncSync,
  openSync,
  readSync,
  realpathSync,
  rmSync,
  type Stats,
  statSync,
} from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import Sqlite from 'better-sqlite3';
import { adminTokenFile, type Settings, type SqliteTarget, serverFile, signingKeysFile } from '../settings';
import { DatabaseError } from './database-error';
import { refuseForeign } from './foreign';
import { identities, quoted } from './postgres';
import { putInPlace } from './private-file';
import { toOpenError } from './sqlite';
import type { Statements, Transaction } from './statements';

/** "dcpb" as SQLite's application_id: the file is a backup, and nobody has started on it yet. */
const BACKUP = 0x64637062;

/** Where SQLite's file header holds the application_id, in bytes. */
const APPLICATION_ID_AT = 68;

const PAGES_AT_ONCE = 2_048;

/** Ids go on at least this far beyond the last one in the backup. */
const MIN_GAP = 2 ** 32;

/** No database gives ids faster than this, in ids per millisecond; below 2^53 until far beyond the year 2200. */
const IDS_PER_MS = 64;
const IDS_SINCE = Date.UTC(2026, 0, 1);

/** A backup that was written. */
export interface Backup {
  readonly file: string;
  readonly bytes: number;
}

/**
 * Copies the database as it is at one instant, whether or not a process serves it meanwhile. The copy is checked, is
 * one file that only its owner can read, and appears under its name when it is whole and on the disk.
 * @param options.replace whether a backup that is there may be replaced; any other file never is
 * @param options.signal ends the copying; nothing is left behind
 * @param options.settings name other files that the name must not be one of
 * @throws DatabaseError there is no database, the file is there already and may not be replaced, or the copy is damaged
 */
export async function backUp(
  target: SqliteTarget,
  file: string,
  options: { replace: boolean; signal: AbortSignal; settings: Pick<Settings, 'signingKeyFile'> },
): Promise<Backup> {
  const path = resolve(file);
  if (!existsSync(target.path))
    throw new DatabaseError(
      `There is no database ${target.path}; CONTROL_PLANE_DATABASE_URL says which it is.`,
    );
  refuseForeign(target);
  if (isInUse(target, options.settings, path))
    throw new DatabaseError(`${file} is one of the server's own files; name another.`);
  if (existsSync(path) && !options.replace)
    throw new DatabaseError(`${file} is there already; name another file, or replace it with --force.`);
  // Whatever it is, somebody may need it: a key, a database that is served, the notes of last night.
  if (existsSync(path) && !holdsBackup(path))
    throw new DatabaseError(
      `${file} is not a backup that nobody has started on, and --force replaces nothing else; name another file.`,
    );
  const unfinished = `${path}.new-${process.pid}`;
  try {
    // Made here and not by SQLite, so that nobody else can read it at any time.
    closeSync(openSync(unfinished, 'wx', 0o600));
    await copy(target, unfinished, options.signal);
    finish(unfinished);
    options.signal.throwIfAborted();
    const { size } = statSync(unfinished);
    putInPlace(unfinished, path);
    return { file: path, bytes: size };
  } catch (error) {
    if (error instanceof DatabaseError || options.signal.aborted) throw error;
    if (!statSync(target.path).isFile()) throw toOpenError(target, error);
    throw new DatabaseError(`The backup could not be written: ${(error as Error).message}`);
  } finally {
    for (const suffix of ['', '-journal', '-wal', '-shm']) rmSync(unfinished + suffix, { force: true });
  }
}

async function copy(target: SqliteTarget, to: string, signal: AbortSignal): Promise<void> {
  const source = new Sqlite(target.path, { readonly: true, timeout: 5_000 });
  try {
    // One read transaction around all steps: without it each commit of a server would begin the copy again.
    source.exec('BEGIN');
    source.prepare('SELECT count(*) FROM sqlite_schema').get();
    await source.backup(to, {
      progress: () => {
        signal.throwIfAborted();
        return PAGES_AT_ONCE;
      },
    });
  } finally {
    source.close();
  }
}

/** Checks the copy, marks it as one, and sees that it is on the disk. */
function finish(path: string): void {
  const copied = new Sqlite(path, { fileMustExist: true });
  try {
    // A file that needs no log beside it, so that it can be moved about alone. The server switches back by itself.
    copied.pragma('journal_mode = DELETE');
    const verdict = copied.pragma('integrity_check(1)', { simple: true });
    if (verdict !== 'ok')
      throw new DatabaseError(
        `The copy is damaged, and so the database may be (${verdict}); see control-plane doctor.`,
      );
    copied.pragma(`application_id = ${BACKUP}`);
  } finally {
    copied.close();
  }
  const file = openSync(path, 'r+');
  try {
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
}

/**
 * Whether a backup of this name would take the place of something that the server needs, by whatever name the two are
 * called: also of a file that is not there yet.
 */
function isInUse(
  target: SqliteTarget,
  { signingKeyFile }: Pick<Settings, 'signingKeyFile'>,
  file: string,
): boolean {
  const used = ['', '-wal', '-shm', '-journal', '-lock', '-reserve'].map((suffix) => target.path + suffix);
  used.push(
    adminTokenFile(target),
    serverFile(target),
    signingKeysFile({ database: target, signingKeyFile }),
  );
  used.push(signingKeysFile({ database: target, signingKeyFile: undefined }));
  const [named, itself] = [realPath(file), statusOf(file)];
  return used.some((path) => {
    const other = statusOf(path);
    const sameFile = itself && other && itself.dev === other.dev && itself.ino === other.ino;
    return sameFile || realPath(path) === named;
  });
}

const statusOf = (path: string): Stats | undefined => statSync(path, { throwIfNoEntry: false });

/** Without the links on the way to it; of a file that is not there, those of its folder. */
function realPath(path: string): string {
  if (existsSync(path)) return realpathSync(path);
  const folder = dirname(resolve(path));
  return join(existsSync(folder) ? realpathSync(folder) : folder, basename(path));
}

/** Whether a file is a backup that nobody has started on, by its header. */
function holdsBackup(path: string): boolean {
  if (!statusOf(path)?.isFile()) return false;
  const header = Buffer.alloc(100);
  const file = openSync(path, 'r');
  try {
    const read = readSync(file, header, 0, header.length, 0);
    return (
      read === header.length &&
      header.toString('latin1', 0, 16) === 'SQLite format 3\0' &&
      header.readUInt32BE(APPLICATION_ID_AT) === BACKUP
    );
  } finally {
    closeSync(file);
  }
}

/** Whether the database is a backup that nobody has started on yet. */
export async function isBackup(statements: Statements): Promise<boolean> {
  if (statements.dialect.name !== 'sqlite') return false;
  const row = await statements.first<{ application_id: number }>('PRAGMA application_id');
  return row?.application_id === BACKUP;
}

/**
 * Has every table's ids go on beyond all that can have been given since the data was current: agents may still hold such
 * leases. The gap grows with time, so that two starts on copies of one backup do not give the same ids either. Takes the
 * mark of a backup off.
 * @returns the ids after which each table goes on
 */
export async function passOverIds(tx: Transaction, now: number): Promise<Record<string, number>> {
  const beyond = (last: string) =>
    tx.dialect.greatest(`${last} + ${MIN_GAP}`, `${(now - IDS_SINCE) * IDS_PER_MS}`);
  if (tx.dialect.name === 'postgres') {
    const after: Record<string, number> = {};
    for (const { table, column, sequence, wide } of await identities(tx)) {
      // Of the migrations' own table; nobody outside knows its ids.
      if (!wide) continue;
      const last = `coalesce(greatest((SELECT max(${quoted(column)}) FROM ${quoted(table)}), (SELECT last_value FROM ${sequence})), 0)`;
      const row = await tx.first<{ seq: number }>(`SELECT setval($1, ${beyond(last)}) AS seq`, sequence);
      after[table] = row?.seq as number;
    }
    return after;
  }
  await tx.run(
    `INSERT INTO sqlite_sequence (name, seq) SELECT name, 0 FROM sqlite_schema
     WHERE type = 'table' AND sql LIKE '%AUTOINCREMENT%' AND name NOT IN (SELECT name FROM sqlite_sequence)`,
  );
  const rows = await tx.rows<{ name: string; seq: number }>(
    `UPDATE sqlite_sequence SET seq = ${beyond('seq')} RETURNING name, seq`,
  );
  await tx.run('PRAGMA application_id = 0');
  return Object.fromEntries(rows.map(({ name, seq }) => [name, seq]));
}

/**
 * Has the ids of tables go on after those that were given elsewhere. Never goes back.
 * @param last by the table's name
 * @param isRehearsal whether only the answer is wanted: PostgreSQL does not take this back with its transaction
 * @returns the ids after which these tables go on
 */
export async function goOnAfter(
  tx: Transaction,
  last: Readonly<Record<string, number>>,
  isRehearsal: boolean,
): Promise<Record<string, number>> {
  const after: Record<string, number> = {};
  for (const [table, given] of Object.entries(last)) {
    const known =
      (await tx.first<{ id: number | null }>(`SELECT ${tx.dialect.lastId(table, 'id')} AS id`))?.id ?? 0;
    after[table] = Math.max(known, given);
    if (given <= known || isRehearsal) continue;
    if (tx.dialect.name === 'postgres') {
      const identity = (await identities(tx)).find((one) => one.table === table);
      await tx.run('SELECT setval($1, $2)', identity?.sequence as string, given);
    } else {
      await tx.run('DELETE FROM sqlite_sequence WHERE name = $1', table);
      await tx.run('INSERT INTO sqlite_sequence (name, seq) VALUES ($1, $2)', table, given);
    }
  }
  return after;
}
