import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Json } from '../helpers/api';
import { dnsTask, ServerClient, TestServer } from '../helpers/harness';
import { expressions } from '../helpers/monitoring';
import { endAll, freePort, Program } from '../helpers/processes';
import { until } from '../helpers/until';

const FOLDER = join(__dirname, '../../deploy/prometheus');
const PATIENCE_MS = 180_000;
/** How long Prometheus may take for several scrapes, on a machine that has much else to do. */
const SCRAPES_MS = 90_000;

const hasPrometheus = ['promtool', 'prometheus'].every(
  (program) => spawnSync(program, ['--version']).status === 0,
);

/** Runs promtool; what it complains of is in the error. */
const promtool = (args: string[], input = '', cwd = FOLDER) =>
  execFileSync('promtool', args, { cwd, input, encoding: 'utf8', stdio: 'pipe' });

(hasPrometheus ? describe : describe.skip)('Prometheus (skipped if it is not installed)', () => {
  let folder: string;
  let server: TestServer;
  let token: string;
  let prometheus: ServerClient;

  /** The shipped configuration, with the server's address and the token's file in place of those in containers. */
  function configure(): void {
    cpSync(FOLDER, folder, { recursive: true });
    const file = join(folder, 'prometheus.yml');
    let text = readFileSync(file, 'utf8');
    for (const [from, to] of [
      ['/run/secrets/prometheus-token', join(folder, 'token')],
      ['["control-plane-1:8080", "control-plane-2:8080"]', `["${new URL(server.url).host}"]`],
      ['scrape_interval: 15s', 'scrape_interval: 1s'],
      ['evaluation_interval: 15s', 'evaluation_interval: 1s'],
      ['scrape_timeout: 10s', 'scrape_timeout: 1s'],
    ] as const) {
      expect(text).toContain(from);
      text = text.replace(from, to);
    }
    writeFileSync(file, text);
    writeFileSync(join(folder, 'token'), token, { mode: 0o600 });
  }

  async function get(path: string, parameters: Record<string, string> = {}): Promise<Json> {
    return (await prometheus.request('GET', `${path}?${new URLSearchParams(parameters)}`)).body;
  }

  /** The values of a query that has an answer; it waits for one. */
  async function query(expression: string): Promise<number[]> {
    const answer = await until(
      `${expression} has an answer`,
      async () => {
        const { status, data, error } = await get('/api/v1/query', { query: expression });
        if (status !== 'success') throw new Error(`${expression}: ${error}`);
        return data.result;
      },
      { isDone: (result) => result.length > 0, everyMs: 100, withinMs: SCRAPES_MS },
    );
    return answer.map(({ value }: Json) => Number(value[1]));
  }

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-prometheus-'));
    server = await TestServer.start({ QUOTA_HEARTBEAT: '1/1h,1' });
    const made = await server.operator('POST', '/v1/operator-tokens', { name: 'prometheus', role: 'viewer' });
    expect(made.status).toBe(201);
    token = made.body.token;
    configure();
    const port = await freePort();
    prometheus = new ServerClient(`http://127.0.0.1:${port}`);
    const program = Program.spawn(
      'prometheus',
      [
        `--config.file=${join(folder, 'prometheus.yml')}`,
        `--storage.tsdb.path=${join(folder, 'data')}`,
        `--web.listen-address=127.0.0.1:${port}`,
        '--log.level=error',
      ],
      { cwd: folder },
    );
    const ready = async () => (await prometheus.request('GET', '/-/ready').catch(() => undefined))?.status;
    await until(
      'prometheus is ready',
      () => {
        if (!program.runs) throw new Error(`prometheus did not start: ${program.output}${program.errors}`);
        return ready();
      },
      { isDone: (status) => status === 200, everyMs: 50, withinMs: SCRAPES_MS },
    );
  }, PATIENCE_MS);

  afterAll(async () => {
    await endAll();
    await server?.stop();
    rmSync(folder, { recursive: true, force: true });
  }, PATIENCE_MS);

  it('takes the configuration and the rules', () => {
    expect(promtool(['check', 'config', 'prometheus.yml'], '', folder)).toContain('2 rule files found');
    promtool(['check', 'rules', 'recording.yml', 'alerts.yml']);
  });

  it(
    'fires each alert when it should, and not when it should not',
    () => {
      expect(promtool(['test', 'rules', 'alerts.test.yml'])).toContain('SUCCESS');
    },
    PATIENCE_MS,
  );

  it('takes every query of the dashboard for a rule', () => {
    const rules = expressions.map(({ expr }, i) => ({ record: `query:${i}`, expr }));
    const file = join(folder, 'queries.yml');
    writeFileSync(file, JSON.stringify({ groups: [{ name: 'queries', rules }] }));
    expect(promtool(['check', 'rules', file])).toContain(`${rules.length} rules found`);
  });

  it('has nothing to say about the names and types of what is shown', async () => {
    await server.enqueue(dnsTask());
    const agent = await server.register();
    await server.agent(agent, '/claim', { capacities: { dns: 1 } });
    const { status, body } = await server.request('GET', '/metrics', {
      headers: { authorization: `Bearer ${token}` },
    });
    expect(status).toBe(200);
    expect(promtool(['check', 'metrics'], body)).toBe('');
  });

  it(
    "scrapes a server with a viewer's token, and answers what the alerts ask",
    async () => {
      const agent = await server.register('probe-1');
      for (let i = 0; i < 3; i++) await server.agent(agent, '/heartbeat');
      await query('up{job="control-plane"} == 1');
      const { data } = await get('/api/v1/targets');
      expect(data.activeTargets).toEqual([
        expect.objectContaining({
          health: 'up',
          lastError: '',
          labels: expect.objectContaining({ job: 'control-plane' }),
        }),
      ]);
      expect(await query('sum(control_plane_agents{status="online"}) > 1')).toEqual([2]);
      expect(await query('sum(control_plane_quota_refusals_total{quota="heartbeat"}) == 2')).toEqual([2]);
      expect(await query('fleet:control_plane_agents_in_service:max == 2')).toEqual([2]);
      // A rate is the difference of two scrapes: these are after the one that has the refusals above.
      await server.agent(agent, '/heartbeat');
      await query('endpoint:control_plane_http_requests:rate5m{endpoint="heartbeat"} > 0');
      await query(
        'endpoint_reason:control_plane_requests_refused:rate5m{endpoint="heartbeat", reason="quota"} > 0',
      );
    },
    PATIENCE_MS,
  );

  it(
    'is answered on every query, each rule is well, and no alert fires for a healthy server',
    async () => {
      for (const { expr } of expressions)
        expect([expr, (await get('/api/v1/query', { query: expr })).status]).toEqual([expr, 'success']);
      const rules = async () =>
        (await get('/api/v1/rules')).data.groups.flatMap((group: Json) => group.rules);
      await until('each rule was evaluated', rules, {
        isDone: (all) => all.every(({ health }: Json) => health !== 'unknown'),
        everyMs: 100,
        withinMs: SCRAPES_MS,
      });
      for (const { name, health, lastError } of await rules())
        expect([name, health, lastError]).toEqual([name, 'ok', undefined]);
      const firing = (await rules()).filter(({ state }: Json) => state === 'firing');
      expect(firing.map(({ name }: Json) => name)).toEqual([]);
    },
    PATIENCE_MS,
  );

  it(
    'is down when its token is revoked',
    async () => {
      const { body } = await server.operator('GET', '/v1/operator-tokens');
      const { id } = body.items.find(({ name }) => name === 'prometheus');
      expect((await server.operator('DELETE', `/v1/operator-tokens/${id}`)).status).toBeLessThan(300);
      await query('up{job="control-plane"} == 0');
      const { data } = await get('/api/v1/targets');
      expect(data.activeTargets[0].lastError).toContain('401');
    },
    PATIENCE_MS,
  );
});
