import { type Command, InvalidArgumentError, Option } from 'commander';
import {
  type ApiOptions,
  apiCommand,
  callAndPrint,
  fetchText,
  type Json,
  listCommand,
  noteIfEmpty,
  pageTable,
  watch,
} from './api-command';
import { choiceOption, id, integer } from './arguments';
import { get, put, queryString } from './client';
import { CommandError, EXIT } from './command-error';
import { politenessText } from './politeness';
import { table } from './print';
import type { Terminal } from './terminal';

const WINDOW = [
  ...['scope', 'kind', 'target', 'limit', 'max_limit', 'rate', 'max_rate', 'adaptive', 'inherited'],
  ...['leased', 'available', 'queued'],
];
const CHANGE = [
  ...['changed_at', 'reason', 'rate_before', 'rate_after'],
  ...['max_limit', 'max_rate', 'adaptive', 'message'],
];

/** From the widest to the narrowest. */
const SCOPES = ['global', 'kind', 'every_target', 'target'];

/** The target that stands for every target of a kind. */
const EVERY = '*';

const MAX_PAGE = 500;

/** Says which limit to change: every change names it, so that a forgotten option changes no wider one. */
const NAME_LIMIT =
  "Name the limit: --kind for that of a kind, --kind and --target for that of a target, or of every target with --target '*', --global for that of all tasks.";
const NAME_WINDOW =
  "Name the window by its id, or by --kind for a kind, --kind and --target for a target, or every target with --target '*', --global for all tasks.";
const NAME_BOUND =
  'Say what to set: --limit for how many run at once, --rate for how many start in a second, --adaptive or --no-adaptive.';

/** The key of a window: a target, a kind, or neither for the global one. */
interface WindowKey {
  kind?: string;
  target?: string;
}

/** Adds the commands for concurrency windows and their limits. */
export function addLimits(program: Command, terminal: Terminal): void {
  const windows = program
    .command('windows')
    .description('show the limits, and how many tasks run and wait under each');
  filtered(
    listCommand(
      windows,
      'list',
      'list the windows, to which limits apply: the global one, those of kinds, then those of targets, by name',
      'windows list --kind dns --watch',
    ),
  )
    .addOption(choiceOption('--scope <scope>', 'only these', SCOPES))
    .action(({ scope, kind, target, limit, cursor, ...options }) =>
      listWindows(terminal, options, { scope, kind, target, limit, cursor }),
    );
  naming(
    listCommand(
      windows,
      'history',
      "list what changed a window's limit and rate, when, and by which evidence",
      'windows history --kind dns --target 192.0.2.53',
      "windows history --kind dns --target '*'",
      'windows history 12',
    ).argument('[id]', 'the id of the window', id),
  ).action((windowId, { limit, cursor, ...named }) =>
    showHistory(terminal, named, windowId, { limit, cursor }),
  );
  apiCommand(
    windows,
    'report',
    'say how a target was treated on a day, as a text for a reply to its owner',
    'windows report --kind dns --target 192.0.2.53',
    'windows report --kind dns --target 192.0.2.53 --day 2026-01-31 --json',
  )
    .requiredOption('--kind <kind>', 'the kind of the checks')
    .requiredOption('--target <target>', 'their target')
    .option('--day <date>', 'a date in UTC (default: today)')
    .action(({ kind, target, day, ...options }) =>
      callAndPrint(
        terminal,
        options,
        get(`/v1/concurrency/politeness${queryString({ kind, target, day })}`),
        politenessText,
      ),
    );

  const limits = program
    .command('limits')
    .description('limit how many tasks run at once, and how many start in a second');
  filtered(
    apiCommand(
      limits,
      'list',
      'list every limit and rate that is set',
      'limits list',
      'limits list --kind dns --json',
    ),
  ).action(({ kind, target, ...options }: ApiOptions & WindowKey) =>
    listLimits(terminal, options, { kind, target }),
  );
  naming(
    apiCommand(
      limits,
      'set',
      'set the limit or the rate of a target, of a kind, or of all tasks; in force when the command ends',
      'limits set --kind dns --target 192.0.2.53:53 --limit 10',
      "limits set --kind dns --target '*' --rate 5 --adaptive   # of every target for itself",
      'limits set --kind http --limit 200 --rate 50',
      'limits set --global --limit 1000   # of all tasks together',
    ),
  )
    .option('--limit <n>', 'the most that may run at once, from 0', limitOf)
    .option('--rate <n>', 'the most that may start in a second, such as 5 or 0.25', rateOf)
    .option('--adaptive', 'have the rate follow what is reported of the target, within --limit and --rate')
    .option('--no-adaptive', 'keep the rate as it is set')
    .action(({ limit, rate, adaptive, ...named }) => {
      if (limit === undefined && rate === undefined && adaptive === undefined)
        throw new CommandError(NAME_BOUND, EXIT.usage);
      return setLimit(terminal, named, { limit, rate, adaptive });
    });
  naming(
    apiCommand(
      limits,
      'lift',
      'remove the limit and the rate of a target, of a kind, or of all tasks',
      'limits lift --kind dns --target 192.0.2.53:53',
      'limits lift --kind dns --target 192.0.2.53:53 --limit   # the rate stays',
      'limits lift --global               # of all tasks together; those of kinds and targets stay',
    ),
  )
    .option('--limit', 'only the limit')
    .option('--rate', 'only the rate')
    .action(({ limit, rate, ...named }) =>
      setLimit(
        terminal,
        named,
        limit || rate
          ? { ...(limit ? { limit: null } : {}), ...(rate ? { rate: null } : {}) }
          : { limit: null, rate: null, adaptive: false },
      ),
    );
}

