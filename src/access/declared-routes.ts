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

/** A name that can stand in a `RateLimit` header as it is. */
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
 * Tells Fastify's hooks what the decorators of each route say, and keeps the program from starting with a route that forgot
 * to say whom it lets in.
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
   * Puts each route's declaration into its Fastify configuration, beside what `@RouteConfig` has put there. Call it before
   * Nest adds the routes. A route that is not declared, or is added later, has none, and nobody is let in.
   */
  publish(): void {
    const key = RouteConfig({}).KEY;
    for (const route of this.routes()) {
      const declared = this.declarationOf(route);
      const config = Reflect.getMetadata(key, route.handler) as object | undefined;
      if (declared) Reflect.defineMetadata(key, { ...config, declared }, route.handler);
    }
  }

  /** Fails the start if a route's declaration is missing or makes no sense, naming all of them. */
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
    const message = `Routes are not declared right: ${problems.join('; ')}.`;
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
    const said = <T>(key: symbol): T | undefined =>
      this.reflector.getAllAndOverride<T | undefined>(key, [handler, controller]);
    const access = said<Access>(ACCESS);
    const quota = Reflect.getMetadata(QUOTA, handler) as QuotaRule | undefined;
    return (
      access && {
        access: accessUnder(access, this.settings),
        quota,
        throttler: quota && routeThrottler(quota, this.settings),
        bodyLimit: said<number>(BODY_LIMIT) ?? DEFAULT_BODY_LIMIT,
        shedFirst: said<boolean>(SHED_FIRST) ?? false,
        bulkWrite: said<boolean>(BULK_WRITE) ?? false,
        bodyShape: bodyShapeOf(controller, method),
        logFacts: said<LogFacts>(LOG_FACTS),
      }
    );
  }

  private problemOf(route: Route, accesses: Map<Handler, string>): string | undefined {
    const declared = this.declarationOf(route);
    if (!declared) return 'names nobody: add @Public(), @Agent() or @Operator(role)';
    if (isThrottled(route.handler) || isThrottled(route.controller))
      return 'has @Throttle or @SkipThrottle, which nothing reads here: use @Quota';
    const { access, quota } = declared;
    // Fastify's configuration hangs on the method, which two controllers share if one inherits it.
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

/** Whether the decorators of @nestjs/throttler stand above a class or a method; its keys are texts that begin so. */
const isThrottled = (target: Handler): boolean =>
  Reflect.getMetadataKeys(target).some((key) => typeof key === 'string' && key.startsWith('THROTTLER:'));

/** What is read of the body that a method takes by `@Body()`, as its class says. */
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
