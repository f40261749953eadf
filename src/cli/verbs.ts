import { setTimeout as sleep } from 'node:timers/promises';
import type { Command } from 'commander';
import { type Call, callApi } from './api';
import { patience, whole } from './arguments';
import { EXIT, Failure } from './failure';
import { table } from './print';
import type { Terminal } from './terminal';

/** What every command that calls the API takes. */
export interface Common {
  json?: true;
  timeout: number;
  tokenFile?: string;
  /** Seconds between two looks; true for the default. */
  watch?: number | true;
}

// biome-ignore lint/suspicious/noExplicitAny: answers are shown as they come; the server knows their form
export type Shown = any;

const WATCH_EVERY_S = 2;

/** A query of those parameters that were given. */
export function query(parameters: Record<string, string | number | readonly string[] | undefined>): string {
  const given = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters))
    for (const one of [value ?? []].flat()) given.append(name, String(one));
  return given.size === 0 ? '' : `?${given}`;
}

export const get = (path: string): Call => ({ method: 'GET', path, repeatable: true });
export const post = (path: string, body: object | undefined, repeatable: boolean): Call => ({
  method: 'POST',
  path,
  body: body && JSON.stringify(body),
  repeatable,
});
export const put = (path: string, body: object): Call => ({
  method: 'PUT',
  path,
  body: JSON.stringify(body),
  repeatable: true,
});
/** Repeated after its answer was lost, it would say that there is no such thing. */
export const remove = (path: string): Call => ({ method: 'DELETE', path, repeatable: false });

export const listOf =
  (...columns: string[]) =>
  (page: { items: object[] }) =>
    table(page.items, columns);

/** A command that calls the API. */
export function verb(parent: Command, usage: string, summary: string, ...examples: string[]): Command {
  return parent
    .command(usage)
    .description(summary)
    .option('--json', "the API's own JSON on standard output, errors as JSON on standard error")
    .option('--timeout <seconds>', 'how long to wait for an answer', patience, 30)
    .option('--token-file <file>', "a file with the operator's token, in place of CONTROL_PLANE_TOKEN")
    .addHelpText('after', `\nExamples:\n${examples.map((line) => `  $ control-plane ${line}`).join('\n')}`);
}

/** Has a command that only shows something show it again and again. */
export const watching = (command: Command): Command =>
  command.option(
    '--watch [seconds]',
    'show it again every 2 seconds, or as often as said, until Ctrl-C',
    patience,
  );

/** A command that lists something. */
export function listing(parent: Command, usage: string, summary: string, ...examples: string[]): Command {
  return watching(verb(parent, usage, summary, ...examples))
    .option('--limit <n>', 'how many, at most 500', whole)
    .option('--cursor <cursor>', 'where the list before ended');
}

/** Makes a call for a command. @returns the answer's text @throws Failure, as JSON if that was asked for */
export async function fetchText(
  terminal: Terminal,
  options: Common,
  call: Call,
  { alsoWithoutServer = false } = {},
): Promise<string> {
  try {
    return await callApi(terminal, terminal.settings(), { ...options, alsoWithoutServer }, call);
  } catch (error) {
    const envelope = options.json && error instanceof Failure ? error.envelope : undefined;
    throw envelope === undefined ? error : new Failure(envelope, (error as Failure).exitCode);
  }
}

/** Makes the call and shows the answer; again and again if the command watches. */
export async function perform(
  terminal: Terminal,
  options: Common,
  call: Call,
  show: (answer: Shown) => string,
  { alsoWithoutServer = false } = {},
): Promise<void> {
  const showOnce = async () => {
    const text = await fetchText(terminal, options, call, { alsoWithoutServer });
    if (options.watch !== undefined) terminal.clear();
    if (options.json) return terminal.printJson(text === '' ? '{}' : text);
    const answer = text === '' ? undefined : JSON.parse(text);
    terminal.print(show(answer));
    noteIfEmpty(terminal, answer?.items);
    if (typeof answer?.next_cursor === 'string')
      terminal.note(`There is more: --cursor ${answer.next_cursor}`);
  };
  return repeatedly(terminal, options, showOnce);
}

/** A table of nothing but heads leaves it open whether the command worked. */
export function noteIfEmpty(terminal: Terminal, items: readonly unknown[] | undefined): void {
  if (items?.length === 0) terminal.note('none');
}

/**
 * Shows something once, or again and again if the command watches. Once it has shown something, a server that stops does not
 * end it: that is said once, and it goes on. What the server refuses ends it.
 */
export async function repeatedly(
  terminal: Terminal,
  options: Common,
  showOnce: () => Promise<void>,
): Promise<void> {
  if (options.watch === undefined) return showOnce();
  const everyMs = 1_000 * (options.watch === true ? WATCH_EVERY_S : options.watch);
  const { interruption } = terminal;
  const interrupted = new Promise<void>((resolve) => {
    if (interruption.aborted) resolve();
    else interruption.addEventListener('abort', () => resolve(), { once: true });
  });
  const watch = async () => {
    let hasShown = false;
    let isAway = false;
    while (!interruption.aborted) {
      try {
        await showOnce();
        hasShown = true;
        isAway = false;
      } catch (error) {
        // What the command was given has worked before: only what is around it can be wrong, as while the server starts.
        if (!hasShown || !(error instanceof Failure) || error.exitCode === EXIT.failed) throw error;
        if (!isAway && !interruption.aborted) {
          terminal.note(error.message);
          if (!options.json) terminal.note('It is asked again until it answers; Ctrl-C ends this.');
        }
        isAway = true;
      }
      await sleep(everyMs, undefined, { signal: interruption }).catch(() => undefined);
    }
  };
  // An answer that is still on its way does not keep it from ending.
  await Promise.race([interrupted, watch()]);
}
