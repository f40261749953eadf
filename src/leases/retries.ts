import type { TaskChange } from '../queue/transitions';
import type { Settings } from '../settings';
import type { HeldLease } from './leases.queries';

/**
 * The rule for retries: what a task becomes whose attempt failed, because its lease expired or was reported as cancelled. It is
 * scheduled for its next attempt after a backoff, or dead after the last one.
 * @param now in ms since the epoch
 */
export function afterFailedAttempt(
  {
    attempt: attempts,
    max_attempts: maxAttempts,
    not_after: notAfter,
  }: Pick<HeldLease, 'attempt' | 'max_attempts' | 'not_after'>,
  now: number,
  { retryBackoffMs, retryBackoffMaxMs }: Pick<Settings, 'retryBackoffMs' | 'retryBackoffMaxMs'>,
): Omit<TaskChange, 'task' | 'from'> {
  if (attempts >= maxAttempts) return { to: 'dead', attempts, reason: 'max_attempts' };
  const runAt = now + backoffMs(attempts, retryBackoffMs, retryBackoffMaxMs);
  // Nothing could begin before the task's time is up: it is over now, not later.
  if (notAfter !== null && runAt >= notAfter) return { to: 'dead', attempts, reason: 'not_after' };
  return { to: 'scheduled', attempts, runAt };
}

/**
 * How long a task waits before its next attempt, in milliseconds: exponential with equal jitter, so that tasks that
 * failed together do not come back together and none comes back at once.
 * Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
 * @param attempts attempts made so far, at least 1
 * @param random a number in [0, 1)
 */
export function backoffMs(
  attempts: number,
  baseMs: number,
  maxMs: number,
  random: number = Math.random(),
): number {
  const ceiling = longestBackoffMs(attempts, baseMs, maxMs);
  return Math.round(ceiling / 2 + (random * ceiling) / 2);
}

/** The longest that {@link backoffMs} can be. */
export function longestBackoffMs(attempts: number, baseMs: number, maxMs: number): number {
  return Math.min(maxMs, baseMs * 2 ** Math.min(attempts - 1, 40));
}
