import { ADMIN_TOKEN, type Credentials, credentialsOf, dnsTask, TestServer } from '../helpers/harness';

/** Values as JSON text: what is written must come back with the same digits and the same code units. */
const VALUES = [
  '"v=\\u0000abc"',
  '"half \\ud800 pair"',
  '"\\udc00 the other"',
  '{"txt":["\\u0000","\\u001b[31m"]}',
  '["\u202e","\u200b"]',
  '1e308',
  '-0.0',
  '-0',
  '1.0',
  '[1.50,{"deep":-0.0}]',
  '12345678901234567890',
  '[[[[[]]]]]',
  '{"__proto__":{"admin":true},"constructor":1}',
  '{"toJSON":1,"\\u0000":"\\ud800","":null}',
  '{"b":1,"5":[],"4":2}',
  '"\ufffe"',
  '""',
  'null',
  'false',
];

describe('free values', () => {
  let server: TestServer;
  let agent: Credentials;

  beforeAll(async () => {
    server = await TestServer.start();
    agent = await server.register('probe-1');
  });
  afterAll(() => server.stop());

  const lease = async (): Promise<{ task: number; lease: number }> => {
    await server.enqueue(dnsTask());
    const { body } = await server.agent(agent, '/claim', { capacities: { dns: 1_000 } });
    return { task: body.leases[0].task_id, lease: body.leases[0].lease_id };
  };
  const report = (completed: string, cancelled = '[]') =>
    server.request('POST', '/report', {
      headers: { ...credentialsOf(agent), 'content-type': 'application/json' },
      body: `{"agent_id":${agent.agent_id},"completed":${completed},"cancelled":${cancelled}}`,
    });
  /** The task as it is written in the answer. */
  const textOf = async (id: number): Promise<string> => {
    const response = await fetch(`${server.url}/v1/tasks/${id}`, {
      headers: { authorization: `Bearer ${ADMIN_TOKEN}` },
    });
    expect(response.headers.get('content-type')).toBe('application/json; charset=utf-8');
    return response.text();
  };
  const observationsOf = async (id: number) =>
    (await server.operator('GET', `/v1/tasks/${id}`)).body.leases[0].result?.observations;

  it.each(VALUES)('are kept in an observation exactly as sent: %j', async (value) => {
    const { task, lease: id } = await lease();
    const sent = `[{"name":"before","value":1},{"name":"n\\u0000\\udfff","value":${value},"unit":"\\u0000"},{"name":"after","value":"x"}]`;
    expect(await report(`[{"lease_id":${id}, "observations": ${sent}}]`)).toMatchObject({
      status: 200,
      body: { acknowledged: 1 },
    });
    const text = await textOf(task);
    // What need not be escaped may come back as it is.
    expect(text).toContain(`"observations":${sent}`);
    expect(JSON.parse(text).leases[0].result.observations).toEqual(JSON.parse(sent));
  });

  it.each([0, 1, 121, 1_000])('may be %d in a report', async (count) => {
    const { task, lease: id } = await lease();
    const observations = Array.from({ length: count }, (_, i) => ({ name: `o${i}`, value: i }));
    expect((await report(JSON.stringify([{ lease_id: id, observations }]))).body).toEqual({
      acknowledged: 1,
    });
    expect(await observationsOf(task)).toEqual(observations);
  });

  it('of what is observed leave out fields that nobody knows', async () => {
    const { task, lease: id } = await lease();
    const observation = { name: 'a', value: 1, unit: null };
    const body = [{ lease_id: id, mood: 5, observations: [{ ...observation, confidence: 0.5 }] }];
    expect((await report(JSON.stringify(body))).body).toEqual({ acknowledged: 1 });
    expect(await observationsOf(task)).toEqual([observation]);
  });

  it.each([
    [
      'too many observations',
      `"observations":${JSON.stringify(Array(1_001).fill({ name: 'a', value: 1 }))}`,
      'observations',
    ],
    ['observations that are no list', '"observations":{}', 'observations'],
    ['an invalid observation', '"observations":[7]', 'observations.0'],
    [
      'an observation without a name',
      '"observations":[{"name":"a","value":1},{"value":1}]',
      'observations.1.name',
    ],
    ['an observation without a value', '"observations":[{"name":"a"}]', 'observations.0.value'],
    [
      'a name that is too long',
      `"observations":[{"name":"${'a'.repeat(256)}","value":1}]`,
      'observations.0.name',
    ],
    ['a unit that is no text', '"observations":[{"name":"a","value":1,"unit":5}]', 'observations.0.unit'],
    ['an outcome that there is not', '"outcome":"maybe"', 'outcome'],
    ['a failure that there is not', '"outcome":"error","failure":"maybe"', 'failure'],
    ['a failure that is no text', '"failure":5', 'failure'],
    ['a duration that is no number', '"rtt_ms":"5"', 'rtt_ms'],
    ['a negative duration', '"rtt_ms":-0.5', 'rtt_ms'],
    ['a duration of more than an hour', '"rtt_ms":3600000.5', 'rtt_ms'],
    ['a duration that overflows', '"rtt_ms":1e999', 'rtt_ms'],
    ['a number that overflows', '"observations":[{"name":"a","value":[1e999]}]', 'observations.0.value.0'],
    ['a key twice', '"observations":[{"name":"a","value":{"b":[1],"b":2}}]', 'observations.0.value.b'],
    ['a key of its own twice', '"outcome":"error","outcome":"success"', 'outcome'],
    [
      'nesting without end',
      `"observations":[{"name":"a","value":${'['.repeat(5_000)}${']'.repeat(5_000)}}]`,
      '',
    ],
  ])('of one report do not spoil the others: %s', async (_what, wrong, field) => {
    const before = await lease();
    const invalid = await lease();
    const after = await lease();
    const good = (id: number) =>
      `{"lease_id":${id},"outcome":"success","observations":[{"name":"a","value":-0.0}]}`;
    const answer = await report(
      `[${good(before.lease)},{"lease_id":${invalid.lease},${wrong}},${good(after.lease)}]`,
    );
    expect(answer).toMatchObject({
      status: 200,
      body: { acknowledged: 2, rejected: [{ lease_id: invalid.lease, reason: 'invalid' }] },
    });
    expect(Object.keys(answer.body.rejected[0].details)).toEqual([`completed.1${field && '.'}${field}`]);
    expect(await textOf(after.task)).toContain('-0.0');
    // Its lease is live still, and can be reported rightly.
    const live = await server.operator('GET', `/v1/tasks/${invalid.task}`);
    expect(live.body).toMatchObject({ state: 'leased', leases: [{ state: 'active', result: null }] });
    expect((await report(`[${good(invalid.lease)}]`)).body).toEqual({ acknowledged: 1 });
  });

  it('of a report that names no lease are rejected under the lease 0, alone', async () => {
    const { lease: id } = await lease();
    const answer = await report(
      `[7,{},{"lease_id":"1"},1e999,null,[],{"lease_id":${id}}]`,
      '[{"outcome":"error"}]',
    );
    const rejected = answer.body.rejected.map(({ lease_id, reason, details }) => [
      lease_id,
      reason,
      Object.entries(details)[0],
    ]);
    expect(rejected).toEqual([
      [0, 'invalid', ['completed.0', 'must be an object']],
      [0, 'invalid', ['completed.1.lease_id', 'is required']],
      [0, 'invalid', ['completed.2.lease_id', 'must be an integer from 1 to 9007199254740991']],
      [0, 'invalid', ['completed.3', 'must be an object']],
      [0, 'invalid', ['completed.4', 'must be an object']],
      [0, 'invalid', ['completed.5', 'must be an object']],
      [0, 'invalid', ['cancelled.0.lease_id', 'is required']],
    ]);
    expect(answer.body.acknowledged).toBe(1);
  });

  it('with a failure or a round-trip time that is not one are invalid, and those beside them are taken', async () => {
    const [first, second] = [await lease(), await lease()];
    const answer = await report(
      `[{"lease_id":${first.lease},"failure":"sick"},{"lease_id":${first.lease},"rtt_ms":-1},{"lease_id":${first.lease},"rtt_ms":3600001},{"lease_id":${first.lease},"rtt_ms":"5"},{"lease_id":${second.lease},"failure":null,"rtt_ms":0.25}]`,
      `[{"lease_id":${first.lease},"failure":"policy","rtt_ms":null}]`,
    );
    expect(answer.body.acknowledged).toBe(2);
    expect(answer.body.rejected.map(({ details }) => Object.entries(details)[0])).toEqual([
      ['completed.0.failure', 'must be one of refused, throttled, timeout, unreachable, local, policy'],
      ['completed.1.rtt_ms', 'must be a number from 0 to 3600000'],
      ['completed.2.rtt_ms', 'must be a number from 0 to 3600000'],
      ['completed.3.rtt_ms', 'must be a number from 0 to 3600000'],
    ]);
    expect(
      await server.rows('SELECT id, failure, rtt_ms FROM leases WHERE id >= $1 ORDER BY id', first.lease),
    ).toEqual([
      { id: first.lease, failure: 'policy', rtt_ms: null },
      { id: second.lease, failure: null, rtt_ms: 0.25 },
    ]);
  });

  it('of one lease twice in a report count as two reports one after the other', async () => {
    const { task, lease: id } = await lease();
    const answer = await report(
      `[{"lease_id":${id},"outcome":"error","observations":[{"name":"first","value":1}]},{"lease_id":${id},"outcome":"error"},{"lease_id":${id}}]`,
      `[{"lease_id":${id}}]`,
    );
    expect(answer.body).toEqual({
      acknowledged: 2,
      rejected: [
        { lease_id: id, reason: 'conflict' },
        { lease_id: id, reason: 'conflict' },
      ],
    });
    expect(await observationsOf(task)).toEqual([{ name: 'first', value: 1 }]);
  });

  it('keep an outcome that was not said unsaid, and let it be said again so', async () => {
    const { task, lease: id } = await lease();
    expect((await report(`[{"lease_id":${id}}]`)).body).toEqual({ acknowledged: 1 });
    expect((await report(`[{"lease_id":${id},"outcome":null}]`)).body).toEqual({ acknowledged: 1 });
    expect((await report(`[{"lease_id":${id},"outcome":"success"}]`)).body.rejected).toEqual([
      { lease_id: id, reason: 'conflict' },
    ]);
    expect((await server.operator('GET', `/v1/tasks/${task}`)).body).toMatchObject({
      state: 'completed',
      leases: [{ result: { standing: 'final', outcome: null } }],
    });
  });

  it("are kept in the names and units of metrics, and in an agent's word on its configuration", async () => {
    const sample = { name: 'q\0\ud800\u202e', value: 1, unit: '\udfff' };
    const other = { ...sample, name: 'q\0\udbff\u202e' };
    const timestamp = new Date().toISOString();
    const first = await server.agent(agent, '/metrics', { timestamp, gauges: [sample], more: [1] });
    const second = await server.agent(agent, '/metrics', { timestamp, gauges: [other] });
    expect([first.status, second.status]).toEqual([202, 202]);
    expect(first.body.id).not.toBe(second.body.id);
    const { items } = (await server.operator('GET', `/v1/agents/${agent.agent_id}/metrics`)).body;
    expect(items.map((item) => item.gauges)).toEqual([[other], [sample]]);

    const config_message = 'no \0 \ud800 {"a"} \u001b[31m';
    const said = { config_revision: 'a', config_status: 'failed', config_message };
    expect((await server.agent(agent, '/heartbeat', said)).status).toBe(200);
    expect((await server.operator('GET', `/v1/agents/${agent.agent_id}`)).body.config.message).toBe(
      config_message,
    );
  });

  it('are kept in configurations, but for what RFC 8785 can not sign', async () => {
    const config = JSON.parse('{"a\\u0000":"\\u0000\\u202e","__proto__":{"b":1},"constructor":[]}');
    const published = await server.operator('POST', '/v1/configs', { config });
    expect(published.status).toBe(201);
    const fetched = await server.request('GET', '/config', { headers: credentialsOf(agent) });
    expect(JSON.stringify(fetched.body.config)).toBe(
      '{"__proto__":{"b":1},"a\\u0000":"\\u0000\u202e","constructor":[]}',
    );
    const path = `/v1/configs/${published.body.revision}`;
    expect(JSON.stringify((await server.operator('GET', path)).body.config)).toBe(
      JSON.stringify(fetched.body.config),
    );
    expect((await server.operator('GET', `${path}/diff`)).body.changes).toHaveLength(3);
    expect(await server.operator('POST', '/v1/configs', { config: { a: '\ud800' } })).toMatchObject({
      status: 400,
      body: { details: { 'config.a': 'must not hold half of a surrogate pair' } },
    });
  });

  it("may be anything in what is not known of an agent's call", async () => {
    const deep = `${'['.repeat(1_000)}${']'.repeat(1_000)}`;
    const unknown = `"x":1e999,"y":{"a":1,"a":[]},"z":${deep},"x":"\\u0000"`;
    const me = `"agent_id":${agent.agent_id}`;
    const { lease: id } = await lease();
    const observations = `[{"name":"a","value":1,${unknown}}]`;
    const sample = `{"name":"a","value":1,${unknown}}`;
    const answers = [];
    for (const [path, members] of [
      ['/register', `"hostname":"a-newer-agent"`],
      ['/heartbeat', me],
      ['/claim', `${me},"capacities":{}`],
      ['/extend', `${me},"lease_ids":[],"extend_by_ms":1`],
      [
        '/report',
        `${me},"completed":[{"lease_id":${id},"observations":${observations},${unknown}}],"cancelled":[]`,
      ],
      ['/metrics', `${me},"timestamp":"${new Date().toISOString()}","counters":[${sample}],"gauges":[]`],
    ]) {
      const headers = { ...credentialsOf(agent), 'content-type': 'application/json' };
      const { status, body } = await server.request('POST', path as string, {
        headers,
        body: `{${unknown},${members}}`,
      });
      answers.push([path, status, body.acknowledged ?? body.details]);
    }
    expect(answers).toEqual([
      ['/register', 200, undefined],
      ['/heartbeat', 200, undefined],
      ['/claim', 200, undefined],
      ['/extend', 200, undefined],
      ['/report', 200, 1],
      ['/metrics', 202, undefined],
    ]);
  });

  it('that only a body as a whole can be wrong by refuse it as a whole', async () => {
    for (const [completed, field] of [
      ['{}', 'completed'],
      ['null', 'completed'],
      [JSON.stringify(Array(1_001).fill({})), 'completed'],
      ['[],"completed":[]', 'completed'],
      [`[],"more":[${'[],'.repeat(200_000)}0]`, 'body'],
    ] as const) {
      const answer = await report(completed);
      expect(answer.status).toBe(400);
      expect(Object.keys(answer.body.details)).toEqual([field]);
    }
  });
});
