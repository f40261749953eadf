import { execFileSync, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { AgentAbout } from '../../src/agents/agent-about';
import { AgentOutcomes } from '../../src/agents/agent-outcomes';
import { type DatabaseTarget, databaseIdentity } from '../../src/settings';
import { Lifecycle } from '../../src/telemetry/lifecycle';
import type { Json, Lease } from '../helpers/api';
import { finding, run, spawnCommand } from '../helpers/command-line';
import { ADMIN_TOKEN, credentialsOf, dnsTask, passOn, TestServer } from '../helpers/harness';
import { type Ended, endAll, Program } from '../helpers/processes';
import { until } from '../helpers/until';

const CLI = join(__dirname, '../../dist/main.js');
/** So that the program's first line finds the Node that the tests run on. */
const NODE_FIRST = `${dirname(process.execPath)}:${process.env.PATH}`;

/** What changes what a terminal shows; line feeds are the command's own. */
const HIDDEN = /(?!\n)[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u;

describe('the command line with a server', () => {
  let server: TestServer;
  beforeAll(async () => {
    server = await TestServer.start();
  });
  afterAll(async () => {
    await endAll();
    await server.stop();
  });

  const cli = (args: string[], env: Record<string, string> = {}, input?: string | Buffer) =>
    run(args, { cwd: server.folder, env: { ...finding(server.url), ...env }, input });

  /** What a command that must succeed answers as JSON. */
  async function json(...args: string[]): Promise<Json> {
    const { code, stdout, stderr } = await cli([...args, '--json']);
    expect([code, stderr]).toEqual([0, '']);
    return JSON.parse(stdout);
  }

  /** The cells of a table's first row after its heads. */
  const firstRow = ({ stdout }: Ended) => (stdout.split('\n')[1] as string).split(/ {2,}/);

  it('enqueues a task, lists, shows, cancels and retries it, and shows the depth of the queue', async () => {
    const args = [
      'task',
      'add',
      'tcp',
      'host=192.0.2.1',
      'port=443',
      '--priority',
      '-5',
      '--max-attempts',
      '2',
    ];
    const { tasks } = await json(...args, '--unique-key', 'k', '--not-after', '2100-01-01T00:00:00Z');
    const id = String(tasks[0].id);
    expect(await json('task', 'get', id)).toMatchObject({
      kind: 'tcp',
      spec: { host: '192.0.2.1', port: 443 },
      priority: -5,
      max_attempts: 2,
      unique_key: 'k',
      not_after: '2100-01-01T00:00:00.000Z',
    });
    const list = await cli([
      'task',
      'list',
      '--kind',
      'tcp',
      '--state',
      'queued',
      '--target',
      '192.0.2.1:443',
    ]);
    expect(firstRow(list).slice(0, 5)).toEqual([id, 'tcp', '192.0.2.1:443', 'queued', '-5']);
    expect((await cli(['task', 'stats'])).stdout).toMatch(/^tcp +queued +1 /m);
    expect(await json('task', 'cancel', id)).toMatchObject({ state: 'cancelled', reason: 'operator' });
    expect((await cli(['task', 'retry', id])).stdout).toMatch(/^state +queued$/m);
    const again = await cli(['task', 'retry', id]);
    expect([again.code, again.stdout]).toEqual([1, '']);
    expect(again.stderr).toContain('ERR_CONFLICT');
  });

  it('takes text as text, and what reads as JSON as that', async () => {
    const { tasks } = await json('task', 'add', 'dns', 'query="123"', 'server=null', 'record_type=AAAA');
    expect((await json('task', 'get', String(tasks[0].id))).spec).toEqual({
      kind: 'dns',
      query: '123',
      server: null,
      record_type: 'AAAA',
    });
  });

  it('enqueues all tasks of a file or of standard input, in their order', async () => {
    const file = join(server.folder, 'tasks.json');
    writeFileSync(file, JSON.stringify([dnsTask(), dnsTask({}, { query: 'second.example' })]));
    const { tasks } = await json('task', 'add', '--file', file);
    expect((await json('task', 'get', String(tasks[1].id))).spec.query).toBe('second.example');
    const piped = await cli(['task', 'add', '--file', '-'], {}, JSON.stringify({ tasks: [dnsTask()] }));
    expect([piped.code, piped.stdout]).toEqual([0, expect.stringMatching(/^ID +STATE\n\d+ +queued\n$/)]);
  });

  it('shows what the server says about each field', async () => {
    const { code, stdout, stderr } = await cli(['task', 'add', 'tcp', 'host=a b', 'port=0', 'colour=red']);
    expect([code, stdout]).toEqual([1, '']);
    expect(stderr).toMatch(/ERR_VALIDATION/);
    for (const field of ['host', 'port', 'colour'])
      expect(stderr).toMatch(new RegExp(`^ {2}tasks\\.0\\.spec\\.${field}: `, 'm'));
    const asJson = await cli(['task', 'get', '999', '--json']);
    expect([asJson.code, asJson.stdout, JSON.parse(asJson.stderr).error]).toEqual([1, '', 'ERR_NOT_FOUND']);
  });

  it('enqueues nothing twice under one key', async () => {
    const args = ['task', 'add', 'dns', 'query=once.example', '--idempotency-key', 'one-key'];
    expect(await json(...args)).toEqual(await json(...args));
    const other = await cli(['task', 'add', 'dns', 'query=other.example', '--idempotency-key', 'one-key']);
    expect(other.code).toBe(1);
  });

  it('lists page by page', async () => {
    const first = await cli(['task', 'list', '--limit', '1']);
    const cursor = /--cursor (\d+)/.exec(first.stderr)?.[1] as string;
    const second = await cli(['task', 'list', '--limit', '1', '--cursor', cursor]);
    expect(Number(firstRow(second)[0])).toBe(Number(firstRow(first)[0]) - 1);
  });

  it('decides about agents', async () => {
    const { agent_id } = await server.register('probe-1');
    const id = String(agent_id);
    expect(
      firstRow(await cli(['agents', 'list', '--status', 'online', '--hostname', 'probe-1'])).slice(0, 4),
    ).toEqual([id, 'probe-1', 'online', '0']);
    expect((await json('agents', 'drain', id)).status).toBe('draining');
    expect((await json('agents', 'disable', id)).status).toBe('disabled');
    expect((await cli(['agents', 'drain', id])).code).toBe(1);
    expect((await json('agents', 'enable', id)).status).toBe('online');
    expect((await json('agents', 'revoke', id)).status).toBe('revoked');
    expect((await cli(['agents', 'show', id])).stdout).toMatch(/^status +revoked$/m);
    expect(await json('agents', 'delete', id)).toEqual({});
    expect((await cli(['agents', 'show', id])).code).toBe(1);
  });

  it('makes an agent by hand, finds it by its labels and changes its token', async () => {
    const made = await json('create-agent', 'by-hand', '--label', 'region=eu', '--label', 'rack=a=b');
    const other = await json('agents', 'create');
    const { items } = await json('agents', 'list', '--label', 'region=eu', '--label', 'rack=a=b');
    expect(items).toMatchObject([{ id: made.agent_id, labels: { region: 'eu', rack: 'a=b' } }]);
    expect((await server.agent(other, '/heartbeat')).status).toBe(200);
    const rotated = await json('agents', 'rotate', String(made.agent_id), '--revoke-old');
    expect((await server.agent(made, '/heartbeat')).status).toBe(401);
    expect((await server.agent(rotated, '/heartbeat')).status).toBe(200);
    const shown = await cli(['agents', 'rotate', String(made.agent_id)]);
    expect(shown.stdout).toMatch(/^auth_token +dcpa_\w{49}$/m);
    expect((await cli(['create-agent', 'by-hand'])).code).toBe(1);
  });

  it('gives and revokes enrollment tokens', async () => {
    const args = [
      'enrollment',
      'create',
      'rack-7',
      '--label',
      'rack=7',
      '--max-uses',
      '2',
      '--expires-in',
      '1d',
    ];
    const made = await json(...args);
    expect(made).toMatchObject({ labels: { rack: '7' }, max_uses: 2 });
    expect(Date.parse(made.expires_at) - Date.parse(made.created_at)).toBe(86_400_000);
    const enroll = () =>
      server.request('POST', '/register', { body: {}, headers: { 'x-enrollment-token': made.token } });
    expect((await enroll()).status).toBe(200);
    expect((await cli(['enrollment', 'list'])).stdout).toMatch(/rack-7 +rack=7 +1 +2 /);
    expect((await cli(['enrollment', 'revoke', String(made.id)])).code).toBe(0);
    expect((await enroll()).status).toBe(401);
  });

  it('publishes configuration, shows it and goes back to an earlier one', async () => {
    const file = join(server.folder, 'config.json');
    writeFileSync(file, '{"resolvers": ["192.0.2.53"]}');
    const first = await json('config', 'publish', file, '--expires-in', '30m', '--idempotency-key', 'first');
    expect(Date.parse(first.expires_at) - Date.parse(first.issued_at)).toBe(1_800_000);
    const again = await json('config', 'publish', file, '--expires-in', '30m', '--idempotency-key', 'first');
    expect(again.revision).toBe(first.revision);
    const second = await cli(['config', 'publish', '-'], {}, '{"resolvers": []}');
    expect(second.stdout).toMatch(/^config\n {2}resolvers {2}\[\]$/m);
    expect((await json('config', 'show')).config).toEqual({ resolvers: [] });
    expect((await json('config', 'rollback', first.revision)).config).toEqual({ resolvers: ['192.0.2.53'] });
    const { items } = await json('config', 'list');
    expect(items.map((item: { seq: number }) => item.seq)).toEqual([3, 2, 1]);
    expect((await cli(['config', 'show', first.revision])).stdout).toMatch(/^seq +1$/m);
    const refused = await cli(['config', 'publish', '-'], {}, '[]');
    expect([refused.code, refused.stderr]).toEqual([1, expect.stringMatching(/ {2}config: /)]);
  });

  it.each([
    ['a name twice', '{"a": 1, "a": 2}', /ERR_VALIDATION.*\n {2}config\.a: /],
    ['a number that is too large', '{"a": 1e400}', /ERR_VALIDATION.*\n {2}config\.a: /],
    ['a part that is not closed', '{"a": 1}, "expires_in": 60', /does not hold JSON/],
    ['bytes that are no text', Buffer.from('{"a": "\xff"}', 'latin1'), /does not hold JSON/],
  ])('publishes no file with %s as something else', async (_what, content, said) => {
    const file = join(server.folder, 'odd.json');
    writeFileSync(file, content);
    const { code, stdout, stderr } = await cli(['config', 'publish', file]);
    expect([code === 0, stdout, stderr]).toEqual([false, '', expect.stringMatching(said)]);
  });

  it('enqueues no task of a file that says a thing twice', async () => {
    const twice = '[{"kind": "dns", "spec": {"query": "a.example", "query": "b.example"}}]';
    const { code, stderr } = await cli(['task', 'add', '--file', '-'], {}, twice);
    expect([code, stderr]).toEqual([
      1,
      expect.stringMatching(/ERR_VALIDATION.*\n {2}tasks\.0\.spec\.query: /),
    ]);
  });

  it("gives and revokes operators' tokens, whose role and expiry hold", async () => {
    const made = await json('token', 'create', 'alice', '--role', 'viewer', '--expires-in', '90d');
    expect(Date.parse(made.expires_at) - Date.parse(made.created_at)).toBe(90 * 86_400_000);
    const file = join(server.folder, 'alice.token');
    writeFileSync(file, `${made.token}\n`);
    expect((await cli(['task', 'stats', '--token-file', file])).code).toBe(0);
    const refused = await cli(['task', 'add', 'dns', 'query=example.com', '--token-file', file]);
    expect([refused.code, refused.stderr]).toEqual([
      1,
      expect.stringMatching(/ERR_FORBIDDEN.*\n {2}role: operator/),
    ]);
    expect((await cli(['token', 'list'])).stdout).toMatch(/alice +viewer +issued/);
    expect((await cli(['token', 'revoke', String(made.id)])).code).toBe(0);
    const revoked = await cli(['task', 'stats', '--token-file', file]);
    expect([revoked.code, revoked.stderr]).toEqual([
      1,
      expect.stringContaining(`The token is from ${file}.`),
    ]);
    expect(revoked.stderr).not.toContain(made.token);
  });

  it('lists changes, and verifies that they are as they were recorded', async () => {
    const [task] = await server.enqueue(dnsTask());
    await server.operator('POST', `/v1/tasks/${task}/cancel`);
    const { items } = await json('audit', 'list', '--action', 'task.cancel', '--subject', `task/${task}`);
    expect(items).toMatchObject([{ operator_name: 'bootstrap', subject: `task/${task}` }]);
    const kept = await json('audit', 'verify');
    expect(kept).toMatchObject({ intact: true });
    const known = `${kept.last_id}:${kept.last_hash}`;
    expect((await cli(['audit', 'verify', '--known', known])).code).toBe(0);
    const other = await cli(['audit', 'verify', '--known', `${kept.last_id}:${'0'.repeat(64)}`]);
    expect([other.code, other.stdout]).toEqual([1, expect.stringMatching(/^intact +false$/m)]);
    expect((await cli(['audit', 'verify', '--known', 'of-yesterday'])).code).toBe(2);
    const { code } = await cli(['audit', 'list', '--since', 'yesterday']);
    expect(code).toBe(1);
  });

  it('keeps control characters of others off the terminal', async () => {
    const value = '\u001b[31mred\u009b\u202e';
    const [id] = await server.enqueue({ kind: 'trace', spec: { host: '192.0.2.9' } });
    const agent = await server.register('hostile');
    const { leases } = (await server.agent(agent, '/claim', { capacities: { trace: 1 } })).body;
    const observations = [{ name: 'hop', value }];
    await server.agent(agent, '/report', {
      completed: [{ lease_id: leases[0].lease_id, outcome: 'success', observations }],
      cancelled: [],
    });
    const { stdout } = await cli(['task', 'get', String(id)]);
    expect(stdout).toContain('\\u001b[31mred\\u009b\\u202e');
    expect(stdout).not.toMatch(HIDDEN);
    // JSON too is safe for a terminal, and its value what it was.
    const asJson = await cli(['task', 'get', String(id), '--json']);
    expect(asJson.stdout).not.toMatch(HIDDEN);
    expect(JSON.parse(asJson.stdout).leases[0].result.observations).toEqual(observations);
  });

  it('sets, lists and lifts limits, and shows windows', async () => {
    const tcp = { kind: 'tcp', spec: { host: '192.0.2.77', port: 443 } };
    await server.enqueue(tcp, tcp, tcp);
    const agent = await server.register('limited');
    const place = ['--kind', 'tcp', '--target', '192.0.2.77:443'];
    expect(await json('limits', 'set', ...place, '--limit', '3')).toMatchObject({
      windows: [{ scope: 'target', kind: 'tcp', target: '192.0.2.77:443', limit: 3 }],
    });
    await server.enqueue(tcp);
    const { leases } = (await server.agent(agent, '/claim', { capacities: { tcp: 9 } })).body;
    expect(leases.filter(({ spec }) => (spec as Json).host === '192.0.2.77')).toHaveLength(3);
    await json('limits', 'set', '--kind', 'http', '--limit', '0');
    expect((await json('limits', 'list')).items).toMatchObject([{ kind: 'http' }, { kind: 'tcp' }]);
    expect((await json('windows', 'list', '--scope', 'target', '--kind', 'tcp')).items).toContainEqual(
      expect.objectContaining({ target: '192.0.2.77:443', limit: 3, leased: 3, available: 0, queued: 1 }),
    );
    expect(await json('limits', 'set', '--global', '--limit', '900')).toMatchObject({
      windows: [{ scope: 'global', kind: null, target: null, limit: 900 }],
    });
    for (const of of [place, ['--kind', 'http']]) expect((await cli(['limits', 'lift', ...of])).code).toBe(0);
    const global = [expect.objectContaining({ scope: 'global', limit: 900 })];
    expect((await json('limits', 'list')).items).toEqual(global);
    for (const [args, said] of [
      [['set', '--target', 'x', '--limit', '1'], /--kind/],
      [['set', '--kind', 'dns'], /--limit.*--rate.*--adaptive/],
      [['set', '--kind', 'dns', '--rate', '0'], /above 0/],
      [['set', '--kind', 'dns', '--rate', '1e3'], /above 0/],
      [['set', '--kind', 'dns', '--limit', '-1'], /from 0/],
      [['set', '--limit', '1'], /^Name the limit: .*--global/],
      [['lift'], /^Name the limit: .*--global/],
      [['lift', '--target', 'x'], /--kind/],
      [['lift', '--global', '--kind', 'dns'], /--global.*--kind/],
    ] as const)
      expect(await cli(['limits', ...args])).toMatchObject({ code: 2, stderr: expect.stringMatching(said) });
    expect((await json('limits', 'list')).items).toEqual(global);
    expect((await cli(['limits', 'lift', '--global'])).code).toBe(0);
    expect((await json('limits', 'list')).items).toEqual([]);
  });

  it('sets and lifts rates, of every target too, and shows what changed a window', async () => {
    const place = ['--kind', 'ping', '--target', '192.0.2.7'];
    const every = ['--kind', 'ping', '--target', '*'];
    const held = async (of: string[]) => (await json('windows', 'list', ...of)).items[0];
    await json('limits', 'set', ...place, '--limit', '4', '--rate', '0.25');
    expect(await held(place)).toMatchObject({ limit: 4, rate: 0.25, adaptive: false });
    await json('limits', 'set', ...place, '--adaptive');
    expect(await held(place)).toMatchObject({ max_limit: 4, max_rate: 0.25, adaptive: true });
    await json('limits', 'set', ...place, '--no-adaptive');
    expect(await held(place)).toMatchObject({ limit: 4, rate: 0.25, adaptive: false });
    await json('limits', 'lift', ...place, '--limit');
    expect(await held(place)).toMatchObject({ limit: null, rate: 0.25 });
    await json('limits', 'set', ...place, '--limit', '3', '--adaptive');
    await json('limits', 'lift', ...place, '--rate');
    expect(await held(place)).toMatchObject({ max_limit: 3, max_rate: null, adaptive: true });
    await json('limits', 'set', ...every, '--rate', '5');
    const { stdout } = await cli(['limits', 'list', '--kind', 'ping']);
    expect(stdout).toMatch(
      /^SCOPE +KIND +TARGET +LIMIT +MAX_LIMIT +RATE +MAX_RATE +ADAPTIVE +INHERITED +LEASED +AVAILABLE +QUEUED\n/,
    );
    expect(stdout).toMatch(
      /^every_target +ping +\* +- +- +5 +5 +false +false +- +- +0\ntarget +ping +192\.0\.2\.7 +3 /m,
    );
    expect((await cli(['windows', 'list', ...every])).stdout.match(/^every_target/gm)).toHaveLength(1);

    const { items } = await json('windows', 'history', ...place);
    expect(items.map(({ max_limit, max_rate, adaptive }: Json) => [max_limit, max_rate, adaptive])).toEqual([
      ...[
        [3, null, true],
        [3, 0.25, true],
        [null, 0.25, false],
        [4, 0.25, false],
        [4, 0.25, true],
      ],
      [4, 0.25, false],
    ]);
    const { id } = await held(place);
    expect(await json('windows', 'history', String(id))).toEqual({ items, next_cursor: null });
    expect((await cli(['windows', 'history', String(id), '--limit', '2'])).stderr).toMatch(/--cursor \d+\n$/);
    const text = await cli(['windows', 'history', ...every]);
    expect(text.stdout).toMatch(/ operator +- +5 +- +5 +false +An operator set it\.\n$/);

    // In this order, the target does not inherit in between, and needs no job to forget that.
    for (const of of [every, place]) await json('limits', 'lift', ...of);
    expect((await json('limits', 'list', '--kind', 'ping')).items).toEqual([]);
    expect(await cli(['windows', 'history', '--kind', 'ping'])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('no such window'),
    });
    for (const args of [[], ['--target', 'x'], ['12', '--kind', 'ping'], ['12', '--global']])
      expect((await cli(['windows', 'history', ...args])).code).toBe(2);
  });

  it('reports how a target was treated, as a text and as the API gives it', async () => {
    const place = ['--kind', 'ping', '--target', '198.51.100.9'];
    const now = () => new Date().toISOString().slice(0, 10);
    const yesterday = new Date(Date.now() - 86_400_000).toISOString().slice(0, 10);
    const none = await cli(['windows', 'report', ...place, '--day', yesterday]);
    expect(none.stdout).toMatch(
      /^ping checks of 198\.51\.100\.9 on \d{4}-\d\d-\d\d \(UTC\)\n\nWe started no checks\.\n\n/,
    );
    expect(none.stdout).toMatch(/^No limit and no rate applied to this target\.$/m);
    const past = await cli(['windows', 'report', ...place, '--day', '2020-01-31']);
    expect(past.stdout).toContain('It is not known whether we started checks: they are no longer kept.');
    expect(past.stdout).toContain('It is not known which limits applied.');
    const unknown = await cli(['windows', 'report', '--kind', 'PING', '--target', '198.51.100.9']);
    expect(unknown).toMatchObject({ code: 1, stderr: expect.stringContaining('must be one of dns') });
    await json('limits', 'set', ...place, '--limit', '2', '--rate', '500');
    await json('limits', 'set', ...place, '--limit', '3');
    const ping = { kind: 'ping', spec: { host: '198.51.100.9' } };
    await server.enqueue(ping, ping, ping);
    const agent = await server.register('polite');
    const { leases } = (await server.agent(agent, '/claim', { capacities: { ping: 3 } })).body;
    expect(leases).toHaveLength(3);
    const finish = (some: readonly Lease[]) =>
      server.agent(agent, '/report', {
        completed: some.map(({ lease_id }) => ({ lease_id, outcome: 'success' })),
        cancelled: [],
      });
    await finish(leases.slice(0, 1) as Lease[]);
    const { code, stdout, stderr } = await cli(['windows', 'report', ...place, '--day', now()]);
    expect([code, stderr]).toEqual([0, '']);
    const at = String.raw`\d\d:\d\d:\d\d\.\d{3}`;
    for (const line of [
      `^ping checks of 198\\.51\\.100\\.9 on ${now()} \\(UTC\\), until ${at}$`,
      `^We started 3 checks from 1 agent, the first at ${at}, the last at ${at}\\.$`,
      `^At most 3 started within one second, from ${at} on\\.$`,
      `^At most [123] ran at once, at ${at}\\.$`,
      '^succeeded +1$',
      '^still running +2$',
      `^${at} +${at} +this target +2 +500 +no$`,
      `^${at} +now +this target +3 +500 +no$`,
    ])
      expect(stdout).toMatch(new RegExp(line, 'm'));
    const { rules, ...report } = await json('windows', 'report', ...place);
    expect(report).toMatchObject({
      ...{ kind: 'ping', target: '198.51.100.9', checks: 3 },
      by_agent: [{ hostname: 'polite', checks: 3 }],
    });
    expect(rules.filter(({ scope }: Json) => scope === 'target')).toMatchObject([{ limit: 2 }, { limit: 3 }]);
    await json('limits', 'lift', ...place);
    await finish(leases.slice(1) as Lease[]);
    expect(await cli(['windows', 'report', ...place, '--day', 'today'])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('day: '),
    });
    expect((await cli(['windows', 'report', '--kind', 'ping'])).code).toBe(2);
  });

  it('lists windows from the widest, by name, and what was asked for as the API gives it', async () => {
    const limited = (limits: object[]) => server.operator('PUT', '/v1/concurrency/limits', { limits });
    const places = [
      { kind: 'trace', target: 'b.example' },
      { kind: 'trace', target: 'a.example' },
      { kind: 'trace' },
      { kind: 'http' },
      {},
    ];
    // The widest are neither the newest nor the oldest.
    await limited(places.slice(0, 1).map((place) => ({ ...place, limit: 5 })));
    await limited(
      places
        .slice(1)
        .toReversed()
        .map((place) => ({ ...place, limit: 5 })),
    );
    await server.enqueue({ kind: 'trace', spec: { host: 'a.example' } });
    const { stdout, stderr } = await cli(['windows', 'list']);
    const rows = stdout
      .split('\n')
      .slice(1, -1)
      .map((line) => line.split(/ {2,}/).slice(0, 3));
    const rank = ([scope, kind, target]: string[]) =>
      `${['global', 'kind', 'target'].indexOf(scope as string)} ${kind} ${target}`;
    expect([rows[0], stderr]).toEqual([['global', '-', '-'], '']);
    expect(rows.map(rank)).toEqual(rows.map(rank).sort());
    expect(rows).toContainEqual(['target', 'trace', 'a.example']);
    const newestFirst = (await server.operator('GET', '/v1/concurrency/windows')).body;
    expect(await json('windows', 'list')).toEqual(newestFirst);
    for (const page of [[], ['--scope', 'target']]) {
      const args = ['windows', 'list', '--kind', 'trace', ...page];
      expect((await cli(args)).stdout).toMatch(
        /^target +trace +a\.example +5 +5 +- +- +false +false +0 +5 +1$/m,
      );
    }
    expect((await cli(['windows', 'list', '--limit', '2'])).stderr).toMatch(
      /^There is more: --cursor \d+\n$/,
    );
    await server.operator('POST', '/v1/tasks/cancel', { kind: 'trace' });
    await limited(places.map((place) => ({ ...place, limit: null })));
    const none = await cli(['windows', 'list']);
    expect([none.stdout.includes('trace'), none.stderr]).toEqual([false, 'none\n']);
  });

  it('shows what is in a field under its name, and in a line of a list shortened', async () => {
    const label = 'x'.repeat(100);
    const made = await json('create-agent', 'nested', '--label', 'a=two words', '--label', `b=${label}`);
    const shown = (await cli(['agents', 'show', String(made.agent_id)])).stdout;
    expect(shown).toMatch(new RegExp(`^labels\\n {2}a {2}two words\\n {2}b {2}${label}$`, 'm'));
    const listed = (await cli(['agents', 'list', '--hostname', 'nested'])).stdout;
    expect(listed).toMatch(/ a="two words" b=x{41}\.\.\. /);
  });

  it('shows a task without what is of a page, and each attempt with what was observed', async () => {
    const [id] = await server.enqueue({ kind: 'tcp', spec: { host: '192.0.2.5', port: 25 } });
    const { stdout: before } = await cli(['task', 'get', String(id)]);
    expect(before).toMatch(/^spec\n {2}kind {2}tcp\n {2}host {2}192\.0\.2\.5\n {2}port {2}25$/m);
    expect(before).not.toContain('next_cursor');
    const agent = await server.register('nested-observer');
    const { leases } = (await server.agent(agent, '/claim', { capacities: { tcp: 9 } })).body;
    const { lease_id } = leases.find(({ task_id }: { task_id: number }) => task_id === id);
    const observations = [{ name: 'banner', value: ['220 mail', 'ESMTP'] }];
    await server.agent(agent, '/report', { completed: [{ lease_id, observations }], cancelled: [] });
    const { stdout } = await cli(['task', 'get', String(id)]);
    expect(stdout).toMatch(/^ {6}NAME {4}VALUE\n {6}banner {2}"220 mail", ESMTP$/m);
    expect(
      (await cli(['task', 'cancel', String((await server.enqueue(dnsTask()))[0])])).stdout,
    ).not.toContain('next_cursor');
  });

  it.each([
    ['task', 'list', '--target', '192.0.2.250:1', '--kind', 'tcp'],
    ['agents', 'list', '--hostname', 'nobody'],
    ['windows', 'list', '--kind', 'dns', '--target', '192.0.2.250:53'],
    ['limits', 'list', '--kind', 'dns', '--target', '192.0.2.250:53'],
  ])('says so if there is nothing to list: %s %s', async (...args) => {
    const { code, stdout, stderr } = await cli(args);
    expect([code, stdout.trimEnd().includes('\n'), stderr]).toEqual([0, false, 'none\n']);
    expect(await cli([...args, '--json'])).toMatchObject({ code: 0, stderr: '' });
  });

  it("replaces an agent's labels, and lists what it measured", async () => {
    const agent = await server.register('labelled');
    const id = String(agent.agent_id);
    expect((await json('agents', 'labels', id, '--label', 'a=1', '--label', 'b=2')).labels).toEqual({
      a: '1',
      b: '2',
    });
    expect((await json('agents', 'labels', id)).labels).toEqual({});
    const sample = { name: 'rtt', value: 1.5, unit: 'ms' };
    await server.agent(agent, '/metrics', { timestamp: new Date().toISOString(), gauges: [sample] });
    expect((await cli(['agents', 'metrics', id, '--since', '2h'])).stdout).toMatch(/ gauge +rtt +1\.5 +ms$/m);
    expect((await json('agents', 'metrics', id, '--until', '1h')).items).toEqual([]);
    expect((await cli(['agents', 'show', id])).stdout).toMatch(/^labels +-$/m);
  });

  it('shows what differs between configurations', async () => {
    const revisions: string[] = [];
    for (const config of [{ a: 1 }, { a: 2 }, { a: 1, b: 3 }]) {
      const { stdout } = await cli(['config', 'publish', '-', '--json'], {}, JSON.stringify(config));
      revisions.push(JSON.parse(stdout).revision);
    }
    const [first, second, third] = revisions as [string, string, string];
    expect((await json('config', 'diff')).changes).toHaveLength(2);
    const shown = await cli(['config', 'diff', second]);
    expect(shown.stdout).toMatch(/^OP +PATH +BEFORE +VALUE\nreplace +\/a +1 +2\n$/);
    const [{ seq }, { seq: secondSeq }] = [
      await json('config', 'show', first),
      await json('config', 'show', second),
    ];
    expect(shown.stderr).toBe(`from ${first} (seq ${seq}) to ${second} (seq ${secondSeq})\n`);
    expect(await cli(['config', 'diff', first, second])).toEqual(shown);
    expect((await cli(['config', 'diff', third, first])).stdout).toMatch(/^remove +\/b +3 +-$/m);
    expect(await json('config', 'diff', first, third)).toEqual({
      revision: third,
      previous_revision: first,
      changes: [{ op: 'add', path: '/b', value: 3 }],
    });
  });

  it('cancels and retries many tasks by a filter', async () => {
    await server.enqueue(
      ...Array.from({ length: 3 }, () => ({ kind: 'ping', spec: { host: '192.0.2.78' } })),
    );
    expect(await json('task', 'cancel', '--kind', 'ping', '--dry-run')).toEqual({ matched: 3, changed: 0 });
    expect((await cli(['task', 'cancel', '--kind', 'ping'])).stdout).toMatch(/^changed +3$/m);
    expect(await json('task', 'retry', '--kind', 'ping', '--state', 'cancelled')).toEqual({
      matched: 3,
      changed: 3,
    });
    for (const args of [['cancel'], ['cancel', '1', '--all'], ['retry', '--dry-run'], ['retry', 'x']])
      expect([args, (await cli(['task', ...args])).code]).toEqual([args, 2]);
  });

  it('shows and finds failing agents and what went wrong, with nothing of it that a terminal acts on', async () => {
    const agent = await server.register('failing-1');
    const ids = await server.enqueue(...Array.from({ length: 6 }, () => dnsTask({ priority: 99 })));
    const version = { 'user-agent': 'cli-test/1.0 beta' };
    const { leases } = (await server.agent(agent, '/claim', { capacities: { dns: 6 } }, version)).body;
    const said = `first line\n\u001b[2J\u202e${'x'.repeat(60)}`;
    const report = (lease_id: number, outcome: string) => ({
      lease_id,
      outcome,
      observations: [{ name: 'error', value: said }],
    });
    const [one, ...others] = leases.map(({ lease_id }: { lease_id: number }) => lease_id);
    const completed = [report(one, 'success'), ...others.map((id: number) => report(id, 'error'))];
    await server.agent(agent, '/report', { completed, cancelled: [] });
    await server.app.get(AgentOutcomes).flush();
    await server.app.get(AgentAbout).flush();
    const id = String(agent.agent_id);
    const listed = await cli([
      'agents',
      'list',
      '--failing',
      '--version',
      'cli-test/1.0 beta',
      '--kind',
      'dns',
    ]);
    expect(listed.stdout.trimEnd().split('\n')).toHaveLength(2);
    expect(listed.stdout).not.toMatch(HIDDEN);
    expect(listed.stdout).toContain('success=1 error=5');
    expect(listed.stdout).toContain(String.raw`error first line\u000a\u001b[2J\u202e`);
    expect(listed.stdout).not.toContain('x'.repeat(40));
    const idsOf = async (...args: string[]) =>
      (await json(...args)).items.map((item: Json) => String(item.id));
    expect(await idsOf('agents', 'list', '--not-failing')).not.toContain(id);
    expect(await idsOf('agents', 'list', '--config-status', 'unsaid', '--failing')).toEqual([id]);
    expect(await idsOf('agents', 'list', '--config-status', 'failed')).toEqual([]);
    await server.operator('POST', '/v1/configs', { config: { a: 1 } });
    const { body: config } = await server.request('GET', '/config', { headers: credentialsOf(agent) });
    const refused = {
      config_revision: config.revision,
      config_status: 'failed',
      config_message: said + 'y'.repeat(99),
    };
    expect((await server.agent(agent, '/heartbeat', refused)).status).toBe(200);
    const failing = (await cli(['agents', 'list', '--config-status', 'failed'])).stdout;
    expect(failing).toMatch(/CONFIG_STATUS +CONFIG_REVISION +CONFIG_MESSAGE/);
    expect(failing).toContain(`failed         ${config.revision}`);
    expect(failing).toContain(String.raw`first line\u000a\u001b[2J\u202e`);
    expect(failing).toContain('yy');
    expect(failing).not.toContain('y'.repeat(99));
    expect((await cli(['agents', 'list', '--failing', '--not-failing'])).code).toBe(2);
    const shown = (await cli(['agents', 'show', id])).stdout;
    expect(shown).toMatch(/^outcomes\n {2}hour\n {4}success +1\n/m);
    expect(shown).toMatch(/^ {2}day\n/m);
    expect(shown).not.toMatch(HIDDEN);

    const failed = (await json('task', 'list', '--agent', id, '--outcome', 'error', '--from', '1h')).items;
    expect(failed.map((task: Json) => task.id).toSorted()).toEqual(ids.slice(1));
    expect(failed[0]).toMatchObject({ last_error: said, last_agent_id: agent.agent_id });
    expect((await json('task', 'list', '--agent', id, '--to', '1h')).items).toEqual([]);
    const rows = await cli(['task', 'list', '--agent', id]);
    expect(rows.stdout).not.toMatch(HIDDEN);
    expect(rows.stdout).toMatch(/LAST_OUTCOME +LAST_AGENT_ID +LAST_ENDED_AT +LAST_ERROR/);
    const [held] = await server.enqueue(dnsTask({ priority: 99 }));
    await server.agent(agent, '/claim', { capacities: { dns: 1 } });
    const counted = await json('task', 'cancel', '--agent', id, '--dry-run');
    expect(counted).toEqual({ matched: 1, changed: 0 });
    expect(await json('task', 'cancel', '--agent', id)).toEqual({ matched: 1, changed: 1 });
    expect((await json('task', 'get', String(held))).state).toBe('cancelled');
    const retried = await json('task', 'retry', '--outcome', 'expired', '--from', '1h', '--to', '1s');
    expect(retried).toEqual({ matched: 0, changed: 0 });
    expect((await cli(['task', 'cancel', '7', '--outcome', 'error'])).code).toBe(2);
  });

  it('takes instants as a time from now', async () => {
    const before = Date.now();
    const { tasks } = await json(
      'task',
      'add',
      'dns',
      'query=later.example',
      '--run-at',
      '+10m',
      '--not-after',
      '1d',
    );
    const task = await json('task', 'get', String(tasks[0].id));
    expect(Date.parse(task.run_at) - before).toBeGreaterThanOrEqual(600_000);
    expect(Date.parse(task.not_after) - Date.parse(task.run_at)).toBeGreaterThan(86_000_000 - 600_000);
    expect((await json('audit', 'list', '--since', '2h')).items.length).toBeGreaterThan(0);
    expect((await json('audit', 'list', '--until', '2h')).items).toEqual([]);
  });

  it('watches until it is interrupted, and clears nothing but a terminal', async () => {
    const ctrlC = new AbortController();
    let shown = 0;
    const { code, stdout } = await run(['task', 'stats', '--watch', '1'], {
      cwd: server.folder,
      env: finding(server.url),
      signal: ctrlC.signal,
      onOutput: () => {
        if (++shown === 2) ctrlC.abort();
      },
    });
    expect([code, shown, stdout.includes('\u001b')]).toEqual([0, 2, false]);
  });

  // What the server answers, in turns.
  it.each([
    [[], ['there', 'away', 'away', 'there', 'away', 'there'], 2],
    [['--json'], ['there', 'away', 'there'], 1],
  ] as const)(
    'watches on while its server is away, and says so once: %j',
    async (format, answers, timesAway) => {
      const ctrlC = new AbortController();
      const stats = await json('task', 'stats');
      let looks = 0;
      const between = createServer((_request, response) => {
        const isAway = answers[looks++] === 'away';
        // Not repeated by the command itself: it would have to wait for too long.
        response.writeHead(isAway ? 503 : 200, { 'content-type': 'application/json', 'retry-after': '60' });
        const error = { error: 'ERR_UNAVAILABLE', message: 'It stops.', retryable: true };
        response.end(JSON.stringify(isAway ? error : stats));
      });
      await once(between.listen(0, '127.0.0.1'), 'listening');
      let shown = 0;
      const { code, stdout, stderr } = await run(['task', 'stats', '--watch', '1', ...format], {
        cwd: server.folder,
        env: finding(`http://127.0.0.1:${(between.address() as AddressInfo).port}`),
        signal: ctrlC.signal,
        onOutput: () => {
          if (++shown === timesAway + 1) ctrlC.abort();
        },
      });
      between.close();
      expect([code, shown, looks]).toEqual([0, timesAway + 1, answers.length]);
      expect(stdout).not.toContain('It stops.');
      // Once for each time that it was away.
      expect(stderr.match(/It stops\./g)).toHaveLength(timesAway);
      expect(stderr.match(/Ctrl-C/g) ?? []).toHaveLength(format.length === 0 ? timesAway : 0);
    },
  );

  it('does not watch what never answered, nor what is refused', async () => {
    const never = await cli(['task', 'stats', '--watch', '1', '--timeout', '1'], {
      URL: 'http://127.0.0.1:9',
    });
    expect([never.code, never.stdout]).toEqual([3, '']);
    const refused = await cli(['task', 'stats', '--watch', '1'], { TOKEN: 'of-somebody-else-altogether' });
    expect([refused.code, refused.stdout]).toEqual([1, '']);
  });

  it('shows the fleet, the queue and what goes wrong on one page, once or as JSON', async () => {
    const { hostname, agent_id, auth_token } = {
      hostname: 'probe-top',
      ...(await server.register('probe-top')),
    };
    const who = { agent_id, auth_token };
    await server.enqueue(
      ...Array.from({ length: 6 }, () => dnsTask({ priority: 1_000 }, { server: '192.0.2.77' })),
    );
    const { leases } = (await server.agent(who, '/claim', { capacities: { dns: 6 } })).body;
    const completed = leases.map(({ lease_id }: { lease_id: number }) => ({
      ...{ lease_id, outcome: 'error' },
      observations: [{ name: 'error', value: 'refused \u001b[2J' }],
    }));
    await server.agent(who, '/report', { completed, cancelled: [] });
    // Counts are written a moment later.
    const top = () => json('top');
    const look = await until('the agent is on the page', top, {
      isDone: ({ agents }) => agents.some((one: { id: number }) => one.id === agent_id),
      everyMs: 200,
    });
    expect(look).toMatchObject({
      agents: expect.arrayContaining([
        expect.objectContaining({
          hostname,
          outcomes: expect.objectContaining({ hour: expect.objectContaining({ error: 6 }) }),
        }),
      ]),
      targets: expect.arrayContaining([expect.objectContaining({ target: '192.0.2.77:53', error: 6 })]),
      fleet: { online: expect.any(Number) },
    });
    expect(look.stats.depths).toContainEqual(expect.objectContaining({ kind: 'dns', state: 'completed' }));
    const { code, stdout } = await cli(['top', '--once']);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^FLEET {3}failing \d+ {2}silent \d+ {2}online \d+ {2}offline \d+/m);
    expect(stdout).toMatch(/^dns +192\.0\.2\.77:53 +6 /m);
    expect(stdout).toMatch(/probe-top +online/);
    // What an agent says is shown, and does nothing to the terminal.
    expect(stdout).toContain('refused \\u001b[2J');
    expect(stdout).not.toContain('\u001b');
  });

  it('draws the page in place on a terminal, as much as fits, until it is interrupted', async () => {
    const ctrlC = new AbortController();
    let pages = 0;
    const { code, stdout } = await run(['top', '--every', '1'], {
      ...{ cwd: server.folder, env: finding(server.url), signal: ctrlC.signal },
      terminal: { columns: 60, rows: 7 },
      onOutput: (text) => {
        if (text.includes('completed') && ++pages === 2) ctrlC.abort();
      },
    });
    expect([code, pages]).toEqual([0, 2]);
    // biome-ignore lint/suspicious/noControlCharactersInRegex: what a terminal is told
    const drawn = stdout.replace(/\u001b\[[\d;?]*[a-zA-Z]/g, '');
    expect(drawn).toMatch(/enqueued \d+(?:\.\d)?\/s {2}completed/);
    for (const line of drawn.split('\n')) expect(line.length).toBeLessThanOrEqual(60);
    // And that there is more.
    expect(drawn).toMatch(/^\.\.\.$/m);
    expect(drawn).not.toContain('FAILING AGENTS');
  });

  it('says below the page that the server is away, and draws the next on a screen of its own', async () => {
    const ctrlC = new AbortController();
    let looks = 0;
    const between = createServer(async ({ url = '', headers }, response) => {
      const isAway = url === '/v1/tasks/stats' && ++looks === 2;
      const authorization = String(headers.authorization);
      const answer = await server.request('GET', url, { headers: { authorization } });
      if (!isAway) return passOn(answer, response);
      const error = { error: 'ERR_UNAVAILABLE', message: 'It stops.', retryable: true };
      response.writeHead(503, { 'content-type': 'application/json', 'retry-after': '60' });
      response.end(JSON.stringify(error));
    });
    await once(between.listen(0, '127.0.0.1'), 'listening');
    const events: string[] = [];
    const { code, stderr } = await run(['top', '--every', '1'], {
      ...{ cwd: server.folder, env: finding(`http://127.0.0.1:${(between.address() as AddressInfo).port}`) },
      ...{ signal: ctrlC.signal, terminal: { columns: 80, rows: 40 } },
      onOutput: (text) => {
        if (text.includes('\u001b[2J')) events.push('clear');
        if (text.includes('FLEET')) events.push('page');
        if (events.filter((event) => event === 'page').length === 2) ctrlC.abort();
      },
    });
    between.close();
    expect([code, events]).toEqual([0, ['clear', 'page', 'clear', 'page']]);
    expect(stderr.match(/It stops\./g)).toHaveLength(1);
  });

  it.each(['bash', 'zsh', 'fish'])('completes every command in %s', async (shell) => {
    const { code, stdout } = await cli(['completion', shell]);
    expect(code).toBe(0);
    for (const word of ['windows', 'limits', 'lift', 'task', 'cancel', 'idempotency-key', 'dry-run'])
      expect(stdout).toContain(word);
    if (shell !== 'bash') return;
    const script = `${stdout}\nCOMP_WORDS=(control-plane task ca); COMP_CWORD=2; _control_plane; echo "\${COMPREPLY[@]}"`;
    expect(execFileSync('bash', ['-c', script], { encoding: 'utf8' })).toBe('cancel\n');
  });

  it('completes the values of options that have a few, those that the API has', async () => {
    const { paths, components } = JSON.parse(
      readFileSync(join(__dirname, '../../docs/openapi.json'), 'utf8'),
    );
    const ofQuery = (path: string, name: string): string[] => {
      const { schema } = paths[path].get.parameters.find((each: Json) => each.name === name);
      return schema.enum ?? components.schemas[schema.$ref.split('/').at(-1)].enum;
    };
    const ofBody = (path: string, name: string): string[] => {
      const { $ref } = paths[path].post.requestBody.content['application/json'].schema;
      const { properties } = components.schemas[$ref.split('/').at(-1)];
      return properties[name].enum.filter((value: unknown) => value !== null);
    };
    const wanted: [string, string[]][] = [
      ['agents list --status', ofQuery('/v1/agents', 'status')],
      ['agents list --config-status', ofQuery('/v1/agents', 'config_status')],
      ['task list --state', ofQuery('/v1/tasks', 'state')],
      ['task list --outcome', ofQuery('/v1/tasks', 'outcome')],
      ['tasks list --outcome', ofQuery('/v1/tasks', 'outcome')],
      ['task cancel --outcome', ofBody('/v1/tasks/cancel', 'outcome')],
      ['task cancel --state', ofBody('/v1/tasks/cancel', 'state')],
      ['task retry --state', ofBody('/v1/tasks/retry', 'state')],
      ['windows list --scope', ofQuery('/v1/concurrency/windows', 'scope')],
      ['token create --role', ofBody('/v1/operator-tokens', 'role')],
      ['completion', ['bash', 'zsh', 'fish', '--help']],
    ];
    const scripts: Record<string, string> = {};
    for (const shell of ['bash', 'zsh', 'fish']) scripts[shell] = (await cli(['completion', shell])).stdout;
    for (const [line, values] of wanted) {
      const words = ['control-plane', ...line.split(' ')];
      const script = `${scripts.bash}\nCOMP_WORDS=(${words.join(' ')} ''); COMP_CWORD=${words.length}; _control_plane; echo "\${COMPREPLY[@]}"`;
      const offered = execFileSync('bash', ['-c', script], { encoding: 'utf8' }).trim().split(' ');
      expect([line, offered.sort()]).toEqual([line, [...values].sort()]);
      if (line === 'completion') continue;
      expect(scripts.zsh).toContain(`('${line}') entries=(`);
      expect(scripts.fish).toContain(`-l ${line.split('--')[1]} -x -a '`);
    }
  });

  it('ends well if the reader of a pipe closes it', async () => {
    const program = Program.spawn(CLI, ['task', 'list'], {
      env: { PATH: NODE_FIRST, CONTROL_PLANE_URL: server.url, CONTROL_PLANE_TOKEN: ADMIN_TOKEN },
    });
    program.child.stdout?.destroy();
    expect(await program.result()).toEqual({ code: 0, stdout: '', stderr: '' });
  });

  it.each([
    ['an unknown command', ['tsk']],
    ['no command of a group', ['task']],
    ['an unknown option', ['task', 'list', '--colour']],
    ['an invalid id', ['task', 'get', '0']],
    ['an invalid duration', ['token', 'create', 'a', '--role', 'viewer', '--expires-in', 'soon']],
    ['a token without a role', ['token', 'create', 'a']],
    ['a spec without a kind', ['task', 'add', 'query=example.com']],
    ['a field twice', ['task', 'add', 'dns', 'query=a', 'query=b']],
    ['a label twice', ['create-agent', '--label', 'a=1', '--label', 'a=2']],
    ['an invalid spec', ['task', 'add', 'dns', 'example.com']],
    ['a file with more beside it', ['task', 'add', 'dns', '--file', '-']],
    ['a file that is not there', ['task', 'add', '--file', 'nowhere.json']],
    ['a file without JSON', ['task', 'add', '--file', '-']],
    ['a wrong setting', ['task', 'list'], { URL: 'ftp://example.com' }],
    ['an address with credentials', ['task', 'list'], { URL: 'http://user:canary-pass@127.0.0.1' }],
    ['a token that can not be one', ['task', 'list'], { TOKEN: 'canary-pass with a space' }],
  ] as [string, string[], Record<string, string>?][])(
    'does nothing with %s',
    async (_what, args, env = {}) => {
      const { code, stdout, stderr } = await cli(args, env);
      expect([code, stdout]).toEqual([2, '']);
      expect(stderr).not.toBe('');
      expect(stderr).not.toContain('canary-pass');
    },
  );

  it.each([
    [['task', 'get', 'abc'], "the id 'abc' is not a whole number", 'task get'],
    [['task', 'cancel', '0'], "the id '0' is not a whole number from 1", 'task cancel'],
    [
      ['agents', 'disable', 'by-hand'],
      "the id 'by-hand' is not a whole number: `control-plane agents list --hostname NAME` shows the id of an agent",
      'agents disable',
    ],
    [['agents', 'metrics', '0'], "the id '0' is not a whole number from 1", 'agents metrics'],
    [['task', 'ad'], "unknown command 'ad'\n(Did you mean add?)", 'task'],
    [['tsk'], "unknown command 'tsk'\n(Did you mean task?)", ''],
  ])('says what is wrong with %j, and which command explains it', async (args, said, command) => {
    const help = ['control-plane', command, '--help'].filter((part) => part !== '').join(' ');
    expect(await cli(args)).toEqual({ code: 2, stdout: '', stderr: `error: ${said}\nRun \`${help}\`.\n` });
  });

  it.each([
    ['tasks', 'list'],
    ['configs', 'list'],
    ['tokens', 'list'],
  ])('takes the plural: %s %s', async (plural, command) => {
    expect(await cli([plural, command, '--json'])).toEqual(
      await cli([plural.slice(0, -1), command, '--json']),
    );
  });

  it.each([['--help'], ['task list'], ['doctor --help']])('loads nothing of the server for %s', (line) => {
    const listLoaded = `process.on('exit', () => console.error(JSON.stringify(Object.keys(require.cache))));
      require(${JSON.stringify(CLI)});`;
    const { stdout, stderr } = spawnSync(
      process.execPath,
      ['-e', listLoaded, 'control-plane', ...line.split(' ')],
      {
        env: { PATH: NODE_FIRST, CONTROL_PLANE_URL: 'http://127.0.0.1:3', CONTROL_PLANE_TOKEN: ADMIN_TOKEN },
        encoding: 'utf8',
      },
    );
    const loaded: string[] = JSON.parse(stderr.trim().split('\n').at(-1) as string);
    expect(stdout === '').toBe(line === 'task list');
    expect(loaded.some((file) => file.includes('/node_modules/commander/'))).toBe(true);
    const heavy =
      /\/node_modules\/(?:@nestjs|@opentelemetry|better-sqlite3|class-validator|fastify|pg|pino|rxjs|semver|typeorm)\/|\/dist\/(?:app|hooks|extension-loader)\.js$/;
    expect(loaded.filter((file) => heavy.test(file))).toEqual([]);
  });

  it('explains every command, with an example', async () => {
    const commandsOf = (help: string) =>
      [
        ...(help.split('\nCommands:\n')[1] ?? '')
          .split('\n\n', 1)
          .join('')
          .matchAll(/^ {2}([a-z-]+)/gm),
      ]
        .map(([, name]) => name as string)
        .filter((name) => name !== 'help');
    const help = async (...path: string[]) => {
      const { code, stdout } = await cli([...path, '--help']);
      expect(code).toBe(0);
      return stdout;
    };
    const top = commandsOf(await help());
    expect(top).toHaveLength(18);
    for (const name of top) {
      const text = await help(name);
      const verbs = commandsOf(text);
      if (verbs.length > 0)
        expect(await help(name, verbs[0] as string)).toMatch(/\nExamples:\n {2}\$ control-plane /);
      else if (!['serve', 'migrate', 'doctor'].includes(name)) expect(text).toContain('\nExamples:\n');
    }
  });

  it('explains why a task does not run', async () => {
    const place = ['--kind', 'http', '--target', 'why.example:80'];
    await json('limits', 'set', ...place, '--limit', '0');
    const { tasks } = await json('task', 'add', 'http', 'url=http://why.example/');
    const id = String(tasks[0].id);
    const { stdout } = await cli(['task', 'why', id]);
    expect(stdout).toMatch(
      /^No agent has asked for http in the last day\. To let it run: bring an agent .*\n\n/,
    );
    expect(stdout).toMatch(/^reason +no_agent$/m);
    expect(stdout).toMatch(/^ +limit +0$/m);
    expect(stdout).toMatch(/^no_agent +bring_agent /m);
    expect(stdout).toMatch(/^window_full +raise_limit +http .*why\.example:80 +1$/m);
    expect(await json('task', 'why', id)).toMatchObject({
      task_id: Number(id),
      reason: 'no_agent',
      lease: null,
    });
    expect((await cli(['task', 'why'])).code).toBe(2);
    expect((await cli(['task', 'why', '999999'])).stderr).toContain('ERR_NOT_FOUND');
    await json('task', 'cancel', id);
    await json('limits', 'lift', ...place);
  });
});

