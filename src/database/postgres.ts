import { types } from 'node:util';
import pg from 'pg';
import { type DataSourceOptions, type EntityManager, QueryFailedError } from 'typeorm';
import { ApiError, fail } from '../errors';
import type { PostgresTarget } from '../settings';
import { DatabaseError } from './database-error';
import { type Dialect, postgresDialect } from './dialect';
import type { SqlValue, Statements } from './statements';

/** How long a connection may take, a statement may run, and a transaction may stand idle, in milliseconds. */
const CONNECT_MS = 5_000;
const STATEMENT_MS = 10_000;
/** Well below the time of a statement: what a replica that is cut off has locked is free before others give up. */
const IDLE_IN_TRANSACTION_MS = 2_000;
/** When a connection that has gone silent is given up: the server ends a statement before. */
const ANSWER_MS = 12_000;

/**
 * Every statement that many rows depend on has an index made for it. The planner goes by statistics, which are always
 * behind a queue, and keeps the plan of a prepared statement as the table grows: what reads a whole table, or gathers and
 * sorts all that is queued to take the first 256, may look cheap to it.
 */
const PLANNER = ['enable_bitmapscan', 'enable_mergejoin', 'enable_seqscan', 'jit']
  .map((name) => `SET ${name} = off`)
  .join('; ');

/** Has every connection of a pool plan by the indexes. By statements: poolers refuse parameters of the connection. */
export async function planByIndexes(pool: pg.Pool): Promise<void> {
  // Comes before whatever the connection is made for; where it fails the connection is lost, and that will say so.
  pool.on('connect', (client) => void client.query(PLANNER).catch(() => undefined));
  // Those that are there already.
  await pool.query(PLANNER);
}

/** Ids and instants stay below 2^53, and so do sums of counters: they are numbers here. */
const NUMBERS = new Set<number>([pg.types.builtins.INT8, pg.types.builtins.NUMERIC]);

/** How long a statement, an answer, and a transaction without one may take. */
const LIMITS = {
  statement_timeout: STATEMENT_MS,
  idle_in_transaction_session_timeout: IDLE_IN_TRANSACTION_MS,
  query_timeout: ANSWER_MS,
};

/**
 * Options of a pool.
 * @param limited whether statements are ended that take long: requests wait for them. Not where a whole table is worked on
 */
export function poolOptions(target: PostgresTarget, poolSize: number, limited = true): DataSourceOptions {
  return {
    type: 'postgres',
    // Given to the driver as it is: TypeORM would lose what it says of TLS.
    url: target.url,
    poolSize,
    installExtensions: false,
    extra: {
      application_name: 'control-plane',
      connectionTimeoutMillis: CONNECT_MS,
      ...(limited ? LIMITS : {}),
      keepAlive: true,
      types: {
        getTypeParser: (oid: number, format: 'text' | 'binary') =>
          NUMBERS.has(oid) ? Number : pg.types.getTypeParser(oid, format as 'text'),
      },
    },
  };
}

/** The database's present instant, in milliseconds since the Unix epoch. */
export const NOW = '(extract(epoch FROM clock_timestamp()) * 1000)::bigint';

/** What statements can be sent to: the pool, or one connection of it. */
export type Queryable = Pick<pg.ClientBase, 'query'>;

/** Statements over node-postgres. TypeORM's own runner would cost as much again as the statement. */
export class PostgresStatements implements Statements {
  readonly dialect: Dialect = postgresDialect;

  constructor(
    private readonly client: Queryable,
    readonly manager: EntityManager,
  ) {}

  async rows<Row>(sql: string, ...values: SqlValue[]): Promise<Row[]> {
    return (await this.client.query(prepared(sql, values))).rows as Row[];
  }

  async first<Row>(sql: string, ...values: SqlValue[]): Promise<Row | undefined> {
    return (await this.rows<Row>(sql, ...values))[0];
  }

  async run(sql: string, ...values: SqlValue[]): Promise<number> {
    return (await this.client.query(prepared(sql, values))).rowCount ?? 0;
  }
}

/** So many statements are prepared; the program has fewer, extensions may have any number. */
const MAX_PREPARED = 500;
const preparedNames = new Map<string, string>();
const ALL_COLUMNS = /(?:\bSELECT|\bDISTINCT|\bRETURNING|,|\.)\s*\*/i;

/**
 * A statement as a connection is to run it: prepared at its first use there, so that it is parsed and planned once. Not
 * where it asks for all columns: its result would be another after the migration of a rolling upgrade, and it would fail.
 */
function prepared(text: string, values: SqlValue[]): pg.QueryConfig {
  if (values.length === 0 || ALL_COLUMNS.test(text)) return { text, values };
  let name = preparedNames.get(text);
  if (name === undefined && preparedNames.size < MAX_PREPARED) {
    name = `control_plane_${preparedNames.size}`;
    preparedNames.set(text, name);
  }
  return { name, text, values };
}

