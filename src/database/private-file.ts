import { closeSync, fsyncSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';

/**
 * Writes a file beside the database that only its owner can read. It is on the disk when this returns, whole or not at
 * all; one that is there already is replaced.
 */
export function writePrivately(path: string, text: string): void {
  const unfinished = `${path}.new`;
  // What a crash left here may have another mode; only a file that is made again has ours for certain.
  rmSync(unfinished, { force: true });
  const file = openSync(unfinished, 'wx', 0o600);
  try {
    writeSync(file, text);
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
  putInPlace(unfinished, path);
}

/** Gives a file that is on the disk its name, in place of what has it, so that a power cut does not take it back. */
export function putInPlace(unfinished: string, path: string): void {
  renameSync(unfinished, path);
  const folder = openSync(dirname(path), 'r');
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
}
