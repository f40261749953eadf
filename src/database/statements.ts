import type { EntityManager, QueryRunner } from 'typeorm';
import type { Dialect } from './dialect';

/** A value that can be bound to a parameter. Lists go in as JSON text, see {@link Dialect.rowset}. */
export type SqlValue = string | number | null;

/** Runs statements on one connection. `$1` in the text is the first of the values. */
export interface Statements {
  readonly dialect: Dialect;
  /** TypeORM's manager on the same connection, for the query builder. */
  readonly manager: EntityManager;
  /** The rows of a query, or those of a change's `RETURNING`. */
  rows<Row>(sql: string, ...values: SqlValue[]): Promise<Row[]>;
  /** The first row, if there is one. */
  first<Row>(sql: string, ...values: SqlValue[]): Promise<Row | undefined>;
  /** Makes a change and tells how many rows it touched. */
  run(sql: string, ...values: SqlValue[]): Promise<number>;
}

/** A unit of work in progress: {@link Statements} whose effect holds as a whole or not at all. */
export interface Transaction extends Statements {
  /**
   * The instant of this unit by the database's clock, in milliseconds since the epoch: read once, after the unit began.
   * Everything that the unit decides by time goes by it.
   */
  readonly now: number;
  /**
   * Has this done once the unit is committed, so that others can read it, and before its caller is answered; dropped when it is
   * rolled back. What it
   * throws is thrown at the caller, though the unit is stored.
   */
  afterCommit(effect: () => void): void;
  /**
   * Does a part that can fail alone: what it throws undoes what it did, and is in the answer. Throws only where the part
   * could not be undone, and then the whole unit is lost.
   */
  attempt<T>(part: () => Promise<T>): Promise<PromiseSettledResult<T>>;
  /**
   * Locks rows by ascending ids until the unit ends, so that what is decided by them holds; does nothing if no other unit
   * can run meanwhile. The order of tables is: agents, leases, tasks, windows and lanes.
   * @param mode `share` keeps others from changing the rows, and lets them lock the rows so too
   */
  lockRows(table: string, ids: readonly number[], mode?: 'update' | 'share'): Promise<void>;
  /**
   * Keeps all other units from changing a table, or locking its rows, until this one ends; `shared` keeps out only those
   * that ask for that, as changing a row of the table does. Does nothing if no other unit can run meanwhile.
   */
  lockTable(table: string, mode?: 'shared'): Promise<void>;
  /**
   * Takes a lock that has only a name, until the unit ends: one unit has it exclusively, or any number share it. Does
   * nothing if no other unit can run meanwhile.
   * @param waitMs how long to wait for it
   * @throws ERR_UNAVAILABLE it could not be had in that time
   */
  lockName(name: string, mode: 'shared' | 'exclusive', waitMs?: number): Promise<void>;
  /**
   * Has this told to the listeners of the topic, in this process and in every other replica, once the unit is
   * committed; dropped when it is rolled back.
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
