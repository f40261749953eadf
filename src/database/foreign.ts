import { statSync } from 'node:fs';
import type Sqlite from 'better-sqlite3';
import type { DataSource } from 'typeorm';
import type { SqliteTarget } from '../settings';
import { ForeignDatabase } from './database-error';
import { openForReading, toOpenError } from './sqlite';

/** The name of the first migration of every database of this program. */
const FIRST_MIGRATION = 'Initial1764000000000';

/** Those of its tables that other programs may have under the same names. */
const FIRST_TABLES = ['agents', 'tasks', 'leases', 'audit_log', 'task_counts'];

/** The most tables that a message names. */
const MAX_NAMED = 5;

/**
 * Checks that a SQLite file, if it exists, is a database of this program or empty, before anything is written to it or
 * beside it: no lock, no log, no table.
 * @throws ForeignDatabase it is another program's; the message says so if it is the original control plane's
 */
export function refuseForeign(target: SqliteTarget): void {
  const { path } = target;
  const stats = path === ':memory:' ? undefined : statSync(path, { throwIfNoEntry: false });
  // lockDatabase() reports a path that is not a file.
  if (!stats?.isFile() || stats.size === 0) return;
  let file: Sqlite.Database | undefined;
  try {
    file = openForReading(path);
    const tables = tablesOf(file);
    if (tables.length === 0 || isOurs(file, tables)) return;
    throw new ForeignDatabase(
      isOriginal(file)
        ? `${path} is the database of the original control plane and not of this program: name a new one in ` +
            `CONTROL_PLANE_DATABASE_URL, and import its agents and queued tasks with control-plane import-original ${path}`
        : `${path} is not a database of this program (it has ${named(tables)}): name another one in ` +
            'CONTROL_PLANE_DATABASE_URL',
    );
  } catch (error) {
    throw toOpenError(target, error);
  } finally {
    file?.close();
  }
}

/**
 * Checks that tables with the names of the first migration's, or of `migrations`, are not another program's. Other
 * tables are allowed, because programs may share a PostgreSQL database.
 * @param readApplied reads the names in the table `migrations`; undefined if the table does not exist
 * @throws ForeignDatabase they belong to another program
 */
export async function refuseForeignTables(
  source: DataSource,
  readApplied: () => Promise<readonly string[] | undefined>,
): Promise<void> {
  const found: string[] = [];
  const runner = source.createQueryRunner();
  try {
    for (const table of FIRST_TABLES) if (await runner.hasTable(table)) found.push(table);
  } finally {
    await runner.release();
  }
  // Read after the tables were looked up: another replica may be creating them at this moment.
  const applied = await readApplied();
  if (applied?.includes(FIRST_MIGRATION)) return;
  if (applied !== undefined && applied.length > 0) found.unshift('migrations');
  if (found.length > 0)
    throw new ForeignDatabase(
      `The database has tables of another program (${named(found)}), which have the names of this program's: ` +
        'create a separate database',
    );
}

/** Whether a SQLite file is a database of the original control plane, by its tables and columns. */
export function isOriginal(file: Sqlite.Database): boolean {
  return Object.entries(ORIGINAL).every(([table, columns]) => {
    const there = file.prepare('SELECT name FROM pragma_table_info(?)').pluck().all(table);
    return columns.every((column) => there.includes(column));
  });
}

/** The tables and columns of the original's schema that are read. */
export const ORIGINAL: Readonly<Record<string, readonly string[]>> = {
  sequences: ['name', 'value'],
  agents: ['id', 'hostname', 'auth_token', 'created_at', 'last_heartbeat', 'disabled', 'revoked'],
  tasks: ['id', 'kind', 'spec', 'status'],
};

function isOurs(file: Sqlite.Database, tables: readonly string[]): boolean {
  if (!tables.includes('migrations')) return false;
  const columns = file.prepare(`SELECT name FROM pragma_table_info('migrations')`).pluck().all();
  if (!columns.includes('name')) return false;
  const applied = file.prepare('SELECT name FROM migrations').pluck().all();
  // A first start that was aborted before the first migration leaves the empty table.
  return applied.includes(FIRST_MIGRATION) || (applied.length === 0 && tables.length === 1);
}

function tablesOf(file: Sqlite.Database): string[] {
  return file
    .prepare(
      `SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name`,
    )
    .pluck()
    .all() as string[];
}

function named(tables: readonly string[]): string {
  const rest = tables.length > MAX_NAMED ? ', ...' : '';
  return `${tables.length === 1 ? 'a table' : 'tables'} ${tables.slice(0, MAX_NAMED).join(', ')}${rest}`;
}