describe('the command line between it and the server', () => {
  type Handler = (request: IncomingMessage, response: ServerResponse, count: number) => void;
  let handler: Handler;
  let count = 0;
  const between = createServer((request, response) => handler(request, response, ++count));
  let url: string;
  beforeAll(async () => {
    between.listen(0, '127.0.0.1');
    await once(between, 'listening');
    url = `http://127.0.0.1:${(between.address() as AddressInfo).port}`;
  });
  beforeEach(() => {
    count = 0;
  });
  afterAll(() => {
    between.close();
    between.closeAllConnections();
  });

  it('sends a task again when the answer was lost, and it is enqueued once', async () => {
    const server = await TestServer.start();
    handler = async (request, response, nth) => {
      const chunks: Buffer[] = [];
      for await (const chunk of request) chunks.push(chunk);
      const answer = await server.request(request.method as string, request.url as string, {
        headers: request.headers as Record<string, string>,
        body: Buffer.concat(chunks),
      });
      if (nth === 1) request.socket.destroy();
      else passOn(answer, response);
    };
    const { code, stdout } = await run(['task', 'add', 'dns', 'query=example.com', '--json'], {
      env: finding(url),
    });
    const tasks = await server.rows('SELECT id FROM tasks');
    expect([code, count, tasks.length]).toEqual([0, 2, 1]);
    expect(JSON.parse(stdout).tasks[0].id).toBe(tasks[0].id);
    await server.stop();
  });

  it('sends nothing again that would happen twice, and says so', async () => {
    handler = (request) => request.socket.destroy();
    const { code, stderr } = await run(['token', 'create', 'a', '--role', 'viewer'], { env: finding(url) });
    expect([code, count]).toEqual([3, 1]);
    expect(stderr).toContain('Whether it had an effect is not known.');
  });

  it('tells by which key to go on when it gives up', async () => {
    handler = (request) => request.socket.destroy();
    const { code, stderr } = await run(['task', 'add', 'dns', 'query=example.com'], { env: finding(url) });
    expect([code, count]).toEqual([3, 3]);
    expect(stderr).toMatch(/--idempotency-key [0-9a-f-]{36}\n$/);
  });

  const envelope = (error: string, retryable: boolean) =>
    JSON.stringify({ error, message: 'Said so.', retryable });

  it.each([
    [
      'a quota that lets in soon',
      429,
      { 'retry-after': '1' },
      envelope('ERR_RATE_LIMITED', true),
      3,
      3,
      'Try again in 1 s',
    ],
    [
      'a quota that lets in late',
      429,
      { 'retry-after': '600' },
      envelope('ERR_RATE_LIMITED', true),
      3,
      1,
      'Try again in 600 s',
    ],
    ['an overload', 503, {}, envelope('ERR_UNAVAILABLE', true), 3, 3, 'ERR_UNAVAILABLE'],
    ['wrong credentials', 401, {}, envelope('ERR_UNAUTHORIZED', false), 1, 1, 'from CONTROL_PLANE_TOKEN'],
    ['a proxy without a server', 502, { 'content-type': 'text/html' }, '<h1>Bad Gateway</h1>', 3, 3, 'proxy'],
    [
      'something else',
      200,
      { 'content-type': 'text/html' },
      '<h1>Welcome</h1>',
      1,
      1,
      "not a control plane's answer",
    ],
    ['broken JSON', 200, {}, '{"items": [', 1, 1, "not a control plane's answer"],
    ['a redirect', 302, { location: 'http://127.0.0.1:1/' }, '', 1, 1, '302'],
  ] as [string, number, Record<string, string>, string, number, number, string][])(
    'answers %s with a clear line',
    async (_what, status, headers, body, exitCode, calls, says) => {
      handler = (_request, response) =>
        response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(body);
      const { code, stdout, stderr } = await run(['task', 'list'], { env: finding(url) });
      expect([code, count, stdout]).toEqual([exitCode, calls, '']);
      expect(stderr).toContain(says);
      expect(stderr).not.toContain(ADMIN_TOKEN);
    },
  );

  it('does not wait forever', async () => {
    handler = () => undefined;
    const { code, stderr } = await run(['task', 'retry', '1', '--timeout', '1'], { env: finding(url) });
    expect([code, count]).toEqual([3, 1]);
    expect(stderr).toContain('gave no answer within 1 s');
  });
});

