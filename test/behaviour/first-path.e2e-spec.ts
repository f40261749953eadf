import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { createUDPServer, Packet } from 'dns2';
import { endAll, track } from '../helpers/processes';

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

  it('leads from an enqueued task to an observation from a real DNS server', async () => {
    await dnsServer.listen(0, '127.0.0.1');
    const dnsPort = (dnsServer.address() as AddressInfo).port;

    const server = run('dist/main.js', [], { CONTROL_PLANE_BIND: '127.0.0.1:0' });
    let url = '';
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
    const authorization = `Bearer ${readFileSync(tokenFile, 'utf8').trim()}`;
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
    expect((await once(other, 'exit'))[0]).toBe(0);
  });
});
