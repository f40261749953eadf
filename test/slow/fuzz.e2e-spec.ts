import { Agent, request } from 'node:http';
import { ERRORS, type ErrorCode } from '../../src/errors';
import { ApiDocument, jsonOf } from '../helpers/api-document';
import { ADMIN_TOKEN, type Answer, dnsTask, onPostgres, TestServer } from '../helpers/harness';
import { Chance, type HostileRequest, HostileRequests, THROWAWAY_IDS } from '../helpers/hostile-requests';

/** `FUZZ_REQUESTS=200000 FUZZ_SEED=1` for more of them, and for the same again. */
const REQUESTS = Number(process.env.FUZZ_REQUESTS ?? (onPostgres ? 3_000 : 6_000));
const SEED = Number(process.env.FUZZ_SEED ?? Date.now() % 2 ** 31);
const CONNECTIONS = 32;
/** Refused before there is a route, or by what arrived of the request. */
const STATUSES_OF_VALIDATION = [400, 408, 413, 415, 417, 431];

describe(`whatever is sent (FUZZ_SEED=${SEED})`, () => {
  let server: TestServer;
  let api: ApiDocument;
  const connections = new Agent({ keepAlive: true, maxSockets: CONNECTIONS });

  beforeAll(async () => {
    server = await TestServer.start();
    api = new ApiDocument((await server.request('GET', '/docs-json')).body);
    await server.operator('POST', '/v1/configs', { config: { resolvers: ['192.0.2.53'] } });
    for (let i = 0; i < THROWAWAY_IDS; i++) await server.register(`throwaway-${i}`);
    await server.enqueue(...Array.from({ length: THROWAWAY_IDS }, () => dnsTask()));
  });
  afterAll(async () => {
    connections.destroy();
    await server.stop();
  });

  /** Sends a request as it is: headers and paths that `fetch` would not let through too. */
  function send({ method, path, headers, body }: HostileRequest): Promise<Answer> {
    return new Promise((resolve, reject) => {
      const sent = request(server.url, { method, path, headers, agent: connections }, (response) => {
        const chunks: Buffer[] = [];
        response
          .on('data', (chunk) => chunks.push(chunk))
          .on('error', reject)
          .on('end', () => {
            const text = Buffer.concat(chunks).toString();
            const answered = new Headers();
            for (let i = 0; i < response.rawHeaders.length; i += 2)
              answered.append(response.rawHeaders[i] as string, response.rawHeaders[i + 1] as string);
            const isJson = /json/.test(response.headers['content-type'] ?? '');
            resolve({
              status: response.statusCode as number,
              headers: answered,
              body: isJson && text !== '' ? JSON.parse(text) : text,
            });
          });
      });
      sent.on('error', reject).end(body);
    });
  }

  /** What is wrong with an answer: a failure of the server, or an answer that is not as documented. */
  function problemsOf({ name }: HostileRequest, answer: Answer): string[] {
    if (answer.status < 400) return api.problemsOfAnswer(name, answer);
    const { status, headers, body } = answer;
    const problems = api.problemsOf('error', { $ref: '#/components/schemas/ErrorEnvelope' }, body);
    if (status >= 500) problems.push(`a failure of the server: ${status}`);
    if (headers.get('content-type') !== 'application/json; charset=utf-8') problems.push('not JSON');
    const code: ErrorCode = body.error;
    const statuses = code === 'ERR_VALIDATION' ? STATUSES_OF_VALIDATION : [ERRORS[code]?.status];
    if (!statuses.includes(status)) problems.push(`${code} with ${status}`);
    return problems;
  }

  it(`is answered as documented, ${REQUESTS} requests to every route`, async () => {
    const requests = new HostileRequests(api, ADMIN_TOKEN, await server.register());
    const failures: string[] = [];
    /** How often each operation was answered by each status. */
    const statuses = new Map([...api.operations.keys()].map((name) => [name, new Map<number, number>()]));
    let sent = 0;
    const worker = async (): Promise<void> => {
      while (sent < REQUESTS && failures.length < 5) {
        const number = sent++;
        const made = requests.make(new Chance(SEED + number * 7_919), number);
        const answer = await send(made).catch((error: Error) => error);
        // By its fields: errors of the network are no instances of the test's own class.
        const isAnswer = 'status' in answer;
        const problems = isAnswer ? problemsOf(made, answer) : [`no answer: ${answer}`];
        if (problems.length > 0) {
          const shown = `${made.body?.toString() ?? ''}`.slice(0, 1_000);
          failures.push(
            [`request ${number}: ${made.method} ${made.path.slice(0, 300)}`, JSON.stringify(made.headers)]
              .concat(shown, problems, isAnswer ? JSON.stringify(answer.body).slice(0, 500) : [])
              .join('\n'),
          );
        }
        if (!isAnswer) continue;
        const seen = statuses.get(made.name) as Map<number, number>;
        seen.set(answer.status, (seen.get(answer.status) ?? 0) + 1);
        if (answer.status < 300) requests.learn(answer.body);
        // It was put out by one of the others.
        const agentIsOut = [401, 403].includes(answer.status) && made.headers['x-agent-token'];
        if (agentIsOut && made.trusted && made.headers['x-agent-token'] === requests.agent.auth_token)
          requests.agent = await server.register();
      }
    };
    await Promise.all(Array.from({ length: CONNECTIONS }, worker));
    if (failures.length > 0) throw new Error(`FUZZ_SEED=${SEED}\n\n${failures.join('\n\n')}`);
    expect(sent).toBe(REQUESTS);

    // The requests came as far as they were meant to.
    for (const [name, seen] of statuses) {
      const passed = [...seen].filter(([status]) => status !== 401 && status !== 403);
      const count = [...seen.values()].reduce((sum, n) => sum + n, 0);
      const reached = passed.reduce((sum, [, n]) => sum + n, 0);
      expect([name, reached > count / 2]).toEqual([name, true]);
      if (jsonOf(api.operations.get(name).requestBody?.content))
        expect([name, [...seen.keys()]]).toEqual([name, expect.arrayContaining([400])]);
    }
  }, 600_000);

  it('leaves a server that works', async () => {
    expect(({} as { polluted?: boolean }).polluted).toBeUndefined();
    expect((await server.request('GET', '/readyz')).body).toEqual({ status: 'ok' });
    const target = '192.0.2.99';
    const none = { limit: null, rate: null };
    const every = { kind: 'dns', target: '*', adaptive: false, ...none };
    await server.operator('PUT', '/v1/concurrency/limits', {
      limits: [none, { kind: 'dns', ...none }, every, { ...every, target }],
    });
    const agent = await server.register('after-the-storm');
    const [task] = await server.enqueue(dnsTask({ priority: 2_147_483_647 }, { server: target }));
    const { body } = await server.agent(agent, '/claim', { capacities: { dns: 256 } });
    const lease = body.leases.find(({ task_id }: { task_id: number }) => task_id === task);
    expect(lease).toMatchObject({ kind: 'dns', spec: { server: target } });
    const extended = await server.agent(agent, '/extend', {
      lease_ids: [lease.lease_id],
      extend_by_ms: 9_000,
    });
    expect(extended.body).toMatchObject({ outcomes: [{ lease_id: lease.lease_id }], revoked: [] });
    const completed = [{ lease_id: lease.lease_id, observations: [{ name: 'a', value: 1 }] }];
    const report = await server.agent(agent, '/report', { completed, cancelled: [] });
    expect(report.body).toEqual({ acknowledged: 1 });
    expect((await server.operator('GET', `/v1/tasks/${task}`)).body).toMatchObject({ state: 'completed' });
  });
});