/** A name as it is written in a statement. */
export const quoted = (name: string): string => `"${name.replaceAll('"', '""')}"`;

/** A column that a sequence gives ids for. */
export interface IdentityColumn {
  readonly table: string;
  readonly column: string;
  /** As it is written in a statement. */
  readonly sequence: string;
  /** Whether ids can be passed over in great numbers. */
  readonly wide: boolean;
}

/** The tables of the program's schema that are kept for good, in a query on pg_class. */
export const IS_OUR_TABLE = `relkind IN ('r', 'p') AND relpersistence = 'p'
  AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())`;

/** The columns that sequences give ids for, of every table. */
export function identities(statements: Statements): Promise<IdentityColumn[]> {
  return statements.rows(
    `SELECT relname AS "table", attname AS "column", sequence, atttypid = 'bigint'::regtype AS wide
     FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped,
       pg_get_serial_sequence(quote_ident(relname), attname) AS sequence
     WHERE ${IS_OUR_TABLE} AND sequence IS NOT NULL
     ORDER BY relname`,
  );
}

/** How many connections other processes of this program have to the same database. */
export async function connectionsOfOthers(statements: Statements): Promise<number> {
  const row = await statements.first<{ count: number }>(
    `SELECT count(*) AS count FROM pg_stat_activity
     WHERE datname = current_database() AND application_name LIKE 'control-plane%' AND pid <> pg_backend_pid()`,
  );
  return row?.count ?? 0;
}

/** Two units got into each other's way; one of them runs again. Source: PostgreSQL's appendix A, class 40. */
const AGAIN = new Set(['40001', '40P01']);

/** A statement that a connection has prepared is gone there, or its result would be another now. Source: the same. */
const isStale = (error: unknown): boolean =>
  codeOf(error) === '26000' ||
  (codeOf(error) === '0A000' && (error as Error).message.startsWith('cached plan'));

/** Two units added the same unique row. Source: the same, class 23. */
const UNIQUE_VIOLATION = '23505';

/** The server or the way to it, not the statement: it may be well again soon. Source: the same, classes 08, 53, 57, 58. */
const AWAY = /^(?:08|53|57|58|25P03$|25006$|XX000$)/;

/** The server ends the connection, or does not let one begin. */
const ENDED = /^(?:08|57P|25P03$)/;

/** What node-postgres says of a connection that is lost or can't be had; it has no codes for that. */
const LOST =
  /^(?:Connection terminated|Query read timeout|timeout e|Client (?:was closed|has encountered a connection error)|Cannot use a pool)/;

const codeOf = (error: unknown): string => String((error as { code?: unknown } | null)?.code ?? '');

/** What the driver said, where TypeORM has wrapped it. */
const ofDriver = (error: unknown): unknown =>
  error instanceof QueryFailedError ? (error.driverError as unknown) : error;

/** Whether the same unit of work may succeed when it is run again at once. */
export const mayRunAgain = (error: unknown): boolean => AGAIN.has(codeOf(error)) || isStale(error);

/** Whether a connection is of no use any more after an error: it is lost, or would fail with it again. */
export const isSpoilt = (error: unknown): boolean => isConnectionLost(error) || isStale(error);

/**
 * Whether another unit added the same unique row first: run again, this one finds it. A unit that is at fault itself fails
 * again.
 */
export const cameSecond = (error: unknown): boolean => codeOf(error) === UNIQUE_VIOLATION;

/** Whether the connection is lost, or none could be had: by what the socket, the driver or the server says. */
export function isConnectionLost(error: unknown): boolean {
  if (error instanceof pg.DatabaseError) return ENDED.test(codeOf(error));
  // The socket's errors are not instances of this realm's Error where a test runs in one of its own.
  if (error instanceof ApiError || error instanceof DatabaseError || !types.isNativeError(error))
    return false;
  // The socket's; where a host has several addresses, one error for all of them.
  return (
    'syscall' in error || (error instanceof AggregateError && 'code' in error) || LOST.test(error.message)
  );
}

/** An error as the caller gets it: where the server can't be had now, retryable and with when to come again. */
export function explained(thrown: unknown): unknown {
  const error = ofDriver(thrown);
  const isServerError = error instanceof pg.DatabaseError;
  const away = isServerError ? AWAY.test(codeOf(error)) || mayRunAgain(error) : isConnectionLost(error);
  return away ? unavailable('The database cannot answer now; try again later.', error) : thrown;
}

/** What is told where the connection was lost while the change was stored. */
export const unknownEffect = (cause: unknown): ApiError =>
  unavailable('The database went away before it said whether the change is stored; try again.', cause);

const unavailable = (message: string, cause: unknown): ApiError =>
  fail('ERR_UNAVAILABLE', undefined, { message, retryAfterMs: 1_000, cause });
