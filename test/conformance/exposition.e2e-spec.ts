import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fail } from '../../src/errors';
import { AgentSeries } from '../../src/metrics/agent-series';
import { JobRunner } from '../../src/scheduling/job-runner';
import { Meter } from '../../src/telemetry/meter';
import { Exposition } from '../helpers/exposition';
import {
  type Credentials,
  dnsTask,
  onPostgres,
  serviceRuns,
  TestClock,
  TestServer,
} from '../helpers/harness';

const TIMEOUT_MS = 45_000;

let clock: TestClock;
let server: TestServer;

const start = async (env: Record<string, string> = {}) => {
  clock = new TestClock();
  server = await TestServer.start(env, { clock });
};

/** Scrapes past the second for which an exposition is used again. */
async function scrape(): Promise<Exposition> {
  const meter = server.app.get(Meter, { strict: false });
  const failures: unknown[] = [];
  const text = await meter.collect((error) => failures.push(error));
  expect(failures).toEqual([]);
  return new Exposition(text);
}

const claim = async (agent: Credentials, capacities: Record<string, number>) =>
  (await server.agent(agent, '/claim', { capacities })).body.leases as {
    lease_id: number;
    task_id: number;
  }[];

const report = (agent: Credentials, completed: object[], cancelled: object[] = []) =>
  server.agent(agent, '/report', { completed, cancelled });

describe('who may scrape', () => {
  afterEach(() => server.stop());

  test('a viewer, in the text format; nobody else', async () => {
    await start();
    const { body: viewer } = await server.operator('POST', '/v1/operator-tokens', {
      name: 'p',
      role: 'viewer',
    });
    const agent = await server.register('probe');
    const asViewer = { headers: { authorization: `Bearer ${viewer.token}` } };
    const answer = await server.request('GET', '/metrics', asViewer);
    expect(answer.status).toBe(200);
    expect(answer.headers.get('content-type')).toBe('text/plain; version=0.0.4; charset=utf-8');
    expect(new Exposition(answer.body).value('build_info')).toBe(1);
    expect((await server.request('HEAD', '/metrics', asViewer)).status).toBe(200);

    const stranger = await server.request('GET', '/metrics');
    expect([stranger.status, stranger.body.error]).toEqual([401, 'ERR_UNAUTHORIZED']);
    const wrong = await server.request('GET', '/metrics', { headers: { authorization: 'Bearer x' } });
    expect(wrong.status).toBe(401);
    const byAgent = await server.request('GET', '/metrics', {
      headers: { 'x-agent-id': String(agent.agent_id), 'x-agent-token': agent.auth_token },
    });
    expect(byAgent.status).toBe(401);
  });

  test('a token that was right lately, while the database does not say whether it is; and no other', async () => {
    await start();
    const made = async (name: string) =>
      (await server.operator('POST', '/v1/operator-tokens', { name, role: 'viewer' })).body;
    const [known, unused, revoked] = [await made('known'), await made('unused'), await made('revoked')];
    const get = async (path: string, { token }: { token: string }) =>
      (await server.request('GET', path, { headers: { authorization: `Bearer ${token}` } })).status;
    expect([await get('/metrics', known), await get('/metrics', revoked)]).toEqual([200, 200]);
    expect((await server.operator('DELETE', `/v1/operator-tokens/${revoked.id}`)).status).toBe(204);
    // As if notifications did not arrive: what is in memory may be too old.
    const deaf = jest.spyOn(server.database, 'isListening', 'get').mockReturnValue(false);
    const away = jest
      .spyOn(server.database, 'read')
      .mockRejectedValue(fail('ERR_UNAVAILABLE', { reason: 'database' }));
    try {
      const text = await server.request('GET', '/metrics', {
        headers: { authorization: `Bearer ${known.token}` },
      });
      expect(text.status).toBe(200);
      expect(new Exposition(text.body).value('build_info')).toBe(1);
      expect(await get('/v1/tasks', known)).toBe(503);
      expect([await get('/metrics', unused), await get('/metrics', revoked)]).toEqual([503, 503]);
    } finally {
      away.mockRestore();
      deaf.mockRestore();
    }
    expect([await get('/metrics', known), await get('/metrics', revoked)]).toEqual([200, 401]);
  });

  test('anybody, if the setting says so; agents still push to the same path', async () => {
    await start({ METRICS_PUBLIC: 'true', QUOTA_PUBLIC: '1/1h,3' });
    for (let i = 0; i < 3; i++) expect((await server.request('GET', '/metrics')).status).toBe(200);
    // A stranger's calls are counted by address, as on every public route.
    const beyond = await server.request('GET', '/metrics');
    expect([beyond.status, beyond.body.details.quota]).toEqual([429, 'public']);
    const agent = await server.register('probe');
    const pushed = await server.agent(agent, '/metrics', { timestamp: new Date(clock.now()).toISOString() });
    expect(pushed.status).toBe(202);
  });
});

