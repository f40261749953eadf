import { copyFileSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Sqlite from 'better-sqlite3';
import { AgentAbout } from '../../src/agents/agent-about';
import { AgentOutcomes } from '../../src/agents/agent-outcomes';
import { QueueMaintainer } from '../../src/queue/maintenance';
import type { Json } from '../helpers/api';
import { run, spawnCommand } from '../helpers/command-line';
import { type Credentials, credentialsOf, dnsTask, TestServer } from '../helpers/harness';
import { connected, rowsAt, ScratchDatabases } from '../helpers/postgres-server';
import type { Ended } from '../helpers/processes';
import { brokenPromises } from '../helpers/queue-tables';

// Each command is a process, and each server migrates a database.
jest.setTimeout(180_000);

const { CONTROL_PLANE_TEST_POSTGRES_URL: POSTGRES } = process.env;
const WHOIS = join(__dirname, '../../examples/whois-kind');

const folders: string[] = [];
const databases = new ScratchDatabases();

function newFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
  folders.push(folder);
  return folder;
}

afterAll(async () => {
  await databases.drop();
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
});

const fileIn = (folder: string) => join(folder, 'test.db');

const transfer = (folder: string, to: string, ...args: string[]): Promise<Ended> =>
  run(['transfer', '--from', `sqlite://${fileIn(folder)}`, '--to', to, ...args], { cwd: folder });

const start = (folder: string, database: string, env: Record<string, string> = {}): Promise<TestServer> =>
  TestServer.start(
    {
      DATABASE_URL: database,
      // Nothing moves by itself while a test compares.
      ...{ HEARTBEAT_TIMEOUT_MS: '3600000', LEASE_DURATION_MS: '3600000', RETRY_BACKOFF_MS: '3600000' },
      ...env,
    },
    { folder },
  );
const startOnFile = (folder: string) => start(folder, `sqlite://${fileIn(folder)}`);

/** Changes the file of a stopped server. */
function change(folder: string, ...statements: string[]): void {
  const file = new Sqlite(fileIn(folder));
  file.pragma('foreign_keys = OFF');
  for (const statement of statements) file.exec(statement);
  file.close();
}

/** How many rows there are in each table that has some, but for what the migrations leave. */
async function rowsIn(url: string): Promise<Record<string, number>> {
  const tables = await rowsAt<{ name: string }>(
    url,
    `SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public' AND tablename NOT LIKE 'migrations%'`,
  );
  const counts: Record<string, number> = {};
  for (const { name } of tables) {
    const [{ n }] = (await rowsAt(url, `SELECT count(*) AS n FROM ${name}`)) as [{ n: number }];
    if (n > 0) counts[name] = n;
  }
  return counts;
}
const NO_ROWS = { audit_head: 1, service_continuity: 1 };

/** What does not hold of the queue's tables. */
const brokenAt = (url: string) => connected(url, (rows) => brokenPromises({ rows }));

/** A stopped instance with something of everything. */
interface Instance {
  readonly folder: string;
  readonly agents: readonly Credentials[];
  /** A lease that is live. */
  readonly lease: number;
  readonly viewer: string;
  readonly enrollment: string;
  /** The greatest ids that were given; the rows of some are gone. */
  readonly last: { readonly task: number; readonly agent: number };
  /** What the operators' reads answer. */
  readonly reads: Record<string, Json>;
}

const ENQUEUED = { tasks: [dnsTask({ run_at: '2099-01-01T00:00:00Z', unique_key: 'the same' })] };
const KEY = { 'idempotency-key': 'enqueued-before-the-transfer' };

