import { trace } from '../../src/extension-api';
import { JobRunner } from '../../src/scheduling/job-runner';
import { readSettings } from '../../src/settings';
import { createLogger } from '../../src/telemetry/logger';
import { startTracing } from '../../src/telemetry/otlp';
import type { TraceSettings } from '../../src/trace-settings';
import { ADMIN_TOKEN, type Credentials, credentialsOf, dnsTask, TestServer } from '../helpers/harness';
import { OtlpReceiver, type SentSpan } from '../helpers/otlp-receiver';
import { until } from '../helpers/until';

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
  const arrived = async (isDone: (span: SentSpan) => boolean): Promise<SentSpan> =>
    (await until('such a span has come', () => receiver.spans.find(isDone))) as SentSpan;

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
      const granted = await until('the task can be claimed', () => claim(server, agent), {
        isDone: ({ length }) => length > 0,
      });
      leases.push(...granted);
      const cancelled = granted.map(({ lease_id }) => ({ lease_id }));
      await server.agent(agent, '/report', { completed: [], cancelled });
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

  it('has no link to itself if an agent only repeats what it was handed', async () => {
    await enqueue(server, {}, dnsTask());
    const [lease] = await claim(server, agent);
    const completed = [{ lease_id: lease?.lease_id, traceparent: lease?.traceparent }];
    await server.agent(agent, '/report', { completed, cancelled: [] });
    const attempt = await arrived(
      ({ attributes }) => attributes['control_plane.lease_id'] === lease?.lease_id,
    );
    expect(attempt.links.map(({ is }) => is)).toEqual(['ended_by']);
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
  ])('starts a new trace if what the caller says is malformed: %j', async (traceparent) => {
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
    // Below its first unit, with links to the others: a unit of a job may have come before this one.
    const commit = await arrived(
      ({ name, parentId, links }) =>
        name === 'commit' &&
        (parentId === unit.spanId || links.some(({ spanId, is }) => spanId === unit.spanId && is === 'unit')),
    );
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

  it('has the requests whose callers gave up, with what was done for them', async () => {
    await expect(
      server.abandon(agent, '/v1/agents/claim', { capacities: { dns: 1 }, wait_ms: 5_000 }, 100),
    ).rejects.toThrow('aborted');
    const request = await arrived(({ name, failed }) => name === 'POST /v1/agents/claim' && failed);
    expect(request.attributes).toMatchObject({ 'error.type': 'unanswered' });
    expect(request.attributes).not.toHaveProperty('http.response.status_code');
    expect(receiver.spans.some(({ parentId }) => parentId === request.spanId)).toBe(true);
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
