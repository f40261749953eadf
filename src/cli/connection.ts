import { existsSync, readFileSync } from 'node:fs';
import { DatabaseInUse } from '../database/database-error';
import type { Statements } from '../database/statements';
import type { ServerFile } from '../http/server-proof';
import {
  adminTokenFile,
  type DatabaseTarget,
  type Settings,
  type SqliteTarget,
  serverFile,
} from '../settings';
import { CommandError, EXIT } from './command-error';
import { ProvenConnection, readServerFile } from './local-server';
import type { Terminal } from './terminal';

const NEEDS_SERVER =
  "\nThis needs a running server: start one (`make start` in the project's folder, `control-plane serve` elsewhere), or\n" +
  'set CONTROL_PLANE_URL and CONTROL_PLANE_TOKEN to reach one elsewhere.';

/** A call of the API. */
export interface Call {
  readonly method: 'GET' | 'POST' | 'PUT' | 'DELETE';
  /** With its query, encoded. */
  readonly path: string;
  /** JSON. */
  readonly body?: string;
  /** Makes a change safe to repeat. */
  readonly idempotencyKey?: string;
  /** Whether a second request has no second effect. */
  readonly repeatable: boolean;
  /** Whether the answer is plain text instead of JSON. */
  readonly isText?: true;
}

/** The answer to a call. */
export interface Answer {
  readonly status: number;
  /** Its content type; empty if there is none. */
  readonly type: string;
  /** In seconds. */
  readonly retryAfter: string | undefined;
  readonly text: string;
}

/** A way to send calls to a control plane. */
export interface Connection {
  /** For messages. */
  readonly name: string;
  /** Where the token came from, for messages. */
  readonly tokenSource: string;
  /** @throws NoAnswer no answer arrived */
  send(call: Call): Promise<Answer>;
  close(): Promise<void>;
}

/** How to connect. */
export interface ConnectOptions {
  /** How long to wait for an answer, in seconds. */
  readonly timeout: number;
  /** A file with the token to use. */
  readonly tokenFile?: string;
  /** Whether to work in this process if no server runs on the database. */
  readonly allowInProcess: boolean;
}

/** No answer arrived. */
export class NoAnswer extends Error {
  /** @param neverSent whether the request can't have arrived */
  constructor(
    message: string,
    readonly neverSent: boolean,
  ) {
    super(message);
  }
}

/**
 * Connects to the control plane:
 * - at the URL, if the settings have a URL and a token;
 * - otherwise to the server of the database on this machine, after it has proven itself: no token is sent before;
 * - if no server runs and the options allow it, in this process.
 * @throws CommandError none of these is possible
 */
export async function connect(
  terminal: Terminal,
  settings: Settings,
  options: ConnectOptions,
): Promise<Connection> {
  const chosen = chosenToken(settings, options);
  if (settings.url !== undefined && chosen) return connectByUrl(settings.url, chosen, options.timeout);
  const known = readServerFile(settings);
  const file = typeof known === 'object' ? known : undefined;
  const url = settings.url ?? file?.url;
  const identity = file && url !== undefined ? await identifyServer(url, file) : 'silent';
  if (file && url !== undefined && identity === 'proven')
    return connectProven(url, file, chosen ?? adminToken(settings), options.timeout);
  if (settings.url !== undefined) {
    if (identity === 'silent' && !(await isReachable(settings.url)))
      throw new CommandError(`${settings.url} can't be reached.${NEEDS_SERVER}`, EXIT.retry);
    throw new CommandError(
      `${settings.url} has not proven to be the server of ${databaseName(settings.database)} on this machine, so the admin's own ` +
        'token was not sent there. Set CONTROL_PLANE_TOKEN, or name a file with --token-file, to send that one.',
      EXIT.usage,
    );
  }
  const { database } = settings;
  if (options.allowInProcess && databaseExists(database)) {
    try {
      return await connectInProcess(terminal, settings);
    } catch (error) {
      if (!(error instanceof DatabaseInUse)) throw error;
    }
  }
  const reason =
    identity === 'stranger'
      ? `What answers at ${url} is not the server of ${databaseName(database)}; no token was sent to it.`
      : file
        ? `The server that ran at ${url} does not answer.`
        : describeUnknownServer(database, known);
  throw new CommandError(reason + NEEDS_SERVER, EXIT.retry);
}

