import type { MetricsPage } from '../../src/metrics/metrics.dto';
import { MetricsService } from '../../src/metrics/metrics.service';
import {
  ADMIN_TOKEN,
  type Answer,
  type Credentials,
  credentialsOf,
  identityOf,
  TestClock,
  TestServer,
} from '../helpers/harness';

const NOW = Date.UTC(2026, 0, 1);
const SECOND_MS = 1_000;
const DAY_MS = 86_400_000;

let clock: TestClock;
let server: TestServer;
let agent: Credentials;

const start = async () => {
  clock = new TestClock(NOW);
  server = await TestServer.start({}, { clock });
  agent = await server.register('probe');
};
const stop = () => server.stop();

const at = (instant: number): string => new Date(instant).toISOString();

const envelope = (fields: object = {}) => ({
  timestamp: at(NOW),
  counters: [{ name: 'queries_total', value: 1_042, unit: '1' }],
  gauges: [{ name: 'load', value: -0.25 }],
  ...fields,
});

/** The most that an envelope holds: nearly two megabytes, as every character is written in six. */
const LARGE = Array.from({ length: 1_000 }, () => ({
  name: '\u0001'.repeat(255),
  value: 1,
  unit: '\u0001'.repeat(64),
}));

const push = (fields: object = {}, who = agent): Promise<Answer> =>
  server.agent(who, '/metrics', envelope(fields));

const list = (query = '', id = agent.agent_id): Promise<Answer<MetricsPage>> =>
  server.operator('GET', `/v1/agents/${id}/metrics${query}`);

const stored = async (): Promise<number> =>
  (await server.rows<{ n: number }>('SELECT count(*) AS n FROM agent_metrics'))[0]?.n as number;

/** Follows the cursors to the end. */
async function listAll(query: string): Promise<MetricsPage['items'][]> {
  const pages: MetricsPage['items'][] = [];
  let cursor: string | null = null;
  do {
    const { status, body }: Answer<MetricsPage> = await list(`?${query}${cursor ? `&cursor=${cursor}` : ''}`);
    expect(status).toBe(200);
    pages.push(body.items);
    cursor = body.next_cursor;
  } while (cursor !== null);
  return pages;
}

const samples = (count: number) => Array.from({ length: count }, (_, n) => ({ name: `m${n}`, value: n }));

