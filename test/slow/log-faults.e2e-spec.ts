import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { CHILD_ENV } from '../helpers/harness';

const MAIN = join(__dirname, '../../dist/main.js');
/** What the process may take to stop, and more than it may need to notice. */
const SHUTDOWN_MS = 5_000;
const PATIENCE_MS = 60_000;

describe('a log that can not be written', () => {
  let folder: string;
  let child: ChildProcess;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
  });
  afterEach(async () => {
    if (child.exitCode === null && child.signalCode === null) {
      child.kill('SIGKILL');
      await once(child, 'exit');
    }
    rmSync(folder, { recursive: true, force: true });
  });

  /** Starts a server that logs each request. @returns its address, as it says on standard error */
  async function start(stdout: number | 'pipe', env: Record<string, string> = {}): Promise<string> {
    const settings: Record<string, string> = {
      BIND: '127.0.0.1:0',
      DATABASE_URL: `sqlite://${join(folder, 'test.db')}`,
      LOG_REQUESTS: 'all',
      SHUTDOWN_TIMEOUT_MS: String(SHUTDOWN_MS),
      DRAIN_MS: '500',
      ...env,
    };
    child = spawn(process.execPath, [MAIN], {
      cwd: folder,
      env: {
        ...CHILD_ENV,
        ...Object.fromEntries(
          Object.entries(settings).map(([name, value]) => [`CONTROL_PLANE_${name}`, value]),
        ),
      },
      stdio: ['ignore', stdout, 'pipe'],
    });
    let text = '';
    child.stderr?.on('data', (chunk) => {
      text += chunk;
    });
    for (;;) {
      const [, url] = /The control plane answers at (\S+)/.exec(text) ?? [];
      if (url) return url;
      if (child.exitCode !== null) throw new Error(`the server did not start: ${text}`);
      await sleep(20);
    }
  }

  /** Has the server log more than its pipe and its buffer take. */
  async function flood(url: string, requests: number): Promise<void> {
    const each = Array.from({ length: 20 }, async () => {
      for (let i = 0; i < requests / 20; i++) await (await fetch(`${url}/nowhere`)).arrayBuffer();
    });
    await Promise.all(each);
    expect((await fetch(`${url}/healthz`)).status).toBe(200);
  }

  /** @returns its exit code; undefined if it does not end in time */
  async function stop(): Promise<number | null | undefined> {
    const ended = once(child, 'exit').then(([code]) => code as number | null);
    child.kill('SIGTERM');
    return Promise.race([ended, sleep(SHUTDOWN_MS + 10_000, undefined, { ref: false })]);
  }

  const itOnLinux = existsSync('/dev/full') ? it : it.skip;

  itOnLinux(
    'does not keep the server from serving and ending in order: a full disk',
    async () => {
      const full = openSync('/dev/full', 'w');
      const url = await start(full);
      closeSync(full);
      await flood(url, 400);
      expect(await stop()).toBe(0);
    },
    PATIENCE_MS,
  );

  it(
    'does not keep the server from serving and ending in order: a reader that has stalled',
    async () => {
      const url = await start('pipe');
      child.stdout?.pause();
      await flood(url, 4_000);
      expect(await stop()).toBe(0);
    },
    PATIENCE_MS,
  );

  it(
    'does not keep the server from serving and ending in order: a reader that is gone',
    async () => {
      const url = await start('pipe');
      child.stdout?.destroy();
      await flood(url, 400);
      expect(await stop()).toBe(0);
    },
    PATIENCE_MS,
  );

  it(
    'is told again to stop: the drain ends',
    async () => {
      await start('pipe', { SHUTDOWN_TIMEOUT_MS: '600000', DRAIN_MS: '500000' });
      const ended = once(child, 'exit');
      child.kill('SIGINT');
      // Two signals at once are one: npm passes on what the terminal sends to both.
      await sleep(700);
      expect(child.exitCode).toBeNull();
      child.kill('SIGINT');
      expect((await ended)[0]).toBe(0);
    },
    PATIENCE_MS,
  );
});
