import { hash } from 'node:crypto';
import { types } from 'node:util';
import pg from 'pg';
import { type DataSourceOptions, type EntityManager, QueryFailedError } from 'typeorm';
import { ApiError, fail } from '../errors';
import type { PostgresTarget } from '../settings';
import { DatabaseError, DatabaseUnreachable, UnitConflict } from './database-error';
import { type Dialect, postgresDialect } from './dialect';
import type { SqlValue, Statements } from './statements';

/** How long a connection may take, a statement may run, and a transaction may stand idle, in milliseconds. */
const CONNECT_TIMEOUT_MS = 5_000;
const STATEMENT_TIMEOUT_MS = 10_000;
/** How long a statement waits for what another transaction has locked. */
export const LOCK_TIMEOUT_MS = 9_000;
/** Well below the time of a lock: what a replica that is cut off has locked is free before others give up. */
const IDLE_IN_TRANSACTION_TIMEOUT_MS = 2_000;
/** When a connection that has gone silent is given up: the server ends a statement before. */
const QUERY_TIMEOUT_MS = 12_000;

/**
 * Every statement that many rows depend on has an index made for it. The planner goes by statistics, which are always
 * behind a queue, and keeps the plan of a prepared statement as the table grows: what reads a whole table, or gathers and
 * sorts all that is queued to take the first 256, may look cheap to it.
 */
const PLANNER = ['enable_bitmapscan', 'enable_mergejoin', 'enable_seqscan', 'jit'].map(
  (name) => `SET ${name} = off`,
);

const LIMITS = [
  `SET statement_timeout = ${STATEMENT_TIMEOUT_MS}`,
  `SET lock_timeout = ${LOCK_TIMEOUT_MS}`,
  `SET idle_in_transaction_session_timeout = ${IDLE_IN_TRANSACTION_TIMEOUT_MS}`,
];

/** Ids and instants stay below 2^53, and so do sums of counters: they are numbers here. */
const NUMBERS = new Set<number>([pg.types.builtins.INT8, pg.types.builtins.NUMERIC]);

/**
 * Options of a pool.
 * @param session.limited whether statements are ended that take long: requests wait for them. Not if a whole table is
 * worked on
 * @param session.planned whether statements are planned by the indexes that are made for them
 */
