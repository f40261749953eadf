import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CHILD_ENV, ServerClient } from '../helpers/harness';
import { endAll, freePort, Program } from '../helpers/processes';
import { until } from '../helpers/until';

// It compiles the sources, on a machine that may be busy with other tests.
jest.setTimeout(240_000);
const COMPILE_MS = 75_000;

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

  afterAll(async () => {
    await endAll();
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

    const dev = Program.spawn('npm', ['run', '--silent', 'dev'], {
      cwd: folder,
      leadsGroup: true,
      env: {
        ...CHILD_ENV,
        // As a shell has it.
        HOME: folder,
        CONTROL_PLANE_BIND: `127.0.0.1:${port}`,
      },
    });
    const server = new ServerClient(`http://127.0.0.1:${port}`);
    const page = () =>
      server
        .request('GET', '/docs')
        .then(({ body }) => body as string)
        .catch(() => '');

    /** Waits for the page to have a title. */
    const serves = (title: string) =>
      until(
        `the page has ${title}`,
        () => {
          const said = dev.output + dev.errors;
          if (!dev.runs || /EADDRINUSE|another process listens|address already in use/.test(said))
            throw new Error(`It does not serve ${title}:\n${said.slice(-2_000)}`);
          return page();
        },
        { isDone: (html) => html.includes(title), everyMs: 50, withinMs: COMPILE_MS },
      );
    await serves(TITLE);
    const debugging = new ServerClient(`http://127.0.0.1:${debugPort}`);
    const source = readFileSync(join(folder, PAGE), 'utf8');
    for (const title of ['<title>First change</title>', '<title>Second change</title>']) {
      writeFileSync(join(folder, PAGE), source.replace(TITLE, title));
      await serves(title);
      expect((await debugging.request('GET', '/json/list')).body).toHaveLength(1);
    }
    expect(dev.output + dev.errors).not.toMatch(/address already in use/);
  });
});
