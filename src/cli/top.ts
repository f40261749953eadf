import type { Command } from 'commander';
import { Clock, toTimestamp } from '../clock';
import { patience } from './arguments';
import { table } from './print';
import type { Screen, Terminal } from './terminal';
import { type Common, fetchText, get, query, repeatedly, type Shown, verb } from './verbs';

const EVERY_S = 2;
const HOUR_MS = 3_600_000;
/** How many agents and targets are shown. */
const SHOWN = 5;
/** How many of the latest tasks that did not end well are counted by target. */
const COUNTED = 200;
/** As many agents as a page of a list has at most. */
const MAX_PAGE = 500;

const STATES = ['scheduled', 'waiting', 'queued', 'leased'] as const;
/** Counts that are shown also if they are 0. */
const ALWAYS = new Set(['online', 'offline', 'applied', 'failed']);
/** The lines of the page besides those of kinds, targets and agents. */
const OTHER_LINES = 13;

const UNWELL = ['error', 'timeout', 'expired', 'cancelled'] as const;

/** What the page is made from. */
export interface Look {
  /** In ms since the epoch, by this machine. */
  readonly at: number;
  readonly stats: { depths: Depth[]; oldest_queued_age_ms: number | null };
  readonly fleet: Readonly<Record<string, number>>;
  readonly config: Readonly<Record<string, number>>;
  /** Whether a configuration is in force. */
  readonly isPublished: boolean;
  /** Whether the server that was asked drains. */
  readonly isDraining: boolean;
  readonly silent: number;
  readonly failing: number;
  readonly agents: Shown[];
  readonly targets: TargetTrouble[];
}

interface Depth {
  readonly kind: string;
  readonly state: string;
  readonly count: number;
  readonly oldest_age_ms: number | null;
}

/** How the tasks of a target end that did not end well, of the latest. */
interface TargetTrouble {
  readonly kind: string;
  readonly target: string;
  readonly error: number;
  readonly timeout: number;
  readonly expired: number;
  readonly cancelled: number;
  readonly last_error: unknown;
}

/** Adds the live page. */
export function addTop(program: Command, terminal: Terminal): void {
  verb(
    program,
    'top',
    'watch the fleet, the queue, its rates, and the worst targets and agents on one page, until Ctrl-C',
    'top',
    'top --every 10',
    'top --once --json',
  )
    .option('--every <seconds>', 'how often it looks', patience, EVERY_S)
    .option('--once', 'show it once and end, as it does if standard output is not a terminal')
    .action(({ every, once, ...options }: Common & { every: number; once?: true }) =>
      top(terminal, options, once || options.json || !terminal.isInteractive ? undefined : every),
    );
}

async function top(terminal: Terminal, options: Common, every: number | undefined): Promise<void> {
  if (every === undefined) {
    const look = await takeLook(terminal, options);
    if (options.json) terminal.printJson(JSON.stringify({ ...look, at: toTimestamp(look.at) }));
    else terminal.print(pageOf(look, undefined));
    return;
  }
  let screen: Screen | undefined;
  let before: Look | undefined;
  try {
    await repeatedly(terminal, { ...options, watch: every }, async () => {
      const look = await takeLook(terminal, options).catch((error: unknown) => {
        // Why it can't is said below the last page; the next one is drawn on a screen of its own.
        screen?.close();
        screen = undefined;
        throw error;
      });
      screen ??= await terminal.openScreen();
      const shown = (maxLines: number) =>
        `${pageOf(look, before, maxLines - 2)}\n\nEvery ${every} s; Ctrl-C ends it.`;
      screen.show(shown);
      before = look;
    });
  } finally {
    screen?.close();
  }
}

async function takeLook(terminal: Terminal, options: Common): Promise<Look> {
  const read = async (path: string): Promise<Shown> =>
    JSON.parse(await fetchText(terminal, options, get(path)));
  const at = new Clock().now();
  const stats = await read('/v1/tasks/stats');
  const exposition = await fetchText(terminal, options, { ...get('/metrics'), isText: true });
  const agents = await read(`/v1/agents${query({ failing: 'true', limit: MAX_PAGE })}`);
  const from = toTimestamp(at - HOUR_MS);
  const tasks: Shown[] = [];
  for (const outcome of UNWELL)
    tasks.push(...(await read(`/v1/tasks${query({ outcome, from, limit: COUNTED })}`)).items);
  return {
    ...{ at, stats },
    fleet: seriesOf(exposition, 'agents', 'status'),
    config: seriesOf(exposition, 'config_agents', 'state'),
    isPublished: seriesOf(exposition, 'config_expires_timestamp_seconds')[''] !== undefined,
    isDraining: seriesOf(exposition, 'draining')[''] === 1,
    silent: seriesOf(exposition, 'agents_silent')[''] ?? 0,
    failing: seriesOf(exposition, 'agents_failing')[''] ?? 0,
    agents: worstAgents(agents.items),
    targets: worstTargets(tasks),
  };
}

/** The values of a series, by what its label says. */
function seriesOf(exposition: string, name: string, label?: string): Record<string, number> {
  const values: Record<string, number> = {};
  const line = new RegExp(`^control_plane_${name}(?:\\{${label}="(\\w*)"\\})? (\\S+)$`, 'gm');
  for (const [, value = '', number] of exposition.matchAll(line)) values[value] = Number(number);
  return values;
}

