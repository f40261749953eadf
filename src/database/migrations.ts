import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import type { DataSource, MigrationInterface } from 'typeorm';
import { DatabaseError } from './database-error';

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

/**
 * Tells whether the database has every migration.
 * @throws DatabaseError where it has one that this version does not know: a newer version wrote it.
 */
async function pendingMigrations(source: DataSource): Promise<string[]> {
  const known = source.migrations.map((migration) => migration.name ?? migration.constructor.name);
  const runner = source.createQueryRunner();
  const exists = await runner.hasTable('migrations').finally(() => runner.release());
  const applied: { name: string }[] = exists ? await source.query('SELECT name FROM migrations') : [];
  const unknown = applied.filter((row) => !known.includes(row.name));
  if (unknown.length > 0) {
    throw new DatabaseError(
      `The database was written by a newer version of this program (migration ${unknown[0]?.name}). ` +
        'Start that version, or restore a backup made by this one.',
    );
  }
  const have = new Set(applied.map((row) => row.name));
  return known.filter((name) => !have.has(name));
}

/**
 * Applies what is pending, each migration in a transaction of its own.
 * @returns the names applied
 * @throws DatabaseError there is something to apply and it may not be
 */
export async function migrate(source: DataSource, allowed: boolean): Promise<string[]> {
  const pending = await pendingMigrations(source);
  if (pending.length === 0) return [];
  if (!allowed) {
    throw new DatabaseError(
      `The database lacks ${pending.length} migration(s), and CONTROL_PLANE_MIGRATE_ON_START is false: ` +
        'run "node dist/main.js --migrate-only" first.',
    );
  }
  await source.runMigrations({ transaction: 'each' });
  return pending;
}
