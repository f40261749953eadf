import type { EntityManager, QueryRunner } from 'typeorm';
import type { Dialect } from './dialect';

/** A value of a parameter. Lists are bound as JSON text, see {@link Dialect.rowset}. */
export type SqlValue = string | number | null;

/** Runs statements on one connection. `$1` in the text is the first of the values. */
export interface Statements {
  readonly dialect: Dialect;
  /** TypeORM's manager on the same connection, for the query builder. */
  readonly manager: EntityManager;
  /** Runs a query, or a change with `RETURNING`, and returns its rows. */
  rows<Row>(sql: string, ...values: SqlValue[]): Promise<Row[]>;
  /** Returns the first row, if there is one. */
  first<Row>(sql: string, ...values: SqlValue[]): Promise<Row | undefined>;
  /** Runs a change and returns the number of changed rows. */
  run(sql: string, ...values: SqlValue[]): Promise<number>;
}

/** A running unit of work: {@link Statements} that take effect as a whole or not at all. */
export interface Transaction extends Statements {
  /**
   * The instant of this unit by the database's clock, in milliseconds since the epoch, read once after the unit began.
   * The unit uses it for all decisions about time.
   */
  readonly now: number;
  /**
   * Runs an effect once the unit is committed and others can read it, before the caller is answered. The effect is
   * dropped if the unit is rolled back. If it throws, the caller gets the error although the unit is stored.
   */
  afterCommit(effect: () => void): void;
  /**
   * Runs a part that can fail alone, in a savepoint: if it throws, it is rolled back, and the error is returned. Throws
   * only if the part could not be rolled back; then the whole unit fails.
   */
  attempt<T>(part: () => Promise<T>): Promise<PromiseSettledResult<T>>;
  /**
   * Locks rows by ascending ids until the unit ends, so that others can't change them; does nothing if no other unit
   * can run meanwhile. The order of tables is: agents, leases, tasks, windows and lanes.
   * @param mode several units can hold `share` on a row at once
   */
  lockRows(table: string, ids: readonly number[], mode?: 'update' | 'share'): Promise<void>;
  /**
   * Locks a table until the unit ends, so that other units can't change it or lock its rows. A `shared` lock, which
   * every change of a row takes too, excludes only the exclusive one. Does nothing if no other unit can run meanwhile.
   */
  lockTable(table: string, mode?: 'shared'): Promise<void>;
  /**
   * Takes a named lock until the unit ends: one unit holds it exclusively, or any number share it. Does nothing if no
   * other unit can run meanwhile.
   * @param waitMs how long to wait for it, in milliseconds
   * @throws ERR_UNAVAILABLE it was not available in that time
   */
  lockName(name: string, mode: 'shared' | 'exclusive', waitMs?: number): Promise<void>;
  /**
   * Announces a message to the listeners of a topic, in this process and in all replicas, once the unit is committed.
   * It is dropped if the unit is rolled back.
   * @param message at most 2,000 characters
   */
  announce(topic: string, message: string): void;
}

/**
 * A transaction whose unit of work is over takes no more statements: what a unit left behind when it failed would run in another
 * unit's transaction, or in none.
 */
export class UnitIsOver extends Error {
  constructor() {
    super('the unit of work is over');
  }
}

/** Statements over a TypeORM query runner of better-sqlite3. */
export class SqliteStatements implements Statements {
  constructor(
    protected readonly runner: QueryRunner,
    readonly dialect: Dialect,
  ) {}

  get manager(): EntityManager {
    return this.runner.manager;
  }

  rows<Row>(sql: string, ...values: SqlValue[]): Promise<Row[]> {
    return this.runner.query(sql, bind(values));
  }

  async first<Row>(sql: string, ...values: SqlValue[]): Promise<Row | undefined> {
    return (await this.rows<Row>(sql, ...values))[0];
  }

  async run(sql: string, ...values: SqlValue[]): Promise<number> {
    return (await this.runner.query(sql, bind(values), true)).affected ?? 0;
  }
}

/** SQLite takes `$1` for a parameter named "1", so the values go in by name. */
function bind(values: SqlValue[]): Record<string, SqlValue>[] {
  if (values.length === 0) return [];
  const named: Record<string, SqlValue> = {};
  for (let i = 0; i < values.length; i++) named[i + 1] = values[i] as SqlValue;
  return [named];
}
