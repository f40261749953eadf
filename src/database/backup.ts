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
import { moveIntoPlace } from './private-file';
import { toOpenError } from './sqlite';
import type { Statements, Transaction } from './statements';

/** "dcpb" as SQLite's application_id: the file is a backup that no server was started on yet. */
const BACKUP = 0x64637062;

/** The offset of the application_id in SQLite's file header, in bytes. */
const APPLICATION_ID_AT = 68;

const PAGES_AT_ONCE = 2_048;

/** The smallest gap between the last id in the backup and the next one. */
const MIN_ID_GAP = 2 ** 32;

/**
 * The greatest rate at which a database assigns ids, in ids per millisecond. Ids stay below 2^53 far beyond the year
 * 2200.
 */
const IDS_PER_MS = 64;
const ID_EPOCH = Date.UTC(2026, 0, 1);

/** A backup that was written. */
export interface Backup {
  readonly file: string;
  readonly bytes: number;
}

/**
 * Copies the database as it is at one instant, whether or not a server uses it meanwhile. The copy is checked, is one
 * file that only its owner can read, and appears under its name when it is complete and on the disk.
 * @param options.replace whether to replace an existing backup; any other file is never replaced
 * @param options.signal aborts the copying; no file stays behind
 * @param options.settings name other files of the server, which `file` must not be
 * @throws DatabaseError there is no database, the file exists and may not be replaced, or the copy is damaged
 */
export async function backUp(
  target: SqliteTarget,
  file: string,
  options: { replace: boolean; signal: AbortSignal; settings: Pick<Settings, 'signingKeyFile'> },
): Promise<Backup> {
  const path = resolve(file);
  if (!existsSync(target.path))
    throw new DatabaseError(
      `There is no database ${target.path}; CONTROL_PLANE_DATABASE_URL names the database.`,
    );
  refuseForeign(target);
  if (isInUse(target, options.settings, path))
    throw new DatabaseError(`${file} is one of the server's own files; name another.`);
  if (existsSync(path) && !options.replace)
    throw new DatabaseError(`${file} already exists; name another file, or replace it with --force.`);
  // Any other file may be needed: a key, a live database, somebody's notes.
  if (existsSync(path) && !isBackupFile(path))
    throw new DatabaseError(
      `${file} is not a backup, or a server was started on it, so --force does not replace it; name another file.`,
    );
  const unfinished = `${path}.new-${process.pid}`;
  try {
    // Created here and not by SQLite, so that other users can never read it.
    closeSync(openSync(unfinished, 'wx', 0o600));
    await copy(target, unfinished, options.signal);
    finish(unfinished);
    options.signal.throwIfAborted();
    const { size } = statSync(unfinished);
    moveIntoPlace(unfinished, path);
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
    // One read transaction around all steps: without it each commit of a server would restart the copy.
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

/** Checks the copy, marks it as a backup, and syncs it to the disk. */
function finish(path: string): void {
  const copied = new Sqlite(path, { fileMustExist: true });
  try {
    // Without a log beside it, so that the file can be moved alone. The server switches back at start.
    copied.pragma('journal_mode = DELETE');
    const verdict = copied.pragma('integrity_check(1)', { simple: true });
    if (verdict !== 'ok')
      throw new DatabaseError(
        `The copy is damaged, so the database may be damaged too (${verdict}); see control-plane doctor.`,
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
 * Whether a backup with this name would replace a file of the server, also under another name, and also one that does
 * not exist yet.
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

/** Resolves the links of a path; if the file does not exist, those of its folder. */
function realPath(path: string): string {
  if (existsSync(path)) return realpathSync(path);
  const folder = dirname(resolve(path));
  return join(existsSync(folder) ? realpathSync(folder) : folder, basename(path));
}

/** Whether a file is a backup that no server was started on, by its header. */
function isBackupFile(path: string): boolean {
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

/** Whether the database is a backup that no server was started on yet. */
export async function isBackup(statements: Statements): Promise<boolean> {
  if (statements.dialect.name !== 'sqlite') return false;
  const row = await statements.first<{ application_id: number }>('PRAGMA application_id');
  return row?.application_id === BACKUP;
}

/**
 * Raises every table's id sequence above any id that can have been assigned since the data was current, because agents
 * may still hold such leases. The gap grows with time, so that two starts on copies of one backup do not assign the
 * same ids either. Clears the mark of a backup.
 * @returns the last id of each table: its next one is greater
 */
export async function skipIds(tx: Transaction, now: number): Promise<Record<string, number>> {
  const beyond = (last: string) =>
    tx.dialect.greatest(`${last} + ${MIN_ID_GAP}`, `${(now - ID_EPOCH) * IDS_PER_MS}`);
  if (tx.dialect.name === 'postgres') {
    const after: Record<string, number> = {};
    for (const { table, column, sequence, wide } of await identities(tx)) {
      // The migrations' own table: its ids are internal.
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
    // The tables of migrations, the program's and those of extensions: their ids are internal.
    `UPDATE sqlite_sequence SET seq = ${beyond('seq')} WHERE name <> 'migrations' AND name NOT GLOB 'migrations_*' RETURNING name, seq`,
  );
  await tx.run('PRAGMA application_id = 0');
  return Object.fromEntries(rows.map(({ name, seq }) => [name, seq]));
}

/**
 * Raises the id sequences of tables to ids that were assigned elsewhere. Never lowers them.
 * @param last by the table's name
 * @param isDryRun whether only to return the result: PostgreSQL does not roll sequences back
 * @returns the last id of each of these tables: its next one is greater
 */
export async function continueIdsAfter(
  tx: Transaction,
  last: Readonly<Record<string, number>>,
  isDryRun: boolean,
): Promise<Record<string, number>> {
  const after: Record<string, number> = {};
  for (const [table, given] of Object.entries(last)) {
    const known =
      (await tx.first<{ id: number | null }>(`SELECT ${tx.dialect.lastId(table, 'id')} AS id`))?.id ?? 0;
    after[table] = Math.max(known, given);
    if (given <= known || isDryRun) continue;
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
