import { isBackup, passOverIds } from '../database/backup';
import type { Database } from '../database/database';
import type { Transaction } from '../database/statements';
import { AuditLog, PROCESS } from './audit-log';

/** On the first start on a backup, before anything else is written: settles the restore. @returns whether it was one */
export async function settleRestore(database: Database): Promise<boolean> {
  if (!(await database.read(isBackup))) return false;
  await database.write((tx) => recordRestore(tx, database));
  return true;
}

/**
 * After the data was set back to an earlier state: sees to it that no id is given a second time, and records the restore.
 * @returns the ids after which each table goes on
 */
export async function recordRestore(tx: Transaction, database: Database): Promise<Record<string, number>> {
  const after = await passOverIds(tx, tx.now);
  await new AuditLog(database).record(tx, PROCESS, {
    action: 'database.restore',
    subject: 'database',
    after: { ids_go_on_after: after },
  });
  return after;
}

/** Records, in the database that the data was copied to, where it came from. */
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

/** How far an import from the original control plane went: the last of its ids that were covered. */
export interface ImportRecord {
  readonly through: { readonly agents: number; readonly tasks: number };
}

/** Tells how far the imports so far went; nowhere, if there was none. */
export async function findImport(tx: Transaction): Promise<ImportRecord['through']> {
  const row = await tx.first<{ after: string }>(
    `SELECT "after" FROM audit_log WHERE action = $1 ORDER BY id DESC LIMIT 1`,
    IMPORT,
  );
  return row ? (JSON.parse(row.after) as ImportRecord).through : { agents: 0, tasks: 0 };
}

/** Records what was taken over from the original control plane, and how far that went. */
export async function recordImport(
  tx: Transaction,
  database: Database,
  done: ImportRecord & Readonly<Record<string, unknown>>,
): Promise<void> {
  await new AuditLog(database).record(tx, PROCESS, { action: IMPORT, subject: 'database', after: done });
}

const IMPORT = 'database.import-original';