const filtered = (command: Command): Command =>
  command.option('--kind <kind>', 'of this kind').option('--target <target>', 'of this target of the kind');

/** Adds the options that name one limit. */
const naming = (command: Command): Command =>
  command
    .option('--kind <kind>', 'that of this kind')
    .option('--target <target>', "that of this target of the kind; '*' for every target")
    .addOption(new Option('--global', 'that of all tasks together').conflicts(['kind', 'target']));

function limitOf(text: string): number {
  const value = integer(text);
  if (value < 0) throw new InvalidArgumentError('It must be a whole number from 0.');
  return value;
}

function rateOf(text: string): number {
  const value = /^\d{1,7}(?:\.\d{1,3})?$/.test(text) ? Number(text) : 0;
  if (value <= 0)
    throw new InvalidArgumentError(
      'It must be a number above 0, in steps of 0.001. --limit 0 lets nothing start.',
    );
  return value;
}

interface NamedLimit extends ApiOptions, WindowKey {
  global?: true;
}

/** Checks that one window is named. @throws CommandError it is not */
function checkNamed({ kind, target, global: isGlobal }: NamedLimit, message: string): void {
  if (target !== undefined && kind === undefined)
    throw new CommandError('A target belongs to a kind: name it with --kind.', EXIT.usage);
  if (kind === undefined && !isGlobal) throw new CommandError(message, EXIT.usage);
}

/** What to change of a limit; null lifts it. */
interface Bounds {
  limit?: number | null;
  rate?: number | null;
  adaptive?: boolean;
}

function setLimit(terminal: Terminal, named: NamedLimit, bounds: Bounds): Promise<void> {
  checkNamed(named, NAME_LIMIT);
  const { kind, target, global: _, ...options } = named;
  return callAndPrint(
    terminal,
    options,
    put('/v1/concurrency/limits', { limits: [{ kind, target, ...bounds }] }),
    ({ windows }) => table(windows, WINDOW),
  );
}

/** Prints the changes of a window. One that is named by its kind and target is looked up first. */
async function showHistory(
  terminal: Terminal,
  named: NamedLimit,
  windowId: number | undefined,
  page: { limit?: number; cursor?: string },
): Promise<void> {
  const { kind, target, global: isGlobal, ...options } = named;
  if (windowId !== undefined && (kind !== undefined || isGlobal))
    throw new CommandError('Name the window by its id or by its kind, not by both.', EXIT.usage);
  if (windowId === undefined) checkNamed(named, NAME_WINDOW);
  const path = `/v1/concurrency/windows/${windowId ?? (await findWindow(terminal, options, { kind, target }))}/history`;
  return callAndPrint(terminal, options, get(`${path}${queryString({ ...page })}`), pageTable(...CHANGE));
}

