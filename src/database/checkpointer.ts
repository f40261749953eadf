import { openSync } from 'node:fs';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';

/** The length of the log, and how much of it is in the database file, in pages. */
export interface LogState {
  readonly log: number;
  readonly checkpointed: number;
}

/** A message to the thread. */
export type CheckpointOrder = 'round' | 'last round' | 'close';

/** The thread's answer if it failed. */
export interface CheckpointFailure {
  readonly message: string;
  /** Whether the log or the database could not be synced. */
  readonly isUnsynced: boolean;
}

/** Pages of the log that are copied at a time, 32 MiB: a page that changes often is copied once for many commits. */
const PAGES = 8_000;

/** The most pages that are copied while commits wait. */
const LAST_PAGES = 500;

/**
 * Copies the log into the database file, in a thread that is started when it is first needed.
 *
 * Under steady load the log would grow without end: commits during a copy are added after it, and SQLite restarts the
 * log only if all of it is in the database file. So commits wait during the last round, which copies only a few pages.
 */
export class Checkpointer {
  private worker: Worker | undefined;
  /** Of the database file. */
  private descriptor: number | undefined;
  private answered: ((failure?: CheckpointFailure) => void) | undefined;
  private running: Promise<void> | undefined;
  /** How many pages of the log were left before the last round; undefined if no round is due. */
  private pagesLeft: number | undefined;
  /**
   * The length of the log at the last checkpoint. Pages may be left: those that an open snapshot needs can't be
   * copied.
   */
  private copiedLength = 0;
  private stopped = false;

  /**
   * @param path of the database
   * @param readState reads the state of the log through the writer's connection
   * @param onSyncFailed called if the log or the database could not be synced: the state of the disk is unknown then
   * @param pages the number of pages of the log that are copied at a time
   */
  constructor(
    private readonly path: string,
    private readonly readState: () => Promise<LogState>,
    private readonly onSyncFailed: (error: Error) => void,
    private readonly pages = PAGES,
  ) {}

  /**
   * Starts a checkpoint if one is due; call it after each commit. Resolves when the next commit may begin: nearly
   * always at once.
   */
  async afterCommit(): Promise<void> {
    if (this.running || this.stopped) return;
    // If this fails, the next commit fails too, and reports it.
    const state = await this.readState().catch(() => undefined);
    if (!state) return;
    const { log, checkpointed } = state;
    const left = log - checkpointed;
    // SQLite has restarted the log.
    if (log < this.copiedLength) this.copiedLength = 0;
    if (
      this.pagesLeft === undefined ? log - Math.max(checkpointed, this.copiedLength) < this.pages : left === 0
    )
      return;
    if (this.pagesLeft === undefined || (left > LAST_PAGES && left < this.pagesLeft / 2)) {
      this.pagesLeft = left;
      this.running = this.checkpoint('round').finally(() => {
        this.running = undefined;
      });
      return;
    }
    this.pagesLeft = undefined;
    this.copiedLength = log;
    await this.checkpoint('last round');
  }

  /** Waits for the running checkpoint, and ends the thread. */
  async stop(): Promise<void> {
    this.stopped = true;
    await this.running;
    const { worker } = this;
    if (!worker) return;
    const ended = new Promise((resolve) => worker.once('exit', resolve));
    worker.ref();
    worker.postMessage('close');
    await ended;
  }

  /**
   * Copies the log. If that fails, nothing is lost, because the log is kept; the copy is retried when the log has
   * grown, unless a sync failed.
   */
  private async checkpoint(order: 'round' | 'last round'): Promise<void> {
    let worker: Worker;
    try {
      worker = this.thread();
    } catch {
      // Out of descriptors, or of threads.
      return;
    }
    const failure = await new Promise<CheckpointFailure | undefined>((resolve) => {
      this.answered = resolve;
      worker.ref();
      worker.postMessage(order);
    });
    worker.unref();
    if (failure?.isUnsynced) this.onSyncFailed(new Error(failure.message));
  }

  private thread(): Worker {
    if (this.worker) return this.worker;
    // Never closed, because that would end the locks that SQLite has on the file through its own descriptors:
    // https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_
    this.descriptor ??= openSync(this.path, 'r+');
    const worker = new Worker(join(__dirname, 'checkpoint-worker.js'), {
      workerData: { path: this.path, descriptor: this.descriptor },
    });
    const ended = (): void => {
      if (this.worker !== worker) return;
      this.worker = undefined;
      this.answered?.({ message: 'the thread has ended', isUnsynced: false });
    };
    worker.on('message', (failure?: CheckpointFailure) => this.answered?.(failure));
    worker.on('error', ended).on('exit', ended);
    this.worker = worker;
    return worker;
  }
}
