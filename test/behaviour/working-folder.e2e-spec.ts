import { execFileSync, spawnSync } from 'node:child_process';
import { copyFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { adminTokenFile, parseDatabaseUrl, signingKeysFile } from '../../src/settings';

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
    // The README's second agent.
    join(folder, 'agent-identity-2.json'),
  ];
  for (const file of files) writeFileSync(file, '{ "a" :1}');
  return files;
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

  it('is ignored by the linter', () => {
    const biome = join(ROOT, 'node_modules/.bin/biome');
    const { stdout, stderr } = spawnSync(biome, ['check', '.'], { cwd: folder, encoding: 'utf8' });
    expect(`${stdout}${stderr}`).toContain('Checked 1 file');
  });

  it('is taken away by make clean-data, and nothing else is', () => {
    const line = /^clean-data:.*\n\t(rm .*)$/m.exec(readFileSync(join(ROOT, 'Makefile'), 'utf8'))?.[1];
    execFileSync('sh', ['-c', line as string], { cwd: folder });
    expect(readdirSync(folder).sort()).toEqual(['.git', '.gitignore', 'Makefile', 'biome.json']);
    expect(files).toHaveLength(11);
  });
});
