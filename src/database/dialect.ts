/** Column types that a JSON row can be read as. */
export type ColumnType = 'integer' | 'text';

/**
 * The few places where the two databases differ. A statement that needs one of these asks for it by name; everything
 * else is written once, in SQL that both understand, with `$1`-style parameters.
 */
export interface Dialect {
  readonly name: 'sqlite' | 'postgres';
  /** A table expression over a parameter that holds a JSON array of numbers; its only column is `id`. */
  ids(parameter: string): string;
  /** A table expression over a parameter that holds a JSON array of objects, with the columns named. */
  rowset(parameter: string, columns: Readonly<Record<string, ColumnType>>): string;
  /** After a SELECT: locks its rows until the unit ends, so that what is decided by them holds. */
  readonly forUpdate: string;
  /** The same, against changes only: others may lock the rows so too. */
  readonly forShare: string;
  /** The same as forUpdate, leaving out rows that others have locked. */
  readonly skipLocked: string;
  /** The greater of two expressions that are not null. */
  greatest(a: string, b: string): string;
  /** The lesser of two expressions that are not null. */
  least(a: string, b: string): string;
}

export const sqliteDialect: Dialect = {
  name: 'sqlite',
  ids: (parameter) => `(SELECT value AS id FROM json_each(${parameter}))`,
  rowset: (parameter, columns) =>
    `(SELECT ${Object.keys(columns)
      .map((column) => `value ->> '${column}' AS ${column}`)
      .join(', ')} FROM json_each(${parameter}))`,
  // The writer is alone.
  forUpdate: '',
  forShare: '',
  skipLocked: '',
  greatest: (a, b) => `max(${a}, ${b})`,
  least: (a, b) => `min(${a}, ${b})`,
};

const POSTGRES_TYPES: Readonly<Record<ColumnType, string>> = { integer: 'bigint', text: 'text' };

export const postgresDialect: Dialect = {
  name: 'postgres',
  ids: (parameter) => `(SELECT value::bigint AS id FROM json_array_elements_text(${parameter}::json) AS value)`,
  rowset: (parameter, columns) =>
    `(SELECT * FROM json_to_recordset(${parameter}::json) AS row(${Object.entries(columns)
      .map(([column, type]) => `${column} ${POSTGRES_TYPES[type]}`)
      .join(', ')}))`,
  forUpdate: 'FOR UPDATE',
  forShare: 'FOR SHARE',
  skipLocked: 'FOR UPDATE SKIP LOCKED',
  greatest: (a, b) => `greatest(${a}, ${b})`,
  least: (a, b) => `least(${a}, ${b})`,
};
