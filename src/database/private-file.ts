import { closeSync, fsyncSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';

/**
 * Writes a file that only its owner can read, and replaces an existing one. When this returns it is on the disk; after
 * a crash it is complete or unchanged.
 */
export function writePrivately(path: string, text: string): void {
  const unfinished = `${path}.new`;
  // A file that a crash left here may have another mode: create it again.
  rmSync(unfinished, { force: true });
  const file = openSync(unfinished, 'wx', 0o600);
  try {
    writeSync(file, text);
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
  moveIntoPlace(unfinished, path);
}

/** Renames a synced file to its final name, and syncs the folder, so that a power cut does not undo the rename. */
export function moveIntoPlace(unfinished: string, path: string): void {
  renameSync(unfinished, path);
  const folder = openSync(dirname(path), 'r');
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
}
