import type { ServerResponse } from 'node:http';
import { createParamDecorator, type ExecutionContext } from '@nestjs/common';
import { ApiParam } from '@nestjs/swagger';
import { clientAddress } from './client-address';
import { requestOf } from './control-plane-request';
import { hasHungUp } from './hang-up';

/** Every path of an agent exists twice, with one handler and one quota. */
export const AGENT_PATHS = ['', 'v1/agents'];

/** Documents the `:id` of a path. */
export const IdInPath = () => ApiParam({ name: 'id', schema: { type: 'integer', minimum: 1 } });

/** The agent that calls. */
export const CurrentAgent = createParamDecorator(
  (_: unknown, context: ExecutionContext) => requestOf(context).agent,
);

/** The operator that calls. */
export const CurrentOperator = createParamDecorator(
  (_: unknown, context: ExecutionContext) => requestOf(context).operator,
);

/** The address that the call comes from. */
export const CallerAddress = createParamDecorator((_: unknown, context: ExecutionContext) =>
  clientAddress(requestOf(context)),
);

/** The {@link Charge} of a route whose quota is charged by outcome. */
export const CurrentCharge = createParamDecorator(
  (_: unknown, context: ExecutionContext) => requestOf(context).charge,
);

/** A signal that aborts when the caller hangs up before it was answered. */
export const HangUp = createParamDecorator((_: unknown, context: ExecutionContext): AbortSignal => {
  const controller = new AbortController();
  const response: ServerResponse = context.getArgByIndex(1).raw;
  const request = requestOf(context);
  const { raw } = request;
  const { socket } = raw;
  request.hangUp = controller.signal;
  const abort = () => controller.abort();
  // One who hung up while the guards were at work has closed already.
  if (hasHungUp(raw, response)) abort();
  else {
    // The end of what it sends, or the reset of its connection, comes turns of the event loop before the close; Node answers
    // nobody after any of them.
    socket.once('end', abort).once('error', abort);
    response.once('close', () => {
      socket.off('end', abort).off('error', abort);
      if (!response.writableFinished) abort();
    });
  }
  return controller.signal;
});

/** The `Idempotency-Key` header, if there is one. */
export const IdempotencyKey = createParamDecorator(
  (_: unknown, context: ExecutionContext): string | undefined => {
    const key = requestOf(context).headers['idempotency-key'];
    return typeof key === 'string' ? key : undefined;
  },
);

/** The `User-Agent` header, if there is one: what the caller says of itself. */
export const UserAgent = createParamDecorator(
  (_: unknown, context: ExecutionContext): string | undefined => requestOf(context).headers['user-agent'],
);
