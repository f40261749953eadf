import { randomUUID } from 'node:crypto';
import {
  chmodSync,
  existsSync,
  linkSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Sqlite from 'better-sqlite3';
import type { Json } from '../helpers/api';
import { ADMIN_TOKEN, type Credentials, credentialsOf, dnsTask } from '../helpers/harness';
import { endAll, Program, ServerProcess } from '../helpers/processes';
import { brokenPromises } from '../helpers/queue-tables';
import { until } from '../helpers/until';

const ROUNDS = 5;

/** Calls a server. @returns undefined if no answer came: the effect is unknown then @throws Error it was refused */
async function call(
  server: ServerProcess,
  path: string,
  body: object,
  headers: Record<string, string>,
): Promise<Json> {
  const answer = await server.request('POST', path, { headers, body }).catch(() => undefined);
  if (answer && answer.status >= 300)
    throw new Error(`${path}: ${answer.status} ${JSON.stringify(answer.body)}`);
  return answer?.body;
}

const operator = { authorization: `Bearer ${ADMIN_TOKEN}` };

describe('the process', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
  });
  afterEach(async () => {
    await endAll();
    rmSync(folder, { recursive: true, force: true });
  });

  it('loses nothing that it acknowledged when it is killed under load, round after round', async () => {
    /** What was acknowledged, whatever the round. */
    const acknowledged = {
      agents: new Map<string, Credentials>(),
      tasks: new Set<number>(),
      reports: new Map<number, { task: number; value: string }>(),
      metrics: new Map<string, number>(),
      configs: new Map<string, number>(),
      configStates: new Map<number, string>(),
    };
    /** Leases that the agents know of and have not reported, by the agent. */
    const held = new Map<number, Map<number, number>>();

    async function client(server: ServerProcess, name: string, until: () => boolean): Promise<void> {
      let who = acknowledged.agents.get(name);
      if (!who) {
        who = (await call(server, '/register', { hostname: name }, {})) as Credentials | undefined;
        if (!who) return;
        acknowledged.agents.set(name, who);
        held.set(who.agent_id, new Map());
      }
      const agent_id = who.agent_id;
      const mine = held.get(agent_id) as Map<number, number>;
      while (!until()) {
        const enqueued = await call(
          server,
          '/v1/tasks',
          { tasks: [dnsTask(), dnsTask(), dnsTask()] },
          { ...operator, 'idempotency-key': randomUUID() },
        );
        for (const task of enqueued?.tasks ?? []) acknowledged.tasks.add(task.id);
        const claimed = await call(
          server,
          '/claim',
          { agent_id, capacities: { dns: 4 } },
          credentialsOf(who),
        );
        for (const lease of claimed?.leases ?? []) mine.set(lease.lease_id, lease.task_id);
        // One lease of each claim is kept: it must still be ours after the crash.
        const reports = [...mine.keys()].slice(0, Math.max(0, mine.size - 1)).map((lease_id) => ({
          lease_id,
          observations: [{ name: 'value', value: `${name}-${lease_id}` }],
        }));
        const reported = await call(
          server,
          '/report',
          { agent_id, completed: reports, cancelled: [] },
          credentialsOf(who),
        );
        if (reported) {
          expect(reported).toEqual({ acknowledged: reports.length });
          for (const { lease_id, observations } of reports) {
            acknowledged.reports.set(lease_id, {
              task: mine.get(lease_id) as number,
              value: observations[0]?.value as string,
            });
            mine.delete(lease_id);
          }
        }
        const bundle = await call(server, '/v1/configs', { config: { name } }, operator);
        if (!bundle) continue;
        acknowledged.configs.set(bundle.revision, bundle.seq);
        const state = { config_revision: bundle.revision, config_status: 'applied' };
        if (await call(server, '/heartbeat', { agent_id, ...state }, credentialsOf(who)))
          acknowledged.configStates.set(agent_id, bundle.revision);
        const envelope = {
          agent_id,
          timestamp: new Date().toISOString(),
          gauges: [{ name: randomUUID(), value: 1 }],
        };
        const stored = await call(server, '/metrics', envelope, credentialsOf(who));
        if (stored) acknowledged.metrics.set(stored.id, agent_id);
      }
    }

    for (let round = 0; round < ROUNDS; round++) {
      const server = await ServerProcess.start(folder);
      let killed = false;
      const clients = Array.from({ length: 6 }, (_, i) =>
        client(server, `agent-${round % 2}-${i}`, () => killed),
      );
      const enough = acknowledged.reports.size + 40;
      await until('40 reports more are acknowledged', () => acknowledged.reports.size >= enough);
      // In the middle of whatever it is at.
      await new Promise((resolve) => setTimeout(resolve, Math.random() * 50));
      killed = true;
      expect(await server.end('SIGKILL')).toBeNull();
      await Promise.all(clients);
    }

    const server = await ServerProcess.start(folder);
    for (const who of acknowledged.agents.values()) {
      const mine = held.get(who.agent_id) as Map<number, number>;
      // The token works, and whatever the agent held it still holds: no lease ended while no server ran.
      const extended = await call(
        server,
        '/extend',
        { agent_id: who.agent_id, lease_ids: [...mine.keys()], extend_by_ms: 30_000 },
        credentialsOf(who),
      );
      const gone = extended.revoked.filter((id: number) => !reportedUnanswered(id));
      expect(gone).toEqual([]);
    }
    expect(await server.end('SIGTERM')).toBe(0);

    /** A report whose answer was lost with the process may have been stored: then the lease has ended by it. */
    function reportedUnanswered(leaseId: number): boolean {
      const file = new Sqlite(join(folder, 'control-plane.db'), { readonly: true });
      try {
        return (
          file.prepare(`SELECT 1 FROM leases WHERE id = ? AND state = 'completed'`).get(leaseId) !== undefined
        );
      } finally {
        file.close();
      }
    }

    const file = new Sqlite(join(folder, 'control-plane.db'), { readonly: true });
    const rows = <Row>(sql: string) => file.prepare(sql).all() as Row[];
    expect(rows('PRAGMA integrity_check')).toEqual([{ integrity_check: 'ok' }]);
    const tasks = new Map(
      rows<{ id: number; state: string }>('SELECT id, state FROM tasks').map((row) => [row.id, row.state]),
    );
    expect([...acknowledged.tasks].filter((id) => !tasks.has(id))).toEqual([]);
    const leases = new Map(
      rows<{ id: number; state: string; report: string | null; observations: string | null }>(
        'SELECT id, state, report, observations FROM leases',
      ).map((row) => [row.id, row]),
    );
    for (const [leaseId, { task, value }] of acknowledged.reports) {
      expect(leases.get(leaseId)).toMatchObject({
        ...{ state: 'completed', report: 'completed' },
        observations: JSON.stringify([{ name: 'value', value }]),
      });
      expect(tasks.get(task)).toBe('completed');
    }
    const configs = rows<{ revision: string; seq: number }>(
      'SELECT revision, seq FROM agent_configs ORDER BY seq',
    );
    expect(configs.map(({ seq }) => seq)).toEqual(configs.map((_, i) => i + 1));
    const seqs = new Map(configs.map(({ revision, seq }) => [revision, seq]));
    for (const [revision, seq] of acknowledged.configs) expect(seqs.get(revision)).toBe(seq);
    // What an agent was not answered may be stored, so what is there is what was acknowledged or a later one.
    const states = new Map(
      rows<{ agent_id: number; revision: string }>('SELECT * FROM agent_config_states').map((row) => [
        row.agent_id,
        seqs.get(row.revision) as number,
      ]),
    );
    for (const [agentId, revision] of acknowledged.configStates)
      expect(states.get(agentId)).toBeGreaterThanOrEqual(seqs.get(revision) as number);
    const metrics = new Set(
      rows<{ id: number }>('SELECT id FROM agent_metrics').map((row) => String(row.id)),
    );
    expect([...acknowledged.metrics.keys()].filter((id) => !metrics.has(id))).toEqual([]);
    expect(await brokenPromises({ rows: async (sql) => rows(sql) })).toEqual([]);
    file.close();
    expect(acknowledged.reports.size).toBeGreaterThanOrEqual(ROUNDS * 40);
  }, 90_000);

  it('answers long polls, says that it is not ready and ends with 0 when it is asked to stop', async () => {
    const server = await ServerProcess.start(folder);
    const who = await call(server, '/register', { hostname: 'probe-1' }, {});
    const waiting = call(
      server,
      '/claim',
      { agent_id: who.agent_id, capacities: { dns: 1 }, wait_ms: 30_000 },
      credentialsOf(who),
    );
    // Whatever of the two comes first, the claim is answered or never reached the server; it does not hold the stop up.
    await call(server, '/heartbeat', { agent_id: who.agent_id }, credentialsOf(who));
    expect(await server.end('SIGTERM')).toBe(0);
    expect(await waiting).toEqual({ leases: [] });
  });

  it('keeps a second process off the same file', async () => {
    await ServerProcess.start(folder);
    const second = Program.run(folder);
    expect(await second.ended()).toBe(1);
    expect(second.errors).toMatch(/Another process is using .*control-plane\.db/);
  });

  it('says in a line where it cannot listen, and why', async () => {
    const { url } = await ServerProcess.start(folder);
    const { host, port } = new URL(url);
    const elsewhere = { DATABASE_URL: 'sqlite::memory:' };
    const second = Program.run(folder, { env: { BIND: host, ...elsewhere } });
    expect(await second.ended()).toBe(1);
    expect(second.errors).toBe(
      `Can't listen on port ${port} of 127.0.0.1: another process listens there. ` +
        'CONTROL_PLANE_BIND says where to listen.\n',
    );
  });

  it('says in a line that its Node is too old, and what finds a newer one', async () => {
    const older = join(folder, 'older.cjs');
    writeFileSync(
      older,
      `Object.defineProperty(process, 'versions', { value: { node: '20.20.2', napi: '9' } });`,
    );
    const program = Program.run(folder, { variables: { NODE_OPTIONS: `--require ${older}` } });
    expect(await program.ended()).toBe(1);
    expect(program.errors).toBe(
      "This program needs Node 22.15 or newer; this is 20.20.2. In the project's folder, put scripts/with-node.sh before " +
        'the command: it finds or fetches a newer one.\n',
    );
  });

  it('says in a line that a file is not a database', async () => {
    writeFileSync(join(folder, 'notes.txt'), 'Notes, and nothing that SQLite ever wrote. '.repeat(99));
    const program = Program.run(folder, { env: { DATABASE_URL: 'sqlite://notes.txt' } });
    expect(await program.ended()).toBe(1);
    expect(program.errors).toMatch(/^.*notes\.txt can't be opened: it is not a database\.\n$/);
    expect(readdirSync(folder)).toEqual(['notes.txt']);
  });

  it('says in a line that a folder is not a database', async () => {
    const program = Program.run(folder, { env: { DATABASE_URL: `sqlite://${folder}` } });
    expect(await program.ended()).toBe(1);
    expect(program.errors).toMatch(/^.*can't be opened: it is not a file\.\n$/);
    expect(existsSync(`${folder}-lock`)).toBe(false);
  });

  (process.getuid?.() === 0 ? it : it.skip)('says in a line that it may not write the file', async () => {
    await ServerProcess.start(folder).then((server) => server.end('SIGTERM'));
    rmSync(join(folder, 'control-plane.db-lock'));
    chmodSync(folder, 0o777);
    chmodSync(join(folder, 'control-plane.db'), 0o444);
    const program = Program.run(folder, { as: { uid: 65_534, gid: 65_534 } });
    expect(await program.ended()).toBe(1);
    expect(program.errors).toMatch(
      /^.*control-plane\.db can't be opened: the process must be able to write both the file and its folder\.\n$/,
    );
    expect(existsSync(join(folder, 'control-plane.db-lock'))).toBe(false);
  });

  it('makes nothing if its address is taken', async () => {
    const { url } = await ServerProcess.start(folder);
    const elsewhere = mkdtempSync(join(tmpdir(), 'control-plane-'));
    try {
      const second = Program.run(elsewhere, { env: { BIND: new URL(url).host } });
      expect(await second.ended()).toBe(1);
      expect(second.errors).toMatch(/^Can't listen on port .*\n$/);
      expect(readdirSync(elsewhere)).toEqual([]);
    } finally {
      rmSync(elsewhere, { recursive: true });
    }
  });

  describe('of which there are two on one file', () => {
    const enqueue = async (server: ServerProcess, count: number): Promise<number[]> => {
      const tasks = Array.from({ length: count }, () => dnsTask());
      const answer = await call(server, '/v1/tasks', { tasks }, operator);
      return answer.tasks.map(({ id }: { id: number }) => id);
    };
    const storedTasks = (): number[] => {
      const file = new Sqlite(join(folder, 'control-plane.db'), { readonly: true });
      try {
        return file.prepare('SELECT id FROM tasks ORDER BY id').pluck().all() as number[];
      } finally {
        file.close();
      }
    };

    it('is refused as the second by whatever name it comes, and the first loses nothing', async () => {
      const first = await ServerProcess.start(folder);
      const ids = await enqueue(first, 100);
      const other = mkdtempSync(join(tmpdir(), 'control-plane-'));
      try {
        for (const [name, link, reason] of [
          ['symbolic', symlinkSync, /Another process is using /],
          ['hard', linkSync, /can't be opened: it has several names/],
        ] as const) {
          link(join(folder, 'control-plane.db'), join(other, `${name}.db`));
          const second = Program.run(folder, { env: { DATABASE_URL: `sqlite://${join(other, name)}.db` } });
          expect(await second.ended()).toBe(1);
          expect(second.errors).toMatch(reason);
          ids.push(...(await enqueue(first, 100)));
        }
        expect(readdirSync(other).sort()).toEqual(['hard.db', 'symbolic.db']);
      } finally {
        rmSync(other, { recursive: true });
      }
      await first.end('SIGKILL');
      expect(storedTasks()).toEqual(ids);
    });

    it('is fenced off as the first if the lock was deleted: it ends, and what either answered is there', async () => {
      const first = await ServerProcess.start(folder);
      const ids = await enqueue(first, 100);
      rmSync(join(folder, 'control-plane.db-lock'));
      const second = await ServerProcess.start(folder);
      ids.push(...(await enqueue(second, 100)));
      const ended = first.program.ended();
      // Its reaper may have noticed by itself already.
      await expect(
        enqueue(first, 100).catch((error: Error) => {
          if (!/503|undefined/.test(error.message)) throw error;
          throw new Error('refused');
        }),
      ).rejects.toThrow('refused');
      expect(await ended).toBe(1);
      ids.push(...(await enqueue(second, 100)));
      await second.end('SIGTERM');
      expect(storedTasks()).toEqual(ids);
    });
  });

  it('refuses a database that a newer version wrote', async () => {
    const first = await ServerProcess.start(folder);
    await first.end('SIGTERM');
    const file = new Sqlite(join(folder, 'control-plane.db'));
    file.exec(
      `INSERT INTO migrations (timestamp, name) VALUES (9999999999999, 'FromTheFuture9999999999999')`,
    );
    file.close();
    const second = Program.run(folder);
    expect(await second.ended()).toBe(1);
    expect(second.errors).toMatch(/newer version.*FromTheFuture9999999999999/);
  });

  it('applies migrations and ends with migrate; refuses a database without them where it may not apply them', async () => {
    const refused = Program.run(folder, { env: { MIGRATE_ON_START: 'false' } });
    expect(await refused.ended()).toBe(1);
    expect(refused.errors).toMatch(/control-plane migrate/);
    const migrated = Program.run(folder, { args: ['migrate'] });
    expect(await migrated.ended()).toBe(0);
    const server = await ServerProcess.start(folder, { env: { MIGRATE_ON_START: 'false' } });
    expect(await server.status('/readyz')).toBe(200);
    expect(await server.end('SIGTERM')).toBe(0);
  });

  it.each([
    ['LEASE_DURATION', '5'],
    ['ADMIN_TOKEN', 'canary-short'],
    ['QUOTA_CLAIM', 'canary'],
    ['BIND', 'canary'],
    ['DATABASE_URL', 'mysql://canary:canary@host/db'],
    ['TRUST_PROXY', 'canary'],
  ])('does not start with a wrong CONTROL_PLANE_%s, names it and prints no value', async (name, value) => {
    const program = Program.run(folder, { env: { [name]: value } });
    expect(await program.ended()).toBe(2);
    expect(program.errors).toContain(`CONTROL_PLANE_${name}`);
    expect(program.errors).not.toContain('canary');
    expect(program.errors).not.toContain(ADMIN_TOKEN);
  });
});
