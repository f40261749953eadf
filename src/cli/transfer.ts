import { existsSync } from 'node:fs';
import { type Command, Option } from 'commander';
import {
  adminTokenFile,
  type DatabaseTarget,
  type PostgresTarget,
  parseDatabaseUrl,
  type Settings,
  type SqliteTarget,
  signingKeysFile,
} from '../settings';
import { CommandError, EXIT } from './command-error';
import { rethrowAsRetryable } from './database';
import { table } from './print';
import type { Terminal } from './terminal';

// Commander does not check the value: its messages would repeat it, and it may hold a password.
const urlOption = (name: string, description: string) =>
  new Option(`--${name} <url>`, description).makeOptionMandatory(name === 'from');

/** Adds the command that moves a SQLite database to PostgreSQL. */
export function addTransfer(program: Command, terminal: Terminal): void {
  program
    .command('transfer')
    .description('copy a stopped SQLite database into an empty PostgreSQL database, and compare the two')
    .addOption(urlOption('from', 'the SQLite database: sqlite:///var/lib/control-plane/control-plane.db'))
    .addOption(urlOption('to', 'the PostgreSQL database (default: CONTROL_PLANE_DATABASE_URL)'))
    .option('--json', 'print what was copied as JSON')
    .addHelpText(
      'after',
      `
All users of a machine can read the arguments of a process: leave the password out of --to, and set it as PGPASSWORD
or in ~/.pgpass. The source is only read. Do not start a server on it again: both databases would use the same ids.

Examples:
  $ control-plane transfer --from sqlite:///var/lib/control-plane/control-plane.db --to postgres://control_plane@db/control_plane`,
    )
    .action(async ({ from, to, json }: { from: string; to?: string; json?: true }) => {
      const settings = terminal.settings();
      const source = parseTarget('--from', from);
      const target = to === undefined ? settings.database : parseTarget('--to', to);
      if (source.type !== 'sqlite' || source.path === ':memory:')
        throw new CommandError('--from must name a SQLite database: sqlite:///absolute/file.db', EXIT.usage);
      if (target.type !== 'postgres')
        throw new CommandError(
          '--to must name a PostgreSQL database: postgres://user@host:5432/name',
          EXIT.usage,
        );
      const tables = await copy(source, target, settings).catch(rethrowAsRetryable);
      if (json) terminal.printJson(JSON.stringify({ tables }));
      else terminal.print(table(tables, ['table', 'rows', 'checksum']));
      terminal.note(remainingSteps(source, settings.signingKeyFile));
    });
}

/** Copies the database and records the transfer. @returns what was copied, by table */
async function copy(source: SqliteTarget, target: PostgresTarget, settings: Settings) {
  const { transfer } = await import('../database/transfer.js');
  const { loadExtensions } = await import('../extension-loader.js');
  const { recordRestore, recordTransfer } = await import('../operators/restore.js');
  const extensions = loadExtensions(settings.extensions);
  const { tables } = await transfer(source, target, extensions, async (tx, database, done) => {
    await recordTransfer(tx, database, source.path, done.tables);
    if (done.wasBackup) await recordRestore(tx, database);
  });
  return tables;
}

function parseTarget(option: string, url: string): DatabaseTarget {
  const target = parseDatabaseUrl(url);
  if (typeof target === 'string') throw new CommandError(`${option} ${target}`, EXIT.usage);
  return target;
}

/** Lists the steps that remain: what servers need besides the database. */
function remainingSteps(source: SqliteTarget, signingKeyFile: string | undefined): string {
  const key = signingKeysFile({ database: source, signingKeyFile });
  const token = adminTokenFile(source);
  const lines = [
    'Everything was copied. Left to do:',
    `- Give every server the signing keys: copy ${key}, and name the copy in CONTROL_PLANE_SIGNING_KEY_FILE.`,
  ];
  if (existsSync(token))
    lines.push(
      `- The admin's token in ${token} stays valid; set it as CONTROL_PLANE_ADMIN_TOKEN on every server.`,
    );
  lines.push(
    `- Never start a server on ${source.path} again: it would use ids that the new database uses too.`,
  );
  return lines.join('\n');
}
