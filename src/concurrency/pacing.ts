// The rule that finds the rate of starts at a target. A pure function of what agents report: the simulation in
// bench/politeness runs it, and shows what each constant does.

/** What the outcome of a check says about its target; `local` is the agent's own trouble and says nothing. */
export const SIGNALS = ['answered', 'pushed_back', 'bad', 'local'] as const;
export type Signal = (typeof SIGNALS)[number];

/** The outcome of one lease at a target. */
export interface PacedOutcome {
  readonly leaseId: number;
  readonly agentId: number;
  readonly signal: Signal;
  /** The round-trip time, in ms. */
  readonly rttMs?: number | null;
  /** For how long the target asked for a pause, in ms. */
  readonly retryAfterMs?: number | null;
  /** From the grant of the lease to its report, in ms. */
  readonly delayMs: number;
}

/** What is known of one agent at the target. */
export interface AgentEvidence {
  readonly agentId: number;
  /** Its shortest round-trip time, in ms; null if none is known. */
  readonly bestRttMs: number | null;
  /** Failures since its last answer. */
  readonly streak: number;
  /** Answers in the epoch. */
  readonly ok: number;
  /** Failures in the epoch. */
  readonly bad: number;
  /** Epochs in a row without an outcome. */
  readonly idle: number;
}

/** The bounds that an operator has set. */
export interface PacingBounds {
  /** Starts per 1,000 s. */
  readonly maxRate: number;
  /** The most leases at once; null if there is no limit. */
  readonly limit: number | null;
}

/** The state of the pacing of one target. Rates are starts per 1,000 s, instants ms since 1970. */
export interface PacingState {
  readonly rate: number;
  /** Only leases with a higher id count for the next decision. */
  readonly epochLeaseId: number;
  /** The first grant of the leases of the epoch that were reported; that of the last decision if there are none. */
  readonly epochBeganAt: number;
  /** The first seen first. */
  readonly agents: readonly AgentEvidence[];
  /** Answers and failures in the epoch, of agents that there is no room for. */
  readonly othersOk: number;
  readonly othersBad: number;
  /** The latest round-trip times of the epoch, each divided by its agent's best. */
  readonly rttRatios: readonly number[];
  /** From grant to report, in ms: a moving average. */
  readonly delayMs: number;
  /** The same of failures, which take longer. */
  readonly badDelayMs: number;
  /** No start before this instant. */
  readonly holdUntil: number;
  /** How often the time between probes of a dead target was doubled; 0 if it is not dead. */
  readonly deadLevel: number;
  /** The rate before the last cut; 0 if there was none. */
  readonly rateBefore: number;
  /** Whether it has ever answered: until then there is no feedback, and no growth. */
  readonly isHeard: boolean;
}

/** Why a rate changed. */
export type PacingReason = 'pushed_back' | 'failures' | 'slower' | 'room' | 'dead' | 'alive';

/** A change of the rate, with its evidence. */
export interface PacingChange {
  readonly reason: PacingReason;
  readonly before: number;
  readonly after: number;
  readonly ok: number;
  readonly bad: number;
  /** Median of round-trip times, each divided by its agent's best; null if none was reported. */
  readonly rttRatio: number | null;
  /** Starts per 1,000 s in the epoch. */
  readonly measured: number;
}

/** What else a decision needs. */
export interface PacingContext {
  readonly now: number;
  /** The highest lease id so far, of any target. */
  readonly lastLeaseId: number;
  /** Starts that were granted in the epoch. */
  readonly starts: number;
  readonly bounds: PacingBounds;
}

interface Decision {
  readonly state: PacingState;
  /** Undefined if the rate stays. */
  readonly change: PacingChange | undefined;
}

/** The lowest rate of a target that answers: 0.1 a second. */
export const LOWEST_RATE = 100;
/** The rate of a target that nothing is known of, if its bound is not lower: 10 a second. */
export const FIRST_RATE = 10_000;
/** A million a second, so that numbers stay exact whatever bound is set. */
const HIGHEST_RATE = 1_000_000_000;

/** An epoch has this many outcomes, or lasts at least 10 s: fewer are chance. */
const EPOCH_OUTCOMES = 20;
const EPOCH_MS = 10_000;
/** And never fewer: one timeout more or less must not decide. */
const FEWEST_OUTCOMES = 5;
/**
 * Before a rate grows, the epoch lasts 1.5 times as long as a report takes, and 1.3 times as long as that of a failure. Failures
 * are reported later than answers, so an epoch that is shorter hardly sees them.
 */