/** Explains why no server of a database is known. */
function describeUnknownServer(database: DatabaseTarget, known: ReturnType<typeof readServerFile>): string {
  const file = serverFile(database);
  if (known === 'other')
    return `The server known here has another database: the one that wrote ${file} does not serve ${databaseName(database)}. Nothing was sent to it.`;
  const problem = known === 'unknown' ? `${file} is not one that this version reads` : `there is no ${file}`;
  return `No server of ${databaseName(database)} is known on this machine: ${problem}.`;
}

/**
 * Identifies what listens at an address, without sending a token.
 * @returns `proven`: the server that wrote the file; `stranger`: something else; `silent`: nothing
 */
export async function identifyServer(
  url: string,
  file: ServerFile,
): Promise<'proven' | 'stranger' | 'silent'> {
  // The server itself speaks plain HTTP. Behind https there is a proxy, which can't prove anything.
  if (!url.startsWith('http://')) return 'stranger';
  try {
    const connection = await ProvenConnection.open(url, file);
    if (connection === 'stranger') return connection;
    connection.close();
    return 'proven';
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    return ['ECONNREFUSED', 'EHOSTUNREACH', 'ENETUNREACH', 'EADDRNOTAVAIL', 'ENOTFOUND'].includes(code ?? '')
      ? 'silent'
      : 'stranger';
  }
}

async function isReachable(url: string): Promise<boolean> {
  try {
    const response = await fetch(`${url}/healthz`, {
      redirect: 'manual',
      signal: AbortSignal.timeout(2_000),
    });
    await response.body?.cancel();
    return true;
  } catch {
    return false;
  }
}

/**
 * Runs the application in this process, without listening: with the same rules and the same audit log. It creates only what
 * the call asks for.
 * @throws DatabaseInUse a server has the database
 */
async function connectInProcess(terminal: Terminal, settings: Settings): Promise<Connection> {
  if (databaseExists(settings.database)) {
    const { inspectDatabase } = await import('../database/open-database.js');
    await inspectDatabase(settings.database, (statements) => requireMigrated(statements, settings.database));
  }
  const { createApp } = await import('../app.js');
  const { OperatorsService } = await import('../operators/operators.service.js');
  // Only a server migrates the database, creates the admin and the keys, and runs jobs.
  const { app, stop } = await createApp(
    { ...settings, logLevel: 'silent', migrateOnStart: false },
    { serves: false },
  );
  const name = databaseName(settings.database);
  terminal.note(`No server runs on ${name}: working on it directly.`);
  const token = app.get(OperatorsService).admitCommandLine();
  return {
    name,
    tokenSource: 'this process',
    close: stop,
    async send({ method, path, body }) {
      const answer = await app.inject({
        method,
        url: path,
        headers: { authorization: `Bearer ${token}`, host: 'localhost', 'content-type': 'application/json' },
        payload: body,
      });
      return {
        status: answer.statusCode,
        type: String(answer.headers['content-type'] ?? ''),
        retryAfter: undefined,
        text: answer.payload,
      };
    },
  };
}

function connectByUrl(url: string, { token, source }: Token, timeout: number): Connection {
  return {
    name: url,
    tokenSource: source,
    close: () => Promise.resolve(),
    async send({ method, path, body, idempotencyKey }) {
      try {
        const response = await fetch(url + path, {
          method,
          // A followed redirect would turn a POST into a GET, and could lead the token elsewhere.
          redirect: 'manual',
          signal: AbortSignal.timeout(timeout * 1_000),
          headers: headersOf(token, body, idempotencyKey),
          body,
        });
        return {
          status: response.status,
          type: response.headers.get('content-type') ?? '',
          retryAfter: response.headers.get('retry-after') ?? undefined,
          text: await response.text(),
        };
      } catch (error) {
        throw noAnswer(url, error as Error, timeout);
      }
    },
  };
}

