import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Json } from './api';
import { ADMIN_TOKEN, CHILD_ENV, NO_QUOTAS, ServerClient } from './harness';

const ROOT = join(__dirname, '../..');

/** The processes of a test file that run. */
const running = new Set<ChildProcess>();

/** Remembers a process, so that {@link endAll} ends it. */
export function track<Child extends ChildProcess>(child: Child): Child {
  running.add(child);
  child.once('exit', () => running.delete(child));
  return child;
}

/** Ends a process, unless it has ended. @returns its exit code, null if a signal ended it */
export async function end(child: ChildProcess, signal: NodeJS.Signals): Promise<number | null> {
  if (child.exitCode === null && child.signalCode === null) {
    child.kill(signal);
    await once(child, 'exit');
  }
  return child.exitCode;
}

/** Kills every process that still runs. */
export async function endAll(): Promise<void> {
  await Promise.all([...running].map((child) => end(child, 'SIGKILL')));
}

/** A port at which nobody listens. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  return port;
}

/** How the built program runs. */
export interface ProgramOptions {
  /**
   * Settings by their names after `CONTROL_PLANE_`; `default` is the program's own. If nothing is said, it listens at a free port,
   * has no quotas, and does not drain before it stops.
   */
  readonly env?: Readonly<Record<string, string>>;
  /** Other variables of its environment. */
  readonly variables?: Readonly<Record<string, string>>;
  /** Another build of the program. */
  readonly main?: string;
  /** `serve` if they are left out. */
  readonly args?: readonly string[];
  /** Arguments of Node itself. */
  readonly nodeArgs?: readonly string[];
  /** The user that runs it. */
  readonly as?: { readonly uid: number; readonly gid: number };
  /** The descriptor that its log goes to, and not to {@link Program.output}. */
  readonly stdout?: number;
}

/** The built program as a process of its own. */
export class Program {
  /** What it has written so far. */
  output = '';
  errors = '';

  private constructor(readonly child: ChildProcess) {
    child.stdout?.setEncoding('utf8').on('data', (text) => {
      this.output += text;
    });
    child.stderr?.setEncoding('utf8').on('data', (text) => {
      this.errors += text;
    });
  }

  /** Starts it in a working folder. */
  static run(
    folder: string,
    {
      env = {},
      variables = {},
      main = join(ROOT, 'dist/main.js'),
      args = ['serve'],
      nodeArgs = [],
      as,
      stdout,
    }: ProgramOptions = {},
  ): Program {
    const settings = { ...NO_QUOTAS, BIND: '127.0.0.1:0', ADMIN_TOKEN, DRAIN_MS: '0', ...env };
    const named = Object.entries(settings).filter(([, value]) => value !== 'default');
    const child = spawn(process.execPath, [...nodeArgs, main, ...args], {
      cwd: folder,
      ...as,
      env: {
        ...CHILD_ENV,
        ...Object.fromEntries(named.map(([name, value]) => [`CONTROL_PLANE_${name}`, value])),
        ...variables,
      },
      stdio: ['ignore', stdout ?? 'pipe', 'pipe'],
    });
    return new Program(track(child));
  }

  get runs(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  /** Waits until it has ended and all that it wrote is here. @returns its exit code, null if a signal ended it */
  async ended(): Promise<number | null> {
    const isOpen = [this.child.stdout, this.child.stderr].some((stream) => stream && !stream.closed);
    if (this.runs || isOpen) await once(this.child, 'close');
    return this.child.exitCode;
  }

  /** Ends it, unless it has ended. @returns its exit code, null if a signal ended it */
  async end(signal: NodeJS.Signals): Promise<number | null> {
    if (this.runs) this.child.kill(signal);
    return this.ended();
  }
}

/** A server as a process of its own. */
export class ServerProcess extends ServerClient {
  private constructor(
    readonly program: Program,
    url: string,
  ) {
    super(url);
  }

  /** Starts a server and waits until it listens. @throws Error it ended, and what it said */
  static async start(folder: string, options: ProgramOptions = {}): Promise<ServerProcess> {
    const program = Program.run(folder, options);
    for (;;) {
      const [, url] = /The control plane answers at (\S+)/.exec(program.errors) ?? [];
      if (url) return new ServerProcess(program, url);
      if (!program.runs) {
        await program.ended();
        throw new Error(`the server did not start: ${program.errors}${program.output}`);
      }
      await sleep(20);
    }
  }

  get runs(): boolean {
    return this.program.runs;
  }

  /** The entries of its log that have been written. */
  get log(): Json[] {
    const lines = this.program.output.split('\n').slice(0, -1);
    return lines.map((line) => JSON.parse(line));
  }

  async status(path: string): Promise<number> {
    return (await this.request('GET', path)).status;
  }

  /** Ends it, unless it has ended. @returns its exit code, null if a signal ended it */
  end(signal: NodeJS.Signals): Promise<number | null> {
    return this.program.end(signal);
  }
}