/** Returns the id of a window. @throws CommandError there is none */
async function findWindow(terminal: Terminal, options: ApiOptions, key: WindowKey): Promise<number> {
  const scope =
    key.kind === undefined
      ? 'global'
      : key.target === undefined
        ? 'kind'
        : key.target === EVERY
          ? 'every_target'
          : 'target';
  const path = `/v1/concurrency/windows${queryString({ ...key, scope, limit: 1 })}`;
  const [found] = JSON.parse(await fetchText(terminal, options, get(path))).items;
  if (found) return found.id;
  throw new CommandError(
    'There is no such window: it has neither a limit nor a rate now. `windows report` shows what it had.',
    EXIT.failed,
  );
}

interface WindowQuery extends WindowKey {
  scope?: string;
  limit?: number;
  cursor?: string;
}

/**
 * Prints windows in the order of their names. The API lists the newest first, so the few global and kind windows could be on
 * a later page: unless the caller names a page, each scope is fetched by itself.
 */
function listWindows(terminal: Terminal, options: ApiOptions, wanted: WindowQuery): Promise<void> {
  const { scope, limit, cursor } = wanted;
  const isPageGiven = [scope, limit, cursor].some((value) => value !== undefined);
  const pathOf = (filter: WindowQuery) => `/v1/concurrency/windows${queryString({ ...filter })}`;
  if (isPageGiven || options.json)
    return callAndPrint(terminal, options, get(pathOf(wanted)), ({ items }) => {
      noteIfEmpty(terminal, items);
      return table(byName(items), WINDOW);
    });
  return watch(terminal, options, async () => {
    const pages: { items: Json[]; next_cursor: string | null }[] = [];
    // Of every target, the API answers the same whatever the scope.
    const scopes = wanted.target === EVERY ? ['every_target'] : SCOPES;
    for (const each of scopes) {
      const path = pathOf({ ...wanted, scope: each, limit: MAX_PAGE });
      pages.push(JSON.parse(await fetchText(terminal, options, get(path))));
    }
    const items = pages.flatMap((page) => byName(page.items));
    if (options.watch !== undefined) terminal.clear();
    terminal.print(table(items, WINDOW));
    noteIfEmpty(terminal, items);
    for (const [i, { next_cursor }] of pages.entries())
      if (next_cursor !== null) terminal.note(`There is more: --scope ${scopes[i]} --cursor ${next_cursor}`);
  });
}

function byName(windows: readonly Json[]): Json[] {
  const compare = (a: string | null, b: string | null) => ((a ?? '') < (b ?? '') ? -1 : a === b ? 0 : 1);
  return windows.toSorted(
    (a, b) =>
      SCOPES.indexOf(a.scope) - SCOPES.indexOf(b.scope) ||
      compare(a.kind, b.kind) ||
      compare(a.target, b.target),
  );
}

/** Prints every limit and rate that was set. The API has no filter for it, so all pages of windows are read. */
async function listLimits(terminal: Terminal, options: ApiOptions, key: WindowKey): Promise<void> {
  const items: Json[] = [];
  let cursor: string | undefined;
  do {
    const path = `/v1/concurrency/windows${queryString({ ...key, limit: MAX_PAGE, cursor })}`;
    const page = JSON.parse(await fetchText(terminal, options, get(path)));
    items.push(...page.items.filter((window: Json) => !window.inherited));
    cursor = page.next_cursor ?? undefined;
  } while (cursor !== undefined);
  if (options.json) return terminal.printJson(JSON.stringify({ items, next_cursor: null }));
  terminal.print(table(byName(items), WINDOW));
  noteIfEmpty(terminal, items);
}
