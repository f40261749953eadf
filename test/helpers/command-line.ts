import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { ADMIN_TOKEN, CHILD_ENV } from './harness';

/** How a command ended. */
export interface Ended {
  code: number | null;
  stdout: string;
  stderr: string;
}

/**
 * Runs the built command line as a process.
 * @param options.env settings by their names after `CONTROL_PLANE_`
 * @param options.input what it reads from standard input
 */
export function run(
  args: readonly string[],
  options: { cwd?: string; env?: Record<string, string>; input?: string } = {},
): Promise<Ended> {
  const child = spawn(process.execPath, [join(__dirname, '../../dist/cli.js'), ...args], {
    cwd: options.cwd,
    env: {
      ...CHILD_ENV,
      ...Object.fromEntries(
        Object.entries(options.env ?? {}).map(([name, value]) => [`CONTROL_PLANE_${name}`, value]),
      ),
    },
  });
  child.stdin.end(options.input ?? '');
  const ended: Ended = { code: null, stdout: '', stderr: '' };
  child.stdout.on('data', (chunk) => {
    ended.stdout += chunk;
  });
  child.stderr.on('data', (chunk) => {
    ended.stderr += chunk;
  });
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code) => resolve({ ...ended, code }));
  });
}

/** Settings by which the command line finds a server, as its admin. */
export const finding = (url: string): Record<string, string> => ({ URL: url, TOKEN: ADMIN_TOKEN });
