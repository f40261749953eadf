import { once } from 'node:events';
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { type AddressInfo, createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { inspectDatabase } from '../../src/database/open-database';
import { readSettings } from '../../src/settings';
import type { Json, Lease } from '../helpers/api';
import {
  ADMIN_TOKEN,
  type Credentials,
  credentialsOf,
  databaseIn,
  dnsTask,
  removeDatabaseIn,
} from '../helpers/harness';
import { endAll, Program, ServerProcess } from '../helpers/processes';
import { until } from '../helpers/until';

// Each test starts processes, and a machine that is busy with other tests is slow at that.
jest.setTimeout(120_000);

const ROOT = join(__dirname, '../..');
const EXAMPLE = join(ROOT, 'examples', 'whois-kind');
const MIGRATION = 'whois-kind/WhoisDomains1764000000000';

/** The working directories, each with its database. */
const databases = new Map<string, string>();

/** A working directory of its own, with files in it, and the built example outside of the program as its team has it. */
async function workplace(files: Record<string, string> = {}): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
  databases.set(folder, await databaseIn(folder));
  for (const part of ['package.json', 'dist'])
    cpSync(join(EXAMPLE, part), join(folder, 'whois-kind', part), { recursive: true });
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(join(folder, path, '..'), { recursive: true });
    writeFileSync(join(folder, path), text);
  }
  return folder;
}

const withExtensions = (folder: string, extensions: string, env: Record<string, string> = {}) => ({
  env: { DATABASE_URL: databases.get(folder) as string, EXTENSIONS: extensions, ...env },
});

/** Runs the program to its end: a server that can't start, or another command. */
async function finish(
  folder: string,
  extensions: string,
  args: string[] = ['serve'],
  env: Record<string, string> = {},
): Promise<{ code: number | null; output: string; errors: string }> {
  const program = Program.run(folder, { ...withExtensions(folder, extensions, env), args });
  const code = await program.ended();
  return { code, output: program.output, errors: program.errors };
}

/** Starts a server. Only in a process of its own does Node itself resolve what extensions import. */
const start = (folder: string, extensions: string): Promise<ServerProcess> =>
  ServerProcess.start(folder, withExtensions(folder, extensions));

async function stop(server: ServerProcess): Promise<void> {
  expect(await server.end('SIGTERM')).toBe(0);
}

/** Enqueues tasks and has them claimed. @returns their leases, in the order of the tasks */
async function lease(
  server: ServerProcess,
  who: Credentials,
  kinds: string[],
  ...tasks: object[]
): Promise<Lease[]> {
  await server.enqueue(...tasks);
  const capacities = Object.fromEntries(kinds.map((kind) => [kind, 10]));
  const { leases } = (await server.agent(who, '/claim', { capacities })).body;
  expect(leases).toHaveLength(tasks.length);
  return leases.sort((a, b) => a.task_id - b.task_id);
}

/** Returns when the log, which is written in blocks, has an entry with these fields. */
async function logged(server: ServerProcess, fields: object): Promise<void> {
  await until(`the log has ${JSON.stringify(fields)}`, () =>
    server.log.some((entry) => expect.objectContaining(fields).asymmetricMatch(entry)),
  );
}

/** The rows of a stopped server's database. */
function rowsOf(folder: string, sql: string): Promise<Json[]> {
  const { database } = readSettings({ CONTROL_PLANE_DATABASE_URL: databases.get(folder) });
  return inspectDatabase(database, (statements) => statements.rows(sql));
}

afterAll(async () => {
  await endAll();
  for (const folder of databases.keys()) await removeDatabaseIn(folder);
});

const whoisTask = (domain: string, fields: object = {}, server?: string) => ({
  kind: 'whois',
  spec: { domain, ...(server === undefined ? {} : { server }) },
  ...fields,
});