describe('the command line without a server', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
  });
  afterEach(async () => {
    await endAll();
    rmSync(folder, { recursive: true, force: true });
  });

  // Where nothing listens, so that no server that runs on this machine by chance is asked.
  const NOBODY = 'http://127.0.0.1:3';
  const cli = (args: string[], env: Record<string, string> = {}) => run(args, { cwd: folder, env });

  it('migrates, makes a token and an agent on the database itself, and verifies its audit log', async () => {
    expect(await cli(['migrate'])).toMatchObject({ code: 0, stdout: expect.stringMatching(/^Applied /) });
    expect((await cli(['migrate'])).stdout).toBe('The database is current.\n');
    const made = await cli(['token', 'create', 'first', '--role', 'admin', '--json']);
    expect([made.code, made.stderr]).toEqual([0, expect.stringContaining('No server runs on')]);
    const agent = await cli(['create-agent', 'probe-1', '--json']);
    const verified = await cli(['audit', 'verify', '--json']);
    expect(JSON.parse(verified.stdout)).toMatchObject({ intact: true, last_id: 2 });

    const { token } = JSON.parse(made.stdout);
    copyFileSync(join(folder, 'control-plane.db'), join(folder, 'test.db'));
    const server = await TestServer.start({}, { folder });
    const headers = { authorization: `Bearer ${token}` };
    expect((await server.agent(JSON.parse(agent.stdout), '/heartbeat')).status).toBe(200);
    const { body } = await server.request('GET', '/v1/audit?action=operator-token.create', { headers });
    expect(body.items).toContainEqual(
      expect.objectContaining({ operator_name: 'command line', operator_token_id: null, address: 'local' }),
    );
    await server.database.write((tx) => tx.run(`UPDATE audit_log SET operator_name = 'x' WHERE id = 2`));
    const altered = await cli(['audit', 'verify'], { DATABASE_URL: 'sqlite://test.db' });
    expect([altered.code, altered.stdout]).toEqual([1, expect.stringMatching(/^broken_at +2$/m)]);
    // A server has the database, so this is not the way in: the token that it gave itself ended with it.
    expect(
      (await cli(['token', 'create', 'x', '--role', 'admin'], { DATABASE_URL: 'sqlite://test.db' })).code,
    ).toBe(3);
    await server.stop({ keep: true });
  });

  it('says in a line why an audit log can not be verified', async () => {
    writeFileSync(join(folder, 'text.db'), 'not a database'.repeat(1_000));
    writeFileSync(join(folder, 'empty.db'), '');
    for (const [name, said] of [
      ['text.db', /^\S+text\.db can't be opened: file is not a database \(SQLITE_NOTADB\)\.\n$/],
      ['empty.db', /^\S+empty\.db lacks migrations: control-plane migrate applies them\.\n$/],
    ] as const) {
      const { code, stdout, stderr } = await cli(['audit', 'verify'], { DATABASE_URL: `sqlite://${name}` });
      expect([code, stdout, stderr]).toEqual([1, '', expect.stringMatching(said)]);
    }
  });

  it('ends with its exit code if nobody reads why', async () => {
    const program = Program.spawn(CLI, ['tsk'], { env: { PATH: NODE_FIRST } });
    program.child.stderr?.destroy();
    expect(await program.ended()).toBe(2);
  });

  it('refuses on the database itself what the server would refuse', async () => {
    await cli(['migrate']);
    const { code, stderr } = await cli(['token', 'create', 'a', '--role', 'king']);
    expect([code, stderr]).toEqual([1, expect.stringMatching(/ERR_VALIDATION\)\n {2}role: /)]);
  });

  it.each([
    ['task', 'list'],
    ['agents', 'disable', '1'],
    ['config', 'list'],
  ])('says that %s %s needs a server', async (...args) => {
    for (const env of [{ URL: NOBODY }, finding(NOBODY)]) {
      const { code, stdout, stderr } = await cli(args, env);
      expect([code, stdout]).toEqual([3, '']);
      expect(stderr).toContain('This needs a running server');
    }
    expect(existsSync(join(folder, 'control-plane.db'))).toBe(false);
  });

  it('serves, is found by the settings that it was started with, and stops when it is asked to', async () => {
    // A process: what it leaves, how it ends by a signal, and how the program is started by its name.
    const program = Program.spawn(CLI, ['serve'], {
      cwd: folder,
      env: {
        PATH: NODE_FIRST,
        CONTROL_PLANE_BIND: '127.0.0.1:0',
        CONTROL_PLANE_DRAIN_MS: '0',
        CONTROL_PLANE_TOKEN: 'of-somebody-who-calls-it',
      },
    });
    await program.printed(/"url":/);
    const path = join(folder, 'control-plane.server.json');
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(JSON.parse(readFileSync(path, 'utf8'))).toMatchObject({ pid: program.child.pid });
    const healthy = await cli(['doctor']);
    expect([healthy.code, healthy.stdout]).toEqual([
      0,
      expect.stringContaining('ok    lock        a process serves'),
    ]);
    expect(healthy.stdout).not.toMatch(/^(warn|FAIL)/m);
    expect((await spawnCommand(['task', 'stats'], { cwd: folder })).code).toBe(0);
    const elsewhere = await cli(['doctor'], { URL: NOBODY });
    expect([elsewhere.code, elsewhere.stdout]).toEqual([1, expect.stringMatching(/^FAIL {2}server /m)]);
    expect(await program.end('SIGTERM')).toBe(0);
    expect(existsSync(path)).toBe(false);
  });

  it('says none of an empty queue', async () => {
    const server = await TestServer.start({}, { folder });
    const { code, stdout, stderr } = await cli(['task', 'stats'], finding(server.url));
    expect([code, stdout, stderr]).toEqual([
      0,
      expect.stringMatching(/^oldest_queued_age_ms +-\n$/),
      'none\n',
    ]);
    await server.stop({ keep: true });
  });

  it('finds what is wrong with an installation', async () => {
    const verdicts = async (env: Record<string, string> = {}) => {
      const { code, stdout } = await cli(['doctor'], env);
      const lines = stdout.split('\n').filter((line) => line !== '');
      return {
        code,
        found: lines
          .filter((line) => !line.startsWith('ok'))
          .map((line) => line.split(/ {2,}/).slice(0, 2).join(' ')),
      };
    };
    const without = { DATABASE_URL: 'sqlite://test.db' };
    expect(await verdicts(without)).toEqual({ code: 0, found: ['warn database', 'warn server'] });
    expect(await verdicts({ LEASE_DURATION: '5' })).toEqual({ code: 1, found: ['FAIL settings'] });
    expect(await verdicts({ DATABASE_URL: 'sqlite://nowhere/test.db' })).toEqual({
      code: 1,
      found: ['FAIL folder', 'warn server'],
    });
    await (await TestServer.start({ ADMIN_TOKEN: 'default' }, { folder })).stop({ keep: true });
    // The umask is the process's, and here that is the tests'.
    chmodSync(join(folder, 'test.db'), 0o600);
    expect(await verdicts(without)).toEqual({ code: 0, found: ['warn server'] });

    chmodSync(join(folder, 'test.admin-token'), 0o644);
    chmodSync(join(folder, 'test.db'), 0o640);
    expect(await verdicts(without)).toEqual({ code: 1, found: ['warn files', 'FAIL files', 'warn server'] });
    chmodSync(join(folder, 'test.admin-token'), 0o600);
    for (const suffix of ['', '-wal', '-shm']) chmodSync(join(folder, `test.db${suffix}`), 0o600);
    const tomorrow = Date.now() / 1_000 + 86_400;
    utimesSync(join(folder, 'test.db'), tomorrow, tomorrow);
    expect(await verdicts(without)).toEqual({ code: 1, found: ['FAIL clock', 'warn server'] });
    writeFileSync(join(folder, 'test.db'), 'not a database'.repeat(1_000));
    expect((await verdicts(without)).found).toContain('FAIL database');
  });

  it('says of a folder in place of the database what every command says', async () => {
    mkdirSync(join(folder, 'test.db'));
    const env = { DATABASE_URL: 'sqlite://test.db', BIND: '127.0.0.1:0' };
    const sentence = `${join(folder, 'test.db')} can't be opened: it is not a file.`;
    expect(
      (await cli(['doctor'], env)).stdout.split('\n').filter((line) => /^(warn|FAIL)/.test(line)),
    ).toEqual([`FAIL  database    ${sentence}`, expect.stringMatching(/^warn {2}server /)]);
    for (const command of [
      'migrate',
      'create-agent',
      'audit verify',
      'backup copy.db',
      'import-original test.db',
    ])
      expect([command, (await cli(command.split(' '), env)).stderr]).toEqual([
        command,
        expect.stringMatching(/^\S*test\.db can't be opened: it is not a file\.\n$/),
      ]);
    expect(readdirSync(folder)).toEqual(['test.db']);
  });
});

