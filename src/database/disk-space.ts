import { randomFillSync } from 'node:crypto';
import { existsSync, rmSync, statfsSync, statSync } from 'node:fs';
import { open, rename, rm, statfs } from 'node:fs/promises';
import { dirname } from 'node:path';

const MIB = 1024 * 1024;
/** The interval of checks, in milliseconds. */
const CHECK_MS = 1_000;
/**
 * The size of the reserve: enough for hours of commits, because the log does not grow any more once it has its size.
 */
export const RESERVE_BYTES = 16 * MIB;

/** Returns how many bytes are free for this process on the disk of a folder. */
export type FreeSpace = (folder: string) => Promise<number>;

const freeSpaceOf: FreeSpace = async (folder) => {
  const { bavail, bsize } = await statfs(folder);
  return bavail * bsize;
};

/**
 * Watches the free space on the disk of a SQLite file, and keeps a reserve file beside it. It deletes that when the
 * disk is full, so that operations for an emergency can still be written.
 */
export class DiskSpace {
  private readonly reserve: string;
  private readonly folder: string;
  private timer: NodeJS.Timeout | undefined;
  private checking: Promise<void> | undefined;
  private low = false;

  /**
   * @param path the database's file
   * @param minFree the space is low below this number of bytes; 0 switches the watch and the reserve off
   */
  constructor(
    path: string,
    private readonly minFree: number,
    private readonly freeSpace: FreeSpace = freeSpaceOf,
  ) {
    this.folder = dirname(path);
    this.reserve = `${path}-reserve`;
  }

  /** Whether less than the minimum is free. */
  get isLow(): boolean {
    return this.low;
  }

  /** Returns how many bytes are free for this process. */
  freeBytes(): Promise<number> {
    return this.freeSpace(this.folder);
  }

  /** Checks once, then at the interval. */
  async start(): Promise<void> {
    if (this.minFree === 0) {
      await rm(this.reserve, { force: true });
      return;
    }
    await this.check();
    this.timer = setInterval(() => {
      this.checking ??= this.check().finally(() => {
        this.checking = undefined;
      });
    }, CHECK_MS).unref();
  }

  async stop(): Promise<void> {
    clearInterval(this.timer);
    await this.checking;
  }

  /** Deletes the reserve if the disk is full. @returns whether there is more room now */
  release(): boolean {
    if (this.minFree === 0) return false;
    this.low = true;
    const { bavail, bsize } = statfsSync(this.folder);
    // The cause is different, such as a quota or a broken disk.
    if (!existsSync(this.reserve) || bavail * bsize > RESERVE_BYTES) return false;
    rmSync(this.reserve, { force: true });
    return true;
  }

  private async check(): Promise<void> {
    try {
      const free = await this.freeSpace(this.folder);
      // Bulk writes must not use the space that the reserve has freed.
      const wanted = this.minFree + (existsSync(this.reserve) ? 0 : RESERVE_BYTES);
      // Hysteresis, so that the state does not change at every check.
      this.low = free < wanted * (this.low ? 1.1 : 1);
      if (free > (this.minFree + RESERVE_BYTES) * 1.1) await this.createReserve();
    } catch {
      // If the free space is unknown, it does not count as low; a write will fail if the disk is full.
    }
  }

  /** Creates the reserve if it does not exist. */
  private async createReserve(): Promise<void> {
    if (statSync(this.reserve, { throwIfNoEntry: false })?.size === RESERVE_BYTES) return;
    const unfinished = `${this.reserve}.new`;
    await rm(unfinished, { force: true });
    try {
      const file = await open(unfinished, 'wx', 0o600);
      try {
        // Random bytes: zeros, or only a length, would take no space on some file systems.
        const part = Buffer.allocUnsafe(MIB);
        for (let written = 0; written < RESERVE_BYTES; written += MIB)
          await file.writeFile(randomFillSync(part));
        await file.sync();
      } finally {
        await file.close();
      }
      await rename(unfinished, this.reserve);
    } finally {
      await rm(unfinished, { force: true });
    }
  }
}
