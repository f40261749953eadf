#!/usr/bin/env node
import './node-version';
import { readFileSync } from 'node:fs';
import { runCommandLine } from './cli/command-line';
import { EXIT } from './cli/failure';

// Nobody else may read what is made here: databases, keys, backups.
process.umask(0o077);

/** Ends the command: if the reader has had enough, as `head` does, that is not a failure. */
function onStandardOutputError(error: NodeJS.ErrnoException): void {
  process.exit(error.code === 'EPIPE' ? EXIT.ok : EXIT.failed);
}
process.stdout.on('error', onStandardOutputError);

// Nobody hears why it failed: the exit code still tells.
process.stderr.on('error', () => undefined);

/** From when it is asked for, the signals are the command's to act on. */
function interruption(): AbortSignal {
  const controller = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => controller.abort());
  return controller.signal;
}

runCommandLine(process.argv.slice(2), {
  stdout: process.stdout,
  stderr: process.stderr,
  readInput: () => readFileSync(0),
  interruption,
  // A server goes on if nobody reads its log.
  onServe: () => process.stdout.off('error', onStandardOutputError),
}).then((code) => {
  // A server that could not start has set its own.
  if (code !== EXIT.ok) process.exitCode = code;
});
