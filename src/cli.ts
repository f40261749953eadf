#!/usr/bin/env node
import './node-version';
<<<<<<< HEAD
import { readFileSync } from 'node:fs';
import { runCommandLine } from './cli/command-line';
import { EXIT } from './cli/failure';
=======
import { Command, CommanderError } from 'commander';
import { addDoctor } from './cli/doctor';
import { EXIT, Failure } from './cli/failure';
import { addImportOriginal } from './cli/import-original';
import { addMoving } from './cli/move';
import { addOperatorsCommands } from './cli/operate';
import { fields, note, print } from './cli/print';
import { DatabaseError } from './database/database-error';
import { ExtensionError } from './extensions';
import { readSettings, SettingsError, signingKeysFile } from './settings';
>>>>>>> eb613f3 (feat(import-original): take over agents and queued tasks; refuse a foreign database before touching it)

// Nobody else may read what is made here: databases, keys, backups.
process.umask(0o077);

/** Ends the command: if the reader has had enough, as `head` does, that is not a failure. */
function onStandardOutputError(error: NodeJS.ErrnoException): void {
  process.exit(error.code === 'EPIPE' ? EXIT.ok : EXIT.failed);
}
process.stdout.on('error', onStandardOutputError);

<<<<<<< HEAD
=======
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
addImportOriginal(program);
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

>>>>>>> eb613f3 (feat(import-original): take over agents and queued tasks; refuse a foreign database before touching it)
// Nobody hears why it failed: the exit code still tells.
process.stderr.on('error', () => undefined);

/** From when it is asked for, the signals are the command's to act on. */
function interruption(): AbortSignal {
  const controller = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => controller.abort());
  return controller.signal;
}

runCommandLine(process.argv.slice(2), {
  stdout: process.stdout,
  stderr: process.stderr,
  readInput: () => readFileSync(0),
  interruption,
  // A server goes on if nobody reads its log.
  onServe: () => process.stdout.off('error', onStandardOutputError),
}).then((code) => {
  // A server that could not start has set its own.
  if (code !== EXIT.ok) process.exitCode = code;
});
