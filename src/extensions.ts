import { sep } from 'node:path';
import type { DynamicModule, Type } from '@nestjs/common';
import type { MigrationInterface } from 'typeorm';

/** A module of another team, loaded because `CONTROL_PLANE_EXTENSIONS` names it. */
export interface Extension {
  /** The name of its package. Without a package: the name of its file, or of the folder of its index.js. */
  readonly name: string;
  /** The absolute path of its folder. */
  readonly folder: string;
  /** Its default export. */
  readonly module: Type | DynamicModule;
  /** Its export `migrations`, in the order in which they are applied. */
  readonly migrations: readonly (new () => MigrationInterface)[];
}

/** An extension can't be used. The message names it and gives the reason, on one line. */
export class ExtensionError extends Error {
  /**
   * @param name the extension, or the text that should have led to one
   * @param problem what is wrong, as the end of a sentence that begins with the name
   * @param folder the extension's folder, to show where in it the cause was thrown
   */
  constructor(name: string, problem: string, cause?: unknown, folder?: string) {
    super(
      `Extension ${name} ${problem}${cause === undefined ? '.' : `: ${reasonOf(cause, folder)}`}`,
      cause === undefined ? undefined : { cause },
    );
  }
}

/** The beginning of the names of tables that record the migrations of an extension. */
export const MIGRATIONS_PREFIX = 'migrations_';

/** The name of the table that records which migrations of an extension were applied. */
export function migrationsTable(name: string): string {
  return `${MIGRATIONS_PREFIX}${name.toLowerCase().replace(/[^a-z0-9]+/g, '_')}`;
}

const OWNER = Symbol('extension');

/** Returns the name of the extension that owns a Nest module; undefined for a module of the program itself. */
export function extensionOf(module: unknown): string | undefined {
  return typeof module === 'function' ? Reflect.getOwnMetadata(OWNER, module) : undefined;
}

/** Marks a Nest module, and the modules that it imports, as owned by an extension. The first owner stays. */
export function setOwner(module: unknown, name: string): void {
  for (const each of modulesOf(module))
    if (extensionOf(each) === undefined) Reflect.defineMetadata(OWNER, name, each);
}

/** Collects the class of a Nest module and the classes of all modules that it imports. */
export function modulesOf(module: unknown, found = new Set<object>()): Set<object> {
  const { module: dynamic, imports = [] } = (module ?? {}) as Partial<DynamicModule>;
  const type = dynamic ?? module;
  if (typeof type !== 'function' || found.has(type)) return found;
  found.add(type);
  for (const each of [...imports, ...(Reflect.getMetadata('imports', type) ?? [])]) modulesOf(each, found);
  return found;
}

/** The first line of an error's message, and the position in the extension where it was thrown. */
function reasonOf(error: unknown, folder?: string): string {
  const reason = String(error instanceof Error ? error.message : error).split('\n', 1)[0];
  const stack = folder !== undefined && error instanceof Error ? (error.stack ?? '') : '';
  const position = stack.slice(stack.indexOf(folder + sep)).match(/^\S+?:\d+/)?.[0];
  return position === undefined ? `${reason}` : `${reason} (${position})`;
}
