import { fstatSync, write as writeToFile } from 'node:fs';
import type { DestinationStream } from 'pino';
import { Clock, toTimestamp } from '../clock';

/** How much of the log may wait in memory, in bytes; further lines are dropped and counted. */
const MAX_WAITING = 4 * 1024 * 1024;
/** The most bytes in one write. */
const MAX_CHUNK = 64 * 1024;
/** Lines are written in batches: at this many bytes, or after this time. */
const BATCH_BYTES = 16_000;
const BATCH_MS = 100;
/** When a failed write is retried, in ms: a full disk stays full for a while, a full pipe does not. */
const RETRY_MS = 1_000;
const RETRY_BUSY_MS = 50;
/** How long a flush waits at most, in ms. */
const FLUSH_MS = 500;

/** Where the log is written. */
export interface Sink {
  /** Whether a write may block a thread, which would keep the process from ending. */
  readonly blocks: boolean;
  /** Writes bytes without blocking the event loop, and reports how many were written. */
  write(bytes: Buffer, done: (error: NodeJS.ErrnoException | null, written: number) => void): void;
}

/**
 * Writes the log to standard output. It never blocks, never throws and uses limited memory, even if the disk is full or the
 * reader stalls or goes away. When writing works again, one line says how many lines were dropped.
 */
export class LogOutput implements DestinationStream {
  private lines: string[] = [];
  private waitingBytes = 0;
  /** The bytes that are being written, or must be retried. */
  private chunk: Buffer | undefined;
  private writing = false;
  private failing = false;
  private dropped = 0;
  private droppedSinceStart = 0;
  private timer: NodeJS.Timeout | undefined;
  private flushers: (() => void)[] = [];

  constructor(
    private readonly sink: Sink = standardOutput(),
    private readonly maxWaiting = MAX_WAITING,
    private readonly clock = new Clock(),
  ) {}

  /** True while a thread is writing; forever on a disk that hangs or a terminal that is stopped. */
  get hangs(): boolean {
    return this.writing && this.sink.blocks;
  }

  /** How many lines were dropped since the start. */
  get droppedTotal(): number {
    return this.droppedSinceStart;
  }

  /** Accepts a line; drops it if too many bytes wait. */
  write(line: string): void {
    const size = Buffer.byteLength(line);
    if (this.waitingBytes + size > this.maxWaiting) {
      this.dropped++;
      this.droppedSinceStart++;
      return;
    }
    this.lines.push(line);
    this.waitingBytes += size;
    if (this.writing || this.failing) return;
    if (this.waitingBytes >= BATCH_BYTES) this.writeNext();
    else this.timer ??= setTimeout(() => this.writeNext(), BATCH_MS);
  }

  /** Calls back once: when everything is written, when writing fails, or after 500 ms. */
  flush(done: (error?: Error) => void = () => undefined): void {
    const settle = () => {
      clearTimeout(deadline);
      this.flushers = this.flushers.filter((each) => each !== settle);
      done();
    };
    const deadline = setTimeout(settle, FLUSH_MS);
    this.flushers.push(settle);
    this.writeNext();
  }

  private writeNext(): void {
    if (this.writing) return;
    clearTimeout(this.timer);
    this.timer = undefined;
    this.chunk ??= this.takeChunk();
    if (!this.chunk) {
      this.settleFlushes();
      return;
    }
    this.writing = true;
    this.sink.write(this.chunk, (error, written) => this.onWritten(error, written));
  }

  private onWritten(error: NodeJS.ErrnoException | null, written: number): void {
    this.writing = false;
    this.failing = error !== null;
    if (error) {
      const isBusy = error.code === 'EAGAIN';
      this.timer = setTimeout(() => this.writeNext(), isBusy ? RETRY_BUSY_MS : RETRY_MS).unref();
      if (!isBusy) this.settleFlushes();
      return;
    }
    this.waitingBytes -= written;
    const rest = this.chunk?.subarray(written);
    // The rest of a partly written chunk comes first, so that no line stays torn.
    this.chunk = rest && rest.length > 0 ? rest : undefined;
    if (this.chunk === undefined) this.reportDropped();
    this.writeNext();
  }

  /** Reports dropped lines once half of the memory is free: otherwise a slow reader would get a report every few lines. */
  private reportDropped(): void {
    if (this.dropped === 0 || this.waitingBytes > this.maxWaiting / 2) return;
    const { dropped } = this;
    this.dropped = 0;
    this.write(
      `${JSON.stringify({ level: 'warn', time: toTimestamp(this.clock.now()), dropped, message: 'log lines were dropped: the output did not take them' })}\n`,
    );
  }

  private takeChunk(): Buffer | undefined {
    if (this.lines.length === 0) return undefined;
    let count = 0;
    // The length in UTF-16 units is close enough for a limit.
    for (let size = 0; count < this.lines.length && (count === 0 || size < MAX_CHUNK); count++)
      size += this.lines[count]?.length ?? 0;
    return Buffer.from(this.lines.splice(0, count).join(''));
  }

  private settleFlushes(): void {
    for (const settle of [...this.flushers]) settle();
  }
}

const ignoreError = (): void => undefined;

/** Discards everything. */
const NOWHERE: Sink = {
  blocks: false,
  write: (bytes, done) => process.nextTick(done, null, bytes.length),
};

/**
 * Chooses how to write to standard output. A pipe or socket uses Node's stream, which waits for its reader without a thread:
 * a write in a thread would wait in the kernel, and the process could not end before the reader continues.
 */
function standardOutput(): Sink {
  try {
    const stats = fstatSync(1);
    if (!stats.isFIFO() && !stats.isSocket())
      return { blocks: true, write: (bytes, done) => writeToFile(1, bytes, done) };
    const { stdout } = process;
    // Each write reports its own error. Added once for the process, even with several loggers.
    if (!stdout.listeners('error').includes(ignoreError)) stdout.on('error', ignoreError);
    return {
      blocks: false,
      write: (bytes, done) => {
        stdout.write(bytes, (error) => done(error ?? null, error ? 0 : bytes.length));
      },
    };
  } catch {
    // Standard output is closed.
    return NOWHERE;
  }
}