export function poolOptions(
  target: PostgresTarget,
  poolSize: number,
  { limited, planned }: { limited: boolean; planned: boolean },
): DataSourceOptions {
  const session = [...(planned ? PLANNER : []), ...(limited ? LIMITS : [])].join('; ');
  return {
    type: 'postgres',
    // Given to the driver as it is: TypeORM would lose what it says of TLS.
    url: target.url,
    poolSize,
    installExtensions: false,
    extra: {
      application_name: 'control-plane',
      connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
      ...(limited ? { query_timeout: QUERY_TIMEOUT_MS } : {}),
      keepAlive: true,
      // Statements that nobody awaits between them go out in one flight; the server runs them in their order.
      pipeline: true,
      // By statements: poolers refuse parameters of the connection.
      ...(session === '' ? {} : { onConnect: (client: Queryable) => client.query(session) }),
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
    return (await this.query(sql, values)).rows as Row[];
  }

  async first<Row>(sql: string, ...values: SqlValue[]): Promise<Row | undefined> {
    return (await this.rows<Row>(sql, ...values))[0];
  }

  async run(sql: string, ...values: SqlValue[]): Promise<number> {
    return (await this.query(sql, values)).rowCount ?? 0;
  }

  /** What to throw if a statement failed. */
  protected causeOf(error: unknown): unknown {
    return error;
  }

  private query(sql: string, values: SqlValue[]): Promise<pg.QueryResult> {
    return this.client.query(prepared(sql, values)).catch((error: unknown) => {
      throw this.causeOf(error);
    });
  }
}

/** The number of statements that are prepared; the program has fewer, extensions may have any number. */
const MAX_PREPARED = 500;
const preparedNames = new Map<string, string>();
const ALL_COLUMNS = /(?:\bSELECT|\bDISTINCT|\bRETURNING|,|\.)\s*\*/i;

/**
 * A statement as a connection is to run it: prepared at its first use there, so that it is parsed and planned once. Not
 * if it asks for all columns: its result would be another after the migration of a rolling upgrade, and it would fail.
 * The name says which statement it is, so that no other one, of another process behind the same pooler or of another
 * version, can be meant by it.
 */
function prepared(text: string, values: SqlValue[]): pg.QueryConfig {
  if (values.length === 0 || ALL_COLUMNS.test(text)) return { text, values };
  let name = preparedNames.get(text);
  if (name === undefined && preparedNames.size < MAX_PREPARED) {
    name = `control_plane_${hash('sha256', text, 'base64url')}`;
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
  /** Whether ids can be skipped in great numbers. */
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

/**
 * Whether a server can hold the data of this program.
 * @throws DatabaseError its encoding is not UTF8
 * @throws DatabaseUnreachable it takes no writes now
 */
export async function checkServer(statements: Statements): Promise<void> {
  const server = await statements.first<{ encoding: string; name: string; read_only: boolean }>(
    `SELECT current_setting('server_encoding') AS encoding, current_database() AS name, ${IS_READ_ONLY} AS read_only`,
  );
  if (server?.encoding !== 'UTF8')
    throw new DatabaseError(
      `The encoding of the database ${server?.name} is ${server?.encoding}, which can't hold every text: make one by ` +
        `CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0.`,
    );
  if (server.read_only)
    throw new DatabaseUnreachable(
      'The PostgreSQL server takes no writes: it is a standby, or was demoted. Connect to the primary.',
    );
}

/** Whether the server, or the connection, takes no writes, as an expression. */
export const IS_READ_ONLY = `(pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean)`;

/**
 * Refuses a pooler that gives each transaction another connection to the server: notifications would not arrive, and the
 * locks of jobs and what is set on a connection would be somebody else's.
 * @throws DatabaseError there is one
 */
export async function refuseTransactionPooling(pool: pg.Pool): Promise<void> {
  const clients = [await pool.connect(), await pool.connect()];
  const [a, b] = clients as [pg.PoolClient, pg.PoolClient];
  const backendOf = async (client: Queryable) =>
    (await client.query<{ pid: number }>('SELECT pg_backend_pid() AS pid')).rows[0]?.pid;
  let broken: Error | undefined;
  try {
    // Both are in use, so each has one of its own; when both are free again, a pooler gives them out in its own order.
    await a.query('BEGIN');
    await b.query('BEGIN');
    const before = [await backendOf(a), await backendOf(b)];
    await a.query('ROLLBACK');
    await b.query('ROLLBACK');
    const after = [await backendOf(a), await backendOf(b)];
    const last = [await backendOf(b), await backendOf(a)].reverse();
    if ([after, last].some((pids) => pids[0] !== before[0] || pids[1] !== before[1]))
      throw new DatabaseError(
        'Between this program and PostgreSQL is a pooler that gives each transaction another connection (transaction ' +
          'pooling): set it to session pooling, or connect to PostgreSQL itself.',
      );
  } catch (error) {
    broken = error as Error;
    throw error;
  } finally {
    for (const client of clients) client.release(broken);
  }
}

/** How many connections other processes of this program have to the same database. */
export async function connectionsOfOthers(statements: Statements): Promise<number> {
  const row = await statements.first<{ count: number }>(
    `SELECT count(*) AS count FROM pg_stat_activity
     WHERE datname = current_database() AND application_name LIKE 'control-plane%' AND pid <> pg_backend_pid()`,
  );
  return row?.count ?? 0;
}

/** Two units conflict; one of them runs again. Source: PostgreSQL's appendix A, class 40. */
const RETRYABLE = new Set(['40001', '40P01']);

/** A statement that a connection has prepared is gone there, or its result would be another now. Source: the same. */
const isPlanStale = (error: unknown): boolean =>
  codeOf(error) === '26000' ||
  // "cached plan must not change result type", in the language of the server: told by the routine that raises it.
  (codeOf(error) === '0A000' && (error as { routine?: string }).routine === 'RevalidateCachedQuery');

/** Whether the server takes no writes: a standby, or a primary that was demoted. Source: the same, class 25. */
export const isReadOnly = (error: unknown): boolean => codeOf(error) === '25006';

/** Whether the server's disk is full. Source: the same, class 53. */
export const isDiskFull = (error: unknown): boolean => codeOf(error) === '53100';

/** A lock could not be had in time. Source: the same, class 55. */
export const isLockTimeout = (error: unknown): boolean => codeOf(error) === '55P03';

/** Two units added the same unique row. Source: the same, class 23. */
const UNIQUE_VIOLATION = '23505';

/** The server or the way to it, not the statement: it may be well again soon. Source: the same, classes 08, 53, 55, 57, 58. */
const UNAVAILABLE = /^(?:08|53|57|58|25P03$|25006$|55P03$|XX000$)/;

/** The server ends the connection, or does not let one begin. */
const CONNECTION_ENDED = /^(?:08|57P|25P03$)/;

/** What node-postgres says of a connection that is lost or can't be had; it has no codes for that. */
const CONNECTION_LOST =
  /^(?:Connection terminated|Query read timeout|timeout e|Client (?:was closed|has encountered a connection error)|Cannot use a pool)/;

const codeOf = (error: unknown): string => String((error as { code?: unknown } | null)?.code ?? '');

/** What the driver said, where TypeORM has wrapped it. */
export const driverErrorOf = (error: unknown): unknown =>
  error instanceof QueryFailedError ? (error.driverError as unknown) : error;

/** Whether the same unit of work may succeed when it is run again at once. */
export const isRetryable = (error: unknown): boolean =>
  error instanceof UnitConflict || RETRYABLE.has(codeOf(error)) || isPlanStale(error) || isReadOnly(error);

/** Whether a connection is of no use any more after an error: it is lost, or would fail with it again. */
export const isConnectionBroken = (error: unknown): boolean =>
  isConnectionLost(error) || isPlanStale(error) || isReadOnly(error);

/**
 * Whether another unit added the same unique row first: run again, this one finds it. A unit that is at fault itself fails
 * again.
 */
export const isUniqueViolation = (error: unknown): boolean => codeOf(error) === UNIQUE_VIOLATION;

/** Whether the connection is lost, or none could be had: by what the socket, the driver or the server says. */
export function isConnectionLost(error: unknown): boolean {
  if (error instanceof pg.DatabaseError) return CONNECTION_ENDED.test(codeOf(error));
  // The socket's errors are not instances of this realm's Error where a test runs in one of its own.
  if (error instanceof ApiError || error instanceof DatabaseError || !types.isNativeError(error))
    return false;
  // The socket's; where a host has several addresses, one error for all of them.
  return (
    'syscall' in error ||
    (error instanceof AggregateError && 'code' in error) ||
    CONNECTION_LOST.test(error.message)
  );
}

/** An error as the caller gets it: where the server can't be had now, retryable and with when to come again. */
export function toCallerError(thrown: unknown): unknown {
  const error = driverErrorOf(thrown);
  const isServerError = error instanceof pg.DatabaseError;
  const away = isServerError
    ? UNAVAILABLE.test(codeOf(error)) || isRetryable(error)
    : error instanceof UnitConflict || isConnectionLost(error);
  return away ? unavailable('The database cannot answer now; try again later.', error) : thrown;
}

/** What is told where the connection was lost while the change was stored. */
export const unknownEffect = (cause: unknown): ApiError =>
  unavailable('The database went away before it said whether the change is stored; try again.', cause);

const unavailable = (message: string, cause: unknown): ApiError =>
  fail('ERR_UNAVAILABLE', undefined, { message, retryAfterMs: 1_000, cause });
