import { type Command, InvalidArgumentError, Option } from 'commander';
import {
  type ApiOptions,
  apiCommand,
  callAndPrint,
  fetchText,
  type Json,
  listCommand,
  noteIfEmpty,
  watch,
} from './api-command';
import { choiceOption, integer } from './arguments';
import { get, put, queryString } from './client';
import { CommandError, EXIT } from './command-error';
import { table } from './print';
import type { Terminal } from './terminal';

const WINDOW = ['scope', 'kind', 'target', 'limit', 'leased', 'available', 'queued'];

/** From the widest to the narrowest. */
const SCOPES = ['global', 'kind', 'target'];

const MAX_PAGE = 500;

/** Says which limit to change: every change names it, so that a forgotten option changes no wider one. */
const NAME_LIMIT =
  'Name the limit: --kind for that of a kind, --kind and --target for that of a target, --global for that of all tasks.';

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

  const limits = program.command('limits').description('limit how many tasks run at once');
  filtered(
    apiCommand(
      limits,
      'list',
      'list every limit that is set',
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
      'set the limit of a target, of a kind, or of all tasks; in force when the command ends',
      'limits set --kind dns --target 192.0.2.53:53 --limit 10',
      'limits set --kind http --limit 200',
      'limits set --global --limit 1000   # of all tasks together',
    ),
  )
    .requiredOption('--limit <n>', 'the most that may run at once, from 0', limitOf)
    .action(({ limit, ...named }) => setLimit(terminal, named, limit as number));
  naming(
    apiCommand(
      limits,
      'lift',
      'remove the limit of a target, of a kind, or of all tasks',
      'limits lift --kind dns --target 192.0.2.53:53',
      'limits lift --global               # of all tasks together; those of kinds and targets stay',
    ),
  ).action((named) => setLimit(terminal, named, null));
}

const filtered = (command: Command): Command =>
  command.option('--kind <kind>', 'of this kind').option('--target <target>', 'of this target of the kind');

/** Adds the options that name one limit. */
const naming = (command: Command): Command =>
  command
    .option('--kind <kind>', 'that of this kind')
    .option('--target <target>', 'that of this target of the kind')
    .addOption(new Option('--global', 'that of all tasks together').conflicts(['kind', 'target']));

function limitOf(text: string): number {
  const value = integer(text);
  if (value < 0) throw new InvalidArgumentError('It must be a whole number from 0.');
  return value;
}

interface NamedLimit extends ApiOptions, WindowKey {
  global?: true;
}

function setLimit(
  terminal: Terminal,
  { kind, target, global: isGlobal, ...options }: NamedLimit,
  limit: number | null,
): Promise<void> {
  if (target !== undefined && kind === undefined)
    throw new CommandError('A target belongs to a kind: name it with --kind.', EXIT.usage);
  if (kind === undefined && !isGlobal) throw new CommandError(NAME_LIMIT, EXIT.usage);
  return callAndPrint(
    terminal,
    options,
    put('/v1/concurrency/limits', { limits: [{ kind, target, limit }] }),
    ({ windows }) => table(windows, WINDOW),
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
    for (const each of SCOPES) {
      const path = pathOf({ ...wanted, scope: each, limit: MAX_PAGE });
      pages.push(JSON.parse(await fetchText(terminal, options, get(path))));
    }
    const items = pages.flatMap((page) => byName(page.items));
    if (options.watch !== undefined) terminal.clear();
    terminal.print(table(items, WINDOW));
    noteIfEmpty(terminal, items);
    for (const [i, { next_cursor }] of pages.entries())
      if (next_cursor !== null) terminal.note(`There is more: --scope ${SCOPES[i]} --cursor ${next_cursor}`);
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

/** Prints every limit. The API has no filter for it, so all pages of windows are read. */
async function listLimits(terminal: Terminal, options: ApiOptions, key: WindowKey): Promise<void> {
  const items: Json[] = [];
  let cursor: string | undefined;
  do {
    const path = `/v1/concurrency/windows${queryString({ ...key, limit: MAX_PAGE, cursor })}`;
    const page = JSON.parse(await fetchText(terminal, options, get(path)));
    items.push(...page.items);
    cursor = page.next_cursor ?? undefined;
  } while (cursor !== undefined);
  if (options.json) return terminal.printJson(JSON.stringify({ items, next_cursor: null }));
  terminal.print(table(byName(items), WINDOW));
  noteIfEmpty(terminal, items);
}
