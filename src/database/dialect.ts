/** Column types that a JSON row can be read as. */
export type ColumnType = 'integer' | 'real' | 'text';

/**
 * The SQL that differs between the two databases, by name. The rest of a statement is written once, in SQL that both
 * understand, with `$1`-style parameters.
 */
export interface Dialect {
  readonly name: 'sqlite' | 'postgres';
  /** Condition: the column is one of the numbers in a parameter, a JSON array. */
  isAmong(column: string, parameter: string): string;
  /** Redundant filter on a table that is joined with a rowset of these numbers, so that PostgreSQL uses its index. */
  prefilterByList(column: string, parameter: string): string;
  /** Table expression over a parameter, a JSON array of objects, with these columns. */
  rowset(parameter: string, columns: Readonly<Record<string, ColumnType>>): string;
  /** Table expression over a parameter, a JSON array of numbers, with the column `id`. */
  ids(parameter: string): string;
  /**
   * Statement, up to its `RETURNING`, that deletes the rows that the parts select. It skips rows that another unit has
   * locked.
   * @param key the columns of the table's primary key
   * @param parts the `WHERE` of each selection, with its order and limit
   */
  takeRows(table: string, key: readonly string[], parts: readonly string[]): string;
  /**
   * Statement, up to its `RETURNING`, that deletes the rows of a rowset, which were just read. In place of a row that
   * another unit has locked, it takes the next of its group: as many of each group as the rowset has, from its `from` on.
   * @param key the columns of the table's primary key, which the rowset has too: the group, then its order
   * @param from the columns of the rowset with the order of the group's first row
   * @param condition of rows that may be taken
   */
  takeFound(
    table: string,
    key: readonly [group: string, ...order: string[]],
    rowset: string,
    from: readonly string[],
    condition: string,
  ): string;
  /**
   * Query: for each row `r` of a rowset, the rows of another query, which names columns of `r`. It runs once for each
   * row, so that the planner can't choose to read the whole of its table and join.
   * @param group the column of the rowset that the answer has too
   * @param columns those of the query
   */
  ofEach(rowset: string, group: string, columns: readonly string[], query: string): string;
  /**
   * Condition: the row's primary key is in a rowset with columns of the same names. Each key is looked up separately,
   * whatever the table's statistics are.
   */
  isKeyAmong(table: string, key: readonly string[], rowset: string): string;
  /**
   * Left join of each row with the last row of a table that meets a condition. It takes one look-up for each row, so
   * that the planner can't choose to read more of the table.
   * @param condition selects a few rows by an index that has `id + 0` next; it may name tables on the left
   */
  joinLast(table: string, alias: string, condition: string): string;
  /** The same for a condition that one row fulfils at most, found by a unique index. */
  joinOne(table: string, alias: string, condition: string): string;
  /** Whether others write at the same time, so that what a unit decides by must be locked. */
  readonly concurrent: boolean;
  /**
   * Suffix of a SELECT: locks its rows of the tables (of all tables, if none is named) until the unit ends. The order
   * of locks is in docs/architecture.md; rows of a table by ascending ids.
   */
  forUpdate(...tables: string[]): string;
  /** The same with a shared lock: other units can share it, and can't change the rows. */
  forShare(...tables: string[]): string;
  /** The same as forUpdate, but skips rows that other units have locked. */
  skipLocked(...tables: string[]): string;
  /**
   * Statement that locks a table until the unit ends, so that other units can't change it or lock its rows. A `shared`
   * lock, which every change of a row takes too, excludes only the exclusive one.
   */
  lockTable(table: string, mode?: 'shared'): string | undefined;
  /** The greater of two expressions that are not null. */
  greatest(a: string, b: string): string;
  /** The lesser of two expressions that are not null. */
  least(a: string, b: string): string;
  /** Query: the `name` of each table that begins with a prefix, a parameter, and has only the column `name`. */
  tablesOfNames(parameter: string): string;
  /** Expression: the last id that a table assigned or skipped in this column; null if there is none. */
  lastId(table: string, column: string): string;
}

const isKeyAmong = (key: readonly string[], rowset: string): string =>
  `(${key.join(', ')}) IN (SELECT ${key.join(', ')} FROM ${rowset} AS r)`;