describe('the command line and the token of the admin', () => {
  let folder: string;
  let server: TestServer;
  const stranger = createServer((request, response) => {
    seen.push(JSON.stringify(request.headers));
    answer(request, response);
  });
  let seen: string[];
  let answer: (request: IncomingMessage, response: ServerResponse) => void;
  let url: string;
  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
    server = await TestServer.start({}, { folder });
    server.announce();
    stranger.listen(0, '127.0.0.1');
    await once(stranger, 'listening');
    url = `http://127.0.0.1:${(stranger.address() as AddressInfo).port}`;
  });
  beforeEach(() => {
    seen = [];
    answer = (_request, response) =>
      response.writeHead(200, { 'content-type': 'application/json' }).end('{"depths":[],"items":[]}');
  });
  afterAll(async () => {
    stranger.close();
    stranger.closeAllConnections();
    await server.stop();
  });

  const own = { DATABASE_URL: 'sqlite://test.db', ADMIN_TOKEN };
  const cli = (args: string[], env: Record<string, string> = {}) =>
    run(args, { cwd: folder, env: { ...own, ...env } });
  const path = () => join(folder, 'test.server.json');
  /** Has the server's file say something else for one piece of work. */
  const withFile = async (change: object, work: () => Promise<void>) => {
    const text = readFileSync(path(), 'utf8');
    writeFileSync(path(), JSON.stringify({ ...JSON.parse(text), ...change }));
    await work().finally(() => writeFileSync(path(), text));
  };

  it('finds the server on whatever port it listens, also by another name of it, and shows it the token', async () => {
    expect((await cli(['task', 'stats'])).code).toBe(0);
    expect((await cli(['task', 'stats'], { URL: server.url.replace('127.0.0.1', 'localhost') })).code).toBe(
      0,
    );
    expect((await cli(['create-agent', '--json'])).code).toBe(0);
    expect((await cli(['doctor'])).stdout).toMatch(/^ok {4}server +it answers at \S+, is ready, /m);
  });

  it('does not call a server well that is not ready', async () => {
    const draining = jest.spyOn(server.app.get(Lifecycle), 'draining', 'get').mockReturnValue(true);
    try {
      const { code, stdout } = await cli(['doctor']);
      expect([code, stdout]).toEqual([
        1,
        expect.stringMatching(/^FAIL {2}server +it answers, but is not ready: .*stopping/m),
      ]);
    } finally {
      draining.mockRestore();
    }
  });

  it('takes the token of the file, if the setting says none', async () => {
    writeFileSync(join(folder, 'test.admin-token'), `${ADMIN_TOKEN}\n`, { mode: 0o600 });
    const { DATABASE_URL } = own;
    expect((await run(['task', 'stats'], { cwd: folder, env: { DATABASE_URL } })).code).toBe(0);
    rmSync(join(folder, 'test.admin-token'));
  });

  it('sends it to no other program that listens where the server did', async () => {
    await withFile({ url }, async () => {
      for (const args of [['task', 'list'], ['create-agent'], ['token', 'create', 'a', '--role', 'admin']]) {
        const { code, stdout, stderr } = await cli(args);
        expect([code, stdout]).toEqual([3, '']);
        expect(stderr).toContain('is not the server of');
      }
      const { code, stdout } = await cli(['doctor']);
      expect([code, stdout]).toEqual([
        1,
        expect.stringMatching(/^FAIL {2}server +what answers at .* is not the server/m),
      ]);
    });
    expect(seen.length).toBeGreaterThan(0);
    expect(seen.join()).not.toContain(ADMIN_TOKEN);
    expect(seen.join()).not.toContain('authorization');
  });

  it('sends it to no program that has the server answer the challenge in its place', async () => {
    answer = async (request, response) => {
      const passedOn = await server.request('GET', request.url as string, {
        headers: { 'x-control-plane-challenge': String(request.headers['x-control-plane-challenge']) },
      });
      const proof = passedOn.headers.get('x-control-plane-proof') ?? '';
      seen.push(`proof ${proof}`);
      response
        .writeHead(200, { 'content-type': 'application/json', 'x-control-plane-proof': proof })
        .end('{}');
    };
    await withFile({ url }, async () => {
      expect((await cli(['task', 'list'])).code).toBe(3);
    });
    expect((await cli(['task', 'list'], { URL: url })).code).toBe(2);
    expect(seen.filter((one) => /^proof [0-9a-f]{64}$/.test(one))).toHaveLength(2);
    expect(seen.join()).not.toContain(ADMIN_TOKEN);
  });

  it('sends it to no address of the setting that is not proven, and the one that was chosen for it', async () => {
    const refused = await cli(['task', 'list'], { URL: url });
    expect([refused.code, refused.stderr]).toEqual([2, expect.stringContaining('CONTROL_PLANE_TOKEN')]);
    expect(seen.join()).not.toContain('authorization');
    expect((await cli(['task', 'list'], { URL: url, TOKEN: 'chosen-for-this-one' })).code).toBe(0);
    expect(seen.at(-1)).toContain('Bearer chosen-for-this-one');
    // It answers as the API would, and may be anything.
    const { code, stdout } = await cli(['doctor'], { URL: url, TOKEN: 'chosen-for-this-one' });
    expect([code, stdout]).toEqual([0, expect.stringMatching(/^warn {2}server .*has not proven/m)]);
  });

  it('sends a chosen token to the server of this machine only, if no address is set', async () => {
    expect((await cli(['task', 'stats'], { TOKEN: ADMIN_TOKEN })).code).toBe(0);
    await withFile({ url }, async () => {
      expect((await cli(['task', 'stats'], { TOKEN: 'chosen' })).code).toBe(3);
    });
    expect(seen.join()).not.toContain('chosen');
  });

  const POSTGRES = 'postgres://control_plane@127.0.0.1:1/control_plane';
  /** As a server on PostgreSQL, of the address, says which database it has. */
  const onPostgres = (address: string) => ({
    database: databaseIdentity({ type: 'postgres', url: address } as DatabaseTarget),
  });

  it.each([
    ['another file of the same stem', 'sqlite://test.sqlite', 'test', {}],
    ['PostgreSQL, beside a server on SQLite', POSTGRES, 'control-plane', {}],
    ['SQLite, beside a server on PostgreSQL', 'sqlite://test.db', 'test', onPostgres(POSTGRES)],
    ['another database of PostgreSQL', POSTGRES, 'control-plane', onPostgres(`${POSTGRES}_2`)],
  ])('takes no server of another database for its own: %s', async (_what, database, stem, change) => {
    const left = join(folder, `${stem}.server.json`);
    const written = readFileSync(path(), 'utf8');
    const things = async () => [
      (await server.operator('GET', '/v1/agents')).body,
      (await server.operator('GET', '/v1/operator-tokens')).body.items.map(({ id }: { id: number }) => id),
    ];
    const before = await things();
    const env = { DATABASE_URL: database };
    try {
      // At a listener that counts, and at the server itself, which would take the token.
      for (const at of [url, server.url]) {
        writeFileSync(left, JSON.stringify({ ...JSON.parse(written), url: at, ...change }), { mode: 0o600 });
        for (const args of [
          ['task', 'list'],
          ['create-agent', 'not-there'],
          ['agents', 'create', 'not-there'],
          ['token', 'create', 'a', '--role', 'admin'],
        ]) {
          const { code, stdout, stderr } = await cli(args, env);
          expect([code, stdout, stderr]).toEqual([
            3,
            '',
            expect.stringMatching(
              /^The server known here has another database: .*\nThis needs a running server/s,
            ),
          ]);
        }
        const { stdout } = await cli(['doctor'], env);
        expect(stdout).toMatch(/^(warn|FAIL) {2}server +The server known here has another database: /m);
        expect(stdout).not.toMatch(/^ok +server/m);
      }
    } finally {
      if (left !== path()) rmSync(left);
      writeFileSync(path(), written);
    }
    expect([seen, await things()]).toEqual([[], before]);
  });

  it('works on its own database without a server, whatever server the folder has', async () => {
    const env = { DATABASE_URL: 'sqlite://test.sqlite' };
    expect((await run(['migrate'], { cwd: folder, env })).code).toBe(0);
    const before = (await server.operator('GET', '/v1/agents')).body;
    await withFile({ url }, async () => {
      const made = await cli(['create-agent', 'of-the-other'], env);
      expect([made.code, made.stderr]).toEqual([0, expect.stringContaining('No server runs on')]);
    });
    expect([seen, (await server.operator('GET', '/v1/agents')).body]).toEqual([[], before]);
  });

  it.each([
    ['no JSON', '{"url":'],
    ['no database in it', JSON.stringify({ url: 'http://127.0.0.1:1', pid: 1, secret: 'x' })],
  ])('does not say that a file with %s is not there', async (_what, text) => {
    const left = join(folder, 'odd.server.json');
    writeFileSync(left, text, { mode: 0o600 });
    const { code, stderr } = await cli(['task', 'list'], { DATABASE_URL: 'sqlite://odd.db' });
    rmSync(left);
    expect([code, stderr]).toEqual([
      3,
      expect.stringContaining('odd.server.json is not one that this version reads'),
    ]);
  });

  it('trusts no file that others may have written', async () => {
    chmodSync(path(), 0o644);
    expect((await cli(['task', 'list'])).code).toBe(2);
    chmodSync(path(), 0o600);
    const elsewhere = join(folder, 'linked.server.json');
    symlinkSync(path(), elsewhere);
    expect((await cli(['task', 'list'], { DATABASE_URL: 'sqlite://linked.db' })).code).toBe(2);
    rmSync(elsewhere);
  });
});

