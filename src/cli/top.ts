import type { Command } from 'commander';
import { Clock, toTimestamp } from '../clock';
import { type ApiOptions, apiCommand, fetchText, type Json, watch } from './api-command';
import { timeoutSeconds } from './arguments';
import { get, queryString } from './client';
import { table } from './print';
import type { Screen, Terminal } from './terminal';

const INTERVAL_S = 2;
const HOUR_MS = 3_600_000;
/** How many of the worst agents and targets are shown. */
const WORST = 5;
/** How many of the latest tasks with each bad outcome are counted by target. */
const SAMPLED = 200;
/** The largest page of a list. */
const MAX_PAGE = 500;

const STATES = ['scheduled', 'queued', 'leased'] as const;
/** Counts that are shown even if they are 0. */
const SHOWN_IF_ZERO = new Set(['online', 'offline', 'applied', 'failed']);
/** How many lines of the page are not kinds, targets or agents. */
const OTHER_LINES = 13;

const BAD_OUTCOMES = ['error', 'timeout', 'expired', 'cancelled'] as const;

/** The data of one page. */
export interface Snapshot {
  /** When it was taken, in ms since the epoch, by this machine's clock. */
  readonly at: number;
  readonly stats: { depths: Depth[]; oldest_queued_age_ms: number | null };
  readonly fleet: Readonly<Record<string, number>>;
  readonly config: Readonly<Record<string, number>>;
  /** Whether a configuration is in force. */
  readonly isPublished: boolean;
  /** Whether the server that answered drains. */
  readonly isDraining: boolean;
  readonly silent: number;
  readonly failing: number;
  readonly agents: Json[];
  readonly targets: TargetTrouble[];
}

interface Depth {
  readonly kind: string;
  readonly state: string;
  readonly count: number;
  readonly oldest_age_ms: number | null;
}

/** Counts the latest tasks of a target by bad outcome. */
interface TargetTrouble {
  readonly kind: string;
  readonly target: string;
  readonly error: number;
  readonly timeout: number;
  readonly expired: number;
  readonly cancelled: number;
  readonly last_error: unknown;
}

/** Adds the live status page. */
export function addTop(program: Command, terminal: Terminal): void {
  apiCommand(
    program,
    'top',
    'watch the fleet, the queue, its rates, and the worst targets and agents on one page, until Ctrl-C',
    'top',
    'top --every 10',
    'top --once --json',
  )
    .option('--every <seconds>', 'how often the page is updated', timeoutSeconds, INTERVAL_S)
    .option('--once', 'print one page and end; the default if standard output is not a terminal')
    .action(({ every, once, ...options }: ApiOptions & { every: number; once?: true }) =>
      top(terminal, options, once || options.json || !terminal.isInteractive ? undefined : every),
    );
}

async function top(terminal: Terminal, options: ApiOptions, every: number | undefined): Promise<void> {
  if (every === undefined) {
    const snapshot = await takeSnapshot(terminal, options);
    if (options.json) terminal.printJson(JSON.stringify({ ...snapshot, at: toTimestamp(snapshot.at) }));
    else terminal.print(pageOf(snapshot, undefined));
    return;
  }
  let screen: Screen | undefined;
  let before: Snapshot | undefined;
  try {
    await watch(terminal, { ...options, watch: every }, async () => {
      const snapshot = await takeSnapshot(terminal, options).catch((error: unknown) => {
        // The reason is printed below the last page; the next page starts a new screen.
        screen?.close();
        screen = undefined;
        throw error;
      });
      screen ??= await terminal.openScreen();
      const shown = (maxLines: number) =>
        `${pageOf(snapshot, before, maxLines - 2)}\n\nEvery ${every} s; Ctrl-C ends it.`;
      screen.show(shown);
      before = snapshot;
    });
  } finally {
    screen?.close();
  }
}

