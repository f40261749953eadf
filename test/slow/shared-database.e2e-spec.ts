import { join } from 'node:path';
import { LeaseEndings } from '../../src/leases/lease-endings';
import { TaskTransitions } from '../../src/queue/transitions';
import { Continuity } from '../../src/scheduling/continuity';
import { JobRunner } from '../../src/scheduling/job-runner';
import {
  ADMIN_TOKEN,
  type Answer,
  type Credentials,
  credentialsOf,
  dnsTask,
  onPostgres,
  TestServer,
} from '../helpers/harness';
import { databaseAt } from '../helpers/postgres-server';
import { Program } from '../helpers/processes';
import { brokenPromises } from '../helpers/queue-tables';
import { until } from '../helpers/until';

// What replicas on one PostgreSQL database owe each other; SQLite serves one process.
const onShared = onPostgres ? describe : describe.skip;

/** What one replica remembers of another's rows is 5 s old at most; and calls take some time. */
const withinMs = 7_500;
/** What crosses from one replica to the other takes a moment. */
const answered = (status: number, call: () => Promise<Answer>): Promise<Answer> =>
  until(`it is answered ${status}`, call, { isDone: (answer) => answer.status === status, withinMs });

onShared('replicas on one database', () => {
  let first: TestServer;
  let second: TestServer;

  beforeEach(async () => {
    first = await TestServer.start({ LEASE_DURATION_MS: '1000' });
    second = await TestServer.start({ LEASE_DURATION_MS: '1000' }, { folder: first.folder });
  });
  afterEach(async () => {
    await second.stop({ keep: true });
    await first.stop();
  });

  it('know each other’s agents, and take one out of service everywhere', async () => {
    const agent = await first.register('probe');
    const heartbeat = () => second.agent(agent, '/heartbeat');
    expect((await heartbeat()).status).toBe(200);
    expect((await first.operator('POST', `/v1/agents/${agent.agent_id}/revoke`)).status).toBe(200);
    // What writes is refused by the transaction itself, whatever the other replica remembers.
    expect((await second.agent(agent, '/claim', { capacities: { dns: 1 } })).status).toBe(403);
    await answered(403, () => second.request('GET', '/config', { headers: credentialsOf(agent) }));
  });

  it('explain a task alike, by the kinds that agents asked either of them for', async () => {
    const agent = await first.register();
    const claim = (server: TestServer, dns: number) => server.agent(agent, '/claim', { capacities: { dns } });
    await claim(first, 1);
    await first.enqueue(dnsTask());
    expect((await claim(second, 1)).body.leases).toHaveLength(1);
    await first.operator('PUT', '/v1/concurrency/limits', { limits: [{ kind: 'dns', limit: 1 }] });
    const [id] = await second.enqueue(dnsTask());
    const why = async (server: TestServer) => (await server.operator('GET', `/v1/tasks/${id}/why`)).body;
    expect(await why(first)).toMatchObject({ reason: 'window_full', agents: { online: 1, with_room: 0 } });
    expect(await why(second)).toEqual(await why(first));
    // What one of them forgets the other writes again, though it wrote the same a moment ago.
    const third = await TestServer.start({}, { folder: first.folder });
    await claim(third, 0);
    await third.stop({ keep: true });
    expect((await why(first)).reason).toBe('no_agent');
    const seen = await until(
      'the agent is online to both',
      async () => {
        await claim(first, 1);
        return why(second);
      },
      { isDone: ({ agents }) => agents.online === 1, withinMs },
    );
    expect(seen).toMatchObject({ reason: 'window_full', agents: { online: 1 } });
  });

  it('end a claim that waits at one with a token that another voided, and grant it nothing', async () => {
    const [rotated, revoked] = [await first.register(), await first.register()];
    const wait = (who: Credentials) =>
      second.agent(who, '/claim', { capacities: { dns: 5 }, wait_ms: 30_000 });
    const claims = [wait(rotated), wait(revoked)];
    await new Promise((resolve) => setTimeout(resolve, 300));
    const { body: fresh } = await first.operator('POST', `/v1/agents/${rotated.agent_id}/rotate`, {
      revoke_old: true,
    });
    await first.operator('POST', `/v1/agents/${revoked.agent_id}/revoke`);
    expect((await Promise.all(claims)).map(({ status }) => status)).toEqual([401, 403]);
    await first.enqueue(dnsTask());
    expect((await second.agent(fresh, '/claim', { capacities: { dns: 5 } })).body.leases).toHaveLength(1);
    // They are told, and need not wait to the end: for that there is no time here.
  }, 20_000);

  it('let nothing take effect that comes with a token which another voided a moment ago', async () => {
    const agent = await first.register();
    await first.enqueue(dnsTask(), dnsTask());
    const [{ lease_id }] = (await second.agent(agent, '/claim', { capacities: { dns: 1 } })).body.leases;
    const calls = () => [
      second.agent(agent, '/heartbeat'),
      second.agent(agent, '/claim', { capacities: { dns: 1 } }),
      second.agent(agent, '/report', { completed: [{ lease_id }], cancelled: [] }),
      second.agent(agent, '/metrics', { timestamp: new Date().toISOString() }),
    ];
    await first.operator('POST', `/v1/agents/${agent.agent_id}/rotate`, { revoke_old: true });
    // Whether or not the other has heard of it.
    expect((await Promise.all(calls())).map(({ status }) => status)).toEqual([401, 401, 401, 401]);
    expect(await first.rows(`SELECT id FROM leases WHERE state <> 'revoked'`)).toEqual([]);
    expect(await first.rows('SELECT id FROM agent_metrics')).toEqual([]);
  });

  it('hand a silent host over to one of many that ask at different replicas', async () => {
    for (let round = 0; round < 5; round++) {
      const hostname = `silent-${round}`;
      const old = await first.register(hostname);
      await first.database.write((tx) =>
        tx.run('UPDATE agent_heartbeats SET last_heartbeat_at = 0 WHERE agent_id = $1', old.agent_id),
      );
      // Neither may have begun a moment ago: time in which no server ran is not held against anybody.
      const running = [first, second].map((server) =>
        jest.spyOn(server.app.get(Continuity), 'runningSince').mockReturnValue(0),
      );
      const answers = await Promise.all(
        Array.from({ length: 6 }, (_, i) =>
          (i % 2 === 0 ? first : second).request('POST', '/register', { body: { hostname } }),
        ),
      );
      for (const spy of running) spy.mockRestore();
      expect(answers.map(({ status }) => status).sort()).toEqual([200, 409, 409, 409, 409, 409]);
    }
  });

  it('register one agent for one key, at whichever of them it is sent', async () => {
    const headers = { 'idempotency-key': 'a-secret-of-the-caller' };
    const answers = await Promise.all(
      Array.from({ length: 4 }, (_, i) =>
        (i % 2 === 0 ? first : second).request('POST', '/register', { headers, body: {} }),
      ),
    );
    expect(new Set(answers.map(({ status, body }) => `${status} ${body.agent_id}`)).size).toBe(1);
    expect(await first.rows('SELECT id FROM agents')).toHaveLength(1);
  });

  it('refuse an operator’s token that another withdrew', async () => {
    const { body } = await first.operator('POST', '/v1/operator-tokens', { name: 'a', role: 'viewer' });
    const read = () =>
      second.request('GET', '/v1/tasks', { headers: { authorization: `Bearer ${body.token}` } });
    expect((await read()).status).toBe(200);
    expect((await first.operator('DELETE', `/v1/operator-tokens/${body.id}`)).status).toBe(204);
    await answered(401, read);
  });

  it('refuse it within 5 s, and its writes at once, also where what is announced is lost without a trace', async () => {
    const { body } = await first.operator('POST', '/v1/operator-tokens', { name: 'a', role: 'admin' });
    const agent = await first.register('probe');
    const read = () =>
      second.request('GET', '/v1/tasks', { headers: { authorization: `Bearer ${body.token}` } });
    const write = (path: string, content: object) =>
      second.request('POST', path, { headers: { authorization: `Bearer ${body.token}` }, body: content });
    const config = () => second.request('GET', '/config', { headers: credentialsOf(agent) });
    const announcements = Reflect.get(second.database, 'announcements');
    const receive = announcements.receive.bind(announcements);
    const spy = jest.spyOn(announcements, 'receive').mockImplementation((payload) => {
      if (String(payload).includes(announcements.id)) receive(payload);
    });
    try {
      expect([(await read()).status, (await config()).status]).toEqual([200, 404]);
      await first.operator('DELETE', `/v1/operator-tokens/${body.id}`);
      await first.operator('POST', `/v1/agents/${agent.agent_id}/revoke`);
      expect(second.database.isListening).toBe(true);
      const late = [
        await write('/v1/operator-tokens', { name: 'b', role: 'admin' }),
        await write('/v1/tasks', { tasks: [dnsTask()] }),
        await write('/v1/agents', { hostname: 'late' }),
      ];
      expect(late.map(({ status }) => status)).toEqual([401, 401, 401]);
      await answered(401, read);
      await answered(403, config);
    } finally {
      spy.mockRestore();
    }
  });

  it('do not count as listening once their LISTEN is gone, though its connection answers, and listen again', async () => {
    const listening = async () => second.database.isListening;
    await until('it listens', listening, { withinMs });
    const client = Reflect.get(Reflect.get(second.database, 'announcements'), 'client');
    await client.query('UNLISTEN *');
    await until('it listens no more', async () => !(await listening()), { withinMs });
    await until('it listens again', listening, { withinMs });
  });

  it('keep an admin’s token that another started without, until one revokes it', async () => {
    const read = () => first.operator('GET', '/v1/tasks');
    const own = await read();
    expect(own.status).toBe(200);
    await second.stop({ keep: true });
    second = await TestServer.start({ ADMIN_TOKEN: 'default' }, { folder: first.folder });
    expect((await read()).status).toBe(200);
    await second.stop({ keep: true });
    const other = 'another-token-of-the-admin';
    second = await TestServer.start({ ADMIN_TOKEN: other }, { folder: first.folder });
    expect((await read()).status).toBe(200);
    const [{ id }] = await first.rows(`SELECT id FROM operator_tokens WHERE origin = 'setting' ORDER BY id`);
    const headers = { authorization: `Bearer ${other}` };
    expect((await first.request('DELETE', `/v1/operator-tokens/${id}`, { headers })).status).toBe(409);
    expect((await second.request('DELETE', `/v1/operator-tokens/${id}`, { headers })).status).toBe(204);
    await answered(401, read);
  });

  it('wake a claim that waits at another', async () => {
    const agent = await first.register();
    const claim = second.agent(agent, '/claim', { capacities: { dns: 1 }, wait_ms: 30_000 });
    await new Promise((resolve) => setTimeout(resolve, 300));
    await first.enqueue(dnsTask());
    expect((await claim).body.leases).toHaveLength(1);
    // It is woken, and does not wait to the end: for that there is no time here.
  }, 20_000);

  it('serve the configuration that another published', async () => {
    const agent = await first.register();
    const { body } = await first.operator('POST', '/v1/configs', { config: { a: 1 } });
    await until('a heartbeat tells the revision', () => second.agent(agent, '/heartbeat'), {
      isDone: (answer) => answer.body.config_revision === body.revision,
      withinMs,
    });
    const served = await second.request('GET', '/config', { headers: credentialsOf(agent) });
    expect(served.body).toEqual(body);
  });

  it('run a job at one of them at a time', async () => {
    let running = 0;
    let most = 0;
    let runs = 0;
    const job = async () => {
      most = Math.max(most, ++running);
      runs++;
      await new Promise((resolve) => setTimeout(resolve, 200));
      running--;
    };
    const jobs = [first, second].map((server) => server.app.get(JobRunner));
    await Promise.all(jobs.map((runner) => runner.run('test', 1_000, job)));
    expect([most, runs]).toEqual([1, 1]);
    await jobs[1]?.run('test', 1_000, job);
    expect([most, runs]).toEqual([1, 2]);
  });

  it('take over the job of one that was killed in the middle of it', async () => {
    const [{ name }] = await first.rows('SELECT current_database() AS name');
    const holder = Program.spawn(
      process.execPath,
      [
        '--eval',
        `const { readSettings } = require('./dist/settings');
         const { openDatabase } = require('./dist/database/open-database');
         openDatabase(readSettings(process.env)).then((database) =>
           database.exclusively('test', () => new Promise(() => console.log('it runs'))));`,
      ],
      {
        cwd: join(__dirname, '../..'),
        env: {
          CONTROL_PLANE_DATABASE_URL: databaseAt(process.env.CONTROL_PLANE_TEST_POSTGRES_URL as string, name),
        },
      },
    );
    try {
      await holder.printed(/^it runs\n$/);
      let runs = 0;
      const tick = () => first.app.get(JobRunner).run('test', 1_000, async () => void runs++);
      await tick();
      expect(runs).toBe(0);
      await holder.end('SIGKILL');
      // As soon as the server of the database notices.
      await until('the job runs here', tick, { isDone: () => runs > 0, withinMs });
      expect(runs).toBe(1);
    } finally {
      await holder.end('SIGKILL');
    }
  });

  it('end an overdue lease once, and give its task out once', async () => {
    const agent = await first.register();
    const ids = await first.enqueue(...Array.from({ length: 50 }, () => dnsTask({ max_attempts: 1 })));
    await second.agent(agent, '/claim', { capacities: { dns: 50 } });
    const expire = async () => {
      // As their jobs do: nothing is overdue to a service that has not said for a while that it runs.
      await Promise.all([first, second].map((server) => server.app.get(Continuity).refresh()));
      await Promise.all([first, second].map((server) => server.app.get(LeaseEndings).expireOverdue(500)));
      return first.rows('SELECT state, attempts FROM tasks');
    };
    const states = await until('no task is open', expire, {
      isDone: (tasks) => tasks.every(({ state }) => state !== 'open'),
      withinMs,
    });
    expect(states).toEqual(ids.map(() => ({ state: 'dead', attempts: 1 })));
    const { body } = await second.operator('GET', '/v1/tasks/stats');
    expect(body.depths).toEqual([expect.objectContaining({ state: 'dead', count: 50 })]);
  });

  it('do all their jobs, however few connections they have: each job holds one while it writes', async () => {
    const small = await TestServer.start({ POOL_SIZE: '1' }, { folder: first.folder });
    try {
      const done: string[] = [];
      const job = (name: string) => () =>
        small.database.write(async (tx) => {
          await tx.rows('SELECT 1 AS one');
          done.push(name);
        });
      const names = ['a', 'b', 'c', 'd'];
      const runner = small.app.get(JobRunner);
      await Promise.all(names.map((name) => runner.run(name, 1_000, job(name))));
      expect(done.sort()).toEqual(names);
    } finally {
      await small.stop({ keep: true });
    }
  });

  it.each(['hello', '[]', '{"a":1}', '["somebody",7]'])(
    'take no harm from what others announce on their channel: %s',
    async (message) => {
      await first.rows('SELECT pg_notify($1, $2)', 'control_plane', message);
      // It is read before this, which is announced after it.
      const agent = await first.register();
      const claim = second.agent(agent, '/claim', { capacities: { dns: 1 }, wait_ms: 20_000 });
      await first.enqueue(dnsTask());
      expect((await claim).body.leases).toHaveLength(1);
    },
  );

  it('hand out a task that a claim skipped because another unit had locked it, once that is undone', async () => {
    const agent = await first.register();
    const [skipped, other] = await first.enqueue(dnsTask(), dnsTask());
    const claim = async () =>
      (await first.agent(agent, '/claim', { capacities: { dns: 9 } })).body.leases.map(
        ({ task_id }: { task_id: number }) => task_id,
      );
    const undone = second.database.write(async (tx) => {
      await tx.rows('DELETE FROM ready WHERE task_id = $1 RETURNING task_id', skipped as number);
      // From now on this replica looks for tasks behind the one that it has not seen.
      expect(await claim()).toEqual([other]);
      throw new Error('undone');
    });
    await expect(undone).rejects.toThrow('undone');
    const granted = await until('it is handed out', claim, { isDone: (ids) => ids.length > 0, withinMs });
    expect(granted).toEqual([skipped]);
  });

  it('count in a new limit what a unit under way at another grants, and keep others waiting only shortly for it', async () => {
    const agents = [await first.register(), await first.register()] as const;
    await first.enqueue(dnsTask(), dnsTask(), dnsTask());
    const gate = Promise.withResolvers<void>();
    const holding = Promise.withResolvers<void>();
    const unit = second.database.write(async (tx) => {
      await second.app.get(TaskTransitions).begin(tx);
      holding.resolve();
      await gate.promise;
    });
    await holding.promise;
    let isSet = false;
    const setting = first
      .operator('PUT', '/v1/concurrency/limits', { limits: [{ kind: 'dns', limit: 1 }] })
      .finally(() => {
        isSet = true;
      });
    // Both replicas go on granting leases: the call waits, and makes nobody else wait longer than it tries at a time.
    const held = await Promise.all(
      agents.map((agent, i) => (i === 0 ? first : second).agent(agent, '/claim', { capacities: { dns: 1 } })),
    );
    expect(held.map(({ body }) => body.leases.length)).toEqual([1, 1]);
    expect(isSet).toBe(false);
    gate.resolve();
    await unit;
    const { status, body } = await setting;
    expect([status, body.windows]).toMatchObject([200, [{ limit: 1, leased: 2, queued: 1, available: 0 }]]);
    expect((await second.agent(agents[0], '/claim', { capacities: { dns: 2 } })).body.leases).toEqual([]);
    expect(await first.database.read(brokenPromises)).toEqual([]);
  });

  it('give each task to one of many claims, and never more than a limit allows', async () => {
    await first.operator('PUT', '/v1/concurrency/limits', { limits: [{ kind: 'dns', limit: 30 }] });
    await first.enqueue(
      ...Array.from({ length: 200 }, (_, i) => dnsTask({}, { server: `192.0.2.${i % 7}` })),
    );
    const agents = await Promise.all(Array.from({ length: 8 }, () => first.register()));
    const seen = new Set<number>();
    let over = 0;
    await Promise.all(
      agents.map(async (agent, i) => {
        const server = i % 2 === 0 ? first : second;
        for (let round = 0; round < 12; round++) {
          const { body } = await server.agent(agent, '/claim', { capacities: { dns: 5 } });
          for (const { task_id } of body.leases) {
            if (seen.has(task_id)) over++;
            seen.add(task_id);
          }
          const completed = body.leases.map(({ lease_id }: { lease_id: number }) => ({ lease_id }));
          const report = await server.agent(agent, '/report', { completed, cancelled: [] });
          expect(report.body).toEqual({ acknowledged: completed.length });
          const [row] = await server.rows(`SELECT count(*) AS live FROM leases WHERE state = 'active'`);
          if (row.live > 30) over++;
        }
      }),
    );
    expect(over).toBe(0);
    expect(seen.size).toBeGreaterThan(100);
    expect(await first.database.read(brokenPromises)).toEqual([]);
  });

  it('keep one audit log', async () => {
    await Promise.all(
      Array.from({ length: 40 }, (_, i) => (i % 2 === 0 ? first : second).enqueue(dnsTask())),
    );
    const { body } = await second.request('GET', '/v1/audit/verification', {
      headers: { authorization: `Bearer ${ADMIN_TOKEN}` },
    });
    expect(body).toMatchObject({ intact: true });
  });
});