export const sqliteDialect: Dialect = {
  name: 'sqlite',
  isAmong: (column, parameter) => `${column} IN (SELECT value FROM json_each(${parameter}))`,
  // SQLite looks up the rows of the set one by one anyway; with the filter it would read the set again for each row.
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
    // Of a compound query itself SQLite would test every row of the table.
    return `DELETE FROM ${table} WHERE (${columns}) IN (SELECT * FROM (${selected.join(' UNION ALL ')}))`;
  },
  takeFound: (table, key, rowset, _from, condition) =>
    `DELETE FROM ${table} WHERE ${isKeyAmong(key, rowset)} AND ${condition}`,
  // SQLite has no LATERAL, but a list in JSON can be made of each row.
  ofEach: (rowset, group, columns, query) => {
    const found = `SELECT json_group_array(json_array(${columns.join(', ')})) FROM (${query})`;
    return `SELECT r.${group}, ${columns.map((column, i) => `k.value ->> ${i} AS ${column}`).join(', ')}
      FROM ${rowset} AS r CROSS JOIN json_each((${found})) AS k`;
  },
  isKeyAmong: (_table, key, rowset) => isKeyAmong(key, rowset),
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
  tablesOfNames: (parameter) =>
    `SELECT t.name FROM sqlite_schema t CROSS JOIN pragma_table_info(t.name) c
     WHERE t.type = 'table' AND substr(t.name, 1, length(${parameter})) = ${parameter}
     GROUP BY t.name HAVING count(*) = 1 AND max(c.name) = 'name' ORDER BY t.name`,
  lastId: (table) => `(SELECT seq FROM sqlite_sequence WHERE name = '${table}')`,
};

const POSTGRES_TYPES: Readonly<Record<ColumnType, string>> = {
  integer: 'bigint',
  real: 'double precision',
  text: 'text',
};

const of = (tables: readonly string[]): string => (tables.length === 0 ? '' : ` OF ${tables.join(', ')}`);

/** An array is looked up in the column's index; a subquery may be joined by a scan of the whole table. */
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
  // By ctid: the planner needs no statistics for that. Each part locks inside a derived table, so that it locks only
  // the rows that it takes.
  takeRows: (table, _key, parts) =>
    `DELETE FROM ${table} WHERE ctid = ANY(ARRAY(${parts
      .map((part, i) => `SELECT * FROM (SELECT ctid FROM ${table} ${part} FOR UPDATE SKIP LOCKED) AS p${i}`)
      .join(' UNION ALL ')}))`,
  takeFound: (table, [group, ...order], rowset, from, condition) =>
    `DELETE FROM ${table} WHERE ctid = ANY(ARRAY(SELECT found.ctid
       FROM (SELECT ${group}, ${from.join(', ')}, count(*) AS count FROM ${rowset} AS rows GROUP BY ${group}, ${from.join(', ')}) AS r
       CROSS JOIN LATERAL (
         SELECT k.ctid FROM ${table} k
         WHERE k.${group} = r.${group} AND (${order.map((column) => `k.${column}`).join(', ')}) >= (${from.map((column) => `r.${column}`).join(', ')})
           AND ${condition}
         ORDER BY ${order.map((column) => `k.${column}`).join(', ')} LIMIT r.count FOR UPDATE SKIP LOCKED) AS found))`,
  ofEach: (rowset, group, columns, query) =>
    `SELECT r.${group}, ${columns.map((column) => `k.${column}`).join(', ')}
     FROM ${rowset} AS r CROSS JOIN LATERAL (${query}) AS k`,
  isKeyAmong: (table, key, rowset) =>
    `ctid = ANY(ARRAY(SELECT found.ctid FROM ${rowset} AS r CROSS JOIN LATERAL (
       SELECT k.ctid FROM ${table} k WHERE ${key.map((column) => `k.${column} = r.${column}`).join(' AND ')} LIMIT 1) AS found))`,
  // With an equation of ids the planner might join the whole table.
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
  tablesOfNames: (parameter) =>
    `SELECT table_name AS name FROM information_schema.columns
     WHERE table_schema = current_schema() AND starts_with(table_name, ${parameter})
     GROUP BY table_name HAVING count(*) = 1 AND max(column_name) = 'name' ORDER BY table_name`,
  // The sequence of an identity column has this name. It does not know ids that were inserted, and skipped ids have
  // no row.
  lastId: (table, column) =>
    `greatest((SELECT max(${column}) FROM ${table}), (SELECT last_value FROM ${table}_${column}_seq WHERE is_called))`,
};
