import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Sqlite from 'better-sqlite3';
import { backUp } from '../../src/database/backup';
import { ForeignDatabase } from '../../src/database/database-error';
import { inspectDatabase, openDatabase } from '../../src/database/open-database';
import { OriginalDatabase } from '../../src/database/original';
import { readSettings } from '../../src/settings';
import { run, spawnCommand } from '../helpers/command-line';
import { writeOriginal } from '../helpers/original-database';

describe('a database of another program', () => {
  let folder: string;
  let path: string;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
    path = join(folder, 'control-plane.db');
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  const settings = () =>
    readSettings({ CONTROL_PLANE_DATABASE_URL: `sqlite://${path}`, CONTROL_PLANE_MIN_FREE_DISK_MB: '0' });
  const make = (...statements: string[]) => {
    const file = new Sqlite(path);
    for (const statement of statements) file.exec(statement);
    file.close();
  };
  /** Whatever opens it refuses, and leaves file and folder as they were. */
  async function expectRefused(message: RegExp): Promise<void> {
    const before = readFileSync(path);
    const names = readdirSync(folder);
    const target = { type: 'sqlite', path } as const;
    const attempts = [
      () => openDatabase(settings()),
      () => inspectDatabase(target, () => Promise.resolve()),
      () =>
        backUp(target, join(folder, 'backup.db'), {
          replace: false,
          settings: settings(),
          signal: new AbortController().signal,
        }),
    ];
    for (const attempt of attempts) {
      const error = await attempt().then(
        () => undefined,
        (thrown: Error) => thrown,
      );
      expect(error).toBeInstanceOf(ForeignDatabase);
      expect(error?.message).toMatch(message);
      expect(error?.message).not.toContain('\n');
    }
    expect(readdirSync(folder)).toEqual(names);
    expect(readFileSync(path).equals(before)).toBe(true);
  }

  it('that the original control plane wrote is named so, with what to do', async () => {
    writeOriginal(path, { agents: [], tasks: [] });
    await expectRefused(/database of the original control plane .* control-plane import-original /);
  });

  it.each([
    [
      'one table',
      ['CREATE TABLE notes (id integer)'],
      /not a database of this program \(it has a table notes\)/,
    ],
    [
      'tables of our names',
      ['CREATE TABLE agents (id integer)', 'CREATE TABLE tasks (id integer)'],
      /tables agents, tasks/,
    ],
    [
      'migrations of its own',
      ['CREATE TABLE migrations (name text)', "INSERT INTO migrations VALUES ('0001_init')"],
      /a table migrations/,
    ],
    ['migrations of another form', ['CREATE TABLE migrations (version integer)'], /a table migrations/],
    [
      'very many tables',
      Array.from({ length: 9 }, (_, i) => `CREATE TABLE t${i} (id integer)`),
      /t0, t1, t2, t3, t4, \.\.\.\)/,
    ],
  ])('with %s is refused before it is touched', async (_, statements, message) => {
    make(...statements);
    await expectRefused(message);
  });

  it('that is none at all is refused', async () => {
    writeFileSync(path, 'Dear diary, this is no database, whatever the name says.\n'.repeat(50));
    await expect(openDatabase(settings())).rejects.toThrow(/not a database/);
    expect(readdirSync(folder)).toEqual(['control-plane.db']);
  });

  it.each([
    ['an empty file', () => writeFileSync(path, '')],
    [
      'a database without tables',
      () => make('PRAGMA user_version = 0', 'CREATE TABLE a (id integer)', 'DROP TABLE a'),
    ],
    [
      'a start that ended before its first migration',
      () =>
        make(
          'CREATE TABLE migrations (id integer PRIMARY KEY AUTOINCREMENT NOT NULL, "timestamp" bigint NOT NULL, name varchar NOT NULL)',
        ),
    ],
  ])('is not %s', async (_, prepare) => {
    prepare();
    const database = await openDatabase(settings());
    await database.close();
    await inspectDatabase({ type: 'sqlite', path }, () => Promise.resolve());
  });

  it('is not one that this program made, also with tables of an extension', async () => {
    await (await openDatabase(settings())).close();
    make('CREATE TABLE whois_domains (id integer)');
    await (await openDatabase(settings())).close();
  });

  it.each([
    ['another program', () => make('CREATE TABLE notes (id integer)')],
    ['this program', async () => (await openDatabase(settings())).close()],
    [
      'an older original',
      () =>
        make(
          'CREATE TABLE agents (id integer)',
          'CREATE TABLE tasks (id integer)',
          'CREATE TABLE sequences (name text)',
        ),
    ],
  ])('of %s is nothing to take over', async (_, prepare) => {
    await prepare();
    expect(() => OriginalDatabase.open(path)).toThrow(/not a database of the original control plane/);
  });

  describe('of the original, by the command line', () => {
    const env = () => ({
      BIND: '127.0.0.1:0',
      DATABASE_URL: `sqlite://${path}`,
      BASE_URL: 'http://127.0.0.1:8088/v1/agents',
    });

    it('doctor says the same as the start, and the settings of the original stop neither', async () => {
      writeOriginal(path, {});
      const names = readdirSync(folder);
      const started = await spawnCommand(['serve'], { cwd: folder, env: env() });
      const checked = await run(['doctor'], { cwd: folder, env: env() });
      expect([started.code, started.stdout]).toEqual([1, '']);
      expect(started.stderr.trim()).toMatch(/^\S+ is the database of the original control plane [^\n]*$/);
      expect(checked.code).toBe(1);
      expect(checked.stdout).toMatch(/FAIL +database +\S+ is the database of the original control plane/);
      expect(checked.stdout).toMatch(/warn +settings +CONTROL_PLANE_BASE_URL/);
      expect(readdirSync(folder)).toEqual(names);
    });

    it('is taken over into a new one', async () => {
      writeOriginal(path, {
        tasks: [{ id: 1, kind: 'dns', spec: { query: 'a' } }],
        sequences: { task_id: 1 },
      });
      const into = { DATABASE_URL: `sqlite://${join(folder, 'new.db')}` };
      const rehearsed = await run(['import-original', path, '--dry-run'], { cwd: folder, env: into });
      expect(rehearsed).toMatchObject({
        code: 0,
        stdout: expect.stringContaining('1 queued tasks would be taken over'),
      });
      expect(readdirSync(folder)).toEqual(['control-plane.db']);
      const done = await run(['import-original', path, '--json'], { cwd: folder, env: into });
      expect([done.code, done.stderr]).toEqual([0, '']);
      expect(JSON.parse(done.stdout)).toMatchObject({ tasks: { taken_over: 1 } });
      // No admin's token and no keys: those are the server's to make.
      expect(readdirSync(folder).filter((name) => /token|key/.test(name))).toEqual([]);
      const same = await run(['import-original', path], { cwd: folder, env: env() });
      expect(same).toMatchObject({
        code: 1,
        stderr: expect.stringContaining('is the database of the original'),
      });
    });
  });
});
