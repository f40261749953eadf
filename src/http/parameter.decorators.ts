import { createParamDecorator, type ExecutionContext } from '@nestjs/common';
import { ApiParam } from '@nestjs/swagger';
import type { FastifyReply } from 'fastify';
import { clientAddress } from './client-address';
import { requestOf } from './control-plane-request';
import { type HangUpSignal, watchHangUp } from './hang-up';

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

/** Injects a signal that tells whether the caller disconnects before it is answered. */
export const HangUp = createParamDecorator((_: unknown, context: ExecutionContext): HangUpSignal => {
  const request = requestOf(context);
  request.hangUp = watchHangUp(request.raw, context.getArgByIndex<FastifyReply>(1).raw);
  return request.hangUp;
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
