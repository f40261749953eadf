import type { ServerResponse } from 'node:http';
import { createParamDecorator, type ExecutionContext } from '@nestjs/common';
import { ApiParam } from '@nestjs/swagger';
import { clientAddress } from './client-address';
import { requestOf } from './control-plane-request';
import { hasHungUp } from './hang-up';

/** The prefixes of agents' routes: each exists twice, with one handler and one quota. */
export const AGENT_PATHS = ['', 'v1/agents'];

/** Documents the `:id` of a path. */
export const IdInPath = () => ApiParam({ name: 'id', schema: { type: 'integer', minimum: 1 } });

/** Injects the calling agent. */
export const CurrentAgent = createParamDecorator(
  (_: unknown, context: ExecutionContext) => requestOf(context).agent,
);

/** Injects the calling operator. */
export const CurrentOperator = createParamDecorator(
  (_: unknown, context: ExecutionContext) => requestOf(context).operator,
);

/** Injects the caller's address. */
export const CallerAddress = createParamDecorator((_: unknown, context: ExecutionContext) =>
  clientAddress(requestOf(context)),
);

/** Injects the {@link Charge} of a route whose quota is charged by outcome. */
export const CurrentCharge = createParamDecorator(
  (_: unknown, context: ExecutionContext) => requestOf(context).charge,
);

/** Injects a signal that aborts when the caller disconnects before it is answered. */
export const HangUp = createParamDecorator((_: unknown, context: ExecutionContext): AbortSignal => {
  const controller = new AbortController();
  const response: ServerResponse = context.getArgByIndex(1).raw;
  const request = requestOf(context);
  const { raw } = request;
  const { socket } = raw;
  request.hangUp = controller.signal;
  const abort = () => controller.abort();
  // The caller may have disconnected while the guards ran: then no further event comes.
  if (hasHungUp(raw, response)) abort();
  else {
    // The end or reset of the connection comes some turns of the event loop before its close; after either, Node sends no
    // answer.
    socket.once('end', abort).once('error', abort);
    response.once('close', () => {
      socket.off('end', abort).off('error', abort);
      if (!response.writableFinished) abort();
    });
  }
  return controller.signal;
});

/** Injects the `Idempotency-Key` header, if present. */
export const IdempotencyKey = createParamDecorator(
  (_: unknown, context: ExecutionContext): string | undefined => {
    const key = requestOf(context).headers['idempotency-key'];
    return typeof key === 'string' ? key : undefined;
  },
);

/** Injects the `User-Agent` header, if present. */
export const UserAgent = createParamDecorator(
  (_: unknown, context: ExecutionContext): string | undefined => requestOf(context).headers['user-agent'],
);
