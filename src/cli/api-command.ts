import { setTimeout as sleep } from 'node:timers/promises';
import type { Command } from 'commander';
import { integer, timeoutSeconds } from './arguments';
import { callApi } from './client';
import { CommandError, EXIT } from './command-error';
import type { Call } from './connection';
import { table } from './print';
import type { Terminal } from './terminal';

/** The options of every command that calls the API. */
export interface ApiOptions {
  json?: true;
  /** In seconds. */
  timeout: number;
  tokenFile?: string;
  /** Seconds between two calls; true for the default. */
  watch?: number | true;
}

// biome-ignore lint/suspicious/noExplicitAny: answers are shown as they come; the server knows their schema
export type Json = any;

const WATCH_INTERVAL_S = 2;

/** Adds a command that calls the API. @param examples command lines without the program's name */
export function apiCommand(parent: Command, usage: string, summary: string, ...examples: string[]): Command {
  return parent
    .command(usage)
    .description(summary)
    .option('--json', "the API's own JSON on standard output, errors as JSON on standard error")
    .option('--timeout <seconds>', 'how long to wait for an answer', timeoutSeconds, 30)
    .option('--token-file <file>', "a file with the operator's token, instead of CONTROL_PLANE_TOKEN")
    .addHelpText('after', `\nExamples:\n${examples.map((line) => `  $ control-plane ${line}`).join('\n')}`);
}

/** Adds `--watch` to a command that only shows something. */
export const watchable = (command: Command): Command =>
  command.option(
    '--watch [seconds]',
    'repeat every 2 seconds, or at the given interval, until Ctrl-C',
    timeoutSeconds,
  );

/** Adds a command that lists something, page by page. */
export function listCommand(parent: Command, usage: string, summary: string, ...examples: string[]): Command {
  return watchable(apiCommand(parent, usage, summary, ...examples))
    .option('--limit <n>', 'how many, at most 500', integer)
    .option('--cursor <cursor>', 'the cursor that the previous page printed');
}

/** Renders the items of a page as a table of these columns. */
export const pageTable =
  (...columns: string[]) =>
  (page: { items: object[] }) =>
    table(page.items, columns);

/**
 * Makes a call for a command.
 * @returns the answer's text
 * @throws CommandError the call failed; with `--json` its message is the server's JSON
 */
export async function fetchText(
  terminal: Terminal,
  options: ApiOptions,
  call: Call,
  { allowInProcess = false } = {},
): Promise<string> {
  try {
    return await callApi(terminal, terminal.settings(), { ...options, allowInProcess }, call);
  } catch (error) {
    const envelope = options.json && error instanceof CommandError ? error.envelope : undefined;
    throw envelope === undefined ? error : new CommandError(envelope, (error as CommandError).exitCode);
  }
}

/**
 * Makes a call and prints the answer, repeatedly with `--watch`.
 * @param render renders an answer as text; not used with `--json`
 * @throws CommandError the call failed
 */
export async function callAndPrint(
  terminal: Terminal,
  options: ApiOptions,
  call: Call,
  render: (answer: Json) => string,
  { allowInProcess = false } = {},
): Promise<void> {
  const printOnce = async () => {
    const text = await fetchText(terminal, options, call, { allowInProcess });
    if (options.watch !== undefined) terminal.clear();
    if (options.json) return terminal.printJson(text === '' ? '{}' : text);
    const answer = text === '' ? undefined : JSON.parse(text);
    terminal.print(render(answer));
    noteIfEmpty(terminal, answer?.items);
    if (typeof answer?.next_cursor === 'string')
      terminal.note(`There is more: --cursor ${answer.next_cursor}`);
  };
  return watch(terminal, options, printOnce);
}

/** Prints `none` below an empty table, because a heading alone looks like a failure. */
export function noteIfEmpty(terminal: Terminal, items: readonly unknown[] | undefined): void {
  if (items?.length === 0) terminal.note('none');
}

/**
 * Prints once; with `--watch` repeatedly, until Ctrl-C. After the first success, an unreachable server does not end the
 * command: it is reported once, and the call is repeated. A refusal by the server ends it.
 * @throws CommandError printing failed
 */
export async function watch(
  terminal: Terminal,
  options: ApiOptions,
  printOnce: () => Promise<void>,
): Promise<void> {
  if (options.watch === undefined) return printOnce();
  const intervalMs = 1_000 * (options.watch === true ? WATCH_INTERVAL_S : options.watch);
  const signal = terminal.interruptSignal;
  const interrupted = new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
  const loop = async () => {
    let hasPrinted = false;
    let isUnreachable = false;
    while (!signal.aborted) {
      try {
        await printOnce();
        hasPrinted = true;
        isUnreachable = false;
      } catch (error) {
        // After a success the arguments are known to be right, so the server has the problem, for example a restart.
        if (!hasPrinted || !(error instanceof CommandError) || error.exitCode === EXIT.failed) throw error;
        if (!isUnreachable && !signal.aborted) {
          terminal.note(error.message);
          if (!options.json) terminal.note('It is asked again until it answers; Ctrl-C ends this.');
        }
        isUnreachable = true;
      }
      await sleep(intervalMs, undefined, { signal }).catch(() => undefined);
    }
  };
  // Ctrl-C does not wait for an answer that is on its way.
  await Promise.race([interrupted, loop()]);
}
