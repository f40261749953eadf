import { copyFileSync, existsSync, mkdtempSync, rmSync } from 'node:fs';
import type { ServerResponse } from 'node:http';
import { type AddressInfo, connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type ControlPlane, createApp, type Replacements } from '../../src/app';
import { Clock } from '../../src/clock';
import type { AgentIdentity, OperatorIdentity } from '../../src/http/control-plane-request';
import { hashToken } from '../../src/http/tokens';
import { QueueMaintainer } from '../../src/queue/maintenance';
import { Continuity } from '../../src/scheduling/continuity';
import { readSettings, SETTINGS, type Settings } from '../../src/settings';
import { createLogger } from '../../src/telemetry/logger';
import type { BodyOf, Json, Unlisted } from './api';
import { PostgresDatabases } from './postgres-databases';

/** The operator's token that every test's server knows. As one that was minted: a slow hash would slow every start. */
export const ADMIN_TOKEN = 'dcpo_HJQeijoq4qFnjlYGZmrlSuVgk6zCcJaJUn7SLiTOqun3Vz151';

/** The environment of a process that a test starts: no settings, and what was compiled once is not compiled again. */
export const CHILD_ENV = {
  PATH: process.env.PATH,
  NODE_COMPILE_CACHE: join(__dirname, '../../.cache/compile'),
};

/** The operator in a test that calls the services without HTTP. */
export const OPERATOR: OperatorIdentity = { tokenId: 1, name: 'test', role: 'admin', address: '127.0.0.1' };

/** A clock that moves when it is told to. */
export class TestClock extends Clock {
  constructor(private instant = Date.UTC(2026, 0, 1)) {
    super();
  }

  override now(): number {
    return this.instant;
  }

  advance(ms: number): void {
    this.instant += ms;
  }
}

/** An answer, read. */
export interface Answer<Body = Unlisted> {
  status: number;
  headers: Headers;
  body: Body;
}

/** What a request may carry. */
export interface Call {
  headers?: Record<string, string>;
  /** Sent as JSON; a string or bytes go as they are. */
  body?: unknown;
  /** Gives the request up. */
  signal?: AbortSignal;
}

/** An agent's id and token. */
export interface Credentials {
  agent_id: number;
  auth_token: string;
}

/** Whether the tests run on PostgreSQL; jest's project says so. */
export const onPostgres = (globalThis as { testDatabase?: string }).testDatabase === 'postgres';

const databases = new PostgresDatabases();
if (onPostgres) afterAll(() => databases.end());

/** The database that belongs to a folder; it is made, migrated, if it is not there yet. */
export async function databaseIn(folder: string): Promise<string> {
  if (onPostgres) return databases.take(folder);
  const file = join(folder, 'test.db');
  const template = process.env.CONTROL_PLANE_TEST_SQLITE_TEMPLATE;
  if (template && !existsSync(file)) copyFileSync(template, file);
  return `sqlite://${file}`;
}

/**
 * Where a server whose folder this is keeps a file beside its database, and what is to be done first. On PostgreSQL that is
 * its working directory, so the folder is made the one of this process, until `leave`.
 */
export function besideDatabase(folder: string): { path: (suffix: string) => string; leave: () => void } {
  const before = process.cwd();
  if (onPostgres) process.chdir(folder);
  return {
    path: (suffix) => join(folder, `${onPostgres ? 'control-plane' : 'test'}.${suffix}`),
    leave: () => process.chdir(before),
  };
}

/** Takes away a folder and the database that belongs to it. */
export async function removeDatabaseIn(folder: string): Promise<void> {
  await databases.giveBack(folder);
  rmSync(folder, { recursive: true, force: true });
}

/** Settings, by their names after `CONTROL_PLANE_`, by which nobody is told to wait. */
export const NO_QUOTAS: Readonly<Record<string, string>> = Object.fromEntries(
  [
    ...['REGISTER', 'HEARTBEAT', 'CLAIM', 'EXTEND', 'REPORT', 'METRICS', 'CONFIG', 'PUBLIC', 'OPERATOR'].map(
      (route) => `QUOTA_${route}`,
    ),
    ...['REGISTER_PER_IP', 'REGISTER_TOTAL', 'FAILED_AUTH_PER_IP', 'PARSE_FAILURES'],
  ].map((name) => [name, 'off']),
);

/** Calls a server, whatever it runs in. */
export class ServerClient {
  constructor(readonly url: string) {}

  /** Sends a request and reads the answer. */
  async request<Method extends string, Path extends string>(
    method: Method,
    path: Path,
    { headers = {}, body, signal }: Call = {},
  ): Promise<Answer<BodyOf<Method, Path>>> {
    const raw = typeof body === 'string' || body instanceof Uint8Array;
    const response = await fetch(this.url + path, {
      ...{ method, signal },
      headers: { ...(body === undefined ? {} : { 'content-type': 'application/json' }), ...headers },
      body:
        body === undefined
          ? undefined
          : raw
            ? (body as string | Uint8Array<ArrayBuffer>)
            : JSON.stringify(body),
    });
    const text = await response.text();
    const isJson = /json/.test(response.headers.get('content-type') ?? '');
    return {
      status: response.status,
      headers: response.headers,
      body: isJson && text !== '' ? JSON.parse(text) : text,
    };
  }

