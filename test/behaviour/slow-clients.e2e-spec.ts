import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { ClaimWaiters } from '../../src/leases/claim-waiters';
import { InFlight } from '../../src/telemetry/in-flight';
import { type Credentials, dnsTask, TestServer } from '../helpers/harness';

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
    const length = await open(SLOW, `${BODY}content-length: 60000\r\n\r\n{`);
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

  it('can not fill the memory with bodies: beyond 256 MiB only small ones are taken in', async () => {
    await start({});
    const report = (value: string) => {
      const completed = [{ lease_id: 999, observations: [{ name: 'a', value }] }];
      return server.agent(agent, '/report', { completed, cancelled: [] });
    };
    const large = 'x'.repeat(100_000);
    expect((await report(large)).status).toBe(200);
    // A body without a length may be as large as the limit.
    const chunked = await open(63, `${BODY}transfer-encoding: chunked\r\n\r\n1\r\n{\r\n`);
    await open(1, `${BODY}content-length: ${4 * 1024 * 1024}\r\n\r\n{`);
    // Until the last of them has arrived; a report meanwhile could take its place.
    const inFlight = server.app.get(InFlight);
    while (Reflect.get(inFlight, 'largeBodies') < 64 * 4 * 1024 * 1024) await sleep(10);
    const refused = await report(large);
    expect(refused).toMatchObject({ status: 503, body: { error: 'ERR_UNAVAILABLE', retryable: true } });
    await work();
    // What is refused anyway, and what was hung up, takes nothing.
    const [tooLarge] = await open(1, `${BODY}content-length: 99999999\r\n\r\n{`);
    expect(String(await once(tooLarge as Socket, 'data'))).toMatch(/^HTTP\/1\.1 413 /);
    chunked[0]?.destroy();
    let taken = await report(large);
    while (taken.status === 503) taken = await report(large);
    expect(taken.status).toBe(200);
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

  it('do not keep the process from stopping, nor whoever is answered from the answer', async () => {
    await start({});
    const beginnings = ['', 'GET / HTTP/1.1\r\n', `${BODY}content-length: 9\r\n\r\n{`];
    for (const beginning of beginnings) await open(1, beginning);
    const waiting = server.agent(agent, '/claim', { capacities: { dns: 1 }, wait_ms: 30_000 });
    while (server.app.get(ClaimWaiters).waiting === 0) await new Promise(setImmediate);
    const release = await server.holdWriter();
    const enqueued = server.enqueue(dnsTask());
    while (server.database.writeQueueDepth === 0) await new Promise(setImmediate);
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

  it('can be so many that no more are taken in; those that are there are served', async () => {
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
