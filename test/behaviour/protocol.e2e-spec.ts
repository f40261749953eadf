import { ERRORS } from '../../src/errors';
import type { Json } from '../helpers/api';
import { exchange, TestServer } from '../helpers/harness';

const HOST = 'Host: a\r\n';
const get = (path: string, headers = '', version = '1.1') => `GET ${path} HTTP/${version}\r\n${headers}\r\n`;
const LAST = get('/healthz', `${HOST}Connection: close\r\n`);
const post = (headers: string, body: string, version = '1.1') =>
  `POST /register HTTP/${version}\r\n${HOST}Content-Type: application/json\r\n${headers}\r\n${body}`;
const CHUNKED = '2\r\n{}\r\n0\r\n\r\n';

interface Reply {
  status: number;
  connection: string | undefined;
  body: Json;
}

/** Reads the answers on a connection by their lengths. */
function repliesOf(text: string): Reply[] {
  const replies: Reply[] = [];
  while (text !== '') {
    const end = text.indexOf('\r\n\r\n') + 4;
    const head = text.slice(0, end);
    const length = Number(/content-length: (\d+)/i.exec(head)?.[1]);
    replies.push({
      status: Number(/^HTTP\/1\.1 (\d+) /.exec(head)?.[1]),
      connection: /^connection: (.*)$/im.exec(head)?.[1]?.trim(),
      body: JSON.parse(text.slice(end, end + length)),
    });
    text = text.slice(end + length);
  }
  return replies;
}

describe('HTTP as it should not be', () => {
  let server: TestServer;
  beforeAll(async () => {
    server = await TestServer.start();
  });
  afterAll(() => server.stop());

  const send = async (text: string) => repliesOf(await exchange(server.url, text));

  it.each<[string, string, number, string | undefined]>([
    ['no Host', get('/healthz'), 400, 'host'],
    ['two Hosts', get('/healthz', `${HOST}host: b\r\n`), 400, 'host'],
    ['the same Host twice', get('/healthz', HOST + HOST), 400, 'host'],
    [
      'two credentials',
      get('/v1/tasks', `${HOST}Authorization: Bearer a\r\nauthorization: Bearer b\r\n`),
      400,
      'authorization',
    ],
    [
      'identity before chunked',
      post('Transfer-Encoding: identity, chunked\r\n', CHUNKED),
      400,
      'transfer-encoding',
    ],
    ['gzip before chunked', post('Transfer-Encoding: gzip, chunked\r\n', CHUNKED), 400, 'transfer-encoding'],
    ['chunked twice in one', post('Transfer-Encoding: chunked, chunked\r\n', CHUNKED), 400, undefined],
    [
      'chunked twice',
      post('Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n', CHUNKED),
      400,
      undefined,
    ],
    ['identity', post('Transfer-Encoding: identity\r\n', '{}'), 400, undefined],
    ['an unknown coding', post('Transfer-Encoding: xchunked\r\n', CHUNKED), 400, undefined],
    [
      'chunked and a length',
      post('Transfer-Encoding: chunked\r\nContent-Length: 2\r\n', CHUNKED),
      400,
      undefined,
    ],
    [
      'a length and chunked',
      post('Content-Length: 2\r\nTransfer-Encoding: chunked\r\n', CHUNKED),
      400,
      undefined,
    ],
    ['two lengths', post('Content-Length: 2\r\nContent-Length: 3\r\n', '{}'), 400, undefined],
    [
      'chunked in HTTP/1.0',
      post('Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n', CHUNKED, '1.0'),
      400,
      'transfer-encoding',
    ],
    ['an unknown expectation', get('/healthz', `${HOST}Expect: miracles\r\n`), 417, 'expect'],
    ['CONNECT', `CONNECT a:80 HTTP/1.1\r\n${HOST}\r\n`, 405, undefined],
    ['HTTP/2 at once', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 400, undefined],
    ['no HTTP', 'nonsense\r\n\r\n', 400, undefined],
  ])('is refused in the envelope and ends the connection: %s', async (_what, text, status, field) => {
    // What stands behind it may be the body's rest, or somebody else's request.
    const replies = await send(text + get('/readyz', HOST));
    expect(replies).toEqual([
      {
        status,
        connection: 'close',
        body: {
          error: status === 405 ? 'ERR_METHOD_NOT_ALLOWED' : 'ERR_VALIDATION',
          message: status === 405 ? ERRORS.ERR_METHOD_NOT_ALLOWED.message : ERRORS.ERR_VALIDATION.message,
          retryable: false,
          ...(status === 405 ? {} : { details: expect.any(Object) }),
        },
      },
    ]);
    if (field) expect(Object.keys(replies[0]?.body.details)).toEqual([field]);
  });

  it.each([
    ['too large', post('Content-Length: 20000\r\nExpect: 100-continue\r\n', ''), 413],
    ['compressed', post('Content-Encoding: gzip\r\nContent-Length: 20\r\nExpect: 100-continue\r\n', ''), 415],
  ])('ends the connection where a body was announced and not asked for: %s', async (_what, text, status) => {
    // Kept, it would take what follows for the body: a proxy that heard no 100 sends its next caller's request.
    const replies = await send(text + get('/readyz', HOST));
    expect(replies).toMatchObject([{ status, connection: 'close' }]);
  });

  it('is answered after what came before it', async () => {
    const replies = await send(`${get('/healthz', HOST) + get('/nowhere', HOST)}nonsense\r\n\r\n`);
    expect(replies.map(({ status }) => status)).toEqual([200, 404, 400]);
    const connect = await send(`${get('/healthz', HOST)}CONNECT a:80 HTTP/1.1\r\n${HOST}\r\n`);
    expect(connect.map(({ status }) => status)).toEqual([200, 405]);
  });

  it('takes nothing from the answer before it: bytes behind the last request', async () => {
    for (const [version, headers] of [
      ['1.0', ''],
      ['1.1', `${HOST}Connection: close\r\n`],
    ] as const) {
      const replies = await send(get('/healthz', headers, version) + get('/readyz', HOST));
      expect(replies).toEqual([{ status: 200, connection: 'close', body: { status: 'ok' } }]);
    }
  });
});

