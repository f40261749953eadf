import { execFileSync, spawnSync } from 'node:child_process';
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Json } from '../helpers/api';
import {
  ADMIN_TOKEN,
  type Credentials,
  credentialsOf,
  databaseIn,
  dnsTask,
  exchange,
  removeDatabaseIn,
  ServerClient,
} from '../helpers/harness';
import { endAll, freePort, Program, ServerProcess } from '../helpers/processes';
import { until } from '../helpers/until';

const ROOT = join(__dirname, '../..');
const OPERATOR = { authorization: `Bearer ${ADMIN_TOKEN}` };
const PATIENCE_MS = 180_000;
/** How long HAProxy may take to notice a replica, on a machine that has much else to do. */
const NOTICE_MS = 60_000;
const AGENTS = 12;

/** The shipped configuration with other addresses, and the process that runs it. */
class LoadBalancer extends ServerClient {
  private constructor(
    private readonly folder: string,
    private readonly program: Program,
    url: string,
  ) {
    super(url);
  }

  static async start(folder: string, replicas: readonly string[]): Promise<LoadBalancer> {
    mkdirSync(folder);
    const port = await freePort();
    let config = readFileSync(join(ROOT, 'deploy/haproxy.cfg'), 'utf8');
    const replace = (from: string, to: string) => {
      expect(config).toContain(from);
      config = config.replace(from, to);
    };
    replace('log stdout format raw local0', `stats socket ${join(folder, 'socket')} mode 600 level operator`);
    replace('bind :8080', `bind 127.0.0.1:${port}`);
    replicas.forEach((address, i) => {
      replace(
        `server control-plane-${i + 1} control-plane-${i + 1}:8080`,
        `server control-plane-${i + 1} ${address}`,
      );
    });
    writeFileSync(join(folder, 'haproxy.cfg'), config);
    const program = Program.spawn('haproxy', ['-db', '-q', '-f', join(folder, 'haproxy.cfg')], {
      cwd: folder,
    });
    const balancer = new LoadBalancer(folder, program, `http://127.0.0.1:${port}`);
    await until('haproxy answers at its socket', () => {
      if (!program.runs) throw new Error(`haproxy did not start: ${program.output}${program.errors}`);
      return balancer.status('control-plane-1').catch(() => undefined);
    });
    return balancer;
  }

  /** What it thinks of a replica: `UP`, `DOWN`, `UP 1/2`, ... */
  async status(server: string): Promise<string | undefined> {
    const socket = connect(join(this.folder, 'socket'));
    socket.write('show stat\n');
    let text = '';
    for await (const chunk of socket) text += chunk;
    const row = text.split('\n').find((line) => line.startsWith(`replicas,${server},`));
    return row?.split(',')[17];
  }

  /** Waits until it thinks so of a replica. */
  async until(server: string, status: RegExp): Promise<void> {
    await until(`${server} is ${status}`, () => this.status(server), {
      isDone: (seen = '') => status.test(seen),
      withinMs: NOTICE_MS,
    });
  }

  async stop(): Promise<void> {
    await this.program.end('SIGTERM');
  }
}

const hasHaproxy = spawnSync('haproxy', ['-v']).status === 0;

