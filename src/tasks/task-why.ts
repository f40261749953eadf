import { toTimestamp } from '../clock';
import { AHEAD_US } from '../concurrency/starts';
import type { CountingScope } from '../concurrency/window.entity';
import { leasesLeft, nextStartUs, perSecond, roomNow } from '../concurrency/window-bounds';
import type { Ahead, Count, InWindow, QueuedWindow } from './task-ahead';
import type { Room } from './task-room';
import type { TaskWhy, WhyAgents, WhyAttempt, WhyChange, WhyReason, WhyWindow } from './task-why.dto';
import type { TaskRow } from './tasks.queries';

/** Within which time what is due is dealt with, in milliseconds. */
const TICK_MS = 1_000;
/** The last instant that a timestamp can name, as it has four digits for the year. */
const LAST_INSTANT = Date.parse('9999-12-31T23:59:59.999Z');
/** How far ahead a start is granted, in ms. */
const AHEAD_MS = AHEAD_US / 1_000;
/** The highest limit that can be set. */
const MAX_LIMIT = 1_000_000;
/** How often it is written at least that an agent claims, in milliseconds; with some time to spare. */
const ASKS_LATELY_MS = 1_200_000;

/** The agents that take a kind. */
export interface Takers extends Omit<WhyAgents, 'last_asked_at' | 'with_room'>, Room {
  readonly last_asked_at: number | null;
  /** If none is online: the one that is nearest to it, and how many leases it holds. */
  readonly candidate:
    | { id: number; status: 'draining' | 'offline' | 'disabled'; isSilent: boolean; held: number }
    | undefined;
}

export type WhyTask = Pick<
  TaskRow,
  | 'id'
  | 'kind'
  | 'target'
  | 'state'
  | 'reason'
  | 'priority'
  | 'run_at'
  | 'not_after'
  | 'attempts'
  | 'max_attempts'
  | 'unique_key'
  | 'finished_at'
>;

/** Until when a task can't run by itself. */
export interface Wait {
  readonly reason: 'out_of_time' | 'leased' | 'not_yet' | 'backoff';
  /** The instant that is shown. */
  readonly until: number;
  /** When it has come back to the queue, at the latest. */
  readonly end: number;
  /** Whether it is dead by then. */
  readonly isLast: boolean;
}

/** The last change of a window's rate. */
export interface PaceChange {
  /** In ms since the epoch. */
  readonly at: number;
  /** In starts a second; null if there was none. */
  readonly before: number | null;
  /** Why, as a sentence. */
  readonly message: string;
}

/** What there is to know about a task that is not finished. */
export interface WhyFacts {
  readonly now: number;
  readonly task: WhyTask;
  readonly isKindKnown: boolean;
  readonly wait: Wait | undefined;
  readonly lease: { id: number; agent_id: number } | undefined;
  readonly lastAttempt: WhyAttempt | undefined;
  readonly ahead: Ahead;
  /** The same without those that come due while it waits. */
  readonly aheadNow: Ahead;
  /** How many slots come free in each of its windows in a millisecond, by scope; left out if that is not known. */
  readonly pace: Readonly<Partial<Record<CountingScope, number>>>;
  /** The last change of the rate of each of its windows that has one, by scope. */
  readonly paceChanges: Readonly<Partial<Record<CountingScope, PaceChange>>>;
  readonly takers: Takers;
  /** How many leases one agent may hold at once. */
  readonly maxLeasesPerAgent: number;
  /** What this server's load is, of which 1 is the limit, and whether it stops. */
  readonly load: number;
  readonly isDraining: boolean;
}

/**
 * Until when a task can't run by itself; undefined if it is only for others to let it.
 * @param longestBackoffMs how long it waits at most for its next attempt, should this one fail
 */