  /** Calls as the admin. */
  operator<Method extends string, Path extends string>(
    method: Method,
    path: Path,
    body?: unknown,
    headers: Record<string, string> = {},
  ): Promise<Answer<BodyOf<Method, Path>>> {
    return this.request(method, path, {
      headers: { authorization: `Bearer ${ADMIN_TOKEN}`, ...headers },
      body,
    });
  }

  /** Calls as an agent; the body names it unless it says otherwise. */
  agent<Path extends string>(
    who: Credentials,
    path: Path,
    body: object = {},
    headers: Record<string, string> = {},
  ): Promise<Answer<BodyOf<'POST', Path>>> {
    return this.request('POST', path, {
      headers: { ...credentialsOf(who), ...headers },
      body: { agent_id: who.agent_id, ...body },
    });
  }

  /** Registers an agent. */
  async register(hostname?: string): Promise<Credentials> {
    const { status, body } = await this.request('POST', '/register', {
      body: hostname === undefined ? {} : { hostname },
    });
    if (status !== 200) throw new Error(`register: ${status} ${JSON.stringify(body)}`);
    return body;
  }

  /** Enqueues tasks and tells their ids. */
  async enqueue(...tasks: object[]): Promise<number[]> {
    const { status, body } = await this.operator('POST', '/v1/tasks', { tasks });
    if (status !== 201) throw new Error(`enqueue: ${status} ${JSON.stringify(body)}`);
    return body.tasks.map((task: { id: number }) => task.id);
  }
}

/** A server of its own for a test: the built application, over real HTTP, on a database file. */
export class TestServer extends ServerClient {
  private constructor(
    private readonly plane: ControlPlane,
    url: string,
    readonly folder: string,
  ) {
    super(url);
  }

  /**
   * @param env settings by their names after `CONTROL_PLANE_`; quotas are off where nothing is said
   * @param options.folder the folder of a server before, to start again on its database
   */
  static async start(
    env: Record<string, string> = {},
    { folder: given, ...replacements }: Replacements & { folder?: string } = {},
  ): Promise<TestServer> {
    const folder = given ?? mkdtempSync(join(tmpdir(), 'control-plane-'));
    const named: Record<string, string> = {
      ...NO_QUOTAS,
      DATABASE_URL: await databaseIn(folder),
      ADMIN_TOKEN,
      LOG_LEVEL: 'silent',
      // Its reserve takes time to write, for each server.
      MIN_FREE_DISK_MB: '0',
      // On SQLite it is beside the database by itself.
      ...(onPostgres ? { SIGNING_KEY_FILE: join(folder, 'test.signing-key.pem'), POOL_SIZE: '4' } : {}),
      // A machine that is busy with other tests must not look like a server that is overloaded.
      MAX_EVENT_LOOP_DELAY_MS: '60000',
      ...env,
    };
    const settings = readSettings(
      Object.fromEntries(
        Object.entries(named)
          .filter(([, value]) => value !== 'default')
          .map(([name, value]) => [`CONTROL_PLANE_${name}`, value]),
      ),
    );
    // Not to standard output: it gets a listener from each test file, and one process runs many of them.
    const logger = createLogger(settings, { write: () => undefined });
    const plane = await createApp(settings, { logger, ...replacements });
    await plane.app.listen({ host: '127.0.0.1', port: 0 });
    const { port } = plane.app.getHttpServer().address() as AddressInfo;
    return new TestServer(plane, `http://127.0.0.1:${port}`, folder);
  }

  get app(): ControlPlane['app'] {
    return this.plane.app;
  }

  get answers(): ControlPlane['answers'] {
    return this.plane.answers;
  }

  get database(): ControlPlane['database'] {
    return this.plane.database;
  }

  /** Leaves the file by which the command line finds this server, as a server that was started by itself does. */
  announce(): void {
    this.plane.announce();
  }

  /** Sends an agent's request and gives up on it after `afterMs`. @throws Error it was aborted */
  async abandon(agent: Credentials, path: string, body: object, afterMs: number): Promise<void> {
    await this.request('POST', path, {
      headers: credentialsOf(agent),
      body: { agent_id: agent.agent_id, ...body },
      signal: AbortSignal.timeout(afterMs),
    }).catch((error: Error) => {
      throw new Error('aborted', { cause: error });
    });
  }

