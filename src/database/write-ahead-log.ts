import { closeSync, fdatasync, fstatSync, openSync } from 'node:fs';
import { promisify } from 'node:util';
import { watchPath } from './sqlite';

/** Syncs the writes of a file to its disk. */
export type SyncFile = (descriptor: number) => Promise<void>;

/**
 * On macOS this is F_FULLFSYNC, which flushes the drive's cache too. Source: libuv, src/unix/fs.c, uv__fs_fdatasync.
 */
const syncFile: SyncFile = promisify(fdatasync);

/** Whether SQLite itself could not sync a file: in a checkpoint, or the header of a log that it restarts. */
export const isSyncFailure = (error: unknown): boolean =>
  /^SQLITE_IOERR_(?:DIR_)?FSYNC$/.test(String((error as { code?: unknown } | null)?.code));

/**
 * Syncs SQLite's `-wal` file in libuv's thread pool; a commit with `synchronous=FULL` would do the same and block the
 * event loop. One sync runs at a time; callers that arrive meanwhile share the next one.
 *
 * It has its own descriptor. Closing it ends no lock of SQLite, which has none on this file (its VFS opens all files
 * except the database with UNIXFILE_NOLOCK, and the locks of WAL mode are on `-shm`).
 */
export class WriteAheadLog {
  private readonly descriptor: number;
  /** Whether the log's name still leads to the file that is synced here, and that SQLite writes. */
  readonly isInPlace: () => boolean;
  private running: Promise<void> | undefined;
  private next: Promise<void> | undefined;
  private failure: Error | undefined;

  /** @param path of a database that a connection has open in WAL mode, so that nobody removes the log */
  constructor(
    path: string,
    private readonly sync: SyncFile = syncFile,
  ) {
    const log = `${path}-wal`;
    // Open before the first write: Linux reports a failed write-back only to descriptors that were open then.
    this.descriptor = openSync(log, 'r+');
    this.isInPlace = watchPath(log, fstatSync(this.descriptor));
  }

  /** The running sync; resolves when it ends, and never rejects. */
  get inFlight(): Promise<void> | undefined {
    return this.running;
  }

  /**
   * Resolves when everything that was written to the log before the call is on the disk. After a failed sync no other
   * one is tried: the kernel may have dropped the pages that it could not write and marked them clean, and the next
   * sync would succeed without them. Source: Rebello et al., Can Applications Recover from fsync Failures?, USENIX
   * ATC 2020; PostgreSQL ends itself for the same reason (data_sync_retry).
   * @throws the error of the failed sync, now or earlier
   */
  written(): Promise<void> {
    if (!this.running) return this.start();
    this.next ??= this.running.then(() => this.start());
    return this.next;
  }

  /** Waits for the running sync, then closes the descriptor. */
  async close(): Promise<void> {
    while (this.running) await this.running;
    closeSync(this.descriptor);
  }

  private async start(): Promise<void> {
    this.next = undefined;
    if (this.failure) throw this.failure;
    const sync = this.sync(this.descriptor).catch((error: Error) => {
      this.failure = error;
    });
    this.running = sync;
    await sync;
    this.running = undefined;
    if (this.failure) throw this.failure;
  }
}
