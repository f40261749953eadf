import { existsSync, readFileSync } from 'node:fs';
import { createRequire, registerHooks } from 'node:module';
import { basename, dirname, isAbsolute, join, resolve, sep } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { DynamicModule, Type } from '@nestjs/common';
import { satisfies, validRange } from 'semver';
import type { MigrationInterface } from 'typeorm';
import { type Extension, ExtensionError, migrationsTable, modulesOf, setOwner } from './extensions';

const PROGRAM = dirname(__dirname);
const PROGRAM_NAME = 'dns-agent-control-plane';

/** Packages that an extension must share with the program: with two copies, the same class would be two classes. */
const SHARED = /^(?:@nestjs\/[^/]+|class-transformer|class-validator|reflect-metadata|rxjs|typeorm)(?:\/|$)/;

/**
 * Loads extensions in the given order.
 * @param specifiers names of packages, or paths
 * @throws ExtensionError naming the extension that can't be used
 */
export function loadExtensions(specifiers: readonly string[]): Extension[] {
  if (specifiers.length === 0) return [];
  sharePackages();
  const extensions: Extension[] = [];
  for (const specifier of specifiers) {
    const extension = load(specifier);
    const table = migrationsTable(extension.name);
    const same = extensions.find((other) => migrationsTable(other.name) === table);
    if (same) throw new ExtensionError(extension.name, `has the name of another one, ${same.name}`);
    setOwner(extension.module, extension.name);
    extensions.push(extension);
  }
  return extensions;
}

/**
 * Attributes a failed start to an extension, found by its modules or by the stack.
 * @returns an ExtensionError naming it, or all extensions if none can be told; the error itself without extensions
 */
export function blameExtension(error: unknown, extensions: readonly Extension[]): unknown {
  if (extensions.length === 0 || error instanceof ExtensionError) return error;
  const { message, stack = '', moduleRef } = Object(error) as Error & { moduleRef?: object };
  const suspects = extensions.filter(
    ({ folder, module }) =>
      stack.includes(folder + sep) ||
      (moduleRef && namesOf(module).some((name) => name && message.includes(name))),
  );
  const blamed = suspects.length > 0 ? suspects : extensions;
  const names = blamed.map(({ name }) => name).join(' or ');
  return new ExtensionError(names, 'keeps the program from starting', error, blamed[0]?.folder);
}

const namesOf = (module: unknown): string[] => [...modulesOf(module)].map((type) => (type as Type).name);

function load(specifier: string): Extension {
  const file = resolveSpecifier(specifier);
  const { name, folder, peers } = describePackage(file);
  checkPeers(name, peers);
  let exported: { default?: unknown; migrations?: unknown } | null;
  try {
    exported = require(file);
  } catch (error) {
    throw new ExtensionError(name, `(${file}) failed while it was loaded`, error, folder);
  }
  const module = exported?.default;
  if (module === undefined || module === null)
    throw new ExtensionError(name, `(${file}) has no default export; it must be a Nest module`);
  if (!isModule(module))
    throw new ExtensionError(name, `(${file}) exports as default something that is not a Nest module`);
  const migrations = exported?.migrations ?? [];
  if (!isListOfClasses(migrations))
    throw new ExtensionError(name, `(${file}) exports migrations that are not a list of classes, each once`);
  return { name, folder, module, migrations };
}

/** Resolves a specifier to a file: first from the working directory, then from the program. */
function resolveSpecifier(specifier: string): string {
  const here = createRequire(join(process.cwd(), 'here.js'));
  try {
    if (isAbsolute(specifier)) return here.resolve(specifier);
    if (/^\.{1,2}(?:\/|$)/.test(specifier)) return here.resolve(resolve(specifier));
    try {
      return here.resolve(specifier);
    } catch {
      return require.resolve(specifier);
    }
  } catch (error) {
    const hint = existsSync(specifier) ? ' (a path must begin with ./ or ../ or /)' : '';
    throw new ExtensionError(specifier, `can't be found${hint}`, error);
  }
}