/** Every list and every single thing that operators read. */
async function readAll(server: TestServer): Promise<Record<string, Json>> {
  const reads: Record<string, Json> = {};
  const read = async (path: string) => {
    const { status, body } = await server.operator('GET', path);
    reads[path] = { status, body };
    return body;
  };
  const all = async (path: string) => {
    const items: Json[] = [];
    for (let cursor = ''; ; ) {
      const { body } = await server.operator('GET', `${path}?limit=500${cursor}`);
      items.push(...body.items);
      if (body.next_cursor === null) break;
      cursor = `&cursor=${body.next_cursor}`;
    }
    reads[path] = items;
    return items;
  };
  const tasks = await all('/v1/tasks');
  for (const { id } of tasks.slice(0, 20)) await read(`/v1/tasks/${id}`);
  for (const { id } of await all('/v1/agents')) {
    await read(`/v1/agents/${id}`);
    await all(`/v1/agents/${id}/metrics`);
  }
  for (const { revision } of await all('/v1/configs')) await read(`/v1/configs/${revision}`);
  await read('/v1/tasks/stats');
  await read('/v1/concurrency/windows');
  await read('/v1/enrollment-tokens');
  await read('/v1/operator-tokens');
  await all('/v1/audit');
  await read('/.well-known/jwks.json');
  return reads;
}

/** The same without what moves by itself: a lease has one more duration after an outage, an age grows. */
const settled = (reads: object) =>
  JSON.parse(
    JSON.stringify(reads, (key, value) =>
      /^(deadline_at|last_used_at|oldest_\w+|\w*age_ms)$/.test(key) ? undefined : value,
    ),
  );

async function makeInstance(): Promise<Instance> {
  const folder = newFolder();
  const server = await startOnFile(folder);
  const put = (path: string, body: object) => server.operator('PUT', path, body);
  const post = async (path: string, body: object, headers = {}) => {
    const answer = await server.operator('POST', path, body, headers);
    if (answer.status >= 300) throw new Error(`${path}: ${answer.status} ${JSON.stringify(answer.body)}`);
    return answer.body;
  };
  const { token: viewer } = await post('/v1/operator-tokens', { name: 'größer', role: 'viewer' });
  const { token: enrollment } = await post('/v1/enrollment-tokens', { name: 'e', labels: { region: 'eu' } });
  const [one, two] = [await server.register('one'), await server.register()];
  const { body: three } = await server.request('POST', '/register', {
    body: { hostname: 'three' },
    headers: { 'x-enrollment-token': enrollment },
  });
  await server.operator('DELETE', `/v1/agents/${two.agent_id}`);
  await put('/v1/concurrency/limits', { limits: [{ kind: 'dns', target: 'full.example', limit: 1 }] });

  await server.enqueue(
    ...Array.from({ length: 5 }, (_, i) => dnsTask({ priority: 100 - i, max_attempts: i === 1 ? 1 : 5 })),
  );
  const { leases } = (await server.agent(one, '/claim', { capacities: { dns: 5 } })).body;
  const [done, dead, back, cancelled, live] = leases.map((lease) => lease.lease_id);
  const observations = [
    { name: 'text', value: 'ü \u0001 \u2028 "quoted" \\ 😀 \r\n' },
    { name: 'number', value: 1.5e-7, unit: 's' },
    { name: 'nested', value: { b: [null, true, -0.1], a: {} } },
  ];
  await server.agent(one, '/report', {
    completed: [{ lease_id: done, observations, outcome: 'success' }],
    cancelled: [{ lease_id: dead, observations }, { lease_id: back }],
  });
  await post(`/v1/tasks/${leases.find(({ lease_id }) => lease_id === cancelled).task_id}/cancel`, {});
  expect([cancelled, live]).not.toContain(undefined);
  await server.enqueue(...Array.from({ length: 3 }, () => dnsTask({}, { server: 'full.example' })));
  // One of them takes the only slot, and the others are in a lane of their own.
  await server.agent(three, '/claim', { capacities: { dns: 1 } });
  // These are moved into theirs.
  await server.enqueue(...Array.from({ length: 3 }, () => dnsTask({}, { server: 'moved.example' })));
  await put('/v1/concurrency/limits', {
    limits: [
      { limit: 1_000 },
      { kind: 'dns', limit: 900 },
      { kind: 'dns', target: 'moved.example', limit: 5 },
    ],
  });
  await server.app.get(QueueMaintainer).moveTasks();
  // More than goes in one statement.
  await server.enqueue(...Array.from({ length: 2_100 }, (_, i) => dnsTask({}, { query: `${i}.example` })));
  await post('/v1/tasks', ENQUEUED, KEY);
  const gone = await server.enqueue(dnsTask());
  for (const agent of [one, three])
    await server.agent(agent, '/metrics', {
      timestamp: new Date().toISOString(),
      counters: [{ name: 'queries_total', value: 1_042, unit: '1' }],
      gauges: [{ name: 'load', value: -0.25 }],
    });
  await post('/v1/configs', { config: { n: 1 } });
  const { revision } = await post('/v1/configs', { config: { n: 2, ключ: 'é' } });
  await server.agent(one, '/heartbeat', { config_revision: revision, config_status: 'applied' });
  await server.agent(three, '/heartbeat');
  // As retention does, and as a restore does.
  await server.operator('POST', `/v1/tasks/${gone[0]}/cancel`);
  await server.database.write(async (tx) => {
    await tx.run('UPDATE tasks SET finished_at = 0 WHERE id = $1', gone[0] as number);
    await tx.run('UPDATE finished_tasks SET finished_at = 0 WHERE task_id = $1', gone[0] as number);
    await tx.run("UPDATE sqlite_sequence SET seq = 500000 WHERE name = 'agents'");
  });
  await server.app.get(QueueMaintainer).purge();
  expect(await server.rows('SELECT id FROM tasks WHERE id = $1', gone[0] as number)).toEqual([]);
  const { body: stats } = await server.operator('GET', '/v1/tasks/stats');
  expect(stats.depths.map(({ state }) => state).sort()).toEqual([
    'cancelled',
    'completed',
    'dead',
    'leased',
    'queued',
    'scheduled',
  ]);
  expect(await server.database.read(brokenPromises)).toEqual([]);
  const [{ lease }] = await server.rows(
    `SELECT id AS lease FROM leases WHERE state = 'active' AND agent_id = $1`,
    one.agent_id,
  );
  // What is written a moment later.
  await server.app.get(AgentOutcomes).flush();
  await server.app.get(AgentAbout).flush();
  const reads = settled(await readAll(server));
  await server.stop({ keep: true });
  return {
    folder,
    agents: [one, three],
    lease,
    viewer,
    enrollment,
    last: { task: gone[0] as number, agent: 500_000 },
    reads,
  };
}

