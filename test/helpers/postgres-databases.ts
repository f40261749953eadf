import { randomUUID } from 'node:crypto';
import pg from 'pg';

const {
  CONTROL_PLANE_TEST_POSTGRES_URL: URL_OF_SERVER,
  CONTROL_PLANE_TEST_POSTGRES_TEMPLATE: TEMPLATE,
  CONTROL_PLANE_TEST_POSTGRES_PREFIX: PREFIX,
} = process.env;

/** What a database has beside its rows: what a test adds to it can't be wiped away by the row. */
const SHAPE = `SELECT md5(string_agg(thing, ' ' ORDER BY thing)) AS shape FROM (
    SELECT relname::text || relkind::text AS thing FROM pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT tgname::text FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT attname::text || attrelid::text FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
      WHERE relnamespace = 'public'::regnamespace AND attnum > 0
  ) AS things`;

const OTHERS = `SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
  WHERE datname = current_database() AND pid <> pg_backend_pid()`;

/** Tables that hold, or held, much: to delete their rows would leave as much to scan. */
const LARGE = `SELECT string_agg(quote_ident(relname), ', ') AS large FROM pg_class
  WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND pg_relation_size(oid) > 200000`;

/** A database with a connection to it. */
interface Database {
  readonly name: string;
  readonly client: pg.Client;
}

const addressOf = (name: string): string => {
  const url = new URL(URL_OF_SERVER as string);
  url.pathname = `/${name}`;
  return url.href;
};

async function connect(address: string): Promise<pg.Client> {
  const client = new pg.Client(address);
  // A test may end all connections of the server.
  client.on('error', () => undefined);
  await client.connect();
  return client;
}

/**
 * The databases of a test file on PostgreSQL. To make one takes longer than most tests, so a returned one is wiped
 * and used again.
 */
export class PostgresDatabases {
  private readonly used = new Map<string, Database>();
  private readonly free: Database[] = [];
  private administrator: Promise<pg.Client> | undefined;
  /** As the template is: its shape, and the statements that take a database of its shape back to it. */
  private template: { shape: string; wipe: string } | undefined;

  /** The address of the database that goes by a name; a migrated one, if there was none yet. */
  async take(name: string): Promise<string> {
    let database = this.used.get(name);
    if (!database) {
      database = this.free.pop() ?? (await this.create());
      this.used.set(name, database);
    }
    return addressOf(database.name);
  }

  /** Takes the database away that goes by a name, with whatever is still connected to it. */
  async giveBack(name: string): Promise<void> {
    const database = this.used.get(name);
    if (!database) return;
    this.used.delete(name);
    if (await this.wipe(database)) this.free.push(database);
    else await this.drop(database);
  }

  /** Takes all of them away. */
  async end(): Promise<void> {
    for (const database of [...this.used.values(), ...this.free.splice(0)]) await this.drop(database);
    this.used.clear();
    await (await this.administrator)?.end();
    this.administrator = undefined;
  }

  private async create(): Promise<Database> {
    const name = `${PREFIX}${randomUUID()}`;
    await this.administer(`CREATE DATABASE "${name}" TEMPLATE "${TEMPLATE}" STRATEGY file_copy`);
    const database = { name, client: await connect(addressOf(name)) };
    this.template ??= { shape: await shapeOf(database), wipe: await wipeOf(database) };
    return database;
  }

  private async drop({ name, client }: Database): Promise<void> {
    await client.end().catch(() => undefined);
    await this.administer(`DROP DATABASE "${name}" WITH (FORCE)`);
  }

  private async administer(sql: string): Promise<void> {
    this.administrator ??= connect(URL_OF_SERVER as string);
    await (await this.administrator).query(sql);
  }

  /** @returns whether it is as the template is now */
  private async wipe(database: Database): Promise<boolean> {
    try {
      await database.client.query(OTHERS);
      if ((await shapeOf(database)) !== this.template?.shape) return false;
      const { rows } = await database.client.query<{ large: string | null }>(LARGE);
      if (rows[0]?.large) await database.client.query(`TRUNCATE ${rows[0].large} CASCADE`);
      await database.client.query(this.template.wipe);
      return true;
    } catch {
      return false;
    }
  }
}

async function shapeOf({ client }: Database): Promise<string> {
  return (await client.query(SHAPE)).rows[0].shape;
}

/** What takes a database of the same shape back to the rows and the sequences that this one has. */
async function wipeOf({ client }: Database): Promise<string> {
  const { rows: tables } = await client.query<{ name: string }>(
    `SELECT quote_ident(tablename) AS name FROM pg_tables WHERE schemaname = 'public'`,
  );
  // Deleting what little a test leaves is ten times as quick as TRUNCATE. All goes, so no foreign key is asked.
  const statements = ['BEGIN', 'SET LOCAL session_replication_role = replica'];
  for (const { name } of tables) statements.push(`DELETE FROM ${name}`);
  for (const { name } of tables) {
    const { rows } = await client.query<{ all: string | null }>(
      `SELECT quote_literal(json_agg(t)::text) AS all FROM ${name} AS t`,
    );
    const [{ all }] = rows as [{ all: string | null }];
    if (all !== null)
      statements.push(
        `INSERT INTO ${name} OVERRIDING SYSTEM VALUE SELECT * FROM json_populate_recordset(NULL::${name}, ${all})`,
      );
  }
  const { rows: sequences } = await client.query<{ name: string; last: string; called: boolean }>(
    `SELECT quote_literal(quote_ident(sequencename)) AS name, coalesce(last_value, start_value) AS last,
       last_value IS NOT NULL AS called
     FROM pg_sequences WHERE schemaname = 'public'`,
  );
  for (const { name, last, called } of sequences)
    statements.push(`SELECT setval(${name}, ${last}, ${called})`);
  return [...statements, 'COMMIT'].join(';\n');
}