/** Of the newest that fail, those of which most attempts of the last hour did not end well. */
export function worstAgents(agents: readonly Shown[]): Shown[] {
  const failures = ({ outcomes: { hour } }: Shown) => hour.error + hour.cancelled + hour.expired;
  return agents.toSorted((a, b) => failures(b) - failures(a)).slice(0, SHOWN);
}

function worstTargets(tasks: readonly Shown[]): TargetTrouble[] {
  const byTarget = Map.groupBy(tasks, ({ kind, target }) => JSON.stringify([kind, target]));
  const count = (of: readonly Shown[], outcome: string) =>
    of.filter(({ last_outcome }) => last_outcome === outcome).length;
  return [...byTarget.values()]
    .sort((a, b) => b.length - a.length)
    .slice(0, SHOWN)
    .map((of) => ({
      ...{ kind: of[0].kind, target: of[0].target },
      error: count(of, 'error'),
      timeout: count(of, 'timeout'),
      expired: count(of, 'expired'),
      cancelled: count(of, 'cancelled'),
      last_error: of.find(({ last_error }) => last_error !== null)?.last_error ?? null,
    }));
}

/**
 * The page as text.
 * @param before the look before it, which rates are reckoned from
 * @param maxLines how many lines there are: fewer targets and agents are shown, but one of each
 */
export function pageOf(look: Look, before: Look | undefined, maxLines = Number.POSITIVE_INFINITY): string {
  const { fleet, config } = look;
  const kinds = kindRows(look);
  const rows = Math.max(2, maxLines - kinds.length - OTHER_LINES);
  // What one of them does not need, the other has.
  const ofAgents = Math.max(Math.ceil(rows / 2), rows - look.targets.length);
  const agents = look.agents.slice(0, ofAgents);
  const targets = look.targets.slice(0, Math.max(1, rows - agents.length));
  const parts = (counts: Readonly<Record<string, number>>) =>
    Object.entries(counts)
      .filter(([name, count]) => count > 0 || ALWAYS.has(name))
      .map(([name, count]) => `${name} ${grouped(count)}`)
      .join('  ');
  return [
    `${toTimestamp(look.at)}${look.isDraining ? '  the server stops' : ''}`,
    '',
    // What is wrong first: a narrow terminal cuts off the end.
    `FLEET   failing ${grouped(look.failing)}  silent ${grouped(look.silent)}  ${parts(fleet)}`,
    `CONFIG  ${look.isPublished ? parts(config) : 'none is in force'}`,
    `QUEUE   ${ratesOf(look, before)}`,
    '',
    table(kinds, ['kind', ...STATES, 'completed', 'dead', 'oldest']),
    '',
    'WORST TARGETS, by their latest tasks of the last hour that did not end well',
    targets.length === 0 ? 'none' : table(targets, ['kind', 'target', ...UNWELL, 'last_error']),
    '',
    'FAILING AGENTS (5 attempts or more in the last hour, most of them not well), the worst',
    agents.length === 0
      ? 'none'
      : table(
          agents.map(({ id, hostname, status, outcomes, last_error }) => ({
            ...{ id, hostname, status },
            ...Object.fromEntries(UNWELL.map((outcome) => [outcome, outcomes.hour[outcome]])),
            success: outcomes.hour.success,
            last_error: last_error?.message ?? last_error?.outcome,
          })),
          ['id', 'hostname', 'status', 'success', ...UNWELL, 'last_error'],
        ),
  ].join('\n');
}

function kindRows({ stats: { depths } }: Look): object[] {
  return [...Map.groupBy(depths, ({ kind }) => kind)].map(([kind, of]) => {
    const counts = Object.fromEntries(of.map(({ state, count }) => [state, grouped(count)]));
    const ages = of.flatMap(({ state, oldest_age_ms: age }) =>
      (state === 'queued' || state === 'waiting') && age !== null ? [age] : [],
    );
    return { kind, ...counts, oldest: ages.length === 0 ? null : ageOf(Math.max(...ages)) };
  });
}

/** How many tasks a second came and ended between two looks. Retention, which takes tasks away, hides some of them. */
function ratesOf(look: Look, before: Look | undefined): string {
  const seconds = before ? (look.at - before.at) / 1_000 : 0;
  if (!before || seconds <= 0) return 'rates: - (they need two looks)';
  const sum = ({ stats: { depths } }: Look, ...states: string[]) =>
    depths
      .filter(({ state }) => states.length === 0 || states.includes(state))
      .reduce((total, { count }) => total + count, 0);
  const rate = (...states: string[]) => {
    const perSecond = Math.max(0, (sum(look, ...states) - sum(before, ...states)) / seconds);
    return perSecond >= 10 ? grouped(Math.round(perSecond)) : perSecond.toFixed(1);
  };
  return `enqueued ${rate()}/s  completed ${rate('completed')}/s  dead ${rate('dead')}/s`;
}

/** A number with its thousands apart. */
const grouped = (value: number): string => value.toLocaleString('en-US');

function ageOf(ms: number): string {
  const seconds = Math.round(ms / 1_000);
  if (seconds < 120) return `${seconds} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.round(minutes / 60);
  return hours < 48 ? `${hours} h` : `${Math.round(hours / 24)} d`;
}
