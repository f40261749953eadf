import { existsSync } from 'node:fs';
import type { Command } from 'commander';
import { DatabaseInUse, DatabaseUnreachable } from '../database/database-error';
import { type DatabaseTarget, type Settings, signingKeysFile } from '../settings';
import { CommandError, EXIT } from './command-error';
import { fields } from './print';
import type { Terminal } from './terminal';

/** Adds the commands for the database: migrate, backup, restored. */
export function addDatabase(program: Command, terminal: Terminal): void {
  program
    .command('migrate')
    .description('apply the migrations and end')
    .action(async () => {
      const applied = await migrate(terminal.settings());
      terminal.print(applied.length === 0 ? 'The database is current.' : `Applied ${applied.join(', ')}.`);
    });
  program
    .command('backup <file>')
    .description(
      'copy the database, whether or not a server runs; the copy is checked before it gets its name',
    )
    .option('--force', 'replace a backup of that name; no other file is ever replaced')
    .option('--json', 'print what was written as JSON')
    .addHelpText(
      'after',
      `
The database is the one of CONTROL_PLANE_DATABASE_URL. How to restore: docs/control-plane-recover.md.

Examples:
  $ control-plane backup /backups/control-plane-$(date +%F).db`,
    )
    .action(async (file: string, { force = false, json }: { force?: boolean; json?: true }) => {
      const settings = terminal.settings();
      const backup = await backUpTo(file, force, settings, terminal.interruptSignal);
      if (json) terminal.printJson(JSON.stringify(backup));
      else terminal.print(fields(backup));
      terminal.note(
        `Not in it, because they are secrets: keep ${signingKeysFile(settings)} too, in another place, and the admin's token where you need it.`,
      );
    });
  program
    .command('restored')
    .description('after a restore that the server can not detect: skip all ids that may have been used')
    .option('--json', 'print the last skipped ids as JSON')
    .addHelpText(
      'after',
      `
For a PostgreSQL database after pg_restore or a point-in-time recovery, and for a SQLite file that was restored from
another copy than one of \`control-plane backup\`. Run it before the first server starts: docs/control-plane-recover.md.

Examples:
  $ control-plane restored`,
    )
    .action(async ({ json }: { json?: true }) => {
      const after = await skipUsedIds(terminal.settings()).catch(rethrowAsRetryable);
      if (json) terminal.printJson(JSON.stringify({ ids_go_on_after: after }));
      else terminal.print(fields({ ids_go_on_after: after }));
    });
}

/** Applies the migrations, regardless of `CONTROL_PLANE_MIGRATE_ON_START`. @returns the names of those applied */
async function migrate(settings: Settings): Promise<readonly string[]> {
  const { openDatabase } = await import('../database/open-database.js');
  const { loadExtensions } = await import('../extension-loader.js');
  const extensions = loadExtensions(settings.extensions);
  const database = await openDatabase({ ...settings, migrateOnStart: true }, [], extensions);
  await database.close();
  return database.applied;
}

async function backUpTo(
  file: string,
  replace: boolean,
  settings: Settings,
  signal: AbortSignal,
): Promise<object> {
  const { database: target } = settings;
  if (target.type !== 'sqlite')
    throw new CommandError(
      'A PostgreSQL database is backed up by pg_dump; see docs/control-plane-operate.md.',
      EXIT.usage,
    );
  const { backUp } = await import('../database/backup.js');
  try {
    return await backUp(target, file, { replace, signal, settings });
  } catch (error) {
    throw signal.aborted ? new CommandError('Interrupted; no backup was made.', EXIT.failed) : error;
  }
}

/** Records a restore: new ids start after all that may have been used. @returns the last skipped id of each table */
async function skipUsedIds(settings: Settings): Promise<object> {
  const { openDatabase } = await import('../database/open-database.js');
  const { loadExtensions } = await import('../extension-loader.js');
  const { recordRestore } = await import('../operators/restore.js');
  const { database: target } = settings;
  await refuseWhileServed(target);
  if (target.type === 'sqlite' && !existsSync(target.path))
    throw new CommandError(`There is no database ${target.path}.`, EXIT.failed);
  const database = await openDatabase(settings, [], loadExtensions(settings.extensions));
  try {
    return await database.write((tx) => recordRestore(tx, database));
  } finally {
    await database.close();
  }
}

/**
 * Refuses a PostgreSQL database that servers are connected to. A SQLite database has a lock instead.
 * @throws CommandError servers are connected
 */
export async function refuseWhileServed(target: DatabaseTarget): Promise<void> {
  if (target.type !== 'postgres') return;
  const { inspectDatabase } = await import('../database/open-database.js');
  const { connectionsOfOthers } = await import('../database/postgres.js');
  if ((await inspectDatabase(target, connectionsOfOthers)) > 0)
    throw new CommandError(
      'Servers are connected to the database: stop them all first, because they assign ids meanwhile.',
      EXIT.retry,
    );
}

/** Rethrows an error; with the exit code for a retry if the database is in use or unreachable. */
export function rethrowAsRetryable(error: unknown): never {
  if (error instanceof DatabaseInUse || error instanceof DatabaseUnreachable)
    throw new CommandError(error.message, EXIT.retry);
  throw error;
}