export function waitOf(
  task: WhyTask,
  deadlineAt: number | undefined,
  longestBackoffMs: number,
  now: number,
): Wait | undefined {
  const { state, attempts, not_after: notAfter } = task;
  if (state === 'leased') {
    const until = Math.max(deadlineAt ?? now, now);
    const end = until + longestBackoffMs + TICK_MS;
    if (attempts >= task.max_attempts) return { reason: 'leased', until, end: until + TICK_MS, isLast: true };
    // It ends with the lease or later, by how long the backoff happens to be.
    if (notAfter !== null && notAfter <= end)
      return { reason: 'leased', until, end: Math.max(notAfter, until) + TICK_MS, isLast: true };
    return { reason: 'leased', until, end, isLast: false };
  }
  if (notAfter !== null && notAfter <= now)
    return { reason: 'out_of_time', until: notAfter, end: now + TICK_MS, isLast: true };
  if (state !== 'scheduled') return undefined;
  const until = Math.max(task.run_at ?? now, now);
  const reason = attempts > 0 ? 'backoff' : 'not_yet';
  const end = until + TICK_MS;
  // Its time may be up before it is seen that it is due.
  return notAfter !== null && notAfter <= end
    ? { reason, until, end: notAfter + TICK_MS, isLast: true }
    : { reason, until, end, isLast: false };
}

/** A window that has no room for the task, and what would give it some. */
interface Shortage extends InWindow {
  /** How many slots it is short of. */
  readonly slots: number;
  /** The least limit that is enough; null if that can't be told. */
  readonly limit: number | null;
}

/** The windows without room, the one that is furthest from having some first; of several, the narrowest. */
function shortagesOf({ windows }: Ahead): Shortage[] {
  const shortages = windows.map((one): Shortage => {
    const { window, before, held } = one;
    const enough = held + before.count + 1;
    return {
      ...one,
      slots: enough - (limitOf(window) ?? Number.POSITIVE_INFINITY),
      limit: before.isExact && enough <= MAX_LIMIT ? enough : null,
    };
  });
  const width = (scope: CountingScope) => ['target', 'kind', 'global'].indexOf(scope);
  // Within a rate those before the task do not run at once: a limit that is not full has room for each when it starts.
  const isOfPace = ({ window }: Shortage) =>
    window.rate !== null && window.leased < (limitOf(window) ?? Number.POSITIVE_INFINITY);
  return shortages
    .filter((one) => one.slots > 0 && !isOfPace(one))
    .sort((a, b) => b.slots - a.slots || width(a.window.scope) - width(b.window.scope));
}

/**
 * Why a finished task does not run, and what would let it.
 * @param keyHolder the unfinished task that has its unique_key by now
 */
export function explainFinished(task: WhyTask, keyHolder?: number): TaskWhy {
  const changes: WhyChange[] =
    task.state === 'completed' || keyHolder !== undefined
      ? []
      : [{ reason: 'finished', action: 'retry_task' }];
  const because = task.reason === null ? '' : ` (${task.reason})`;
  const at = toTimestamp(task.finished_at);
  const taken = keyHolder === undefined ? '' : ` Task ${keyHolder} has its unique_key by now.`;
  const fact = `The task has ended${at === null ? '' : ` at ${at}`}: it is ${task.state}${because}.${taken}`;
  return answer(task, 'finished', fact, changes, {});
}

/** The most leases at once that an operator allows: that of an adaptive window below it is a matter of its pace. */
const limitOf = ({ adaptive, max_slots, slots }: QueuedWindow): number | null =>
  adaptive === 1 ? max_slots : slots;

/** A window whose rate has the task wait. */
interface Delay extends InWindow {
  readonly ms: number;
  readonly isExact: boolean;
}

/** The windows whose rate has the task wait, the one that has it wait longest first. */
function delaysOf({ windows }: Ahead, now: number): Delay[] {
  return windows
    .flatMap((one): Delay[] => {
      const { window, before } = one;
      const { rate } = window;
      if (rate === null || roomNow(window, now) > before.count) return [];
      const intervalMs = 1_000_000 / rate;
      const nextMs = Math.max(0, nextStartUs(window, rate, now) / 1_000 - now);
      // Until the target answers, an adaptive window has few leases at once, and nobody knows for how long.
      const isExact = before.isExact && leasesLeft(window) > 0;
      return [{ ...one, isExact, ms: Math.max(0, nextMs + before.count * intervalMs - AHEAD_MS) }];
    })
    .sort((a, b) => b.ms - a.ms);
}

