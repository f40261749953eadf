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
