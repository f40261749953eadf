import { Inject, Injectable, type OnApplicationBootstrap } from '@nestjs/common';
import { METHOD_METADATA, ROUTE_ARGS_METADATA } from '@nestjs/common/constants';
import { RouteParamtypes } from '@nestjs/common/enums/route-paramtypes.enum';
import { DiscoveryService, MetadataScanner, Reflector } from '@nestjs/core';
import { RouteConfig } from '@nestjs/platform-fastify';
import { ExtensionError, extensionOf } from '../extensions';
import { ACCESS, type Access, accessUnder } from '../http/access.decorators';
import { BODY_LIMIT, DEFAULT_BODY_LIMIT } from '../http/body-limit.decorators';
import type { BodyShape } from '../http/json-body';
import { BULK_WRITE, SHED_FIRST } from '../http/load.decorators';
import { LOG_FACTS, type LogFacts } from '../http/log-facts.decorators';
import { QUOTA, type QuotaRule } from '../http/quota.decorators';
import type { RouteDeclaration } from '../http/route-declaration';
import { shapeOf } from '../http/validation';
import { SETTINGS, type Settings } from '../settings';
import { routeThrottler } from './quotas';

/** A name that needs no escaping in a `RateLimit` header. */
const QUOTA_NAME = /^[\w.:/-]{1,64}$/;

type Handler = () => unknown;

/** A method of a controller that serves a route. */
interface Route {
  readonly name: string;
  readonly extension: string | undefined;
  readonly method: string;
  readonly handler: Handler;
  readonly controller: Handler;
}

/**
 * Publishes the decorators of each route to Fastify's hooks, and fails the start if a route does not declare its callers.
 */
@Injectable()
export class DeclaredRoutes implements OnApplicationBootstrap {
  constructor(
    private readonly discovery: DiscoveryService,
    private readonly scanner: MetadataScanner,
    private readonly reflector: Reflector,
    @Inject(SETTINGS) private readonly settings: Pick<Settings, 'metricsPublic' | 'quotas'>,
  ) {}

  /**
   * Adds each route's declaration to its Fastify configuration, next to that of `@RouteConfig`. Call it before Nest adds the
   * routes. A route without a declaration, or added later, refuses all callers.
   */
  publish(): void {
    const key = RouteConfig({}).KEY;
    for (const route of this.routes()) {
      const declared = this.declarationOf(route);
      const config = Reflect.getMetadata(key, route.handler) as object | undefined;
      if (declared) Reflect.defineMetadata(key, { ...config, declared }, route.handler);
    }
  }

  /** Checks all routes. @throws Error a declaration is missing or invalid; names all such routes */
  onApplicationBootstrap(): void {
    const faulty = new Set<string>();
    const accesses = new Map<Handler, string>();
    const problems = this.routes().flatMap((route) => {
      const problem = this.problemOf(route, accesses);
      if (!problem) return [];
      faulty.add(route.extension ?? '');
      return [`${route.name} ${problem}`];
    });
    if (problems.length === 0) return;
    const message = `Invalid declarations of routes: ${problems.join('; ')}`;
    const names = [...faulty].filter((name) => name !== '');
    throw names.length === 0
      ? new Error(message)
      : new ExtensionError(names.join(', '), `is faulty: ${message}`);
  }

  private routes(): Route[] {
    return this.discovery.getControllers().flatMap(({ metatype, host }) => {
      if (!metatype) return [];
      const prototype = metatype.prototype as Record<string, Handler>;
      return this.scanner
        .getAllMethodNames(prototype)
        .filter((name) => Reflect.hasMetadata(METHOD_METADATA, prototype[name] as Handler))
        .map((name) => ({
          name: `${metatype.name}.${name}`,
          method: name,
          extension: extensionOf(host?.metatype),
          handler: prototype[name] as Handler,
          controller: metatype as Handler,
        }));
    });
  }

  private declarationOf({ handler, controller, method }: Route): RouteDeclaration | undefined {
    const declared = <T>(key: symbol): T | undefined =>
      this.reflector.getAllAndOverride<T | undefined>(key, [handler, controller]);
    const access = declared<Access>(ACCESS);
    const quota = Reflect.getMetadata(QUOTA, handler) as QuotaRule | undefined;
    return (
      access && {
        access: accessUnder(access, this.settings),
        quota,
        throttler: quota && routeThrottler(quota, this.settings),
        bodyLimit: declared<number>(BODY_LIMIT) ?? DEFAULT_BODY_LIMIT,
        shedFirst: declared<boolean>(SHED_FIRST) ?? false,
        bulkWrite: declared<boolean>(BULK_WRITE) ?? false,
        bodyShape: bodyShapeOf(controller, method),
        logFacts: declared<LogFacts>(LOG_FACTS),
      }
    );
  }

  private problemOf(route: Route, accesses: Map<Handler, string>): string | undefined {
    const declared = this.declarationOf(route);
    if (!declared) return 'declares no callers: add @Public(), @Agent() or @Operator(role)';
    if (isThrottled(route.handler) || isThrottled(route.controller))
      return 'has @Throttle or @SkipThrottle, which have no effect here: use @Quota';
    const { access, quota } = declared;
    // Fastify's configuration belongs to the method, which two controllers share if one inherits it.
    const before = accesses.get(route.handler);
    accesses.set(route.handler, JSON.stringify(access));
    if (before !== undefined && before !== JSON.stringify(access))
      return 'is inherited under another declaration of its class: declare it at the method';
    if (!quota) return undefined;
    if (!QUOTA_NAME.test(quota.route))
      return 'has a quota whose name is not made of letters, digits and _.:/-';
    if (quota.by === 'agent' && access.kind !== 'agent') return 'has a quota by agent, but is not for agents';
    return undefined;
  }
}

/** Whether a class or a method has decorators of @nestjs/throttler, by the prefix of their metadata keys. */
const isThrottled = (target: Handler): boolean =>
  Reflect.getMetadataKeys(target).some((key) => typeof key === 'string' && key.startsWith('THROTTLER:'));

/** Returns the shape of a method's `@Body()` parameter, from its class. */
function bodyShapeOf(controller: Handler, method: string): BodyShape | undefined {
  const parameters = Object.keys(Reflect.getMetadata(ROUTE_ARGS_METADATA, controller, method) ?? {});
  const body = parameters.find((key) => key.startsWith(`${RouteParamtypes.BODY}:`));
  if (body === undefined) return undefined;
  const types = Reflect.getMetadata(
    'design:paramtypes',
    controller.prototype,
    method,
  ) as (new () => object)[];
  const type = types[Number(body.split(':')[1])];
  return type && shapeOf(type);
}