describe('commands that make something without a server', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));
  const MAKING = [
    ['create-agent', 'probe'],
    ['agents', 'create'],
    ['token', 'create', 'a', '--role', 'admin'],
  ];

  it.each(MAKING)('make no database that nobody serves: %s %s', async (...args) => {
    const { code, stdout, stderr } = await run(args, { cwd: folder });
    expect([code, stdout]).toEqual([3, '']);
    expect(stderr).toMatch(/make start.*control-plane serve/);
    expect(readdirSync(folder)).toEqual([]);
  });

  it.each(MAKING)('need one on PostgreSQL, whatever the setting says: %s %s', async (...args) => {
    // Nothing listens there: what tried to reach the database would say that.
    const env = { DATABASE_URL: 'postgres://control_plane@127.0.0.1:1/control_plane', ADMIN_TOKEN };
    const { code, stderr } = await run(args, { cwd: folder, env });
    expect([code, stderr]).toEqual([3, expect.stringContaining('This needs a running server')]);
    expect(readdirSync(folder)).toEqual([]);
  });

  it('make no admin and no keys, and take nobody’s token away', async () => {
    const server = await TestServer.start({}, { folder });
    await server.stop({ keep: true });
    rmSync(join(folder, 'test.signing-key.pem'));
    const env = { DATABASE_URL: 'sqlite://test.db', ADMIN_TOKEN: 'another-token-of-another-admin' };
    expect((await run(['create-agent', 'probe'], { cwd: folder, env })).code).toBe(0);
    expect(readdirSync(folder).filter((name) => !name.startsWith('test.db'))).toEqual([]);
    const again = await TestServer.start({}, { folder });
    expect((await again.operator('GET', '/v1/agents')).body.items).toMatchObject([{ hostname: 'probe' }]);
    const { body } = await again.operator('GET', '/v1/operator-tokens');
    expect(body.items).toMatchObject([{ origin: 'setting', revoked_at: null }]);
    await again.stop({ keep: true });
  });

  it('leave a database alone that has to be migrated first', async () => {
    writeFileSync(join(folder, 'control-plane.db'), '');
    const { code, stderr } = await run(['create-agent'], { cwd: folder });
    expect([code, stderr]).toEqual([1, expect.stringContaining('control-plane migrate')]);
  });
});