/** How many leases have to be granted until that of a task is: the best come first. */
export const leasesNeeded = ({ leases }: Ahead): number => 1 + leases.count;

/** A change, and whether less of it or nothing may be needed, as what comes due first may have run by then. */
type Change = Omit<WhyChange, 'reason'> & { readonly isIfDue?: boolean };

/** Why an unfinished task does not run, and what would let it. */
export function explain(facts: WhyFacts): TaskWhy {
  const { task, takers, ahead } = facts;
  const shortages = shortagesOf(ahead);
  const needed = leasesNeeded(ahead);
  const isNeededExact = ahead.leases.isExact;
  const isQueued = task.state === 'queued' && !facts.wait;
  const asksOf = (room: number, leases = needed) => ({
    kind: task.kind,
    capacity: Math.min(leases, room),
    agents: Math.ceil(leases / room),
    is_enough: isNeededExact,
  });
  const bring = (leases = needed) => ({
    action: 'bring_agent' as const,
    ...asksOf(facts.maxLeasesPerAgent, leases),
  });
  // What comes due while it waits may have run by then, if an agent is online and the limit lets something run.
  const shortNow = new Map(shortagesOf(facts.aheadNow).map(({ window, slots }) => [window.scope, slots]));
  const isIfDue = ({ window, slots }: Shortage) =>
    takers.online > 0 && limitOf(window) !== 0 && slots > (shortNow.get(window.scope) ?? 0);
  const found: { reason: WhyReason; fact: string; changes: Change[] }[] = [];
  if (facts.wait) {
    const { reason, end, isLast } = facts.wait;
    const again = isLast ? [{ action: 'retry_task' as const }] : [];
    const waits = { action: 'wait_until' as const, until: toTimestamp(Math.min(end, LAST_INSTANT)) };
    found.push({ reason, fact: factOfWait(facts, facts.wait), changes: [waits, ...again] });
  }
  if (!facts.isKindKnown) {
    const fact = `This server does not know the kind ${task.kind}.`;
    found.push({ reason: 'unknown_kind', fact, changes: [{ action: 'load_kind', kind: task.kind }] });
  }
  if (takers.online === 0) {
    const { candidate } = takers;
    const room = candidate ? facts.maxLeasesPerAgent - candidate.held : 0;
    // One that has no room for those before the task as well does not get that far by itself.
    const isEnough = room >= Math.min(needed, facts.maxLeasesPerAgent);
    const changes = candidate && isEnough ? wake(candidate, asksOf(room)) : [bring()];
    found.push({ reason: 'no_agent', fact: factOfNoAgent(task, takers), changes });
  }
  const [tightest] = shortages;
  const window = tightest && viewOf(tightest, estimateOf(tightest, facts));
  if (window) {
    found.push({
      reason: 'window_full',
      fact: factOfWindow(window, tightest),
      changes: shortages.map((shortage) => {
        const { scope, kind, target } = shortage.window;
        const which = { scope, kind: kind || null, target: target || null };
        return { action: 'raise_limit', ...which, limit: shortage.limit, isIfDue: isIfDue(shortage) };
      }),
    });
  }
  const [slowest] = delaysOf(ahead, facts.now);
  if (slowest) {
    const until = toTimestamp(Math.min(Math.ceil(facts.now + slowest.ms), LAST_INSTANT));
    found.push({
      reason: 'paced',
      fact: factOfPace(slowest, facts),
      changes: [{ action: 'wait_until', until, is_enough: slowest.isExact }],
    });
  }
  const isShort = takers.free.isExact && takers.free.count < needed;
  const areBusy = takers.online > 0 && (takers.with_room === 0 || isShort);
  if (areBusy) {
    // If all hold as many as they ask for, none of them will take more.
    const missing = takers.with_room === 0 ? needed : needed - takers.free.count;
    const isLess = needed > leasesNeeded(facts.aheadNow);
    const fact = factOfBusy(facts, needed, isNeededExact);
    found.push({ reason: 'agents_busy', fact, changes: [{ ...bring(missing), isIfDue: isLess }] });
  }
  const isKnown = takers.online === 0 || areBusy || (isNeededExact && takers.free.count >= needed);
  if (facts.isDraining) {
    const fact = 'This server stops: agents are sent to others, or come back when it has started again.';
    found.push({ reason: 'draining', fact, changes: [{ action: 'start_server' }] });
  }
  const isOverloaded = facts.load >= 1;
  const percent = Math.round(facts.load * 100);
  if (isOverloaded) {
    const fact = `This server turns claims away: its load is ${percent} % of its limit.`;
    found.push({ reason: 'overloaded', fact, changes: [{ action: 'reduce_load' }] });
  }
  const [first] = found;
  return answer(
    task,
    first?.reason ?? 'ready',
    first?.fact ?? factOfReady(facts, isKnown),
    found.flatMap(({ reason, changes }) => changes.map((change) => ({ reason, ...change }))),
    {
      until: toTimestamp(facts.wait?.until ?? null),
      ...(isQueued ? { before: ahead.leases.count, before_is_exact: isNeededExact } : {}),
      lease: facts.lease ? { lease_id: facts.lease.id, agent_id: facts.lease.agent_id } : null,
      last_attempt: facts.lastAttempt ?? null,
      window: window ?? (slowest && viewOf(slowest, slowest.isExact ? Math.ceil(slowest.ms) : null)) ?? null,
      agents: {
        online: takers.online,
        offline: takers.offline,
        draining: takers.draining,
        disabled: takers.disabled,
        with_room: takers.with_room,
        last_asked_at: toTimestamp(takers.last_asked_at),
      },
      load_percent: isOverloaded ? percent : null,
    },
    first && !isKnown ? NOT_COUNTED : '',
  );
}

