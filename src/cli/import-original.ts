import { existsSync } from 'node:fs';
import type { Command } from 'commander';
import type { Extension } from '../extensions';
import type { Settings } from '../settings';
import { CommandError, EXIT } from './command-error';
import { databaseName } from './connection';
import { refuseWhileServed, rethrowAsRetryable } from './database';
import { table } from './print';
import type { Terminal } from './terminal';

interface Options {
  dryRun?: true;
  json?: true;
}

/** What was imported, and what was not. */
interface Report {
  dry_run: boolean;
  agents: { taken_over: number; already_there: number };
  tasks: { taken_over: number; invalid: number; held_by_agents: number };
  ids_go_on_after: Record<string, number>;
  notes: { subject: string; note: string }[];
}

/** Rolls back a dry run, and carries its report out of the transaction. */
class DryRunDone extends Error {
  constructor(readonly report: Report) {
    super('dry run');
  }
}

/** Adds the command that imports the database of the original control plane. */
export function addImportOriginal(program: Command, terminal: Terminal): void {
  program
    .command('import-original <file>')
    .alias('import')
    .description("take over the agents and queued tasks of the original control plane's SQLite database")
    .option('--dry-run', 'report what would be imported, and change nothing')
    .option('--json', 'print the report as JSON')
    .addHelpText(
      'after',
      `
FILE is only read. Agents keep their ids and tokens, so they continue as soon as this program answers at their address.
Stop the original first, and this program's servers too. Run it again to import what is new since.
What is imported, what is not, and which settings suit the agents: docs/from-the-original.md.

Examples:
  $ CONTROL_PLANE_DATABASE_URL=sqlite:///var/lib/control-plane/new.db control-plane import-original /var/lib/control-plane/control-plane.db`,
    )
    .action(async (file: string, { dryRun, json }: Options) => {
      const settings = terminal.settings();
      const report = await importOriginal(settings, file, dryRun ?? false).catch(rethrowAsRetryable);
      if (json) terminal.printJson(JSON.stringify(report));
      else terminal.print(render(report));
      if (report.dry_run) terminal.note('Nothing was kept: --dry-run.');
    });
}

/**
 * Imports agents and queued tasks from a database of the original control plane, in one transaction.
 * @param path the original's database; it is only read
 * @throws DatabaseError the file is no such database, or the settings' database has other agents under the same ids
 * @throws DatabaseInUse a server has the settings' database
 * @throws CommandError servers are connected, or a dry run would need migrations
 */
export async function importOriginal(settings: Settings, path: string, dryRun: boolean): Promise<Report> {
  const { OriginalDatabase } = await import('../database/original.js');
  const { DatabaseError } = await import('../database/database-error.js');
  const { openDatabase } = await import('../database/open-database.js');
  const { continueIdsAfter } = await import('../database/backup.js');
  const { importAgents } = await import('../agents/imported-agents.js');
  const { importTasks, withKinds } = await import('../tasks/imported-tasks.js');
  const { loadExtensions } = await import('../extension-loader.js');
  const { findImport, recordImport } = await import('../operators/restore.js');
  const original = OriginalDatabase.open(path);
  try {
    await refuseWhileServed(settings.database);
    const extensions = loadExtensions(settings.extensions);
    const target = dryRun ? await dryRunTarget(settings, extensions) : settings;
    const database = await openDatabase(target, [], extensions);
    try {
      return await withKinds((kinds) =>
        database.write(async (tx) => {
          const through = await findImport(tx);
          const last = original.lastIds();
          const expiry = settings.agentTokenLifetimeMs === 0 ? null : tx.now + settings.agentTokenLifetimeMs;
          const agents = await importAgents(tx, original.agents(), through.agents, expiry);
          if (agents.clashes.length > 0)
            throw new DatabaseError(
              `The database has agents of its own under ids of the original's (${shortList(agents.clashes)}), and agents keep ` +
                'their ids: import into a new database. Nothing was changed.',
            );
          // Before tasks get new ids: the ids that agents still hold from the original must not name other tasks here.
          const after = await continueIdsAfter(tx, last, dryRun);
          const tasks = await importTasks(tx, kinds, original.queuedTasks(through.tasks));
          const report: Report = {
            dry_run: dryRun,
            agents: { taken_over: agents.taken, already_there: agents.known },
            tasks: { taken_over: tasks.taken, invalid: tasks.invalid, held_by_agents: original.countTaken() },
            ids_go_on_after: after,
            notes: [
              ...agents.notes.map(([id, text]) => ({ subject: `agent/${id}`, note: text })),
              ...tasks.notes.map(([id, text]) => ({ subject: `task/${id}`, note: text })),
            ],
          };
          if (dryRun) throw new DryRunDone(report);
          await recordImport(tx, database, {
            from: original.path,
            agents: report.agents,
            tasks: report.tasks,
            through: {
              agents: Math.max(through.agents, last.agents),
              tasks: Math.max(through.tasks, last.tasks),
            },
          });
          return report;
        }),
      );
    } finally {
      await database.close();
    }
  } catch (error) {
    if (error instanceof DryRunDone) return error.report;
    throw error;
  } finally {
    original.close();
  }
}

/**
 * Settings for a dry run that changes nothing. It works in memory if the database does not exist or is empty: migrating that
 * would leave tables behind.
 * @throws CommandError the database must be migrated first
 */
async function dryRunTarget(settings: Settings, extensions: readonly Extension[]): Promise<Settings> {
  const { missingMigrationsIn } = await import('../database/open-database.js');
  const { checkPath } = await import('../database/sqlite.js');
  const { database } = settings;
  if (database.type === 'sqlite') checkPath(database.path);
  const isNew = database.type === 'sqlite' && !existsSync(database.path);
  const lacks = isNew ? 'all' : await missingMigrationsIn(database, extensions);
  if (lacks === 'some')
    throw new CommandError(
      `${databaseName(database)} lacks migrations, which a dry run does not apply: control-plane migrate applies them.`,
      EXIT.failed,
    );
  return lacks === 'all' ? { ...settings, database: { type: 'sqlite', path: ':memory:' } } : settings;
}

function shortList(ids: readonly number[]): string {
  return `${ids.slice(0, 5).join(', ')}${ids.length > 5 ? ', ...' : ''}`;
}

function render(report: Report): string {
  const { agents, tasks } = report;
  const lines = [
    `${agents.taken_over} agents ${report.dry_run ? 'would be' : 'were'} taken over; ${agents.already_there} are there already.`,
    `${tasks.taken_over} queued tasks ${report.dry_run ? 'would be' : 'were'} taken over; ${tasks.invalid} are not valid here.`,
  ];
  if (tasks.held_by_agents > 0)
    lines.push(
      `${tasks.held_by_agents} tasks were given to agents, and the original does not say which are done: they stay behind.`,
    );
  if (report.notes.length > 0) lines.push('', table(report.notes, ['subject', 'note']));
  return lines.join('\n');
}
