import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { RequestMethod } from '@nestjs/common';
import { DiscoveryService, MetadataScanner, Reflector } from '@nestjs/core';
import { parse as parseYaml } from 'yaml';
import { ENTITIES } from '../../src/app.module';
import { ERRORS, type ErrorCode } from '../../src/errors';
import { ACCESS, type Access } from '../../src/http/access.decorators';
import { describeApi } from '../../src/http/openapi';
import { QUOTA, type QuotaRule } from '../../src/http/quota.decorators';
import type { Json } from '../helpers/api';
import { ApiDocument, answerOf, jsonOf, successesOf } from '../helpers/api-document';
import {
  ADMIN_TOKEN,
  type Answer,
  type Call,
  type Credentials,
  credentialsOf,
  dnsTask,
  onPostgres,
  passOn,
  TestClock,
  TestServer,
} from '../helpers/harness';

const ROOT = join(__dirname, '../..');
const CONTRACT = readFileSync(join(ROOT, 'docs', 'control-plane-api.md'), 'utf8');
const PACKAGE = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
const COMMITTED = readFileSync(join(ROOT, 'docs', 'openapi.json'), 'utf8');

/** As the contract's table has it. */
const QUOTAS: Record<string, Omit<QuotaRule, 'route'>> = {
  'POST /register': { quota: { limit: 1, periodMs: 600_000, burst: 1 }, by: 'hostname' },
  'POST /heartbeat': { quota: { limit: 6, periodMs: 60_000, burst: 3 }, by: 'agent' },
  'POST /claim': { quota: { limit: 12, periodMs: 60_000, burst: 6 }, by: 'agent' },
  'POST /extend': { quota: { limit: 30, periodMs: 60_000, burst: 10 }, by: 'agent' },
  'POST /report': { quota: { limit: 12, periodMs: 60_000, burst: 6 }, by: 'agent' },
  'POST /metrics': { quota: { limit: 60, periodMs: 60_000, burst: 10 }, by: 'agent' },
  'GET /config': { quota: { limit: 6, periodMs: 3_600_000, burst: 2 }, by: 'agent' },
};

/** Lists and numbers, asked for while there is nothing, and when there is something. */
const READ = ['/v1/tasks', '/v1/tasks/stats', '/v1/agents', '/v1/concurrency/windows', '/v1/configs'];

/** The rows, as cells, of all tables of the contract that begin with these heads. */
function rowsOf(...heads: string[]): string[][] {
  const cellsOf = (line: string) =>
    line
      .split('|')
      .slice(1, -1)
      .map((cell) => cell.trim());
  return CONTRACT.split('\n\n').flatMap((block) => {
    const [head, , ...rows] = block.split('\n').filter((line) => line.startsWith('|'));
    const found = head !== undefined && heads.every((name, i) => cellsOf(head)[i] === name);
    return found ? rows.map(cellsOf) : [];
  });
}

/** A route as its decorators declare it. */
interface Route {
  /** Such as `GET /v1/tasks/{id}`. */
  name: string;
  access: Access | undefined;
  quota: QuotaRule | undefined;
}

let server: TestServer;
let clock: TestClock;
let api: ApiDocument;
let document: Json;
let routes: Route[];
/** Every operation of the document by its name. */
let operations: Map<string, Json>;

beforeAll(async () => {
  clock = new TestClock();
  server = await TestServer.start({}, { clock });
  document = (await server.request('GET', '/docs-json')).body;
  api = new ApiDocument(document, () => clock.now());
  routes = declaredRoutes();
  ({ operations } = api);
});
afterAll(() => server.stop());

/** Asks the controllers themselves. */
function declaredRoutes(): Route[] {
  const discovery = server.app.get(DiscoveryService, { strict: false });
  const reflector = server.app.get(Reflector, { strict: false });
  return discovery.getControllers().flatMap(({ metatype, instance }) => {
    const controller = metatype as () => unknown;
    return new MetadataScanner().getAllMethodNames(Object.getPrototypeOf(instance)).flatMap((method) => {
      const handler = instance[method];
      const verb: RequestMethod | undefined = Reflect.getMetadata('method', handler);
      if (verb === undefined) return [];
      const places = [Reflect.getMetadata('path', controller)].flat();
      const paths = [Reflect.getMetadata('path', handler)].flat();
      return places.flatMap((place) =>
        paths.map((path) => ({
          name: `${RequestMethod[verb]} /${[place, path]
            .flatMap((text: string) => text.split('/'))
            .filter((part) => part !== '')
            .join('/')
            .replace(/:(\w+)/g, '{$1}')}`,
          access: reflector.getAllAndOverride<Access>(ACCESS, [handler, controller]),
          quota: reflector.getAllAndOverride<QuotaRule>(QUOTA, [handler, controller]),
        })),
      );
    });
  });
}

/** Reads the tree that Fastify prints of its routes. */
function servedRoutes(): string[] {
  const lines: string[] = server.app
    .getHttpAdapter()
    .getInstance()
    .printRoutes({ commonPrefix: false })
    .split('\n');
  const above: string[] = [];
  const names: string[] = [];
  for (const line of lines) {
    const match = /^((?:│ {3}| {4})*)(?:├── |└── )(.*?)(?: \(([A-Z, ]+)\))?$/.exec(line);
    if (!match) continue;
    const depth = (match[1] as string).length / 4;
    above.length = depth;
    above.push(match[2] as string);
    const path = above.join('').replace(/:(\w+)/g, '{$1}');
    for (const method of match[3]?.split(', ') ?? []) names.push(`${method} ${path}`);
  }
  return names;
}

