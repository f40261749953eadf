import { randomUUID } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { importOriginal } from '../../src/cli/import-original';
import { readSettings } from '../../src/settings';
import type { Lease } from '../helpers/api';
import { spawnCommand } from '../helpers/command-line';
import {
  type Answer,
  credentialsOf,
  databaseIn,
  removeDatabaseIn,
  TestClock,
  TestServer,
} from '../helpers/harness';
import { writeOriginal } from '../helpers/original-database';
import { brokenPromises } from '../helpers/queue-tables';

const TOKENS = Array.from({ length: 6 }, () => randomUUID());

describe('a take-over from the original control plane', () => {
  let folder: string;
  let original: string;
  let server: TestServer | undefined;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
    original = join(folder, 'original.db');
    server = undefined;
  });
  afterEach(async () => {
    await server?.stop();
    await removeDatabaseIn(folder);
  });

  const settings = async (env: Record<string, string> = {}) =>
    readSettings({
      CONTROL_PLANE_DATABASE_URL: await databaseIn(folder),
      CONTROL_PLANE_MIN_FREE_DISK_MB: '0',
      ...env,
    });
  const take = async (dryRun = false) => importOriginal(await settings(), original, dryRun);
  /** A server on the database that was imported into. */
  const serve = async (): Promise<TestServer> => {
    server = await TestServer.start({}, { folder });
    return server;
  };
  const heartbeat = (on: TestServer, id: number, token: string | undefined): Promise<Answer> =>
    on.agent({ agent_id: id, auth_token: String(token) }, '/heartbeat');
  const write = () =>
    writeOriginal(original, {
      agents: [
        {
          id: 1,
          hostname: 'Probe-1.example',
          auth_token: String(TOKENS[1]),
          last_heartbeat: '2025-12-01 08:00:00',
        },
        { id: 2, hostname: 'probe-2', auth_token: String(TOKENS[2]), disabled: 1 },
        { id: 3, hostname: 'probe-3', auth_token: String(TOKENS[3]), revoked: 1 },
        { id: 4, hostname: 'probe-4', auth_token: 'a-token-by-hand' },
      ],
      tasks: [
        { id: 10, kind: 'dns', spec: { query: 'example.com' }, status: 'leased' },
        { id: 11, kind: 'dns', spec: { query: 'example.com', server: '192.0.2.53' } },
        { id: 12, kind: 'http', spec: { url: 'HTTP://Shop.Example' } },
        { id: 13, kind: 'http', spec: { url: 'http:///nowhere' } },
        { id: 14, kind: 'tcp', spec: { host: 'shop.example', port: 443 } },
        { id: 15, kind: 'ping', spec: 'no JSON' },
        { id: 16, kind: 'smtp', spec: { host: 'mail.example' } },
      ],
      sequences: { agent_id: 7, task_id: 40, lease_id: 900 },
    });

  it('keeps ids and tokens, so that agents go on, and gives their work out in order', async () => {
    write();
    expect(await take()).toMatchObject({
      dry_run: false,
      agents: { taken_over: 4, already_there: 0 },
      tasks: { taken_over: 3, invalid: 3, held_by_agents: 1 },
      ids_go_on_after: { agents: 7, tasks: 40, leases: 900 },
      notes: [
        { subject: 'agent/4', note: expect.stringContaining('token') },
        { subject: 'task/13', note: expect.stringContaining('spec.url') },
        { subject: 'task/15', note: expect.stringContaining('spec') },
        { subject: 'task/16', note: expect.stringContaining('must be one of dns, http, ping, tcp, trace') },
      ],
    });
    const on = await serve();
    expect(await on.database.read(brokenPromises)).toEqual([]);
    expect(await heartbeat(on, 1, TOKENS[1])).toMatchObject({ status: 200, body: { agent_id: 1 } });
    expect((await heartbeat(on, 2, TOKENS[2])).status).toBe(403);
    expect((await heartbeat(on, 3, TOKENS[3])).status).toBe(403);
    // Only its own token, and only whole.
    for (const [id, token] of [
      [1, TOKENS[2]],
      [1, randomUUID()],
      [1, TOKENS[1]?.toUpperCase()],
      [4, 'a-token-by-hand'],
      [9, TOKENS[1]],
    ] as const)
      expect((await heartbeat(on, id, token)).status).toBe(401);

    const one = { agent_id: 1, auth_token: String(TOKENS[1]) };
    const capacities = { dns: 5, http: 5, tcp: 5, ping: 5 };
    const leases: Lease[] = [];
    for (let i = 0; i < 50 && leases.length < 3; i++)
      leases.push(...(await on.agent(one, '/claim', { capacities, wait_ms: 200 })).body.leases);
    expect(leases.map(({ kind, spec }) => [kind, spec])).toEqual(
      expect.arrayContaining([
        ['dns', { kind: 'dns', query: 'example.com', server: '192.0.2.53' }],
        ['http', { kind: 'http', url: 'http://shop.example/' }],
        ['tcp', { kind: 'tcp', host: 'shop.example', port: 443 }],
      ]),
    );
    // Beyond all that the original gave: an agent may still hold its leases.
    for (const lease of leases) expect([lease.lease_id > 900, lease.task_id > 40]).toEqual([true, true]);
    const report = { completed: leases.map(({ lease_id }) => ({ lease_id })), cancelled: [] };
    expect((await on.agent(one, '/report', report)).body).toMatchObject({ acknowledged: 3 });
    expect((await on.register('somebody-new')).agent_id).toBeGreaterThan(7);
    const [entry] = (await on.operator('GET', '/v1/audit?action=database.import-original')).body.items;
    expect(entry.after).toMatchObject({ agents: { taken_over: 4 }, tasks: { taken_over: 3 } });
    expect(JSON.stringify(entry)).not.toContain(TOKENS[1]);
    expect((await on.operator('GET', '/v1/audit/verification')).body.intact).toBe(true);
    const depths = (await on.operator('GET', '/v1/tasks/stats')).body.depths;
    expect(depths.map((depth) => [depth.kind, depth.state, depth.count])).toEqual([
      ['dns', 'completed', 1],
      ['http', 'completed', 1],
      ['tcp', 'completed', 1],
    ]);
  });

  it('lets an agent rotate and register as any other', async () => {
    write();
    await take();
    const clock = new TestClock(Date.now());
    server = await TestServer.start({}, { folder, clock });
    const on = server;
    const one = { agent_id: 1, auth_token: String(TOKENS[1]) };
    // It stays silent, so who comes by its hostname gets it back: the original's agents keep no token when they restart.
    await on.pass(50_000, { reaps: false });
    const again = await on.request('POST', '/register', { body: { hostname: 'Probe-1.example' } });
    expect(again).toMatchObject({ status: 200, body: { agent_id: 1 } });
    expect((await heartbeat(on, 1, again.body.auth_token)).status).toBe(200);
    expect((await heartbeat(on, 1, one.auth_token)).status).toBe(401);
    const rotated = await on.operator('POST', '/v1/agents/4/rotate', {});
    expect((await heartbeat(on, 4, rotated.body.auth_token)).status).toBe(200);
  });

  it('is a proof for a registration: the token of the original', async () => {
    write();
    await take();
    const on = await serve();
    const one = { agent_id: 1, auth_token: String(TOKENS[1]) };
    expect((await heartbeat(on, 1, TOKENS[1])).status).toBe(200);
    const body = { hostname: 'Probe-1.example' };
    expect((await on.request('POST', '/register', { body })).status).toBe(409);
    expect(await on.request('POST', '/register', { body, headers: credentialsOf(one) })).toMatchObject({
      status: 200,
      body: { agent_id: 1 },
    });
  });

  it('can be repeated: what is new is taken over, and nothing twice', async () => {
    write();
    await take();
    expect(await take()).toMatchObject({
      agents: { taken_over: 0, already_there: 4 },
      tasks: { taken_over: 0, invalid: 0 },
    });
    writeOriginal(original, {
      agents: [{ id: 8, hostname: 'probe-8', auth_token: String(TOKENS[5]) }],
      tasks: [{ id: 41, kind: 'ping', spec: { host: 'probe.example' } }],
      sequences: { agent_id: 8, task_id: 41 },
    });
    expect(await take()).toMatchObject({
      agents: { taken_over: 1, already_there: 4 },
      tasks: { taken_over: 1, invalid: 0 },
    });
    const on = await serve();
    expect((await heartbeat(on, 8, TOKENS[5])).status).toBe(200);
    const [{ n }] = (await on.rows('SELECT count(*) AS n FROM tasks')) as [{ n: number }];
    expect(n).toBe(4);
  });

  it('rehearsed keeps nothing', async () => {
    write();
    const before = readFileSync(original);
    const rehearsed = await take(true);
    expect(rehearsed).toMatchObject({ dry_run: true, agents: { taken_over: 4 }, tasks: { taken_over: 3 } });
    expect(await take()).toEqual({ ...rehearsed, dry_run: false });
    expect(readFileSync(original).equals(before)).toBe(true);
  });

  it('rehearsed makes nothing in a database that is empty', async () => {
    write();
    const target = await settings();
    const { database } = target;
    const tables = async (): Promise<unknown> => {
      if (database.type === 'sqlite') return existsSync(database.path);
      const client = new pg.Client(database.url);
      await client.connect();
      const found = await client.query(
        `SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace`,
      );
      await client.end();
      return found.rows.length > 0;
    };
    if (database.type === 'sqlite') rmSync(database.path);
    else {
      const client = new pg.Client(database.url);
      await client.connect();
      await client.query('DROP SCHEMA public CASCADE; CREATE SCHEMA public');
      await client.end();
    }
    expect(await importOriginal(target, original, true)).toMatchObject({
      dry_run: true,
      agents: { taken_over: 4 },
      tasks: { taken_over: 3, invalid: 3 },
      ids_go_on_after: { agents: 7, tasks: 40, leases: 900 },
    });
    expect(await tables()).toBe(false);
    expect(await importOriginal(target, original, false)).toMatchObject({ agents: { taken_over: 4 } });
  });

  it('rehearsed migrates nothing, and says what is to be done first', async () => {
    write();
    // What the database lacks is a migration of the extension. Had one rehearsal applied it, the next would go through.
    const env = {
      DATABASE_URL: await databaseIn(folder),
      EXTENSIONS: join(__dirname, '../../examples/whois-kind'),
      MIN_FREE_DISK_MB: '0',
    };
    for (let i = 0; i < 2; i++) {
      // A process, since an extension is loaded by Node's own hooks.
      const args = ['import-original', original, '--dry-run'];
      const { code, stdout, stderr } = await spawnCommand(args, { cwd: folder, env });
      expect([code, stdout, stderr]).toEqual([
        1,
        '',
        expect.stringMatching(/^[^\n]* lacks migrations, [^\n]*control-plane migrate[^\n]*\n$/),
      ]);
    }
  });

  it('keeps nothing of what clashes with agents that are there', async () => {
    write();
    const on = await serve();
    await on.register('already-here');
    await on.stop({ keep: true });
    server = undefined;
    await expect(take()).rejects.toThrow(/agents of its own under ids of the original's \(1\)/);
    const again = await serve();
    expect((await again.operator('GET', '/v1/agents')).body.items).toHaveLength(1);
    expect((await again.operator('GET', '/v1/tasks')).body.items).toEqual([]);
    expect((await again.operator('GET', '/v1/audit?action=database.import-original')).body.items).toEqual([]);
  });

  it('goes beside agents that are there under other ids; who has the hostname keeps it', async () => {
    writeOriginal(original, {
      agents: [{ id: 50, hostname: 'Already-Here.', auth_token: String(TOKENS[1]) }],
      sequences: { agent_id: 50 },
    });
    let on = await serve();
    const first = await on.register('already-here');
    await on.stop({ keep: true });
    server = undefined;
    expect(await take()).toMatchObject({
      agents: { taken_over: 1 },
      notes: [{ subject: 'agent/50', note: expect.stringContaining('hostname') }],
    });
    on = await serve();
    expect((await heartbeat(on, 50, TOKENS[1])).status).toBe(200);
    expect((await heartbeat(on, first.agent_id, first.auth_token)).status).toBe(200);
  });

  it('takes thousands of tasks', async () => {
    const tasks = Array.from({ length: 2_500 }, (_, i) => ({
      id: i + 1,
      kind: 'dns',
      spec: { query: `q${i}` },
    }));
    writeOriginal(original, { tasks, sequences: { task_id: 2_500 } });
    expect(await take()).toMatchObject({ tasks: { taken_over: 2_500 } });
    const on = await serve();
    const [first] = await on.rows<{ spec: string }>('SELECT spec FROM tasks ORDER BY id');
    expect(JSON.parse(first?.spec ?? '')).toEqual({ kind: 'dns', query: 'q0' });
  });
});
