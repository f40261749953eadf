import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import Sqlite from 'better-sqlite3';
import { type Extension, migrationsTable } from '../extensions';
import type { PostgresTarget, SqliteTarget } from '../settings';
import { isBackup } from './backup';
import { DatabaseError } from './database-error';
import { refuseForeign } from './foreign';
import { IS_OUR_TABLE, identities, quoted } from './postgres';
import { PostgresDatabase } from './postgres-database';
import { checkPath, lockDatabase } from './sqlite';
import { SqliteDatabase } from './sqlite-database';
import type { Statements, Transaction } from './statements';

/** The most rows, and characters, of one statement: they bound the memory of a transfer. */
const MAX_ROWS = 1_000;
const MAX_CHARACTERS = 4 * 1024 * 1024;

/** Types whose values are equal on both databases, or can be converted (see {@link canonical}). */
const TYPES = ['bigint', 'integer', 'smallint', 'text', 'double precision', 'boolean', 'bytea'];

/** Rows that migrations insert, as conditions that hold until the program uses the table. */
const UNTOUCHED: Readonly<Record<string, string>> = {
  audit_head: 'last_id = 0',
  service_continuity: 'last_seen_at = 0',
};

/** A copied table: the figures are equal on both sides. */
export interface TransferredTable {
  readonly table: string;
  readonly rows: number;
  /** Of the table's rows, independent of their order. */
  readonly checksum: string;
}

/** The result of a transfer. */
export interface Transfer {
  readonly tables: readonly TransferredTable[];
  /** Whether the source was a backup that no server was started on. */
  readonly wasBackup: boolean;
}

interface Table {
  readonly name: string;
  /** Names and types in the target. */
  readonly columns: readonly (readonly [name: string, type: string])[];
}

/**
 * Copies a SQLite database that no process uses into an empty PostgreSQL database: every table, in one transaction,
 * which also compares the copy. Ids continue after the last one that the source has assigned. The source is only read.
 * @param extensions those of the source's server: their tables are copied too
 * @param finish runs at the end of the transaction
 * @throws DatabaseInUse a process uses the source
 * @throws DatabaseError a database can't be used, or the copy differs; the target has no rows then
 */
export async function transfer(
  from: SqliteTarget,
  to: PostgresTarget,
  extensions: readonly Extension[],
  finish: (tx: Transaction, database: PostgresDatabase, done: Transfer) => Promise<void>,
): Promise<Transfer> {
  if (!existsSync(from.path)) throw new DatabaseError(`There is no database ${from.path}.`);
  checkPath(from.path);
  refuseForeign(from);
  const unlock = lockDatabase(from);
  let source: Sqlite.Database | undefined;
  let database: PostgresDatabase | undefined;
  try {
    const wasBackup = await SqliteDatabase.inspect(from, isBackup);
    source = new Sqlite(from.path, { readonly: true });
    // Before the migrations, so that a database of another program is not changed.
    const expected = tablesOf(source);
    const before = await PostgresDatabase.inspect(to, (statements) => refuseNonEmpty(statements, expected));
    database = await PostgresDatabase.open(
      to,
      { migrateOnStart: true, poolSize: 2, limited: false },
      [],
      extensions,
    );
    const [opened, target] = [source, database];
    return await target.write(async (tx) => {
      const tables = await matchTables(opened, tx, extensions);
      await tx.run(
        `LOCK TABLE ${tables.map(({ name }) => quoted(name)).join(', ')} IN ACCESS EXCLUSIVE MODE`,
      );
      // If there was no table before, all rows are from migrations, unless a server was started on it meanwhile.
      await refuseNonEmpty(tx, expected, before === 0 ? ['audit_head'] : expected);
      for (const { name } of tables.toReversed()) await tx.run(`DELETE FROM ${quoted(name)}`);
      const copied: TransferredTable[] = [];
      for (const table of tables) copied.push(await copyTable(opened, tx, table));
      for (const [i, table] of tables.entries()) await verifyTable(tx, table, copied[i] as TransferredTable);
      await continueIdsAfter(opened, tx);
      const done = { tables: copied, wasBackup };
      await finish(tx, target, done);
      // Without this the first queries would be planned as for empty tables.
      for (const { name } of tables) await tx.run(`ANALYZE ${quoted(name)}`);
      return done;
    });
  } catch (error) {
    throw error instanceof DatabaseError ? error : failed(error);
  } finally {
    await database?.close();
    source?.close();
    unlock();
  }
}

