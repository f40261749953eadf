import type { IncomingMessage, ServerResponse } from 'node:http';

/** Whether a caller has hung up: Node answers nobody after the end of what it sent, or a reset of its connection. */
export const hasHungUp = ({ socket }: IncomingMessage, response: ServerResponse): boolean =>
  response.destroyed || socket.destroyed || socket.readableEnded || socket.errored !== null;