describe('the example extension', () => {
  let server: ServerProcess;
  let registry: Server;
  let registryAddress: string;
  let folder: string;
  const asked: string[] = [];

  beforeAll(async () => {
    folder = await workplace();
    registry = createServer((socket) => {
      socket.once('data', (query) => {
        asked.push(query.toString());
        const domain = query.toString().trim();
        socket.end(
          domain === 'free.example'
            ? 'No match for "FREE.EXAMPLE".\r\n'
            : [
                `   Domain Name: ${domain.toUpperCase()}`,
                '   Registrar: Registrar of Examples, Inc.',
                `   Registry Expiry Date: ${domain === 'soon.example' ? 2026 : 2031}-08-13T04:00:00Z`,
                '   Name Server: NS1.EXAMPLE.NET',
                '',
              ].join('\r\n'),
        );
      });
    }).listen(0, '127.0.0.1');
    await once(registry, 'listening');
    registryAddress = `127.0.0.1:${(registry.address() as AddressInfo).port}`;
    server = await start(folder, './whois-kind');
  });

  afterAll(async () => {
    await stop(server);
    registry.close();
  });

  it('leads from a task to what a real whois server said, by the routes of the extension', async () => {
    const enqueued = await server.operator('POST', '/v1/tasks', {
      tasks: ['later.example', 'soon.example', 'free.example'].map((domain) =>
        whoisTask(domain, {}, registryAddress),
      ),
    });
    expect(enqueued.status).toBe(201);
    const agent = Program.run(folder, {
      main: join(ROOT, 'examples/agent.mjs'),
      args: [
        ...['--server', server.url, '--hostname', 'whois-probe', '--tasks', '3'],
        ...['--check', join(EXAMPLE, 'check.mjs')],
      ],
    });
    expect([await agent.ended(), agent.errors]).toEqual([0, '']);
    expect(asked.sort()).toEqual(['free.example\r\n', 'later.example\r\n', 'soon.example\r\n']);

    const [first] = enqueued.body.tasks;
    const task = (await server.operator('GET', `/v1/tasks/${first.id}`)).body;
    expect(task).toMatchObject({ state: 'completed', kind: 'whois', target: registryAddress });
    expect(task.leases[0].result.observations).toEqual(
      expect.arrayContaining([
        { name: 'registered', value: true },
        { name: 'name_servers', value: ['ns1.example.net'] },
      ]),
    );

    const view = (domain: string, year: number | null) => ({
      domain,
      server: registryAddress,
      registrar: year === null ? null : 'Registrar of Examples, Inc.',
      expires_at: year === null ? null : `${year}-08-13T04:00:00.000Z`,
      checked_at: expect.stringMatching(/Z$/),
    });
    const all = await server.operator('GET', '/v1/whois/domains');
    expect(all).toMatchObject({ status: 200, body: { next_cursor: null } });
    expect(all.body.items).toHaveLength(3);
    expect(all.body.items).toEqual(
      expect.arrayContaining([
        view('later.example', 2031),
        view('soon.example', 2026),
        view('free.example', null),
      ]),
    );

    const { body: exposition } = await server.operator('GET', '/metrics');
    expect(exposition).toContain('control_plane_whois_domains_checked_total{expiry="said"} 2\n');
    expect(exposition).toContain('control_plane_whois_domains_checked_total{expiry="unsaid"} 1\n');

    const expiring = await server.operator('GET', '/v1/whois/domains?expires_before=2027-01-01T00:00:00Z');
    expect(expiring.body.items).toEqual([view('soon.example', 2026)]);
    const page = await server.operator('GET', '/v1/whois/domains?limit=2');
    const rest = await server.operator('GET', `/v1/whois/domains?limit=2&cursor=${page.body.next_cursor}`);
    expect([...page.body.items, ...rest.body.items]).toEqual(all.body.items);

    expect(await server.operator('DELETE', '/v1/whois/domains/Soon.example')).toMatchObject({ status: 204 });
    const { body: audit } = await server.operator('GET', '/v1/audit?action=whois-domain.forget');
    expect(audit.items).toMatchObject([{ subject: 'whois-domain/soon.example', operator_name: 'bootstrap' }]);
    expect(await server.operator('DELETE', '/v1/whois/domains/soon.example')).toMatchObject({
      status: 404,
      body: { error: 'ERR_NOT_FOUND', details: { domain: 'soon.example' } },
    });
  });

  it('is guarded, checked and answered as the program itself', async () => {
    const path = '/v1/whois/domains';
    expect(await server.request('GET', path)).toMatchObject({
      status: 401,
      body: { error: 'ERR_UNAUTHORIZED' },
    });
    const who = await server.register('probe');
    expect(await server.request('GET', path, { headers: credentialsOf(who) })).toMatchObject({ status: 401 });
    expect(await server.operator('GET', `${path}?limit=0&expires_before=soon&color=red`)).toMatchObject({
      status: 400,
      body: {
        error: 'ERR_VALIDATION',
        details: { limit: expect.any(String), expires_before: expect.any(String), color: expect.any(String) },
      },
    });
    expect(await server.operator('PUT', path, {})).toMatchObject({ status: 405 });
  });

  it('has its specs validated, and its targets counted in windows', async () => {
    const refused = await server.operator('POST', '/v1/tasks', {
      tasks: [
        whoisTask('nodots'),
        whoisTask('a.example', {}, 'bad host'),
        whoisTask('a.example', {}, 'host:0'),
        { kind: 'whois', spec: { domain: 'a.example', port: 43 } },
      ],
    });
    expect(refused).toMatchObject({ status: 400, body: { error: 'ERR_VALIDATION' } });
    expect(Object.keys(refused.body.details)).toEqual([
      'tasks.0.spec.domain',
      'tasks.1.spec.server',
      'tasks.2.spec.server',
      'tasks.3.spec.port',
    ]);

    const limit = { kind: 'whois', target: 'whois.iana.org', limit: 1 };
    expect(await server.operator('PUT', '/v1/concurrency/limits', { limits: [limit] })).toMatchObject({
      status: 200,
    });
    const { body } = await server.operator('POST', '/v1/tasks', {
      tasks: [
        whoisTask('a.example'),
        whoisTask('b.example', {}, 'WHOIS.iana.org'),
        whoisTask('c.example', {}, 'x'),
      ],
    });
    expect(body.tasks.map(({ state }) => state)).toEqual(['queued', 'queued', 'queued']);
    const window = async () => {
      const { body } = await server.operator(
        'GET',
        '/v1/concurrency/windows?kind=whois&target=whois.iana.org',
      );
      return body.items;
    };
    const shown = { scope: 'target', kind: 'whois', target: 'whois.iana.org', limit: 1 };
    expect(await window()).toMatchObject([{ ...shown, leased: 0, queued: 2, available: 1 }]);
    // One of the two that ask the limited server; the third asks another one.
    const agent = await server.register('claims-a-limited-server');
    const { leases } = (await server.agent(agent, '/claim', { capacities: { whois: 5 } })).body;
    expect(leases.map(({ spec }) => (spec as Json).domain)).toEqual(['a.example', 'c.example']);
    expect(await window()).toMatchObject([{ ...shown, leased: 1, queued: 1, available: 0 }]);
  });

  it('is in the API document, and not in the committed one', async () => {
    const { body: document } = await server.request('GET', '/docs-json');
    const { TaskInput, WhoisSpec, LeaseGrant } = document.components.schemas;
    expect(TaskInput.properties.kind.enum).toEqual(['dns', 'http', 'ping', 'tcp', 'trace', 'whois']);
    for (const { properties } of [TaskInput, LeaseGrant])
      expect(properties.spec.anyOf).toContainEqual({ $ref: '#/components/schemas/WhoisSpec' });
    expect(WhoisSpec).toMatchObject({
      required: ['domain'],
      properties: {
        kind: { enum: ['whois'] },
        domain: { type: 'string', maxLength: 253 },
        server: { type: 'string', nullable: true },
      },
    });
    const { get } = document.paths['/v1/whois/domains'];
    expect(get.security).toEqual([{ operator: [] }]);
    expect(get.parameters.map(({ name }: Json) => name).sort()).toEqual([
      'cursor',
      'expires_before',
      'limit',
    ]);
    expect(get.responses['200'].content['application/json'].schema).toEqual({
      $ref: '#/components/schemas/DomainPage',
    });
    expect(Object.keys(document.paths['/v1/whois/domains/{domain}'].delete.responses)).toContain('404');

    expect(readFileSync(join(ROOT, 'docs', 'openapi.json'), 'utf8')).not.toContain('whois');
  });
});

