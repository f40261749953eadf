import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import type { DataSource, MigrationInterface, QueryRunner } from 'typeorm';
import { type Extension, ExtensionError, MIGRATIONS_PREFIX, migrationsTable } from '../extensions';
import type { Database } from './database';
import { DatabaseError } from './database-error';
import { refuseForeignTables } from './foreign';

type MigrationClass = new () => MigrationInterface;

const FOLDER = join(__dirname, '..', 'migrations');

/** The migrations that this version of the program knows, oldest first. */
export function knownMigrations(folder = FOLDER): MigrationClass[] {
  return readdirSync(folder)
    .filter((file) => /^\d+-.*\.js$/.test(file))
    .sort()
    .map(
      (file) =>
        Object.values(require(join(folder, file)) as Record<string, MigrationClass>)[0] as MigrationClass,
    );
}

/** The names in the table `migrations`; undefined if there is none. */
async function appliedMigrations(source: DataSource): Promise<string[] | undefined> {
  const runner = source.createQueryRunner();
  const exists = await runner.hasTable('migrations').finally(() => runner.release());
  if (!exists) return undefined;
  // Another program's table of this name need not have a column of this name.
  const applied: { name?: string }[] = await source.query('SELECT * FROM migrations');
  return applied.map(({ name }) => String(name));
}

/**
 * Returns the names of the program's migrations that the database lacks.
 * @throws DatabaseError it has one that this version does not know (a newer version wrote it), or another program's
 * tables
 */
export async function pendingMigrations(source: DataSource): Promise<string[]> {
  const known = source.migrations.map((migration) => migration.name ?? migration.constructor.name);
  const names = (await appliedMigrations(source)) ?? [];
  await refuseForeignTables(source, () => appliedMigrations(source));
  const unknown = names.filter((name) => !known.includes(name));
  if (unknown.length > 0) {
    throw new DatabaseError(
      `The database was written by a newer version of this program (migration ${unknown[0]}). ` +
        'Start that version, or restore a backup made by this one.',
    );
  }
  const have = new Set(names);
  return known.filter((name) => !have.has(name));
}

/**
 * Returns the names of all migrations that the database lacks, the program's own and the extensions'.
 * @param runner on the connection for the extensions' tables
 * @throws DatabaseError as {@link migrate} does
 */
export async function missingMigrations(
  source: DataSource,
  runner: QueryRunner,
  extensions: readonly Extension[],
): Promise<string[]> {
  const names = await pendingMigrations(source);
  for (const extension of extensions)
    names.push(...(await new ExtensionMigrations(extension, runner).pending()));
  return names;
}

/**
 * Applies the missing migrations, the program's own first, each in its own transaction.
 * @param runner on the connection for the extensions' migrations
 * @param allowed whether missing migrations may be applied
 * @returns the names of the applied ones
 * @throws DatabaseError migrations are missing and may not be applied, or a newer version wrote the database
 * @throws ExtensionError a migration of an extension failed
 */
export async function migrate(
  source: DataSource,
  runner: QueryRunner,
  extensions: readonly Extension[],
  allowed: boolean,
): Promise<string[]> {
  const pending = await missingMigrations(source, runner, extensions);
  if (pending.length > 0 && !allowed) {
    throw new DatabaseError(
      `The database lacks ${pending.length} migration(s), and CONTROL_PLANE_MIGRATE_ON_START is false: ` +
        'run "control-plane migrate" first.',
    );
  }
  if (pending.length > 0) await source.runMigrations({ transaction: 'each' });
  for (const extension of extensions) await new ExtensionMigrations(extension, runner).apply();
  return pending;
}

/**
 * Finds extensions that are not loaded although the database has their tables.
 * @returns the tables that record their migrations, see {@link migrationsTable}
 */
export async function tablesOfMissingExtensions(
  database: Database,
  extensions: readonly Extension[],
): Promise<string[]> {
  const loaded = new Set(extensions.map(({ name }) => migrationsTable(name)));
  const tables = await database.read((statements) =>
    statements.rows<{ name: string }>(statements.dialect.tablesOfNames('$1'), MIGRATIONS_PREFIX),
  );
  return tables.map(({ name }) => name).filter((name) => !loaded.has(name));
}

/**
 * An extension's migrations. They are recorded in the extension's own table: if it is removed, the program finds no
 * unknown migrations, and the extension's tables stay.
 */
class ExtensionMigrations {
  private readonly name: string;
  private readonly table: string;

  constructor(
    private readonly extension: Extension,
    private readonly runner: QueryRunner,
  ) {
    this.name = extension.name;
    this.table = migrationsTable(extension.name);
  }

  /** Returns the names of those that the database lacks, in order. @throws DatabaseError as {@link apply} does */
  async pending(): Promise<string[]> {
    return (await this.missing()).map((migration) => `${this.name}/${migration.name}`);
  }

  /**
   * Applies the missing ones, each in its own transaction.
   * @throws DatabaseError the database has one that this version of the extension does not know
   * @throws ExtensionError a migration failed; the message names it
   */
  async apply(): Promise<void> {
    for (const migration of await this.missing()) {
      await this.runner.startTransaction();
      try {
        await this.runner.query(`CREATE TABLE IF NOT EXISTS ${this.table} (name text NOT NULL PRIMARY KEY)`);
        await new migration().up(this.runner);
        await this.runner.query(`INSERT INTO ${this.table} (name) VALUES ('${migration.name}')`);
        await this.runner.commitTransaction();
      } catch (error) {
        await this.runner.rollbackTransaction();
        throw new ExtensionError(this.name, `has a migration that failed, ${migration.name}`, error);
      }
    }
  }

  private async missing(): Promise<MigrationClass[]> {
    const exists = await this.runner.hasTable(this.table);
    const rows: { name: string }[] = exists ? await this.runner.query(`SELECT name FROM ${this.table}`) : [];
    const applied = new Set(rows.map((row) => row.name));
    const missing = this.extension.migrations.filter((migration) => !applied.delete(migration.name));
    const [unknown] = applied;
    if (unknown !== undefined) {
      throw new DatabaseError(
        `The database was written by a newer version of the extension ${this.name} (migration ${unknown}). ` +
          'Load that version, or restore a backup made by this one.',
      );
    }
    return missing;
  }
}
