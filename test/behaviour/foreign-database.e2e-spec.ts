import { copyFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
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
  /** The original's, in the mode in which SQLite writes ahead; killed, it leaves its log, and what is only there. */
  const writeWithLog = ({ killed = false }) => {
    const written = killed ? join(folder, 'written.db') : path;
    writeOriginal(written, { sequences: { agent_id: 1 } });
    const file = new Sqlite(written);
    file.pragma('journal_mode = WAL');
    if (killed) {
      file.exec(
        "INSERT INTO agents (id, hostname, auth_token) VALUES (1, 'in-the-log', '9b2f1c1e-6f0f-4c58-9c38-1a7a5b6f0d11')",
      );
      for (const suffix of ['', '-wal', '-shm']) copyFileSync(written + suffix, path + suffix);
    }
    file.close();
    if (killed) rmSync(written);
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

  it.each([
    ['a journal', () => writeOriginal(path, {})],
    ['a log that is written back', () => writeWithLog({})],
    ['a log that a killed process left', () => writeWithLog({ killed: true })],
  ])('that the original control plane wrote, with %s, is named so, with what to do', async (_, prepare) => {
    prepare();
    await expectRefused(/database of the original control plane .* control-plane import-original /);
  });

  it('of the original is taken over with what its log has, and keeps that', async () => {
    writeWithLog({ killed: true });
    const names = readdirSync(folder);
    const files = () => ['', '-wal'].map((suffix) => readFileSync(path + suffix).toString('base64'));
    const before = files();
    const original = OriginalDatabase.open(path);
    expect(original.agents()).toMatchObject([{ id: 1, hostname: 'in-the-log' }]);
    original.close();
    expect(files()).toEqual(before);
    expect(readdirSync(folder)).toEqual(names);
  });

  it('of the original is read while its server has it, and left to that', async () => {
    writeWithLog({});
    const running = new Sqlite(path);
    running.exec("UPDATE sequences SET value = value + 1 WHERE name = 'agent_id'");
    const names = readdirSync(folder);
    const original = OriginalDatabase.open(path);
    running.exec("INSERT INTO agents (id, hostname, auth_token) VALUES (2, 'later', 'x')");
    // One state of it.
    expect(original.agents()).toEqual([]);
    original.close();
    expect(readdirSync(folder)).toEqual(names);
    expect(running.prepare('SELECT count(*) FROM agents').pluck().get()).toBe(1);
    running.close();
    expect(readdirSync(folder)).toEqual(['control-plane.db']);
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

  it('that is no database at all is refused', async () => {
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

    it('doctor, migrate and the start leave nothing beside it, in whatever mode it is', async () => {
      writeWithLog({});
      const before = readFileSync(path);
      for (const command of ['doctor', 'migrate']) {
        const { code, stdout, stderr } = await run([command], { cwd: folder, env: env() });
        expect([command, code, stdout + stderr]).toEqual([
          command,
          1,
          expect.stringContaining('is the database of the original control plane'),
        ]);
        expect(readdirSync(folder)).toEqual(['control-plane.db']);
      }
      const into = { DATABASE_URL: `sqlite://${join(folder, 'new.db')}` };
      expect((await run(['import-original', path], { cwd: folder, env: into })).code).toBe(0);
      expect(readdirSync(folder).filter((name) => name.startsWith('control-plane.db'))).toEqual([
        'control-plane.db',
      ]);
      expect(readFileSync(path).equals(before)).toBe(true);
    });

    it.each(['agents', 'tasks', 'sequences', 'leases'])(
      'is refused in a sentence if it is damaged in %s, and nothing is made',
      async (table) => {
        const agents = Array.from({ length: 200 }, (_, i) => ({
          id: i + 1,
          hostname: `probe-${i}`,
          auth_token: 'x',
        }));
        const tasks = agents.map(({ id }) => ({ id, kind: 'dns', spec: { query: 'a.example' } }));
        writeOriginal(path, { agents, tasks, sequences: { agent_id: 200, task_id: 200 } });
        const file = new Sqlite(path);
        const root = file.prepare('SELECT rootpage FROM sqlite_schema WHERE name = ?').pluck().get(table);
        const pageBytes = Number(file.pragma('page_size', { simple: true }));
        file.close();
        const bytes = readFileSync(path);
        bytes.fill(0xff, (Number(root) - 1) * pageBytes, Number(root) * pageBytes);
        writeFileSync(path, bytes);
        const into = { DATABASE_URL: `sqlite://${join(folder, 'new.db')}` };
        for (const option of [[], ['--dry-run']]) {
          const { code, stdout, stderr } = await run(['import-original', path, ...option], {
            cwd: folder,
            env: into,
          });
          expect([code, stdout, stderr]).toEqual([1, '', expect.stringMatching(/^\S+ is damaged [^\n]+\n$/)]);
          expect(readdirSync(folder)).toEqual(['control-plane.db']);
        }
      },
    );

    it.each([
      ['a counter that is no number', "UPDATE sequences SET value = 'many' WHERE name = 'agent_id'"],
      ['leases without ids', 'ALTER TABLE leases RENAME COLUMN id TO number'],
    ])('is refused in a sentence with %s, and nothing is made', async (_, statement) => {
      writeOriginal(path, { sequences: { agent_id: 1 } });
      make(statement);
      const into = { DATABASE_URL: `sqlite://${join(folder, 'new.db')}` };
      const { code, stderr } = await run(['import-original', path], { cwd: folder, env: into });
      expect([code, stderr]).toEqual([
        1,
        expect.stringMatching(/^\S+ is damaged or has another format [^\n]+\n$/),
      ]);
      expect(readdirSync(folder)).toEqual(['control-plane.db']);
    });

    it('is refused in a sentence if a change of it was broken off, which is for its own program to undo', async () => {
      const written = join(folder, 'written.db');
      writeOriginal(written, {});
      const file = new Sqlite(written);
      // So small a cache that the file is written to before the commit.
      file.pragma('cache_size = 1');
      file.exec('BEGIN');
      const insert = file.prepare("INSERT INTO tasks (kind, spec) VALUES ('dns', ?)");
      for (let i = 0; i < 1_000; i++) insert.run('x'.repeat(500));
      for (const suffix of ['', '-journal']) copyFileSync(written + suffix, path + suffix);
      file.close();
      rmSync(written);
      const names = readdirSync(folder);
      const into = { DATABASE_URL: `sqlite://${join(folder, 'new.db')}` };
      const { code, stderr } = await run(['import-original', path], { cwd: folder, env: into });
      expect([code, stderr]).toEqual([
        1,
        expect.stringMatching(/^\S+ can't be opened: a change of it was interrupted [^\n]+\n$/),
      ]);
      expect(readdirSync(folder)).toEqual(names);
    });

    it('may be tried again while another process has locked it', async () => {
      writeOriginal(path, {});
      const holder = new Sqlite(path);
      holder.exec('BEGIN EXCLUSIVE');
      const into = { DATABASE_URL: `sqlite://${join(folder, 'new.db')}` };
      const { code, stdout, stderr } = await run(['import-original', path], { cwd: folder, env: into });
      holder.close();
      expect([code, stdout, stderr]).toEqual([
        3,
        '',
        expect.stringMatching(/^\S+ is locked by another process [^\n]+\n$/),
      ]);
      expect(readdirSync(folder)).toEqual(['control-plane.db']);
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
