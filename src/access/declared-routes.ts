import { Injectable, type OnApplicationBootstrap } from '@nestjs/common';
import { METHOD_METADATA } from '@nestjs/common/constants';
import { DiscoveryService, MetadataScanner, Reflector } from '@nestjs/core';
import { ExtensionError, extensionOf } from '../extensions';
import { ACCESS, type Access, QUOTA, type QuotaRule } from '../http/decorators';

/** A name that can stand in a `RateLimit` header as it is. */
const QUOTA_NAME = /^[\w.:/-]{1,64}$/;

/** Keeps the program from starting with a route that forgot to say whom it lets in. */
@Injectable()
export class DeclaredRoutes implements OnApplicationBootstrap {
  constructor(
    private readonly discovery: DiscoveryService,
    private readonly scanner: MetadataScanner,
    private readonly reflector: Reflector,
  ) {}

  /** Fails the start where a route's declaration is missing or makes no sense, naming all of them. */
  onApplicationBootstrap(): void {
    const faulty = new Set<string>();
    const problems = this.discovery.getControllers().flatMap(({ metatype, host }) => {
      if (!metatype) return [];
      const prototype = metatype.prototype as Record<string, object>;
      return this.scanner
        .getAllMethodNames(prototype)
        .filter((name) => Reflect.hasMetadata(METHOD_METADATA, prototype[name] as object))
        .flatMap((name) => {
          const problem = this.problemOf(prototype[name] as () => unknown, metatype as () => unknown);
          if (!problem) return [];
          faulty.add(extensionOf(host?.metatype) ?? '');
          return [`${metatype.name}.${name} ${problem}`];
        });
    });
    if (problems.length === 0) return;
    const message = `Routes are not declared right: ${problems.join('; ')}.`;
    const names = [...faulty].filter((name) => name !== '');
    throw names.length === 0
      ? new Error(message)
      : new ExtensionError(names.join(', '), `is faulty: ${message}`);
  }

  private problemOf(handler: () => unknown, controller: () => unknown): string | undefined {
    const access = this.reflector.getAllAndOverride<Access | undefined>(ACCESS, [handler, controller]);
    const rule = Reflect.getMetadata(QUOTA, handler) as QuotaRule | undefined;
    if (!access) return 'names nobody: add @Public(), @Agent() or @Operator(role)';
    if (!rule) return undefined;
    if (!QUOTA_NAME.test(rule.route))
      return 'has a quota whose name is not made of letters, digits and _.:/-';
    if (rule.by === 'agent' && access.kind !== 'agent') return 'has a quota by agent, but is not for agents';
    return undefined;
  }
}
