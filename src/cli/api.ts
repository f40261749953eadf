import { existsSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
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
import { EXIT, Failure } from './failure';
import { ProvenConnection, readServerFile } from './local-server';
import type { Terminal } from './terminal';

const ATTEMPTS = 3;
const FIRST_WAIT_MS = 500;

/** A server that asks for more patience than this gets none: the person is told instead. */
const MAX_WAIT_MS = 10_000;

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
  /** Makes a change that would otherwise happen twice safe to send again. */
  readonly idempotencyKey?: string;
  /** Whether a second time has no second effect. */
  readonly repeatable: boolean;
  /** Whether the answer is plain text, not JSON. */
  readonly isText?: true;
}

/** How to reach the control plane. */
export interface Access {
  /** Seconds to wait for an answer. */
  readonly timeout: number;
  readonly tokenFile?: string;
  /** Whether to work in this process where no server runs on the database. */
  readonly alsoWithoutServer: boolean;
}

interface Answer {
  readonly status: number;
  readonly type: string;
  readonly retryAfter: string | undefined;
  readonly text: string;
}

interface Connection {
  /** For messages. */
  readonly name: string;
  /** Where the token came from, for messages. */
  readonly tokenSource: string;
  send(call: Call): Promise<Answer>;
  close(): Promise<void>;
}

/** No answer came. */
class Unreachable extends Error {
  constructor(
    message: string,
    /** Whether the request can't have arrived. */
    readonly before: boolean,
  ) {
    super(message);
  }
}

/**
 * Makes one call and gives the answer's text, which is JSON or empty. What can be repeated is, a few times.
 * @throws Failure with what went wrong, in a sentence
 */
export async function callApi(
  terminal: Terminal,
  settings: Settings,
  access: Access,
  call: Call,
): Promise<string> {
  const connection = await connect(terminal, settings, access);
  try {
    for (let attempt = 1; ; attempt++) {
      const { failure, waitMs } = await attemptCall(connection, call);
      if (typeof failure === 'string') return failure;
      if (attempt === ATTEMPTS || waitMs === undefined || waitMs > MAX_WAIT_MS) throw failure;
      await sleep(Math.max(waitMs, FIRST_WAIT_MS * 2 ** (attempt - 1) * (0.5 + Math.random() / 2)));
    }
  } finally {
    await connection.close();
  }
}

/** @returns the answer's text, or why there is none and after how long the same may be tried again, if ever */
async function attemptCall(
  connection: Connection,
  call: Call,
): Promise<{ failure: string | Failure; waitMs?: number }> {
  const repeatable = call.repeatable || call.idempotencyKey !== undefined;
  let answer: Answer;
  try {
    answer = await connection.send(call);
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    const unknown = call.method === 'GET' || error.before ? '' : '\nWhether it had an effect is not known.';
    const failure = new Failure(error.message + unknown + howToRepeat(call), EXIT.retry);
    return { failure, waitMs: repeatable || error.before ? 0 : undefined };
  }
  if (
    answer.status >= 200 &&
    answer.status < 300 &&
    (answer.text === '' || (call.isText ? isText(answer) : isJson(answer)))
  )
    return { failure: answer.text };
  const failure = explain(connection, call, answer);
  const waits = failure.exitCode === EXIT.retry && (repeatable || answer.status === 429);
  return { failure, waitMs: waits ? 1_000 * (Number(answer.retryAfter) || 0) : undefined };
}

function explain(connection: Connection, call: Call, answer: Answer): Failure {
  const envelope = isJson(answer) ? (JSON.parse(answer.text) as Record<string, unknown>) : {};
  const { error, message, retryable, details } = envelope;
  if (typeof error !== 'string') {
    const what = answer.type === '' ? 'no content' : answer.type;
    return new Failure(
      `${connection.name} answered ${answer.status} with ${what}, which is not a control plane's answer. ` +
        'Is the address right, and does a proxy in between reach the server?',
      answer.status >= 500 ? EXIT.retry : EXIT.failed,
    );
  }
  const lines = [`${message} (${error})`];
  for (const [field, problem] of Object.entries((details as object | undefined) ?? {}))
    lines.push(`  ${field}: ${typeof problem === 'string' ? problem : JSON.stringify(problem)}`);
  if (answer.status === 401) lines.push(`The token is from ${connection.tokenSource}.`);
  if (answer.retryAfter !== undefined) lines.push(`Try again in ${answer.retryAfter} s.`);
  const exitCode = retryable === true ? EXIT.retry : EXIT.failed;
  return new Failure(
    lines.join('\n') + (exitCode === EXIT.retry ? howToRepeat(call) : ''),
    exitCode,
    answer.text,
  );
}

