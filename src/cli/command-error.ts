/** Exit codes, by which scripts distinguish failures. */
export const EXIT = {
  ok: 0,
  /** The server refused the request, or the command failed; a retry fails the same way. */
  failed: 1,
  /** Invalid arguments or settings; nothing was attempted. */
  usage: 2,
  /** Unreachable, overloaded or over a quota: a retry may succeed. */
  retry: 3,
} as const;

/** Ends a command with a message for the person who ran it. */
export class CommandError extends Error {
  /**
   * @param exitCode one of {@link EXIT}
   * @param envelope the server's own error as JSON, for programs
   */
  constructor(
    message: string,
    readonly exitCode: number,
    readonly envelope?: string,
  ) {
    super(message);
  }
}
