import {
  copyFileSync,
  existsSync,
  linkSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { run } from '../helpers/command-line';
import { type Credentials, dnsTask, TestClock, TestServer } from '../helpers/harness';
import { brokenPromises } from '../helpers/queue-tables';
import { until } from '../helpers/until';

const folders: string[] = [];

function newFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
  folders.push(folder);
  return folder;
}

afterAll(() => {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
});

const backUp = (folder: string, ...args: string[]) =>
  run(['backup', ...args], { cwd: folder, env: { DATABASE_URL: 'sqlite://test.db' } });

/** A new server on a copy of a backup, with the old one's signing key where it is to have that. */
function restore(
  file: string,
  { key, clock }: { key?: string; clock?: TestClock } = {},
): Promise<TestServer> {
  const folder = newFolder();
  copyFileSync(file, join(folder, 'test.db'));
  if (key !== undefined) copyFileSync(key, join(folder, 'test.signing-key.pem'));
  return TestServer.start({}, { folder, clock });
}

async function claim(server: TestServer, agent: Credentials, capacity = 256): Promise<number[]> {
  const { body } = await server.agent(agent, '/claim', { capacities: { dns: capacity } });
  return body.leases.map((lease: { lease_id: number }) => lease.lease_id);
}

describe('a backup', () => {
  it('is consistent under load, and after a restore nothing that was given since is given again', async () => {
    const folder = newFolder();
    const old = await TestServer.start({}, { folder });
    const kid = (await old.request('GET', '/.well-known/jwks.json')).body.keys[0].kid;
    const publish = (seq: number, config: string) =>
      old.database.write((tx) =>
        tx.run(
          `INSERT INTO agent_configs (seq, revision, issued_at, expires_at, config, kid, signature)
           VALUES ($1, $2, 0, $3, $4, $5, 'of the old server')`,
          seq,
          `revision-${seq}`,
          Date.now() + 3_600_000,
          config,
          kid,
        ),
      );
    await publish(1, '{"from":"before"}');

    const acknowledged = { tasks: new Set<number>(), reports: new Set<number>() };
    const given = { tasks: 0, leases: 0, agents: 0 };
    let stop = false;
    const agents = await Promise.all(Array.from({ length: 4 }, (_, i) => old.register(`agent-${i}`)));
    const work = async (agent: Credentials) => {
      while (!stop) {
        const tasks = await old.enqueue(dnsTask(), dnsTask(), dnsTask());
        for (const id of tasks) acknowledged.tasks.add(id);
        given.tasks = Math.max(given.tasks, ...tasks);
        const leases = await claim(old, agent, 4);
        given.leases = Math.max(given.leases, ...leases);
        const { body } = await old.agent(agent, '/report', {
          completed: leases.map((lease_id) => ({
            lease_id,
            observations: [{ name: 'lease', value: lease_id }],
          })),
          cancelled: [],
        });
        expect(body).toEqual({ acknowledged: leases.length });
        for (const id of leases) acknowledged.reports.add(id);
      }
    };
    const reported = (count: number) => {
      const enough = acknowledged.reports.size + count;
      return until(`${count} reports more are acknowledged`, () => acknowledged.reports.size >= enough);
    };
    const working = agents.map(work);
    await reported(50);
    const before = { tasks: new Set(acknowledged.tasks), reports: new Set(acknowledged.reports) };
    const file = join(newFolder(), 'backup.db');
    const written = await backUp(folder, file, '--json');
    expect([written.code, JSON.parse(written.stdout)]).toEqual([0, { file, bytes: statSync(file).size }]);
    expect(statSync(file).mode & 0o777).toBe(0o600);
    expect(readdirSync(join(file, '..'))).toEqual(['backup.db']);
    await reported(50);
    stop = true;
    await Promise.all(working);
    const latecomer = await old.register('after-the-backup');
    given.agents = latecomer.agent_id;
    given.tasks = Math.max(given.tasks, ...(await old.enqueue(dnsTask())));
    const [lost] = (await claim(old, agents[0] as Credentials, 1)) as [number];
    given.leases = Math.max(given.leases, lost);
    await publish(2, '{"from":"after"}');
    await old.stop({ keep: true });

    const server = await restore(file, { key: join(folder, 'test.signing-key.pem') });
    expect(await server.rows('PRAGMA integrity_check')).toEqual([{ integrity_check: 'ok' }]);
    const tasks = new Set((await server.rows('SELECT id FROM tasks')).map(({ id }) => id));
    expect([...before.tasks].filter((id) => !tasks.has(id))).toEqual([]);
    const leasesBefore = new Map(
      (await server.rows('SELECT id, state, observations FROM leases')).map((row) => [row.id, row]),
    );
    for (const id of before.reports)
      expect(leasesBefore.get(id)).toMatchObject({
        ...{ state: 'completed', observations: JSON.stringify([{ name: 'lease', value: id }]) },
      });
    expect(await server.database.read(brokenPromises)).toEqual([]);

    // A lease that the old server gave is unknown here, whichever agent gets the task now.
    const next = await server.enqueue(dnsTask(), dnsTask());
    expect(Math.min(...next)).toBeGreaterThan(given.tasks);
    const leases = await claim(server, agents[1] as Credentials);
    expect(leases.length).toBeGreaterThanOrEqual(2);
    expect(Math.min(...leases)).toBeGreaterThan(given.leases);
    const report = { completed: [{ lease_id: lost }], cancelled: [] };
    expect((await server.agent(agents[0] as Credentials, '/report', report)).body).toEqual({
      acknowledged: 0,
      rejected: [{ lease_id: lost, reason: 'unknown' }],
    });
    expect((await server.agent(latecomer, '/heartbeat')).status).toBe(401);
    expect((await server.register('after-the-backup')).agent_id).toBeGreaterThan(given.agents);

    // Agents that took the configuration of seq 2 take the one that is in force now.
    const { body: bundle } = await server.request('GET', '/config', {
      headers: {
        'x-agent-id': String(agents[0]?.agent_id),
        'x-agent-token': String(agents[0]?.auth_token),
      },
    });
    expect(bundle.config).toEqual({ from: 'before' });
    expect(bundle.seq).toBeGreaterThan(2);

    const restores = '/v1/audit?action=database.restore';
    const { items } = (await server.operator('GET', restores)).body;
    expect(items).toMatchObject([
      { operator_name: 'control-plane', subject: 'database', operator_token_id: null },
    ]);
    expect(items[0].after.ids_go_on_after.leases).toBe(Math.min(...leases) - 1);
    await server.enqueue({ kind: 'tcp', spec: { host: 'a.example', port: 53 } });
    expect(await server.rows(`SELECT id FROM lanes WHERE kind = 'tcp'`)).toEqual([
      { id: items[0].after.ids_go_on_after.lanes + 1 },
    ]);
    expect(await server.database.read(brokenPromises)).toEqual([]);
    expect((await server.operator('GET', '/v1/audit/verification')).body.intact).toBe(true);

    // Once: the next start goes on where this one ended.
    await server.stop({ keep: true });
    const again = await TestServer.start({}, { folder: server.folder });
    expect(await again.enqueue(dnsTask())).toEqual([Math.max(...next) + 2]);
    expect((await again.operator('GET', restores)).body.items).toHaveLength(1);
    await again.stop();
  }, 90_000);

  it('gives other ids each time it is restored, also for what it holds none of', async () => {
    const folder = newFolder();
    const origin = await TestServer.start({}, { folder });
    const agent = await origin.register('agent');
    const file = join(folder, 'backup.db');
    expect((await backUp(folder, file)).code).toBe(0);
    expect(await claimOne(origin)).toBe(1);
    await origin.stop({ keep: true });

    async function claimOne(server: TestServer): Promise<number> {
      await server.enqueue(dnsTask());
      return (await claim(server, agent))[0] as number;
    }
    const ids: number[] = [];
    for (const at of ['2030-01-01T00:00:00Z', '2030-01-01T01:00:00Z']) {
      const server = await restore(file, { clock: new TestClock(Date.parse(at)) });
      ids.push(await claimOne(server));
      await server.stop();
    }
    const [first, second] = ids as [number, number];
    expect(first).toBeGreaterThan(2 ** 32);
    // More than any server gives in an hour.
    expect(second - first).toBeGreaterThan(100_000_000);
    expect(Number.isSafeInteger(second)).toBe(true);
  });

  it('is made where no server runs, and replaces an earlier one only if that is asked for', async () => {
    const folder = newFolder();
    await (await TestServer.start({}, { folder })).stop({ keep: true });
    const file = join(folder, 'backup.db');
    const written = await backUp(folder, file);
    expect(written.code).toBe(0);
    expect(written.stderr).toContain('test.signing-key.pem');
    const { ino } = statSync(file);
    const refused = await backUp(folder, file);
    expect([refused.code, refused.stdout]).toEqual([1, '']);
    expect(refused.stderr).toMatch(/already exists.*--force/);
    expect(statSync(file).ino).toBe(ino);
    expect((await backUp(folder, file, '--force')).code).toBe(0);
    expect(statSync(file).ino).not.toBe(ino);
    const examined = await run(['doctor'], { cwd: folder, env: { DATABASE_URL: 'sqlite://backup.db' } });
    expect(examined.stdout).toMatch(/^warn {2}restore /m);
    await (await restore(file)).stop();
  });

  it('replaces nothing that is not a backup: a key, a database that was started on, a text, a link to any', async () => {
    const folder = newFolder();
    const keys = newFolder();
    const key = join(keys, 'key.pem');
    const env = { DATABASE_URL: 'sqlite://test.db', SIGNING_KEY_FILE: key };
    await (await TestServer.start({ SIGNING_KEY_FILE: key }, { folder })).stop({ keep: true });
    await (await TestServer.start({}, { folder: keys })).stop({ keep: true });
    writeFileSync(join(folder, 'notes.txt'), 'of last night');
    symlinkSync(key, join(folder, 'link.db'));
    linkSync(key, join(folder, 'hard-link.db'));
    for (const path of [
      key,
      join(keys, 'test.db'),
      ...['notes.txt', 'link.db', 'hard-link.db'].map((name) => join(folder, name)),
    ]) {
      const before = readFileSync(path);
      const refused = await run(['backup', '--force', path], { cwd: folder, env });
      expect([path, refused.code, refused.stdout]).toEqual([path, 1, '']);
      expect(readFileSync(path)).toEqual(before);
    }
  });

  it('takes no name that a setting gives to a file that is not there yet, through a link either', async () => {
    const folder = newFolder();
    await (await TestServer.start({}, { folder })).stop({ keep: true });
    symlinkSync(folder, join(folder, 'same'));
    const env = { DATABASE_URL: 'sqlite://test.db', SIGNING_KEY_FILE: join(folder, 'later.pem') };
    for (const name of ['later.pem', 'same/later.pem', 'same/test.server.json', 'same/test.db-journal']) {
      const refused = await run(['backup', name], { cwd: folder, env });
      expect([name, refused.code, existsSync(join(folder, name))]).toEqual([name, 1, false]);
    }
  });

  it.each([
    ['the database', 'test.db'],
    ['its log', 'test.db-wal'],
    ['another name of it', 'linked.db'],
    ['the signing keys', 'test.signing-key.pem'],
    ["the admin's token", 'test.admin-token'],
  ])('never replaces %s', async (_what, name) => {
    const folder = newFolder();
    const server = await TestServer.start({}, { folder });
    linkSync(join(folder, 'test.db'), join(folder, 'linked.db'));
    const refused = await backUp(folder, name, '--force');
    expect([refused.code, refused.stderr]).toEqual([
      1,
      `${name} is one of the server's own files; name another.\n`,
    ]);
    expect((await server.enqueue(dnsTask())).length).toBe(1);
    await server.stop();
  });

  it('is not made of a database that is damaged or not there, and leaves nothing behind', async () => {
    const folder = newFolder();
    const missing = await backUp(folder, 'backup.db');
    expect([missing.code, missing.stderr]).toEqual([
      1,
      expect.stringMatching(/no database .*CONTROL_PLANE_DATABASE_URL/),
    ]);
    const server = await TestServer.start({}, { folder });
    await server.enqueue(...Array.from({ length: 1_000 }, () => dnsTask()));
    const [{ page }] = await server.rows(
      `SELECT rootpage AS page FROM sqlite_schema WHERE name = 'tasks_by_target'`,
    );
    await server.stop({ keep: true });
    // An index that nothing reads at opening: only a check of everything finds it.
    const file = await open(join(folder, 'test.db'), 'r+');
    await file.write(Buffer.alloc(200, 0xa5), 0, 200, page * 4_096 - 200);
    await file.close();
    const damaged = await backUp(folder, 'backup.db');
    expect([damaged.code, damaged.stderr]).toEqual([1, expect.stringContaining('The copy is damaged')]);
    expect(existsSync(join(folder, 'backup.db'))).toBe(false);
    expect(readdirSync(folder).filter((name) => name.includes('backup'))).toEqual([]);
  });
});
