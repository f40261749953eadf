import { fdatasyncSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import Sqlite from 'better-sqlite3';
import type { CheckpointFailure, CheckpointOrder } from './checkpointer';
import { isSyncFailure } from './write-ahead-log';

// The thread of the Checkpointer: each message except `close` requests one checkpoint.
const { path, descriptor } = workerData as { path: string; descriptor: number };
const database = new Sqlite(path, { fileMustExist: true, timeout: 0 });
// A checkpoint syncs the log before it copies from it, and the database before the log may restart. Source:
// walCheckpoint() in SQLite's wal.c, and https://www.sqlite.org/pragma.html#pragma_synchronous
database.pragma('synchronous = NORMAL');
database.pragma('wal_autocheckpoint = 0');
database.pragma('checkpoint_fullfsync = 1');
const copyPages = database.prepare('PRAGMA wal_checkpoint(PASSIVE)');

function checkpoint(isLast: boolean): CheckpointFailure | undefined {
  try {
    copyPages.get();
    // SQLite syncs the file only with the last page of the log, while commits wait. Sync it here, so that they wait
    // less.
    if (!isLast) fdatasyncSync(descriptor);
    return undefined;
  } catch (error) {
    const isUnsynced = isSyncFailure(error) || (error as NodeJS.ErrnoException).syscall === 'fdatasync';
    return { message: (error as Error).message, isUnsynced };
  }
}

parentPort?.on('message', (order: CheckpointOrder) => {
  if (order !== 'close') {
    parentPort?.postMessage(checkpoint(order === 'last round'));
    return;
  }
  database.close();
  parentPort?.close();
});
