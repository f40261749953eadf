import { once } from 'node:events';
import { closeSync, existsSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { endAll, ServerProcess } from '../helpers/processes';

/** What the process may take to stop, and more than it may need to notice. */
const SHUTDOWN_MS = 5_000;
const PATIENCE_MS = 60_000;

describe('a log that can not be written', () => {
  let folder: string;
  let server: ServerProcess;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
  });
  afterEach(async () => {
    await endAll();
    rmSync(folder, { recursive: true, force: true });
  });

  /** Starts a server that logs each request. */
  async function start(env: Record<string, string> = {}, stdout?: number): Promise<void> {
    const settings = { LOG_REQUESTS: 'all', SHUTDOWN_TIMEOUT_MS: String(SHUTDOWN_MS), DRAIN_MS: '500' };
    server = await ServerProcess.start(folder, { env: { ...settings, ...env }, stdout });
  }

  /** Has the server log more than its pipe and its buffer take. */
  async function flood(requests: number): Promise<void> {
    const each = Array.from({ length: 20 }, async () => {
      for (let i = 0; i < requests / 20; i++) await server.status('/nowhere');
    });
    await Promise.all(each);
    expect(await server.status('/healthz')).toBe(200);
  }

  /** @returns its exit code; undefined if it does not end in time */
  function stop(): Promise<number | null | undefined> {
    // Not until all is read that it wrote: nobody reads it.
    const exit = once(server.program.child, 'exit');
    server.program.signal('SIGTERM');
    return Promise.race([
      exit.then(([code]) => code),
      sleep(SHUTDOWN_MS + 10_000, undefined, { ref: false }),
    ]);
  }

  const itOnLinux = existsSync('/dev/full') ? it : it.skip;

  itOnLinux(
    'does not keep the server from serving and ending in order: a full disk',
    async () => {
      const full = openSync('/dev/full', 'w');
      await start({}, full);
      closeSync(full);
      await flood(400);
      expect(await stop()).toBe(0);
    },
    PATIENCE_MS,
  );

  it(
    'does not keep the server from serving and ending in order: a reader that has stalled',
    async () => {
      await start();
      server.program.child.stdout?.pause();
      await flood(4_000);
      expect(await stop()).toBe(0);
    },
    PATIENCE_MS,
  );

  it(
    'does not keep the server from serving and ending in order: a reader that is gone',
    async () => {
      await start();
      server.program.child.stdout?.destroy();
      await flood(400);
      expect(await stop()).toBe(0);
    },
    PATIENCE_MS,
  );

  it(
    'is told again to stop: the drain ends',
    async () => {
      await start({ SHUTDOWN_TIMEOUT_MS: '600000', DRAIN_MS: '500000' });
      const { child } = server.program;
      const ended = server.program.ended();
      child.kill('SIGINT');
      // Two signals at once are one: npm passes on what the terminal sends to both.
      await sleep(700);
      expect(child.exitCode).toBeNull();
      child.kill('SIGINT');
      expect(await ended).toBe(0);
    },
    PATIENCE_MS,
  );
});
