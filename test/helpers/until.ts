import { setTimeout as sleep } from 'node:timers/promises';
import { inspect } from 'node:util';

/** How {@link until} waits. */
export interface Waiting<Seen> {
  /** Whether what was seen is what is waited for. If it is left out: whether it is true, or anything but nothing. */
  readonly isDone?: (seen: Seen) => boolean;
  /** From a look to the next. */
  readonly everyMs?: number;
  /** How long it looks: longer than a busy machine needs, and not as long as a test may take. */
  readonly withinMs?: number;
}

const LATE = Symbol('late');

/**
 * Looks at something again and again until it is so.
 * @param what what is waited for, for the message if it does not come
 * @param look what it throws ends the wait
 * @returns what was seen last
 * @throws Error it was not so in time, also if a look never ended
 */
export async function until<Seen>(
  what: string,
  look: () => Seen | Promise<Seen>,
  { isDone = Boolean, everyMs = 10, withinMs = 20_000 }: Waiting<Seen> = {},
): Promise<Seen> {
  const over = new AbortController();
  const late = sleep(withinMs, LATE, { signal: over.signal }).catch(() => LATE);
  let last: Seen | undefined;
  try {
    for (;;) {
      const seen = await Promise.race([look(), late]);
      if (seen === LATE) break;
      last = seen as Seen;
      if (isDone(last)) return last;
      if ((await Promise.race([sleep(everyMs), late])) === LATE) break;
    }
  } finally {
    over.abort();
  }
  throw new Error(`not within ${withinMs} ms: ${what}; seen last: ${inspect(last, { depth: 5 })}`);
}
