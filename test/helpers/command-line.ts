import { join } from 'node:path';
import { runCommandLine } from '../../src/cli/command-line';
import { ADMIN_TOKEN, CHILD_ENV } from './harness';
import { type Ended, Program } from './processes';

/** Where and with what a command runs. */
export interface RunOptions {
  cwd?: string;
  /** Settings by their names after `CONTROL_PLANE_`. */
  env?: Record<string, string>;
  /** What it reads from standard input. */
  input?: string | Buffer;
  /** Interrupts it, as Ctrl-C does. */
  signal?: AbortSignal;
  /** How large the terminal is that it writes to; none if it is left out. */
  terminal?: { columns: number; rows: number };
  /** Receives what it writes to standard output, as it comes. */
  onOutput?: (text: string) => void;
}

const settingsOf = (env: Record<string, string> = {}) =>
  Object.fromEntries(Object.entries(env).map(([name, value]) => [`CONTROL_PLANE_${name}`, value]));

/** Runs a command in this process; one at a time, since its folder is the process's. */
export async function run(args: readonly string[], options: RunOptions = {}): Promise<Ended> {
  const before = process.cwd();
  // What a server sets when it starts would go on for whatever runs in this worker next.
  const mask = process.umask(0o022);
  if (options.cwd !== undefined) process.chdir(options.cwd);
  const ended: Ended = { code: null, stdout: '', stderr: '' };
  try {
    ended.code = await runCommandLine(args, {
      env: settingsOf(options.env),
      stdout: {
        ...(options.terminal ? { isTTY: true, ...options.terminal } : {}),
        write: (text) => {
          ended.stdout += text;
          options.onOutput?.(text);
        },
      },
      stderr: {
        write: (text) => {
          ended.stderr += text;
        },
      },
      readInput: () => Buffer.from(options.input ?? ''),
      interruptSignal: () => options.signal ?? new AbortController().signal,
    });
    return ended;
  } finally {
    process.umask(mask);
    process.chdir(before);
  }
}

/** Runs the built command line as a process, for what only a process shows. */
export function spawnCommand(
  args: readonly string[],
  { cwd, env, input = '' }: RunOptions = {},
): Promise<Ended> {
  return Program.spawn(process.execPath, [join(__dirname, '../../dist/main.js'), ...args], {
    ...{ cwd, input },
    env: { ...CHILD_ENV, ...settingsOf(env) },
  }).result();
}

/** Settings by which the command line finds a server, as its admin. */
export const finding = (url: string): Record<string, string> => ({ URL: url, TOKEN: ADMIN_TOKEN });