  /**
   * Lets time pass on the test's clock while the service runs, a second at a time: nothing looks like an outage, as it does if the
   * clock jumps by more than 5 s. Leases expire, and tasks come due.
   * @param options.reaps false if nobody looks for what is due: deadlines are missed
   */
  async pass(ms: number, { reaps = true } = {}): Promise<void> {
    const clock = this.app.get(Clock);
    if (!(clock instanceof TestClock)) throw new Error('the server was started without a TestClock');
    const look = () => (reaps ? this.app.get(QueueMaintainer).reap() : serviceRuns(this.app));
    if (!reaps) await look();
    for (let left = ms; left > 0; left -= 1_000) {
      clock.advance(Math.min(left, 1_000));
      await look();
    }
  }

  /** Rows of the database. */
  rows<Row = Json>(sql: string, ...values: (string | number | null)[]): Promise<Row[]> {
    return this.database.read((statements) => statements.rows<Row>(sql, ...values));
  }

  /** The names of the database's tables. */
  async tables(): Promise<string[]> {
    const rows = await this.rows<{ name: string }>(
      onPostgres
        ? `SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'`
        : `SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'`,
    );
    return rows.map(({ name }) => name).sort();
  }

  private change(sql: string): Promise<number> {
    return this.database.write((tx) => tx.run(sql));
  }

  /** Has every such change of a table fail, until {@link allow}. */
  async forbid(verb: 'INSERT' | 'UPDATE', table: string): Promise<void> {
    const trigger = `CREATE TRIGGER forbidden BEFORE ${verb} ON ${table}`;
    await this.change(
      onPostgres
        ? `CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'forbidden'; END $$;
           ${trigger} FOR EACH ROW EXECUTE FUNCTION forbid()`
        : `${trigger} BEGIN SELECT RAISE(ABORT, 'forbidden'); END`,
    );
  }

  /** Lets be changed again what was forbidden. */
  async allow(): Promise<void> {
    await this.change(onPostgres ? 'DROP FUNCTION forbid CASCADE' : 'DROP TRIGGER forbidden');
  }

  /**
   * Holds the writer, so that whatever writes waits in its queue. On PostgreSQL that is every connection of the pool, and
   * what reads waits too. @returns what lets it go on
   */
  async holdWriter(): Promise<() => Promise<unknown>> {
    const gate = Promise.withResolvers<void>();
    const all = Promise.withResolvers<void>();
    const units: Promise<unknown>[] = [];
    const hold = async (count: number): Promise<void> => {
      for (let i = 0; i < count; i++) {
        const holding = Promise.withResolvers<void>();
        units.push(
          this.database.write(() => {
            holding.resolve();
            return gate.promise;
          }),
        );
        await holding.promise;
      }
      all.resolve();
    };
    // A job of the service holds a connection and needs another one: while this has the turn of jobs, none does.
    if (onPostgres)
      units.push(
        this.database.exclusively('hold-writer', async () => {
          await hold(this.app.get<Settings>(SETTINGS).poolSize - 1);
          await gate.promise;
        }),
      );
    else void hold(1);
    await all.promise;
    return () => {
      gate.resolve();
      return Promise.all(units);
    };
  }

  /** Has the server drain, as it does when it is told to stop. */
  drain(cut?: AbortSignal): Promise<void> {
    return this.plane.drain(cut);
  }

  /** Stops the server; its files stay where `keep` is given. */
  async stop({ keep = false } = {}): Promise<void> {
    await this.plane.stop();
    if (!keep) await removeDatabaseIn(this.folder);
  }
}

/** Has a server notice that the service runs at this instant, as it does by itself all the time. */
export async function serviceRuns(app: ControlPlane['app']): Promise<void> {
  const continuity = app.get(Continuity);
  await continuity.refresh();
  continuity.runningSince();
}

/** Sends text as it is on a connection of its own. @returns all that is answered */
export function exchange(url: string, text: string): Promise<string> {
  const { hostname, port } = new URL(url);
  return new Promise((resolve, reject) => {
    const socket = connect(Number(port), hostname, () => socket.write(text));
    let received = '';
    socket.on('data', (chunk) => {
      received += chunk;
    });
    socket.on('end', () => resolve(received)).on('error', reject);
  });
}

/** Answers with what a server answered, as a proxy does. */
export function passOn({ status, headers, body }: Answer, response: ServerResponse): void {
  response.writeHead(status, { 'content-type': headers.get('content-type') ?? 'text/plain' });
  response.end(typeof body === 'string' ? body : JSON.stringify(body));
}

/** The headers of an agent's credentials. */
export function credentialsOf(who: Credentials): Record<string, string> {
  return { 'x-agent-id': String(who.agent_id), 'x-agent-token': who.auth_token };
}

/** An agent as the guards know it, for a call past them. */
export const identityOf = (who: Credentials): AgentIdentity => ({
  id: who.agent_id,
  tokenHash: hashToken(who.auth_token),
});

/** A token with another last character, which its checksum shows. */
export const withTypo = (token: string): string => token.slice(0, -1) + (token.endsWith('0') ? '1' : '0');

/** A dns task. */
export const dnsTask = (fields: object = {}, spec: object = {}) => ({
  kind: 'dns',
  spec: { query: 'example.com', ...spec },
  ...fields,
});