const EPOCH_DELAYS = 1.5;
const EPOCH_BAD_DELAYS = 1.3;
/** The weight of an outcome in the averages of delays, which follow some 10 outcomes. */
const DELAY_WEIGHT = 0.1;
/** One report that is very late must not make epochs long. */
const MAX_DELAY_MS = 60_000;
export const MAX_RETRY_AFTER_MS = 3_600_000;

/** Bounds what is stored. */
const MAX_AGENTS = 32;
const MAX_RATIOS = 64;
/** Epochs without an outcome after which an agent no longer works at the target. */
const MAX_IDLE = 10;
/** Failures in a row after which those of an agent count only if others fail too. */
const BROKEN_STREAK = 5;
const MAX_STREAK = 99;

/** Added to round-trip times before they are compared, in ms: below this, differences are noise. */
const RTT_NOISE_MS = 5;
/** By how much an agent's best round-trip time grows in each epoch, so that a longer route is learnt. */
const RTT_AGING = 1.01;
const MAX_RTT_RATIO = 99;

/** Share of failures above which the target has too much. More than networks lose; seen late, so that more have failed. */
const FAILING = 0.12;
/** Share of failures up to which there may be room: what networks lose. */
const WELL = 0.05;
/** A queue builds up at the target if round-trip times are 3 times the best. */
const SLOW = 3;
/** There is no queue up to this. */
const FAST = 1.5;
/** Cuts: for failures at least this, for a queue this, which lets it drain, and at once never below a quarter. */
const FAILURES_CUT = 0.7;
const SLOW_CUT = 0.85;
const DEEPEST_CUT = 0.25;
/** A rate is used if measured starts are at least this share of it: pacing and ticks leave gaps. */
const USED = 0.7;
/** Growth in an epoch: at most half, and this share near the rate of the last cut. */
const FASTEST_GROWTH = 0.5;
const SLOWEST_GROWTH = 0.03;

/** Leases that may be live at a target whatever its delay is. */
export const MIN_LEASED = 8;
/** One probe every 2 ** 5 s. */
const MAX_DEAD_LEVEL = 5;

/** Returns the state of a target that nothing is known of. */
export function firstState(now: number, lastLeaseId: number, bounds: PacingBounds): PacingState {
  return {
    ...{ rate: within(FIRST_RATE, LOWEST_RATE, bounds), epochLeaseId: lastLeaseId, epochBeganAt: now },
    ...{ agents: [], othersOk: 0, othersBad: 0, rttRatios: [], delayMs: 0, badDelayMs: 0 },
    ...{ holdUntil: 0, deadLevel: 0, rateBefore: 0, isHeard: false },
  };
}

/** Returns the state within new bounds. */
export function boundState(state: PacingState, bounds: PacingBounds): PacingState {
  const rate = within(state.rate, lowestOf(state.deadLevel), bounds);
  return rate === state.rate ? state : { ...state, rate };
}

/** Returns the most leases at once: twice what the rate needs, and few until the target was heard. */
export function leasesAllowed(
  { rate, delayMs, deadLevel, isHeard }: PacingState,
  { limit }: PacingBounds,
): number {
  const needed = isHeard ? Math.ceil((2 * rate * delayMs) / 1_000_000) : 0;
  return Math.min(deadLevel > 0 ? 1 : Math.max(MIN_LEASED, needed), limit ?? Number.POSITIVE_INFINITY);
}

/**
 * Takes outcomes into account and decides about the rate: at most one change for each epoch, whatever the order of
 * reports and however they are split.
 */