describe('the server', () => {
  beforeEach(() => start());
  afterEach(() => server.stop());

  test('counts requests by route and class of status, and never by what a stranger wrote', async () => {
    await server.request('GET', '/healthz');
    await server.request('GET', '/no/such/path/secret-word');
    await server.request('GET', '/v1/tasks/77');
    await server.operator('GET', '/v1/tasks/77?cursor=secret-word');
    const found = await scrape();
    const count = 'http_request_duration_seconds_count';
    expect(found.value(count, { method: 'GET', route: '/healthz', status: '2xx' })).toBe(1);
    expect(found.value(count, { route: 'unknown', status: '4xx' })).toBe(1);
    expect(found.value(count, { route: '/v1/tasks/:id', status: '4xx' })).toBe(2);
    expect(found.value('requests_refused_total', { route: '/v1/tasks/:id', reason: 'authentication' })).toBe(
      1,
    );
    expect(JSON.stringify(found.lines)).not.toContain('secret-word');
    // What alerts ask for is there before it happens: a series that begins with a burst shows no increase.
    expect(found.value(count, { route: '/v1/agents/claim', status: '5xx' })).toBe(0);
    expect(found.value('requests_refused_total', { route: '/heartbeat', reason: 'quota' })).toBe(0);
    expect(found.value('requests_refused_total', { route: '/v1/agents/:id', reason: 'authentication' })).toBe(
      0,
    );
    expect(found.value('quota_refusals_total', { quota: 'heartbeat' })).toBe(0);
    expect(found.value('quota_refusals_total', { quota: 'failed-auth' })).toBe(0);
  });

  test('does not count what a claim waits as its duration', async () => {
    const agent = await server.register('probe');
    await server.agent(agent, '/claim', { capacities: { dns: 1 }, wait_ms: 1_200 });
    const found = await scrape();
    expect(found.value('http_request_duration_seconds_bucket', { route: '/claim', le: '+Inf' })).toBe(1);
    expect(found.value('http_request_duration_seconds_sum', { route: '/claim' })).toBeLessThan(1.1);
  });

  test('counts what a task waits from when it can run: not what it was held before, nor dead', async () => {
    const [agent, other] = [await server.register('probe'), await server.register('other')];
    const waited = async () => {
      const found = await scrape();
      return ['count', 'sum'].map((what) => found.value(`task_wait_seconds_${what}`, { kind: 'dns' }));
    };
    const [id] = await server.enqueue(dnsTask({ max_attempts: 1 }));
    clock.advance(2_000);
    const [first] = await claim(agent, { dns: 1 });
    expect(await waited()).toEqual([1, 2]);
    await report(agent, [], [{ lease_id: first?.lease_id }]);
    await server.pass(600_000);
    await server.operator('POST', `/v1/tasks/${id}/retry`);
    clock.advance(1_000);
    await claim(agent, { dns: 1 });
    expect(await waited()).toEqual([2, 3]);
    await server.pass(30_000);
    await server.operator('POST', `/v1/agents/${agent.agent_id}/disable`);
    clock.advance(500);
    await claim(other, { dns: 1 });
    expect(await waited()).toEqual([3, 3.5]);
    // For its window to have room, it waits as for anything else.
    await server.operator('PUT', '/v1/concurrency/limits', { limits: [{ kind: 'dns', limit: 1 }] });
    await server.enqueue(dnsTask());
    clock.advance(3_000);
    const [task] = (await server.operator('GET', '/v1/tasks?state=leased')).body.items;
    await server.operator('POST', `/v1/tasks/${task.id}/cancel`);
    await claim(other, { dns: 1 });
    expect(await waited()).toEqual([4, 6.5]);
  });

  test('counts requests whose caller gave up, by how long it waited for an answer', async () => {
    const agent = await server.register('probe');
    const giveUp = (path: string, body: object, afterMs: number) =>
      expect(server.abandon(agent, path, body, afterMs)).rejects.toThrow('aborted');
    // It had asked to wait, so nothing was slow: what it waited is not counted, whatever the machine took besides.
    await giveUp('/claim', { capacities: { dns: 1 }, wait_ms: 10_000 }, 3_000);
    const [locked, released] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    const held = server.database.write(async (tx) => {
      await tx.run('UPDATE agents SET state = state');
      locked.resolve();
      await released.promise;
    });
    await locked.promise;
    const extension = { lease_ids: [], extend_by_ms: 1_000 };
    await giveUp('/extend', extension, 400).finally(released.resolve);
    await held;
    await server.agent(agent, '/extend', extension);
    const found = await scrape();
    const of = (route: string, status: string) =>
      ['count', 'sum'].map((what) =>
        found.value(`http_request_duration_seconds_${what}`, { route, status, method: 'POST' }),
      );
    expect(of('/claim', 'unanswered')).toEqual([1, expect.any(Number)]);
    expect(of('/claim', 'unanswered')[1]).toBeLessThan(2.5);
    expect(of('/extend', 'unanswered')[0]).toBe(1);
    expect(of('/extend', 'unanswered')[1]).toBeGreaterThan(0.35);
    expect(of('/extend', '2xx')[0]).toBe(1);
  });

  test('counts leases by how they ended, once each', async () => {
    const agent = await server.register('probe');
    await server.enqueue(...Array.from({ length: 6 }, () => dnsTask({ max_attempts: 1 })));
    clock.advance(2_000);
    const leases = await claim(agent, { dns: 6 });
    const [first, second, third, fourth, fifth] = leases.map(({ lease_id }) => lease_id);
    await server.agent(agent, '/extend', { lease_ids: [first, 999], extend_by_ms: 60_000 });
    clock.advance(3_000);
    const outcomes = [
      { lease_id: first, outcome: 'success' },
      { lease_id: second, outcome: 'timeout' },
      { lease_id: third },
    ];
    await report(agent, outcomes, [{ lease_id: fourth }]);
    // The same again is acknowledged, and counted no second time.
    await report(agent, [...outcomes, { lease_id: 12_345 }, { lease_id: fourth }], [{ lease_id: fourth }]);
    await server.operator('POST', `/v1/tasks/${leases[4]?.task_id}/cancel`);
    await report(agent, [{ lease_id: fifth }]);
    await server.pass(70_000);
    const found = await scrape();
    const kind = 'dns';
    expect({
      enqueued: found.value('tasks_enqueued_total', { kind }),
      granted: found.value('leases_granted_total', { kind }),
      extended: found.value('leases_extended_total'),
      completed: Object.fromEntries(
        found.find('leases_completed_total', { kind }).map(({ labels, value }) => [labels.outcome, value]),
      ),
      cancelled: found.value('leases_cancelled_total', { kind }),
      expired: found.value('leases_expired_total', { kind }),
      revoked: found.value('leases_revoked_total'),
      dead: found.value('tasks_dead_total', { kind, reason: 'max_attempts' }),
      rejected: Object.fromEntries(
        found
          .find('reports_rejected_total')
          .filter(({ value }) => value > 0)
          .map(({ labels, value }) => [labels.reason, value]),
      ),
      waits: found.value('task_wait_seconds_count', { kind }),
      waited: found.value('task_wait_seconds_sum', { kind }),
      held: found.value('lease_held_seconds_sum', { kind }),
      heldCount: found.value('lease_held_seconds_count', { kind }),
    }).toEqual({
      enqueued: 6,
      granted: 6,
      extended: 1,
      completed: { success: 1, timeout: 1, error: 0, unsaid: 1 },
      cancelled: 1,
      expired: 1,
      revoked: 1,
      dead: 2,
      rejected: { unknown: 1, conflict: 1, revoked: 1 },
      waits: 6,
      waited: 12,
      held: 12,
      heldCount: 4,
    });
  });

  test('counts nothing of a unit of work that is undone', async () => {
    await server.forbid('INSERT', 'task_count_deltas');
    try {
      const { status } = await server.operator('POST', '/v1/tasks', { tasks: [dnsTask()] });
      expect(status).toBe(500);
    } finally {
      await server.allow();
    }
    expect((await scrape()).value('tasks_enqueued_total', { kind: 'dns' })).toBe(0);
  });

  test('shows the depth of the queue, its oldest task, and the windows', async () => {
    const agent = await server.register('probe');
    const { status } = await server.operator('PUT', '/v1/concurrency/limits', {
      limits: [
        { limit: 100 },
        { kind: 'dns', limit: 3 },
        { kind: 'tcp', target: 'a.example:1', limit: 1 },
        { kind: 'tcp', target: 'b.example:1', limit: 2 },
        { kind: 'tcp', target: 'c.example:1', limit: 2 },
      ],
    });
    expect(status).toBe(200);
    const tcp = (host: string) => ({ kind: 'tcp', spec: { host, port: 1 } });
    await server.enqueue(dnsTask(), dnsTask(), tcp('c.example'), tcp('c.example'));
    clock.advance(5_000);
    await claim(agent, { dns: 1, tcp: 2 });
    const found = await scrape();
    expect(found.value('tasks', { kind: 'dns', state: 'leased' })).toBe(1);
    expect(found.value('tasks', { kind: 'dns', state: 'queued' })).toBe(1);
    expect(found.value('oldest_queued_task_age_seconds', { kind: 'dns' })).toBe(5);
    expect(found.value('oldest_queued_task_age_seconds', { kind: 'tcp' })).toBeUndefined();
    expect(found.value('window_limit', { scope: 'global' })).toBe(100);
    expect(found.value('window_leased', { scope: 'global' })).toBe(3);
    expect(found.value('window_available', { scope: 'kind', kind: 'dns' })).toBe(2);
    expect(found.value('window_limit', { kind: 'tcp' })).toBeUndefined();
    const states = found.find('target_windows').map(({ labels, value }) => [labels.state, value]);
    expect(Object.fromEntries(states)).toEqual({ open: 1, full: 1, lowest: 1 });
  });

  test('shows what is queued for targets that were stopped', async () => {
    const stop = (target: string, limit: number | null) =>
      server.operator('PUT', '/v1/concurrency/limits', { limits: [{ kind: 'dns', target, limit }] });
    const at = (target: string) => dnsTask({}, { server: target });
    await stop('stopped', 0);
    await stop('limited', 1);
    await server.enqueue(at('stopped'), at('stopped'), at('limited'), at('limited'), at('free'));
    const stopped = async () => (await scrape()).value('tasks_stopped', { kind: 'dns' });
    expect(await stopped()).toBe(2);
    await stop('stopped', null);
    expect(await stopped()).toBeUndefined();
  });

  test('shows the fleet, how old its heartbeats are, and how far the configuration is', async () => {
    const [first, , third, fourth] = [
      await server.register('one'),
      await server.register('two'),
      await server.register('three'),
      await server.register('four'),
    ] as [Credentials, Credentials, Credentials, Credentials];
    const { body: bundle } = await server.operator('POST', '/v1/configs', { config: { a: 1 } });
    await server.operator('POST', `/v1/agents/${third.agent_id}/drain`);
    await server.operator('POST', `/v1/agents/${fourth.agent_id}/disable`);
    await server.pass(2 * TIMEOUT_MS + 1_000, { reaps: false });
    const applied = { config_revision: bundle.revision, config_status: 'applied' };
    await server.agent(first, '/heartbeat', applied);
    await server.pass(7_000, { reaps: false });
    const found = await scrape();
    const byLabel = (name: string, label: string) =>
      Object.fromEntries(found.find(name).map(({ labels, value }) => [labels[label], value]));
    expect(byLabel('agents', 'status')).toEqual({
      online: 1,
      offline: 1,
      draining: 1,
      disabled: 1,
      revoked: 0,
    });
    expect(found.value('agents_silent')).toBe(2);
    expect(byLabel('agent_heartbeat_age_seconds_bucket', 'le')).toMatchObject({
      5: 0,
      10: 1,
      90: 1,
      120: 3,
      '+Inf': 3,
    });
    expect(found.value('agent_heartbeat_age_seconds_count')).toBe(3);
    expect(found.value('agent_heartbeat_age_seconds_sum')).toBe(7 + 2 * 98);
    expect(found.types.get('control_plane_agent_heartbeat_age_seconds')).toBe('histogram');
    expect(byLabel('config_agents', 'state')).toEqual({ applied: 1, failed: 0, other: 0, unsaid: 2 });
    expect(found.value('config_expires_timestamp_seconds')).toBe(Date.parse(bundle.expires_at) / 1_000);
    // The second is silent for another reason than its own: no server ran.
    clock.advance(3_600_000);
    await serviceRuns(server.app);
    expect((await scrape()).value('agents', { status: 'offline' })).toBe(0);
  });

  test('shows commits, jobs, the database and the process', async () => {
    await server.enqueue(dnsTask());
    const found = await scrape();
    expect(found.value('commit_units_count')).toBeGreaterThan(0);
    expect(found.value('commit_duration_seconds_count')).toBe(found.value('commit_units_count'));
    expect(found.value('commit_failures_total')).toBe(0);
    expect(found.value('write_queue_depth')).toBe(0);
    expect(found.value('database_size_bytes')).toBeGreaterThan(10_000);
    if (onPostgres) expect(found.value('database_connections')).toBeGreaterThan(0);
    else expect(found.value('disk_free_bytes')).toBeGreaterThan(0);
    expect(found.value('draining')).toBe(0);
    expect(found.lines.some(({ name }) => name === 'process_cpu_seconds_total')).toBe(true);
    expect(found.lines.some(({ name }) => name === 'nodejs_eventloop_lag_p99_seconds')).toBe(true);
  });

  test('shows runs of jobs by how they ended, how long they took and how late they were', async () => {
    const jobs = server.app.get(JobRunner);
    const run = (job: () => Promise<void>) => jobs.run('some-job', 60_000, job);
    await run(async () => undefined);
    clock.advance(61_500);
    await run(() => Promise.reject(new Error('no')));
    const gate = Promise.withResolvers<void>();
    const going = run(() => gate.promise);
    await run(async () => undefined);
    gate.resolve();
    await going;
    const found = await scrape();
    const results = found
      .find('job_runs_total', { job_name: 'some-job' })
      .map(({ labels, value }) => [labels.result, value]);
    expect(Object.fromEntries(results)).toEqual({ success: 2, failure: 1, skipped: 1 });
    // A job that has not run yet is there too: its first failure must be an increase.
    expect(found.value('job_runs_total', { job_name: 'task-retention', result: 'failure' })).toBe(0);
    expect(found.value('job_duration_seconds_count', { job_name: 'some-job' })).toBe(3);
    expect(found.value('job_last_success_timestamp_seconds', { job_name: 'some-job' })).toBe(
      clock.now() / 1_000,
    );
    // The second came 1.5 s late, the third at once after it.
    expect(found.value('job_lag_seconds', { job_name: 'some-job' })).toBe(0);
  });

  test('has the series that the documents say, of the types and with the labels that they say', async () => {
    const agent = await server.register('probe');
    await server.enqueue(dnsTask());
    await claim(agent, { dns: 1 });
    const found = await scrape();
    const other = onPostgres ? /^control_plane_disk_/ : /^control_plane_database_connections/;
    const page = readFileSync(join(__dirname, '../../docs/control-plane-watch.md'), 'utf8');
    const documented = [...page.matchAll(/^\| `(control_plane_\w+)` +\| (\w+) +\| ([^|]*) \|/gm)].filter(
      ([, name]) => !other.test(name as string),
    );
    const types = [...found.types].filter(([name]) => name.startsWith('control_plane_'));
    expect(Object.fromEntries(documented.map(([, name, type]) => [name, type]))).toEqual(
      Object.fromEntries(types),
    );
    for (const [, name = '', , labels = ''] of documented) {
      const said = new Set([...labels.matchAll(/`([a-z_]+)`/g)].map(([, label]) => label));
      for (const line of found.lines)
        if (line.name.replace(/_(?:bucket|sum|count)$/, '') === name || line.name === name)
          expect([name, Object.keys(line.labels).filter((label) => label !== 'le')]).toEqual([
            name,
            Object.keys(line.labels).filter((label) => said.has(label)),
          ]);
    }
  });

  test('has no label that grows with the fleet', async () => {
    const allowed =
      /^(?:method|route|status|reason|quota|kind|outcome|state|scope|le|job_name|result|name|stat|version|node|database|type|space|kind)$/;
    const agent = await server.register('a-host-name');
    await server.enqueue(dnsTask({}, { query: 'secret.example' }));
    await claim(agent, { dns: 1 });
    const found = await scrape();
    for (const { name, labels } of found.lines)
      if (name.startsWith('control_plane_'))
        for (const label of Object.keys(labels)) expect(label).toMatch(allowed);
    expect(JSON.stringify(found.lines)).not.toMatch(/a-host-name|secret\.example|127\.0\.0\.1/);
  });
});

