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
  /** A table expression over a parameter that holds a JSON array of numbers, with the column `id`. */
  ids(parameter: string): string;
  /**
   * A statement that deletes the rows of a table that each part selects, up to its `RETURNING`: rows that another unit has locked
   * are left out.
   * @param key the columns of the table's primary key
   * @param parts each the `WHERE` of a selection, with its order and limit
   */
  takeRows(table: string, key: readonly string[], parts: readonly string[]): string;
  /**
   * The condition that a row's primary key is one of those in a rowset that has columns of the same names: each is looked up by
   * itself, whatever the statistics say of the table.
   */
  isKeyAmong(table: string, key: readonly string[], rowset: string): string;
  /**
   * Joins each row on the left with the last row of a table that meets a condition, or with none: one look-up for each, so that no
   * statistics can make it read more of the table.
   * @param condition names a few rows by an index that has `id + 0` next; it may name tables on the left
   */
  joinLast(table: string, alias: string, condition: string): string;
  /** The same for a condition that one row fulfils at most, found by a unique index. */
  joinOne(table: string, alias: string, condition: string): string;
  /** Whether others write at the same time, so that what a unit decides by must be locked. */
  readonly concurrent: boolean;
  /**
   * After a SELECT: locks its rows of the tables (all of them, if none is named) until the unit ends, so that what is
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
  /** The last id that a table gave or skipped in this column, as an expression: null if there is none. */
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
  ids: (parameter) => `(SELECT value AS id FROM json_each(${parameter}))`,
  takeRows: (table, key, parts) => {
    const columns = key.join(', ');
    const selected = parts.map(
      (part, i) => `SELECT * FROM (SELECT ${columns} FROM ${table} ${part}) AS p${i}`,
    );
    return `DELETE FROM ${table} WHERE (${columns}) IN (${selected.join(' UNION ALL ')})`;
  },
  isKeyAmong: (_table, key, rowset) =>
    `(${key.join(', ')}) IN (SELECT ${key.join(', ')} FROM ${rowset} AS r)`,
  joinLast: (table, alias, condition) =>
    `LEFT JOIN ${table} ${alias} ON ${alias}.id = (SELECT id FROM ${table} WHERE ${condition} ORDER BY id + 0 DESC LIMIT 1)`,
  joinOne: (table, alias, condition) =>
    `LEFT JOIN ${table} ${alias} ON ${alias}.id = (SELECT id FROM ${table} WHERE ${condition})`,
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
  ids: (parameter) =>
    `(SELECT value::bigint AS id FROM json_array_elements_text(${parameter}::json) AS value)`,
  // By their places: whatever the statistics say, the planner finds them there. Locked below a derived table each, so that no
  // more are locked than the part takes.
  takeRows: (table, _key, parts) =>
    `DELETE FROM ${table} WHERE ctid = ANY(ARRAY(${parts
      .map((part, i) => `SELECT * FROM (SELECT ctid FROM ${table} ${part} FOR UPDATE SKIP LOCKED) AS p${i}`)
      .join(' UNION ALL ')}))`,
  isKeyAmong: (table, key, rowset) =>
    `ctid = ANY(ARRAY(SELECT found.ctid FROM ${rowset} AS r CROSS JOIN LATERAL (
       SELECT k.ctid FROM ${table} k WHERE ${key.map((column) => `k.${column} = r.${column}`).join(' AND ')} LIMIT 1) AS found))`,
  // By an equation of ids, the whole table might be joined.
  joinLast: (table, alias, condition) =>
    `LEFT JOIN LATERAL (SELECT * FROM ${table} WHERE ${condition} ORDER BY id + 0 DESC LIMIT 1) AS ${alias} ON true`,
  joinOne: (table, alias, condition) =>
    `LEFT JOIN LATERAL (SELECT * FROM ${table} WHERE ${condition} LIMIT 1) AS ${alias} ON true`,
  concurrent: true,
  forUpdate: (...tables) => `FOR UPDATE${of(tables)}`,
  forShare: (...tables) => `FOR SHARE${of(tables)}`,
  skipLocked: (...tables) => `FOR UPDATE${of(tables)} SKIP LOCKED`,
  lockTable: (table, mode) => `LOCK TABLE ${table} IN ${mode === 'shared' ? 'ROW ' : ''}EXCLUSIVE MODE`,
  greatest: (a, b) => `greatest(${a}, ${b})`,
  least: (a, b) => `least(${a}, ${b})`,
  // The sequence of an identity column has this name. It does not know of ids that were not its own, and where ids were
  // skipped no row has them.
  lastId: (table, column) =>
    `greatest((SELECT max(${column}) FROM ${table}), (SELECT last_value FROM ${table}_${column}_seq WHERE is_called))`,
};