(POSTGRES ? describe : describe.skip)('a transfer to PostgreSQL', () => {
  let instance: Instance;
  beforeAll(async () => {
    instance = await makeInstance();
  });

  it('moves everything: the new servers answer the same, and go on where the old one ended', async () => {
    const { folder, agents, lease, viewer, enrollment, last, reads } = instance;
    const before = readFileSync(fileIn(folder));
    const target = await databases.create();
    const moved = await transfer(folder, target, '--json');
    expect([moved.code, moved.stderr.split('\n')[0]]).toEqual([0, 'Everything was copied. Left to do:']);
    expect(moved.stderr).toContain(join(folder, 'test.signing-key.pem'));
    expect(readFileSync(fileIn(folder)).equals(before)).toBe(true);
    const { tables } = JSON.parse(moved.stdout);
    const rows = Object.fromEntries(tables.map((each: Json) => [each.table, each.rows]));
    expect({ ...rows, audit_log: rows.audit_log + 1 }).toEqual({
      ...Object.fromEntries(tables.map((each: Json) => [each.table, 0])),
      ...(await rowsIn(target)),
    });

    const server = await start(folder, target);
    const now = settled(await readAll(server));
    const [{ id: first }] = reads['/v1/audit'];
    const added = now['/v1/audit'].filter(({ id }: Json) => id > first);
    expect(added.map(({ action }: Json) => action)).toEqual(['database.transfer']);
    expect(added[0].after).toMatchObject({ from: fileIn(folder), rows: { tasks: rows.tasks } });
    now['/v1/audit'] = now['/v1/audit'].slice(1);
    expect(now).toEqual(reads);
    expect((await server.operator('GET', '/v1/audit/verification')).body).toMatchObject({ intact: true });

    const as = (token: string) => ({ headers: { authorization: `Bearer ${token}` } });
    expect((await server.request('GET', '/v1/agents', as(viewer))).status).toBe(200);
    const [one] = agents as [Credentials];
    for (const agent of agents) expect((await server.agent(agent, '/heartbeat')).status).toBe(200);
    expect((await server.request('GET', '/config', { headers: credentialsOf(one) })).body.config.n).toBe(2);
    const report = { completed: [{ lease_id: lease }], cancelled: [] };
    expect((await server.agent(one, '/report', report)).body).toEqual({ acknowledged: 1 });

    const again = await server.operator('POST', '/v1/tasks', ENQUEUED, KEY);
    expect([again.status, again.body.tasks]).toEqual([
      201,
      [
        {
          id: reads['/v1/tasks'].find((task: Json) => task.state === 'scheduled' && task.unique_key).id,
          state: 'scheduled',
        },
      ],
    ]);
    expect(await server.enqueue(dnsTask())).toEqual([last.task + 1]);
    const { body } = await server.request('POST', '/register', {
      body: { hostname: 'later' },
      headers: { 'x-enrollment-token': enrollment },
    });
    expect(body.agent_id).toBe(last.agent + 1);
    const claimed = (await server.agent(one, '/claim', { capacities: { dns: 1 } })).body.leases;
    expect(claimed[0].lease_id).toBeGreaterThan(lease);
    // The first task of a kind has a lane made for it.
    const [{ lanes }] = await rowsAt(target, 'SELECT max(id) AS lanes FROM lanes');
    await server.enqueue({ kind: 'tcp', spec: { host: 'later.example', port: 53 } });
    const [{ made }] = await rowsAt(target, `SELECT id AS made FROM lanes WHERE kind = 'tcp'`);
    expect(made).toBeGreaterThan(lanes);
    // What was limited still is, and what waited behind a limit is claimed when its slot is free.
    const full = { kind: 'dns', target: 'full.example:53', limit: 1 };
    const windows = (await server.operator('GET', '/v1/concurrency/windows')).body.items;
    expect(windows).toContainEqual(
      expect.objectContaining({ scope: 'target', ...full, leased: 1, queued: 2, available: 0 }),
    );
    await server.operator('POST', `/v1/tasks/cancel`, { target: 'full.example', state: 'leased' });
    const all = (await server.agent(one, '/claim', { capacities: { dns: 256 } })).body.leases;
    expect(all.filter(({ spec }) => (spec as Json).server === 'full.example')).toHaveLength(1);
    expect(await brokenAt(target)).toEqual([]);
    await server.stop({ keep: true });

    const refused = await transfer(folder, target);
    expect([refused.code, refused.stdout]).toEqual([1, '']);
    expect(refused.stderr).toMatch(/^The target is not empty \(agent_about, .*Nothing was changed/);
  });

  it('shows a table, and fills a database that was only migrated', async () => {
    const target = await databases.create();
    await run(['migrate'], { env: { DATABASE_URL: target } });
    const moved = await transfer(instance.folder, target);
    expect([moved.code, moved.stdout.split('\n')[0]]).toEqual([
      0,
      expect.stringMatching(/^TABLE +ROWS +CHECKSUM$/),
    ]);
    expect(moved.stdout).toMatch(/^tasks +2\d{3} +[0-9a-f]{32}$/m);
  });

  it('leaves the target empty where the copy fails half-way, and can be tried again', async () => {
    const folder = newFolder();
    copyFileSync(fileIn(instance.folder), fileIn(folder));
    const target = await databases.create();
    const faults: [fault: string, remedy: string, said: RegExp][] = [
      [
        "UPDATE leases SET observations = observations || char(0) WHERE state = 'completed'",
        // Not replace(): for SQLite a text that begins with the character is empty.
        `UPDATE leases SET observations = CAST(substr(CAST(observations AS blob), 1, length(CAST(observations AS blob)) - 1)
         AS text) WHERE state = 'completed'`,
        /^leases\.observations holds the character U\+0000/,
      ],
      [
        'UPDATE agent_metrics SET agent_id = agent_id + 900',
        'UPDATE agent_metrics SET agent_id = agent_id - 900',
        /^The transfer failed: .*agent_metrics.*foreign key/,
      ],
    ];
    for (const [fault, remedy, said] of faults) {
      change(folder, fault);
      const failed = await transfer(folder, target);
      expect([failed.code, failed.stdout]).toEqual([1, '']);
      expect(failed.stderr).toMatch(said);
      expect(await rowsIn(target)).toEqual(NO_ROWS);
      change(folder, remedy);
    }
    expect((await transfer(folder, target)).code).toBe(0);
  });

  it.each([
    [
      'changes a value',
      'NEW.priority := NEW.priority + 1; RETURN NEW;',
      /^The copy of tasks is not what was sent/,
    ],
    ['drops a row', 'RETURN NULL;', /^The copy of tasks is not what was sent \(\d+ rows of \d+\)/],
  ])('notices a target that %s', async (_what, body, said) => {
    const target = await databases.create();
    await run(['migrate'], { env: { DATABASE_URL: target } });
    // On a task that nothing refers to.
    await rowsAt(
      target,
      `CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN ${body} END $$;
       CREATE TRIGGER spoil BEFORE INSERT ON tasks FOR EACH ROW WHEN (NEW.unique_key IS NOT NULL)
       EXECUTE FUNCTION spoil()`,
    );
    const failed = await transfer(instance.folder, target);
    expect([failed.code, failed.stderr]).toEqual([1, expect.stringMatching(said)]);
    expect(await rowsIn(target)).toEqual(NO_ROWS);
  });

  it('leaves a database alone that something else uses', async () => {
    const target = await databases.create();
    await rowsAt(target, 'CREATE TABLE somebody_elses (id integer)');
    const refused = await transfer(instance.folder, target);
    expect([refused.code, refused.stderr]).toEqual([
      1,
      expect.stringContaining('not empty (somebody_elses)'),
    ]);
    expect(await rowsIn(target)).toEqual({});
  });

  it('refuses a source that a server runs on, or that is not there or not migrated', async () => {
    const target = await databases.create();
    const folder = newFolder();
    const missing = await transfer(folder, target);
    expect([missing.code, missing.stderr]).toEqual([1, expect.stringContaining('There is no database')]);
    expect(readdirSync(folder)).toEqual([]);
    const server = await startOnFile(folder);
    const running = await transfer(folder, target);
    expect([running.code, running.stderr]).toEqual([3, expect.stringContaining('Another process is using')]);
    await server.stop({ keep: true });
    change(folder, `INSERT INTO migrations ("timestamp", name) VALUES (1, 'OfAnotherVersion')`);
    const old = await transfer(folder, target);
    expect([old.code, old.stderr]).toEqual([1, expect.stringContaining('control-plane migrate')]);
    expect(await rowsIn(target)).toEqual(NO_ROWS);
  });

  it('copies what extensions keep, and refuses to leave it behind', async () => {
    const folder = newFolder();
    const env = { EXTENSIONS: WHOIS };
    const from = `sqlite://${fileIn(folder)}`;
    // As processes: extensions register hooks of the module loader, which is not a test's to change.
    const made = await spawnCommand(['migrate'], { cwd: folder, env: { ...env, DATABASE_URL: from } });
    expect(made.code).toBe(0);
    const tables = new Sqlite(fileIn(folder), { readonly: true });
    const [name] = tables
      .prepare(`SELECT name FROM sqlite_schema WHERE name LIKE 'whois%' AND type = 'table'`)
      .pluck()
      .all();
    const columns = tables.prepare('SELECT name, type FROM pragma_table_info(?)').all(name) as {
      name: string;
      type: string;
    }[];
    tables.close();
    change(
      folder,
      `INSERT INTO ${name} (${columns.map((column) => column.name).join(', ')})
       VALUES (${columns.map(({ type }) => (/int/i.test(type) ? '7' : "'kept'")).join(', ')})`,
    );
    const target = await databases.create();
    const refused = await run(['transfer', '--from', from, '--to', target], { cwd: folder });
    expect([refused.code, refused.stderr]).toEqual([
      1,
      expect.stringMatching(new RegExp(`left behind: .*${name}.*CONTROL_PLANE_EXTENSIONS`)),
    ]);
    const moved = await spawnCommand(['transfer', '--from', from], {
      cwd: folder,
      env: { ...env, DATABASE_URL: target },
    });
    expect([moved.code, moved.stderr]).toEqual([0, expect.stringContaining('Everything was copied')]);
    expect(Object.values((await rowsAt(target, `SELECT * FROM ${name}`))[0])).toEqual(
      columns.map(({ type }) => (/int/i.test(type) ? 7 : 'kept')),
    );
  });

  it('passes over ids where the source is a backup', async () => {
    const backup = newFolder();
    const env = { DATABASE_URL: `sqlite://${fileIn(instance.folder)}` };
    const written = await run(['backup', fileIn(backup)], { env });
    expect([written.code, written.stderr]).toEqual([0, expect.any(String)]);
    const target = await databases.create();
    expect((await transfer(backup, target)).code).toBe(0);
    const server = await start(instance.folder, target);
    expect((await server.enqueue(dnsTask()))[0]).toBeGreaterThan(2 ** 32);
    await server.stop({ keep: true });
  });

  it('goes on with the ids of a source that was restored from a backup', async () => {
    const restoredAt = newFolder();
    const env = { DATABASE_URL: `sqlite://${fileIn(instance.folder)}` };
    const written = await run(['backup', fileIn(restoredAt)], { env });
    expect([written.code, written.stderr]).toEqual([0, expect.any(String)]);
    const source = await startOnFile(restoredAt);
    const [before] = await source.enqueue(dnsTask());
    await source.stop({ keep: true });
    const target = await databases.create();
    const moved = await transfer(restoredAt, target);
    expect([moved.code, moved.stderr]).toEqual([0, expect.stringContaining('Everything was copied')]);
    const server = await start(restoredAt, target);
    expect(await server.enqueue(dnsTask())).toEqual([(before as number) + 1]);
    await server.stop({ keep: true });
  });

  describe('after a restore', () => {
    const restored = (database: string, ...args: string[]) =>
      run(['restored', ...args], { env: { DATABASE_URL: database } });

    it('has ids and the configuration go on beyond all that were given, and records it', async () => {
      const target = await databases.create();
      expect((await transfer(instance.folder, target)).code).toBe(0);
      const settled = await restored(target, '--json');
      expect([settled.code, settled.stderr]).toEqual([0, '']);
      const after = JSON.parse(settled.stdout).ids_go_on_after;
      // At once: only one of them publishes the configuration again.
      const [server, other] = await Promise.all([0, 1].map(() => start(instance.folder, target)));
      if (!server || !other) throw new Error('two servers were to start');
      const busy = await restored(target);
      expect([busy.code, busy.stderr]).toEqual([3, expect.stringContaining('stop them all first')]);
      expect(after.tasks).toBeGreaterThan(2 ** 32);
      expect(await server.enqueue(dnsTask())).toEqual([after.tasks + 1]);
      const [one] = instance.agents as [Credentials];
      const { leases } = (await server.agent(one, '/claim', { capacities: { dns: 100 } })).body;
      expect(leases[0].lease_id).toBe(after.leases + 1);
      await server.enqueue({ kind: 'tcp', spec: { host: 'later.example', port: 53 } });
      const [lane] = await rowsAt(target, `SELECT id FROM lanes WHERE kind = 'tcp'`);
      expect(lane.id).toBeGreaterThan(after.lanes);
      const bundle = (await server.request('GET', '/config', { headers: credentialsOf(one) })).body;
      expect([bundle.seq, bundle.config.n]).toEqual([after.agent_configs + 1, 2]);
      expect((await other.request('GET', '/config', { headers: credentialsOf(one) })).body).toEqual(bundle);
      const signed = (await other.operator('GET', '/v1/audit?action=config.re-sign')).body.items;
      expect(signed).toHaveLength(1);
      await other.stop({ keep: true });
      const { items } = (await server.operator('GET', '/v1/audit?action=database.restore')).body;
      expect(items).toMatchObject([{ subject: 'database', after: { ids_go_on_after: after } }]);
      expect((await server.operator('GET', '/v1/audit/verification')).body.intact).toBe(true);
      await server.stop({ keep: true });

      // Once more, from what is there now: further on again. And nothing is published again without need.
      const again = await start(instance.folder, target);
      expect((await again.request('GET', '/config', { headers: credentialsOf(one) })).body.seq).toBe(
        bundle.seq,
      );
      await again.stop({ keep: true });
      const further = JSON.parse((await restored(target, '--json')).stdout).ids_go_on_after;
      expect(further.tasks).toBeGreaterThan(after.tasks + 2 ** 31);
    });

    it('has the configuration signed again where the key is lost', async () => {
      const target = await databases.create();
      expect((await transfer(instance.folder, target)).code).toBe(0);
      const env = { SIGNING_KEY_FILE: join(newFolder(), 'another.pem') };
      await expect(start(instance.folder, target, env)).rejects.toThrow(
        /lacks the key .*control-plane restored/,
      );
      expect((await restored(target)).code).toBe(0);
      const server = await start(instance.folder, target, env);
      const headers = credentialsOf(instance.agents[0] as Credentials);
      const bundle = (await server.request('GET', '/config', { headers })).body;
      const { keys } = (await server.request('GET', '/.well-known/jwks.json')).body;
      const { kid } = JSON.parse(Buffer.from(bundle.signature.split('.')[0], 'base64url').toString());
      expect([keys.map((key) => key.kid), bundle.config.n]).toEqual([[kid], 2]);
      await server.stop({ keep: true });
    });
  });
});

describe('moving', () => {
  const SECRET = 'a-pass-word';

  it.each([
    ['no such form', 'mysql://x', 'postgres://h/d', /--from must be sqlite:/],
    ['a server as the source', `postgres://u:${SECRET}@h/d`, 'postgres://h/d', /--from must name a SQLite/],
    ['a source in memory', 'sqlite::memory:', 'postgres://h/d', /--from must name a SQLite/],
    [
      'a target without database',
      'sqlite://a.db',
      `postgres://u:${SECRET}@h`,
      /--to must name a host and a database/,
    ],
    ['a file as the target', 'sqlite://a.db', 'sqlite://b.db', /--to must name a PostgreSQL/],
  ])('refuses %s and keeps the password to itself', async (_what, from, to, said) => {
    const { code, stdout, stderr } = await run(['transfer', '--from', from, '--to', to], {
      cwd: newFolder(),
    });
    expect([code, stdout, stderr]).toEqual([2, '', expect.stringMatching(said)]);
    expect(stderr).not.toContain(SECRET);
  });

  it('says that a server is not reachable, without the password', async () => {
    const folder = newFolder();
    await (await startOnFile(folder)).stop({ keep: true });
    const { code, stderr } = await transfer(folder, `postgres://u:${SECRET}@127.0.0.1:1/d`);
    expect([code, stderr]).toEqual([
      3,
      expect.stringMatching(/^The PostgreSQL server can't be used: .*ECONNREFUSED/),
    ]);
    expect(stderr).not.toContain(SECRET);
  });

  it('passes over ids of a file that was put back by other means', async () => {
    const folder = newFolder();
    await (await startOnFile(folder)).stop({ keep: true });
    const env = { DATABASE_URL: `sqlite://${fileIn(folder)}` };
    expect((await run(['restored'], { env })).code).toBe(0);
    const server = await startOnFile(folder);
    expect((await server.enqueue(dnsTask()))[0]).toBeGreaterThan(2 ** 32);
    await server.stop({ keep: true });
    const missing = await run(['restored'], { cwd: newFolder(), env: { DATABASE_URL: 'sqlite://none.db' } });
    expect([missing.code, missing.stderr]).toEqual([1, expect.stringContaining('There is no database')]);
  });
});
