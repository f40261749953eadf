import { spawn } from 'node:child_process';
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { ADMIN_TOKEN, CHILD_ENV, databaseIn, removeDatabaseIn } from '../helpers/harness';
import { end, endAll, freePort, track } from '../helpers/processes';
import { SpanCollector } from '../helpers/span-collector';

const MAIN = join(__dirname, '../../dist/main.js');
const TRACE = '0af7651916cd43dd8448eb211c80319c';
const CALLER = `00-${TRACE}-b7ad6b7169203331-01`;
const SECRET = 'a-secret-of-a-test';

let receiver: SpanCollector;
let folder: string;

beforeEach(async () => {
  receiver = await SpanCollector.start();
  folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
});
afterEach(async () => {
  await endAll();
  receiver.stop();
  await removeDatabaseIn(folder);
});

/** Starts the program as it is started for real. */
async function start(env: Record<string, string>) {
  const port = await freePort();
  const child = track(
    spawn(process.execPath, [MAIN], {
      cwd: folder,
      env: {
        ...CHILD_ENV,
        CONTROL_PLANE_BIND: `127.0.0.1:${port}`,
        CONTROL_PLANE_DATABASE_URL: await databaseIn(folder),
        CONTROL_PLANE_ADMIN_TOKEN: ADMIN_TOKEN,
        CONTROL_PLANE_LOG_REQUESTS: 'all',
        CONTROL_PLANE_MIN_FREE_DISK_MB: '0',
        CONTROL_PLANE_RETRY_BACKOFF_MS: '1',
        CONTROL_PLANE_DRAIN_MS: '0',
        OTEL_BSP_SCHEDULE_DELAY: '50',
        ...env,
      },
    }),
  );
  let log = '';
  child.stdout.on('data', (chunk) => {
    log += chunk;
  });
  let errors = '';
  child.stderr.on('data', (chunk) => {
    errors += chunk;
  });
  while (!log.includes('"listening"')) await sleep(10);
  const call = async (path: string, body: object, headers: Record<string, string> = {}) => {
    const response = await fetch(`http://127.0.0.1:${port}${path}`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...headers },
      body: JSON.stringify(body),
    });
    return { status: response.status, body: (await response.json()) as any };
  };
  const operator = (path: string, body: object, headers: Record<string, string> = {}) =>
    call(path, body, { authorization: `Bearer ${ADMIN_TOKEN}`, ...headers });
  const { body: agent } = await call('/register', { hostname: 'probe-1' });
  const asAgent = (path: string, body: object) =>
    call(
      path,
      { agent_id: agent.agent_id, ...body },
      { 'x-agent-id': String(agent.agent_id), 'x-agent-token': agent.auth_token },
    );
  const claim = async () => {
    const { body } = await asAgent('/claim', { capacities: { dns: 1 }, wait_ms: 5_000 });
    return body.leases[0];
  };
  return {
    child,
    call,
    operator,
    asAgent,
    claim,
    token: agent.auth_token as string,
    log: () => log,
    errors: () => errors,
  };
}

const TASK = { kind: 'dns', spec: { query: `${SECRET}.example.com` } };

const otlp = () => ({ OTEL_EXPORTER_OTLP_ENDPOINT: receiver.url });

