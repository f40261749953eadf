import type { IncomingMessage, ServerResponse } from 'node:http';

/** Whether a caller has hung up: Node answers nobody after the end of what it sent, or a reset of its connection. */
export const hasHungUp = ({ socket }: IncomingMessage, response: ServerResponse): boolean =>
  response.destroyed || socket.destroyed || socket.readableEnded || socket.errored !== null;

/** How long requests waited for work, in milliseconds, by the signal of their caller's hanging up. */
const waits = new WeakMap<AbortSignal, number>();

/** Records that a request waited for so many milliseconds, in which nothing was done for it. */
export function addWait(hangUp: AbortSignal, ms: number): void {
  waits.set(hangUp, (waits.get(hangUp) ?? 0) + ms);
}

/** For how many milliseconds a request waited for work. */
export const waitedMs = ({ hangUp }: { hangUp?: AbortSignal }): number => (hangUp && waits.get(hangUp)) ?? 0;