const howToRepeat = ({ idempotencyKey }: Call): string =>
  idempotencyKey === undefined
    ? ''
    : `\nTo try again without a second effect: --idempotency-key ${idempotencyKey}`;

const isText = ({ type }: Answer): boolean => /^text\/plain\b/i.test(type);

function isJson({ type, text }: Answer): boolean {
  if (!/^application\/json\b/i.test(type)) return false;
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null;
  } catch {
    return false;
  }
}

/**
 * Finds the control plane. A token that was chosen for an address goes there. Otherwise the server is the one of this
 * machine that has the database, and it proves that before any token is sent. If none runs and the call allows it, this
 * process works on the database.
 */
async function connect(terminal: Terminal, settings: Settings, access: Access): Promise<Connection> {
  const chosen = chosenToken(settings, access);
  if (settings.url !== undefined && chosen) return withServer(settings.url, chosen, access.timeout);
  const known = readServerFile(settings);
  const file = typeof known === 'object' ? known : undefined;
  const url = settings.url ?? file?.url;
  const found = file && url !== undefined ? await standingOf(url, file) : 'silent';
  if (file && url !== undefined && found === 'proven')
    return withProvenServer(url, file, chosen ?? adminToken(settings), access.timeout);
  if (settings.url !== undefined) {
    if (found === 'silent' && !(await answers(settings.url)))
      throw new Failure(`${settings.url} can't be reached.${NEEDS_SERVER}`, EXIT.retry);
    throw new Failure(
      `${settings.url} has not proven to be the server of ${nameOf(settings.database)} on this machine, so the admin's own ` +
        'token was not sent there. Set CONTROL_PLANE_TOKEN, or name a file with --token-file, to send that one.',
      EXIT.misused,
    );
  }
  const { database } = settings;
  if (access.alsoWithoutServer && isThere(database)) {
    try {
      return await withoutServer(terminal, settings);
    } catch (error) {
      if (!(error instanceof DatabaseInUse)) throw error;
    }
  }
  const why =
    found === 'stranger'
      ? `What answers at ${url} is not the server of ${nameOf(database)}; no token was sent to it.`
      : file
        ? `The server that ran at ${url} does not answer.`
        : unknownServer(database, known);
  throw new Failure(why + NEEDS_SERVER, EXIT.retry);
}

/** Why no server of a database is known. */
function unknownServer(database: DatabaseTarget, known: ReturnType<typeof readServerFile>): string {
  const file = serverFile(database);
  if (known === 'other')
    return `The server known here has another database: the one that wrote ${file} does not serve ${nameOf(database)}. Nothing was sent to it.`;
  const problem = known === 'unknown' ? `${file} is not one that this version reads` : `there is no ${file}`;
  return `No server of ${nameOf(database)} is known on this machine: ${problem}.`;
}

