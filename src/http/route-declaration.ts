import type { FastifyRequest } from 'fastify';
import type { Access } from './access.decorators';
import type { BodyShape } from './json-body';
import type { LogFacts } from './log-facts.decorators';
import type { QuotaRule, QuotaThrottler } from './quota.decorators';

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