describe("agents' own metrics", () => {
  afterEach(() => server.stop());

  const push = async (agent: Credentials, counters: object[], gauges: object[] = [], aheadMs = 0) => {
    const timestamp = new Date(clock.now() + aheadMs).toISOString();
    expect((await server.agent(agent, '/metrics', { timestamp, counters, gauges })).status).toBe(202);
  };
  const refresh = () => server.app.get(AgentSeries).refresh();

  test('counters are summed, gauges have their least, mean and greatest, of agents that are heard of', async () => {
    await start();
    const [one, two] = [await server.register('one'), await server.register('two')];
    await push(one, [{ name: 'queries', value: 10 }], [{ name: 'load', value: 1 }]);
    await push(two, [{ name: 'queries', value: 5 }], [{ name: 'load', value: 4 }]);
    // Later values count in place of earlier ones; what arrives late does not.
    clock.advance(1_000);
    await push(one, [{ name: 'queries', value: 12 }]);
    await push(one, [{ name: 'queries', value: 11 }], [], -500);
    await refresh();
    const found = await scrape();
    expect(found.value('agent_samples', { name: 'queries' })).toBe(17);
    const load = found.find('agent_values', { name: 'load' });
    expect(Object.fromEntries(load.map(({ labels, value }) => [labels.stat, value]))).toEqual({
      min: 1,
      mean: 2.5,
      max: 4,
    });
    await server.pass(2 * TIMEOUT_MS + 1_000, { reaps: false });
    await server.agent(two, '/heartbeat');
    await refresh();
    const later = await scrape();
    expect(later.value('agent_samples', { name: 'queries' })).toBe(5);
    expect(later.value('agent_values', { name: 'load', stat: 'max' })).toBe(4);
  });

  test('are there again after a restart', async () => {
    await start();
    await push(await server.register('one'), [{ name: 'queries', value: 10 }]);
    const { folder } = server;
    await server.stop({ keep: true });
    server = await TestServer.start({}, { folder, clock });
    await refresh();
    expect((await scrape()).value('agent_samples', { name: 'queries' })).toBe(10);
  });

  test('are split by the labels that the setting names', async () => {
    await start({ METRICS_LABELS: 'region' });
    for (const [hostname, region] of [
      ['one', 'fra'],
      ['two', 'fra'],
      ['three', 'ams"'],
      ['four', 'other'],
    ] as const) {
      const agent = await server.register(hostname);
      await server.operator('PUT', `/v1/agents/${agent.agent_id}/labels`, { labels: { region } });
      await push(agent, [{ name: 'queries', value: 1 }]);
    }
    await push(await server.register('unlabelled'), [{ name: 'queries', value: 7 }]);
    await refresh();
    const found = (await scrape()).find('agent_samples', { name: 'queries' });
    expect(Object.fromEntries(found.map(({ labels, value }) => [labels.region, value]))).toEqual({
      fra: 2,
      'ams"': 1,
      other: 8,
    });
  });

  test('have names that a stranger chose, whatever is in them, and a bounded number of them', async () => {
    await start();
    const [one, two] = [await server.register('one'), await server.register('two')];
    const names = ['a"b', 'c\\d', 'e\nf', '\u0000', '\ud800', '\u2028', 'tëxt', '}', '{x="1"} 5', '# HELP x'];
    await push(
      one,
      names.map((name, i) => ({ name, value: i + 1 })),
    );
    await refresh();
    const found = await scrape();
    const shown = found.find('agent_samples').map(({ labels }) => labels.name);
    // What can't be shown is one name.
    expect(shown.sort()).toEqual(
      ['a"b', 'c\\d', 'e\ufffdf', '\ufffd', 'tëxt', '}', '{x="1"} 5', '# HELP x'].sort(),
    );
    // One agent can't take the place of all others' names.
    clock.advance(1);
    await push(
      one,
      Array.from({ length: 900 }, (_, i) => ({ name: `n${i}`, value: 1 })),
    );
    await push(two, [{ name: 'mine', value: 3 }]);
    await refresh();
    const full = await scrape();
    expect(full.find('agent_samples').length).toBeLessThanOrEqual(101);
    expect(full.value('agent_samples', { name: 'mine' })).toBe(3);
    const dropped = full.value('agent_samples_dropped_total');
    expect(dropped).toBeGreaterThan(800);
    // What is stored is read again, here and by other replicas.
    await refresh();
    await refresh();
    expect((await scrape()).value('agent_samples_dropped_total')).toBe(dropped);
  });
});
