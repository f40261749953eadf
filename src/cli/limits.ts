import { type Command, InvalidArgumentError } from 'commander';
import { oneOf, whole } from './arguments';
import { EXIT, Failure } from './failure';
import { table } from './print';
import type { Terminal } from './terminal';
import {
  type Common,
  fetchText,
  get,
  listing,
  noteIfEmpty,
  perform,
  put,
  query,
  repeatedly,
  type Shown,
  verb,
} from './verbs';

const WINDOW = ['scope', 'kind', 'target', 'limit', 'leased', 'queued', 'available'];

/** From the widest. */
const SCOPES = ['global', 'kind', 'target'];

const MAX_PAGE = 500;

/** Which window: of a target, of a kind, or of everything. */
interface Place {
  kind?: string;
  target?: string;
}

/** Adds the commands about concurrency: windows and the limits on them. */
export function addLimits(program: Command, terminal: Terminal): void {
  const windows = program.command('windows').description('see what runs and waits, by kind and target');
  filtered(
    listing(
      windows,
      'list',
      'list the windows that count something or have a limit: of everything, of kinds, then of targets, by name',
      'windows list --kind dns --watch',
      'windows list --all',
    ),
  )
    .addOption(oneOf('--scope <scope>', 'only these', SCOPES))
    .option('--all', 'also the windows that count nothing and have no limit; --json gives them anyway')
    .action(({ scope, kind, target, limit, cursor, all, ...options }) =>
      listWindows(terminal, options, { scope, kind, target, limit, cursor }, all ? () => true : isInUse),
    );

  const limits = program.command('limits').description('bound how many tasks run at once');
  filtered(
    verb(limits, 'list', 'list every limit that is set', 'limits list', 'limits list --kind dns --json'),
  ).action(({ kind, target, ...options }: Common & Place) => listLimits(terminal, options, { kind, target }));
  filtered(
    verb(
      limits,
      'set',
      'set the limit of a target, of a kind, or of everything; in force when this ends',
      'limits set --kind dns --target 192.0.2.53:53 --limit 10',
      'limits set --kind http --limit 200',
      'limits set --limit 1000            # of everything',
    ),
  )
    .requiredOption('--limit <n>', 'the most that may run at once, from 0', ceiling)
    .action(({ kind, target, limit, ...options }) =>
      setLimit(terminal, options, { kind, target }, limit as number),
    );
  filtered(
    verb(
      limits,
      'lift',
      'take the limit of a target, of a kind, or of everything away',
      'limits lift --kind dns --target 192.0.2.53:53',
    ),
  ).action(({ kind, target, ...options }) => setLimit(terminal, options, { kind, target }, null));
}

const filtered = (command: Command): Command =>
  command.option('--kind <kind>', 'of this kind').option('--target <target>', 'of this target of the kind');

function ceiling(text: string): number {
  const value = whole(text);
  if (value < 0) throw new InvalidArgumentError('It must be a whole number from 0.');
  return value;
}

function setLimit(terminal: Terminal, options: Common, place: Place, limit: number | null): Promise<void> {
  if (place.target !== undefined && place.kind === undefined)
    throw new Failure('A target is one of a kind: name that with --kind.', EXIT.misused);
  return perform(
    terminal,
    options,
    put('/v1/concurrency/limits', { limits: [{ ...place, limit }] }),
    ({ windows }) => table(windows, WINDOW),
  );
}

interface WindowQuery extends Place {
  scope?: string;
  limit?: number;
  cursor?: string;
}

/**
 * Shows a page of windows in the order of their names. The API lists the newest first, so the wide scopes, of which there
 * are few, would come last, or on a later page: unless the page is said, they are asked for apart.
 */
function listWindows(
  terminal: Terminal,
  options: Common,
  wanted: WindowQuery,
  isShown: (window: Shown) => boolean,
): Promise<void> {
  const { scope, limit, cursor } = wanted;
  const isPage = [scope, limit, cursor].some((value) => value !== undefined);
  const pathOf = (asked: WindowQuery) => `/v1/concurrency/windows${query({ ...asked })}`;
  if (isPage || options.json)
    return perform(terminal, options, get(pathOf(wanted)), ({ items }) => {
      const shown = items.filter(isShown);
      if (items.length > 0) noteIfEmpty(terminal, shown);
      return table(byName(shown), WINDOW);
    });
  return repeatedly(terminal, options, async () => {
    const pages: { items: Shown[]; next_cursor: string | null }[] = [];
    for (const of of SCOPES) {
      const path = pathOf({ ...wanted, scope: of, limit: MAX_PAGE });
      pages.push(JSON.parse(await fetchText(terminal, options, get(path))));
    }
    const items = pages.flatMap((page) => byName(page.items.filter(isShown)));
    if (options.watch !== undefined) terminal.clear();
    terminal.print(table(items, WINDOW));
    noteIfEmpty(terminal, items);
    for (const [i, { next_cursor }] of pages.entries())
      if (next_cursor !== null) terminal.note(`There is more: --scope ${SCOPES[i]} --cursor ${next_cursor}`);
  });
}

const isInUse = ({ limit, leased, queued }: Shown): boolean => limit !== null || leased + queued > 0;

function byName(windows: readonly Shown[]): Shown[] {
  const compare = (a: string | null, b: string | null) => ((a ?? '') < (b ?? '') ? -1 : a === b ? 0 : 1);
  return windows.toSorted(
    (a, b) =>
      SCOPES.indexOf(a.scope) - SCOPES.indexOf(b.scope) ||
      compare(a.kind, b.kind) ||
      compare(a.target, b.target),
  );
}

/** Reads all pages of the windows: those with a limit are few among many. */
async function listLimits(terminal: Terminal, options: Common, place: Place): Promise<void> {
  const items: Shown[] = [];
  let cursor: string | undefined;
  do {
    const path = `/v1/concurrency/windows${query({ ...place, limit: MAX_PAGE, cursor })}`;
    const page = JSON.parse(await fetchText(terminal, options, get(path)));
    items.push(...page.items.filter((window: Shown) => window.limit !== null));
    cursor = page.next_cursor ?? undefined;
  } while (cursor !== undefined);
  if (options.json) return terminal.printJson(JSON.stringify({ items, next_cursor: null }));
  terminal.print(table(byName(items), WINDOW));
  noteIfEmpty(terminal, items);
}