describe('pushing', () => {
  beforeEach(start);
  afterEach(stop);

  test('stores an envelope, and operators see it as it was sent', async () => {
    const { status, body } = await push({ timestamp: '2026-01-01T02:00:00.1239+02:00' });
    expect(status).toBe(202);
    expect(body).toEqual({ accepted: true, id: expect.stringMatching(/^[1-9]\d*$/) });
    expect((await list()).body).toEqual({
      items: [
        {
          id: body.id,
          timestamp: '2026-01-01T00:00:00.123Z',
          received_at: '2026-01-01T00:00:00.000Z',
          counters: [{ name: 'queries_total', value: 1_042, unit: '1' }],
          gauges: [{ name: 'load', value: -0.25 }],
        },
      ],
      next_cursor: null,
    });
  });

  test('stores the same envelope once, under either path, one after the other or at once', async () => {
    const { id } = (await push()).body;
    clock.advance(SECOND_MS);
    const again = await server.agent(agent, '/v1/agents/metrics', envelope());
    expect(again.status).toBe(202);
    expect(again.body).toEqual({ accepted: true, id });
    const atOnce = await Promise.all(Array.from({ length: 20 }, () => push({ gauges: [] })));
    expect(new Set(atOnce.map(({ body }) => body.id)).size).toBe(1);
    expect(await stored()).toBe(2);
  });

  test('takes what is left out and what is null or empty for the same', async () => {
    const { id } = (await push({ counters: undefined, gauges: [{ name: 'load', value: 1 }] })).body;
    const { body } = await push({ counters: null, gauges: [{ value: 1, unit: null, name: 'load' }] });
    expect(body.id).toBe(id);
    expect((await push({ counters: [], gauges: [{ name: 'load', value: 1 }] })).body.id).toBe(id);
    expect(await stored()).toBe(1);
  });

  test('stores envelopes that differ in anything each on its own', async () => {
    const sample = { name: 'load', value: 1 };
    const bodies = [
      { counters: [sample], gauges: [] },
      { counters: [], gauges: [sample] },
      { counters: [], gauges: [{ ...sample, unit: 's' }] },
      { counters: [], gauges: [{ ...sample, value: 2 }] },
      { counters: [], gauges: [{ ...sample, name: 'Load' }] },
      { counters: [], gauges: [sample, sample] },
      { counters: [], gauges: [sample], timestamp: at(NOW + 1) },
      { counters: [], gauges: [sample], timestamp: '2026-01-01T00:00:00.0001Z' },
    ];
    const other = await server.register('other');
    const answers = await Promise.all([...bodies.map((body) => push(body)), push(bodies[0], other)]);
    expect(new Set(answers.map(({ body }) => body.id)).size).toBe(bodies.length + 1);
    expect((await list('', other.agent_id)).body.items).toHaveLength(1);
  });

  test('takes a missing, null or zero agent_id for the caller', async () => {
    const ids = [];
    for (const agent_id of [undefined, null, 0, agent.agent_id]) {
      const { status, body } = await push({ agent_id });
      expect(status).toBe(202);
      ids.push(body.id);
    }
    expect(new Set(ids).size).toBe(1);
    expect((await list()).body.items).toHaveLength(1);
  });

  test('puts an agent that went out of service back alone, and stores what came with it', async () => {
    const others = await Promise.all([1, 2, 3].map((n) => server.register(`other-${n}`)));
    await server.operator('POST', `/v1/agents/${others[1]?.agent_id}/revoke`);
    await server.operator('POST', `/v1/agents/${others[2]?.agent_id}/drain`);
    // Past the guards, as a request is that was let in just before the agent was revoked.
    const metrics = server.app.get(MetricsService);
    const [working, revoked, draining] = await Promise.allSettled(
      others.map((other) => metrics.ingest(identityOf(other), envelope())),
    );
    expect(working?.status).toBe('fulfilled');
    expect(revoked).toMatchObject({ status: 'rejected', reason: { code: 'ERR_FORBIDDEN' } });
    expect(draining?.status).toBe('fulfilled');
    expect(await stored()).toBe(2);
  });

  test('stores everything when more comes at once than fits into one statement', async () => {
    const agents = await Promise.all(Array.from({ length: 10 }, (_, n) => server.register(`many-${n}`)));
    const metrics = server.app.get(MetricsService);
    const ids = await Promise.all(
      agents.map((one) => metrics.ingest(identityOf(one), envelope({ counters: [], gauges: LARGE }))),
    );
    const rows = await server.rows('SELECT id, agent_id FROM agent_metrics ORDER BY agent_id');
    expect(rows).toEqual(
      agents
        .map(({ agent_id }, i) => ({ id: Number(ids[i]), agent_id }))
        .sort((a, b) => a.agent_id - b.agent_id),
    );
  });
});

describe('limits', () => {
  beforeEach(start);
  afterEach(stop);

  test('a thousand samples are taken, counters and gauges together', async () => {
    expect((await push({ counters: samples(600), gauges: samples(400) })).status).toBe(202);
    expect((await push({ counters: samples(1_000), gauges: [] })).status).toBe(202);
    expect((await list()).body.items[0]?.counters).toHaveLength(1_000);
  });

  test.each([
    ['30 days old', -30 * DAY_MS, 202],
    ['older', -30 * DAY_MS - 1, 400],
    ['5 minutes ahead', 300_000, 202],
    ['further ahead', 300_001, 400],
  ])('a timestamp that is %s', async (_, offsetMs, expected) => {
    const { status, body } = await push({ timestamp: at(NOW + offsetMs) });
    expect(status).toBe(expected);
    if (expected === 400) expect(Object.keys(body.details)).toEqual(['timestamp']);
    expect(await stored()).toBe(expected === 202 ? 1 : 0);
  });
});

