import { hash } from 'node:crypto';
import { types } from 'node:util';
import pg from 'pg';
import { type DataSourceOptions, type EntityManager, QueryFailedError } from 'typeorm';
import { ApiError, fail } from '../errors';
import type { PostgresTarget } from '../settings';
import { DatabaseError, DatabaseUnreachable, UnitConflict } from './database-error';
import { type Dialect, postgresDialect } from './dialect';
import type { SqlValue, Statements } from './statements';

/** The time limits of a connection attempt and of a statement, in milliseconds. */
const CONNECT_TIMEOUT_MS = 5_000;
const STATEMENT_TIMEOUT_MS = 10_000;
/** How long a statement waits for a lock, in milliseconds. */
export const LOCK_TIMEOUT_MS = 9_000;
/** Well below the lock timeout: the locks of a disconnected replica are released before others give up. */
const IDLE_IN_TRANSACTION_TIMEOUT_MS = 2_000;
/** After how long a silent connection is closed, in milliseconds: the server ends a statement earlier. */
const QUERY_TIMEOUT_MS = 12_000;

/**
 * Restricts the planner to index scans. Every statement on a large table has its own index. The planner uses
 * statistics, which always lag behind a queue, and keeps the plan of a prepared statement as the table grows. So it may
 * prefer a scan of a whole table, or collect and sort all queued tasks to take the first 256.
 */
const PLANNER = ['enable_bitmapscan', 'enable_mergejoin', 'enable_seqscan', 'jit'].map(
  (name) => `SET ${name} = off`,
);

const LIMITS = [
  `SET statement_timeout = ${STATEMENT_TIMEOUT_MS}`,
  `SET lock_timeout = ${LOCK_TIMEOUT_MS}`,
  `SET idle_in_transaction_session_timeout = ${IDLE_IN_TRANSACTION_TIMEOUT_MS}`,
];

/** Types that are read as numbers: ids, instants and sums of counters stay below 2^53. */
const NUMBERS = new Set<number>([pg.types.builtins.INT8, pg.types.builtins.NUMERIC]);

/**
 * Creates the options of a pool.
 * @param session.limited whether statements have time limits, because requests wait for them; false for work on whole
 * tables
 * @param session.planned whether the planner is restricted to index scans
 */
