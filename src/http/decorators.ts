import type { ServerResponse } from 'node:http';
import { applyDecorators, createParamDecorator, type ExecutionContext, SetMetadata } from '@nestjs/common';
import { ApiBearerAuth, ApiExtension, ApiParam, ApiSecurity } from '@nestjs/swagger';
import type { ThrottlerOptions } from '@nestjs/throttler';
import type { FastifyRequest } from 'fastify';
import type { Transaction } from '../database/statements';
import type { ApiError } from '../errors';
import { parseQuota, type QuotaRoute, type Quota as QuotaSetting, type Settings } from '../settings';
import { clientAddress } from './client-address';
import { hasHungUp } from './hang-up';
import type { BodyShape } from './json-body';

/** Who calls on an agent's route. */
export interface AgentIdentity {
  readonly id: number;
  /** The SHA-256 of the token that it showed: what is written for it is written only while that token still works. */
  readonly tokenHash: string;
}

/** Operators' roles, each including the ones before it. */
export const ROLES = ['viewer', 'operator', 'admin'] as const;
export type Role = (typeof ROLES)[number];

/** Who calls on an operator's route. */
export interface OperatorIdentity {
  /** 0 where no token was used: the process itself, or its command line. */
  readonly tokenId: number;
  readonly name: string;
  readonly role: Role;
  /** Where the call comes from. */
  readonly address: string;
}

/** How the service charges a quota that is counted by what came of the request. */
export interface Charge {
  /** How long until the quota lets a success in, in milliseconds, as it was when the request came; 0 if it does. */
  readonly waitMs: number;
  /**
   * Takes the charge of a success, in the unit of work that it comes from.
   * @param of a `new` identity also counts against the ceiling of all registrations
   * @returns what gives it back, for when the unit is undone
   * @throws ERR_RATE_LIMITED
   */
  success(tx: Transaction, of: 'new' | 'known'): (() => void) | Promise<() => void>;
  /** Charges the caller's address for a credential that was looked up and is wrong. */
  failure(): void;
  /** Called before a credential is looked up. @throws ERR_RATE_LIMITED the address has failed too often */
  beforeLookup(): void;
}

/** A request once it is admitted: who it is from, and how to charge what is charged by its outcome. */
export interface ControlPlaneRequest extends FastifyRequest {
  agent?: AgentIdentity;
  operator?: OperatorIdentity;
  /** What is counted by caller is counted under this: an agent, an operator's token, or an address. */
  caller?: string;
  /** Set by the onRequest hook, once the caller may use the route. */
  admitted?: true;
  /** Set on routes whose quota is charged by outcome. */
  charge?: Charge;
  /** Set on routes that ask for it: aborts when the caller hangs up. */
  hangUp?: AbortSignal;
  /** The error that it was answered with. */
  refusal?: ApiError;
  /** What its line in the log says besides: ids of what it changed. */
  logFacts?: Readonly<Record<string, unknown>>;
}

/** Whom a route lets in. */
export type Access =
  | {
      kind: 'public';
      /** Load balancers call it: it is counted apart from all other calls from their address. */
      isHealth?: true;
    }
  | { kind: 'agent' }
  | {
      kind: 'operator';
      role: Role;
      /** The setting by which anybody may call, too. */
      publicIf?: 'metricsPublic';
    };

/** Every path of an agent exists twice, with one handler and one quota. */
export const AGENT_PATHS = ['', 'v1/agents'];

export const ACCESS = Symbol('access');
export const QUOTA = Symbol('quota');
export const BODY_LIMIT = Symbol('body-limit');
export const SHED_FIRST = Symbol('shed-first');
export const BULK_WRITE = Symbol('bulk-write');
export const LOG_FACTS = Symbol('log-facts');

/** How large a body a route takes that does not say so, in bytes. */
export const DEFAULT_BODY_LIMIT = 16 * 1024;
/** A body of many ids or labels, in bytes. */
export const MEDIUM_BODY = 64 * 1024;
/** The largest body that a route can take, in bytes. */
export const MAX_BODY = 4 * 1024 * 1024;

/** What the decorators of a route say, for hooks that run before Nest sees the request. */
export interface RouteDeclaration {
  readonly access: Access;
  readonly quota: QuotaRule | undefined;
  /** The quota in force: by the decorator or the setting that replaces it; undefined if there is none, or it is off. */
  readonly throttler: QuotaThrottler | undefined;
  readonly bodyLimit: number;
  readonly shedFirst: boolean;
  readonly bulkWrite: boolean;
  /** What is read of the body; undefined if it is all. */
  readonly bodyShape: BodyShape | undefined;
  readonly logFacts: LogFacts | undefined;
}

/** A route as Fastify keeps it. */
interface Route {
  /** Its path, with `:id` for a parameter; undefined if no route serves the request. */
  readonly url?: string;
  readonly declared?: RouteDeclaration;
}

const ROUTE = Symbol('route');
const NO_ROUTE: Route = {};

/** The route that a request goes to. Many hooks ask, and Fastify makes its `routeOptions` again for each. */
export function routeOf(request: FastifyRequest & { [ROUTE]?: Route }): Route {
  const known = request[ROUTE];
  if (known) return known;
  const route = (request.routeOptions.config as Route | undefined) ?? NO_ROUTE;
  request[ROUTE] = route;
  return route;
}

/** What the route that a request goes to declares; undefined if no controller serves it. */
export const declarationOf = (request: FastifyRequest): RouteDeclaration | undefined =>
  routeOf(request).declared;