/** How an agent that is not online comes to ask for tasks. */
function wake(
  { id: agent_id, status, isSilent }: NonNullable<Takers['candidate']>,
  asks: Pick<WhyChange, 'kind' | 'capacity' | 'agents' | 'is_enough'>,
): Omit<WhyChange, 'reason'>[] {
  const start = { action: 'start_agent' as const, agent_id, ...asks };
  if (status === 'offline') return [start];
  const enable = { action: 'enable_agent' as const, agent_id };
  // One that is disabled is refused whatever it sends: whether it runs shows when it is not any more.
  return status === 'draining' && isSilent ? [enable, start] : [{ ...enable, ...asks }];
}

/** @param caveat what is to be known of the changes, as a sentence */
function answer(
  task: WhyTask,
  reason: WhyReason,
  fact: string,
  found: (Change & { reason: WhyReason })[],
  known: Partial<TaskWhy>,
  caveat = '',
): TaskWhy {
  const changes = found.map(({ isIfDue, ...change }): WhyChange => change);
  const steps = changes.map((change, i) => {
    const ifDue = found[i]?.isIfDue ? ', if the tasks that come due first have not run by then,' : '';
    return `${i === 0 ? '' : `, then${ifDue} `}${textOf(change)}`;
  });
  const toDo = steps.length === 0 ? '' : ` To let it run: ${steps.join('')}.`;
  return {
    task_id: task.id,
    kind: task.kind,
    target: task.target,
    state: task.state,
    reason,
    message: `${fact}${toDo}${caveat === '' ? '' : ` ${caveat}`}`,
    changes,
    until: null,
    attempts: task.attempts,
    max_attempts: task.max_attempts,
    before: null,
    before_is_exact: true,
    lease: null,
    last_attempt: null,
    window: null,
    agents: null,
    load_percent: null,
    ...known,
  };
}