export function applyOutcomes(
  stored: PacingState,
  outcomes: readonly PacedOutcome[],
  context: PacingContext,
): Decision {
  const { now } = context;
  const state = boundState(stored, context.bounds);
  const telling = outcomes.filter(({ signal }) => signal !== 'local');
  if (telling.length === 0) return { state, change: undefined };
  const before = new Map(state.agents.map((agent) => [agent.agentId, agent]));
  const fewBroken = areFew(state.agents.filter(isBroken), state.agents);
  const agents = new Map(before);
  const rttRatios = [...state.rttRatios];
  let { delayMs, badDelayMs } = state;
  let isPushedBack = false;
  let holdUntil = Math.min(state.holdUntil, now + MAX_RETRY_AFTER_MS);
  const hasEvidence = state.othersOk + state.othersBad > 0 || state.agents.some(isPresent);
  let epochBeganAt = hasEvidence ? Math.min(state.epochBeganAt, now) : now;
  for (const { leaseId, agentId, signal, ...told } of telling) {
    const tookMs = duration(told.delayMs, MAX_DELAY_MS) ?? 0;
    delayMs = average(delayMs, tookMs);
    if (signal === 'bad') badDelayMs = average(badDelayMs, tookMs);
    const counts = leaseId > state.epochLeaseId;
    if (counts) epochBeganAt = Math.min(epochBeganAt, now - tookMs);
    const known = before.get(agentId);
    if (signal === 'pushed_back' && !(known && isBroken(known) && fewBroken)) {
      isPushedBack ||= counts;
      holdUntil = Math.max(holdUntil, now + (duration(told.retryAfterMs, MAX_RETRY_AFTER_MS) ?? 0));
    }
    const isAnswer = signal === 'answered';
    const rttMs = isAnswer ? duration(told.rttMs, MAX_DELAY_MS) : undefined;
    // Compared with what was known before: the first round-trip time of an agent says nothing.
    if (counts && rttMs !== undefined && known && known.bestRttMs !== null)
      rttRatios.push(ratioOf(rttMs, known.bestRttMs));
    const agent = agents.get(agentId) ?? NOTHING_KNOWN;
    agents.set(agentId, {
      ...{ agentId, idle: agent.idle },
      bestRttMs: rttMs === undefined ? agent.bestRttMs : tenths(Math.min(agent.bestRttMs ?? rttMs, rttMs)),
      streak: isAnswer ? 0 : Math.min(MAX_STREAK, agent.streak + 1),
      ok: agent.ok + (counts && isAnswer ? 1 : 0),
      bad: agent.bad + (counts && !isAnswer ? 1 : 0),
    });
  }
  const all = [...agents.values()];
  const others = all.slice(MAX_AGENTS);
  const next: PacingState = {
    ...state,
    ...{ epochBeganAt: Math.round(epochBeganAt), holdUntil: Math.round(holdUntil) },
    ...{ delayMs: Math.round(delayMs), badDelayMs: Math.round(badDelayMs) },
    agents: all.slice(0, MAX_AGENTS),
    othersOk: state.othersOk + sumOf(others, 'ok'),
    othersBad: state.othersBad + sumOf(others, 'bad'),
    rttRatios: rttRatios.slice(-MAX_RATIOS),
    isHeard: state.isHeard || telling.some(({ signal }) => signal !== 'bad'),
  };
  return decide(next, isPushedBack, context);
}

