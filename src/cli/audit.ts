import { type Command, InvalidArgumentError } from 'commander';
import type { DatabaseTarget } from '../settings';
import { type ApiOptions, apiCommand, callAndPrint, fetchText, listCommand, pageTable } from './api-command';
import { id, pastTimeOption } from './arguments';
import { get, queryString } from './client';
import { CommandError, EXIT } from './command-error';
import { databaseExists, requireMigrated } from './connection';
import { fields } from './print';
import type { Terminal } from './terminal';

/** Adds the commands for the audit log. */
export function addAudit(program: Command, terminal: Terminal): void {
  const audit = program.command('audit').description('list and verify the changes of operators');
  listCommand(
    audit,
    'list',
    'list changes, newest first',
    'audit list --subject agent/12',
    'audit list --action task.cancel',
  )
    .option('--action <action>', 'only this action, such as agent.disable')
    .option('--subject <subject>', 'only changes of this, such as agent/12')
    .option('--token <id>', 'only changes made with this token', id)
    .addOption(pastTimeOption('--since', 'from then on'))
    .addOption(pastTimeOption('--until', 'before then'))
    .action(({ action, subject, token, since, until, limit, cursor, ...options }) =>
      callAndPrint(
        terminal,
        options,
        get(
          `/v1/audit${queryString({ action, subject, operator_token_id: token, since, until, limit, cursor })}`,
        ),
        pageTable('id', 'at', 'operator_name', 'address', 'action', 'subject', 'before', 'after'),
      ),
    );
  apiCommand(
    audit,
    'verify',
    "verify the hash chain of the audit log; reads the database's file if it exists and no CONTROL_PLANE_URL is set",
    'audit verify',
    'audit verify --known 4711:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08',
  )
    .option(
      '--known <id:hash>',
      'an entry from an earlier verification, which the log must still contain',
      parseKnownEntry,
    )
    .action(async ({ known, ...options }: ApiOptions & { known?: string }) => {
      const settings = terminal.settings();
      const text =
        settings.url === undefined && databaseExists(settings.database)
          ? JSON.stringify(await verifyInFile(settings.database, known))
          : await fetchText(terminal, options, get(`/v1/audit/verification${queryString({ known })}`));
      if (options.json) terminal.printJson(text);
      else terminal.print(fields(JSON.parse(text)));
      if (!JSON.parse(text).intact)
        throw new CommandError('The audit log is not what was recorded.', EXIT.failed);
    });
}

function parseKnownEntry(text: string): string {
  if (!/^[1-9]\d{0,14}:[0-9a-f]{64}$/.test(text))
    throw new InvalidArgumentError('It must be last_id:last_hash of an earlier verification.');
  return text;
}

async function verifyInFile(target: DatabaseTarget, known: string | undefined): Promise<object> {
  const { inspectDatabase } = await import('../database/open-database.js');
  const { verifyLog } = await import('../operators/audit-log.js');
  return inspectDatabase(target, async (statements) => {
    await requireMigrated(statements, target);
    return verifyLog(statements, known);
  });
}
