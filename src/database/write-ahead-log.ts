import { closeSync, fdatasync, fstatSync, openSync } from 'node:fs';
import { promisify } from 'node:util';
import { watchName } from './sqlite';

/** Waits until what was written to a file is on its disk. */
export type SyncFile = (descriptor: number) => Promise<void>;

/** On macOS this is F_FULLFSYNC, which empties the drive's cache too. Source: libuv, src/unix/fs.c, uv__fs_fdatasync. */
const syncFile: SyncFile = promisify(fdatasync);

/** Whether SQLite itself could not sync a file: in a checkpoint, or the head of a log that it begins again. */
export const isSyncFailure = (error: unknown): boolean =>
  /^SQLITE_IOERR_(?:DIR_)?FSYNC$/.test(String((error as { code?: unknown } | null)?.code));

/**
 * Puts what SQLite appended to its `-wal` file on the disk, in libuv's thread pool; a commit with `synchronous=FULL` does
 * the same and blocks the event loop meanwhile. One sync runs at a time; the next one is for all who asked meanwhile.
 *
 * The descriptor is its own. Closing it ends no lock of SQLite's: it has none on this file (its VFS opens all files but the
 * database with UNIXFILE_NOLOCK, and the locks of WAL mode are on `-shm`).
 */
export class WriteAheadLog {
  private readonly descriptor: number;
  /** Tells whether the log's name still leads to the file that is synced here, and that SQLite writes. */
  readonly hasItsName: () => boolean;
  private running: Promise<void> | undefined;
  private next: Promise<void> | undefined;
  private failure: Error | undefined;

  /** @param path of a database that a connection has open in WAL mode, so that nobody removes the log */
  constructor(
    path: string,
    private readonly sync: SyncFile = syncFile,
  ) {
    const log = `${path}-wal`;
    // Open from before the first write on: Linux tells of a write-back that failed those descriptors that were open then.
    this.descriptor = openSync(log, 'r+');
    this.hasItsName = watchName(log, fstatSync(this.descriptor));
  }

  /** The sync that runs now; settles when it ends, and never rejects. */
  get inFlight(): Promise<void> | undefined {
    return this.running;
  }

  /**
   * Resolves when everything that was written to the log before the call is on the disk.
   *
   * A sync that failed is never tried again, and neither is one after it: the kernel may have dropped what it could not
   * write and marked it clean, and the next sync would succeed without it. Source: Rebello et al., Can Applications Recover
   * from fsync Failures?, USENIX ATC 2020; PostgreSQL ends itself for the same reason (data_sync_retry).
   * @throws the error of the sync that failed, now or earlier
   */
  written(): Promise<void> {
    if (!this.running) return this.start();
    this.next ??= this.running.then(() => this.start());
    return this.next;
  }

  /** Waits for the sync that runs, then closes the descriptor. */
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
