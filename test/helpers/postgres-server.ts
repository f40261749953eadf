import { randomUUID } from 'node:crypto';
import pg from 'pg';
import { PostgresProcess } from '../../scripts/postgres-process.mjs';
import type { Json } from './api';

/** The machine stays up, so what the kernel has is as good as on the disk. */
const SETTINGS = { fsync: 'off', jit: 'off', shared_buffers: '32MB', max_connections: '150' };

/** Numbers as numbers. */
const types = {
  getTypeParser: (oid: number, format: Json) =>
    oid === pg.types.builtins.INT8 ? Number : pg.types.getTypeParser(oid, format),
} as pg.CustomTypesConfig;

/** Does something on a connection of its own. */
export async function connected<T>(
  url: string,
  work: (rows: (sql: string) => Promise<Json[]>) => Promise<T>,
): Promise<T> {
  const client = new pg.Client({ connectionString: url, types });
  await client.connect();
  try {
    return await work(async (sql) => (await client.query(sql)).rows);
  } finally {
    await client.end();
  }
}

/** The rows of one statement. */
export const rowsAt = <Row = Json>(url: string, sql: string): Promise<Row[]> =>
  connected(url, (rows) => rows(sql));

/** The address of another database of the same server. */
export const databaseAt = (
  url: string,
  name: string,
  fields: Partial<Pick<URL, 'username' | 'password' | 'port'>> = {},
): string => Object.assign(new URL(url), { pathname: `/${name}`, ...fields }).href;

/** Databases of a test's own on the server that all tests share, empty when they are made. */
export class ScratchDatabases {
  private readonly names: string[] = [];

  /** @param url of the server; undefined if there is none */
  constructor(
    readonly url: string = process.env.CONTROL_PLANE_TEST_POSTGRES_URL as string,
    private readonly prefix: string = process.env.CONTROL_PLANE_TEST_POSTGRES_PREFIX ?? 'control_plane_',
  ) {}

  /** @param options of CREATE DATABASE @returns its name */
  async make(options = ''): Promise<string> {
    const name = `${this.prefix}${randomUUID()}`;
    this.names.push(name);
    await rowsAt(this.url, `CREATE DATABASE "${name}" ${options}`);
    return name;
  }

  /** @returns its address */
  async create(options = ''): Promise<string> {
    return databaseAt(this.url, await this.make(options));
  }

  /** Takes all of them away. */
  async drop(): Promise<void> {
    for (const name of this.names.splice(0))
      await rowsAt(this.url, `DROP DATABASE IF EXISTS "${name}" WITH (FORCE)`);
  }
}

/** A PostgreSQL server of a test's own, which it may treat badly. */
export class PostgresServer {
  private constructor(private readonly process: PostgresProcess) {}

  static async start(folder: string): Promise<PostgresServer> {
    return new PostgresServer(await PostgresProcess.start(folder, SETTINGS));
  }

  get port(): number {
    return this.process.port;
  }

  /** Starts it again. */
  run(): Promise<void> {
    return this.process.run();
  }

  /** Stops it: with SIGQUIT in immediate mode, in which no transaction is ended, no client told, nothing written. */
  stop(signal: 'SIGINT' | 'SIGQUIT'): Promise<void> {
    return this.process.stop(signal);
  }

  url(database: string, port = this.port): string {
    return this.process.url(database, port);
  }

  /** Does something on a connection, in one snapshot. */
  session<T>(database: string, work: (rows: (sql: string) => Promise<Json[]>) => Promise<T>): Promise<T> {
    return connected(this.url(database), async (rows) => {
      await rows('BEGIN ISOLATION LEVEL REPEATABLE READ');
      const value = await work(rows);
      await rows('COMMIT');
      return value;
    });
  }

  /** Makes an empty database. @returns its address */
  async create(database: string): Promise<string> {
    await rowsAt(this.url('postgres'), `CREATE DATABASE ${database}`);
    return this.url(database);
  }
}