// Nothing of this is stored, so one server will do.
describe('what is refused', () => {
  beforeAll(start);
  afterAll(stop);

  test("refuses another agent's id and stores nothing", async () => {
    const other = await server.register('other');
    const { status, body } = await push({ agent_id: other.agent_id });
    expect(status).toBe(403);
    expect(body.error).toBe('ERR_FORBIDDEN');
    expect(await stored()).toBe(0);
  });

  test('refuses one without credentials', async () => {
    expect((await server.request('POST', '/metrics', { body: envelope() })).status).toBe(401);
    expect(await stored()).toBe(0);
  });

  test.each([
    ['more than a thousand counters', { counters: samples(1_001) }, 'counters'],
    ['more than a thousand together', { counters: samples(600), gauges: samples(401) }, 'gauges'],
  ])('%s are refused and not stored', async (_, fields, field) => {
    const { status, body } = await push(fields);
    expect(status).toBe(400);
    expect(body).toMatchObject({
      error: 'ERR_VALIDATION',
      details: { [field]: expect.stringContaining('1000') },
    });
    expect(await stored()).toBe(0);
  });

  test('a timestamp before and too many samples are named together', async () => {
    const { body } = await push({
      timestamp: '1970-01-01T00:00:00Z',
      counters: samples(999),
      gauges: samples(2),
    });
    expect(Object.keys(body.details).sort()).toEqual(['gauges', 'timestamp']);
  });

  const gauge = (fields: object) => ({
    gauges: [
      { name: 'load', value: 1 },
      { name: 'load', value: 1, ...fields },
    ],
  });

  test.each<[string, object, string]>([
    ['no timestamp', { timestamp: undefined }, 'timestamp'],
    ['a timestamp without an offset', { timestamp: '2026-01-01T00:00:00' }, 'timestamp'],
    ['a day that is not in the calendar', { timestamp: '2025-12-32T00:00:00Z' }, 'timestamp'],
    ['a leap second', { timestamp: '2025-12-31T23:59:60Z' }, 'timestamp'],
    ['a number for a timestamp', { timestamp: NOW }, 'timestamp'],
    ['a timestamp of endless digits', { timestamp: `2026-01-01T00:00:00.${'0'.repeat(64)}Z` }, 'timestamp'],
    ['a map of counters', { counters: { load: 1 } }, 'counters'],
    ['null for a sample', { counters: [null] }, 'counters.0'],
    ['a sample without a name', gauge({ name: undefined }), 'gauges.1.name'],
    ['an empty name', gauge({ name: '' }), 'gauges.1.name'],
    ['a long name', gauge({ name: 'x'.repeat(256) }), 'gauges.1.name'],
    ['a sample without a value', gauge({ value: undefined }), 'gauges.1.value'],
    ['text for a value', gauge({ value: '1' }), 'gauges.1.value'],
    ['null for a value', gauge({ value: null }), 'gauges.1.value'],
    ['a long unit', gauge({ unit: 'x'.repeat(65) }), 'gauges.1.unit'],
    ['a number for a unit', gauge({ unit: 1 }), 'gauges.1.unit'],
    ['text for an agent_id', { agent_id: '1' }, 'agent_id'],
    ['a negative agent_id', { agent_id: -1 }, 'agent_id'],
  ])('%s is named, and nothing stored', async (_, fields, field) => {
    const { status, body } = await push(fields);
    expect(status).toBe(400);
    expect(body).toMatchObject({ error: 'ERR_VALIDATION', retryable: false });
    expect(Object.keys(body.details)).toEqual([field]);
    expect(await stored()).toBe(0);
  });

  test('all of them are named at once', async () => {
    const { body } = await push({ timestamp: 'today', counters: [{}], gauges: 1, labels: {} });
    expect(Object.keys(body.details).sort()).toEqual(['counters.0.name', 'gauges', 'timestamp']);
  });

  test.each([
    ['limit=0', 'limit'],
    ['limit=501', 'limit'],
    ['cursor=12', 'cursor'],
    ['cursor=1-2-3', 'cursor'],
    ['cursor=9999999999999999-1', 'cursor'],
    ['from=yesterday', 'from'],
    ['to=2026-01-01', 'to'],
    ['until=2026-01-01T00:00:00Z', 'until'],
    ['from=2026-01-01T00:00:00Z&from=2026-01-01T00:00:00Z', 'from'],
  ])('of the list is %s', async (query, field) => {
    const { status, body } = await server.operator('GET', `/v1/agents/${agent.agent_id}/metrics?${query}`);
    expect(status).toBe(400);
    expect(Object.keys(body.details)).toEqual([field]);
  });

  test('of the list is a call that no operator makes', async () => {
    const path = `/v1/agents/${agent.agent_id}/metrics`;
    expect((await server.request('GET', path, { headers: credentialsOf(agent) })).status).toBe(401);
    expect(
      (await server.request('GET', path, { headers: { authorization: `Bearer ${ADMIN_TOKEN}` } })).status,
    ).toBe(200);
  });
});