describe('every route', () => {
  it('is in the document, and every operation of the document is served', () => {
    const served = servedRoutes().filter((name) => !/^HEAD | \/(?:docs|$)/.test(name));
    expect(served.length).toBeGreaterThan(20);
    expect([...operations.keys()].sort()).toEqual(served.sort());
    expect(routes.map(({ name }) => name).sort()).toEqual(served.sort());
  });

  it('declares its callers as the contract does', () => {
    const contracted: Record<string, string> = {};
    for (const [names, role] of rowsOf('Endpoint', 'Role')) {
      for (const [name] of names?.matchAll(/[A-Z]+ \/[^`]+/g) ?? []) contracted[name] = role as string;
    }
    // This one has a paragraph of its own.
    const [, metrics, role] = /^`(GET \/v1\/agents\/\{id\}\/metrics)`, (\w+):/m.exec(
      CONTRACT,
    ) as RegExpExecArray;
    contracted[metrics as string] = role as string;
    for (const [names] of rowsOf('Endpoint', '')) {
      for (const [name] of names?.matchAll(/GET \/[^`]+/g) ?? [])
        if (name !== 'GET /docs') contracted[name] = 'public';
    }
    for (const name of Object.keys(QUOTAS)) {
      const access = name === 'POST /register' ? 'public' : 'agent';
      contracted[name] = contracted[name.replace(' /', ' /v1/agents/')] = access;
    }
    const declared = Object.fromEntries(
      routes.map(({ name, access }) => [name, access?.kind === 'operator' ? access.role : access?.kind]),
    );
    expect(declared).toEqual(contracted);
  });

  it('has its quota exactly where and as the contract has it', () => {
    const declared = Object.fromEntries(routes.map(({ name, quota }) => [name, quota]));
    for (const { name, access, quota } of routes) {
      const wanted = QUOTAS[name.replace(' /v1/agents/', ' /')];
      if (access?.kind !== 'agent' && name !== 'POST /register' && name !== 'POST /v1/agents/register') {
        expect([name, quota]).toEqual([name, undefined]);
      } else {
        expect([name, quota]).toEqual([name, { route: name.split('/').pop(), ...wanted }]);
      }
    }
    expect(Object.keys(QUOTAS).filter((name) => !declared[name])).toEqual([]);
  });

  it('says the quotas in the contract in words', () => {
    const periods: Record<number, string> = { 60000: 'minute', 600000: '10 minutes', 3600000: 'hour' };
    const rows = rowsOf('Endpoint', 'Answer');
    expect(rows.map(([name]) => name?.replaceAll('`', '')).sort()).toEqual(Object.keys(QUOTAS).sort());
    for (const [name, , text] of rows) {
      const { quota, by } = QUOTAS[(name as string).replaceAll('`', '')] as QuotaRule;
      const rest = by === 'agent' ? `${quota.burst}` : 'by hostname, or by address if none is given';
      expect([name, text]).toEqual([name, `${quota.limit} per ${periods[quota.periodMs]}, ${rest}`]);
    }
  });

  it('of an agent exists at both places, and only there', () => {
    const forAgents = routes.filter(({ access, quota }) => access?.kind === 'agent' || quota);
    const paths = forAgents.map(({ name }) => name);
    const roots = paths.filter((name) => !name.includes(' /v1/'));
    expect(roots.sort()).toEqual(Object.keys(QUOTAS).sort());
    expect(paths.filter((name) => name.includes(' /v1/')).sort()).toEqual(
      roots.map((name) => name.replace(' /', ' /v1/agents/')).sort(),
    );
    for (const name of roots) {
      const { operationId, ...root } = operations.get(name);
      const { operationId: other, ...twin } = operations.get(name.replace(' /', ' /v1/agents/'));
      expect(twin).toEqual(root);
      expect(other).not.toBe(operationId);
    }
  });
});