it('is the one that the guide shows, word for word', () => {
  const guide = readFileSync(join(ROOT, 'docs', 'extending.md'), 'utf8');
  const sections = guide.split('\n## ').slice(1, -1);
  for (const section of sections) {
    const files = [...section.matchAll(/\(\.\.\/(examples\/whois-kind\/[^)]+)\)/g)].map(([, file]) =>
      readFileSync(join(ROOT, file as string), 'utf8'),
    );
    const blocks = [...section.matchAll(/```(?:ts|json)\n([\s\S]*?)```/g)].map(([, text]) => text as string);
    for (const block of blocks) expect(files.some((file) => file.includes(block))).toBe(true);
  }
  expect(guide.match(/```(?:ts|json)/g)).toHaveLength(9);
});

/** An extension in plain JavaScript; `kind` is the body of its kind's class. */
const extension = (kind: string, rest = '') => `
  const { Module, Controller, Get } = require('@nestjs/common');
  const { IsOptional } = require('class-validator');
  const { TaskKind, Public } = require('dns-agent-control-plane/extension');
  class Spec {}
  for (const field of ['fail', 'n']) IsOptional()(Spec.prototype, field);
  class ProbeKind { ${kind} }
  TaskKind('probe', { spec: Spec })(ProbeKind);
  class ProbeModule {}
  const parts = { providers: [ProbeKind] };
  exports.default = ProbeModule;
  ${rest}
  Module(parts)(ProbeModule);
`;

const migration = (name: string, ...statements: string[]) =>
  `exports.migrations = [class ${name} { async up(runner) {
     for (const sql of ${JSON.stringify(statements)}) await runner.query(sql);
   } }];`;

describe('a kind that is told of reports', () => {
  let server: ServerProcess;
  let who: Credentials;
  let folder: string;
  const files = {
    'probe/index.js': extension(
      `
      target(spec) {
        if (spec.fail === 'target') throw new Error('no target');
        return spec.fail === 'text' ? 5 : 'somewhere';
      }
      async onReports(tx, reports) {
        await tx.run('INSERT INTO calls (reports) VALUES ($1)', JSON.stringify(reports));
        if (reports.some(({ spec }) => spec.fail === 'report')) throw new Error('this kind fails');
      }`,
      migration('Calls', 'CREATE TABLE calls (reports text)'),
    ),
  };

  beforeAll(async () => {
    folder = await workplace(files);
    server = await start(folder, './probe');
    who = await server.register('probe');
  });

  const probe = (spec: object) => ({ kind: 'probe', spec });
  const callsAfter = async (work: () => Promise<void>): Promise<Json[]> => {
    const before = (await calls()).length;
    await work();
    return (await calls()).slice(before);
  };
  const calls = async () =>
    (await rowsOf(folder, 'SELECT * FROM calls')).map(({ reports }) => JSON.parse(reports));

  it('is told once, in one call, of all that took effect, and of nothing else', async () => {
    const [one, two, three, other] = await lease(
      server,
      who,
      ['probe', 'dns'],
      ...[1, 2, 3].map((n) => probe({ n })),
      dnsTask(),
    );
    const report = {
      completed: [
        { lease_id: one.lease_id, outcome: 'success', observations: [{ name: 'rtt_ms', value: 3 }] },
        { lease_id: two.lease_id, outcome: 'timeout' },
        { lease_id: other.lease_id },
        { lease_id: 999_999 },
      ],
      cancelled: [{ lease_id: three.lease_id }],
    };
    const told = await callsAfter(async () => {
      expect(await server.agent(who, '/report', report)).toMatchObject({
        status: 200,
        body: { acknowledged: 4, rejected: [{ lease_id: 999_999, reason: 'unknown' }] },
      });
      // The same again is acknowledged again, and a contradiction is rejected; neither is told.
      expect(await server.agent(who, '/report', report)).toMatchObject({ body: { acknowledged: 4 } });
      const contradiction = { completed: [], cancelled: [{ lease_id: one.lease_id }] };
      expect(await server.agent(who, '/report', contradiction)).toMatchObject({ body: { acknowledged: 0 } });
    });
    const common = { agent_id: who.agent_id, target: 'somewhere', received_at: expect.any(Number) };
    expect(told).toEqual([
      [
        {
          ...common,
          ...{ lease_id: one.lease_id, task_id: one.task_id, spec: { kind: 'probe', n: 1 } },
          ...{ report: 'completed', outcome: 'success', observations: [{ name: 'rtt_ms', value: 3 }] },
        },
        {
          ...common,
          ...{ lease_id: two.lease_id, task_id: two.task_id, spec: { kind: 'probe', n: 2 } },
          ...{ report: 'completed', outcome: 'timeout', observations: [] },
        },
        {
          ...common,
          ...{ lease_id: three.lease_id, task_id: three.task_id, spec: { kind: 'probe', n: 3 } },
          ...{ report: 'cancelled', outcome: null, observations: [] },
        },
      ],
    ]);
    // Its retry would reach a later test.
    expect(await server.operator('POST', `/v1/tasks/${three.task_id}/cancel`)).toMatchObject({ status: 200 });
  });

  it('loses what it wrote where it fails; the reports, its own and others, are taken all the same', async () => {
    const [bad, good, other] = await lease(
      server,
      who,
      ['probe', 'dns'],
      probe({ fail: 'report' }),
      probe({ n: 1 }),
      dnsTask(),
    );
    const told = await callsAfter(async () => {
      const completed = [bad, good, other].map(({ lease_id }) => ({ lease_id }));
      expect(await server.agent(who, '/report', { completed, cancelled: [] })).toMatchObject({
        status: 200,
        body: { acknowledged: 3 },
      });
    });
    expect(told).toEqual([]);
    for (const { task_id } of [bad, good, other]) {
      expect((await server.operator('GET', `/v1/tasks/${task_id}`)).body).toMatchObject({
        state: 'completed',
        leases: [{ result: { standing: 'final' } }],
      });
    }
    await logged(server, {
      level: 'error',
      context: 'TaskKinds',
      kind: 'probe',
      lease_ids: [bad.lease_id, good.lease_id],
      err: expect.objectContaining({ message: 'this kind fails' }),
    });
    // The kind is told of the next ones as if nothing had been.
    const [next] = await lease(server, who, ['probe'], probe({ n: 2 }));
    const again = await callsAfter(async () => {
      await server.agent(who, '/report', { completed: [{ lease_id: next.lease_id }], cancelled: [] });
    });
    expect(again).toHaveLength(1);
  });

  it.each(['target', 'text'])('refuses a spec that its target() can not handle (%s)', async (fail) => {
    const answer = await server.operator('POST', '/v1/tasks', { tasks: [probe({}), probe({ fail })] });
    expect(answer).toMatchObject({
      status: 400,
      body: { error: 'ERR_VALIDATION', details: { 'tasks.1.spec': expect.stringContaining('probe') } },
    });
    const message = fail === 'text' ? expect.stringContaining('number') : 'no target';
    await logged(server, { level: 'error', kind: 'probe', err: expect.objectContaining({ message }) });
  });
});

describe('an extension that is taken away', () => {
  it('leaves its tables, and tasks that nobody can claim until it is back', async () => {
    const folder = await workplace();
    let server = await start(folder, './whois-kind');
    const who = await server.register('probe');
    const [held] = await lease(server, who, ['whois'], whoisTask('held.example'));
    const observations = [{ name: 'registrar', value: 'R' }];
    const completed = [{ lease_id: held.lease_id, outcome: 'success', observations }];
    const [later] = await lease(server, who, ['whois'], whoisTask('later.example'));
    expect(await server.agent(who, '/report', { completed, cancelled: [] })).toMatchObject({ status: 200 });
    await server.operator('POST', '/v1/tasks', {
      tasks: [whoisTask('queued.example'), whoisTask('dropped.example')],
    });
    await stop(server);

    server = await start(folder, '');
    await logged(server, { level: 'warn', tables: ['migrations_whois_kind'] });
    const claim = (capacities: object) => server.agent(who, '/claim', { capacities });
    expect((await server.operator('GET', '/v1/tasks/stats')).body.depths).toEqual(
      expect.arrayContaining([
        expect.objectContaining({ kind: 'whois', state: 'queued', count: 2 }),
        expect.objectContaining({ kind: 'whois', state: 'leased', count: 1 }),
      ]),
    );
    expect(await claim({ whois: 1 })).toMatchObject({ status: 400, body: { error: 'ERR_VALIDATION' } });
    expect((await claim({ dns: 1 })).body).toEqual({ leases: [] });
    expect(await server.operator('POST', '/v1/tasks', { tasks: [whoisTask('new.example')] })).toMatchObject({
      status: 400,
      body: { details: { 'tasks.0.kind': expect.any(String) } },
    });
    expect(await server.operator('GET', '/v1/whois/domains')).toMatchObject({ status: 404 });
    // What was leased may be finished, what is queued may be seen and cancelled.
    const late = { completed: [{ lease_id: later.lease_id }], cancelled: [] };
    expect(await server.agent(who, '/report', late)).toMatchObject({ body: { acknowledged: 1 } });
    const listed = (await server.operator('GET', '/v1/tasks?kind=whois&state=queued')).body.items;
    expect(listed).toHaveLength(2);
    expect(await server.operator('POST', `/v1/tasks/${listed[0].id}/cancel`)).toMatchObject({
      status: 200,
      body: { state: 'cancelled' },
    });
    await stop(server);

    server = await start(folder, './whois-kind');
    expect((await server.operator('GET', '/v1/whois/domains')).body.items).toMatchObject([
      { domain: 'held.example', registrar: 'R' },
    ]);
    expect((await claim({ whois: 1 })).body.leases).toMatchObject([{ spec: { domain: 'queued.example' } }]);
    await stop(server);
    expect(server.log.filter(({ tables }) => tables !== undefined)).toEqual([]);
  });

  it('has its migrations recorded apart, in order, and applied by migrate', async () => {
    const folder = await workplace();
    const unmigrated = await finish(folder, './whois-kind', ['serve'], { MIGRATE_ON_START: 'false' });
    expect(unmigrated).toMatchObject({
      code: 1,
      // A test's database has the program's own.
      errors: expect.stringContaining('lacks 1 migration(s)'),
    });
    const first = await finish(folder, './whois-kind', ['migrate']);
    expect(first).toMatchObject({ code: 0, output: expect.stringContaining(MIGRATION) });
    expect(await rowsOf(folder, 'SELECT * FROM migrations_whois_kind')).toEqual([
      { name: MIGRATION.split('/')[1] },
    ]);
    const own = readdirSync(join(__dirname, '../../migrations')).filter((name) => /^\d/.test(name));
    expect(await rowsOf(folder, 'SELECT name FROM migrations')).toHaveLength(own.length);

    const older = await workplace({ 'whois-kind/dist/index.js': extension('target() { return "x"; }') });
    const theSame = { DATABASE_URL: databases.get(folder) as string };
    expect(await finish(older, './whois-kind', ['serve'], theSame)).toMatchObject({
      code: 1,
      errors: expect.stringMatching(/newer version of the extension whois-kind \(migration WhoisDomains/),
    });
  });
});

describe('a faulty extension', () => {
  const target = 'target() { return "x"; }';
  const routes = (decorated: string) =>
    extension(
      target,
      `class Routes { list() { return []; } }
       ${decorated}
       Controller('v1/mine')(Routes);
       parts.controllers = [Routes];`,
    );
  const get = (path = '') =>
    `Get('${path}')(Routes.prototype, 'list', Object.getOwnPropertyDescriptor(Routes.prototype, 'list'));`;

  /** What is wrong with it, its source, and what must be said of it. */
  const faults: [string, string, RegExp][] = [
    ['has no default export', 'exports.other = 1;', /has no default export; it must be a Nest module/],
    ['exports nothing at all', 'module.exports = null;', /has no default export/],
    [
      'throws what is no error',
      extension(`${target} onModuleInit() { throw "a text"; }`),
      /keeps the program from starting: a text$/,
    ],
    ['exports something else', 'exports.default = class Plain {};', /not a Nest module/],
    [
      'throws when it is loaded',
      '\nthrow new Error("out of luck");',
      /failed .*loaded: out of luck \(.*index\.js:2\)/,
    ],
    ['is not JavaScript', 'exports.default = ;', /failed while it was loaded: Unexpected token/],
    ['imports what there is not', 'require("left-pad");', /Cannot find module 'left-pad'/],
    [
      'imports what is not public',
      'require("dns-agent-control-plane/dist/app.js");',
      /'\.\/dist\/app\.js' is not defined by "exports"/,
    ],
    ['lists invalid migrations', extension(target, 'exports.migrations = {};'), /not a list of classes/],
    [
      'has a migration that fails',
      extension(
        target,
        migration('Broken', 'CREATE TABLE mine (id integer)', 'CREATE TABEL other (id integer)'),
      ),
      /a migration that failed, Broken: .*syntax error/,
    ],
    [
      'claims a kind that there is',
      extension(target, `TaskKind('dns', { spec: Spec })(ProbeKind);`),
      /task kind dns of ProbeKind is there already, of DnsKind/,
    ],
    ['has no target', extension(''), /task kind probe of ProbeKind has no target/],
    ['has no method for reports', extension(`${target} onReports = 5;`), /onReports that is not a method/],
    [
      'does not declare the callers of a route',
      routes(get()),
      /Routes\.list declares no callers: add @Public/,
    ],
    [
      'takes a path of the program',
      routes(`Public()(Routes.prototype.list); ${get()} `).replace("'v1/mine'", "'healthz'"),
      /keeps the program from starting: .*\/healthz/,
    ],
    [
      'needs a provider that there is not',
      extension(target, `Reflect.defineMetadata('design:paramtypes', [class Lost {}], ProbeKind);`),
      /keeps the program from starting: .*resolve dependencies of the ProbeKind/,
    ],
    [
      'fails when it begins',
      extension(`${target} onModuleInit() { throw new Error('can not begin'); }`),
      /keeps the program from starting: can not begin/,
    ],
  ];

  /** What `CONTROL_PLANE_EXTENSIONS` says wrongly, and what must be said of it. */
  const misnamed: [string, RegExp][] = [
    ['./nowhere', /^Extension \.\/nowhere can't be found: Cannot find module/],
    ['nowhere', /^Extension nowhere can't be found: Cannot find module/],
    ['whois-kind', /^Extension whois-kind can't be found \(a path must begin with \.\//],
    ['./garbled/index.js', /^Extension garbled .* failed while it was loaded: .*package/],
    ['./whois-kind,./copy', /^Extension Whois_Kind has the name of another one, whois-kind\.$/],
    [
      './newer',
      /^Extension newer is made for dns-agent-control-plane \^99\.0\.0 .*; this is \d+\.\d+\.\d+\.$/,
    ],
    ['./other-nest', /^Extension other-nest is made for @nestjs\/common \^1\.0\.0 /],
    ['./unclear', /^Extension unclear has a range .* that can't be read, of dns-agent-control-plane\.$/],
    ['./whois-kind,,', /^CONTROL_PLANE_EXTENSIONS must be /],
    ['./whois-kind,./whois-kind', /^CONTROL_PLANE_EXTENSIONS must be .*, each once$/],
  ];

  it('stops the start with its name and the reason, in one line', async () => {
    const files = faults.flatMap(([, source], i) => [
      [`faulty-${i}/index.js`, source],
      [`faulty-${i}/package.json`, '{"name": "@team/faulty"}'],
    ]);
    const folder = await workplace({
      ...Object.fromEntries(files),
      'garbled/package.json': '{"name": ',
      'garbled/index.js': extension(target),
      // Its code would fail, and is not run.
      'newer/package.json':
        '{"name": "newer", "peerDependencies": {"dns-agent-control-plane": "^99.0.0", "left-pad": "^1.0.0"}}',
      'newer/index.js': 'throw new Error("it runs");',
      'other-nest/package.json': '{"name": "other-nest", "peerDependencies": {"@nestjs/common": "^1.0.0"}}',
      'other-nest/index.js': extension(target),
      'unclear/package.json':
        '{"name": "unclear", "peerDependencies": {"dns-agent-control-plane": "the newest"}}',
      'unclear/index.js': extension(target),
      'copy/package.json': '{"name": "Whois_Kind"}',
      'copy/index.js': extension(target),
      // One process for all: each start fails, and leaves nothing behind that would keep the process running.
      'starts.js': `
        const { createApp } = require('${ROOT}/dist/app.js');
        const { readSettings } = require('${ROOT}/dist/settings.js');
        const start = async (extensions) => createApp(readSettings({
          CONTROL_PLANE_DATABASE_URL: 'sqlite::memory:',
          CONTROL_PLANE_ADMIN_TOKEN: '${ADMIN_TOKEN}',
          CONTROL_PLANE_LOG_LEVEL: 'silent',
          CONTROL_PLANE_EXTENSIONS: extensions,
        }));
        (async () => {
          for (const extensions of process.argv.slice(2)) {
            const message = await start(extensions).then(() => 'started', (error) => error.message);
            console.log(JSON.stringify(message));
          }
        })();`,
    });
    const cases: [string, string, RegExp][] = [
      ...faults.map(([fault, , reason], i): [string, string, RegExp] => [
        fault,
        `./whois-kind, ./faulty-${i}`,
        reason,
      ]),
      ...misnamed.map(([named, reason]): [string, string, RegExp] => [`is named ${named}`, named, reason]),
    ];
    const starts = Program.run(folder, {
      main: join(folder, 'starts.js'),
      args: cases.map(([, extensions]) => extensions),
    });
    expect([await starts.ended(), starts.errors]).toEqual([0, '']);
    const messages: string[] = starts.output
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(messages.map((message, i) => [cases[i]?.[0], message])).toEqual(
      cases.map(([fault, , reason]) => [fault, expect.stringMatching(reason)]),
    );
    // Of two routes of one path can't be told whose they are.
    for (const message of messages.slice(0, faults.length))
      expect(message).toMatch(/^Extension (?:whois-kind or )?@team\/faulty .*$/);
  });

  it('ends the process with that line and exit code 1', async () => {
    const folder = await workplace({ 'faulty/index.js': routes(get()) });
    const { code, errors } = await finish(folder, './faulty');
    expect([code, errors]).toEqual([
      1,
      expect.stringMatching(
        /^Extension faulty is faulty: Invalid declarations of routes: Routes\.list .*[^.]\.\n$/,
      ),
    ]);
  });

  it('takes back the migration that failed, and keeps those before it', async () => {
    const folder = await workplace({
      'faulty/index.js': extension(
        target,
        `${migration('Mine', 'CREATE TABLE mine (id integer)')}
         exports.migrations.push(class Broken { async up(runner) {
           await runner.query('CREATE TABLE other (id integer)');
           throw new Error('half way');
         } });`,
      ),
    });
    const { code, errors } = await finish(folder, './faulty', ['migrate']);
    expect([code, errors]).toEqual([1, 'Extension faulty has a migration that failed, Broken: half way\n']);
    expect(await rowsOf(folder, 'SELECT * FROM mine')).toEqual([]);
    await expect(rowsOf(folder, 'SELECT * FROM other')).rejects.toThrow('other');
    expect(await rowsOf(folder, 'SELECT * FROM migrations_faulty')).toEqual([{ name: 'Mine' }]);
  });
});

it('is found as a package that is installed beside the program or in the working directory', async () => {
  const folder = await workplace({
    'node_modules/@team/probe/package.json': '{"name": "@team/probe", "type": "module", "main": "main.js"}',
    'node_modules/@team/probe/main.js': `
      import { Module } from '@nestjs/common';
      import { TaskKind } from 'dns-agent-control-plane/extension';
      class Spec {}
      class ProbeKind { target() { return 'x'; } }
      TaskKind('probe', { spec: Spec })(ProbeKind);
      export default class ProbeModule {}
      Module({ providers: [ProbeKind] })(ProbeModule);`,
    // A copy of its own, of another version: what the program runs must win.
    'node_modules/@team/probe/node_modules/@nestjs/common/package.json': '{"name": "@nestjs/common"}',
    'node_modules/@team/probe/node_modules/@nestjs/common/index.js': 'throw new Error("the wrong copy");',
  });
  const server = await start(folder, '@team/probe');
  const { body } = await server.operator('POST', '/v1/tasks', { tasks: [{ kind: 'probe', spec: {} }] });
  expect(body.tasks).toMatchObject([{ state: 'queued' }]);
  await stop(server);
});
