import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import { join } from 'node:path';
import type { Json } from './api';
import { ADMIN_TOKEN, CHILD_ENV, NO_QUOTAS, ServerClient } from './harness';
import { until } from './until';

const ROOT = join(__dirname, '../..');
/** How long a process may take to start on a machine that has much else to do. */
const START_MS = 90_000;

/** The processes of a test file that run. */
const running = new Set<Program>();

/** Kills every process that still runs. */
export async function endAll(): Promise<void> {
  await Promise.all(
    [...running].map(async (program) => {
      const exit = once(program.child, 'exit');
      program.signal('SIGKILL');
      await exit;
    }),
  );
}

/** A port at which nobody listens. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  return port;
}

/** How a process ended. */
export interface Ended {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** How a process runs. */
export interface ProcessOptions {
  readonly cwd?: string;
  /** All of its environment; that of a test's processes if it is left out. */
  readonly env?: NodeJS.ProcessEnv;
  /** What it reads from standard input; null leaves that open. */
  readonly input?: string | Buffer | null;
  /** The user that runs it. */
  readonly as?: { readonly uid: number; readonly gid: number };
  /** The descriptor that it writes its output to, and not to {@link Program.output}. */
  readonly stdout?: number;
  /** Whether it leads a process group, as what a shell starts does: signals go to all that it has started, too. */
  readonly leadsGroup?: boolean;
}

/** How the built program runs. */
export interface ProgramOptions extends Pick<ProcessOptions, 'as' | 'stdout'> {
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
}

/** Settings by which the built program has the quotas and the drain that it is shipped with, and makes its own token. */
export const AS_SHIPPED: Readonly<Record<string, string>> = Object.fromEntries(
  [...Object.keys(NO_QUOTAS), 'ADMIN_TOKEN', 'DRAIN_MS'].map((name) => [name, 'default']),
);

/** A program as a process of its own. */
export class Program {
  /** What it has written so far. */
  output = '';
  errors = '';

  private constructor(
    readonly child: ChildProcess,
    private readonly leadsGroup: boolean,
  ) {
    child.stdout?.setEncoding('utf8').on('data', (text) => {
      this.output += text;
    });
    child.stderr?.setEncoding('utf8').on('data', (text) => {
      this.errors += text;
    });
    running.add(this);
    child.once('exit', () => running.delete(this));
    child.once('error', (error) => {
      this.errors += error;
      running.delete(this);
    });
  }

  /** Starts any program; {@link endAll} ends it, if nothing else does. */
  static spawn(
    command: string,
    args: readonly string[],
    { cwd, env = CHILD_ENV, input, as, stdout, leadsGroup = false }: ProcessOptions = {},
  ): Program {
    const child = spawn(command, args, {
      ...{ cwd, env, ...as, detached: leadsGroup },
      stdio: [input === undefined ? 'ignore' : 'pipe', stdout ?? 'pipe', 'pipe'],
    });
    if (input !== undefined && input !== null) child.stdin?.end(input);
    return new Program(child, leadsGroup);
  }

  /** Starts the built program in a working folder. */
  static run(
    folder: string,
    {
      env = {},
      variables = {},
      main = join(ROOT, 'dist/main.js'),
      args = ['serve'],
      nodeArgs = [],
      ...options
    }: ProgramOptions = {},
  ): Program {
    const settings = { ...NO_QUOTAS, BIND: '127.0.0.1:0', ADMIN_TOKEN, DRAIN_MS: '0', ...env };
    const named = Object.entries(settings).filter(([, value]) => value !== 'default');
    return Program.spawn(process.execPath, [...nodeArgs, main, ...args], {
      cwd: folder,
      ...options,
      env: {
        ...CHILD_ENV,
        ...Object.fromEntries(named.map(([name, value]) => [`CONTROL_PLANE_${name}`, value])),
        ...variables,
      },
    });
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

  /** Waits as {@link ended} does. @returns how it ended, and all that it wrote */
  async result(): Promise<Ended> {
    const code = await this.ended();
    return { code, stdout: this.output, stderr: this.errors };
  }

  /**
   * Waits until it has written something.
   * @param options.to where it writes it
   * @returns all that it has written there by then
   * @throws Error it ended without, or did not write it in time
   */
  printed(
    text: RegExp,
    { to = 'output', withinMs }: { to?: 'output' | 'errors'; withinMs?: number } = {},
  ): Promise<string> {
    return until(
      `${this.child.spawnargs.join(' ')} prints ${text}`,
      async () => {
        const { runs } = this;
        if (!runs) await this.ended();
        if (!runs && !text.test(this[to]))
          throw new Error(`${this.child.spawnargs.join(' ')} ended: ${this.errors}${this.output}`);
        return this[to];
      },
      { isDone: (written) => text.test(written), withinMs },
    );
  }

  /** Sends it a signal, unless it has ended. */
  signal(signal: NodeJS.Signals): void {
    if (!this.runs) return;
    if (this.leadsGroup) process.kill(-(this.child.pid as number), signal);
    else this.child.kill(signal);
  }

  /** Ends it, unless it has ended. @returns its exit code, null if a signal ended it */
  async end(signal: NodeJS.Signals): Promise<number | null> {
    this.signal(signal);
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
    const address = /The control plane answers at (\S+)\n/;
    const said = await program.printed(address, { to: 'errors', withinMs: START_MS });
    return new ServerProcess(program, address.exec(said)?.[1] as string);
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
