import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import { connect, type Socket } from 'node:net';
import { ClaimWaiters } from '../../src/queue/claim-waiters';
import { ADMIN_TOKEN, credentialsOf, dnsTask, exchange, TestServer } from '../helpers/harness';
import { until } from '../helpers/until';

const MIB = 1024 * 1024;
const get = (path: string, headers = '') => `GET ${path} HTTP/1.1\r\nHost: a\r\n${headers}\r\n`;
const HEALTH = get('/healthz');
const LAST = get('/healthz', 'Connection: close\r\n');
const statuses = (text: string) =>
  [...text.matchAll(/HTTP\/1\.1 (\d+)/g)].map(([, status]) => Number(status));
const oks = (count: number) => Array<number>(count).fill(200);

describe('answers that nobody reads', () => {
  let server: TestServer;
  let sockets: Socket[] = [];

  afterEach(() => {
    for (const socket of sockets) socket.destroy();
    sockets = [];
  });

  /** Opens a connection that reads nothing, and sends something. */
  async function open(text: string): Promise<Socket> {
    const { hostname, port } = new URL(server.url);
    const socket = connect(Number(port), hostname).on('error', () => undefined);
    sockets.push(socket);
    await once(socket, 'connect');
    socket.pause();
    socket.write(text);
    return socket;
  }

  const connections = () =>
    new Promise<number>((resolve) =>
      server.app.getHttpServer().getConnections((_: unknown, count: number) => resolve(count)),
    );
  const load = () => server.answers.load;

  describe('in a pipeline', () => {
    beforeAll(async () => {
      server = await TestServer.start();
    });
    afterAll(() => server.stop());

    it('are made one after the other, however many requests arrive at once', async () => {
      const responses: ServerResponse[] = [];
      server.app.getHttpServer().on('request', (_request, response) => responses.push(response));
      for (let i = 0; i < 3; i++) await open(get('/docs/swagger-ui-bundle.js').repeat(1_100));
      await until('the pipelines wait', () => load().waiting >= 3 * 16);
      await until(
        'nearly all requests are taken up, or none is left',
        () => responses.length >= 3_000 || load().waiting === 0,
      );
      const begun = responses.filter((response) => response.headersSent && !response.writableFinished);
      expect(begun.length).toBeLessThanOrEqual(3);
      // The documentation's texts are nobody's own: all share them.
      expect(load().bytes).toBe(0);
      for (const socket of sockets) socket.destroy();
      await until('no request waits', () => load().waiting === 0);
    });

    it('are all sent for 17 requests on a connection, in order', async () => {
      const text = await exchange(server.url, HEALTH.repeat(15) + get('/nowhere') + LAST);
      expect(statuses(text)).toEqual([...oks(15), 404, 200]);
    });

    it('are sent for the first 17 of more; then the connection closes', async () => {
      const text = await exchange(server.url, HEALTH.repeat(1_000));
      expect(statuses(text)).toEqual(oks(17));
      expect(text.match(/connection: close/gi)).toHaveLength(1);
      expect(load().waiting).toBe(0);
    });

    it('wait for a claim before them, and what is behind a request to close is not done', async () => {
      const agent = await server.register('probe-1');
      const claim = JSON.stringify({ agent_id: agent.agent_id, capacities: { dns: 1 }, wait_ms: 20_000 });
      const headers = Object.entries({
        ...credentialsOf(agent),
        'content-type': 'application/json',
        'content-length': claim.length,
      }).map(([name, value]) => `${name}: ${value}\r\n`);
      const register = 'POST /register HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n';
      const body = '{"hostname":"never"}';
      const answered = exchange(
        server.url,
        `POST /claim HTTP/1.1\r\nHost: a\r\n${headers.join('')}\r\n${claim}${LAST}` +
          `${register}Content-Length: ${body.length}\r\n\r\n${body}`,
      );
      await until(
        'the claim waits, and a request behind it',
        () => server.app.get(ClaimWaiters).waiting === 1 && load().waiting > 0,
      );
      await server.enqueue(dnsTask());
      const text = await answered;
      expect(statuses(text)).toEqual([200, 200]);
      expect(text.indexOf('"leases"')).toBeLessThan(text.indexOf('"status"'));
      expect((await server.operator('GET', '/v1/agents?hostname=never')).body.items).toEqual([]);
    });

    it.each(['destroy', 'resetAndDestroy'] as const)(
      'are not made for operators who hung up: %s',
      async (how) => {
        const read = jest.spyOn(server.database, 'read');
        const readsOf = async (requests: () => Promise<unknown>) => {
          const earlier = read.mock.calls.length;
          await requests();
          return read.mock.calls.length - earlier;
        };
        const list = get('/v1/tasks?limit=500', `Authorization: Bearer ${ADMIN_TOKEN}\r\n`);
        const one = () => server.operator('GET', '/v1/tasks');
        await one();
        const before = await connections();
        const each = await readsOf(one);
        const reads = await readsOf(async () => {
          const callers = await Promise.all(Array.from({ length: 30 }, () => open('')));
          for (const caller of callers) {
            caller.write(list);
            caller[how]();
          }
          await until('the connections are closed', connections, { isDone: (count) => count <= before });
          await one();
        });
        read.mockRestore();
        // Jobs read too.
        expect(each).toBeGreaterThan(0);
        expect(reads).toBeLessThan(10 * each);
      },
    );

    it('are made for more operators than read at once', async () => {
      const answers = await Promise.all(
        Array.from({ length: 40 }, () => server.operator('GET', '/v1/tasks')),
      );
      expect(answers.map(({ status }) => status)).toEqual(oks(40));
    });

    it('are given up when the client hangs up, and nothing stays counted', async () => {
      const agent = await server.register('probe-2');
      const body = JSON.stringify({ agent_id: agent.agent_id, capacities: { tcp: 1 }, wait_ms: 20_000 });
      const headers = Object.entries(credentialsOf(agent)).map(([name, value]) => `${name}: ${value}\r\n`);
      const socket = await open(
        `POST /claim HTTP/1.1\r\nHost: a\r\n${headers.join('')}Content-Type: application/json\r\n` +
          `Content-Length: ${body.length}\r\n\r\n${body}${HEALTH.repeat(40)}`,
      );
      await until('the requests behind the claim wait', () => load().waiting === 40);
      socket.destroy();
      await until('no request waits', () => load().waiting === 0);
      expect(load()).toEqual({ waiting: 0, bytes: 0 });
    });
  });

  describe('beyond what they may come to', () => {
    /** A page as large as they come: more than 8 MiB, more than the kernel buffers. */
    let page: string;

    beforeAll(async () => {
      server = await TestServer.start({ MAX_ANSWER_BYTES: String(32 * MIB), ANSWER_TIMEOUT_MS: '600000' });
      const agent = await server.register();
      const counters = Array.from({ length: 1_000 }, (_, i) => ({
        name: `${'x'.repeat(250)}${i}`,
        value: i,
      }));
      for (let i = 0; i < 40; i++) {
        const timestamp = new Date(Date.now() - i * 1_000).toISOString();
        expect((await server.agent(agent, '/metrics', { timestamp, counters })).status).toBe(202);
      }
      page = get(
        `/v1/agents/${agent.agent_id}/metrics?limit=500`,
        `Authorization: Bearer ${ADMIN_TOKEN}\r\nConnection: close\r\n`,
      );
    });
    afterAll(() => server.stop());

    it('end the connections whose clients have been reading longest, and nobody else', async () => {
      const responses: ServerResponse[] = [];
      server.app.getHttpServer().on('request', (_request, response) => responses.push(response));
      for (let i = 0; i < 6; i++) {
        await open(page);
        await until('the page is made', () => responses[i]?.writableEnded === true);
        expect(load().bytes).toBeLessThanOrEqual(32 * MIB);
      }
      // Four of them fit.
      expect(load().bytes).toBeGreaterThan(24 * MIB);
      const whole = await Promise.all(
        sockets.map(async (socket) => {
          let text = '';
          socket.on('data', (chunk) => {
            text += chunk;
          });
          socket.resume();
          await once(socket, 'close');
          return text.endsWith('}');
        }),
      );
      expect(whole).toEqual([false, false, true, true, true, true]);
      await until('nothing is held', () => load().bytes === 0);
    });

    it('end connections that do not read in time, by the size of the answer', async () => {
      const socket = await open(page);
      await until('the page is held', () => load().bytes > 0);
      const { bytes } = load();
      const ended = once(socket, 'close');
      // 16 KiB a second on top of the 600 s.
      const late = performance.now() + 600_000 + bytes / 16;
      server.answers.sweep(late - 60_000);
      expect(load().bytes).toBe(bytes);
      server.answers.sweep(late + 1);
      expect(load().bytes).toBe(0);
      socket.resume();
      await ended;
    });
  });
});