describe('every operation of the document', () => {
  it('has a summary, a tag, a description and a name of its own', () => {
    const names = new Set<string>();
    for (const [name, { summary, tags, description, operationId }] of operations) {
      expect([name, summary]).toEqual([name, expect.stringMatching(/^[A-Z].{5,}/)]);
      expect([name, tags]).toEqual([name, [expect.any(String)]]);
      expect([name, description]).toEqual([
        name,
        expect.stringMatching(/^[A-Z][\s\S]{10,}\.\n\n\*\*Role:\*\* \w+\.$/),
      ]);
      // A verb and a noun: generated clients make a method of it.
      expect([name, operationId]).toEqual([name, expect.stringMatching(/^[a-z]+(?:[A-Z][a-z]+)+(?:V1)?$/)]);
      names.add(operationId);
    }
    expect(names.size).toBe(operations.size);
  });

  it('says which role it needs, for programs and for people', () => {
    for (const { name, access } of routes) {
      const role = access?.kind === 'operator' ? access.role : access?.kind;
      const operation = operations.get(name);
      expect([name, operation['x-role']]).toEqual([name, role]);
      expect(operation.description).toContain(`**Role:** ${role}.`);
    }
  });

  it('that changes the fleet is marked, so that the page does not offer to send it at once', () => {
    // As they are filled in; see the next test.
    const harmless = ['POST /v1/tasks', 'POST /heartbeat', 'POST /extend', 'POST /report'];
    for (const { name } of routes) {
      const changes = !name.startsWith('GET ') && !harmless.includes(name.replace(' /v1/agents/', ' /'));
      expect([name, operations.get(name)['x-changes-fleet'] === true]).toEqual([name, changes]);
    }
  });

  it('of an agent is filled in with a body that works and that names no lease and no hostname', async () => {
    const bodyOf = (name: string) => {
      const { schema } = jsonOf(operations.get(name).requestBody.content);
      return api.exampleOf(schema, name, []) as Record<string, unknown>;
    };
    const other = await server.register('as-filled-in');
    for (const place of ['', '/v1/agents']) {
      const send = (path: string, headers: Record<string, string>, own: object = {}) =>
        server.request('POST', place + path, {
          headers,
          body: { ...bodyOf(`POST ${place}${path}`), ...own },
        });
      const made = await send('/register', {});
      expect([made.status, bodyOf(`POST ${place}/register`).hostname]).toEqual([200, null]);
      expect(made.body.agent_id).toBeGreaterThan(other.agent_id);
      // The page writes in the id of the agent that was authorized.
      const { agent_id } = made.body;
      await server.enqueue(dnsTask());
      const { leases } = (await server.agent(made.body, '/claim', { capacities: { dns: 1 } })).body;
      expect(leases).toHaveLength(1);
      const headers = credentialsOf(made.body);
      expect(await send('/extend', headers, { agent_id })).toMatchObject({
        status: 200,
        body: { outcomes: [], revoked: [] },
      });
      const reported = await send('/report', headers, { agent_id });
      expect([reported.status, reported.body]).toEqual([200, { acknowledged: 0 }]);
      const task = (await server.operator('GET', `/v1/tasks/${leases[0].task_id}`)).body;
      expect(task.state).toBe('leased');
      await server.agent(made.body, '/report', {
        completed: [{ lease_id: leases[0].lease_id, outcome: 'success' }],
        cancelled: [],
      });
      await server.operator('DELETE', `/v1/agents/${agent_id}`);
    }
    await server.operator('DELETE', `/v1/agents/${other.agent_id}`);
  });

  it('asks for the credentials that its route does', () => {
    for (const { name, access } of routes) {
      const security = operations.get(name).security;
      // Both headers together: alternatives would be two entries of the list.
      const wanted =
        access?.kind === 'agent'
          ? [{ agentId: [], agentToken: [] }]
          : access?.kind === 'operator'
            ? [{ operator: [] }]
            : undefined;
      expect([name, security]).toEqual([name, wanted]);
    }
    expect(document.components.securitySchemes).toMatchObject({
      agentId: { type: 'apiKey', in: 'header', name: 'X-Agent-Id' },
      agentToken: { type: 'apiKey', in: 'header', name: 'X-Agent-Token' },
      operator: { type: 'http', scheme: 'bearer' },
    });
    // The token is opaque: no client can read it as a JWT.
    expect(document.components.securitySchemes.operator).not.toHaveProperty('bearerFormat');
  });

  it('has its errors, each with an example of the envelope', () => {
    const envelope = { $ref: '#/components/schemas/ErrorEnvelope' };
    for (const { name, access } of routes) {
      const { responses } = operations.get(name);
      const statuses = Object.keys(responses).filter((status) => Number(status) >= 400);
      const wanted = ['500', '503'];
      if (access?.kind !== 'public') wanted.push('400', '401', '403', '429');
      if (name.includes('{')) wanted.push('404');
      if (operations.get(name).requestBody) wanted.push('413', '415');
      expect([name, statuses]).toEqual([name, expect.arrayContaining(wanted)]);
      for (const status of statuses) {
        const { schema, examples } = jsonOf(responses[status].content);
        expect([name, status, schema]).toEqual([name, status, envelope]);
        const codes = Object.keys(examples) as ErrorCode[];
        expect(codes.length).toBeGreaterThan(0);
        for (const code of codes) {
          const own = status === '413' || status === '415' ? 400 : Number(status);
          expect([name, code, ERRORS[code]?.status]).toEqual([name, code, own]);
          expect(examples[code].value).toMatchObject({ error: code, retryable: ERRORS[code].retryable });
          expect(api.problemsOf('ErrorEnvelope', schema, examples[code].value)).toEqual([]);
        }
        if (status === '429' || status === '503') {
          expect([name, responses[status].headers]).toEqual([name, { 'Retry-After': expect.anything() }]);
        }
      }
    }
  });

  it('has an answer of success, with an example that its schema allows', () => {
    const missing: string[] = [];
    const wrong: string[] = [];
    for (const [name, operation] of operations) {
      expect([name, successesOf(operation)]).not.toEqual([name, []]);
      for (const status of successesOf(operation)) {
        const content = answerOf(operation.responses[status].content);
        if (status === '204' || status === '304')
          expect([name, status, content]).toEqual([name, status, undefined]);
        else {
          const where = `${name} ${status}`;
          wrong.push(
            ...api.problemsOf(
              where,
              content.schema,
              content.example ?? api.exampleOf(content.schema, where, missing),
            ),
          );
        }
      }
    }
    expect([missing, wrong]).toEqual([[], []]);
  });

  it('has an example of every request that its schema allows, and of every parameter that is required', () => {
    const missing: string[] = [];
    const wrong: string[] = [];
    for (const [name, { requestBody, parameters = [] }] of operations) {
      if (/^(POST|PUT) [^{]*$/.test(name)) expect([name, requestBody?.required]).toEqual([name, true]);
      if (requestBody) {
        const { schema, example } = jsonOf(requestBody.content);
        wrong.push(...api.problemsOf(name, schema, example ?? api.exampleOf(schema, name, missing)));
      }
      const names = parameters.map((parameter: Json) => `${parameter.in} ${parameter.name.toLowerCase()}`);
      expect([name, new Set(names).size]).toEqual([name, names.length]);
      for (const parameter of parameters) {
        // Nothing can be called from the page that lacks what is required: ids, and the target of a report.
        expect([name, parameter.name, parameter.required]).toEqual([
          name,
          parameter.name,
          parameter.in === 'path' || (name === 'GET /v1/concurrency/politeness' && parameter.name !== 'day'),
        ]);
        // One with an example would be sent by everyone who tries the page: a filter nobody wants, somebody else's agent.
        const { example, schema } = parameter;
        expect([name, parameter.name, example, schema.example]).toEqual([
          name,
          parameter.name,
          undefined,
          undefined,
        ]);
      }
    }
    expect([missing, wrong]).toEqual([[], []]);
  });
});

describe('the document', () => {
  it('is served as JSON and YAML, and is the one that is committed', async () => {
    expect(JSON.parse(COMMITTED)).toEqual(document);
    const yaml = await server.request('GET', '/docs-yaml');
    expect(yaml.status).toBe(200);
    expect(parseYaml(yaml.body)).toEqual(document);
    expect(document.openapi).toMatch(/^3\./);
  });

  it('is the same however often it is made', () => {
    expect(describeApi(server.app)).toEqual(describeApi(server.app));
  });

  it('has a page with all that it needs, behind a path prefix too', async () => {
    // As a proxy does that serves several programs, each under a path of its own.
    const proxy = createServer(async (request, response) => {
      const path = /^\/probes(\/.*)$/.exec(request.url as string)?.[1];
      if (path) passOn(await server.request(request.method as string, path), response);
      else response.writeHead(404).end();
    });
    await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
    try {
      const base = `http://127.0.0.1:${(proxy.address() as AddressInfo).port}/probes/docs`;
      const page = await fetch(base);
      expect([page.status, page.headers.get('content-type')]).toEqual([
        200,
        expect.stringContaining('text/html'),
      ]);
      const html = await page.text();
      const links = [...html.matchAll(/(?:src|href)="([^"]+)"/g)].map(([, link]) => link as string);
      expect(links).toContain('docs/swagger-ui-bundle.js');
      for (const link of links) {
        const asset = await fetch(new URL(link, base));
        expect([link, asset.status]).toEqual([link, 200]);
        await asset.arrayBuffer();
      }
      const script = await (await fetch(new URL('docs/start.js', base))).text();
      const [, url] = /url: '([^']+)'/.exec(script) as RegExpExecArray;
      const at = new URL(url as string, base);
      const served = (await (await fetch(at)).json()) as Json;
      expect(served).toEqual(document);
      // Calls go to where the document came from.
      expect(new URL(served.servers[0].url, at).pathname).toBe('/probes/');
      expect(served.servers).toHaveLength(1);
    } finally {
      await new Promise((resolve) => proxy.close(resolve));
    }
    const slash = await fetch(`${server.url}/docs/`, { redirect: 'manual' });
    expect([slash.status, slash.headers.get('location')]).toEqual([308, '../docs']);
  });

  it('types every number as a 64-bit integer but for the values that are measured or free', () => {
    const wrong: string[] = [];
    const fractional = new Set<string>();
    const visit = (part: Json, where: string): void => {
      if (typeof part !== 'object' || part === null) return;
      if (part.type === 'number') {
        fractional.add(where.replace(/^\/components\/schemas\//, ''));
        if (part.format !== 'double') wrong.push(where);
      }
      if (part.type === 'integer' && part.format !== 'int64') wrong.push(where);
      for (const [name, value] of Object.entries(part))
        if (!/^examples?$/.test(name)) visit(value, `${where}/${name}`);
    };
    visit(document, '');
    expect(wrong).toEqual([]);
    expect([...fractional].sort()).toEqual([
      'ConfigChange/properties/value/anyOf/0',
      'LeaseReport/properties/rtt_ms',
      'LimitInput/properties/rate',
      'Observation/properties/value/anyOf/0',
      'ResultView/properties/rtt_ms',
      'RuleView/properties/max_rate',
      'RuleView/properties/rate',
      'Sample/properties/value',
      'WhyWindow/properties/rate',
      ...['max_rate', 'measured_rate', 'rate_after', 'rate_before', 'rtt_ratio'].map(
        (name) => `WindowChangeView/properties/${name}`,
      ),
      'WindowView/properties/max_rate',
      'WindowView/properties/rate',
    ]);
  });

  it('has an example of a task of each kind that can be claimed at once', async () => {
    const { examples, schema } = jsonOf(operations.get('POST /v1/tasks').requestBody.content);
    expect(Object.keys(examples).sort()).toEqual(['dns', 'http', 'ping', 'tcp', 'trace']);
    for (const [kind, { value }] of Object.entries<Json>(examples)) {
      expect(value.tasks).toEqual([{ kind, spec: expect.any(Object) }]);
      expect(api.problemsOf(`example ${kind}`, schema, value)).toEqual([]);
      const { body } = await server.operator('POST', '/v1/tasks', value);
      expect([kind, body.tasks[0].state]).toEqual([kind, 'queued']);
      await server.operator('POST', `/v1/tasks/${body.tasks[0].id}/cancel`);
    }
  });

  it('has the version of the program', () => {
    expect(document.info.version).toBe(PACKAGE.version);
  });

  it('refers to nothing that is not in it, and has nothing that nobody refers to', () => {
    const text = JSON.stringify(document);
    const referred = new Set([...text.matchAll(/"#\/components\/schemas\/(\w+)"/g)].map(([, name]) => name));
    expect([...referred].sort()).toEqual(Object.keys(document.components.schemas).sort());
  });

  it('tells what each kind of task takes', () => {
    const wanted: Record<string, string[]> = {};
    for (const [kind, spec] of rowsOf('Kind')) {
      // What is in brackets is about the values.
      const fields = spec?.replace(/\(.*?\)/g, '').matchAll(/`(\w+\??)`/g) ?? [];
      wanted[kind?.replaceAll('`', '') as string] = [...fields].map(([, field]) => field as string).sort();
    }
    expect(Object.keys(wanted)).toHaveLength(5);
    for (const [holder, field] of [
      ['TaskInput', 'spec'],
      ['TaskView', 'spec'],
      ['LeaseGrant', 'spec'],
    ] as const) {
      const shown: Record<string, string[]> = {};
      for (const schema of document.components.schemas[holder].properties[field].anyOf ?? []) {
        const { properties, required = [] } = api.deref(schema);
        const { kind, ...others } = properties;
        shown[kind.enum[0]] = Object.keys(others)
          .map((name) => (required.includes(name) ? name : `${name}?`))
          .sort();
      }
      expect([holder, shown]).toEqual([holder, wanted]);
    }
  });
});

describe('the codes of errors', () => {
  it('are all documented, and all that are documented exist', () => {
    const named = new Set(CONTRACT.match(/ERR_[A-Z_]+/g));
    expect([...named].sort()).toEqual(Object.keys(ERRORS).sort());
    expect(document.components.schemas.ErrorEnvelope.properties.error.enum).toEqual(Object.keys(ERRORS));
  });

  it('have the statuses of the contract, and can be tried again where it says so', () => {
    const rows = rowsOf('Code', 'Status', 'Retryable').filter(([code]) => code !== '');
    expect(
      Object.fromEntries(rows.map(([code, status, retryable]) => [code, [Number(status), retryable]])),
    ).toEqual(
      Object.fromEntries(
        Object.entries(ERRORS).map(([code, { status, retryable }]) => [
          `\`${code}\``,
          [status, retryable ? 'yes' : 'no'],
        ]),
      ),
    );
  });
});

describe('what is sent and answered', () => {
  /** Statuses seen, by operation. */
  const seen = new Map<string, Set<string>>();

  /** Makes a call of an operation and holds its answer against the document. */
  async function call(name: string, path: string, { headers, body }: Call = {}): Promise<Answer> {
    const answer = await server.request(name.split(' ')[0] as string, path, { headers, body });
    expect(api.problemsOfAnswer(name, answer)).toEqual([]);
    const status = String(answer.status);
    seen.set(name, (seen.get(name) ?? new Set()).add(status));
    return answer;
  }

  const operator = { authorization: `Bearer ${ADMIN_TOKEN}` };

  it('is as the document says, on every route', async () => {
    const as = credentialsOf;
    const tasks = (...list: object[]) =>
      call('POST /v1/tasks', '/v1/tasks', { headers: operator, body: { tasks: list } });
    const get = (name: string, path: string) => call(`GET ${name}`, path, { headers: operator });
    const post = (name: string, path: string) => call(`POST ${name}`, path, { headers: operator });

    // Public ones.
    await call('GET /healthz', '/healthz');
    await call('GET /livez', '/livez');
    await call('GET /readyz', '/readyz');
    await call('GET /.well-known/jwks.json', '/.well-known/jwks.json');

    for (const path of READ) await get(path, path);

    // Both places of the agents' paths.
    for (const place of ['', '/v1/agents']) {
      const agentCall = (who: Credentials, route: string, body: object, headers = {}) =>
        call(`POST ${place}/${route}`, `${place}/${route}`, {
          headers: { ...as(who), ...headers },
          body: { agent_id: who.agent_id, ...body },
        });
      const register = (body: object) => call(`POST ${place}/register`, `${place}/register`, { body });
      const nameless: Credentials = (await register({})).body;
      const who: Credentials = (await register({ hostname: `probe-${place.length}` })).body;
      await register({ hostname: '' });
      await register({ enrollment_token: 'x'.repeat(24) });
      await register({ hostname: `probe-${place.length}` });
      await agentCall(who, 'heartbeat', {});
      await agentCall(who, 'heartbeat', { agent_id: nameless.agent_id });
      await agentCall({ ...who, auth_token: 'x' }, 'heartbeat', {});
      await agentCall(who, 'claim', { capacities: { dns: 1 } });
      await agentCall(who, 'claim', { capacities: { whois: 1 } });

      // One task of every kind, in every state, with results of every standing.
      await tasks(
        dnsTask(
          { priority: 9, max_attempts: 1, unique_key: `k${place}` },
          { server: '192.0.2.1', record_type: null },
        ),
        { kind: 'http', spec: { url: 'https://example.com/', method: 'GET' } },
        { kind: 'tcp', spec: { host: 'example.com', port: 443 } },
        { kind: 'ping', spec: { host: 'example.com', count: 2, rate_limit_per_sec: 2 } },
        { kind: 'trace', spec: { host: 'example.com', max_hops: null } },
        dnsTask({ run_at: '2030-01-01T00:00:00Z', not_after: '2031-01-01T00:00:00Z' }),
      );
      const capacities = { dns: 9, http: 9, tcp: 9, ping: 9, trace: 9 };
      const { leases } = (await agentCall(who, 'claim', { capacities }, { 'idempotency-key': `c${place}` }))
        .body;
      expect(leases).toHaveLength(5);
      await agentCall(who, 'claim', { capacities: {} }, { 'idempotency-key': `c${place}` });
      const leaseOf = (kind: string) => leases.find((lease: Json) => lease.kind === kind);
      const ids = leases.map((lease: Json) => lease.lease_id);
      await agentCall(who, 'extend', { lease_ids: [...ids, 999_999], extend_by_ms: 5_000 });
      await agentCall(who, 'extend', { lease_ids: [], extend_by_ms: -1 });
      await post('/v1/tasks/{id}/cancel', `/v1/tasks/${leaseOf('trace').task_id}/cancel`);
      const observations = [
        { name: 'text', value: 'a' },
        { name: 'number', value: -1.5e300, unit: 'ms' },
        { name: 'truth', value: true, unit: null },
        { name: 'nothing', value: null },
        { name: 'list', value: [1, 'a', [null]] },
        { name: 'object', value: { a: { b: [] } } },
      ];
      const completed = ['http', 'tcp', 'trace'].map((kind) => ({
        lease_id: leaseOf(kind).lease_id,
        observations,
      }));
      const cancelled = ['dns', 'ping'].map((kind) => ({
        lease_id: leaseOf(kind).lease_id,
        outcome: 'timeout',
      }));
      await agentCall(who, 'report', { completed, cancelled });
      await agentCall(who, 'report', { completed: cancelled, cancelled: [] });
      await agentCall(who, 'report', { completed: [], cancelled: 5 });
      for (const lease of leases) await get('/v1/tasks/{id}', `/v1/tasks/${lease.task_id}`);
      for (const lease of leases) await get('/v1/tasks/{id}/why', `/v1/tasks/${lease.task_id}/why`);
      await post('/v1/tasks/{id}/retry', `/v1/tasks/${leaseOf('trace').task_id}/retry`);
      await post('/v1/tasks/{id}/cancel', `/v1/tasks/${leaseOf('trace').task_id}/cancel`);
      await post('/v1/tasks/{id}/retry', `/v1/tasks/${leaseOf('http').task_id}/retry`);
      await post('/v1/tasks/{id}/cancel', `/v1/tasks/${leaseOf('http').task_id}/cancel`);
      for (const name of ['cancel', 'retry'])
        await call(`POST /v1/tasks/${name}`, `/v1/tasks/${name}`, {
          headers: operator,
          body: { kind: 'trace', dry_run: true },
        });

      const timestamp = new Date(clock.now()).toISOString();
      const counters = [{ name: 'checks_total', value: 4, unit: '1' }];
      await agentCall(who, 'metrics', {
        timestamp,
        counters,
        gauges: [{ name: 'load', value: 0.5, unit: null }],
      });
      await agentCall(who, 'metrics', { timestamp: 'now' });
      await get('/v1/agents/{id}/metrics', `/v1/agents/${who.agent_id}/metrics`);
      await get('/v1/agents/{id}/metrics', `/v1/agents/${who.agent_id}/metrics?limit=0`);

      const config = (headers = {}) =>
        call(`GET ${place}/config`, `${place}/config`, { headers: { ...as(who), ...headers } });
      if (place === '') await config();
      const publish = (body: object, headers = {}) =>
        call('POST /v1/configs', '/v1/configs', { headers: { ...operator, ...headers }, body });
      const { revision } = (
        await publish({ config: { resolvers: ['192.0.2.53'], place } }, { 'idempotency-key': `p${place}` })
      ).body;
      await publish({ config: {} }, { 'idempotency-key': `p${place}` });
      await publish({ config: { a: 1e300 }, expires_in: 1 });
      const etag = (await config()).headers.get('etag') as string;
      await config({ 'if-none-match': etag });
      await call(`GET ${place}/config`, `${place}/config`);
      await agentCall(who, 'heartbeat', { config_revision: revision, config_status: 'applied' });
      await get('/v1/agents/{id}', `/v1/agents/${who.agent_id}`);
      const failure = {
        config_revision: revision,
        config_status: 'failed',
        config_message: 'no such resolver',
      };
      await agentCall(who, 'heartbeat', failure);
      await agentCall(who, 'heartbeat', { ...failure, config_status: 'applied' });
      await get('/v1/agents', '/v1/agents');
      await publish({ config: { resolvers: [], list: [1, null, 'a', {}, [], true] } });
      const { body: back } = await call(
        'POST /v1/configs/{revision}/rollback',
        `/v1/configs/${revision}/rollback`,
        {
          headers: operator,
          body: { expires_in: 60 },
        },
      );
      for (const of of [revision, back.revision, 'x']) {
        await get('/v1/configs/{revision}', `/v1/configs/${of}`);
        await get('/v1/configs/{revision}/diff', `/v1/configs/${of}/diff`);
      }
      await post('/v1/configs/{revision}/rollback', '/v1/configs/x/rollback');

      // How an agent ends.
      const change = (method: string, what: string, body: object) =>
        call(`${method} /v1/agents/{id}/${what}`, `/v1/agents/${who.agent_id}/${what}`, {
          headers: operator,
          body,
        });
      await change('PUT', 'labels', { labels: { region: 'fra', note: '' } });
      await change('PUT', 'labels', { labels: { 'no name': 'x' } });
      await change('POST', 'rotate', { revoke_old: null });
      await change('POST', 'rotate', { revoke_old: 1 });
      await get('/v1/agents', '/v1/agents?label=region:fra&label=note:');
      for (const verb of ['drain', 'disable', 'enable', 'revoke', 'enable']) {
        await post(`/v1/agents/{id}/${verb}`, `/v1/agents/${who.agent_id}/${verb}`);
      }
      await agentCall(who, 'heartbeat', {});
      await get('/v1/agents/{id}', `/v1/agents/${who.agent_id}`);
      await call('DELETE /v1/agents/{id}', `/v1/agents/${who.agent_id}`, { headers: operator });
      await call('DELETE /v1/agents/{id}', `/v1/agents/${who.agent_id}`, { headers: operator });
    }

    await call('PUT /v1/concurrency/limits', '/v1/concurrency/limits', {
      headers: operator,
      body: {
        limits: [{ limit: 100 }, { kind: 'dns', limit: 0 }, { kind: 'dns', target: 'a', limit: null }],
      },
    });
    await call('PUT /v1/concurrency/limits', '/v1/concurrency/limits', { headers: operator, body: {} });
    const paced = await call('PUT /v1/concurrency/limits', '/v1/concurrency/limits', {
      headers: operator,
      body: { limits: [{ kind: 'dns', target: 'b', rate: 2.5, adaptive: true }] },
    });
    await get(
      '/v1/concurrency/windows/{id}/history',
      `/v1/concurrency/windows/${paced.body.windows[0].id}/history`,
    );
    await get('/v1/concurrency/politeness', '/v1/concurrency/politeness?kind=dns&target=b');
    await get('/v1/concurrency/politeness', '/v1/concurrency/politeness?kind=dns&target=b&day=b');

    const made = { headers: operator, body: { name: 'a', role: 'viewer', expires_in: 60 } };
    const { id } = (await call('POST /v1/operator-tokens', '/v1/operator-tokens', made)).body;
    await get('/v1/operator-tokens', '/v1/operator-tokens');
    for (const body of [{ hostname: 'by-hand', labels: { a: 'b' } }, { hostname: 'by-hand' }, { labels: 5 }])
      await call('POST /v1/agents', '/v1/agents', { headers: operator, body });
    const limited = { name: 'a', labels: { a: 'c' }, max_uses: 1, expires_in: 60 };
    const enrolling = (body: object) =>
      call('POST /v1/enrollment-tokens', '/v1/enrollment-tokens', { headers: operator, body });
    const issued = (await enrolling(limited)).body;
    await enrolling({ name: 'b' });
    await enrolling({});
    await call('POST /register', '/register', { body: { enrollment_token: issued.token } });
    await call('POST /register', '/register', { body: { enrollment_token: issued.token } });
    await get('/v1/agents', `/v1/agents?enrollment_token_id=${issued.id}`);
    await get('/v1/enrollment-tokens', '/v1/enrollment-tokens');
    await call('DELETE /v1/enrollment-tokens/{id}', `/v1/enrollment-tokens/${issued.id}`, {
      headers: operator,
    });
    await call('DELETE /v1/operator-tokens/{id}', `/v1/operator-tokens/${id}`, { headers: operator });
    await get('/v1/audit', '/v1/audit');
    await get('/v1/audit/verification', '/v1/audit/verification');
    await tasks(dnsTask());
    await tasks();
    await get('/metrics', '/metrics');
    for (const path of READ) {
      await get(path, path);
      await get(path, `${path}?limit=1`);
    }
    // Nobody, and unknown and impossible ids.
    for (const { name, access } of routes) {
      const path = name.split(' ')[1] as string;
      if (access?.kind !== 'public') expect((await call(name, path.replace('{id}', '1'))).status).toBe(401);
      if (!path.includes('{id}')) continue;
      const content = jsonOf(operations.get(name).requestBody?.content);
      const sent = { headers: operator, body: content && api.exampleOf(content.schema, name, []) };
      expect((await call(name, path.replace('{id}', '999999'), sent)).status).toBe(404);
      expect((await call(name, path.replace('{id}', 'x'), sent)).status).toBe(400);
    }

    // Nothing that the document calls a success was left out.
    const unseen = [...operations].flatMap(([name, operation]) =>
      successesOf(operation)
        .filter((status) => !seen.get(name)?.has(status))
        .map((status) => `${name} ${status}`),
    );
    expect(unseen).toEqual([]);
  });

  it('can be what the document has as an example, on every route that takes a body', async () => {
    const own = await TestServer.start({}, { clock: new TestClock() });
    try {
      const who = await own.register('probe-1');
      // The examples are an agent's whose id is this.
      expect(who.agent_id).toBe(1);
      const published = async () =>
        (await own.operator('GET', '/v1/configs')).body.items[0]?.revision ?? 'none';
      for (const { name, access } of routes) {
        const { requestBody } = operations.get(name);
        if (!requestBody) continue;
        const { schema, examples = {} } = jsonOf(requestBody.content);
        const headers =
          access?.kind === 'operator' ? operator : access?.kind === 'agent' ? credentialsOf(who) : {};
        const [method, path] = name.split(' ') as [string, string];
        const bodies = [
          api.exampleOf(schema, name, []),
          ...Object.values<Json>(examples).map(({ value }) => value),
        ];
        for (const body of bodies) {
          const at = path.replace('{id}', '1').replace('{revision}', await published());
          const answer = await own.request(method, at, { headers, body });
          const expected = successesOf(operations.get(name));
          expect([name, answer.body.details, expected]).toEqual([
            name,
            answer.body.details,
            expect.arrayContaining([String(answer.status)]),
          ]);
        }
      }
    } finally {
      await own.stop();
    }
  });
});

describe('the database after migrating', () => {
  interface Column {
    name: string;
    type: string;
    nullable: boolean;
    primary: boolean;
    /** Whether the database gives the values, none of them twice. */
    generated: boolean;
  }
  /** Tables that only SQL is used on. */
  const WITHOUT_ENTITY = [
    'idempotency_keys',
    'migrations',
    // What the queue is made of: written and read by statements of its own.
    'finished_tasks',
    'lanes',
    'ready',
    'scheduled',
    'task_count_deltas',
    'task_counts',
    'task_expiries',
    'unique_keys',
    // Replicas share their quotas; one process keeps its own in memory.
    ...(onPostgres ? ['quota_buckets'] : []),
  ];

  const names = async (sql: string): Promise<string[]> =>
    (await server.rows<{ name: string }>(sql)).map(({ name }) => name).sort();

  async function columns(table: string): Promise<Column[]> {
    if (onPostgres) {
      const rows = await server.rows<Column>(
        `SELECT attname AS name, format_type(atttypid, atttypmod) AS type, NOT attnotnull AS nullable,
           coalesce(attnum = ANY (i.indkey), false) AS primary, attidentity <> '' AS generated
         FROM pg_attribute LEFT JOIN pg_index i ON i.indrelid = attrelid AND i.indisprimary
         WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped`,
        table,
      );
      // SQLite knows such ids by this type only; it holds as much there.
      return rows.map((row) => (row.generated && row.type === 'bigint' ? { ...row, type: 'integer' } : row));
    }
    const rows = await server.rows<{ name: string; type: string; notnull: number; pk: number; sql: string }>(
      `SELECT c.*, t.sql FROM pragma_table_xinfo($1) AS c, sqlite_master AS t WHERE t.name = $1 AND t.type = 'table'`,
      table,
    );
    return rows.map(({ name, type, notnull, pk, sql }) => ({
      name,
      type: type.toLowerCase(),
      nullable: notnull === 0,
      primary: pk > 0,
      generated: sql.includes(`${name} integer PRIMARY KEY AUTOINCREMENT`),
    }));
  }

  /** The columns that are unique alone, for every row, but for the primary key. */
  const uniqueColumns = (table: string) =>
    names(
      onPostgres
        ? `SELECT attname AS name FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
           WHERE indrelid = '${table}'::regclass AND indisunique AND NOT indisprimary AND indnkeyatts = 1
             AND indpred IS NULL`
        : `SELECT min(c.name) AS name FROM pragma_index_list('${table}') AS i, pragma_index_info(i.name) AS c
           WHERE i."unique" = 1 AND i.origin <> 'pk' AND i.partial = 0 GROUP BY i.name HAVING count(*) = 1`,
    );

  const sorted = (list: Column[]) => list.sort((a, b) => (a.name < b.name ? -1 : 1));

  it('has a table for every entity, and an entity for every table that is not known to do without', async () => {
    const mapped = server.database.source.entityMetadatas.map(({ tableName }) => tableName);
    expect(mapped).toHaveLength(ENTITIES.length);
    expect([...mapped, ...WITHOUT_ENTITY].sort()).toEqual(await server.tables());
  });

  it('has the columns that the entities have, and gives no id twice', async () => {
    for (const entity of server.database.source.entityMetadatas) {
      const wanted = entity.columns.map(
        ({ databaseName, type, isNullable, isPrimary, generationStrategy }) => ({
          name: databaseName,
          type: String(type),
          nullable: isNullable,
          primary: isPrimary,
          generated: generationStrategy === 'increment',
        }),
      );
      const shown = await columns(entity.tableName);
      expect([entity.tableName, sorted(shown)]).toEqual([entity.tableName, sorted(wanted)]);
    }
  });

  it('has what the entities call unique', async () => {
    for (const { tableName, uniques } of server.database.source.entityMetadatas) {
      const wanted = uniques.map((unique) => unique.columns.map(({ databaseName }) => databaseName).join());
      expect([tableName, await uniqueColumns(tableName)]).toEqual([tableName, wanted.sort()]);
    }
  });
});
