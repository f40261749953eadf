import type { IncomingMessage, ServerResponse } from 'node:http';

/** Whether the client has disconnected: Node sends no answer after the client has ended or reset its connection. */
export const hasHungUp = ({ socket }: IncomingMessage, response: ServerResponse): boolean =>
  response.destroyed || socket.destroyed || socket.readableEnded || socket.errored !== null;

/** How long requests waited for work, in ms, by the signal that aborts when their client disconnects. */
const waits = new WeakMap<AbortSignal, number>();

/** Records that a request waited for work, in ms: this time does not count as its duration. */
export function addWait(hangUp: AbortSignal, ms: number): void {
  waits.set(hangUp, (waits.get(hangUp) ?? 0) + ms);
}

/** How long a request waited for work, in ms. */
export const waitedMs = ({ hangUp }: { hangUp?: AbortSignal }): number => (hangUp && waits.get(hangUp)) ?? 0;