function viewOf({ window, before }: InWindow, estimateMs: number | null): WhyWindow {
  return {
    scope: window.scope,
    kind: window.kind || null,
    target: window.target || null,
    limit: limitOf(window),
    rate: perSecond(window.rate),
    leased: window.leased,
    queued: window.queued,
    before: before.count,
    before_is_exact: before.isExact,
    estimate_ms: estimateMs,
  };
}

/** When a full window may have room, in ms from now; null if that can't be told. */
function estimateOf({ window, before, slots }: Shortage, { pace }: WhyFacts): number | null {
  const perMs = pace[window.scope];
  // A limit of 0 lets nothing begin, however many end.
  return perMs === undefined || limitOf(window) === 0 || !before.isExact ? null : Math.ceil(slots / perMs);
}

const counted = ({ count, isExact }: Count): string => (isExact ? String(count) : `at least ${count}`);

const tasks = (count: Count): string =>
  `${counted(count)} ${count.count === 1 ? 'task is' : 'tasks are'} before it`;

/** "2 agents are online and take dns". */
const takeOf = (count: number, kind: string): string =>
  count === 1 ? `1 agent is online and takes ${kind}` : `${count} agents are online and take ${kind}`;

/** A window as sentences call it. */
const nameOf = ({ kind, target }: Pick<WhyChange, 'kind' | 'target'>): string =>
  kind ? (target ? `${kind} at ${target}` : kind) : 'everything';

function factOfWait({ task, lease, lastAttempt, now }: WhyFacts, { reason, until }: Wait): string {
  const at = toTimestamp(until);
  const attempt = `attempt ${task.attempts} of ${task.max_attempts}`;
  if (reason === 'out_of_time') return `Its not_after has passed (${at}): it ends now.`;
  if (reason === 'leased') return `Agent ${lease?.agent_id} holds it until ${at}, ${attempt}.`;
  const when = until <= now ? 'now' : `at ${at}`;
  if (reason === 'not_yet') return `It is not to run before its run_at; that is ${when}.`;
  const failed = lastAttempt
    ? `Agent ${lastAttempt.agent_id} ${HOW_ENDED[lastAttempt.ended]}${lastAttempt.outcome === null ? '' : ` (${lastAttempt.outcome})`}, ${attempt}`
    : `It failed, ${attempt}`;
  return `${failed}; the next begins ${when}.`;
}

const HOW_ENDED = { cancelled: 'cancelled it', expired: 'did not report in time' } as const;

function factOfNoAgent({ kind }: WhyTask, { offline, draining, disabled }: Takers): string {
  const others = Object.entries({ offline, draining, disabled }).filter(([, count]) => count > 0);
  if (others.length === 0) return `No agent has asked for ${kind} in the last day.`;
  const named = others.map(([status, count]) => `${count} ${status}`).join(', ');
  return `No agent that takes ${kind} is online: ${named}.`;
}

function factOfWindow(window: WhyWindow, { before }: Shortage): string {
  const { limit, leased, estimate_ms: estimate } = window;
  if (limit === 0) return `Nothing of ${nameOf(window)} may run: the limit is 0, and ${tasks(before)}.`;
  const pace =
    estimate === null
      ? ''
      : ` At the pace of the last minutes it may have a slot in ${Math.ceil(estimate / 1_000)} s.`;
  const lacks = leased < (limit ?? Number.POSITIVE_INFINITY) ? 'has too few slots left' : 'is full';
  return `The window of ${nameOf(window)} ${lacks}: of ${limit} ${limit === 1 ? 'slot' : 'slots'} ${leased} ${leased === 1 ? 'is' : 'are'} leased, and ${tasks(before)}.${pace}`;
}

function factOfPace({ window, before, ms, isExact }: Delay, { now, paceChanges }: WhyFacts): string {
  const { rate, hold_until: holdUntil } = window;
  const change = paceChanges[window.scope];
  const since = change
    ? ` since ${toTimestamp(change.at)}${change.before === null ? '' : ` (before: ${change.before})`}: ${change.message}`
    : '.';
  const hold =
    holdUntil !== null && holdUntil > now
      ? ` The target asked for a pause until ${toTimestamp(holdUntil)}.`
      : '';
  const time = isExact
    ? `about ${durationOf(ms)}`
    : `at least ${durationOf(ms)}, and until the target answers few checks run at once`;
  return `The rate of ${nameOf(window)} is ${perSecond(rate as number)}/s${since}${hold} ${upper(tasks(before))}: ${time}.`;
}

