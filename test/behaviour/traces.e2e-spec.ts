import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { trace } from '../../src/extension-api';
import { JobRunner } from '../../src/scheduling/job-runner';
import { readSettings, type TraceSettings } from '../../src/settings';
import { createLogger } from '../../src/telemetry/logger';
import { startTracing } from '../../src/telemetry/otlp';
import {
  ADMIN_TOKEN,
  CHILD_ENV,
  type Credentials,
  credentialsOf,
  dnsTask,
  TestServer,
} from '../helpers/harness';
import { OtlpReceiver, type SentSpan } from '../helpers/otlp-receiver';
import { endAll, track } from '../helpers/processes';

const ROOT = join(__dirname, '../..');
const TRACE = '4bf92f3577b34da6a3ce929d0e0e4736';
const SPAN = '00f067aa0ba902b7';
const TRACEPARENT = `00-${TRACE}-${SPAN}-01`;

const claim = async (
  server: TestServer,
  agent: Credentials,
  headers: Record<string, string> = {},
  count = 1,
) =>
  (await server.agent(agent, '/claim', { capacities: { dns: count } }, headers)).body.leases as {
    lease_id: number;
    task_id: number;
    traceparent?: string;
  }[];

const enqueue = async (server: TestServer, headers: Record<string, string>, ...tasks: object[]) =>
  (await server.operator('POST', '/v1/tasks', { tasks }, headers)).body.tasks as { id: number }[];

