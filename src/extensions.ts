import { existsSync, readFileSync } from 'node:fs';
import { createRequire, registerHooks } from 'node:module';
import { basename, dirname, isAbsolute, join, resolve, sep } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { DynamicModule, Type } from '@nestjs/common';
import { satisfies, validRange } from 'semver';
import type { MigrationInterface } from 'typeorm';

/** A part that another team wrote, loaded because `CONTROL_PLANE_EXTENSIONS` names it. */
export interface Extension {
  /** Of its package; of its file, or the folder of its index.js, where it has no package. */
  readonly name: string;
  /** Where it was found. */
  readonly folder: string;
  /** What it exports as default. */
  readonly module: Type | DynamicModule;
  /** What it exports as `migrations`, in the order they are applied. */
  readonly migrations: readonly (new () => MigrationInterface)[];
}

/** An extension that can't be used. The message names it and says why, on one line. */
export class ExtensionError extends Error {
  /** @param folder the extension's, where the cause may have been thrown in it */
  constructor(name: string, problem: string, cause?: unknown, folder?: string) {
    super(
      `Extension ${name} ${problem}${cause === undefined ? '.' : `: ${reasonOf(cause, folder)}`}`,
      cause === undefined ? undefined : { cause },
    );
  }
}

const PROGRAM = dirname(__dirname);
const PROGRAM_NAME = 'dns-agent-control-plane';

/** Packages that an extension and the program must have the same copy of, or classes would not be the same classes. */
const SHARED = /^(?:@nestjs\/[^/]+|class-transformer|class-validator|reflect-metadata|rxjs|typeorm)(?:\/|$)/;

/**
 * Loads the extensions in the order given: names of packages, or paths.
 * @throws ExtensionError naming the one that is faulty
 */
export function loadExtensions(specifiers: readonly string[]): Extension[] {
  if (specifiers.length === 0) return [];
  shareOwnPackages();
  const extensions: Extension[] = [];
  for (const specifier of specifiers) {
    const extension = load(specifier);
    const table = migrationsTable(extension.name);
    const same = extensions.find((other) => migrationsTable(other.name) === table);
    if (same) throw new ExtensionError(extension.name, `has the name of another one, ${same.name}`);
    mark(extension.module, extension.name);
    extensions.push(extension);
  }
  return extensions;
}

/** The table that records which of an extension's migrations were applied. */
export function migrationsTable(name: string): string {
  return `migrations_${name.toLowerCase().replace(/[^a-z0-9]+/g, '_')}`;
}

/** The extension that a module of the application belongs to; undefined for the program's own. */
export function extensionOf(module: unknown): string | undefined {
  return typeof module === 'function' ? Reflect.getOwnMetadata(OWNER, module) : undefined;
}

/**
 * Why the application could not be built, with the extension that is to blame by its modules or by the stack; all of
 * them where that can't be told.
 */
export function blame(error: unknown, extensions: readonly Extension[]): unknown {
  if (extensions.length === 0 || error instanceof ExtensionError) return error;
  const { message, stack = '', moduleRef } = Object(error) as Error & { moduleRef?: object };
  const guilty = extensions.filter(
    ({ folder, module }) =>
      stack.includes(folder + sep) ||
      (moduleRef && namesOf(module).some((name) => name && message.includes(name))),
  );
  const blamed = guilty.length > 0 ? guilty : extensions;
  const names = blamed.map(({ name }) => name).join(' or ');
  return new ExtensionError(names, 'keeps the program from starting', error, blamed[0]?.folder);
}

const OWNER = Symbol('extension');

/** Says of a module, and of those it imports, whose they are. */
function mark(module: unknown, name: string): void {
  for (const each of modulesOf(module)) {
    if (extensionOf(each) === undefined) Reflect.defineMetadata(OWNER, name, each);
  }
}

/** The class of a module and those of all that it imports. */
function modulesOf(module: unknown, found = new Set<object>()): Set<object> {
  const { module: dynamic, imports = [] } = (module ?? {}) as Partial<DynamicModule>;
  const type = dynamic ?? module;
  if (typeof type !== 'function' || found.has(type)) return found;
  found.add(type);
  for (const each of [...imports, ...(Reflect.getMetadata('imports', type) ?? [])]) modulesOf(each, found);
  return found;
}

const namesOf = (module: unknown): string[] => [...modulesOf(module)].map((type) => (type as Type).name);

function load(specifier: string): Extension {
  const file = find(specifier);
  const { name, folder, peers } = describe(file);
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

/** The file that a specifier leads to: looked for from the working directory, then from the program. */
function find(specifier: string): string {
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
 * Checks what an extension says that it is made for, before any of its code runs: of the program, and of the packages that
 * it gets from the program.
 * @throws ExtensionError one is of a version that it is not made for
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

/** Of the program, or of its copy of a package; undefined if it has none. */
function versionOf(name: string): string | undefined {
  const folders =
    name === PROGRAM_NAME
      ? [PROGRAM]
      : (require.resolve.paths(name) ?? []).map((folder) => join(folder, name));
  for (const folder of folders) {
    const { version } = readDescription(join(folder, 'package.json'));
    if (typeof version === 'string') return version;
  }
  return undefined;
}

/** The package that a file is in: its name, its folder, and what it says that it is made for. */
function describe(file: string): { name: string; folder: string; peers?: unknown } {
  for (let folder = dirname(file); folder !== dirname(folder); folder = dirname(folder)) {
    const description = join(folder, 'package.json');
    if (!existsSync(description)) continue;
    const { name, peerDependencies: peers } = readDescription(description);
    if (typeof name === 'string' && name !== PROGRAM_NAME) return { name, folder, peers };
    break;
  }
  const [folder, own] = [dirname(file), basename(file).replace(/\.[cm]?js$/, '')];
  return { name: own === 'index' ? basename(folder) : own, folder };
}

/** @returns what is left of it where it can't be read: Node says that better when it loads the package */
function readDescription(file: string): { name?: unknown; version?: unknown; peerDependencies?: unknown } {
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

/** Wherever an extension lies, what it imports of the program and of Nest is what this process runs. */
function shareOwnPackages(): void {
  const inside = (url: string | undefined, ...folders: string[]) =>
    folders.some((folder) => url?.startsWith(pathToFileURL(join(PROGRAM, folder, '/')).href));
  registerHooks({
    resolve(specifier, context, next) {
      if (inside(context.parentURL, 'dist')) return next(specifier, context);
      const ours = () => ({ url: pathToFileURL(require.resolve(specifier)).href, shortCircuit: true });
      if (specifier === PROGRAM_NAME || specifier.startsWith(`${PROGRAM_NAME}/`)) return ours();
      if (!SHARED.test(specifier) || inside(context.parentURL, 'node_modules'))
        return next(specifier, context);
      try {
        return ours();
      } catch {
        // Not a package of the program: the extension brings it.
        return next(specifier, context);
      }
    },
  });
}

/** What an error says in its first line, and where in the extension it was thrown. */
function reasonOf(error: unknown, folder?: string): string {
  const reason = String(error instanceof Error ? error.message : error).split('\n', 1)[0];
  const stack = folder !== undefined && error instanceof Error ? (error.stack ?? '') : '';
  const place = stack.slice(stack.indexOf(folder + sep)).match(/^\S+?:\d+/)?.[0];
  return place === undefined ? `${reason}` : `${reason} (${place})`;
}