describe('an Upgrade', () => {
  let server: TestServer;
  beforeAll(async () => {
    server = await TestServer.start();
  });
  afterAll(() => server.stop());

  const send = async (text: string) => repliesOf(await exchange(server.url, text));
  const statuses = async (text: string) => (await send(text)).map(({ status }) => status);
  const H2C = 'Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n';
  const WEBSOCKET = 'Connection: Upgrade\r\nUpgrade: websocket\r\n';

  it('is ignored, and what is behind it is answered', async () => {
    expect(await statuses(get('/healthz', HOST + H2C) + get('/nowhere', HOST) + LAST)).toEqual([
      200, 404, 200,
    ]);
    expect(await statuses(get('/healthz', HOST + WEBSOCKET) + LAST)).toEqual([200, 200]);
  });

  it('is ignored with a body of either form, behind other requests, and with their answers on their way', async () => {
    const before = get('/healthz', HOST) + get('/nowhere', HOST);
    expect(
      await statuses(before + post(`${WEBSOCKET}Content-Length: 2\r\n`, '{}') + get('/nowhere', HOST) + LAST),
    ).toEqual([200, 404, 200, 404, 200]);
    expect(await statuses(post(`${WEBSOCKET}Transfer-Encoding: chunked\r\n`, CHUNKED) + LAST)).toEqual([
      200, 200,
    ]);
  });

  it('keeps the checks of other requests, and the headers', async () => {
    const [reply, ...others] = await send(get('/healthz', HOST + HOST + WEBSOCKET) + LAST);
    expect([reply?.status, reply?.body.details, others]).toEqual([400, { host: expect.any(String) }, []]);
    const unauthorized = await send(
      get('/v1/tasks', `${HOST}${WEBSOCKET}Authorization: Bearer x\r\n`) + LAST,
    );
    expect(unauthorized.map(({ status }) => status)).toEqual([401, 200]);
  });

  it('that is asked for again and again ends the connection with an answer that says so', async () => {
    const replies = await send(get('/healthz', HOST + H2C).repeat(20));
    expect(replies.map(({ connection }) => connection)).toEqual([
      ...Array(replies.length - 1).fill('keep-alive'),
      'close',
    ]);
    expect(replies.length).toBeGreaterThan(1);
  });
});

describe('HTTP/1.0', () => {
  let server: TestServer;
  beforeAll(async () => {
    server = await TestServer.start();
  });
  afterAll(() => server.stop());

  const send = async (text: string) => repliesOf(await exchange(server.url, text));
  const KEEP = 'Connection: keep-alive\r\n';

  it('keeps the connection if asked to, says so, and answers what follows', async () => {
    const replies = await send(
      get('/healthz', KEEP, '1.0') +
        get('/nowhere', KEEP, '1.0') +
        post(`${KEEP}Content-Length: 2\r\n`, '{}', '1.0') +
        post(`${KEEP}Content-Length: 1\r\n`, '{', '1.0') +
        get('/healthz', '', '1.0'),
    );
    expect(replies.map(({ status, connection }) => [status, connection])).toEqual([
      [200, 'keep-alive'],
      [404, 'keep-alive'],
      [200, 'keep-alive'],
      [400, 'keep-alive'],
      [200, 'close'],
    ]);
  });

  it('closes the connection if not asked to keep it', async () => {
    expect(await send(get('/healthz', '', '1.0'))).toEqual([
      { status: 200, connection: 'close', body: { status: 'ok' } },
    ]);
  });
});