async function takeSnapshot(terminal: Terminal, options: ApiOptions): Promise<Snapshot> {
  const read = async (path: string): Promise<Json> =>
    JSON.parse(await fetchText(terminal, options, get(path)));
  const at = new Clock().now();
  const stats = await read('/v1/tasks/stats');
  const exposition = await fetchText(terminal, options, { ...get('/metrics'), isText: true });
  const agents = await read(`/v1/agents${queryString({ failing: 'true', limit: MAX_PAGE })}`);
  const from = toTimestamp(at - HOUR_MS);
  const tasks: Json[] = [];
  for (const outcome of BAD_OUTCOMES)
    tasks.push(...(await read(`/v1/tasks${queryString({ outcome, from, limit: SAMPLED })}`)).items);
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

/** The values of a metric in a Prometheus exposition, by the value of its label. */
function seriesOf(exposition: string, name: string, label?: string): Record<string, number> {
  const values: Record<string, number> = {};
  const line = new RegExp(`^control_plane_${name}(?:\\{${label}="(\\w*)"\\})? (\\S+)$`, 'gm');
  for (const [, value = '', number] of exposition.matchAll(line)) values[value] = Number(number);
  return values;
}

/** The agents with the most attempts in the last hour that count for `failing`. */
export function worstAgents(agents: readonly Json[]): Json[] {
  const failures = ({ outcomes: { hour } }: Json) => hour.error + hour.cancelled + hour.expired;
  return agents.toSorted((a, b) => failures(b) - failures(a)).slice(0, WORST);
}

function worstTargets(tasks: readonly Json[]): TargetTrouble[] {
  const byTarget = Map.groupBy(tasks, ({ kind, target }) => JSON.stringify([kind, target]));
  const count = (of: readonly Json[], outcome: string) =>
    of.filter(({ last_outcome }) => last_outcome === outcome).length;
  return [...byTarget.values()]
    .sort((a, b) => b.length - a.length)
    .slice(0, WORST)
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
 * Renders the page.
 * @param before the earlier snapshot, from which rates are computed
 * @param maxLines how many lines fit: fewer targets and agents are shown, but at least one of each
 */
export function pageOf(
  snapshot: Snapshot,
  before: Snapshot | undefined,
  maxLines = Number.POSITIVE_INFINITY,
): string {
  const { fleet, config } = snapshot;
  const kinds = kindRows(snapshot);
  const rows = Math.max(2, maxLines - kinds.length - OTHER_LINES);
  // Lines that one of the two tables does not need go to the other.
  const ofAgents = Math.max(Math.ceil(rows / 2), rows - snapshot.targets.length);
  const agents = snapshot.agents.slice(0, ofAgents);
  const targets = snapshot.targets.slice(0, Math.max(1, rows - agents.length));
  const parts = (counts: Readonly<Record<string, number>>) =>
    Object.entries(counts)
      .filter(([name, count]) => count > 0 || SHOWN_IF_ZERO.has(name))
      .map(([name, count]) => `${name} ${grouped(count)}`)
      .join('  ');
  return [
    `${toTimestamp(snapshot.at)}${snapshot.isDraining ? '  the server stops' : ''}`,
    '',
    // Problems first: a narrow terminal cuts off the end.
    `FLEET   failing ${grouped(snapshot.failing)}  silent ${grouped(snapshot.silent)}  ${parts(fleet)}`,
    `CONFIG  ${snapshot.isPublished ? parts(config) : 'none is in force'}`,
    `QUEUE   ${ratesOf(snapshot, before)}`,
    '',
    table(kinds, ['kind', ...STATES, 'completed', 'dead', 'oldest']),
    '',
    'WORST TARGETS, by their latest tasks of the last hour without success',
    targets.length === 0 ? 'none' : table(targets, ['kind', 'target', ...BAD_OUTCOMES, 'last_error']),
    '',
    'FAILING AGENTS (most of at least 5 attempts of the last hour: error, cancelled or expired), the worst',
    agents.length === 0
      ? 'none'
      : table(
          agents.map(({ id, hostname, status, outcomes, last_error }) => ({
            ...{ id, hostname, status },
            ...Object.fromEntries(BAD_OUTCOMES.map((outcome) => [outcome, outcomes.hour[outcome]])),
            success: outcomes.hour.success,
            last_error: last_error?.message ?? last_error?.outcome,
          })),
          ['id', 'hostname', 'status', 'success', ...BAD_OUTCOMES, 'last_error'],
        ),
  ].join('\n');
}

function kindRows({ stats: { depths } }: Snapshot): object[] {
  return [...Map.groupBy(depths, ({ kind }) => kind)].map(([kind, of]) => {
    const counts = Object.fromEntries(of.map(({ state, count }) => [state, grouped(count)]));
    const age = of.find(({ state }) => state === 'queued')?.oldest_age_ms ?? null;
    return { kind, ...counts, oldest: age === null ? null : ageOf(age) };
  });
}

/** Tasks enqueued and ended per second between two snapshots. Retention deletes tasks, so it hides some. */
function ratesOf(snapshot: Snapshot, before: Snapshot | undefined): string {
  const seconds = before ? (snapshot.at - before.at) / 1_000 : 0;
  if (!before || seconds <= 0) return 'rates: - (they need two updates)';
  const sum = ({ stats: { depths } }: Snapshot, ...states: string[]) =>
    depths
      .filter(({ state }) => states.length === 0 || states.includes(state))
      .reduce((total, { count }) => total + count, 0);
  const rate = (...states: string[]) => {
    const perSecond = Math.max(0, (sum(snapshot, ...states) - sum(before, ...states)) / seconds);
    return perSecond >= 10 ? grouped(Math.round(perSecond)) : perSecond.toFixed(1);
  };
  return `enqueued ${rate()}/s  completed ${rate('completed')}/s  dead ${rate('dead')}/s`;
}

/** Formats a number with thousands separators. */
const grouped = (value: number): string => value.toLocaleString('en-US');

function ageOf(ms: number): string {
  const seconds = Math.round(ms / 1_000);
  if (seconds < 120) return `${seconds} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.round(minutes / 60);
  return hours < 48 ? `${hours} h` : `${Math.round(hours / 24)} d`;
}