/** Anyone may call this route. */
export const Public = () => SetMetadata(ACCESS, { kind: 'public' } satisfies Access);

/** Anyone may call this route, and load balancers do all the time. */
export const HealthCheck = () => SetMetadata(ACCESS, { kind: 'public', isHealth: true } satisfies Access);

/** Agents may call this route, with `X-Agent-Id` and `X-Agent-Token`. */
export const Agent = () =>
  applyDecorators(
    SetMetadata(ACCESS, { kind: 'agent' } satisfies Access),
    // Both headers: two decorators would say that either will do.
    ApiSecurity({ agentId: [], agentToken: [] }),
  );

/** Operators of this role or a higher one may call this route, with a bearer token. */
export const Operator = (role: Role) =>
  applyDecorators(
    SetMetadata(ACCESS, { kind: 'operator', role } satisfies Access),
    ApiBearerAuth('operator'),
    ApiExtension('x-role', role),
  );

/**
 * The same, unless the setting says that anybody may. What could be public is also shown to a token that was right lately
 * while the database does not say whether it still is: who watches must see an outage, not lose sight.
 */
export const OperatorUnless = (publicIf: 'metricsPublic', role: Role) =>
  applyDecorators(Operator(role), SetMetadata(ACCESS, { kind: 'operator', role, publicIf } satisfies Access));

/** Whom a route lets in under these settings. */
export function accessUnder(access: Access, settings: Pick<Settings, 'metricsPublic'>): Access {
  const isPublic = access.kind === 'operator' && access.publicIf !== undefined && settings[access.publicIf];
  return isPublic ? { kind: 'public' } : access;
}

/** Documents the `:id` of a path. */
export const IdInPath = () => ApiParam({ name: 'id', schema: { type: 'integer', minimum: 1 } });

/** A quota in force as a throttler of @nestjs/throttler: `limit` requests at once, and as many again in each `ttl` ms. */
export interface QuotaThrottler extends ThrottlerOptions {
  readonly name: string;
  readonly limit: number;
  readonly ttl: number;
  /** The `RateLimit-Policy` header. */
  readonly policyHeader: string;
  /** How the `RateLimit` header begins. */
  readonly headerStart: string;
}

/** What a route's quota is and what it is counted by. */
export interface QuotaRule {
  readonly route: string;
  readonly quota: QuotaSetting;
  /** `agent`: the caller's id. `hostname`: the body's hostname by success only, the address where it has none. */
  readonly by: 'agent' | 'hostname';
}

/**
 * Limits how often one caller may use a route: `@Quota('claim', '12/minute', { burst: 6 })`. A route that has a
 * setting of its name (`CONTROL_PLANE_QUOTA_CLAIM`) follows that instead.
 */
export function Quota(
  route: QuotaRoute | (string & {}),
  rate: string,
  options: { burst: number; by?: QuotaRule['by'] },
): MethodDecorator {
  const quota = parseQuota(`${rate},${options.burst}`);
  if (!quota)
    throw new Error(`@Quota('${route}', '${rate}'): the rate must be such as '12/minute' or '1/10m'`);
  return SetMetadata(QUOTA, { route, quota, by: options.by ?? 'agent' } satisfies QuotaRule);
}

/** Takes bodies of up to so many bytes, 4 MiB at most. A route without it takes 16 KiB. */
export function BodyLimit(bytes: number): MethodDecorator {
  if (!Number.isInteger(bytes) || bytes < 1 || bytes > MAX_BODY)
    throw new Error(`@BodyLimit(${bytes}): the limit must be from 1 to ${MAX_BODY} bytes`);
  return SetMetadata(BODY_LIMIT, bytes);
}

/** Tells of a success what its line in the log says besides: ids only, never what clients sent. */
export type LogFacts<Answer = never> = (answer: Answer) => Readonly<Record<string, unknown>>;

/** Has the line in the log of a success say more than the request does, such as the ids of what it made. */
export const LogsFacts = <Answer extends object>(facts: LogFacts<Answer>) => SetMetadata(LOG_FACTS, facts);

/** Under overload this route is turned away before the others: it takes on work, they finish it. */
export const ShedFirst = () => SetMetadata(SHED_FIRST, true);

/**
 * While the database's disk is nearly full this route answers 503: it stores much that can be sent again, and what an
 * operator does in an emergency needs the room.
 */
export const BulkWrite = () => SetMetadata(BULK_WRITE, true);

/** Whether the route that a request goes to is marked so. */
export const isBulkWrite = (request: FastifyRequest): boolean => declarationOf(request)?.bulkWrite === true;

/** Whether the route that a request goes to is marked so. */
export const isShedFirst = (request: FastifyRequest): boolean => declarationOf(request)?.shedFirst === true;

// Not switchToHttp(): it makes three functions each time, and this runs several times for every request.
const requestOf = (context: ExecutionContext) => context.getArgByIndex<ControlPlaneRequest>(0);

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
  const response: ServerResponse = context.switchToHttp().getResponse().raw;
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

/** The `Idempotency-Key` header, where there is one. */
export const IdempotencyKey = createParamDecorator(
  (_: unknown, context: ExecutionContext): string | undefined => {
    const key = requestOf(context).headers['idempotency-key'];
    return typeof key === 'string' ? key : undefined;
  },
);

/** The `User-Agent` header, where there is one: what the caller says of itself. */
export const UserAgent = createParamDecorator(
  (_: unknown, context: ExecutionContext): string | undefined => requestOf(context).headers['user-agent'],
);