function decide(state: PacingState, isPushedBack: boolean, context: PacingContext): Decision {
  const { now, starts, bounds } = context;
  const { rate, rateBefore } = state;
  const wait: Decision = { state, change: undefined };
  const elapsedMs = Math.max(1, now - state.epochBeganAt);
  const isComplete = elapsedMs >= Math.max(EPOCH_DELAYS * state.delayMs, EPOCH_BAD_DELAYS * state.badDelayMs);
  const counted = countedAgents(state);
  const ok = state.othersOk + sumOf(counted, 'ok');
  const bad = state.othersBad + sumOf(counted, 'bad');
  const measured = Math.round((starts * 1_000_000) / elapsedMs);
  const rttRatio = median(state.rttRatios);

  const end = (wanted: number, reason?: PacingReason, more: Partial<PacingState> = {}): Decision => {
    const ended = endEpoch({ ...state, ...more }, context, reason === 'slower' && isNoHelp(state));
    const after = within(wanted, lowestOf(ended.deadLevel), bounds);
    const isChange = after !== rate || ended.deadLevel !== state.deadLevel;
    return {
      state: { ...ended, rate: after },
      change: reason && isChange ? { reason, before: rate, after, ok, bad, rttRatio, measured } : undefined,
    };
  };

  if (state.deadLevel > 0) {
    if (isPushedBack || ok > 0)
      return end(DEEPEST_CUT * rateBefore, isPushedBack ? 'pushed_back' : 'alive', { deadLevel: 0 });
    if (bad === 0) return wait;
    const deadLevel = Math.min(state.deadLevel + 1, MAX_DEAD_LEVEL);
    return end(rateOfDead(deadLevel), 'dead', { deadLevel });
  }
  if (isPushedBack) return end(rate / 2, 'pushed_back', { rateBefore: rate });

  const outcomes = ok + bad;
  if (outcomes < FEWEST_OUTCOMES || (outcomes < EPOCH_OUTCOMES && elapsedMs < EPOCH_MS)) return wait;
  const failed = bad / outcomes;
  // Of more agents than are remembered, failures are taken to be of several.
  const failing = counted.filter((agent) => agent.bad > 0).length + Math.min(2, state.othersBad);
  // Others can tell whose fault it is.
  if (failed > FAILING && (failing > 1 || state.agents.length === 1)) {
    if (ok > 0) {
      const through = Math.min(FAILURES_CUT, 1 - failed) * Math.min(rate, measured);
      return end(Math.max(through, DEEPEST_CUT * rate), 'failures', { rateBefore: rate });
    }
    // Answers may yet be on their way.
    return isComplete ? end(rateOfDead(1), 'dead', { deadLevel: 1, rateBefore: rate }) : wait;
  }
  if (!isComplete) return wait;
  if (rttRatio !== null && rttRatio > SLOW)
    // Of cuts in a row, the rate before the first: a queue takes a while to drain.
    return end(SLOW_CUT * rate, 'slower', { rateBefore: rate > 0.9 * rateBefore ? rate : rateBefore });
  if (failed <= WELL && (rttRatio ?? 1) <= FAST && measured >= USED * rate)
    return end(rate * (1 + growthOf(state)), 'room');
  return end(rate);
}

/**
 * Growth is slow near the rate of the last cut, which was too much then, and fast far from it: below it there is room,
 * and beyond it the target has changed.
 */
function growthOf({ rate, rateBefore }: PacingState): number {
  if (rateBefore === 0) return FASTEST_GROWTH;
  return Math.min(FASTEST_GROWTH, Math.max(SLOWEST_GROWTH, Math.abs(rate / rateBefore - 1)));
}

/** Whether round-trip times are as long at a quarter of the rate: then it is not the rate that makes them long. */
const isNoHelp = ({ rate, rateBefore }: PacingState): boolean => rate < DEEPEST_CUT * rateBefore;

/**
 * Returns the agents whose outcomes count: those that only fail while others succeed do not, unless they are more than
 * half.
 */
function countedAgents(state: PacingState): readonly AgentEvidence[] {
  const present = state.agents.filter(isPresent);
  const well = present.filter((agent) => !isBroken(agent));
  const others = state.othersOk + sumOf(well, 'ok');
  return others > 0 && areFew(state.agents.filter(isBroken), state.agents) ? well : present;
}

function endEpoch(state: PacingState, { now, lastLeaseId }: PacingContext, forget: boolean): PacingState {
  const agents = state.agents.map((agent) => ({
    ...agent,
    ...{ ok: 0, bad: 0, idle: isPresent(agent) ? 0 : agent.idle + 1 },
    bestRttMs: agent.bestRttMs === null || forget ? null : agedRtt(agent.bestRttMs),
  }));
  return {
    ...state,
    ...{ epochLeaseId: Math.max(state.epochLeaseId, lastLeaseId), epochBeganAt: now, rttRatios: [] },
    ...{ agents: agents.filter(({ idle }) => idle < MAX_IDLE), othersOk: 0, othersBad: 0 },
  };
}

const NOTHING_KNOWN = { bestRttMs: null, streak: 0, ok: 0, bad: 0, idle: 0 };

const isPresent = ({ ok, bad }: AgentEvidence): boolean => ok + bad > 0;
const isBroken = ({ ok, streak }: AgentEvidence): boolean => ok === 0 && streak >= BROKEN_STREAK;
const areFew = (some: readonly AgentEvidence[], all: readonly AgentEvidence[]): boolean =>
  2 * some.length <= all.length;
const sumOf = (agents: readonly AgentEvidence[], field: 'ok' | 'bad'): number =>
  agents.reduce((sum, agent) => sum + agent[field], 0);

