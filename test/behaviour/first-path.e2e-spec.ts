import { type ChildProcess, spawn } from 'node:child_process';
import { generateKeyPairSync } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { createUDPServer, Packet } from 'dns2';
import type { Json } from '../helpers/api';
import { CHILD_ENV } from '../helpers/harness';
import { end, endAll, track } from '../helpers/processes';

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

  function run(file: string, args: string[], env: Record<string, string> = {}): ChildProcess {
    const child = spawn(process.execPath, [join(ROOT, file), ...args], {
      cwd: folder,
      env: { PATH: process.env.PATH, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    return track(child);
  }

  afterAll(async () => {
    await endAll();
    dnsServer.close();
    rmSync(folder, { recursive: true, force: true });
  });

  let url = '';
  let authorization: string;

  beforeAll(async () => {
    const server = run('dist/main.js', ['serve'], {
      CONTROL_PLANE_BIND: '127.0.0.1:0',
      // So that an agent says soon how a configuration was taken.
      CONTROL_PLANE_HEARTBEAT_TIMEOUT_MS: '2000',
      CONTROL_PLANE_QUOTA_HEARTBEAT: 'off',
      CONTROL_PLANE_QUOTA_CONFIG: 'off',
    });
    for await (const line of createInterface({ input: server.stdout as NodeJS.ReadableStream })) {
      const entry = JSON.parse(line);
      if (entry.message === 'listening') {
        url = entry.url;
        break;
      }
    }
    server.stdout?.resume();

    const tokenFile = join(folder, 'control-plane.admin-token');
    expect(statSync(tokenFile).mode & 0o777).toBe(0o600);
    authorization = `Bearer ${readFileSync(tokenFile, 'utf8').trim()}`;
  });

  async function operator(method: string, path: string, body?: object): Promise<Json> {
    const response = await fetch(url + path, {
      method,
      headers: { authorization, ...(body && { 'content-type': 'application/json' }) },
      body: body && JSON.stringify(body),
    });
    expect(response.ok).toBe(true);
    return response.json();
  }

  /** Starts an agent with an identity of its own. */
  function startAgent(name: string, ...args: string[]): ChildProcess {
    const identity = ['--hostname', name, '--identity', `${name}.json`];
    return run('examples/agent.mjs', ['--server', url, ...identity, ...args]);
  }

  /** Waits for a line that an agent prints. @returns all that it printed until then */
  async function until(agent: ChildProcess, line: RegExp): Promise<string> {
    let printed = '';
    for await (const chunk of (agent.stdout as Readable).iterator({ destroyOnReturn: false })) {
      printed += chunk;
      if (line.test(printed)) return printed;
    }
    throw new Error(`The agent ended, having printed: ${printed}`);
  }

  async function ended(
    agent: ChildProcess,
  ): Promise<{ code: number | null; stdout: string; stderr: string }> {
    const [stdout, stderr] = await Promise.all([
      text(agent.stdout as Readable),
      text(agent.stderr as Readable),
    ]);
    if (agent.exitCode === null) await once(agent, 'exit');
    return { code: agent.exitCode, stdout, stderr };
  }

  it('names the file of the token only if there is one', async () => {
    const cwd = join(folder, 'started-twice');
    mkdirSync(cwd);
    const said = async (env: Record<string, string> = {}): Promise<string> => {
      const server = spawn(process.execPath, [join(ROOT, 'dist/main.js')], {
        cwd,
        env: { ...CHILD_ENV, CONTROL_PLANE_BIND: '127.0.0.1:0', CONTROL_PLANE_DRAIN_MS: '0', ...env },
        stdio: ['ignore', 'ignore', 'pipe'],
      });
      track(server);
      for await (const line of createInterface({ input: server.stderr }))
        if (line.includes("the operator's token")) {
          await end(server, 'SIGTERM');
          return line.trim().replace(/^the operator's token +/, '');
        }
      throw new Error('The server did not start.');
    };
    const file = join(cwd, 'control-plane.admin-token');
    const setting = { CONTROL_PLANE_ADMIN_TOKEN: 'of-the-one-who-began-with-it' };
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
      const enqueued = await fetch(`${url}/v1/tasks`, {
        method: 'POST',
        headers: { authorization, 'content-type': 'application/json' },
        body: JSON.stringify({
          tasks: [
            {
              kind: 'dns',
              spec: { query: 'probe.example', server: `127.0.0.1:${dnsPort}`, record_type: 'A' },
            },
          ],
        }),
      });
      expect(enqueued.status).toBe(201);
      return ((await enqueued.json()) as { tasks: [{ id: number }] }).tasks[0].id;
    };
    const workOnOne = async (): Promise<unknown> => {
      const agent = run('examples/agent.mjs', ['--server', url, '--hostname', 'probe-1', '--tasks', '1']);
      return (await once(agent, 'exit'))[0];
    };
    const id = await enqueue();
    expect(await workOnOne()).toBe(0);

    const task = await (await fetch(`${url}/v1/tasks/${id}`, { headers: { authorization } })).json();
    expect(task).toMatchObject({
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
    expect(await workOnOne()).toBe(0);
    const agents = await (await fetch(`${url}/v1/agents`, { headers: { authorization } })).json();
    expect(agents).toMatchObject({ items: [{ hostname: 'probe-1' }] });

    // An identity that the server does not know is worth nothing: it registers, here with another name.
    const identity = JSON.parse(readFileSync(join(folder, 'agent-identity.json'), 'utf8'));
    writeFileSync(
      join(folder, 'agent-identity.json'),
      JSON.stringify({ ...identity, hostname: 'probe-2', auth_token: 'dcpa_unknown' }),
    );
    await enqueue();
    const other = run('examples/agent.mjs', ['--server', url, '--hostname', 'probe-2', '--tasks', '1']);
    const { code, stdout, stderr } = await ended(other);
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
      const { code, stdout } = await ended(startAgent('probe-7', '--check', check, '--tasks', String(count)));
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
      const { code, stdout } = await ended(
        startAgent('probe-8', '--server', at, '--check', 'whois.mjs', '--tasks', '1'),
      );
      expect([code, stdout]).toEqual([0, expect.stringContaining('lease 7: whois odd.example')]);
    } finally {
      other.close();
    }
  });

  it('runs once on one identity file, and takes it over from a process that is gone', async () => {
    const first = startAgent('probe-9');
    await until(first, /^registered /);
    const second = await ended(startAgent('probe-9'));
    expect([second.code, second.stdout, second.stderr]).toEqual([
      1,
      '',
      `probe-9.json is in use by process ${first.pid}; give this one --identity FILE --hostname NAME.\n`,
    ]);
    first.kill('SIGKILL');
    await once(first, 'exit');
    expect(existsSync(join(folder, 'probe-9.json.lock'))).toBe(true);
    await operator('POST', '/v1/tasks', {
      tasks: [{ kind: 'dns', spec: { query: 'probe.example', server: '127.0.0.1:1' } }],
    });
    const third = await ended(startAgent('probe-9', '--tasks', '1'));
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
    const { code, stdout, stderr } = await ended(run('examples/agent.mjs', args));
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
    const printed = await until(agent, /tcp near\.example.*\n/);
    expect(printed).toMatch(/^lease \d+: tcp near\.example success banner="\\u\{9b\}31m\\u\{202e\}"$/m);
    agent.kill('SIGINT');
    const { code, stdout } = await ended(agent);
    expect([code, stdout]).toEqual([0, expect.stringMatching(/^cancelled: \d+\nstopped\n$/)]);
    const [trace, tcp] = await Promise.all(
      tasks.map(({ id }: { id: number }) => operator('GET', `/v1/tasks/${id}`)),
    );
    expect(trace).toMatchObject({ leases: [{ state: 'cancelled' }] });
    expect(tcp).toMatchObject({ state: 'completed' });
  });

  it('fetches the configuration in force, and says whether it is genuine', async () => {
    const { revision } = await operator('POST', '/v1/configs', { config: { resolvers: ['192.0.2.53'] } });
    const keys = await (await fetch(`${url}/.well-known/jwks.json`)).json();
    writeFileSync(join(folder, 'keys.json'), JSON.stringify(keys));
    const strangers = generateKeyPairSync('ed25519').publicKey.export({ format: 'jwk' });
    writeFileSync(join(folder, 'strangers-keys.json'), JSON.stringify({ ...strangers, kid: 'strangers' }));
    const trusting = startAgent('probe-4', '--keys', 'keys.json');
    const distrusting = startAgent('probe-5', '--keys', 'strangers-keys.json');
    expect(await until(trusting, /configuration \w+: .*\n/)).toContain(
      `configuration ${revision}: {"resolvers":["192.0.2.53"]}`,
    );
    const saidBy = async (hostname: string) =>
      (await operator('GET', `/v1/agents?hostname=${hostname}`)).items[0]?.config;
    const saying = async (hostname: string) => {
      for (;;) {
        const said = await saidBy(hostname);
        if (said) return said;
        await sleep(50);
      }
    };
    expect(await saying('probe-4')).toMatchObject({ revision, status: 'applied' });
    expect(await saying('probe-5')).toMatchObject({
      revision,
      status: 'failed',
      message: expect.stringContaining('is not pinned'),
    });
    for (const agent of [trusting, distrusting]) {
      agent.kill('SIGTERM');
      expect((await ended(agent)).code).toBe(0);
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
    expect(await until(seed, /Ctrl-C/)).toMatch(
      /^http:.*: 2 agents work for 3600 s \(one is drained at the end\), /,
    );
    const isLively = async () => {
      const { depths } = await operator('GET', '/v1/tasks/stats');
      const holds = (await seeded()).some(({ live_leases }: { live_leases: number }) => live_leases > 0);
      return holds && depths.some(({ state }: { state: string }) => state === 'dead');
    };
    while (!(await isLively())) await sleep(100);
    expect(await tokens()).toMatchObject([{ revoked_at: null }]);
    seed.kill('SIGINT');
    const { code, stdout, stderr } = await ended(seed);
    expect([code, stderr]).toEqual([130, '']);
    expect(stdout).toMatch(/^Interrupted: \d+ tasks enqueued, \d+ completed, \d+ cancelled\.$/m);
    expect(await tokens()).toMatchObject([{ revoked_at: expect.any(String) }]);
    expect((await seeded()).map(({ live_leases }: { live_leases: number }) => live_leases)).toEqual([
      0, 0, 0, 0,
    ]);
    const { items } = await operator('GET', '/v1/configs?limit=1');
    expect((await operator('GET', `/v1/configs/${items[0].revision}`)).config).toEqual({ mine: true });

    const short = await ended(run('scripts/seed.mjs', ['--seconds', '1', '--agents', '3']));
    expect([short.code, short.stderr]).toEqual([0, '']);
    expect(short.stdout).toMatch(/^Ended: /m);
    expect((await tokens()).every(({ revoked_at }: { revoked_at: string | null }) => revoked_at)).toBe(true);
  });

  it('shows no token of its database to the server of another in the same folder', async () => {
    const before = (await operator('GET', '/v1/operator-tokens')).items.length;
    const env = { CONTROL_PLANE_DATABASE_URL: 'sqlite://another.db' };
    const { code, stdout, stderr } = await ended(run('scripts/seed.mjs', ['--seconds', '1'], env));
    expect([code, stdout, stderr]).toEqual([3, '', expect.stringContaining('Start one with make start')]);
    expect(existsSync(join(folder, 'another.db'))).toBe(false);
    expect((await operator('GET', '/v1/operator-tokens')).items).toHaveLength(before);
  });

  it.each([
    ['--help', 0, 'stdout', /^Usage: .*--seconds N/s],
    ['--colour', 2, 'stderr', /--colour.*\n\nUsage: /s],
    ['--agents=2', 2, 'stderr', /^--agents must be .*\n\nUsage: /],
  ] as const)('tells how the seed is used: %s', async (option, code, stream, said) => {
    const answer = await ended(run('scripts/seed.mjs', [option]));
    expect([answer.code, answer[stream]]).toEqual([code, expect.stringMatching(said)]);
    expect(answer.stdout + answer.stderr).toBe(answer[stream]);
  });

  it('tells how the agent is used, and what to do about a name that is taken', async () => {
    const help = await ended(run('examples/agent.mjs', ['--help']));
    expect([help.code, help.stdout]).toEqual([0, expect.stringMatching(/^Usage: .*--identity FILE/s)]);
    const unknown = await ended(run('examples/agent.mjs', ['--colour']));
    expect([unknown.code, unknown.stderr]).toEqual([2, expect.stringMatching(/--colour.*Usage: /s)]);
    await operator('POST', '/v1/agents', { hostname: 'probe-6' });
    const refused = await ended(startAgent('probe-6'));
    expect([refused.code, refused.stderr]).toEqual([1, expect.stringContaining('--hostname NAME')]);
  });
});
