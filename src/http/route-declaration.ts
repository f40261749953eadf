import type { FastifyRequest } from 'fastify';
import type { Access } from './access.decorators';
import type { BodyShape } from './json-body';
import type { LogFacts } from './log-facts.decorators';
import type { QuotaRule, QuotaThrottler } from './quota.decorators';

/** What the decorators of a route declare, for hooks that run before Nest gets the request. */
export interface RouteDeclaration {
  readonly access: Access;
  readonly quota: QuotaRule | undefined;
  /** The effective quota, from the decorator or the setting that replaces it; undefined if there is none or it is off. */
  readonly throttler: QuotaThrottler | undefined;
  readonly bodyLimit: number;
  readonly shedFirst: boolean;
  readonly bulkWrite: boolean;
  /** The members of the body that are read; undefined for all. */
  readonly bodyShape: BodyShape | undefined;
  readonly logFacts: LogFacts | undefined;
}

/** A route's Fastify configuration. */
interface Route {
  /** Its path, with `:id` for a parameter; undefined if no route serves the request. */
  readonly url?: string;
  readonly declared?: RouteDeclaration;
}

const ROUTE = Symbol('route');
const NO_ROUTE: Route = {};

/** Returns the route of a request. It is cached, because many hooks need it and Fastify creates `routeOptions` each time. */
export function routeOf(request: FastifyRequest & { [ROUTE]?: Route }): Route {
  const known = request[ROUTE];
  if (known) return known;
  const route = (request.routeOptions.config as Route | undefined) ?? NO_ROUTE;
  request[ROUTE] = route;
  return route;
}

/** Returns the declaration of the request's route; undefined if no controller serves it. */
export const declarationOf = (request: FastifyRequest): RouteDeclaration | undefined =>
  routeOf(request).declared;