describe('the list', () => {
  beforeEach(start);
  afterEach(stop);

  /** Pushes an envelope for each offset in seconds and gives their ids. */
  const pushAt = async (...offsets: number[]): Promise<string[]> => {
    const ids = [];
    for (const [i, offset] of offsets.entries()) {
      const gauges = [{ name: 'i', value: i }];
      ids.push((await push({ timestamp: at(NOW + offset * SECOND_MS), gauges })).body.id);
    }
    return ids;
  };
  const idsOf = (page: MetricsPage['items']) => page.map(({ id }) => id);

  test('is by the time of measuring, the latest first, whatever the order they came in; pages leave out none', async () => {
    const [a, b, c, d, e] = await pushAt(-10, 20, -30, 20, 0);
    const other = await server.register('other');
    await push({}, other);
    const ordered = [d, b, e, a, c];
    expect(idsOf((await list()).body.items)).toEqual(ordered);
    expect((await listAll('limit=1')).map(idsOf)).toEqual(ordered.map((id) => [id]));
    expect((await listAll('limit=2')).map(idsOf)).toEqual([[d, b], [e, a], [c]]);
    expect((await listAll('limit=5')).map(idsOf)).toEqual([ordered]);
  });

  test('stays in step when envelopes come in between two pages', async () => {
    const [a, b] = await pushAt(0, 10);
    const first = await list('?limit=1');
    expect(idsOf(first.body.items)).toEqual([b]);
    const [late] = await pushAt(20, 5).then((ids) => ids.slice(1));
    expect(idsOf((await list(`?cursor=${first.body.next_cursor}`)).body.items)).toEqual([late, a]);
  });

  test('can be of a span of time, its end left out', async () => {
    const [, b, c] = await pushAt(-10, 0, 10, 20);
    const span = `from=${at(NOW)}&to=${at(NOW + 20 * SECOND_MS)}`;
    expect(idsOf((await list(`?${span}`)).body.items)).toEqual([c, b]);
    expect((await listAll(`${span}&limit=1`)).map(idsOf)).toEqual([[c], [b]]);
    expect(
      (await list(`?from=${encodeURIComponent('2026-01-01T01:00:10+01:00')}&limit=500`)).body.items,
    ).toHaveLength(2);
    expect((await list(`?from=${at(NOW + 1)}&to=${at(NOW)}`)).body).toEqual({ items: [], next_cursor: null });
  });

  test('cuts a page short that would be too large, and goes on with the next', async () => {
    for (let i = 0; i < 5; i++) await push({ timestamp: at(NOW + i), counters: [], gauges: LARGE });
    const pages = await listAll('limit=5');
    expect(pages.map((page) => page.length)).toEqual([4, 1]);
    expect(pages.flat().map(({ timestamp }) => timestamp)).toEqual([4, 3, 2, 1, 0].map((i) => at(NOW + i)));
  });

  test('is empty for an agent that sent none, 404 for one that never was; a deleted one keeps its own', async () => {
    expect((await list()).body).toEqual({ items: [], next_cursor: null });
    const unknown = await server.operator('GET', '/v1/agents/999/metrics');
    expect(unknown.status).toBe(404);
    expect(unknown.body.error).toBe('ERR_NOT_FOUND');
    const { id } = (await push()).body;
    expect((await server.operator('DELETE', `/v1/agents/${agent.agent_id}`)).status).toBe(204);
    expect(idsOf((await list()).body.items)).toEqual([id]);
  });
});

describe('retention', () => {
  afterEach(stop);

  test('deletes what was received too long ago, whenever it was measured, and nothing else', async () => {
    const keepMs = 40 * DAY_MS;
    clock = new TestClock(NOW);
    server = await TestServer.start({ METRICS_RETENTION_DAYS: '40' }, { clock });
    agent = await server.register('probe');
    const metrics = server.app.get(MetricsService);
    // More than one batch of those that go.
    await server.database.write((tx) =>
      tx.run(
        `INSERT INTO agent_metrics (agent_id, envelope_hash, measured_at, received_at, counters, gauges)
         SELECT $1, 'old ' || id, $2, $2, '[]', '[]' FROM ${tx.dialect.rowset('$3', { id: 'integer' })} AS r`,
        agent.agent_id,
        NOW,
        JSON.stringify(Array.from({ length: 1_200 }, (_, id) => ({ id }))),
      ),
    );
    clock.advance(1);
    const { id } = (await push({ timestamp: at(NOW - 30 * DAY_MS + 1) })).body;
    clock.advance(keepMs - 1);
    expect(await metrics.purge()).toBe(0);
    clock.advance(1);
    expect(await metrics.purge()).toBe(1_200);
    expect((await list()).body.items.map((item) => item.id)).toEqual([id]);
    clock.advance(1);
    expect(await metrics.purge()).toBe(1);
    expect((await list()).body.items).toEqual([]);
  });
});
