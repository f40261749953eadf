import { existsSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { DatabaseInUse } from '../database/database-error';
import {
  adminTokenFile,
  type DatabaseTarget,
  isInMemory,
  type Settings,
  type SqliteTarget,
} from '../settings';
import { EXIT, Failure } from './failure';
import { note } from './print';

const DEFAULT_URL = 'http://127.0.0.1:8080';
const ATTEMPTS = 3;
const FIRST_WAIT_MS = 500;

/** A server that asks for more patience than this gets none: the person is told instead. */
const MAX_WAIT_MS = 10_000;

const NEEDS_SERVER =
  '\nThis needs a running server: start one with `control-plane serve`, or set CONTROL_PLANE_URL to its address.';

/** A call of the API. */
export interface Call {
  readonly method: 'GET' | 'POST' | 'DELETE';
  /** With its query, encoded. */
  readonly path: string;
  /** JSON. */
  readonly body?: string;
  /** Makes a change that would otherwise happen twice safe to send again. */
  readonly idempotencyKey?: string;
  /** Whether a second time has no second effect. */
  readonly repeatable: boolean;
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
export async function callApi(settings: Settings, access: Access, call: Call): Promise<string> {
  const connection = await connect(settings, access);
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
  if (answer.status >= 200 && answer.status < 300 && (answer.text === '' || isJson(answer)))
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
 * Finds the control plane. Where no address is set and the call allows it, a database that no server has is worked on
 * in this process.
 */
async function connect(settings: Settings, access: Access): Promise<Connection> {
  const url = settings.url ?? DEFAULT_URL;
  if (access.alsoWithoutServer && settings.url === undefined && !isInMemory(settings.database)) {
    if (isThere(settings.database) || !(await answers(url))) {
      try {
        return await withoutServer(settings);
      } catch (error) {
        if (!(error instanceof DatabaseInUse)) throw error;
      }
    }
  }
  const token = findToken(settings, access, url);
  // Without a server no token would help; without a token nobody would say that there is no server.
  if (!token && !(await answers(url)))
    throw new Failure(`${url} can't be reached.${NEEDS_SERVER}`, EXIT.retry);
  if (!token)
    throw new Failure(
      "There is no operator's token: set CONTROL_PLANE_TOKEN, or name a file with --token-file.",
      EXIT.misused,
    );
  return withServer(url, token, access.timeout);
}

async function answers(url: string): Promise<boolean> {
  try {
    await (await fetch(`${url}/healthz`, { signal: AbortSignal.timeout(2_000) })).body?.cancel();
    return true;
  } catch {
    return false;
  }
}

/** The same application, without listening: the same rules, the same audit log. */
async function withoutServer(settings: Settings): Promise<Connection> {
  const { createApp } = await import('../app.js');
  const { OperatorsService } = await import('../operators/operators.service.js');
  const { app, stop } = await createApp({ ...settings, logLevel: 'silent' });
  note(`No server runs on ${nameOf(settings.database)}: working on it directly.`);
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
          headers: {
            authorization: `Bearer ${token}`,
            ...(body === undefined ? {} : { 'content-type': 'application/json' }),
            ...(idempotencyKey === undefined ? {} : { 'idempotency-key': idempotencyKey }),
          },
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

/**
 * The operator's token. The admin's own, from the setting or from the file beside the database, is only ever sent to
 * this machine.
 * @returns undefined where there is none
 */
function findToken(settings: Settings, access: Access, url: string): Token | undefined {
  const file = adminTokenFile(settings.database);
  const local = /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/.test(new URL(url).hostname);
  let found: Token | undefined;
  if (access.tokenFile !== undefined)
    found = { token: readToken(access.tokenFile), source: access.tokenFile };
  else if (settings.token !== undefined) found = { token: settings.token, source: 'CONTROL_PLANE_TOKEN' };
  else if (local && settings.adminToken !== undefined)
    found = { token: settings.adminToken, source: 'CONTROL_PLANE_ADMIN_TOKEN' };
  else if (local && existsSync(file)) found = { token: readToken(file), source: file };
  if (found && !/^[\x21-\x7e]{1,512}$/.test(found.token))
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
