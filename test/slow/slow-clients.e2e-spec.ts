import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { Bodies } from '../../src/http/bodies';
import { ClaimWaiters } from '../../src/queue/claim-waiters';
import { type Credentials, credentialsOf, dnsTask, TestServer } from '../helpers/harness';
import { until } from '../helpers/until';

const IDLE = 2_000;
const SLOW = 200;
/** As short as it may be set: nothing here may wait for the default of half a minute. */
const REQUEST_TIMEOUT_MS = 1_000;
const BODY = 'POST /register HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n';

// Thousands of sockets, and as many megabytes: on a busy machine it takes a while.
jest.setTimeout(90_000);

describe('slow and silent clients', () => {
  let server: TestServer;
  let agent: Credentials;
  let sockets: Socket[] = [];

  beforeEach(() => {
    sockets = [];
  });
  afterEach(async () => {
    for (const socket of sockets) socket.destroy();
    await server.stop();
  });

  async function start(env: Record<string, string>): Promise<void> {
    server = await TestServer.start(env);
    agent = await server.register('probe-1');
  }

  /** Opens connections and sends the beginning of something on each. */
  async function open(count: number, beginning = ''): Promise<Socket[]> {
    const { hostname, port } = new URL(server.url);
    const opened: Socket[] = [];
    // No more at once than the kernel lets wait to be accepted.
    while (opened.length < count) {
      const some = Array.from({ length: Math.min(100, count - opened.length) }, () =>
        connect(Number(port), hostname).on('error', () => undefined),
      );
      await Promise.all(some.map((socket) => once(socket, 'connect')));
      opened.push(...some);
    }
    for (const socket of opened) if (beginning !== '') socket.write(beginning);
    sockets.push(...opened);
    return opened;
  }

  /** Waits until the bodies that have arrived take so much memory. */
  async function held(least: number, below = Number.POSITIVE_INFINITY): Promise<void> {
    const bodies = server.app.get(Bodies);
    await until(`bodies hold ${least} bytes, and less than ${below}`, () => bodies.heldBytes, {
      isDone: (bytes) => bytes >= least && bytes < below,
    });
  }

  /** All that is received until the other side ends it. */
  async function received(socket: Socket): Promise<string> {
    let text = '';
    socket.on('data', (chunk) => {
      text += chunk;
    });
    await once(socket, 'close');
    return text;
  }

  async function work(): Promise<void> {
    const [task] = await server.enqueue(dnsTask());
    const { body } = await server.agent(agent, '/claim', { capacities: { dns: 1 } });
    expect(body.leases).toEqual([expect.objectContaining({ task_id: task })]);
    const completed = [{ lease_id: body.leases[0].lease_id }];
    const report = await server.agent(agent, '/report', { completed, cancelled: [] });
    expect(report.body).toEqual({ acknowledged: 1 });
  }

  it('keep nobody from working: 2,000 idle connections, unfinished headers, unfinished bodies', async () => {
    await start({ MAX_IN_FLIGHT: '5' });
    await open(IDLE);
    const headers = await open(SLOW, 'GET /healthz HTTP/1.1\r\nHost: a\r\n');
    const length = await open(SLOW, `${BODY}content-length: 16000\r\n\r\n{`);
    const chunked = await open(50, `${BODY}transfer-encoding: chunked\r\n\r\n1\r\n{\r\n`);
    for (let i = 0; i < 5; i++) {
      for (const socket of headers) socket.write('X: y\r\n');
      for (const socket of length) socket.write(' ');
      for (const socket of chunked) socket.write('1\r\n \r\n');
      await work();
    }
    // They were there all the time.
    for (const socket of sockets) expect([socket.destroyed, socket.bytesRead]).toEqual([false, 0]);
  });

  it('can not fill the memory with bodies that they never finish: an address has 2 MiB, and agents have their own', async () => {
    await start({});
    const almost = `${BODY}content-length: 16000\r\n\r\n${' '.repeat(15_999)}`;
    const strangers = await open(131, almost);
    const body = `{}${' '.repeat(3_000)}`;
    const register = async () =>
      (await server.request('POST', '/register', { headers: { 'content-type': 'application/json' }, body }))
        .status;
    await held(131 * 15_999);
    expect(await register()).toBe(503);
    await work();
    for (const socket of strangers) expect([socket.destroyed, socket.bytesRead]).toEqual([false, 0]);
    // What was hung up takes nothing.
    strangers[0]?.destroy();
    await held(130 * 15_999, 131 * 15_999);
    expect(await register()).toBe(200);
  });

  it("take nobody's place by what they only announce, nor by more than one caller may have", async () => {
    await start({});
    const other = await server.register('probe-2');
    const report = (who: Credentials) => {
      const completed = [{ lease_id: 999, observations: [{ name: 'a', value: 'x'.repeat(100_000) }] }];
      return server.agent(who, '/report', { completed, cancelled: [] });
    };
    const head = `POST /report HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nx-agent-id: ${agent.agent_id}\r\nx-agent-token: ${agent.auth_token}\r\n`;
    // As large as the limit by what they say: more than all that is held for everybody.
    const slow = await open(100, `${head}transfer-encoding: chunked\r\n\r\n1\r\n{\r\n`);
    await held(100);
    expect((await report(agent)).status).toBe(200);
    for (const socket of slow) socket.destroy();
    await held(0, 1);
    const size = 4 * 1024 * 1024;
    await open(16, `${head}content-length: ${size}\r\n\r\n${' '.repeat(size - 1)}`);
    await held(16 * (size - 1));
    const mine = await report(agent);
    expect(mine).toMatchObject({ status: 503, body: { error: 'ERR_UNAVAILABLE', retryable: true } });
    expect((await report(other)).status).toBe(200);
    await server.enqueue(dnsTask());
  });

  it('are refused before their body is read, asked for or parsed, unless they are known', async () => {
    await start({ QUOTA_PUBLIC: '600/1m,3' });
    const { hostname, port } = new URL(server.url);
    const send = async (head: string, body: string) => {
      const socket = connect(Number(port), hostname).on('error', () => undefined);
      sockets.push(socket);
      let text = '';
      socket.on('data', (chunk) => {
        text += chunk;
      });
      socket.write(
        `POST /report HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n${head}\r\n${body}`,
      );
      while (!text.includes('}')) await once(socket, 'data');
      return text;
    };
    const known = `x-agent-id: ${agent.agent_id}\r\nx-agent-token: ${agent.auth_token}\r\n`;
    // Half a body: a server that waited for the rest would not answer.
    expect(await send('content-length: 4000000\r\n', '{"agent_id"')).toMatch(/^HTTP\/1\.1 401 /);
    expect(await send('transfer-encoding: chunked\r\n', '1\r\n{\r\n')).toMatch(/^HTTP\/1\.1 401 /);
    const expecting = 'content-length: 24\r\nexpect: 100-continue\r\n';
    expect(await send(expecting, '')).toMatch(/^HTTP\/1\.1 401 /);
    // Those who say nothing of themselves have a quota, and others at the same address are not kept out by it.
    expect(await send('content-length: 4000000\r\n', '{')).toMatch(/^HTTP\/1\.1 429 /);
    const reply = connect(Number(port), hostname);
    sockets.push(reply);
    reply.write(
      `POST /heartbeat HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n${known}${expecting}\r\n`,
    );
    expect(String(await once(reply, 'data'))).toBe('HTTP/1.1 100 Continue\r\n\r\n');
    reply.write(`{"agent_id":${agent.agent_id}}`.padEnd(24));
    expect(String(await once(reply, 'data'))).toMatch(/^HTTP\/1\.1 200 /);
  });

  it('that send what can not be read are turned away before it is read, and nobody else is', async () => {
    await start({ PARSE_FAILURES: '60/1m,2' });
    const other = await server.register('probe-2');
    const send = (who: Credentials, body: string) =>
      server.request('POST', '/report', {
        headers: { ...credentialsOf(who), 'content-type': 'application/json' },
        body,
      });
    expect((await send(agent, '{')).status).toBe(400);
    expect((await send(agent, '{"agent_id":1,"agent_id":2}')).status).toBe(400);
    const refused = await send(agent, `{"agent_id":${agent.agent_id},"completed":[],"cancelled":[]}`);
    expect(refused).toMatchObject({ status: 429, body: { details: { quota: 'parse-failures' } } });
    expect(refused.headers.get('retry-after')).toBe('1');
    expect((await send(other, `{"agent_id":${other.agent_id},"completed":[],"cancelled":[]}`)).status).toBe(
      200,
    );
    const register = (body: string) =>
      server.request('POST', '/register', { headers: { 'content-type': 'application/json' }, body });
    expect((await register('[')).status).toBe(400);
    expect((await register('[')).status).toBe(400);
    expect((await register('{}')).status).toBe(429);
  });

  it('are told that it took too long, and the connection ends', async () => {
    await start({ REQUEST_TIMEOUT_MS: String(REQUEST_TIMEOUT_MS) });
    const beginnings = ['', 'GET / HTTP/1.1\r\n', `${BODY}content-length: 9\r\n\r\n{`];
    const ends = [];
    for (const beginning of beginnings) {
      const [socket] = await open(1, beginning);
      ends.push(received(socket as Socket));
    }
    const refill = setInterval(() => sockets[1]?.write('X: y\r\n'), 50);
    for (const text of await Promise.all(ends)) {
      expect(text).toMatch(/^HTTP\/1\.1 408 /);
      expect(JSON.parse(text.slice(text.indexOf('\r\n\r\n')))).toMatchObject({
        error: 'ERR_VALIDATION',
        details: { request: 'did not arrive in time' },
      });
    }
    clearInterval(refill);
    // A wait for work is no slow request.
    const { status, body } = await server.agent(agent, '/claim', { capacities: { dns: 1 }, wait_ms: 2_500 });
    expect([status, body]).toEqual([200, { leases: [] }]);
  });

  it('do not keep the process from stopping, nor a caller that is being answered from its answer', async () => {
    await start({});
    const beginnings = ['', 'GET / HTTP/1.1\r\n', `${BODY}content-length: 9\r\n\r\n{`];
    for (const beginning of beginnings) await open(1, beginning);
    const waiting = server.agent(agent, '/claim', { capacities: { dns: 1 }, wait_ms: 30_000 });
    await until('the claim waits', () => server.app.get(ClaimWaiters).waiting > 0);
    const release = await server.holdWriter();
    const enqueued = server.enqueue(dnsTask());
    await until('the enqueue waits for the writer', () => server.database.writeQueueDepth > 0);
    const ended = Promise.all(sockets.map((socket) => received(socket)));
    const stopped = server.stop({ keep: true });
    await ended;
    await release();
    expect(await enqueued).toHaveLength(1);
    expect((await waiting).status).toBe(200);
    await stopped;
    server = await TestServer.start({}, { folder: server.folder });
    expect((await server.operator('GET', '/v1/tasks')).body.items).toHaveLength(1);
  });

  it('can be too many, so that no more are taken in; those that are there are served', async () => {
    await start({ MAX_CONNECTIONS: '10' });
    const { hostname, port } = new URL(server.url);
    const [healthy] = await open(1);
    await open(20);
    const surplus = connect(Number(port), hostname).on('error', () => undefined);
    sockets.push(surplus);
    expect(await received(surplus)).toBe('');
    const answer = received(healthy as Socket);
    healthy?.write('GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n');
    expect(await answer).toMatch(/^HTTP\/1\.1 200 /);
  });
});