export function poolOptions(
  target: PostgresTarget,
  poolSize: number,
  { limited, planned }: { limited: boolean; planned: boolean },
): DataSourceOptions {
  const session = [...(planned ? PLANNER : []), ...(limited ? LIMITS : [])].join('; ');
  return {
    type: 'postgres',
    // Passed to the driver unchanged: TypeORM would lose its TLS parameters.
    url: target.url,
    poolSize,
    installExtensions: false,
    extra: {
      application_name: 'control-plane',
      connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
      ...(limited ? { query_timeout: QUERY_TIMEOUT_MS } : {}),
      keepAlive: true,
      // Statements that are started together are sent in one round trip; the server runs them in order.
      pipeline: true,
      // Set by statements, because poolers refuse parameters of the connection.
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

/** The pool, or one connection of it. */
export type Queryable = Pick<pg.ClientBase, 'query'>;

/** Runs statements through node-postgres. TypeORM's own runner would double the cost of a statement. */
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

  /** Returns the error to throw if a statement failed. */
  protected causeOf(error: unknown): unknown {
    return error;
  }

  private query(sql: string, values: SqlValue[]): Promise<pg.QueryResult> {
    return this.client.query(prepared(sql, values)).catch((error: unknown) => {
      throw this.causeOf(error);
    });
  }
}

/** The most prepared statements; the program has fewer, but extensions may have any number. */
const MAX_PREPARED = 500;
const preparedNames = new Map<string, string>();
const ALL_COLUMNS = /(?:\bSELECT|\bDISTINCT|\bRETURNING|,|\.)\s*\*/i;

/**
 * Prepares a statement at its first use on a connection, so that it is parsed and planned once. A statement with all
 * columns (`*`) is not prepared: its result would change after the migration of a rolling upgrade, and it would fail.
 * The name is a hash of the text, so that it never means another statement, of another process behind the same pooler
 * or of another version.
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

/** Quotes a name for a statement. */
export const quoted = (name: string): string => `"${name.replaceAll('"', '""')}"`;

/** A column with ids from a sequence. */
export interface IdentityColumn {
  readonly table: string;
  readonly column: string;
  /** Quoted for a statement. */
  readonly sequence: string;
  /** Whether the type is large enough to skip many ids. */
  readonly wide: boolean;
}

/** Condition on pg_class: a permanent table of the program's schema. */
export const IS_OUR_TABLE = `relkind IN ('r', 'p') AND relpersistence = 'p'
  AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())`;

/** Lists the columns with ids from sequences, of every table. */
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
 * Checks that the server can be used.
 * @throws DatabaseError its encoding is not UTF8
 * @throws DatabaseUnreachable it is read-only now
 */
export async function checkServer(statements: Statements): Promise<void> {
  const server = await statements.first<{ encoding: string; name: string; read_only: boolean }>(
    `SELECT current_setting('server_encoding') AS encoding, current_database() AS name, ${IS_READ_ONLY} AS read_only`,
  );
  if (server?.encoding !== 'UTF8')
    throw new DatabaseError(
      `The encoding of the database ${server?.name} is ${server?.encoding}, which can't store every text: create one by ` +
        `CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0.`,
    );
  if (server.read_only)
    throw new DatabaseUnreachable(
      'The PostgreSQL server is read-only: it is a standby, or was demoted. Connect to the primary.',
    );
}

/** Expression: whether the server, or the connection, is read-only. */
export const IS_READ_ONLY = `(pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean)`;

/**
 * Refuses a pooler in transaction mode, which gives each transaction another connection to the server: notifications
 * would not arrive, and the locks of jobs and settings of a connection would go to other clients.
 * @throws DatabaseError there is such a pooler
 */
export async function refuseTransactionPooling(pool: pg.Pool): Promise<void> {
  const clients = [await pool.connect(), await pool.connect()];
  const [a, b] = clients as [pg.PoolClient, pg.PoolClient];
  const backendOf = async (client: Queryable) =>
    (await client.query<{ pid: number }>('SELECT pg_backend_pid() AS pid')).rows[0]?.pid;
  let broken: Error | undefined;
  try {
    // Both are in use, so each has its own server connection; once both are free, a pooler reassigns them.
    await a.query('BEGIN');
    await b.query('BEGIN');
    const before = [await backendOf(a), await backendOf(b)];
    await a.query('ROLLBACK');
    await b.query('ROLLBACK');
    const after = [await backendOf(a), await backendOf(b)];
    const last = [await backendOf(b), await backendOf(a)].reverse();
    if ([after, last].some((pids) => pids[0] !== before[0] || pids[1] !== before[1]))
      throw new DatabaseError(
        'The connection to PostgreSQL goes through a pooler in transaction mode: set it to session mode, or connect to ' +
          'PostgreSQL itself.',
      );
  } catch (error) {
    broken = error as Error;
    throw error;
  } finally {
    for (const client of clients) client.release(broken);
  }
}

/** Counts the connections of other processes of this program to the same database. */
export async function connectionsOfOthers(statements: Statements): Promise<number> {
  const row = await statements.first<{ count: number }>(
    `SELECT count(*) AS count FROM pg_stat_activity
     WHERE datname = current_database() AND application_name LIKE 'control-plane%' AND pid <> pg_backend_pid()`,
  );
  return row?.count ?? 0;
}

/** Two units conflict; one of them is run again. Source: PostgreSQL's appendix A, class 40. */
const RETRYABLE = new Set(['40001', '40P01']);

/** A prepared statement no longer exists on its connection, or its result type has changed. Source: the same. */
const isPlanStale = (error: unknown): boolean =>
  codeOf(error) === '26000' ||
  // "cached plan must not change result type": the message is in the server's language, so compare the routine.
  (codeOf(error) === '0A000' && (error as { routine?: string }).routine === 'RevalidateCachedQuery');

/** Whether the server is read-only: a standby, or a demoted primary. Source: the same, class 25. */
export const isReadOnly = (error: unknown): boolean => codeOf(error) === '25006';

/** Whether the server's disk is full. Source: the same, class 53. */
export const isDiskFull = (error: unknown): boolean => codeOf(error) === '53100';

/** Whether a lock was not available in time. Source: the same, class 55. */
export const isLockTimeout = (error: unknown): boolean => codeOf(error) === '55P03';

/** Two units added the same unique row. Source: the same, class 23. */
const UNIQUE_VIOLATION = '23505';

/**
 * Temporary failures of the server or the network, not of the statement. Source: the same, classes 08, 53, 55, 57,
 * 58.
 */
const UNAVAILABLE = /^(?:08|53|57|58|25P03$|25006$|55P03$|XX000$)/;

/** The server ends or refuses the connection. */
const CONNECTION_ENDED = /^(?:08|57P|25P03$)/;

/** Messages of node-postgres for a lost or failed connection; it has no codes for them. */
const CONNECTION_LOST =
  /^(?:Connection terminated|Query read timeout|timeout e|Client (?:was closed|has encountered a connection error)|Cannot use a pool)/;

const codeOf = (error: unknown): string => String((error as { code?: unknown } | null)?.code ?? '');

/** Returns the driver's error if TypeORM has wrapped it. */
export const driverErrorOf = (error: unknown): unknown =>
  error instanceof QueryFailedError ? (error.driverError as unknown) : error;

/** Whether the same unit of work may succeed when it is run again at once. */
export const isRetryable = (error: unknown): boolean =>
  error instanceof UnitConflict || RETRYABLE.has(codeOf(error)) || isPlanStale(error) || isReadOnly(error);

/** Whether a connection must be closed after an error: it is lost, or the error would repeat. */
export const isConnectionBroken = (error: unknown): boolean =>
  isConnectionLost(error) || isPlanStale(error) || isReadOnly(error);

/**
 * Whether another unit added the same unique row first. If the unit is run again it finds that row; if its own data are
 * the cause, it fails again.
 */
export const isUniqueViolation = (error: unknown): boolean => codeOf(error) === UNIQUE_VIOLATION;

/** Whether the connection is lost or could not be opened, by the error of the socket, the driver or the server. */
export function isConnectionLost(error: unknown): boolean {
  if (error instanceof pg.DatabaseError) return CONNECTION_ENDED.test(codeOf(error));
  // Errors of sockets are not instances of this realm's Error if a test runs in its own realm.
  if (error instanceof ApiError || error instanceof DatabaseError || !types.isNativeError(error))
    return false;
  // Errors of sockets; if a host has several addresses, one error for all of them.
  return (
    'syscall' in error ||
    (error instanceof AggregateError && 'code' in error) ||
    CONNECTION_LOST.test(error.message)
  );
}

/** Converts an error for the caller: if the server is not available now, retryable with `Retry-After`. */
export function toCallerError(thrown: unknown): unknown {
  const error = driverErrorOf(thrown);
  const isServerError = error instanceof pg.DatabaseError;
  const away = isServerError
    ? UNAVAILABLE.test(codeOf(error)) || isRetryable(error)
    : error instanceof UnitConflict || isConnectionLost(error);
  return away ? unavailable('The database cannot answer now; try again later.', error) : thrown;
}

/** Creates the error of a connection that was lost during the commit. */
export const unknownEffect = (cause: unknown): ApiError =>
  unavailable(
    'The connection to the database was lost during the commit, so the change may be stored or not; try again.',
    cause,
  );

const unavailable = (message: string, cause: unknown): ApiError =>
  fail('ERR_UNAVAILABLE', undefined, { message, retryAfterMs: 1_000, cause });