describe('the documentation', () => {
  it('is made once, has an entity tag, and is the same for HEAD', async () => {
    const server = await TestServer.start();
    try {
      for (const path of ['/docs', '/docs-json', '/docs-yaml', '/docs/start.js', '/docs/swagger-ui.css']) {
        const first = await server.request('GET', path);
        const etag = first.headers.get('etag') as string;
        expect([path, first.status, etag]).toEqual([path, 200, expect.stringMatching(/^"[\w-]{22}"$/)]);
        const again = await server.request('GET', path, { headers: { 'if-none-match': etag } });
        expect([again.status, again.body, again.headers.get('etag')]).toEqual([304, '', etag]);
        const head = await server.request('HEAD', path);
        expect([head.status, head.headers.get('etag')]).toEqual([200, etag]);
      }
    } finally {
      await server.stop();
    }
  });

  it('is where a browser is sent that asks for the root; others are told that nothing is there', async () => {
    const server = await TestServer.start({ QUOTA_PUBLIC: '600/1m,600' });
    try {
      const get = (accept?: string, method = 'GET') =>
        fetch(`${server.url}/`, {
          method,
          redirect: 'manual',
          headers: accept === undefined ? {} : { accept },
        });
      for (const accept of [
        'text/html',
        'text/html,application/xhtml+xml,*/*;q=0.8',
        'text/plain, text/html;q=0.5',
      ]) {
        const answer = await get(accept);
        expect([answer.status, answer.headers.get('location'), answer.headers.get('vary')]).toEqual([
          302,
          'docs',
          'accept',
        ]);
        expect(answer.headers.get('ratelimit-policy')).toBe('"public";q=600;w=60');
      }
      expect((await get('text/html', 'HEAD')).status).toBe(302);
      for (const accept of [undefined, '*/*', 'application/json', 'text/html;q=0, application/json']) {
        const answer = await get(accept);
        expect([answer.status, await answer.json()]).toEqual([
          404,
          { error: 'ERR_NOT_FOUND', message: 'There is no such resource.', retryable: false },
        ]);
        expect(answer.headers.get('ratelimit-policy')).toBe('"public";q=600;w=60');
      }
    } finally {
      await server.stop();
    }
  });

  it('can be switched off: nobody serves it then', async () => {
    const server = await TestServer.start({ DOCS: 'off' });
    try {
      for (const path of [
        '/',
        '/docs',
        '/docs/',
        '/docs-json',
        '/docs-yaml',
        '/docs/start.js',
        '/docs/swagger-ui.css',
      ]) {
        const { status, body } = await server.request('GET', path, { headers: { accept: 'text/html' } });
        expect([path, status, body.error]).toEqual([path, 404, 'ERR_NOT_FOUND']);
      }
    } finally {
      await server.stop();
    }
  });
});