describe('a trace, if traces are sent', () => {
  let receiver: OtlpReceiver;
  let server: TestServer;
  let agent: Credentials;
  let flush: (withinMs: number) => Promise<void>;

  beforeAll(async () => {
    receiver = await OtlpReceiver.start();
    process.env.OTEL_EXPORTER_OTLP_ENDPOINT = receiver.url;
    const { traces } = readSettings({
      OTEL_EXPORTER_OTLP_ENDPOINT: receiver.url,
      OTEL_BSP_SCHEDULE_DELAY: '50',
    });
    flush = startTracing(traces as TraceSettings, createLogger({ logLevel: 'silent' }));
    server = await TestServer.start({ RETRY_BACKOFF_MS: '1' });
    agent = await server.register('probe');
  });
  afterAll(async () => {
    delete process.env.OTEL_EXPORTER_OTLP_ENDPOINT;
    await server.stop();
    await flush(2_000);
    await receiver.stop();
  });

  /** Waits until such a span has come. */
  async function arrived(isSo: (span: SentSpan) => boolean): Promise<SentSpan> {
    for (;;) {
      const found = receiver.spans.find(isSo);
      if (found) return found;
      await new Promise((resolve) => setTimeout(resolve, 25));
    }
  }

  it('leads from the enqueue to the result', async () => {
    const [task] = await enqueue(server, {}, dnsTask());
    const [lease] = await claim(server, agent);
    expect(lease?.task_id).toBe(task?.id);
    const own = `00-${lease?.traceparent?.slice(3, 35)}-${'a'.repeat(16)}-01`;
    const completed = [{ lease_id: lease?.lease_id, outcome: 'success', traceparent: own }];
    await server.agent(agent, '/report', { completed, cancelled: [] });
    const attempt = await arrived(
      ({ attributes }) => attributes['control_plane.lease_id'] === lease?.lease_id,
    );
    const request = await arrived(({ spanId }) => spanId === attempt.parentId);
    expect(request).toMatchObject({
      name: 'POST /v1/tasks',
      parentId: '',
      kind: 2,
      attributes: {
        'http.request.method': 'POST',
        'http.route': '/v1/tasks',
        'http.response.status_code': 201,
      },
    });
    expect(attempt).toMatchObject({
      name: 'attempt dns',
      traceId: request.traceId,
      spanId: lease?.traceparent?.slice(36, 52),
      failed: false,
      attributes: {
        'control_plane.task_id': task?.id,
        'control_plane.agent_id': agent.agent_id,
        'control_plane.attempt': 1,
        'control_plane.lease_state': 'completed',
        'control_plane.outcome': 'success',
      },
    });
    const report = await arrived(({ name }) => name === 'POST /report');
    expect(attempt.links).toContainEqual({ traceId: request.traceId, spanId: 'a'.repeat(16), is: 'agent' });
    expect(attempt.links.find(({ is }) => is === 'ended_by')?.traceId).toBe(report.traceId);
  });

  it('is one across retries, each attempt linked to the one before it', async () => {
    await enqueue(server, { traceparent: TRACEPARENT }, dnsTask({ max_attempts: 3 }));
    const leases: { lease_id: number; traceparent?: string }[] = [];
    for (let attempt = 1; attempt <= 3; attempt++) {
      let [lease] = await claim(server, agent);
      while (!lease) [lease] = await claim(server, agent);
      leases.push(lease);
      await server.agent(agent, '/report', { completed: [], cancelled: [{ lease_id: lease.lease_id }] });
    }
    const spans = await Promise.all(
      leases.map(({ lease_id }) =>
        arrived(({ attributes }) => attributes['control_plane.lease_id'] === lease_id),
      ),
    );
    const root = await arrived(({ traceId, name }) => traceId === TRACE && name === 'POST /v1/tasks');
    expect(root.parentId).toBe(SPAN);
    spans.forEach((span, i) => {
      expect(span).toMatchObject({ traceId: TRACE, parentId: root.spanId, failed: true });
      expect(span.attributes).toMatchObject({ 'control_plane.attempt': i + 1, 'error.type': 'cancelled' });
      const previous = span.links.filter(({ is }) => is === 'previous_attempt');
      expect(previous).toEqual(
        i === 0 ? [] : [{ traceId: TRACE, spanId: spans[i - 1]?.spanId, is: 'previous_attempt' }],
      );
    });
  });

  it('gives a claim that is sent again the same places', async () => {
    await enqueue(server, {}, dnsTask(), dnsTask());
    const first = await claim(server, agent, { 'idempotency-key': 'again' }, 2);
    expect(first).toHaveLength(2);
    expect(await claim(server, agent, { 'idempotency-key': 'again' }, 2)).toMatchObject(
      first.map(({ lease_id, traceparent }) => ({ lease_id, traceparent })),
    );
    const completed = first.map(({ lease_id }) => ({ lease_id }));
    await server.agent(agent, '/report', { completed, cancelled: [] });
  });

  it.each([
    '',
    'x',
    `00-${TRACE}-${SPAN}`,
    `00-${TRACE.toUpperCase()}-${SPAN}-01`,
    `00-${'0'.repeat(32)}-${SPAN}-01`,
    `00-${TRACE}-${'0'.repeat(16)}-01`,
    `ff-${TRACE}-${SPAN}-01`,
    `00-${TRACE}-${SPAN}-01-more`,
    'a'.repeat(4_000),
  ])('begins anew if what the caller says is malformed: %j', async (traceparent) => {
    const { status } = await server.operator('POST', '/v1/tasks', { tasks: [dnsTask()] }, { traceparent });
    expect(status).toBe(201);
    const [lease] = await claim(server, agent);
    expect(lease?.traceparent).toMatch(/^00-[0-9a-f]{32}-[0-9a-f]{16}-01$/);
    expect(lease?.traceparent).not.toContain(TRACE);
    // Nor does it make a report invalid.
    for (const said of [traceparent, 5, null, {}]) {
      const { body } = await server.agent(agent, '/report', {
        ...{ completed: [{ lease_id: lease?.lease_id, traceparent: said }], cancelled: [] },
      });
      expect(body).toEqual({ acknowledged: 1 });
    }
  });

  it('is not taken if the caller says that it is not sampled, and is handed on all the same', async () => {
    const unsampled = 'b'.repeat(32);
    await enqueue(server, { traceparent: `00-${unsampled}-${SPAN}-00` }, dnsTask());
    const [lease] = await claim(server, agent);
    expect(lease?.traceparent).toMatch(new RegExp(`^00-${unsampled}-[0-9a-f]{16}-00$`));
    await server.agent(agent, '/report', { completed: [{ lease_id: lease?.lease_id }], cancelled: [] });
    await enqueue(server, { traceparent: `00-${'c'.repeat(32)}-${SPAN}-01` }, dnsTask());
    await arrived(({ traceId }) => traceId === 'c'.repeat(32));
    expect(receiver.spans.filter(({ traceId }) => traceId === unsampled)).toEqual([]);
    const [rest] = await claim(server, agent);
    await server.agent(agent, '/report', { completed: [{ lease_id: rest?.lease_id }], cancelled: [] });
  });

  it('has units of work and their commits, and jobs that did something', async () => {
    await enqueue(server, { traceparent: `00-${'d'.repeat(32)}-${SPAN}-01` }, dnsTask());
    const unit = await arrived(({ traceId, name }) => traceId === 'd'.repeat(32) && name === 'unit_of_work');
    const commit = await arrived(({ name, parentId }) => name === 'commit' && parentId === unit.spanId);
    expect(commit.attributes['control_plane.units']).toBeGreaterThanOrEqual(1);
    const jobs = server.app.get(JobRunner);
    await jobs.run('some-job', 1_000, () =>
      server.database.write(async (tx) => void (await tx.run('DELETE FROM agent_about'))),
    );
    await jobs.run('idle-job', 1_000, async () => undefined);
    await jobs.run('bad-job', 1_000, () => Promise.reject(new RangeError('secret of a job')));
    const job = await arrived(({ name }) => name === 'job some-job');
    await arrived(({ name, traceId }) => name === 'unit_of_work' && traceId === job.traceId);
    expect(await arrived(({ name }) => name === 'job bad-job')).toMatchObject({
      failed: true,
      attributes: { 'error.type': 'RangeError' },
    });
    expect(receiver.named('job idle-job')).toEqual([]);
    const [lease] = await claim(server, agent);
    await server.agent(agent, '/report', { completed: [{ lease_id: lease?.lease_id }], cancelled: [] });
  });

  it('has what an extension adds, under names and values that are of the code', async () => {
    const jobs = server.app.get(JobRunner);
    await jobs.run('extending', 1_000, () =>
      trace(
        'ask_registry',
        { found: true, tries: 2, of: 'a_word', said: 'Free text 192.0.2.1' },
        async () => undefined,
      ),
    );
    const { attributes } = await arrived(({ name }) => name === 'ask_registry');
    expect(attributes).toEqual({ found: true, tries: 2, of: 'a_word' });
    expect(() => trace('Not a name', {}, async () => undefined)).toThrow(TypeError);
  });

  it('holds nothing that a caller sent but the trace itself: no header, body, path or query', async () => {
    const secret = 'canary-in-the-request';
    await server.request('GET', `/${secret}?token=${secret}`, { headers: { 'x-canary': secret } });
    await server.request('POST', '/heartbeat', {
      headers: { ...credentialsOf(agent), 'x-agent-token': secret, 'user-agent': secret },
    });
    await server.operator('GET', `/v1/agents?hostname=${secret}`);
    await server.operator('POST', '/v1/tasks', {
      tasks: [dnsTask({ unique_key: secret }, { query: `${secret}.example` })],
    });
    const [lease] = await claim(server, agent);
    const observations = [{ name: secret, value: secret }];
    await server.agent(agent, '/report', {
      completed: [{ lease_id: lease?.lease_id, observations }],
      cancelled: [],
    });
    await server.request('GET', '/healthz');
    await server.operator('GET', '/metrics');
    await server.operator('GET', '/v1/audit?action=the-last-one');
    await arrived(({ name }) => name === 'GET /v1/audit');
    for (const text of [secret, ADMIN_TOKEN, agent.auth_token, 'the-last-one'])
      expect(receiver.raw.includes(text)).toBe(false);
    const names = new Set(receiver.spans.map(({ name }) => name));
    expect([...names].filter((name) => /healthz|metrics|canary/.test(name))).toEqual([]);
    expect(names).toContain('unknown');
    expect(receiver.resource['service.name']).toBe('dns-agent-control-plane');
  });

  it('is not decided by strangers', async () => {
    const theirs = 'e'.repeat(32);
    for (const path of ['/heartbeat', '/v1/tasks', '/nowhere'])
      await server.request('POST', path, { headers: { traceparent: `00-${theirs}-${SPAN}-01` }, body: {} });
    await server.operator('GET', '/v1/configs');
    await arrived(({ name }) => name === 'GET /v1/configs');
    expect(receiver.spans.filter(({ traceId }) => traceId === theirs)).toEqual([]);
  });
});