describe('traces', () => {
  it('hold a task from the enqueue to the result, with each attempt linked to the one before', async () => {
    const server = await start(otlp());
    await server.operator(`/v1/tasks?x=${SECRET}`, { tasks: [TASK] }, { 'x-secret': SECRET });
    const first = await server.claim();
    await server.asAgent('/report', { completed: [], cancelled: [{ lease_id: first.lease_id }] });
    const [, trace, attemptId] = /^00-(\w{32})-(\w{16})-01$/.exec(first.traceparent) ?? [];
    const second = await server.claim();
    expect(second.traceparent).toMatch(trace as string);
    const traceparent = `00-${trace}-00f067aa0ba902b7-01`;
    const report = { lease_id: second.lease_id, outcome: 'success', traceparent };
    expect((await server.asAgent('/report', { completed: [report], cancelled: [] })).body).toEqual({
      acknowledged: 1,
    });
    await server.operator('/v1/tasks', { tasks: [TASK] }, { traceparent: CALLER, tracestate: SECRET });
    await server.call(`/no/such/${SECRET}`, { password: SECRET }, { authorization: `Bearer ${SECRET}` });
    expect(await end(server.child, 'SIGTERM')).toBe(0);

    const enqueues = receiver.named('POST /v1/tasks');
    const root = enqueues.find((span) => span.traceId === trace);
    expect([root?.parentId, root?.attributes['http.response.status_code']]).toEqual(['', 201]);
    const called = enqueues.find((span) => span.traceId === TRACE);
    expect(called?.parentId).toBe('b7ad6b7169203331');
    const attempts = receiver.named('attempt dns').filter((span) => span.traceId === trace);
    expect(attempts.map((span) => [span.parentId, span.attributes['control_plane.lease_state']])).toEqual([
      [root?.spanId, 'cancelled'],
      [root?.spanId, 'completed'],
    ]);
    expect(attempts[0]?.spanId).toBe(attemptId);
    expect(attempts[1]?.links).toEqual([
      { traceId: trace, spanId: attemptId, is: 'previous_attempt' },
      { traceId: trace, spanId: '00f067aa0ba902b7', is: 'agent' },
      expect.objectContaining({ is: 'ended_by' }),
    ]);
    // The unit of work is below the request, and the commit below that.
    const unit = receiver.named('unit_of_work').find((span) => span.parentId === root?.spanId);
    expect(receiver.named('commit').map((span) => span.parentId)).toContain(unit?.spanId);
    expect(receiver.named('unknown')).toHaveLength(1);
    expect(receiver.resources[0]).toMatchObject({ 'service.name': 'dns-agent-control-plane' });
    const bytes = Buffer.concat(receiver.bytes).toString('latin1');
    for (const secret of [SECRET, ADMIN_TOKEN, server.token, 'example.com', 'probe-1'])
      expect(bytes.includes(secret)).toBe(false);
    const lines = server.log().split('\n');
    expect(lines.find((line) => line.includes(TRACE))).toContain(`"trace_id":"${TRACE}"`);
  });

  it('are not begun by a traceparent that is malformed, nor chosen by a stranger', async () => {
    const server = await start(otlp());
    const bad = [CALLER.toUpperCase(), `ff${CALLER.slice(2)}`, `00-${'0'.repeat(32)}-b7ad6b7169203331-01`];
    for (const traceparent of bad)
      expect((await server.operator('/v1/tasks', { tasks: [TASK] }, { traceparent })).status).toBe(201);
    await server.call('/register', { hostname: 'probe-2' }, { traceparent: CALLER });
    const { lease_id } = await server.claim();
    const completed = [{ lease_id, traceparent: [[CALLER]] }];
    expect((await server.asAgent('/report', { completed, cancelled: [] })).body).toEqual({ acknowledged: 1 });
    await end(server.child, 'SIGTERM');
    expect(receiver.named('POST /v1/tasks').map((span) => span.parentId)).toEqual(['', '', '']);
    expect(receiver.spans.filter((span) => span.traceId === TRACE)).toEqual([]);
  });

  it('are passed on if they are off, and nothing of OpenTelemetry is loaded', async () => {
    const server = await start({ NODE_DEBUG: 'module', OTEL_SDK_DISABLED: 'true', ...otlp() });
    await server.operator('/v1/tasks', { tasks: [TASK] }, { traceparent: CALLER });
    const lease = await server.claim();
    expect(lease.traceparent).toBe(CALLER);
    expect(await end(server.child, 'SIGTERM')).toBe(0);
    const files = server.errors();
    expect(files.includes('node_modules/fastify/')).toBe(true);
    // prom-client brings the API by itself.
    expect(/@opentelemetry\/(?!api\b)[\w-]+/.exec(files)?.[0]).toBeUndefined();
    expect(receiver.bytes).toEqual([]);
  });

  it('do not hurt the service if the collector is away', async () => {
    const server = await start({
      OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${await freePort()}`,
      OTEL_EXPORTER_OTLP_HEADERS: `authorization=${SECRET}`,
      OTEL_EXPORTER_OTLP_TIMEOUT: '200',
    });
    for (let i = 0; i < 5; i++) {
      expect((await server.operator('/v1/tasks', { tasks: [TASK] })).status).toBe(201);
      await sleep(100);
    }
    expect(await end(server.child, 'SIGTERM')).toBe(0);
    const complaints = server
      .log()
      .split('\n')
      .filter((line) => line.includes('collector of traces'));
    expect(complaints.length).toBeLessThanOrEqual(1);
    expect(server.log()).not.toContain(SECRET);
  });
});
