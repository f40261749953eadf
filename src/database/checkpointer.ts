import { openSync } from 'node:fs';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';

/** How far the log has grown, and how much of that is in the database file, in pages. */
export interface LogState {
  readonly log: number;
  readonly checkpointed: number;
}

/** What the thread is told. */
export type CheckpointOrder = 'round' | 'last round' | 'close';

/** What the thread answers if it failed. */
export interface CheckpointFailure {
  readonly message: string;
  /** Whether the log or the database could not be synced. */
  readonly isUnsynced: boolean;
}

/** How many pages of the log, 32 MiB, are copied at a time: a page that changes often is copied once for many commits. */
const PAGES = 8_000;

/** So few pages are copied while commits wait. */
const LAST_PAGES = 500;

/**
 * Copies the log into the database file, in a thread of its own that is started when there is first something to do.
 *
 * Under steady load the log never ends: whatever is committed while pages are copied comes after them, and SQLite begins
 * the log from its start again only if all of it is in the database file. So the last round has commits wait, for the few
 * pages that are left by then.
 */
export class Checkpointer {
  private worker: Worker | undefined;
  /** Of the database file. */
  private descriptor: number | undefined;
  private answered: ((failure?: CheckpointFailure) => void) | undefined;
  private running: Promise<void> | undefined;
  /** How much was left of the log before the last round; undefined if none is due. */
  private leftBefore: number | undefined;
  /** How long the log was when it was copied last. Much of it may be left then: what somebody reads can't be copied. */
  private triedAt = 0;
  private stopped = false;

  /**
   * @param path of the database
   * @param look asks the writer's connection for the state of the log
   * @param onSyncFailed called if the log or the database could not be synced: what is on the disk is unknown then
   * @param pages how many pages of the log are copied at a time
   */
  constructor(
    private readonly path: string,
    private readonly look: () => Promise<LogState>,
    private readonly onSyncFailed: (error: Error) => void,
    private readonly pages = PAGES,
  ) {}

  /** To be called after each commit. Resolves when the next one may begin: nearly always at once. */
  async afterCommit(): Promise<void> {
    if (this.running || this.stopped) return;
    // If that fails, so will the next commit.
    const state = await this.look().catch(() => undefined);
    if (!state) return;
    const { log, checkpointed } = state;
    const left = log - checkpointed;
    // SQLite has begun the log again.
    if (log < this.triedAt) this.triedAt = 0;
    if (this.leftBefore === undefined ? log - Math.max(checkpointed, this.triedAt) < this.pages : left === 0)
      return;
    if (this.leftBefore === undefined || (left > LAST_PAGES && left < this.leftBefore / 2)) {
      this.leftBefore = left;
      this.running = this.checkpoint('round').finally(() => {
        this.running = undefined;
      });
      return;
    }
    this.leftBefore = undefined;
    this.triedAt = log;
    await this.checkpoint('last round');
  }

  /** Waits for the checkpoint that runs, and ends the thread. */
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
   * Copies what is in the log. If that fails, nothing is lost, for the log is kept, and it is tried again when the log has
   * grown; not if a sync failed.
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
    // Never closed, for that would end the locks that SQLite has on the file through descriptors of its own:
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