const upper = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1);

/** "14 minutes". */
function durationOf(ms: number): string {
  const units = [
    [86_400_000, 'day'],
    [3_600_000, 'hour'],
    [60_000, 'minute'],
    [1_000, 'second'],
  ] as const;
  const [unitMs, name] = units.find(([one]) => ms >= 2 * one) ?? ([1_000, 'second'] as const);
  const count = Math.max(1, Math.round(ms / unitMs));
  return `${count} ${name}${count === 1 ? '' : 's'}`;
}

function factOfBusy(
  { task: { kind }, takers: { online, with_room, free } }: WhyFacts,
  needed: number,
  isExact: boolean,
): string {
  const takes = takeOf(online, kind);
  return with_room === 0
    ? `${takes}, and none has room for more leases.`
    : `${takes}, and may hold ${free.count} more ${free.count === 1 ? 'lease' : 'leases'} in all; ${tasks({ count: needed - 1, isExact })}.`;
}

const NOT_COUNTED =
  'It is not counted whether the agents that are online may hold as many leases as that takes.';

/** @param isEnough whether those online are known to be able to hold as many leases as it takes */
function factOfReady({ task: { kind }, ahead, takers, now }: WhyFacts, isEnough: boolean): string {
  const { online, with_room: withRoom, last_asked_at: askedAt } = takers;
  const look =
    'look whether the agents still run: a dead one counts as online until its heartbeat is overdue.';
  const silent =
    askedAt !== null && now - askedAt > ASKS_LATELY_MS
      ? `None of them has asked for ${kind} since ${toTimestamp(askedAt)}: look whether they still claim.`
      : isEnough
        ? `The next claims that ask for enough get it; if none does, ${look}`
        : `${NOT_COUNTED} If they get none, ${look}`;
  const takes = takeOf(online, kind);
  const room = withRoom === null ? 'too many of them busy to tell whether one has' : `${withRoom} with`;
  const holds = isEnough ? 'Nothing holds it' : 'Nothing is known to hold it';
  return `${holds}: ${tasks(ahead.leases)}; ${takes}, ${room} room for more leases. ${silent}`;
}

/** A change as an instruction. */
function textOf(change: WhyChange): string {
  const { kind, agents = 1, is_enough: isEnough = true } = change;
  const atLeast = isEnough ? '' : 'at least ';
  // One may ask for no more than it may hold: then it is their number that may not be enough.
  const capacity = `${agents > 1 ? '' : atLeast}${change.capacity}`;
  const others = agents > 1 ? ` and ${atLeast}${agents - 1} more` : '';
  const asking = `${others} (${agents > 1 ? 'each ' : ''}to ask for ${capacity} more of ${kind})`;
  switch (change.action) {
    case 'wait_until':
      return `wait until ${change.until}`;
    case 'retry_task':
      return 'retry it';
    case 'raise_limit':
      return change.limit === null
        ? `lift the limit of ${nameOf(change)}`
        : `raise the limit of ${nameOf(change)} to ${change.limit}`;
    case 'enable_agent':
      return `enable agent ${change.agent_id}${change.capacity === undefined ? '' : asking}`;
    case 'start_agent':
      return `start agent ${change.agent_id}${asking}`;
    case 'bring_agent':
      return agents > 1
        ? `bring ${atLeast}${agents} agents that each ask for ${capacity} of ${kind}`
        : `bring ${isEnough ? 'an agent that asks' : 'agents that ask'} for ${capacity} of ${kind}`;
    case 'load_kind':
      return `name the extension of ${kind} in this server's settings`;
    case 'reduce_load':
      return 'reduce the load of this server';
    case 'start_server':
      return 'start this server again';
  }
}
