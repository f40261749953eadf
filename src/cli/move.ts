import { existsSync } from 'node:fs';
import { type Command, Option } from 'commander';
import { DatabaseInUse, DatabaseUnreachable } from '../database/database-error';
import { loadExtensions } from '../extensions';
import {
  adminTokenFile,
  parseDatabaseUrl,
  type Settings,
  type SqliteTarget,
  signingKeysFile,
} from '../settings';
import { EXIT, Failure } from './failure';
import { fields, table } from './print';
import type { Terminal } from './terminal';

// Not checked by commander: its messages repeat the value, which may hold a password.
const urlOption = (name: string, description: string) =>
  new Option(`--${name} <url>`, description).makeOptionMandatory(name === 'from');

/** Adds the commands for a database that came from somewhere else. */
export function addMoving(program: Command, terminal: Terminal): void {
  program
    .command('transfer')
    .description('copy a stopped SQLite database into an empty PostgreSQL database, and compare the two')
    .addOption(urlOption('from', 'the SQLite database: sqlite:///var/lib/control-plane/control-plane.db'))
    .addOption(urlOption('to', 'the PostgreSQL database; CONTROL_PLANE_DATABASE_URL where it is left out'))
    .option('--json', 'say what was copied as JSON')
    .addHelpText(
      'after',
      `
Everybody on a machine can read the arguments of a process: leave the password out of --to, and give it as PGPASSWORD
or in ~/.pgpass. The source is only read. Do not start a server on it again: both would give the same ids.

Examples:
  $ control-plane transfer --from sqlite:///var/lib/control-plane/control-plane.db --to postgres://control_plane@db/control_plane`,
    )
    .action(async ({ from, to, json }: { from: string; to?: string; json?: true }) => {
      const settings = terminal.settings();
      const source = databaseOf('--from', from);
      const target = to === undefined ? settings.database : databaseOf('--to', to);
      if (source.type !== 'sqlite' || source.path === ':memory:')
        throw new Failure('--from must name a SQLite database: sqlite:///absolute/file.db', EXIT.misused);
      if (target.type !== 'postgres')
        throw new Failure(
          '--to must name a PostgreSQL database: postgres://user@host:5432/name',
          EXIT.misused,
        );
      const { transfer } = await import('../database/transfer.js');
      const { recordRestore, recordTransfer } = await import('../operators/restore.js');
      const { tables } = await transfer(
        source,
        target,
        loadExtensions(settings.extensions),
        async (tx, database, done) => {
          await recordTransfer(tx, database, source.path, done.tables);
          if (done.wasBackup) await recordRestore(tx, database);
        },
      ).catch(mayRetry);
      if (json) terminal.printJson(JSON.stringify({ tables }));
      else terminal.print(table(tables, ['table', 'rows', 'checksum']));
      terminal.note(whatIsLeft(source, settings.signingKeyFile));
    });
  program
    .command('restored')
    .description('after a restore that the server can not know of: have ids go on beyond all that were given')
    .option('--json', 'say after which ids they go on as JSON')
    .addHelpText(
      'after',
      `
For a PostgreSQL database after pg_restore or a recovery to a point in time, and for a SQLite file that was put back by
other means than \`control-plane backup\`. Run it before the first server starts; when to: docs/control-plane-recover.md.

Examples:
  $ control-plane restored`,
    )
    .action(async ({ json }: { json?: true }) => {
      const settings = terminal.settings();
      const after = await passOver(settings).catch(mayRetry);
      if (json) terminal.printJson(JSON.stringify({ ids_go_on_after: after }));
      else terminal.print(fields({ ids_go_on_after: after }));
    });
}

async function passOver(settings: Settings): Promise<object> {
  const { openDatabase } = await import('../database/open-database.js');
  const { recordRestore } = await import('../operators/restore.js');
  const { database: target } = settings;
  await refuseServed(target);
  if (target.type === 'sqlite' && !existsSync(target.path))
    throw new Failure(`There is no database ${target.path}.`, EXIT.failed);
  const database = await openDatabase(settings, [], loadExtensions(settings.extensions));
  try {
    return await database.write((tx) => recordRestore(tx, database));
  } finally {
    await database.close();
  }
}

/** Refuses a PostgreSQL database that servers are connected to; a SQLite file has its lock. */
export async function refuseServed(target: Settings['database']): Promise<void> {
  if (target.type !== 'postgres') return;
  const { inspectDatabase } = await import('../database/open-database.js');
  const { connectionsOfOthers } = await import('../database/postgres.js');
  if ((await inspectDatabase(target, connectionsOfOthers)) > 0)
    throw new Failure(
      'Servers are connected to the database: stop them all first, for they give ids meanwhile.',
      EXIT.retry,
    );
}

function databaseOf(option: string, url: string): Settings['database'] {
  const database = parseDatabaseUrl(url);
  if (typeof database === 'string') throw new Failure(`${option} ${database}`, EXIT.misused);
  return database;
}

/** Passes an error on, with the exit code that says to try again if that can help. */
export function mayRetry(error: unknown): never {
  if (error instanceof DatabaseInUse || error instanceof DatabaseUnreachable)
    throw new Failure(error.message, EXIT.retry);
  throw error;
}

/** What a database does not hold, and its servers need. */
function whatIsLeft(source: SqliteTarget, signingKeyFile: string | undefined): string {
  const key = signingKeysFile({ database: source, signingKeyFile });
  const token = adminTokenFile(source);
  const lines = [
    'Everything is there. Left to do:',
    `- Give every server the signing keys: copy ${key}, and name the copy in CONTROL_PLANE_SIGNING_KEY_FILE.`,
  ];
  if (existsSync(token))
    lines.push(
      `- The admin's token in ${token} goes on working; set it as CONTROL_PLANE_ADMIN_TOKEN on every server.`,
    );
  lines.push(
    `- Never start a server on ${source.path} again: it would give ids that the new database gives too.`,
  );
  return lines.join('\n');
}
