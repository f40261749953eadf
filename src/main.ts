#!/usr/bin/env node
import './node-version';
import { readFileSync } from 'node:fs';
import { EXIT } from './cli/command-error';
import { runCommandLine } from './cli/command-line';

/** How long a failed command may take to end by itself, in ms: a write that hangs must not keep the process alive. */
const EXIT_GRACE_MS = 1_000;

// Only this user may read the files that the program creates: databases, keys, tokens, backups.
process.umask(0o077);

/** Ends the command. A reader that closes the pipe early, as `head` does, is not a failure. */
function onStdoutError(error: NodeJS.ErrnoException): void {
  process.exit(error.code === 'EPIPE' ? EXIT.ok : EXIT.failed);
}
process.stdout.on('error', onStdoutError);

// If standard error is closed, the exit code still tells what happened.
process.stderr.on('error', () => undefined);

/** Takes over the signals for the running command, from the first time that it asks for them. */
function interruptSignal(): AbortSignal {
  const controller = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => controller.abort());
  return controller.signal;
}

runCommandLine(process.argv.slice(2), {
  stdout: process.stdout,
  stderr: process.stderr,
  readInput: () => readFileSync(0),
  interruptSignal,
  // A server keeps running if nobody reads its log.
  onServe: () => process.stdout.off('error', onStdoutError),
}).then((code) => {
  if (code === EXIT.ok) return;
  process.exitCode = code;
  setTimeout(() => process.exit(), EXIT_GRACE_MS).unref();
});
