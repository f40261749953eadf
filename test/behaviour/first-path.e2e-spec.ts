import { generateKeyPairSync } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createUDPServer, Packet } from 'dns2';
import type { Json } from '../helpers/api';
import { CHILD_ENV } from '../helpers/harness';
import { AS_SHIPPED, endAll, Program, ServerProcess } from '../helpers/processes';
import { until } from '../helpers/until';

const ROOT = join(__dirname, '../..');

/** The whole path as a newcomer walks it: the server as a process, a task, the example agent, a real lookup, its result. */
describe('the first path', () => {
  const folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
  const dnsServer = createUDPServer((request, send) => {
    const response = Packet.createResponseFromRequest(request);
    const [question] = request.questions;
    // Its types ask for methods that it does not need.
    const answer = {
      name: question?.name,
      type: Packet.TYPE.A,
      class: Packet.CLASS.IN,
      ttl: 60,
      address: '192.0.2.7',
    };
    response.answers.push(answer as (typeof response.answers)[number]);
    send(response);
  });

  const run = (file: string, args: string[], env: Record<string, string> = {}): Program =>
    Program.spawn(process.execPath, [join(ROOT, file), ...args], {
      cwd: folder,
      env: { ...CHILD_ENV, ...env },
    });

  afterAll(async () => {
    await endAll();
    dnsServer.close();
    rmSync(folder, { recursive: true, force: true });
  });

  let server: ServerProcess;
  let authorization: string;

  beforeAll(async () => {
    server = await ServerProcess.start(folder, {
      env: {
        ...AS_SHIPPED,
        // So that an agent says soon how a configuration was taken.
        HEARTBEAT_TIMEOUT_MS: '2000',
        QUOTA_HEARTBEAT: 'off',
        QUOTA_CONFIG: 'off',
      },
    });

    const tokenFile = join(folder, 'control-plane.admin-token');
    expect(statSync(tokenFile).mode & 0o777).toBe(0o600);
    authorization = `Bearer ${readFileSync(tokenFile, 'utf8').trim()}`;
  });

  async function operator(method: string, path: string, body?: object): Promise<Json> {
    const answer = await server.request(method, path, { headers: { authorization }, body });
    expect(answer.status).toBeLessThan(300);
    return answer.body;
  }

  /** Starts an agent with an identity of its own. */
  function startAgent(name: string, ...args: string[]): Program {
    const identity = ['--hostname', name, '--identity', `${name}.json`];
    return run('examples/agent.mjs', ['--server', server.url, ...identity, ...args]);
  }

  it('names the file of the token only if there is one', async () => {
    const cwd = join(folder, 'started-twice');
    mkdirSync(cwd);
    const said = async (env: Record<string, string> = {}): Promise<string | undefined> => {
      const program = Program.run(cwd, { env: { ADMIN_TOKEN: 'default', ...env }, args: [] });
      const line = /the operator's token +(.*)\n/;
      const errors = await program.printed(line, { to: 'errors' });
      await program.end('SIGTERM');
      return line.exec(errors)?.[1]?.trim();
    };
    const file = join(cwd, 'control-plane.admin-token');
    const setting = { ADMIN_TOKEN: 'of-the-one-who-began-with-it' };
    expect(await said(setting)).toBe('as CONTROL_PLANE_ADMIN_TOKEN says');
    expect(await said()).toMatch(/^an admin has one from before; .*CONTROL_PLANE_ADMIN_TOKEN/);
    expect(existsSync(file)).toBe(false);
    rmSync(cwd, { recursive: true });
    mkdirSync(cwd);
    expect(await said()).toBe(`cat ${file}`);
    expect(existsSync(file)).toBe(true);
  });

  it('leads from an enqueued task to an observation from a real DNS server', async () => {
    await dnsServer.listen(0, '127.0.0.1');
    const dnsPort = (dnsServer.address() as AddressInfo).port;
    const enqueue = async (): Promise<number> => {
      const { tasks } = await operator('POST', '/v1/tasks', {
        tasks: [
          {
            kind: 'dns',
            spec: { query: 'probe.example', server: `127.0.0.1:${dnsPort}`, record_type: 'A' },
          },
        ],
      });
      return tasks[0].id;
    };
    const workOnOne = (hostname: string): Program =>
      run('examples/agent.mjs', ['--server', server.url, '--hostname', hostname, '--tasks', '1']);
    const id = await enqueue();
    expect(await workOnOne('probe-1').ended()).toBe(0);

    expect(await operator('GET', `/v1/tasks/${id}`)).toMatchObject({
      state: 'completed',
      attempts: 1,
      leases: [
        {
          state: 'completed',
          result: {
            standing: 'final',
            outcome: 'success',
            observations: expect.arrayContaining([{ name: 'records', value: ['192.0.2.7'] }]),
          },
        },
      ],
    });

    // Started again it is the same agent: a second registration would have to wait.
    expect(statSync(join(folder, 'agent-identity.json')).mode & 0o777).toBe(0o600);
    await enqueue();
    expect(await workOnOne('probe-1').ended()).toBe(0);
    expect(await operator('GET', '/v1/agents')).toMatchObject({ items: [{ hostname: 'probe-1' }] });

    // An identity that the server does not know is worth nothing: it registers, here with another name.
    const identity = JSON.parse(readFileSync(join(folder, 'agent-identity.json'), 'utf8'));
    writeFileSync(
      join(folder, 'agent-identity.json'),
      JSON.stringify({ ...identity, hostname: 'probe-2', auth_token: 'dcpa_unknown' }),
    );
    await enqueue();
    const { code, stdout, stderr } = await workOnOne('probe-2').result();
    expect([code, stderr]).toEqual([
      0,
      'The server does not accept the token in agent-identity.json; registering again.\n',
    ]);
    expect(stdout).toMatch(/^registered probe-2 /);
  });

  it('does no more tasks than it is told, of whatever kinds, and shows what each is about', async () => {
    const check = join(folder, 'quick.mjs');
    writeFileSync(
      check,
      `const done = async () => ({ outcome: 'success' });
      export default { tcp: done, trace: done, ping: done };`,
    );
    const { tasks } = await operator('POST', '/v1/tasks', {
      tasks: [
        { kind: 'tcp', spec: { host: 'one.example', port: 25 } },
        { kind: 'trace', spec: { host: 'two.example' } },
        { kind: 'ping', spec: { host: 'three.example' } },
      ],
    });
    const states = async () => {
      const shown = await Promise.all(
        tasks.map(({ id }: { id: number }) => operator('GET', `/v1/tasks/${id}`)),
      );
      return shown.map(({ state, attempts }) => `${state} ${attempts}`).sort();
    };
    for (const [count, left] of [
      [1, ['completed 1', 'queued 0', 'queued 0']],
      [2, ['completed 1', 'completed 1', 'completed 1']],
    ] as const) {
      const { code, stdout } = await startAgent(
        'probe-7',
        '--check',
        check,
        '--tasks',
        String(count),
      ).result();
      expect([code, await states()]).toEqual([0, left]);
      expect(stdout.match(/^lease \d+: /gm)).toHaveLength(count);
    }
  });

  it('shows a task of a kind that it does not know by the first value of its spec', async () => {
    writeFileSync(
      join(folder, 'whois.mjs'),
      `export default { whois: async () => ({ outcome: 'success' }) };`,
    );
    // Stands in for a server with an extension.
    const other = createServer((request, response) => {
      const lease = {
        lease_id: 7,
        kind: 'whois',
        spec: { kind: 'whois', domain: 'odd.example', server: 'x' },
      };
      const answers: Record<string, object> = {
        heartbeat: { agent_id: 1, next_deadline_ms: 60_000 },
        claim: { leases: [lease] },
        report: { acknowledged: 1 },
      };
      const path = (request.url as string).split('/').at(-1) as string;
      response.end(JSON.stringify(answers[path]));
    });
    await new Promise<void>((resolve) => other.listen(0, '127.0.0.1', resolve));
    try {
      const at = `http://127.0.0.1:${(other.address() as AddressInfo).port}`;
      const kept = { server: at, hostname: 'probe-8', agent_id: 1, auth_token: 'x' };
      writeFileSync(join(folder, 'probe-8.json'), JSON.stringify(kept));
      const { code, stdout } = await startAgent(
        ...['probe-8', '--server', at, '--check', 'whois.mjs', '--tasks', '1'],
      ).result();
      expect([code, stdout]).toEqual([0, expect.stringContaining('lease 7: whois odd.example')]);
    } finally {
      other.close();
    }
  });

  it('runs once on one identity file, and takes it over from a process that is gone', async () => {
    const first = startAgent('probe-9');
    await first.printed(/^registered /);
    const second = await startAgent('probe-9').result();
    expect([second.code, second.stdout, second.stderr]).toEqual([
      1,
      '',
      `probe-9.json is in use by process ${first.child.pid}; give this one --identity FILE --hostname NAME.\n`,
    ]);
    await first.end('SIGKILL');
    expect(existsSync(join(folder, 'probe-9.json.lock'))).toBe(true);
    await operator('POST', '/v1/tasks', {
      tasks: [{ kind: 'dns', spec: { query: 'probe.example', server: '127.0.0.1:1' } }],
    });
    const third = await startAgent('probe-9', '--tasks', '1').result();
    expect([third.code, third.stdout]).toEqual([
      0,
      expect.stringMatching(/^agent \d+, as probe-9\.json says$/m),
    ]);
    expect(existsSync(join(folder, 'probe-9.json.lock'))).toBe(false);
  });

  it.each([
    ['a server that is no URL', ['--server', 'somewhere'], /^--server must be a URL/],
    ['a server of another scheme', ['--server', 'localhost:8080'], /^--server must be a URL/],
    ['a part of a task', ['--tasks', '1.5'], /^--tasks must be a whole number/],
    ['keys that are not there', ['--keys', 'nowhere.json'], /^the keys can't be read from nowhere\.json/],
    ['a file without keys', ['--keys', 'none.json'], /^none\.json holds no keys/],
  ])('starts no agent with %s', async (_what, args, said) => {
    writeFileSync(join(folder, 'none.json'), '{"error": "ERR_NOT_FOUND"}');
    const { code, stdout, stderr } = await run('examples/agent.mjs', args).result();
    expect([code, stdout, stderr]).toEqual([2, '', expect.stringMatching(said)]);
    expect(stderr).toContain('\n\nUsage: ');
  });

  it('at Ctrl-C cancels the leases that are not done, and reports the others', async () => {
    const check = join(folder, 'slow.mjs');
    const odd = 'JSON.parse(\'"\\\\u009b31m\\\\u202e"\')';
    writeFileSync(
      check,
      `export default {
        tcp: async () => ({ outcome: 'success', observations: [{ name: 'banner', value: ${odd} }] }),
        trace: () => new Promise(() => {}),
      };`,
    );
    const { tasks } = await operator('POST', '/v1/tasks', {
      tasks: [
        { kind: 'trace', spec: { host: 'far.example' } },
        { kind: 'tcp', spec: { host: 'near.example', port: 25 } },
      ],
    });
    const agent = startAgent('probe-3', '--check', check);
    const printed = await agent.printed(/tcp near\.example.*\n/);
    expect(printed).toMatch(/^lease \d+: tcp near\.example success banner="\\u\{9b\}31m\\u\{202e\}"$/m);
    agent.signal('SIGINT');
    const { code, stdout } = await agent.result();
    expect([code, stdout.slice(printed.length)]).toEqual([
      0,
      expect.stringMatching(/^cancelled: \d+\nstopped\n$/),
    ]);
    const [trace, tcp] = await Promise.all(
      tasks.map(({ id }: { id: number }) => operator('GET', `/v1/tasks/${id}`)),
    );
    expect(trace).toMatchObject({ leases: [{ state: 'cancelled' }] });
    expect(tcp).toMatchObject({ state: 'completed' });
  });

  it('fetches the configuration in force, and says whether it is genuine', async () => {
    const { revision } = await operator('POST', '/v1/configs', { config: { resolvers: ['192.0.2.53'] } });
    const { body: keys } = await server.request('GET', '/.well-known/jwks.json');
    writeFileSync(join(folder, 'keys.json'), JSON.stringify(keys));
    const strangers = generateKeyPairSync('ed25519').publicKey.export({ format: 'jwk' });
    writeFileSync(join(folder, 'strangers-keys.json'), JSON.stringify({ ...strangers, kid: 'strangers' }));
    const trusting = startAgent('probe-4', '--keys', 'keys.json');
    const distrusting = startAgent('probe-5', '--keys', 'strangers-keys.json');
    expect(await trusting.printed(/configuration \w+: .*\n/)).toContain(
      `configuration ${revision}: {"resolvers":["192.0.2.53"]}`,
    );
    const saidBy = async (hostname: string) =>
      (await operator('GET', `/v1/agents?hostname=${hostname}`)).items[0]?.config;
    const saying = (hostname: string) =>
      until(`${hostname} says how it took the configuration`, () => saidBy(hostname));
    expect(await saying('probe-4')).toMatchObject({ revision, status: 'applied' });
    expect(await saying('probe-5')).toMatchObject({
      revision,
      status: 'failed',
      message: expect.stringContaining('is not pinned'),
    });
    for (const agent of [trusting, distrusting]) {
      expect(await agent.end('SIGTERM')).toBe(0);
    }
    const kept = JSON.parse(readFileSync(join(folder, 'probe-4.config.json'), 'utf8'));
    expect([kept.revision, existsSync(join(folder, 'probe-5.config.json'))]).toEqual([revision, false]);
  });

  it('is filled with a lively fleet, which takes nothing along when it ends', async () => {
    await operator('POST', '/v1/configs', { config: { mine: true } });
    const tokens = async () =>
      (await operator('GET', '/v1/operator-tokens')).items.filter(({ name }: { name: string }) =>
        name.startsWith('seed-'),
      );
    const seeded = async () =>
      (await operator('GET', '/v1/agents?limit=500')).items.filter(
        ({ labels }: { labels: Record<string, string> }) => labels.seed !== undefined,
      );
    const seed = run('scripts/seed.mjs', ['--seconds', '3600', '--agents', '4']);
    expect(await seed.printed(/Ctrl-C/)).toMatch(
      /^http:.*: 2 agents work for 3600 s \(one is drained at the end\), /,
    );
    const isLively = async () => {
      const { depths } = await operator('GET', '/v1/tasks/stats');
      const holds = (await seeded()).some(({ live_leases }: { live_leases: number }) => live_leases > 0);
      return holds && depths.some(({ state }: { state: string }) => state === 'dead');
    };
    await until('agents hold leases, and a task is dead', isLively);
    expect(await tokens()).toMatchObject([{ revoked_at: null }]);
    seed.signal('SIGINT');
    const { code, stdout, stderr } = await seed.result();
    expect([code, stderr]).toEqual([130, '']);
    expect(stdout).toMatch(/^Interrupted: \d+ tasks enqueued, \d+ completed, \d+ cancelled\.$/m);
    expect(await tokens()).toMatchObject([{ revoked_at: expect.any(String) }]);
    expect((await seeded()).map(({ live_leases }: { live_leases: number }) => live_leases)).toEqual([
      0, 0, 0, 0,
    ]);
    const { items } = await operator('GET', '/v1/configs?limit=1');
    expect((await operator('GET', `/v1/configs/${items[0].revision}`)).config).toEqual({ mine: true });

    const short = await run('scripts/seed.mjs', ['--seconds', '1', '--agents', '3']).result();
    expect([short.code, short.stderr]).toEqual([0, '']);
    expect(short.stdout).toMatch(/^Ended: /m);
    expect((await tokens()).every(({ revoked_at }: { revoked_at: string | null }) => revoked_at)).toBe(true);
  });

  it('shows no token of its database to the server of another in the same folder', async () => {
    const before = (await operator('GET', '/v1/operator-tokens')).items.length;
    const env = { CONTROL_PLANE_DATABASE_URL: 'sqlite://another.db' };
    const { code, stdout, stderr } = await run('scripts/seed.mjs', ['--seconds', '1'], env).result();
    expect([code, stdout, stderr]).toEqual([3, '', expect.stringContaining('Start one with make start')]);
    expect(existsSync(join(folder, 'another.db'))).toBe(false);
    expect((await operator('GET', '/v1/operator-tokens')).items).toHaveLength(before);
  });

  it.each([
    ['--help', 0, 'stdout', /^Usage: .*--seconds N/s],
    ['--colour', 2, 'stderr', /--colour.*\n\nUsage: /s],
    ['--agents=2', 2, 'stderr', /^--agents must be .*\n\nUsage: /],
  ] as const)('tells how the seed is used: %s', async (option, code, stream, said) => {
    const answer = await run('scripts/seed.mjs', [option]).result();
    expect([answer.code, answer[stream]]).toEqual([code, expect.stringMatching(said)]);
    expect(answer.stdout + answer.stderr).toBe(answer[stream]);
  });

  it.each([
    [
      'another server',
      { server: 'http://192.0.2.1:8080', hostname: 'probe-10' },
      /^probe-10\.json has an identity for http:\/\/192\.0\.2\.1:8080, not for .*--identity FILE/,
    ],
    [
      'another agent',
      { hostname: 'probe-x' },
      /^probe-10\.json is the identity of probe-x, not of probe-10;/,
    ],
    [
      'something else',
      { auth_token: undefined },
      /^probe-10\.json is not an agent's identity; --identity FILE/,
    ],
    ['nothing that is JSON', undefined, /^probe-10\.json can't be read: .*--identity FILE/],
  ])('does not replace an identity file of %s', async (_, differences, said) => {
    const file = join(folder, 'probe-10.json');
    const own = { server: server.url, hostname: 'probe-10', agent_id: 1, auth_token: 'x' };
    const kept = differences === undefined ? '{' : JSON.stringify({ ...own, ...differences });
    writeFileSync(file, kept);
    const { code, stdout, stderr } = await startAgent('probe-10').result();
    expect([code, stdout, stderr]).toEqual([1, '', expect.stringMatching(said)]);
    expect(stderr).toMatch(/^.+\n$/);
    expect(readFileSync(file, 'utf8')).toBe(kept);
  });

  it('uses the identity of a server whose address is written in another way, whatever the machine is called', async () => {
    const first = startAgent('probe-11');
    await first.printed(/^registered /);
    await first.end('SIGKILL');
    const second = startAgent('probe-11', '--server', `${server.url}/`);
    await second.printed(/^agent \d+, as probe-11\.json says$/m);
    await second.end('SIGKILL');
    // Nor is the machine's name asked for, if none was given.
    const third = run('examples/agent.mjs', ['--server', server.url, '--identity', 'probe-11.json']);
    await third.printed(/^agent \d+, as probe-11\.json says$/m);
    await third.end('SIGKILL');
  });

  it.each([
    ['a port that nothing listens on', 2, 'ECONNREFUSED'],
    ['a port that fetch never calls', 1, 'bad port'],
  ])('names the cause if it does not reach %s', async (_, port, cause) => {
    const agent = startAgent(`probe-12-${port}`, '--server', `http://127.0.0.1:${port}`);
    const said = await agent.printed(/\n/, { to: 'errors' });
    expect(said).toMatch(`/register: no answer from http://127.0.0.1:${port} (${cause}). Again in `);
    await agent.end('SIGKILL');
  });

  it('tells how the agent is used, and what to do about a name that is taken', async () => {
    const help = await run('examples/agent.mjs', ['--help']).result();
    expect([help.code, help.stdout]).toEqual([0, expect.stringMatching(/^Usage: .*--identity FILE/s)]);
    const unknown = await run('examples/agent.mjs', ['--colour']).result();
    expect([unknown.code, unknown.stderr]).toEqual([2, expect.stringMatching(/--colour.*Usage: /s)]);
    await operator('POST', '/v1/agents', { hostname: 'probe-6' });
    const refused = await startAgent('probe-6').result();
    expect([refused.code, refused.stderr]).toEqual([1, expect.stringContaining('--hostname NAME')]);
  });
});
