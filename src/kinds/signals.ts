import { types } from 'node:util';
import type { Failure, Observation, Outcome } from './observations';

/**
 * What the end of a check says of its target, for the rate of starts there: it answered, whatever the answer; it refused the
 * check or asked for a pause; it gave no answer, or could not be reached; or nothing (the agent's own trouble).
 */
export const SIGNALS = ['answered', 'pushed_back', 'bad', 'local'] as const;
export type Signal = (typeof SIGNALS)[number];

/** The longest duration that a report can say, in ms: longer pauses are cut to it, longer answers are not believed. */
export const MAX_SIGNAL_MS = 3_600_000;

/** How many observations of a report are looked at. */
export const MAX_OBSERVED = 64;

/** What a report says of the target of its check. */
export interface TargetSignal {
  signal: Signal;
  /** How long the target took to answer, in ms from 0 to 3,600,000; null if not known, or the signal is not `answered`. */
  rttMs: number | null;
  /** The pause that the target asked for, in ms from 0 to 3,600,000; null if none, or the signal is not `pushed_back`. */
  retryAfterMs: number | null;
}

/** A check, as a kind judges what it says of the target. */
export interface ObservedCheck {
  /** Null if it is not said. */
  readonly outcome: Outcome | null;
  /** The first 64 of the report. Their values are any JSON, chosen by strangers. */
  readonly observations: readonly Observation[];
  /** In ms since the epoch. */
  readonly received_at: number;
}

/** A report that ended a lease. What is left out or null was not said. */
export interface EndedCheck {
  readonly report: 'completed' | 'cancelled';
  readonly outcome?: Outcome | null;
  readonly failure?: Failure | null;
  readonly rtt_ms?: number | null;
  readonly observations?: readonly Observation[] | null;
  /** In ms since the epoch. */
  readonly received_at: number;
}

/** What a kind can say of a check. What is left out is not known. */
export type Evidence = Partial<TargetSignal>;

const BY_FAILURE: Readonly<Record<Failure, Signal>> = {
  refused: 'pushed_back',
  throttled: 'pushed_back',
  timeout: 'bad',
  unreachable: 'bad',
  local: 'local',
  policy: 'local',
};

const BY_OUTCOME: Readonly<Record<Outcome, Signal>> = {
  success: 'answered',
  timeout: 'bad',
  // Of a check that failed for a reason not said: perhaps the target never saw it.
  error: 'local',
};

/** Whether a report has nothing for a kind to judge: an agent that returns a lease without a reason. */
export const isSilent = ({ report, observations }: EndedCheck): boolean =>
  report === 'cancelled' && !observations?.length;

/**
 * Decides what a report says of its target: by its failure, else by what the kind found, else by its outcome.
 * @param evidence what the kind found; undefined if nothing
 */
export function targetSignal(check: EndedCheck, evidence: Evidence = {}): TargetSignal {
  const { failure, outcome } = check;
  const byOutcome = outcome && !isSilent(check) ? BY_OUTCOME[outcome] : 'local';
  const signal = failure ? BY_FAILURE[failure] : (evidence.signal ?? byOutcome);
  return {
    signal,
    // Of other checks it is how long the agent waited, or how fast it was turned away: neither shows how busy the target is.
    rttMs: signal === 'answered' ? (check.rtt_ms ?? evidence.rttMs ?? null) : null,
    retryAfterMs: signal === 'pushed_back' ? (evidence.retryAfterMs ?? null) : null,
  };
}

/**
 * Checks what a kind returned.
 * @throws TypeError it is not what a kind may return; the message names the part
 */
export function checkedEvidence(found: unknown): Evidence | undefined {
  if (found === undefined) return undefined;
  if (typeof found !== 'object' || found === null) throw new TypeError('signalOf(report) gave no object');
  if (types.isPromise(found)) {
    // Unhandled, its rejection would end the process.
    found.catch(() => undefined);
    throw new TypeError('signalOf(report) gave a promise');
  }
  const { signal, rttMs, retryAfterMs } = found as Record<string, unknown>;
  if (signal !== undefined && !SIGNALS.includes(signal as Signal))
    throw new TypeError(`signalOf(report) gave a signal that is not one of ${SIGNALS.join(', ')}`);
  return {
    signal: signal as Signal | undefined,
    rttMs: checkedMs(rttMs, 'rttMs'),
    retryAfterMs: checkedMs(retryAfterMs, 'retryAfterMs'),
  };
}

function checkedMs(value: unknown, name: string): number | null {
  if (value === undefined || value === null) return null;
  if (typeof value !== 'number' || !Number.isFinite(value) || value < 0)
    throw new TypeError(`signalOf(report) gave no ${name}`);
  return Math.min(value, MAX_SIGNAL_MS);
}
