/** What scripts can tell apart. */
export const EXIT = {
  ok: 0,
  /** The server refused it, or it failed; the same again will too. */
  failed: 1,
  /** Wrong arguments or settings; nothing was tried. */
  misused: 2,
  /** Not reachable, overloaded or over a quota: the same may work later. */
  retry: 3,
} as const;

/** Why a command ends without having done what it should; the message is for the person who gave it. */
export class Failure extends Error {
  /** @param envelope the server's own error, for programs */
  constructor(
    message: string,
    readonly exitCode: number,
    readonly envelope?: string,
  ) {
    super(message);
  }
}
