import { randomFillSync } from 'node:crypto';
import { existsSync, rmSync, statfsSync, statSync } from 'node:fs';
import { open, rename, rm, statfs } from 'node:fs/promises';
import { dirname } from 'node:path';

const MIB = 1024 * 1024;
/** How often it is looked how much is free, in milliseconds. */
const LOOK_MS = 1_000;
/** What is kept for when the disk is full: the commits of hours, for the log is used again once it has its size. */
export const RESERVE_BYTES = 16 * MIB;

/** Tells how many bytes are free for this process on the disk of a folder. */
export type FreeSpace = (folder: string) => Promise<number>;

const freeSpaceOf: FreeSpace = async (folder) => {
  const { bavail, bsize } = await statfs(folder);
  return bavail * bsize;
};

/**
 * Watches how much is free on the disk of a SQLite file, and keeps a reserve beside it: a file that is deleted when the
 * disk is full, so that what is needed in an emergency can still be written.
 */
export class DiskSpace {
  private readonly reserve: string;
  private readonly folder: string;
  private timer: NodeJS.Timeout | undefined;
  private looking: Promise<void> | undefined;
  private low = false;

  /**
   * @param path the database's file
   * @param minFree the number of bytes below which the space counts as low; 0 means that nothing is watched or kept
   */
  constructor(
    path: string,
    private readonly minFree: number,
    private readonly freeSpace: FreeSpace = freeSpaceOf,
  ) {
    this.folder = dirname(path);
    this.reserve = `${path}-reserve`;
  }

  /** Whether less is free than there should be. */
  get isLow(): boolean {
    return this.low;
  }

  /** How many bytes are free for this process. */
  freeBytes(): Promise<number> {
    return this.freeSpace(this.folder);
  }

  /** Looks once, then begins to watch. */
  async start(): Promise<void> {
    if (this.minFree === 0) {
      await rm(this.reserve, { force: true });
      return;
    }
    await this.look();
    this.timer = setInterval(() => {
      this.looking ??= this.look().finally(() => {
        this.looking = undefined;
      });
    }, LOOK_MS).unref();
  }

  async stop(): Promise<void> {
    clearInterval(this.timer);
    await this.looking;
  }

  /** Gives the reserve up if the disk is full. @returns whether there is more room now */
  release(): boolean {
    if (this.minFree === 0) return false;
    this.low = true;
    const { bavail, bsize } = statfsSync(this.folder);
    // Something else is wrong with the disk, such as a quota or a cable.
    if (!existsSync(this.reserve) || bavail * bsize > RESERVE_BYTES) return false;
    rmSync(this.reserve, { force: true });
    return true;
  }

  private async look(): Promise<void> {
    try {
      const free = await this.freeSpace(this.folder);
      // What the reserve freed when it was given up is not for everybody.
      const wanted = this.minFree + (existsSync(this.reserve) ? 0 : RESERVE_BYTES);
      // A little more than the watermark ends it, so that it is not crossed at every look.
      this.low = free < wanted * (this.low ? 1.1 : 1);
      if (free > (this.minFree + RESERVE_BYTES) * 1.1) await this.keep();
    } catch {
      // What can't be asked is not known to be low; a write will tell.
    }
  }

  /** Makes the reserve, if it is not there. */
  private async keep(): Promise<void> {
    if (statSync(this.reserve, { throwIfNoEntry: false })?.size === RESERVE_BYTES) return;
    const unfinished = `${this.reserve}.new`;
    await rm(unfinished, { force: true });
    try {
      const file = await open(unfinished, 'wx', 0o600);
      try {
        // Not zeros, and not by setting a length: either would take no space on some file systems.
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
