import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { CHILD_ENV } from '../helpers/harness';
import { freePort } from '../helpers/processes';

// It compiles the sources, on a machine that may be busy with other tests.
jest.setTimeout(180_000);

const ROOT = join(__dirname, '../..');
const PARTS = [
  'package.json',
  'nest-cli.json',
  ...readdirSync(ROOT).filter((name) => /^tsconfig.*\.json$/.test(name)),
  'src',
  'dist',
];
/** A source file, and what is changed in it: the page says it. */
const PAGE = 'src/http/documentation.ts';
const TITLE = '<title>DNS Agent Control Plane</title>';

describe('npm run dev', () => {
  const folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
  let dev: ChildProcess | undefined;

  afterAll(async () => {
    if (dev?.pid !== undefined && dev.exitCode === null && dev.signalCode === null) {
      const exit = once(dev, 'exit');
      // With what it has started: the compiler and the server.
      process.kill(-dev.pid, 'SIGKILL');
      await exit;
    }
    rmSync(folder, { recursive: true, force: true });
  });

  it('serves again after each change of a source, with a debugger', async () => {
    for (const name of PARTS) cpSync(join(ROOT, name), join(folder, name), { recursive: true });
    symlinkSync(join(ROOT, 'node_modules'), join(folder, 'node_modules'));
    const [port, debugPort] = [await freePort(), await freePort()];
    const manifest = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
    expect(manifest.scripts.dev).toMatch(/^npm run build && .* --debug\b/);
    manifest.scripts.dev = manifest.scripts.dev
      // Built already, and copied: that would take as long as all the rest.
      .replace('npm run build && ', '')
      // The usual port may be another's.
      .replace('--debug', `--debug 127.0.0.1:${debugPort}`);
    writeFileSync(join(folder, 'package.json'), JSON.stringify(manifest));

    dev = spawn('npm', ['run', '--silent', 'dev'], {
      cwd: folder,
      detached: true,
      env: {
        ...CHILD_ENV,
        // As a shell has it.
        HOME: folder,
        CONTROL_PLANE_BIND: `127.0.0.1:${port}`,
      },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let said = '';
    for (const stream of [dev.stdout, dev.stderr])
      stream?.on('data', (chunk) => {
        said += chunk;
      });

    /** Waits for the page to have a title. */
    const serves = async (title: string) => {
      while (dev?.exitCode === null) {
        const page = await fetch(`http://127.0.0.1:${port}/docs`)
          .then((answer) => answer.text())
          .catch(() => '');
        if (page.includes(title)) return;
        if (/EADDRINUSE|another process listens|address already in use/.test(said)) break;
        await sleep(50);
      }
      throw new Error(`It does not serve ${title}:\n${said.slice(-2_000)}`);
    };
    await serves(TITLE);
    const source = readFileSync(join(folder, PAGE), 'utf8');
    for (const title of ['<title>First change</title>', '<title>Second change</title>']) {
      writeFileSync(join(folder, PAGE), source.replace(TITLE, title));
      await serves(title);
      const debuggers = await fetch(`http://127.0.0.1:${debugPort}/json/list`);
      expect(await debuggers.json()).toHaveLength(1);
    }
    expect(said).not.toMatch(/address already in use/);
  });
});
