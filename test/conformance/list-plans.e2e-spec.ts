import { ADMIN_TOKEN, onPostgres, TestServer } from '../helpers/harness';

type Statement = [sql: string, values: (string | number | null)[]];

/** Made for filters; to go by ids alone, as the primary keys do, is none of them. */
const FILTER_INDEXES =
  /audit_log_by|agents_by|agents_hostname|agent_labels_by_value|agent_about_by|agent_kinds_by|agent_config_states_by|agent_outcomes_failed|leases_live|leases_failed_by|leases_succeeded_by_agent|finished_tasks_pkey|SEARCH finished_tasks USING PRIMARY KEY|tasks_by|scheduled_by|ready_by|agent_metrics_by_time/;

/** Reads a whole table, or walks along it past what is not looked for. */
const READS_ALL =
  /Seq Scan|SCAN (a|t|s|newest|ended|tasks|ready|scheduled|leases|finished_tasks|audit_log|agents|agent_metrics|agent_outcomes|agent_about)\b/;

/** Looks for what belongs to a task among that of all tasks. */
const JOINS_ALL = /Hash Cond|Join Filter: \(*(\w+\.id = |\w+\.\w+ = \w+\.id)/;

/** Every filter of every list, and how filters go together. */
const LISTS: Record<string, string[]> = {
  '/v1/audit': [
    'action=agent.disable',
    'subject=agent/1',
    'operator_token_id=1',
    'since=2026-01-01T00:00:00Z',
    'until=2030-01-01T00:00:00Z',
    'action=agent.disable&since=2026-01-01T00:00:00Z&until=2030-01-01T00:00:00Z&cursor=7',
    'subject=agent/1&action=agent.disable&operator_token_id=1',
  ],
  '/v1/agents': [
    'status=online',
    'status=offline',
    'status=draining',
    'status=disabled',
    'status=revoked',
    'hostname=probe-1',
    'hostname=probe-1&status=disabled',
    'label=region:fra',
    'label=region:fra&label=rack:7&status=online&cursor=7',
    'enrollment_token_id=1',
    'failing=true',
    'failing=true&status=online&cursor=7',
    'config_status=applied',
    'config_status=failed',
    'kind=dns',
    'version=a',
    'version=a&kind=dns&config_status=failed&failing=true&label=region:fra&status=online&cursor=7',
  ],
  '/v1/tasks': [
    'kind=dns',
    'state=dead',
    'kind=dns&state=dead',
    'state=scheduled',
    'state=queued&kind=dns',
    'state=leased&kind=dns&cursor=7',
    'state=completed&kind=dns&cursor=1767225600000-7',
    'target=192.0.2.53:53',
    'kind=dns&target=192.0.2.53:53',
    'kind=dns&target=192.0.2.53:53&state=dead&cursor=7',
    'agent_id=1',
    'agent_id=1&state=leased',
    'agent_id=1&outcome=success',
    'agent_id=1&outcome=error&from=2026-01-01T00:00:00Z',
    'agent_id=1&target=192.0.2.53:53&kind=dns&from=2026-01-01T00:00:00Z',
    'outcome=success',
    'outcome=error',
    'outcome=expired&state=dead&kind=dns',
    'outcome=timeout&target=192.0.2.53:53',
    'from=2026-01-01T00:00:00Z',
    'to=2030-01-01T00:00:00Z&kind=dns',
    'from=2026-01-01T00:00:00Z&to=2030-01-01T00:00:00Z&state=completed&cursor=1767225600000-7',
  ],
  '/v1/agents/1/metrics': ['from=2026-01-01T00:00:00Z', 'to=2030-01-01T00:00:00Z', 'cursor=1767225600000-73'],
};

describe('a list with a filter', () => {
  let server: TestServer;

  beforeAll(async () => {
    server = await TestServer.start();
    await server.register('probe-1');
    // One of each kind, so that lists by state look for each.
    await server.enqueue({ kind: 'dns', spec: { query: 'a.example', server: '192.0.2.53' } });
  });
  afterAll(() => server.stop());

  /** The statements of one request. */
  async function statementsOf(path: string): Promise<Statement[]> {
    const seen: Statement[] = [];
    const read = server.database.read.bind(server.database);
    const spy = jest.spyOn(server.database, 'read').mockImplementation((work) =>
      read((statements) => {
        const record =
          (name: 'rows' | 'first') =>
          (sql: string, ...values: Statement[1]) => {
            seen.push([sql, values]);
            return statements[name](sql, ...values);
          };
        return work(
          Object.assign(Object.create(statements), { rows: record('rows'), first: record('first') }),
        );
      }),
    );
    const { status } = await server.request('GET', path, {
      headers: { authorization: `Bearer ${ADMIN_TOKEN}` },
    });
    spy.mockRestore();
    expect(status).toBe(200);
    return seen.filter(([sql]) =>
      /FROM (audit_log|agents|agent_kinds k|tasks|ready|scheduled|finished_tasks|agent_metrics|leases( l)?)\b/.test(
        sql,
      ),
    );
  }

  async function planOf([sql, values]: Statement): Promise<string> {
    const rows = await server.rows(`${onPostgres ? 'EXPLAIN' : 'EXPLAIN QUERY PLAN'} ${sql}`, ...values);
    const plan = rows.map((row) => row['QUERY PLAN'] ?? row.detail).join('\n');
    // What is filtered behind a bounded search of an index is scanned, and no more than that.
    return (
      plan
        .replace(/CO-ROUTINE t\n(SEARCH t[^\n]*)\nSCAN t\b/g, '$1')
        // The last of the attempts at one task.
        .replace(
          /Sort .*\n +Sort Key: \w+\.id DESC\n +-> {2}(Index Scan using leases_by_task .*\n +Index Cond: \(task_id = )/g,
          '$1',
        )
    );
  }

  describe('and why a task does not run', () => {
    const dns = (fields: object = {}) => ({ kind: 'dns', spec: { query: 'b.example' }, ...fields });
    const READS: Record<string, RegExp[]> = {
      queued: [/ready_pkey|q USING PRIMARY KEY/, /agent_kinds_by_kind/, /leases_live_by_agent/],
      limited: [/ready_pkey|q USING PRIMARY KEY/, /finished_tasks/],
      scheduled: [/scheduled_due/],
      leased: [/leases_pkey|leases USING INTEGER PRIMARY KEY/],
      backoff: [/leases_by_task/],
    };
    const ids: Record<string, number> = {};

    beforeAll(async () => {
      const agent = await server.register('probe-2');
      const limits = [{ limit: 3 }, { kind: 'dns', limit: 2 }, { kind: 'dns', target: 'resolver', limit: 2 }];
      const claim = async () =>
        (await server.agent(agent, '/claim', { capacities: { http: 1 } })).body.leases[0];
      [ids.backoff] = await server.enqueue({ kind: 'http', spec: { url: 'http://a.example/' } });
      const { lease_id } = await claim();
      await server.agent(agent, '/report', { completed: [], cancelled: [{ lease_id }] });
      [ids.leased] = await server.enqueue({ kind: 'http', spec: { url: 'http://b.example/' } });
      await claim();
      await server.agent(agent, '/claim', { capacities: { tcp: 1 } });
      [ids.queued] = await server.enqueue({ kind: 'tcp', spec: { host: 'c.example', port: 1 } });
      await server.operator('PUT', '/v1/concurrency/limits', { limits });
      [ids.limited] = await server.enqueue(dns(), dns()).then(([, second]) => [second]);
      [ids.scheduled] = await server.enqueue(dns({ run_at: '2100-01-01T00:00:00Z' }));
    });

    it.each(Object.entries(READS))('is served by an index: %s', async (state, indexes) => {
      const plans = await Promise.all((await statementsOf(`/v1/tasks/${ids[state]}/why`)).map(planOf));
      for (const plan of plans)
        expect(plan).not.toMatch(/Seq Scan|SCAN (a|k|h|l|t|tasks|leases|agents|agent_kinds)\b/);
      for (const index of indexes) expect(plans.join('\n')).toMatch(index);
    });
  });

  it.each(Object.entries(LISTS).flatMap(([path, queries]) => queries.map((query) => `${path}?${query}`)))(
    'is served by an index: %s',
    async (path) => {
      const statements = await statementsOf(path);
      expect(statements.length).toBeGreaterThan(0);
      const plans = await Promise.all(statements.map(planOf));
      for (const plan of plans) expect(plan).not.toMatch(READS_ALL);
      if (path.startsWith('/v1/tasks')) for (const plan of plans) expect(plan).not.toMatch(JOINS_ALL);
      // Not the order of ids with the filter as an afterthought: that reads all that is newer than what is looked for.
      expect(plans.join('\n')).toMatch(FILTER_INDEXES);
    },
  );

  // Nearly every agent, in an ordinary fleet or while a configuration is rolled out: a page of them is found among the first by
  // their ids. Which way is shorter depends on how many there are.
  it.each(['failing=false', 'config_status=unsaid', 'config_status=other'])(
    'reads no table from end to end: /v1/agents?%s',
    async (query) => {
      // Not one of the jobs, which read at any time.
      const statement = (await statementsOf(`/v1/agents?${query}&cursor=7`)).find(([sql]) =>
        /FROM agents a/.test(sql),
      );
      const plan = await planOf(statement as Statement);
      expect(plan).not.toMatch(READS_ALL);
      expect(plan).toMatch(/agent_outcomes_failed|agent_config_states/);
    },
  );

  // In the order that they are shown in: neither sorted, nor read further than the page.
  it.each([
    'outcome=error&kind=dns&state=completed',
    'outcome=success&kind=dns',
    'agent_id=1&outcome=success',
    'agent_id=1&outcome=expired&state=dead',
    'state=dead&kind=dns',
    'state=queued&kind=dns',
    'target=192.0.2.53:53&kind=dns&outcome=timeout&state=completed&from=2026-01-01T00:00:00Z',
  ])('reads no more than a page of the tasks: %s', async (query) => {
    const statement = (await statementsOf(`/v1/tasks?${query}`)).find(([sql]) =>
      sql.includes('last_ended_at'),
    );
    const plan = await planOf(statement as Statement);
    expect(plan).not.toMatch(/Sort\b|USE TEMP B-TREE/);
    expect(plan).not.toMatch(JOINS_ALL);
  });
});