const tenths = (value: number): number => Math.round(10 * value) / 10;
const ratioOf = (rttMs: number, bestMs: number): number =>
  Math.min(MAX_RTT_RATIO, tenths((rttMs + RTT_NOISE_MS) / (Math.min(rttMs, bestMs) + RTT_NOISE_MS)));
/** At least by a tenth, so that also the shortest grow. */
const agedRtt = (bestMs: number): number => tenths(Math.max(bestMs * RTT_AGING, bestMs + 0.1));

/** One probe every 2, 4 … 32 s. */
const rateOfDead = (level: number): number => 1_000 / 2 ** level;
const lowestOf = (deadLevel: number): number => (deadLevel > 0 ? 1 : LOWEST_RATE);

/** Returns the rate as an integer within the bounds; the operator's is stronger than the lowest rate. */
function within(rate: number, lowest: number, { maxRate }: PacingBounds): number {
  const highest = Math.max(1, Math.min(HIGHEST_RATE, Math.floor(maxRate) || 1));
  return Math.min(highest, Math.max(lowest, Math.round(rate) || 1));
}

/** Agents report these numbers: what is no duration does not count, and what is too long is cut. JSON has no -0. */
const duration = (ms: number | null | undefined, mostMs: number): number | undefined =>
  typeof ms === 'number' && ms >= 0 ? Math.abs(Math.min(ms, mostMs)) : undefined;

const average = (before: number, value: number): number =>
  before === 0 ? value : before + DELAY_WEIGHT * (value - before);

function median(values: readonly number[]): number | null {
  if (values.length === 0) return null;
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[sorted.length >> 1] as number;
}

/** Returns the state as compact JSON: about 1 KB at most. */
export function packState(state: PacingState): string {
  const { agents, rttRatios, isHeard } = state;
  return JSON.stringify([
    [state.rate, state.epochLeaseId, state.epochBeganAt, state.delayMs, state.badDelayMs, state.holdUntil],
    [state.deadLevel, state.rateBefore, isHeard ? 1 : 0, state.othersOk, state.othersBad],
    agents.map(({ agentId, bestRttMs, streak, ok, bad, idle }) => [
      agentId,
      bestRttMs,
      streak,
      ok,
      bad,
      idle,
    ]),
    rttRatios,
  ]);
}

/** Returns the state that was packed; undefined if the text is none, so that the caller starts with the first state. */
export function unpackState(text: string): PacingState | undefined {
  const packed = parse(text);
  if (!isList(packed) || packed.length !== 4) return undefined;
  const [times, counts, agents, rttRatios] = packed;
  if (!isNumbers(times, 6) || !isNumbers(counts, 5) || !isNumbers(rttRatios)) return undefined;
  if (!isList(agents)) return undefined;
  const known = agents.map(unpackAgent).filter((agent) => agent !== undefined);
  const [rate, epochLeaseId, epochBeganAt, delayMs, badDelayMs, holdUntil] = times as Six;
  const [deadLevel, rateBefore, isHeard, othersOk, othersBad] = counts as Five;
  if (known.length !== agents.length || rate < 1 || deadLevel > MAX_DEAD_LEVEL) return undefined;
  return {
    ...{
      rate,
      epochLeaseId,
      epochBeganAt,
      agents: known,
      othersOk,
      othersBad,
      rttRatios,
      delayMs,
      badDelayMs,
    },
    ...{ holdUntil, deadLevel, rateBefore, isHeard: isHeard === 1 },
  };
}

type Five = [number, number, number, number, number];
type Six = [...Five, number];

function unpackAgent(packed: unknown): AgentEvidence | undefined {
  if (!isList(packed)) return undefined;
  const [agentId, bestRttMs, ...counts] = packed;
  if (!isNumbers([agentId]) || (bestRttMs !== null && !isNumbers([bestRttMs])) || !isNumbers(counts, 4))
    return undefined;
  const [streak, ok, bad, idle] = counts as [number, number, number, number];
  return { agentId: agentId as number, bestRttMs: bestRttMs as number | null, streak, ok, bad, idle };
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

const isList = (value: unknown): value is readonly unknown[] => Array.isArray(value);
/** Whether it is a list of numbers from 0, of that length if one is given. */
const isNumbers = (value: unknown, length?: number): value is readonly number[] =>
  isList(value) &&
  (length === undefined || value.length === length) &&
  value.every((item) => typeof item === 'number' && Number.isFinite(item) && item >= 0);
