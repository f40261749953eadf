import type { Command } from 'commander';
import { signingKeysFile } from '../settings';
import { EXIT, Failure } from './failure';
import { fields } from './print';
import type { Terminal } from './terminal';

/** Adds the commands that are the server, and those for its database: serve, migrate, backup. */
export function addDatabase(program: Command, terminal: Terminal): void {
  // The application is loaded only where it is needed: it takes longer than most commands.
  program
    .command('serve')
    .description('migrate the database, then serve until SIGTERM or SIGINT')
    .addHelpText('after', '\nEvery setting is an environment variable; see docs/control-plane-deploy.md.')
    .action(async () => {
      const settings = terminal.settings();
      terminal.beginServing();
      const main = await import('../main.js');
      await main.serve(settings).catch(main.giveUp);
    });
  program
    .command('migrate')
    .description('apply the migrations and end')
    .action(async () => {
      const settings = terminal.settings();
      const main = await import('../main.js');
      terminal.print(await main.migrateOnly(settings));
    });
  program
    .command('backup <file>')
    .description(
      'copy the database, whether or not a server runs; the copy is checked before it gets its name',
    )
    .option('--force', 'replace a backup of that name; no other file is ever replaced')
    .option('--json', 'say what was written as JSON')
    .addHelpText(
      'after',
      `
The database is the one of CONTROL_PLANE_DATABASE_URL. How to restore: docs/control-plane-recover.md.

Examples:
  $ control-plane backup /backups/control-plane-$(date +%F).db`,
    )
    .action(async (file: string, { force = false, json }: { force?: boolean; json?: true }) => {
      const settings = terminal.settings();
      const { database: target } = settings;
      if (target.type !== 'sqlite')
        throw new Failure(
          'A PostgreSQL database is backed up by pg_dump; see docs/control-plane-operate.md.',
          EXIT.misused,
        );
      const { backUp } = await import('../database/backup.js');
      const signal = terminal.interruption;
      const backup = await backUp(target, file, { replace: force, signal, settings }).catch(
        (error: unknown) => {
          throw signal.aborted ? new Failure('Interrupted; no backup was made.', EXIT.failed) : error;
        },
      );
      if (json) terminal.printJson(JSON.stringify(backup));
      else terminal.print(fields(backup));
      const key = signingKeysFile(settings);
      terminal.note(
        `Not in it, for they are secrets: keep ${key} too, in another place, and the admin's token where you need it.`,
      );
    });
}
