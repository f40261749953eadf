import type { Clock } from '../clock';
import { isBackup, passOverIds } from '../database/backup';
import type { Database } from '../database/database';
import { AuditLog, PROCESS } from './audit-log';

/**
 * On the first start on a backup, before anything else is written: sees to it that no id is given a second time, and
 * records the restore, in one transaction.
 * @returns whether it was a backup
 */
export async function settleRestore(database: Database, clock: Clock): Promise<boolean> {
  if (!(await database.read(isBackup))) return false;
  await database.write(async (tx) => {
    const after = await passOverIds(tx, clock.now());
    await new AuditLog(database, clock).record(tx, PROCESS, {
      action: 'database.restore',
      subject: 'database',
      after: { ids_go_on_after: after },
    });
  });
  return true;
}