/** Makes the server prove itself for each call: it may have stopped, and another program may have taken its port. */
function connectProven(url: string, file: ServerFile, { token, source }: Token, timeout: number): Connection {
  return {
    name: url,
    tokenSource: source,
    close: () => Promise.resolve(),
    async send({ method, path, body, idempotencyKey }) {
      let connection: ProvenConnection | 'stranger' | undefined;
      try {
        connection = await ProvenConnection.open(url, file);
        if (connection === 'stranger')
          throw new CommandError(`${url} is another program by now; no token was sent to it.`, EXIT.retry);
        const answer = await connection.send({
          method,
          path,
          body,
          headers: headersOf(token, body, idempotencyKey),
          timeoutMs: timeout * 1_000,
        });
        return {
          status: answer.status,
          type: String(answer.headers['content-type'] ?? ''),
          retryAfter: answer.headers['retry-after'] as string | undefined,
          text: answer.text,
        };
      } catch (error) {
        if (error instanceof CommandError) throw error;
        throw noAnswer(url, error as Error, timeout);
      } finally {
        if (connection !== undefined && connection !== 'stranger') connection.close();
      }
    },
  };
}

function headersOf(token: string, body: string | undefined, idempotencyKey: string | undefined) {
  return {
    authorization: `Bearer ${token}`,
    ...(body === undefined ? {} : { 'content-type': 'application/json' }),
    ...(idempotencyKey === undefined ? {} : { 'idempotency-key': idempotencyKey }),
  };
}

function noAnswer(url: string, error: Error, timeout: number): NoAnswer {
  if (error.name === 'TimeoutError') return new NoAnswer(`${url} gave no answer within ${timeout} s.`, false);
  const { code, message } = (error.cause ?? error) as NodeJS.ErrnoException;
  const neverSent = ['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'EHOSTUNREACH', 'ENETUNREACH'].includes(
    code ?? '',
  );
  return new NoAnswer(
    `${url} can't be reached (${code ?? message}).${neverSent ? NEEDS_SERVER : ''}`,
    neverSent,
  );
}

interface Token {
  readonly token: string;
  /** Where it came from, for messages. */
  readonly source: string;
}

/** Returns the token of the option or the settings; undefined if there is none. */
function chosenToken(settings: Settings, { tokenFile }: ConnectOptions): Token | undefined {
  if (tokenFile !== undefined) return checkToken({ token: readToken(tokenFile), source: tokenFile });
  return settings.token === undefined ? undefined : { token: settings.token, source: 'CONTROL_PLANE_TOKEN' };
}

/** Returns the admin's own token. Send it only to a server that has proven to have the database. */
function adminToken(settings: Settings): Token {
  if (settings.adminToken !== undefined)
    return { token: settings.adminToken, source: 'CONTROL_PLANE_ADMIN_TOKEN' };
  const file = adminTokenFile(settings.database);
  if (existsSync(file)) return checkToken({ token: readToken(file), source: file });
  throw new CommandError(
    "There is no operator's token: set CONTROL_PLANE_TOKEN, or name a file with --token-file.",
    EXIT.usage,
  );
}

function checkToken(found: Token): Token {
  if (!/^[\x21-\x7e]{1,512}$/.test(found.token))
    throw new CommandError(
      `The token of ${found.source} must be 1 to 512 visible ASCII characters.`,
      EXIT.usage,
    );
  return found;
}

function readToken(file: string): string {
  try {
    return readFileSync(file, 'utf8').trim();
  } catch (error) {
    throw new CommandError(
      `The token's file ${file} can't be read (${(error as NodeJS.ErrnoException).code}).`,
      EXIT.usage,
    );
  }
}

/** Whether the database is an existing SQLite file. False for PostgreSQL: only its server knows. */
export function databaseExists(database: DatabaseTarget): database is SqliteTarget {
  return database.type === 'sqlite' && existsSync(database.path);
}

/** Names a database in messages, without the password that its address may hold. */
export function databaseName(database: DatabaseTarget): string {
  return database.type === 'sqlite' ? database.path : 'the PostgreSQL database';
}

/** Checks the migrations. @throws CommandError some are missing; only `serve` and `migrate` apply them */
export async function requireMigrated(statements: Statements, target: DatabaseTarget): Promise<void> {
  const { pendingMigrations } = await import('../database/migrations.js');
  if ((await pendingMigrations(statements.manager.dataSource)).length > 0)
    throw new CommandError(
      `${databaseName(target)} lacks migrations: control-plane migrate applies them.`,
      EXIT.failed,
    );
}