/** What listens at an address: the server that wrote the file, something else, or nothing. No token is sent. */
export async function standingOf(url: string, file: ServerFile): Promise<'proven' | 'stranger' | 'silent'> {
  // The server itself speaks plain HTTP; what is behind https is a proxy, which can't prove anything.
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

async function answers(url: string): Promise<boolean> {
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
 * The same application, without listening: the same rules, the same audit log. It makes nothing that it was not asked
 * for.
 * @throws DatabaseInUse a server has the database
 */
async function withoutServer(terminal: Terminal, settings: Settings): Promise<Connection> {
  if (isThere(settings.database)) {
    const { inspectDatabase } = await import('../database/open-database.js');
    await inspectDatabase(settings.database, (statements) => requireMigrated(statements, settings.database));
  }
  const { createApp } = await import('../app.js');
  const { OperatorsService } = await import('../operators/operators.service.js');
  // It is for the server to migrate the database, to make an admin and keys, and to do what time asks for.
  const { app, stop } = await createApp(
    { ...settings, logLevel: 'silent', migrateOnStart: false },
    { serves: false },
  );
  terminal.note(`No server runs on ${nameOf(settings.database)}: working on it directly.`);
  const token = app.get(OperatorsService).admitCommandLine();
  return {
    name: nameOf(settings.database),
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

function withServer(url: string, { token, source }: Token, timeout: number): Connection {
  return {
    name: url,
    tokenSource: source,
    close: () => Promise.resolve(),
    async send({ method, path, body, idempotencyKey }) {
      try {
        const response = await fetch(url + path, {
          method,
          // Followed, a redirect would turn a POST into a GET and could lead the token elsewhere.
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
        throw unreachable(url, error as Error, timeout);
      }
    },
  };
}

/** Proves the server again for each call: it may have stopped since, and another program may have its port. */
function withProvenServer(
  url: string,
  file: ServerFile,
  { token, source }: Token,
  timeout: number,
): Connection {
  return {
    name: url,
    tokenSource: source,
    close: () => Promise.resolve(),
    async send({ method, path, body, idempotencyKey }) {
      let connection: ProvenConnection | 'stranger' | undefined;
      try {
        connection = await ProvenConnection.open(url, file);
        if (connection === 'stranger')
          throw new Failure(`${url} is another program by now; no token was sent to it.`, EXIT.retry);
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
        if (error instanceof Failure) throw error;
        throw unreachable(url, error as Error, timeout);
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

function unreachable(url: string, error: Error, timeout: number): Unreachable {
  if (error.name === 'TimeoutError')
    return new Unreachable(`${url} gave no answer within ${timeout} s.`, false);
  const { code, message } = (error.cause ?? error) as NodeJS.ErrnoException;
  const before = ['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'EHOSTUNREACH', 'ENETUNREACH'].includes(
    code ?? '',
  );
  return new Unreachable(
    `${url} can't be reached (${code ?? message}).${before ? NEEDS_SERVER : ''}`,
    before,
  );
}

interface Token {
  readonly token: string;
  readonly source: string;
}

/** The token that the person chose. @returns undefined if none was */
function chosenToken(settings: Settings, { tokenFile }: Access): Token | undefined {
  if (tokenFile !== undefined) return checked({ token: readToken(tokenFile), source: tokenFile });
  return settings.token === undefined ? undefined : { token: settings.token, source: 'CONTROL_PLANE_TOKEN' };
}

/** The admin's own token, for a server that has proven to be the one of the database. */
function adminToken(settings: Settings): Token {
  if (settings.adminToken !== undefined)
    return { token: settings.adminToken, source: 'CONTROL_PLANE_ADMIN_TOKEN' };
  const file = adminTokenFile(settings.database);
  if (existsSync(file)) return checked({ token: readToken(file), source: file });
  throw new Failure(
    "There is no operator's token: set CONTROL_PLANE_TOKEN, or name a file with --token-file.",
    EXIT.misused,
  );
}

function checked(found: Token): Token {
  if (!/^[\x21-\x7e]{1,512}$/.test(found.token))
    throw new Failure(
      `The token of ${found.source} must be 1 to 512 visible ASCII characters.`,
      EXIT.misused,
    );
  return found;
}

function readToken(file: string): string {
  try {
    return readFileSync(file, 'utf8').trim();
  } catch (error) {
    throw new Failure(
      `The token's file ${file} can't be read (${(error as NodeJS.ErrnoException).code}).`,
      EXIT.misused,
    );
  }
}

/** Whether there is a file that a server may have; whether one serves a PostgreSQL database only that server can tell. */
export function isThere(database: DatabaseTarget): database is SqliteTarget {
  return database.type === 'sqlite' && existsSync(database.path);
}

/** What a database is called, without the password that its address may hold. */
export function nameOf(database: DatabaseTarget): string {
  return database.type === 'sqlite' ? database.path : 'the PostgreSQL database';
}

/** @throws Failure the database is not of this version yet: a command does not change that */
export async function requireMigrated(statements: Statements, target: DatabaseTarget): Promise<void> {
  const { pendingMigrations } = await import('../database/migrations.js');
  if ((await pendingMigrations(statements.manager.dataSource)).length > 0)
    throw new Failure(`${nameOf(target)} lacks migrations: control-plane migrate applies them.`, EXIT.failed);
}
