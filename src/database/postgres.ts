import { types } from 'node:util';
import pg from 'pg';
import type { DataSourceOptions, EntityManager } from 'typeorm';
import { ApiError, fail } from '../errors';
import type { PostgresTarget } from '../settings';
import { type Dialect, postgresDialect } from './dialect';
import type { SqlValue, Statements } from './statements';

/** How long a connection may take, a statement may run, and a transaction may stand idle, in milliseconds. */
const CONNECT_MS = 5_000;
const STATEMENT_MS = 10_000;
const IDLE_IN_TRANSACTION_MS = 10_000;
/** When a connection that has gone silent is given up: the server ends a statement before. */
const ANSWER_MS = 12_000;

/** Ids and instants stay below 2^53, and so do sums of counters: they are numbers here. */
const NUMBERS = new Set<number>([pg.types.builtins.INT8, pg.types.builtins.NUMERIC]);

/** Options of the pool that reads and writes. */
export function poolOptions(target: PostgresTarget, poolSize: number): DataSourceOptions {
  return {
    type: 'postgres',
    // Given to the driver as it is: TypeORM would lose what it says of TLS.
    url: target.url,
    poolSize,
    installExtensions: false,
    extra: {
      application_name: 'control-plane',
      connectionTimeoutMillis: CONNECT_MS,
      statement_timeout: STATEMENT_MS,
      idle_in_transaction_session_timeout: IDLE_IN_TRANSACTION_MS,
      query_timeout: ANSWER_MS,
      keepAlive: true,
      types: {
        getTypeParser: (oid: number, format: 'text' | 'binary') =>
          NUMBERS.has(oid) ? Number : pg.types.getTypeParser(oid, format as 'text'),
      },
    },
  };
}

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
    return (await this.client.query(sql, values)).rows as Row[];
  }

  async first<Row>(sql: string, ...values: SqlValue[]): Promise<Row | undefined> {
    return (await this.rows<Row>(sql, ...values))[0];
  }

  async run(sql: string, ...values: SqlValue[]): Promise<number> {
    return (await this.client.query(sql, values)).rowCount ?? 0;
  }
}

/** Two units got into each other's way; one of them runs again. Source: PostgreSQL's appendix A, class 40. */
const AGAIN = new Set(['40001', '40P01']);

/** The server or the way to it, not the statement: it may be well again soon. Source: the same, classes 08, 53, 57. */
const AWAY = /^(?:08|53|57|25P03$|25006$|XX000$)/;

const codeOf = (error: unknown): string => String((error as { code?: unknown } | null)?.code ?? '');

/** Whether the same unit of work may succeed when it is run again at once. */
export const mayRunAgain = (error: unknown): boolean => AGAIN.has(codeOf(error));

/** An error as the caller gets it: where the server can't be had now, retryable and with when to come again. */
export function explained(error: unknown): unknown {
  // The socket's errors are not instances of this realm's Error where a test runs in one of its own.
  if (error instanceof ApiError || !types.isNativeError(error)) return error;
  const isServerError = error instanceof pg.DatabaseError;
  const away = isServerError ? AWAY.test(codeOf(error)) || mayRunAgain(error) : isConnectionError(error);
  if (!away) return error;
  return fail('ERR_UNAVAILABLE', undefined, {
    message: 'The database cannot answer now; try again later.',
    retryAfterMs: 1_000,
    cause: error,
  });
}

/** Of node-postgres and of the socket beneath it; they have no class of their own. */
function isConnectionError(error: Error): boolean {
  return (
    'errno' in error || /connection|connect|timeout|terminat|socket|ended|not queryable/i.test(error.message)
  );
}
