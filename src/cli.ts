#!/usr/bin/env node
import './node-version';
import { Command, CommanderError } from 'commander';
import { addDoctor } from './cli/doctor';
import { EXIT, Failure } from './cli/failure';
import { addMoving } from './cli/move';
import { addOperatorsCommands } from './cli/operate';
import { fields, note, print } from './cli/print';
import { DatabaseError } from './database/database-error';
import { ExtensionError } from './extensions';
import { readSettings, SettingsError, signingKeysFile } from './settings';

// Nobody else may read what is made here: databases, keys, backups.
process.umask(0o077);

const { version } = require('../package.json') as { version: string };

const program = new Command('control-plane')
  .description('The DNS Agent Control Plane: the server, and what its operators do with it.')
  .version(version)
  .showHelpAfterError('(--help tells how)')
  .exitOverride()
  .addHelpText(
    'after',
    `
Commands that act through the API find the server by CONTROL_PLANE_URL (http://127.0.0.1:8080 where it is not set)
and show the operator's token of CONTROL_PLANE_TOKEN. On the server's own machine the admin's token is found by itself.

Exit codes: 0 done; 1 refused or failed; 2 wrong arguments or settings; 3 not reachable, busy or over a quota: try again.

Examples:
  $ control-plane serve
  $ control-plane task add dns query=example.com
  $ control-plane agents list --status offline --json`,
  );

// The application is loaded only where it is needed: it takes longer than most commands.
program
  .command('serve')
  .description('migrate the database, then serve until SIGTERM or SIGINT')
  .addHelpText('after', '\nEvery setting is an environment variable; see docs/control-plane-deploy.md.')
  .action(async () => {
    const settings = readSettings();
    // A server goes on if nobody reads its log.
    process.stdout.off('error', onStandardOutputError);
    const main = await import('./main.js');
    await main.serve(settings).catch(main.giveUp);
  });
program
  .command('migrate')
  .description('apply the migrations and end')
  .action(async () => {
    const settings = readSettings();
    const main = await import('./main.js');
    await main.migrateOnly(settings).catch(main.giveUp);
  });
program
  .command('backup <file>')
  .description('copy the database, whether or not a server runs; the copy is checked before it gets its name')
  .option('--force', 'replace the file where it is there')
  .option('--json', 'say what was written as JSON')
  .addHelpText(
    'after',
    `
The database is the one of CONTROL_PLANE_DATABASE_URL. How to restore: docs/control-plane-deploy.md.

Examples:
  $ control-plane backup /backups/control-plane-$(date +%F).db`,
  )
  .action(async (file: string, { force = false, json }: { force?: boolean; json?: true }) => {
    const settings = readSettings();
    const interrupted = new AbortController();
    for (const signal of ['SIGINT', 'SIGTERM'] as const)
      process.once(signal, () =>
        interrupted.abort(new Failure('Interrupted; no backup was made.', EXIT.failed)),
      );
    const { database: target } = settings;
    if (target.type !== 'sqlite')
      throw new Failure(
        'A PostgreSQL database is backed up by pg_dump; see docs/control-plane-deploy.md.',
        EXIT.misused,
      );
    const { backUp } = await import('./database/backup.js');
    const backup = await backUp(target, file, { replace: force, signal: interrupted.signal });
    print(json ? JSON.stringify(backup) : fields(backup));
    const key = signingKeysFile(settings);
    note(
      `Not in it, for they are secrets: keep ${key} too, in another place, and the admin's token where you need it.`,
    );
  });
addMoving(program);
addDoctor(program);
addOperatorsCommands(program);

/** Says why it ends, and with which exit code. */
function giveUp(error: unknown): void {
  if (error instanceof CommanderError) {
    // It has said what is wrong already; asking for help is not wrong.
    process.exitCode = error.exitCode === 0 ? EXIT.ok : EXIT.misused;
    return;
  }
  const expected = [Failure, SettingsError, DatabaseError, ExtensionError].some(
    (type) => error instanceof type,
  );
  if (expected) note((error as Error).message);
  else console.error(error);
  process.exitCode =
    error instanceof Failure ? error.exitCode : error instanceof SettingsError ? EXIT.misused : EXIT.failed;
}

/** Ends the command: if the reader has had enough, as `head` does, that is not a failure. */
function onStandardOutputError(error: NodeJS.ErrnoException): void {
  process.exit(error.code === 'EPIPE' ? EXIT.ok : EXIT.failed);
}
process.stdout.on('error', onStandardOutputError);

// Nobody hears why it failed: the exit code still tells.
process.stderr.on('error', () => undefined);

program.parseAsync().catch(giveUp);