function failed(error: unknown): DatabaseError {
  const { message, cause } = error as Error;
  const reason = cause instanceof Error ? cause.message : message;
  return new DatabaseError(
    `The transfer failed: ${reason}. It is all or nothing: if the connection was lost at the end, ` +
      'repeat the command, which says whether the target is empty.',
    { cause: error },
  );
}

const isMigrations = (table: string): boolean => /^migrations(_|$)/.test(table);

function tablesOf(source: Sqlite.Database): string[] {
  return source
    .prepare(`SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'`)
    .pluck()
    .all() as string[];
}

/**
 * Checks that the target is empty.
 * @param expected the tables that it may have
 * @param unused those of them that must have no rows
 * @returns the number of its tables
 * @throws DatabaseError it has other tables, or rows
 */
async function refuseNonEmpty(
  target: Statements,
  expected: readonly string[],
  unused: readonly string[] = expected,
): Promise<number> {
  const rows = await target.rows<{ name: string }>(
    `SELECT relname AS name FROM pg_class WHERE ${IS_OUR_TABLE}`,
  );
  const there = rows.map(({ name }) => name);
  const found = there.filter((name) => !isMigrations(name) && !expected.includes(name));
  for (const name of there.filter((each) => !isMigrations(each) && unused.includes(each))) {
    const untouched = UNTOUCHED[name] ?? 'false';
    if (await target.first(`SELECT 1 FROM ${quoted(name)} WHERE NOT (${untouched}) LIMIT 1`))
      found.push(name);
  }
  if (found.length > 0)
    throw new DatabaseError(
      `The target is not empty (${found.sort().slice(0, 5).join(', ')}${found.length > 5 ? ', ...' : ''}); ` +
        'create a new database for the transfer. Nothing was changed.',
    );
  return there.length;
}

/**
 * Lists the tables to copy, referenced tables first.
 * @throws DatabaseError the databases do not have the same migrations, tables and columns
 */
async function matchTables(
  source: Sqlite.Database,
  target: Statements,
  extensions: readonly Extension[],
): Promise<Table[]> {
  const columns = await target.rows<{ name: string; column: string; type: string }>(
    `SELECT relname AS name, attname AS "column", format_type(atttypid, atttypmod) AS type
     FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
     WHERE ${IS_OUR_TABLE} AND attgenerated = ''
     ORDER BY relname, attnum`,
  );
  const theirs = Map.groupBy(columns, ({ name }) => name);
  const ours = tablesOf(source);
  const [unknown, missing] = [
    ours.filter((name) => !theirs.has(name)),
    [...theirs.keys()].filter((name) => !ours.includes(name)),
  ];
  if (unknown.length > 0)
    throw new DatabaseError(
      `The source has tables that would be left behind: ${unknown.join(', ')}. ` +
        'Name the extensions that they belong to in CONTROL_PLANE_EXTENSIONS, as for its server; drop those that are not needed.',
    );
  if (missing.length > 0)
    throw new DatabaseError(
      `The source lacks tables of this version: ${missing.join(', ')}. Migrate it first, with the same CONTROL_PLANE_EXTENSIONS.`,
    );
  for (const name of ['migrations', ...extensions.map((extension) => migrationsTable(extension.name))].filter(
    (each) => theirs.has(each),
  )) {
    const applied = source
      .prepare(`SELECT name FROM ${quoted(name)} ORDER BY name`)
      .pluck()
      .all();
    const wanted = await target.rows<{ name: string }>(`SELECT name FROM ${quoted(name)}`);
    if (String(applied) !== String(wanted.map((row) => row.name).sort()))
      throw new DatabaseError(
        'The source was not written by this version. Migrate it first: control-plane migrate.',
      );
  }
  const tables = ours
    .filter((name) => !isMigrations(name))
    .map((name) => {
      const wanted = (theirs.get(name) ?? []).map(({ column, type }) => [column, type] as const);
      const have = source.prepare('SELECT name FROM pragma_table_info(?)').pluck().all(name) as string[];
      const differing = [
        ...have.filter((column) => !wanted.some(([other]) => other === column)),
        ...wanted
          .filter(([column, type]) => !have.includes(column) || !TYPES.includes(type))
          .map(([column]) => column),
      ];
      if (differing.length > 0)
        throw new DatabaseError(
          `Columns of ${name} can't be copied to the other database: ${differing.join(', ')}.`,
        );
      return { name, columns: wanted };
    });
  return inOrder(source, tables);
}

