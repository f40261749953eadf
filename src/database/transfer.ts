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

/** How many rows, and characters of them, go in one statement: what a transfer needs of memory. */
const MAX_ROWS = 1_000;
const MAX_CHARACTERS = 4 * 1024 * 1024;

/** Types whose values are the same on both databases, or can be made so (see {@link canonical}). */
const TYPES = ['bigint', 'integer', 'smallint', 'text', 'double precision', 'boolean', 'bytea'];

/** Rows that the migrations leave in their tables, by how they are known: nobody has used them yet. */
const UNTOUCHED: Readonly<Record<string, string>> = {
  audit_head: 'last_id = 0',
  service_continuity: 'last_seen_at = 0',
};

/** What was copied of a table: the same on both sides. */
export interface TransferredTable {
  readonly table: string;
  readonly rows: number;
  /** Of the table's rows, in whatever order. */
  readonly checksum: string;
}

/** What was copied. */
export interface Transfer {
  readonly tables: readonly TransferredTable[];
  /** Whether the source was a backup that nobody had started on. */
  readonly wasBackup: boolean;
}

interface Table {
  readonly name: string;
  /** Names and types, as the target has them. */
  readonly columns: readonly (readonly [name: string, type: string])[];
}

/**
 * Copies a SQLite database that no process serves into an empty PostgreSQL database: every table, in one transaction,
 * compared when all is there. Ids go on after the last that the source has given. The source is only read.
 * @param extensions as the source was served with: their tables are copied too
 * @param finish what else belongs into the transaction
 * @throws DatabaseInUse a process serves the source
 * @throws DatabaseError one of the two is not fit for it, or the copy differs; the target has no rows then
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
    // Before the migrations: a database that something else uses is left as it is.
    const expected = tablesOf(source);
    const before = await PostgresDatabase.inspect(to, (statements) => refuseUsed(statements, expected));
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
      // If there was no table, the migrations made what is there now, unless somebody has started on it meanwhile.
      await refuseUsed(tx, expected, before === 0 ? ['audit_head'] : expected);
      for (const { name } of tables.toReversed()) await tx.run(`DELETE FROM ${quoted(name)}`);
      const copied: TransferredTable[] = [];
      for (const table of tables) copied.push(await copyTable(opened, tx, table));
      for (const [i, table] of tables.entries()) await verifyTable(tx, table, copied[i] as TransferredTable);
      await goOnAfter(opened, tx);
      const done = { tables: copied, wasBackup };
      await finish(tx, target, done);
      // Without it the first queries would be planned as for empty tables.
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
    `The transfer failed: ${reason}. It is all or nothing: where the connection was lost at the end, ` +
      'the same command again says whether the target is empty.',
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
 * @param expected the tables that it may have
 * @param unused those of them that may have no rows
 * @returns how many tables the target has
 * @throws DatabaseError it has others, or rows
 */
async function refuseUsed(
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
        'make a new database for the transfer. Nothing was changed.',
    );
  return there.length;
}

/**
 * The tables to copy, those that others refer to first.
 * @throws DatabaseError the two do not have the same migrations, tables and columns
 */
async function matchTables(
  source: Sqlite.Database,
  target: Statements,
  extensions: readonly Extension[],
): Promise<Table[]> {
  const columns = await target.rows<{ name: string; column: string; type: string }>(
    `SELECT relname AS name, attname AS "column", format_type(atttypid, atttypmod) AS type
     FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
     WHERE ${IS_OUR_TABLE}
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
        'Name the extensions that they belong to in CONTROL_PLANE_EXTENSIONS, as for its server; drop those that nobody needs.',
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
          `Columns of ${name} can't be moved from one database to the other: ${differing.join(', ')}.`,
        );
      return { name, columns: wanted };
    });
  return inOrder(source, tables);
}

/** Tables that others refer to come before those. */
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
  // A scan of the whole table comes by ids.
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

/** Reads a table back. @throws DatabaseError it is not what was sent */
async function verifyTable(tx: Transaction, { name, columns }: Table, sent: TransferredTable): Promise<void> {
  const digest = new TableDigest();
  const names = columns.map(([column]) => quoted(column)).join(', ');
  await tx.run(`DECLARE stored NO SCROLL CURSOR FOR SELECT ${names} FROM ${quoted(name)}`);
  for (;;) {
    const rows = await tx.rows<Record<string, unknown>>(`FETCH ${MAX_ROWS} FROM stored`);
    if (rows.length === 0) break;
    for (const row of rows) digest.add(columns.map(([column]) => canonical(row[column])));
  }
  await tx.run('CLOSE stored');
  if (digest.rows !== sent.rows || digest.toString() !== sent.checksum)
    throw new DatabaseError(
      `The copy of ${name} is not what was sent (${digest.rows} rows of ${sent.rows}); nothing was kept.`,
    );
}

/** A value as both databases can say it. */
function canonical(value: unknown): unknown {
  if (typeof value === 'boolean') return Number(value);
  return value instanceof Uint8Array ? `\\x${Buffer.from(value).toString('hex')}` : value;
}

/** A checksum of rows that does not depend on their order: the sum of their hashes. */
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

/** Has ids go on after the last that the source gave, which may be of a row that was deleted. */
async function goOnAfter(source: Sqlite.Database, tx: Transaction): Promise<void> {
  const given = new Map(
    source.prepare('SELECT name, seq FROM sqlite_sequence').raw().all() as [string, number][],
  );
  for (const { table, column, sequence } of await identities(tx)) {
    await tx.run(
      `SELECT setval($1, greatest(last, 1), last > 0) FROM
         (SELECT greatest((SELECT max(${quoted(column)}) FROM ${quoted(table)}), $2) AS last) AS ids`,
      sequence,
      given.get(table) ?? 0,
    );
  }
}