/**
 * Checks an extension's peerDependencies, before any of its code runs: on the program and on the shared packages.
 * @throws ExtensionError a range can't be read, or does not include the version that is here
 */
function checkPeers(extension: string, peers: unknown): void {
  for (const [peer, range] of Object.entries(Object(peers) as Record<string, unknown>)) {
    if (peer !== PROGRAM_NAME && !SHARED.test(peer)) continue;
    if (typeof range !== 'string' || validRange(range) === null)
      throw new ExtensionError(
        extension,
        `has a range in its peerDependencies that can't be read, of ${peer}`,
      );
    const version = versionOf(peer);
    if (version !== undefined && !satisfies(version, range, { includePrerelease: true }))
      throw new ExtensionError(
        extension,
        `is made for ${peer} ${range} (its peerDependencies); this is ${version}`,
      );
  }
}

/** The version of the program, or of its copy of a package; undefined if it has no copy. */
function versionOf(name: string): string | undefined {
  const folders =
    name === PROGRAM_NAME
      ? [PROGRAM]
      : (require.resolve.paths(name) ?? []).map((folder) => join(folder, name));
  for (const folder of folders) {
    const { version } = readManifest(join(folder, 'package.json'));
    if (typeof version === 'string') return version;
  }
  return undefined;
}

/** Describes the package that a file belongs to. A file without a package is named after itself or its folder. */
function describePackage(file: string): { name: string; folder: string; peers?: unknown } {
  for (let folder = dirname(file); folder !== dirname(folder); folder = dirname(folder)) {
    const manifest = join(folder, 'package.json');
    if (!existsSync(manifest)) continue;
    const { name, peerDependencies: peers } = readManifest(manifest);
    if (typeof name === 'string' && name !== PROGRAM_NAME) return { name, folder, peers };
    break;
  }
  const [folder, own] = [dirname(file), basename(file).replace(/\.[cm]?js$/, '')];
  return { name: own === 'index' ? basename(folder) : own, folder };
}

/** Reads a package.json. @returns an empty object if it can't be read: Node reports that better when it loads the package */
function readManifest(file: string): { name?: unknown; version?: unknown; peerDependencies?: unknown } {
  try {
    return Object(JSON.parse(readFileSync(file, 'utf8')));
  } catch {
    return {};
  }
}

function isModule(value: unknown): value is Type | DynamicModule {
  if (typeof value === 'object') return typeof (value as DynamicModule).module === 'function';
  return (
    typeof value === 'function' &&
    ['imports', 'providers', 'controllers', 'exports'].some((key) => Reflect.hasOwnMetadata(key, value))
  );
}

function isListOfClasses(value: unknown): value is (new () => MigrationInterface)[] {
  if (!Array.isArray(value)) return false;
  const names = new Set(value.map((each) => (typeof each === 'function' ? each.name : '')));
  return !names.has('') && names.size === value.length;
}

/** Resolves imports of the program and of the shared packages to the copies of this process, from any extension's folder. */
function sharePackages(): void {
  const isInside = (url: string | undefined, folder: string) =>
    url?.startsWith(pathToFileURL(join(PROGRAM, folder, '/')).href);
  registerHooks({
    resolve(specifier, context, next) {
      if (isInside(context.parentURL, 'dist')) return next(specifier, context);
      const ours = () => ({ url: pathToFileURL(require.resolve(specifier)).href, shortCircuit: true });
      if (specifier === PROGRAM_NAME || specifier.startsWith(`${PROGRAM_NAME}/`)) return ours();
      if (!SHARED.test(specifier) || isInside(context.parentURL, 'node_modules'))
        return next(specifier, context);
      try {
        return ours();
      } catch {
        // The program does not have this package; the extension brings its own.
        return next(specifier, context);
      }
    },
  });
}
