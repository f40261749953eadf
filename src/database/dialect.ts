/** Column types that a JSON row can be read as. */
export type ColumnType = 'integer' | 'text';

/**
 * The few places where the two databases differ. A statement that needs one of these asks for it by name; everything
 * else is written once, in SQL that both understand, with `$1`-style parameters.
 */
export interface Dialect {
  readonly name: 'sqlite' | 'postgres';
  /** The condition that a column is one of a parameter's numbers, which holds a JSON array of them. */
  isAmong(column: string, parameter: string): string;
  /** Redundant filter on a table that is joined with a rowset of these numbers, so that PostgreSQL uses its index. */
  prefilterByList(column: string, parameter: string): string;
  /** A table expression over a parameter that holds a JSON array of objects, with the columns named. */
  rowset(parameter: string, columns: Readonly<Record<string, ColumnType>>): string;
  /** Whether others write at the same time, so that what a unit decides by must be locked. */
  readonly concurrent: boolean;
  /**
   * After a SELECT: locks its rows of the tables (all of them, where none is named) until the unit ends, so that what is
   * decided by them holds. In this order, and by ascending ids: agents, leases, tasks, the queue's counters.
   */
  forUpdate(...tables: string[]): string;
  /** The same against changes only: others may lock the rows so too. */
  forShare(...tables: string[]): string;
  /** The same as forUpdate, leaving out rows that others have locked. */
  skipLocked(...tables: string[]): string;
  /**
   * Keeps all others from changing a table, or locking its rows, until the unit ends; `shared` keeps out only who wants
   * that, as changing a row of it does.
   */
  lockTable(table: string, mode?: 'shared'): string | undefined;
  /** The greater of two expressions that are not null. */
  greatest(a: string, b: string): string;
  /** The lesser of two expressions that are not null. */
  least(a: string, b: string): string;
  /** The last id that a table gave in this column, or passed over, as an expression: null where there is none. */
  lastId(table: string, column: string): string;
}

export const sqliteDialect: Dialect = {
  name: 'sqlite',
  isAmong: (column, parameter) => `${column} IN (SELECT value FROM json_each(${parameter}))`,
  // SQLite looks up the rows of the set one by one anyway; with a filter, it would read the set again for each row.
  prefilterByList: (_column, parameter) => `${parameter} IS NOT NULL`,
  rowset: (parameter, columns) =>
    `(SELECT ${Object.keys(columns)
      .map((column) => `value ->> '${column}' AS ${column}`)
      .join(', ')} FROM json_each(${parameter}))`,
  // The writer is alone.
  concurrent: false,
  forUpdate: () => '',
  forShare: () => '',
  skipLocked: () => '',
  lockTable: () => undefined,
  greatest: (a, b) => `max(${a}, ${b})`,
  least: (a, b) => `min(${a}, ${b})`,
  lastId: (table) => `(SELECT seq FROM sqlite_sequence WHERE name = '${table}')`,
};

const POSTGRES_TYPES: Readonly<Record<ColumnType, string>> = { integer: 'bigint', text: 'text' };

const of = (tables: readonly string[]): string => (tables.length === 0 ? '' : ` OF ${tables.join(', ')}`);

/** An array is looked up in the column's index; a subquery may be joined by reading the whole table. */
const amongArray = (column: string, parameter: string): string =>
  `${column} = ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text(${parameter}::json) AS value))`;

export const postgresDialect: Dialect = {
  name: 'postgres',
  isAmong: amongArray,
  prefilterByList: amongArray,
  rowset: (parameter, columns) =>
    `(SELECT ${Object.keys(columns).join(', ')} FROM json_to_recordset(${parameter}::json) AS row(${Object.entries(
      columns,
    )
      .map(([column, type]) => `${column} ${POSTGRES_TYPES[type]}`)
      .join(', ')}))`,
  concurrent: true,
  forUpdate: (...tables) => `FOR UPDATE${of(tables)}`,
  forShare: (...tables) => `FOR SHARE${of(tables)}`,
  skipLocked: (...tables) => `FOR UPDATE${of(tables)} SKIP LOCKED`,
  lockTable: (table, mode) => `LOCK TABLE ${table} IN ${mode === 'shared' ? 'ROW ' : ''}EXCLUSIVE MODE`,
  greatest: (a, b) => `greatest(${a}, ${b})`,
  least: (a, b) => `least(${a}, ${b})`,
  // The sequence of an identity column has this name. It does not know of ids that were not its own, and where ids were
  // passed over no row has them.
  lastId: (table, column) =>
    `greatest((SELECT max(${column}) FROM ${table}), (SELECT last_value FROM ${table}_${column}_seq WHERE is_called))`,
};
