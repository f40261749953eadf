import { once } from 'node:events';
import { type AddressInfo, connect, type Socket } from 'node:net';
import fastify, { type FastifyInstance } from 'fastify';
import { Bodies } from './bodies';
import type { ControlPlaneRequest } from './control-plane-request';
import { ErrorFilter } from './error-filter';

describe('Bodies', () => {
  let http: FastifyInstance;
  let bodies: Bodies;
  let sockets: Socket[];
  let now: number;

  beforeEach(async () => {
    now = 0;
    sockets = [];
    http = fastify();
    http.addHook('onRequest', (request: ControlPlaneRequest, _reply, done) => {
      const agent = Number(request.headers['x-agent-id'] ?? 0);
      request.caller = agent ? `agent:${agent}` : 'address:a';
      if (agent) request.agent = { id: agent, tokenHash: '' };
      done();
    });
    const bound = { total: 30_000, perCaller: 20_000 };
    bodies = new Bodies(() => now, {
      anonymous: bound,
      authenticated: { total: 100_000, perCaller: 50_000 },
    });
    bodies.guard(http, { check: () => undefined, charge: () => undefined });
    const filter = new ErrorFilter();
    http.setErrorHandler((error, request, reply) => filter.answer(error, request, reply));
    http.post('/', (request) => ({ got: request.body }));
    await http.listen({ host: '127.0.0.1', port: 0 });
  });

  afterEach(async () => {
    for (const socket of sockets) socket.destroy();
    bodies.close();
    await http.close();
  });

  async function send(text: string, agent?: number): Promise<Socket> {
    const { port } = http.server.address() as AddressInfo;
    const socket = connect(port, '127.0.0.1').on('error', () => undefined);
    sockets.push(socket);
    await once(socket, 'connect');
    const identity = agent === undefined ? '' : `x-agent-id: ${agent}\r\n`;
    socket.write(`POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n${identity}${text}`);
    return socket;
  }

  const answerOf = async (socket: Socket) => String(await once(socket, 'data'));
  const whole = (value: string) => `content-length: ${value.length}\r\n\r\n${value}`;

  async function until(held: number): Promise<void> {
    while (bodies.heldBytes !== held) await new Promise(setImmediate);
  }

  it('puts a body together that comes in pieces of a byte, in chunks', async () => {
    const value = JSON.stringify({ text: 'x'.repeat(5_000) });
    const chunks = [...value].map((byte) => `1\r\n${byte}\r\n`).join('');
    const socket = await send(`transfer-encoding: chunked\r\n\r\n${chunks}0\r\n\r\n`);
    let text = '';
    while (!text.endsWith('}}')) text += await answerOf(socket);
    expect(text).toContain(`{"got":${value}}`);
    await until(0);
  });

  it('gives up a body that comes too slowly, and no other', async () => {
    const slow = await send('content-length: 9000\r\n\r\n{');
    const fast = await send(`content-length: 9000\r\n\r\n${' '.repeat(3_000)}`);
    await until(2 * 4_096);
    now = 10_000;
    bodies.abortSlow();
    now = 12_000;
    bodies.abortSlow();
    expect(await answerOf(slow)).toMatch(/^HTTP\/1\.1 408 /);
    fast.write(`${' '.repeat(5_998)}{}`);
    expect(await answerOf(fast)).toMatch(/^HTTP\/1\.1 200 /);
    await until(0);
  });

  it('limits the memory of one caller, of all anonymous and of all authenticated callers, until requests are answered or closed', async () => {
    const some = `content-length: 16384\r\n\r\n${' '.repeat(16_000)}`;
    const first = await send(some);
    while (bodies.heldBytes < 16_000) await new Promise(setImmediate);
    const held = bodies.heldBytes;
    // More than one caller may have.
    expect(await answerOf(await send(some))).toMatch(/^HTTP\/1\.1 503 /);
    expect(await answerOf(await send(whole('{"a":1}')))).toMatch(/^HTTP\/1\.1 200 /);
    expect(await answerOf(await send(whole('{"a":1}'), 7))).toMatch(/^HTTP\/1\.1 200 /);
    // An announced length alone holds nothing.
    await send('content-length: 16384\r\n\r\n');
    await until(held);
    first.destroy();
    await until(0);
    expect(await answerOf(await send(whole(`{"a":"${'x'.repeat(16_000)}"}`)))).toMatch(/^HTTP\/1\.1 200 /);
    await until(0);
  });

  it('counts the memory of parsed values', async () => {
    const few = whole(`[${'0,'.repeat(700)}0]`);
    const many = whole(`[${'0,'.repeat(800)}0]`);
    expect(await answerOf(await send(few, 7))).toMatch(/^HTTP\/1\.1 200 /);
    expect(await answerOf(await send(many, 7))).toMatch(/^HTTP\/1\.1 503 /);
    await until(0);
  });

  it('refuses a body beyond its limit before it has arrived', async () => {
    expect(await answerOf(await send('content-length: 16385\r\n\r\n'))).toMatch(/^HTTP\/1\.1 413 /);
    const chunk = `4000\r\n${' '.repeat(0x4000)}\r\n`;
    expect(await answerOf(await send(`transfer-encoding: chunked\r\n\r\n${chunk}1\r\n \r\n`))).toMatch(
      /^HTTP\/1\.1 413 /,
    );
  });
});
