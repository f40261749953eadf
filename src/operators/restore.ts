import { isBackup, skipIds } from '../database/backup';
import type { Database } from '../database/database';
import type { Transaction } from '../database/statements';
import { selectAfterOfLast } from './audit.queries';
import { AuditLog, PROCESS } from './audit-log';

/**
 * Completes a restore at the first start on a backup, before anything else is written.
 * @returns whether the database was a backup
 */
export async function settleRestore(database: Database): Promise<boolean> {
  if (!(await database.read(isBackup))) return false;
  await database.write((tx) => recordRestore(tx, database));
  return true;
}

/**
 * Records a restore, and skips ids so that none is used twice: the data is older than the ids that clients have seen.
 * @returns the last skipped id of each table
 */
export async function recordRestore(tx: Transaction, database: Database): Promise<Record<string, number>> {
  const after = await skipIds(tx, tx.now);
  await new AuditLog(database).record(tx, PROCESS, {
    action: 'database.restore',
    subject: 'database',
    after: { ids_go_on_after: after },
  });
  return after;
}

/** Records in the target database of a transfer where its data came from. */
export async function recordTransfer(
  tx: Transaction,
  database: Database,
  from: string,
  tables: readonly { table: string; rows: number }[],
): Promise<void> {
  await new AuditLog(database).record(tx, PROCESS, {
    action: 'database.transfer',
    subject: 'database',
    after: { from, rows: Object.fromEntries(tables.map(({ table, rows }) => [table, rows])) },
  });
}

/** The progress of imports from the original control plane: the last ids that were imported. */
export interface ImportRecord {
  readonly through: { readonly agents: number; readonly tasks: number };
}

/** Returns the last ids that earlier imports covered; zeros if there was none. */
export async function findImport(tx: Transaction): Promise<ImportRecord['through']> {
  const after = await selectAfterOfLast(tx, IMPORT);
  return after === undefined ? { agents: 0, tasks: 0 } : (JSON.parse(after) as ImportRecord).through;
}

/** Records what was imported from the original control plane, up to which ids. */
export async function recordImport(
  tx: Transaction,
  database: Database,
  done: ImportRecord & Readonly<Record<string, unknown>>,
): Promise<void> {
  await new AuditLog(database).record(tx, PROCESS, { action: IMPORT, subject: 'database', after: done });
}

const IMPORT = 'database.import-original';