/** Sorts tables: referenced ones before those that refer to them. */
function inOrder(source: Sqlite.Database, tables: readonly Table[]): Table[] {
  const sorted = new Set<Table>();
  const visit = (table: Table, path: readonly Table[]): void => {
    if (sorted.has(table) || path.includes(table)) return;
    const parents = source.prepare('SELECT "table" FROM pragma_foreign_key_list(?)').pluck().all(table.name);
    for (const parent of tables) if (parents.includes(parent.name)) visit(parent, [...path, table]);
    sorted.add(table);
  };
  for (const table of tables) visit(table, []);
  return [...sorted];
}

async function copyTable(
  source: Sqlite.Database,
  tx: Transaction,
  { name, columns }: Table,
): Promise<TransferredTable> {
  const names = columns.map(([column]) => quoted(column)).join(', ');
  const types = columns.map(([column, type]) => `${quoted(column)} ${type}`).join(', ');
  const insert = `INSERT INTO ${quoted(name)} (${names}) SELECT ${names} FROM json_to_recordset($1::json) AS row(${types})`;
  const digest = new TableDigest();
  let batch: string[] = [];
  let characters = 0;
  const send = async () => {
    if (batch.length > 0) await tx.run(insert, `[${batch.join(',')}]`);
    batch = [];
    characters = 0;
  };
  // A scan of the whole table is in the order of ids.
  const rows = source
    .prepare(`SELECT ${names} FROM ${quoted(name)}`)
    .raw()
    .iterate() as IterableIterator<unknown[]>;
  for (const values of rows) {
    const row = values.map(canonical);
    for (const [i, value] of row.entries())
      if (typeof value === 'string' && value.includes('\0'))
        throw new DatabaseError(
          `${name}.${columns[i]?.[0]} holds the character U+0000, which PostgreSQL can't store; the row is ${JSON.stringify(row[0])}.`,
        );
    digest.add(row);
    const text = JSON.stringify(Object.fromEntries(columns.map(([column], i) => [column, row[i]])));
    batch.push(text);
    characters += text.length;
    if (batch.length >= MAX_ROWS || characters >= MAX_CHARACTERS) await send();
  }
  await send();
  return { table: name, rows: digest.rows, checksum: digest.toString() };
}

/** Reads a table back and compares it. @throws DatabaseError it differs */
async function verifyTable(tx: Transaction, { name, columns }: Table, sent: TransferredTable): Promise<void> {
  const digest = new TableDigest();
  const names = columns.map(([column]) => quoted(column)).join(', ');
  await tx.run(`DECLARE stored NO SCROLL CURSOR FOR SELECT ${names} FROM ${quoted(name)}`);
  while (true) {
    const rows = await tx.rows<Record<string, unknown>>(`FETCH ${MAX_ROWS} FROM stored`);
    if (rows.length === 0) break;
    for (const row of rows) digest.add(columns.map(([column]) => canonical(row[column])));
  }
  await tx.run('CLOSE stored');
  if (digest.rows !== sent.rows || digest.toString() !== sent.checksum)
    throw new DatabaseError(
      `The copy of ${name} is not what was sent (${digest.rows} rows of ${sent.rows}); nothing was stored.`,
    );
}

/** Converts a value to a form that both databases can represent. */
function canonical(value: unknown): unknown {
  if (typeof value === 'boolean') return Number(value);
  return value instanceof Uint8Array ? `\\x${Buffer.from(value).toString('hex')}` : value;
}

/** Computes a checksum of rows that does not depend on their order: the sum of their hashes. */
class TableDigest {
  rows = 0;
  private sum = 0n;

  add(row: readonly unknown[]): void {
    this.rows++;
    this.sum += BigInt(`0x${createHash('sha256').update(JSON.stringify(row)).digest('hex').slice(0, 32)}`);
  }

  toString(): string {
    return BigInt.asUintN(128, this.sum).toString(16).padStart(32, '0');
  }
}

/** The largest value of PostgreSQL's type integer. */
const MAX_INTEGER = 2 ** 31 - 1;

/** Sets the id sequences after the last id that the source assigned, which may be that of a deleted row. */
async function continueIdsAfter(source: Sqlite.Database, tx: Transaction): Promise<void> {
  const lastIds = new Map(
    source.prepare('SELECT name, seq FROM sqlite_sequence').raw().all() as [string, number][],
  );
  for (const { table, column, sequence, wide } of await identities(tx)) {
    const last = lastIds.get(table) ?? 0;
    await tx.run(
      `SELECT setval($1, greatest(last, 1), last > 0) FROM
         (SELECT greatest((SELECT max(${quoted(column)}) FROM ${quoted(table)}), $2) AS last) AS ids`,
      sequence,
      // SQLite has no narrow ids, and after a restore they go on with large ones.
      wide || last <= MAX_INTEGER ? last : 0,
    );
  }
}
