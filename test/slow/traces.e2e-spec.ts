import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { dnsTask } from '../helpers/harness';
import { OtlpReceiver } from '../helpers/otlp-receiver';
import { endAll, ServerProcess } from '../helpers/processes';

const TRACE = '4bf92f3577b34da6a3ce929d0e0e4736';
const TRACEPARENT = `00-${TRACE}-00f067aa0ba902b7-01`;

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
  async function start(variables: Record<string, string>, env: Record<string, string> = {}) {
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
    const server = await ServerProcess.start(folder, {
      // Nest's throttler warns if no quota of callers is on.
      env: { REGISTER_TOTAL: 'default', ...env },
      variables,
      nodeArgs: ['--require', hook],
    });
    const stop = async () => {
      const code = await server.end('SIGTERM');
      return { code, loaded: readFileSync(loaded, 'utf8') };
    };
    return { server, stop };
  }

  it('loads nothing of OpenTelemetry if it sends no traces, and hands on what the caller said', async () => {
    const { server, stop } = await start({ OTEL_SERVICE_NAME: 'x', OTEL_TRACES_SAMPLER: 'always_on' });
    await server.operator('POST', '/v1/tasks', { tasks: [dnsTask()] }, { traceparent: TRACEPARENT });
    await server.enqueue(dnsTask());
    const agent = await server.register('a');
    const { leases } = (await server.agent(agent, '/claim', { capacities: { dns: 2 } })).body as {
      leases: { traceparent?: string }[];
    };
    expect(leases.map(({ traceparent }) => traceparent)).toEqual([TRACEPARENT, undefined]);
    expect(await stop()).toEqual({ code: 0, loaded: '' });
    const enqueued = server.log.filter(({ route }) => route === '/v1/tasks');
    expect(enqueued[0]).toMatchObject({ task_id: 1, trace_id: TRACE });
  });

  it('sends what waits when it stops, under the names of the environment', async () => {
    const receiver = await OtlpReceiver.start();
    const { server, stop } = await start({
      OTEL_EXPORTER_OTLP_ENDPOINT: receiver.url,
      OTEL_EXPORTER_OTLP_HEADERS: 'x-key=secret-of-the-collector',
      OTEL_SERVICE_NAME: 'probes',
      OTEL_BSP_SCHEDULE_DELAY: '600000',
    });
    await server.operator('GET', '/v1/tasks');
    expect(receiver.spans).toEqual([]);
    const { code, loaded } = await stop();
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
      const { server, stop } = await start(
        { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint, OTEL_BSP_SCHEDULE_DELAY: '50' },
        { SHUTDOWN_TIMEOUT_MS: '9000' },
      );
      for (let i = 0; i < 50; i++) expect((await server.operator('GET', '/v1/tasks')).status).toBe(200);
      const { code } = await stop();
      // By itself, and not by the time that it has for it.
      expect(code).toBe(0);
      expect(server.log.filter(({ level }) => level === 'fatal')).toEqual([]);
      const complaints = server.log.filter(({ message }) => /collector of traces/.test(message));
      expect(complaints.length).toBeLessThanOrEqual(1);
      if (answer !== 'away') await receiver.stop();
    },
  );

  it('counts the spans for which there is no room, and says so once', async () => {
    const receiver = await OtlpReceiver.start();
    receiver.answer = 'never';
    const { server, stop } = await start({
      OTEL_EXPORTER_OTLP_ENDPOINT: receiver.url,
      OTEL_BSP_MAX_QUEUE_SIZE: '8',
      OTEL_BSP_MAX_EXPORT_BATCH_SIZE: '8',
    });
    for (let i = 0; i < 50; i++) await server.operator('GET', '/v1/tasks');
    const text = (await server.operator('GET', '/metrics')).body;
    const lost = Number(/^control_plane_trace_spans_lost_total (\d+)$/m.exec(text)?.[1]);
    // Eight are on their way, and eight wait.
    expect(lost).toBeGreaterThanOrEqual(50 - 16);
    expect(lost).toBeLessThan(70);
    expect((await stop()).code).toBe(0);
    expect(server.log.filter(({ message }) => /some are lost/.test(message))).toHaveLength(1);
    await receiver.stop();
  });

  it.each([
    [{ OTEL_EXPORTER_OTLP_ENDPOINT: 'not a url' }, 'OTEL_EXPORTER_OTLP_ENDPOINT must be'],
    [
      { OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:9', OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc' },
      'OTEL_EXPORTER_OTLP_PROTOCOL must be',
    ],
    [{ OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:9', OTEL_SDK_DISABLED: 'true' }, undefined],
  ])('starts without traces, and says why, if it can not send them: %j', async (env, problem) => {
    const { server, stop } = await start(env);
    expect(await server.status('/healthz')).toBe(200);
    expect(await stop()).toEqual({ code: 0, loaded: '' });
    const said = server.log.filter(({ level }) => level === 'warn').map(({ message }) => message);
    expect(said).toEqual(problem === undefined ? [] : [expect.stringContaining(problem)]);
  });
});
