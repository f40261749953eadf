/** Column types that a JSON row can be read as. */
export type ColumnType = 'integer' | 'text';

/**
 * The few places where the two databases differ. A statement that needs one of these asks for it by name; everything
 * else is written once, in SQL that both understand, with `$1`-style parameters.
 */
export interface Dialect {
  readonly name: 'sqlite';
  /** A table expression over a parameter that holds a JSON array of numbers; its only column is `id`. */
  ids(parameter: string): string;
  /** A table expression over a parameter that holds a JSON array of objects, with the columns named. */
  rowset(parameter: string, columns: Readonly<Record<string, ColumnType>>): string;
  /** The greater of two expressions that are not null. */
  greatest(a: string, b: string): string;
  /** The lesser of two expressions that are not null. */
  least(a: string, b: string): string;
  /** The id that a table has given last, as a subquery: null where it never gave any. */
  lastId(table: string): string;
}

export const sqliteDialect: Dialect = {
  name: 'sqlite',
  ids: (parameter) => `(SELECT value AS id FROM json_each(${parameter}))`,
  rowset: (parameter, columns) =>
    `(SELECT ${Object.keys(columns)
      .map((column) => `value ->> '${column}' AS ${column}`)
      .join(', ')} FROM json_each(${parameter}))`,
  greatest: (a, b) => `max(${a}, ${b})`,
  least: (a, b) => `min(${a}, ${b})`,
  lastId: (table) => `(SELECT seq FROM sqlite_sequence WHERE name = '${table}')`,
};
