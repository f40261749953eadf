/** The one clock of the process. Everything that decides by time asks it, so that tests can set it. */
export class Clock {
  /** The present instant in milliseconds since the Unix epoch, UTC. */
  now(): number {
    return Date.now();
  }
}

/** An instant of ours as it is written for operators: RFC 3339, UTC, milliseconds. */
export function toTimestamp(atMs: number): string;
export function toTimestamp(atMs: number | null | undefined): string | null;
export function toTimestamp(atMs: number | null | undefined): string | null {
  return atMs === null || atMs === undefined ? null : new Date(atMs).toISOString();
}
