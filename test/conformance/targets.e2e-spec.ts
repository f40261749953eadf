import targetCases from '../cases/targets.json';
import urlCases from '../cases/urls.json';
import type { Json } from '../helpers/api';
import { type Answer, TestServer } from '../helpers/harness';

describe('targets', () => {
  let server: TestServer;

  beforeAll(async () => {
    server = await TestServer.start();
  });
  afterAll(() => server.stop());

  const limit = (...limits: object[]): Promise<Answer> =>
    server.operator('PUT', '/v1/concurrency/limits', { limits });
  const enqueue = (kind: string, spec: object): Promise<Answer> =>
    server.operator('POST', '/v1/tasks', { tasks: [{ kind, spec }] });
  const list = (path: string, query: Record<string, string>): Promise<Answer> =>
    server.operator('GET', `${path}?${new URLSearchParams({ ...query, limit: '500' })}`);

  /** The tasks that a new agent is granted. */
  const claimed = async (kind: string): Promise<number[]> => {
    const { body } = await server.agent(await server.register(), '/claim', { capacities: { [kind]: 100 } });
    return body.leases.map((lease: { task_id: number }) => lease.task_id);
  };

  const refused = (field: string, message: unknown) => ({
    status: 400,
    body: { error: 'ERR_VALIDATION', details: { [field]: message } },
  });

  /** Spellings of a target as an operator may write it. */
  const SPELLINGS: Record<string, string[]> = {
    'probe.example': ['Probe.Example', 'probe.example.', 'PROBE.EXAMPLE.'],
    'xn--mnchen-3ya.example': ['münchen.example', 'MÜNCHEN.example.', 'XN--MNCHEN-3YA.example'],
    '2001:db8::7': ['[2001:db8::7]', '2001:DB8:0:0:0:0:0:7'],
    '[2001:db8::8]:443': ['[2001:DB8::0:8]:443', '[2001:db8:0:0:0:0:0:8]:0443'],
    '192.0.2.53:53': ['192.0.2.53', '[::ffff:192.0.2.53]:53', '::ffff:192.0.2.53'],
    'shop.example:80': ['Shop.Example:80', 'shop.example.:80'],
    'shop.example:443': ['Shop.Example:443', 'shop.example.:443'],
  };

  describe.each(targetCases)('$canonical of $kind', ({ kind, canonical, specs }) => {
    const spellings = SPELLINGS[canonical] as string[];
    const counts = { limit: 1, leased: 1, available: 0 };

    it('is held by a limit that was set in another spelling, and found in every one', async () => {
      for (const spelling of [...spellings, canonical]) {
        expect(await limit({ kind, target: spelling, limit: 1 })).toMatchObject({
          status: 200,
          body: { windows: [{ scope: 'target', kind, target: canonical, limit: 1 }] },
        });
      }
      const ids: number[] = [];
      for (const spec of specs) {
        const { status, body } = await enqueue(kind, spec);
        expect([status, body.tasks[0].state]).toEqual([201, 'queued']);
        ids.unshift(body.tasks[0].id);
      }
      // Of all that were enqueued, whatever their spelling, one at a time.
      expect(await claimed(kind)).toEqual([ids.at(-1)]);
      for (const target of [...spellings, canonical]) {
        const found = (answer: Answer) => answer.body.items.filter((item: Json) => item.kind === kind);
        for (const query of [{ target }, { target, kind }] as Record<string, string>[]) {
          const tasks = await list('/v1/tasks', query);
          expect(found(tasks).map(({ id, target: of }: Json) => [id, of])).toEqual(
            ids.map((id) => [id, canonical]),
          );
          const windows = await list('/v1/concurrency/windows', query);
          expect(found(windows)).toMatchObject([
            { ...{ scope: 'target', kind, target: canonical }, ...counts, queued: specs.length - 1 },
          ]);
        }
      }
    });
  });

  it('are found under every kind that has them, newest first, across pages', async () => {
    const ids = [];
    for (const [kind, spec] of [
      ['ping', { host: 'every.example' }],
      ['dns', { query: 'a', server: 'every.example' }],
      ['trace', { host: 'Every.example.' }],
      ['ping', { host: 'every.example' }],
      ['dns', { query: 'b', server: 'EVERY.example:53' }],
    ] as const)
      ids.unshift((await enqueue(kind, spec)).body.tasks[0].id);
    const seen: number[] = [];
    let cursor: string | undefined;
    do {
      const query = new URLSearchParams({ target: 'Every.Example', limit: '2', ...(cursor && { cursor }) });
      const { body } = await server.operator('GET', `/v1/tasks?${query}`);
      seen.push(...body.items.map((item: { id: number }) => item.id));
      cursor = body.next_cursor ?? undefined;
    } while (cursor !== undefined);
    expect(seen).toEqual(ids);
    expect((await list('/v1/tasks', { target: 'every.example', kind: 'dns' })).body.items).toHaveLength(2);
    expect((await list('/v1/tasks', { target: 'every.example', state: 'dead' })).body.items).toEqual([]);
  });

  it.each([
    ['http', 'shop.example', 'host:port'],
    ['http', 'http://shop.example/', 'host:port'],
    ['tcp', 'shop.example', 'host:port'],
    ['tcp', '2001:db8::8:443', 'host:port'],
    ['ping', '127.1', 'a host name or an address'],
    ['ping', 'a b', 'a host name or an address'],
    ['trace', 'fe80::1%eth0', 'a host name or an address'],
    ['dns', '0x7f.1', 'a DNS server'],
    ['dns', 'ns.example:0', 'a DNS server'],
  ])('of %s can not be %j: a limit and a filter say what they can be', async (kind, target, form) => {
    const message = expect.stringContaining(form);
    expect(await limit({ limit: 5 }, { kind, target, limit: 0 })).toMatchObject(
      refused('limits.1.target', message),
    );
    for (const path of ['/v1/tasks', '/v1/concurrency/windows'])
      expect(await list(path, { kind, target })).toMatchObject(refused('target', message));
    // All or none: the limit beside it was not set either.
    expect((await list('/v1/concurrency/windows', { scope: 'global' })).body.items).toEqual([]);
  });

  it('that no kind can have are refused by filters without a kind, each kind named', async () => {
    for (const path of ['/v1/tasks', '/v1/concurrency/windows']) {
      const { status, body } = await list(path, { target: '127.1' });
      expect(status).toBe(400);
      for (const kind of ['dns', 'http', 'ping', 'tcp', 'trace'])
        expect(body.details.target).toContain(`as ${kind}, it `);
    }
  });

  it.each(['DNS', 'whois', '__proto__', 'dns '])(
    'need a kind that there is: %j is refused, naming those',
    async (kind) => {
      const message = 'must be one of dns, http, ping, tcp, trace';
      for (const target of [undefined, 'a']) {
        expect(await limit({ kind, target, limit: 1 })).toMatchObject(refused('limits.0.kind', message));
      }
    },
  );

  it('that are one window can not be in a list twice, however they are spelt', async () => {
    const twice = [
      { kind: 'ping', target: 'twice.example', limit: 1 },
      { kind: 'ping', target: 'Twice.Example.', limit: 2 },
    ];
    expect(await limit(...twice)).toMatchObject(
      refused('limits.1', 'names a window that is in the list already'),
    );
    expect((await list('/v1/concurrency/windows', { target: 'twice.example' })).body.items).toEqual([]);
  });

  it('stay with their kind: the resolver of the agents is no server of that name', async () => {
    await limit({ kind: 'dns', target: 'resolver', limit: 0 });
    const ids: number[] = [];
    for (const server of [undefined, null, 'resolver'])
      ids.push((await enqueue('dns', { query: 'a', server })).body.tasks[0].id);
    const ours = async () => (await claimed('dns')).filter((id) => ids.includes(id));
    expect(await ours()).toEqual([ids[2]]);
    await limit({ kind: 'dns', target: 'resolver', limit: null });
    expect(await ours()).toEqual(ids.slice(0, 2));
  });

  describe('a URL', () => {
    it.each(urlCases.refused)('such as %j is refused', async (url) => {
      expect(await enqueue('http', { url })).toMatchObject(refused('tasks.0.spec.url', expect.any(String)));
    });

    it.each(Object.entries(urlCases.taken))('such as %j is stored as %j', async (url, href) => {
      const { status, body } = await enqueue('http', { method: 'GET', url });
      expect(status).toBe(201);
      const task = await server.operator('GET', `/v1/tasks/${body.tasks[0].id}`);
      expect(task.body.spec).toEqual({ kind: 'http', method: 'GET', url: href });
    });
  });

  it.each([
    ['ping', { host: 'MÜNCHEN.example.', count: 2 }, { host: 'xn--mnchen-3ya.example.', count: 2 }],
    ['tcp', { port: 80, host: '[2001:DB8::7]' }, { port: 80, host: '2001:DB8::7' }],
    [
      'dns',
      { query: '_sip._tcp.Example.', server: '192.0.2.53' },
      { query: '_sip._tcp.Example.', server: '192.0.2.53' },
    ],
    ['dns', { query: '.', server: null }, { query: '.', server: null }],
  ])('of %s %j: agents get %j', async (kind, spec, stored) => {
    const { body } = await enqueue(kind, spec);
    const task = await server.operator('GET', `/v1/tasks/${body.tasks[0].id}`);
    expect(task.body.spec).toEqual({ kind, ...stored });
  });

  it.each(['a b', 'a\u0000b', 'a\nb', '\u202ea', 'a\u200bb', 'a\ud800', ''])(
    'a name to look up can not be %j',
    async (query) => {
      expect(await enqueue('dns', { query })).toMatchObject({
        status: 400,
        body: { error: 'ERR_VALIDATION' },
      });
    },
  );
});
