import { setTimeout as sleep } from 'node:timers/promises';
import type { Settings } from '../settings';
import { CommandError, EXIT } from './command-error';
import {
  type Answer,
  type Call,
  type Connection,
  type ConnectOptions,
  connect,
  NoAnswer,
} from './connection';
import type { Terminal } from './terminal';

const ATTEMPTS = 3;
const FIRST_WAIT_MS = 500;

/** If the server asks for a longer wait than this, in ms, the command fails instead. */
const MAX_WAIT_MS = 10_000;

/** Builds a GET call. */
export const get = (path: string): Call => ({ method: 'GET', path, repeatable: true });

/** Builds a POST call. @param repeatable whether a second request has no second effect */
export const post = (path: string, body: object | undefined, repeatable: boolean): Call => ({
  method: 'POST',
  path,
  body: body && JSON.stringify(body),
  repeatable,
});

/** Builds a PUT call. */
export const put = (path: string, body: object): Call => ({
  method: 'PUT',
  path,
  body: JSON.stringify(body),
  repeatable: true,
});

/** Builds a DELETE call. It is not repeatable: after a lost answer, the second one would be 404. */
export const remove = (path: string): Call => ({ method: 'DELETE', path, repeatable: false });

/** Builds a query string with its `?` of the parameters that are defined; empty if none is. */
export function queryString(
  parameters: Record<string, string | number | readonly string[] | undefined>,
): string {
  const defined = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters))
    for (const one of [value ?? []].flat()) defined.append(name, String(one));
  return defined.size === 0 ? '' : `?${defined}`;
}

/**
 * Calls the API; retries calls that may be repeated a few times.
 * @returns the answer's text, which is JSON or empty
 * @throws CommandError the call failed; the message says why
 */
export async function callApi(
  terminal: Terminal,
  settings: Settings,
  options: ConnectOptions,
  call: Call,
): Promise<string> {
  const connection = await connect(terminal, settings, options);
  try {
    for (let attempt = 1; ; attempt++) {
      const result = await attemptCall(connection, call);
      if (result.error === undefined) return result.text;
      const { error, retryAfterMs } = result;
      if (attempt === ATTEMPTS || retryAfterMs === undefined || retryAfterMs > MAX_WAIT_MS) throw error;
      await sleep(Math.max(retryAfterMs, FIRST_WAIT_MS * 2 ** (attempt - 1) * (0.5 + Math.random() / 2)));
    }
  } finally {
    await connection.close();
  }
}

/** How one attempt ended: with the answer's text, or with an error and after how many ms to retry (undefined: never). */
type Attempt =
  | { text: string; error?: undefined }
  | { error: CommandError; retryAfterMs: number | undefined };

async function attemptCall(connection: Connection, call: Call): Promise<Attempt> {
  const isRepeatable = call.repeatable || call.idempotencyKey !== undefined;
  let answer: Answer;
  try {
    answer = await connection.send(call);
  } catch (error) {
    if (!(error instanceof NoAnswer)) throw error;
    const effect = call.method === 'GET' || error.neverSent ? '' : '\nWhether it had an effect is not known.';
    return {
      error: new CommandError(error.message + effect + howToRepeat(call), EXIT.retry),
      retryAfterMs: isRepeatable || error.neverSent ? 0 : undefined,
    };
  }
  const { status, text } = answer;
  if (status >= 200 && status < 300 && (text === '' || (call.isText ? isText(answer) : isJson(answer))))
    return { text };
  const error = explain(connection, call, answer);
  const mayRetry = error.exitCode === EXIT.retry && (isRepeatable || status === 429);
  return { error, retryAfterMs: mayRetry ? 1_000 * (Number(answer.retryAfter) || 0) : undefined };
}

/** Explains an answer that is not a success. */
function explain(connection: Connection, call: Call, answer: Answer): CommandError {
  const envelope = isJson(answer) ? (JSON.parse(answer.text) as Record<string, unknown>) : {};
  const { error, message, retryable, details } = envelope;
  if (typeof error !== 'string') {
    const content = answer.type === '' ? 'no content' : answer.type;
    return new CommandError(
      `${connection.name} answered ${answer.status} with ${content}, which is not a control plane's answer. ` +
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
  return new CommandError(
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