describe('a process', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
  });
  afterEach(async () => {
    await endAll();
    rmSync(folder, { recursive: true, force: true });
  });

  /** Starts the program; `loaded` is written when it ends: the packages of OpenTelemetry that it loaded. */
  async function start(env: Record<string, string>) {
    const hook = join(folder, 'hook.cjs');
    const loaded = join(folder, 'loaded');
    writeFileSync(
      hook,
      `const seen = new Set();
       require('node:module').registerHooks({ load(url, context, next) {
         const found = /@opentelemetry\\/[^/]+/.exec(url);
         // prom-client asks the bare interface for the span that runs.
         if (found && found[0] !== '@opentelemetry/api') seen.add(found[0]);
         return next(url, context);
       } });
       process.on('exit', () => require('node:fs').writeFileSync(${JSON.stringify(loaded)}, [...seen].join('\\n')));`,
    );
    const child = track(
      spawn(process.execPath, ['--require', hook, join(ROOT, 'dist/main.js')], {
        cwd: folder,
        env: {
          ...CHILD_ENV,
          CONTROL_PLANE_BIND: '127.0.0.1:0',
          CONTROL_PLANE_ADMIN_TOKEN: ADMIN_TOKEN,
          CONTROL_PLANE_DRAIN_MS: '0',
          CONTROL_PLANE_MIN_FREE_DISK_MB: '0',
          ...env,
        },
        stdio: ['ignore', 'pipe', 'ignore'],
      }),
    );
    const log: any[] = [];
    const url = await new Promise<string>((listening, failed) => {
      createInterface({ input: child.stdout }).on('line', (line) => {
        log.push(JSON.parse(line));
        if (log.at(-1).message === 'listening') listening(log.at(-1).url);
      });
      child.once('exit', () => failed(new Error('the server did not start')));
    });
    const request = (method: string, path: string, headers: Record<string, string>, body?: object) =>
      fetch(url + path, {
        method,
        headers: { 'content-type': 'application/json', ...headers },
        body: body && JSON.stringify(body),
      });
    const stop = async () => {
      child.kill('SIGTERM');
      const [code] = await once(child, 'exit');
      return { code, loaded: readFileSync(loaded, 'utf8') };
    };
    return { request, stop, log };
  }

  const AS_ADMIN = { authorization: `Bearer ${ADMIN_TOKEN}` };

  it('loads nothing of OpenTelemetry if it sends no traces, and hands on what the caller said', async () => {
    const server = await start({ OTEL_SERVICE_NAME: 'x', OTEL_TRACES_SAMPLER: 'always_on' });
    await server.request(
      'POST',
      '/v1/tasks',
      { ...AS_ADMIN, traceparent: TRACEPARENT },
      { tasks: [dnsTask()] },
    );
    await server.request('POST', '/v1/tasks', AS_ADMIN, { tasks: [dnsTask()] });
    const agent = (await (
      await server.request('POST', '/register', {}, { hostname: 'a' })
    ).json()) as Credentials;
    const claimed = await server.request('POST', '/claim', credentialsOf(agent), {
      ...{ agent_id: agent.agent_id, capacities: { dns: 2 } },
    });
    const { leases } = (await claimed.json()) as { leases: { traceparent?: string }[] };
    expect(leases.map(({ traceparent }) => traceparent)).toEqual([TRACEPARENT, undefined]);
    expect(await server.stop()).toEqual({ code: 0, loaded: '' });
    const enqueued = server.log.filter(({ route }) => route === '/v1/tasks');
    expect(enqueued[0]).toMatchObject({ task_id: 1, trace_id: TRACE });
  });

  it('sends what waits when it stops, under the names of the environment', async () => {
    const receiver = await OtlpReceiver.start();
    const server = await start({
      OTEL_EXPORTER_OTLP_ENDPOINT: receiver.url,
      OTEL_EXPORTER_OTLP_HEADERS: 'x-key=secret-of-the-collector',
      OTEL_SERVICE_NAME: 'probes',
      OTEL_BSP_SCHEDULE_DELAY: '600000',
    });
    await server.request('GET', '/v1/tasks', AS_ADMIN);
    expect(receiver.spans).toEqual([]);
    const { code, loaded } = await server.stop();
    expect(code).toBe(0);
    expect(loaded).toContain('@opentelemetry/sdk-trace');
    expect(receiver.named('GET /v1/tasks')).toHaveLength(1);
    expect(receiver.resource['service.name']).toBe('probes');
    expect(receiver.raw.includes('secret-of-the-collector')).toBe(true);
    expect(JSON.stringify(server.log)).not.toContain('secret-of-the-collector');
    await receiver.stop();
  });

  it.each([503, 'never', 'away'] as const)(
    'serves and stops as ever if its collector is no help: %s',
    async (answer) => {
      const receiver = await OtlpReceiver.start();
      const endpoint = receiver.url;
      if (answer === 'away') await receiver.stop();
      else receiver.answer = answer;
      const server = await start({
        ...{ OTEL_EXPORTER_OTLP_ENDPOINT: endpoint, OTEL_BSP_SCHEDULE_DELAY: '50' },
        CONTROL_PLANE_SHUTDOWN_TIMEOUT_MS: '9000',
      });
      for (let i = 0; i < 50; i++)
        expect((await server.request('GET', '/v1/tasks', AS_ADMIN)).status).toBe(200);
      const { code } = await server.stop();
      // By itself, and not by the time that it has for it.
      expect(code).toBe(0);
      expect(server.log.filter(({ level }) => level === 'fatal')).toEqual([]);
      const complaints = server.log.filter(({ message }) => /collector of traces/.test(message));
      expect(complaints.length).toBeLessThanOrEqual(1);
      if (answer !== 'away') await receiver.stop();
    },
  );

  it.each([
    [{ OTEL_EXPORTER_OTLP_ENDPOINT: 'not a url' }, 'OTEL_EXPORTER_OTLP_ENDPOINT must be'],
    [
      { OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:9', OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc' },
      'OTEL_EXPORTER_OTLP_PROTOCOL must be',
    ],
    [{ OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:9', OTEL_SDK_DISABLED: 'true' }, undefined],
  ])('starts without traces, and says why, if it can not send them: %j', async (env, problem) => {
    const server = await start(env);
    expect((await server.request('GET', '/healthz', {})).status).toBe(200);
    expect(await server.stop()).toEqual({ code: 0, loaded: '' });
    const said = server.log.filter(({ level }) => level === 'warn').map(({ message }) => message);
    expect(said).toEqual(problem === undefined ? [] : [expect.stringContaining(problem)]);
  });
});