(hasHaproxy ? describe : describe.skip)('behind HAProxy (skipped if haproxy is not installed)', () => {
  let folder: string;
  let database: string;
  let ports: number[];
  let replicas: ServerProcess[];
  let balancer: LoadBalancer;

  const startReplica = (port: number): Promise<ServerProcess> =>
    ServerProcess.start(folder, {
      env: {
        BIND: `127.0.0.1:${port}`,
        DATABASE_URL: database,
        POOL_SIZE: '4',
        SIGNING_KEY_FILE: join(folder, 'signing-key.pem'),
        TRUST_PROXY: '127.0.0.1',
        // As it is shipped: the balancer has to notice before the replica ends.
        DRAIN_MS: 'default',
        LOG_LEVEL: 'fatal',
        MAX_EVENT_LOOP_DELAY_MS: '60000',
      },
    });

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
    database = await databaseIn(folder);
    const { privateKey } = generateKeyPairSync('ed25519');
    const pem = privateKey.export({ type: 'pkcs8', format: 'pem' }) as string;
    writeFileSync(join(folder, 'signing-key.pem'), pem, { mode: 0o600 });
    ports = [await freePort(), await freePort()];
    replicas = [];
    balancer = await LoadBalancer.start(
      join(folder, 'haproxy'),
      ports.map((port) => `127.0.0.1:${port}`),
    );
  }, PATIENCE_MS);

  afterAll(async () => {
    await balancer?.stop();
    await endAll();
    await removeDatabaseIn(folder);
    rmSync(folder, { recursive: true, force: true });
  }, PATIENCE_MS);

  const envelope = (error: string, retryable: boolean) => ({ error, message: expect.any(String), retryable });

  it('is taken by haproxy as it is shipped, with names that nobody resolves yet', () => {
    expect(() =>
      execFileSync('haproxy', ['-c', '-f', join(ROOT, 'deploy/haproxy.cfg')], { stdio: 'pipe' }),
    ).not.toThrow();
  });

  it(
    'answers in the envelope itself where no replica can, and goes on when one comes',
    async () => {
      for (const server of ['control-plane-1', 'control-plane-2']) await balancer.until(server, /^DOWN/);
      const none = await balancer.request('GET', '/v1/tasks');
      expect([none.status, none.body]).toEqual([503, envelope('ERR_UNAVAILABLE', true)]);
      expect(none.headers.get('content-type')).toMatch(/^application\/json/);
      expect(none.headers.get('retry-after')).toMatch(/^[1-9]$/);
      // One replica that is missing is no outage.
      replicas[0] = await startReplica(ports[0] as number);
      await balancer.until('control-plane-1', /^UP$/);
      expect((await balancer.request('GET', '/readyz')).status).toBe(200);
      // Metrics are scraped from each replica, also by those who have the right; agents send theirs through here.
      for (const path of ['/metrics', '/%6Detrics?x=1', '//metrics/']) {
        const hidden = await balancer.operator('GET', path);
        expect([path, hidden.status, hidden.body]).toEqual([path, 404, envelope('ERR_NOT_FOUND', false)]);
      }
      const direct = await replicas[0].operator('GET', '/metrics');
      expect([direct.status, direct.body]).toEqual([200, expect.stringContaining('# TYPE control_plane_')]);
      const sent = await balancer.request('POST', '/metrics');
      expect([sent.status, sent.body]).toEqual([401, envelope('ERR_UNAUTHORIZED', false)]);
    },
    PATIENCE_MS,
  );

  it(
    'fails no call of agents and operators in six rolling restarts',
    async () => {
      replicas[1] = await startReplica(ports[1] as number);
      await balancer.until('control-plane-2', /^UP$/);
      const failed: unknown[] = [];
      let calls = 0;
      let reports = 0;
      let stopping = false;
      const call = async (path: string, headers: Record<string, string>, body: object): Promise<Json> => {
        calls++;
        try {
          const { status, body: answer } = await balancer.request('POST', path, { headers, body });
          if (status >= 300) failed.push([path, status, answer]);
          return answer;
        } catch (error) {
          failed.push([path, error]);
          return {};
        }
      };
      const agent = async (): Promise<void> => {
        const who = (await call('/register', {}, { hostname: randomUUID() })) as Credentials;
        const { agent_id } = who;
        while (!stopping) {
          await call('/heartbeat', credentialsOf(who), { agent_id });
          const capacities = { dns: 4 };
          const { leases = [] } = await call('/claim', credentialsOf(who), {
            agent_id,
            capacities,
            wait_ms: 30_000,
          });
          const completed = leases.map(({ lease_id }: { lease_id: number }) => ({ lease_id }));
          const answer = await call('/report', credentialsOf(who), { agent_id, completed, cancelled: [] });
          reports += answer.acknowledged ?? 0;
        }
      };
      const operator = async (): Promise<void> => {
        while (!stopping) {
          await call('/v1/tasks', OPERATOR, { tasks: [dnsTask()] });
          await sleep(20);
        }
        // So that nobody waits to the end.
        await call('/v1/tasks', OPERATOR, { tasks: Array.from({ length: AGENTS * 4 }, () => dnsTask()) });
      };
      const load = [...Array.from({ length: AGENTS }, agent), operator(), operator()];
      try {
        for (let restart = 0; restart < 6; restart++) {
          const i = restart % 2;
          const before = reports;
          expect(await replicas[i]?.end('SIGTERM')).toBe(0);
          replicas[i] = await startReplica(ports[i] as number);
          await balancer.until(`control-plane-${i + 1}`, /^UP$/);
          expect(reports).toBeGreaterThan(before);
        }
      } finally {
        stopping = true;
        await Promise.all(load);
      }
      expect(failed).toEqual([]);
      expect(calls).toBeGreaterThan(900);
    },
    PATIENCE_MS,
  );

  it(
    'answers in the envelope what a replica that is killed leaves unanswered',
    async () => {
      await replicas[1]?.end('SIGKILL');
      await balancer.until('control-plane-2', /^DOWN/);
      const who = await balancer.register(randomUUID());
      const body = JSON.stringify({ agent_id: who.agent_id, capacities: { tcp: 1 }, wait_ms: 30_000 });
      // The first request of its connection: after others HAProxy closes it without an answer, for clients to try again.
      const head = Object.entries({ ...credentialsOf(who), 'content-type': 'application/json', host: 'x' });
      const claim = exchange(
        balancer.url,
        `POST /claim HTTP/1.1\r\n${head.map(([name, value]) => `${name}: ${value}\r\n`).join('')}` +
          `content-length: ${body.length}\r\nconnection: close\r\n\r\n${body}`,
      );
      await sleep(500);
      await replicas[0]?.end('SIGKILL');
      const [headers = '', text = ''] = (await claim).split('\r\n\r\n');
      expect(headers).toMatch(/^HTTP\/1\.1 502 /);
      expect(headers).toMatch(/^retry-after: [1-9]\r?$/im);
      expect(JSON.parse(text)).toEqual(envelope('ERR_UNAVAILABLE', true));
    },
    PATIENCE_MS,
  );
});
