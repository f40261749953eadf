import { type Command, InvalidArgumentError } from 'commander';
import type { DatabaseTarget } from '../settings';
import { isThere, requireMigrated } from './api';
import { id, pastOption } from './arguments';
import { EXIT, Failure } from './failure';
import { fields } from './print';
import type { Terminal } from './terminal';
import { type Common, fetchText, get, listing, listOf, perform, query, verb } from './verbs';

/** Adds the commands about the audit log. */
export function addAudit(program: Command, terminal: Terminal): void {
  const audit = program.command('audit').description('see who changed what');
  listing(
    audit,
    'list',
    'list changes, newest first',
    'audit list --subject agent/12',
    'audit list --action task.cancel',
  )
    .option('--action <action>', 'only this action, such as agent.disable')
    .option('--subject <subject>', 'only changes of this, such as agent/12')
    .option('--token <id>', 'only changes made with this token', id)
    .addOption(pastOption('--since', 'from then on'))
    .addOption(pastOption('--until', 'before then'))
    .action(({ action, subject, token, since, until, limit, cursor, ...options }) =>
      perform(
        terminal,
        options,
        get(`/v1/audit${query({ action, subject, operator_token_id: token, since, until, limit, cursor })}`),
        listOf('id', 'at', 'operator_name', 'address', 'action', 'subject', 'before', 'after'),
      ),
    );
  verb(
    audit,
    'verify',
    "follow the chain of the audit log; reads the database's file if it is there and no CONTROL_PLANE_URL is set",
    'audit verify',
    'audit verify --known 4711:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08',
  )
    .option(
      '--known <id:hash>',
      'an entry that was kept elsewhere, which the log must still hold',
      knownEntry,
    )
    .action(async ({ known, ...options }: Common & { known?: string }) => {
      const settings = terminal.settings();
      const text =
        settings.url === undefined && isThere(settings.database)
          ? JSON.stringify(await verifyFile(settings.database, known))
          : await fetchText(terminal, options, get(`/v1/audit/verification${query({ known })}`));
      if (options.json) terminal.printJson(text);
      else terminal.print(fields(JSON.parse(text)));
      if (!JSON.parse(text).intact) throw new Failure('The audit log is not what was recorded.', EXIT.failed);
    });
}

function knownEntry(text: string): string {
  if (!/^[1-9]\d{0,14}:[0-9a-f]{64}$/.test(text))
    throw new InvalidArgumentError('It must be last_id:last_hash as an earlier verification said.');
  return text;
}

async function verifyFile(target: DatabaseTarget, known: string | undefined): Promise<object> {
  // Loaded here, because it takes longer to load than most commands take.
  const { inspectDatabase } = await import('../database/open-database.js');
  const { verifyLog } = await import('../operators/audit-log.js');
  return inspectDatabase(target, async (statements) => {
    await requireMigrated(statements, target);
    return verifyLog(statements, known);
  });
}
