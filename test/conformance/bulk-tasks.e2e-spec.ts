import { SchedulerRegistry } from '@nestjs/schedule';
import type { Json } from '../helpers/api';
import { type Answer, type Credentials, dnsTask, TestClock, TestServer } from '../helpers/harness';
import { brokenPromises, taskStates } from '../helpers/queue-tables';

let server: TestServer;
let clock: TestClock;

beforeAll(async () => {
  clock = new TestClock();
  server = await TestServer.start({}, { clock });
  // Its jobs read, too: what is read here is by requests.
  const schedule = server.app.get(SchedulerRegistry);
  for (const name of schedule.getIntervals()) schedule.deleteInterval(name);
});
afterAll(() => server.stop());
// Every case begins with tasks that have ended and limits that are lifted.
afterEach(async () => {
  await cancel({ all: true });
  const limits = [{ kind: 'dns', limit: null }];
  expect((await server.operator('PUT', '/v1/concurrency/limits', { limits })).status).toBe(200);
});

const cancel = (body: object): Promise<Answer> => server.operator('POST', '/v1/tasks/cancel', body);
const retry = (body: object): Promise<Answer> => server.operator('POST', '/v1/tasks/retry', body);
/** Tasks aimed at a target of their own, so that the cases don't meet each other's. */
const aimedAt = (target: string, count: number, fields: object = {}) =>
  Array.from({ length: count }, () => dnsTask(fields, { server: target }));
const statesOf = (ids: readonly number[]) =>
  server.database.read((statements) => taskStates(statements, ids));
const targetOf = async (id: number): Promise<string> =>
  (await server.operator('GET', `/v1/tasks/${id}`)).body.target;
const entries = async (action: string): Promise<Json[]> =>
  (await server.operator('GET', `/v1/audit?action=${action}`)).body.items;
/** That counts, lanes, windows and lists agree with the tasks. */
const expectConsistent = async () => expect(await server.database.read(brokenPromises)).toEqual([]);

describe('a filter with U+0000, which PostgreSQL takes in no text', () => {
  it.each([
    ['/v1/tasks/cancel', 'kind'],
    ['/v1/tasks/cancel', 'target'],
    ['/v1/tasks/retry', 'kind'],
    ['/v1/tasks/retry', 'target'],
  ])('is named: %s, %s', async (path, field) => {
    const { status, body } = await server.operator('POST', path, { kind: 'dns', [field]: 'a\0' });
    expect([status, body.details]).toEqual([400, { [field]: 'must not hold the character U+0000' }]);
  });
});

describe('many tasks', () => {
  it('are counted with a turn for others in between, and gone through from the first that matches', async () => {
    await server.enqueue(...aimedAt('192.0.2.77', 5_600));
    expect((await cancel({ target: '192.0.2.77:53' })).body.matched).toBe(5_600);
    const [last] = await server.enqueue(...aimedAt('192.0.2.77', 1));
    let turns = 0;
    let isTurning = true;
    const turn = () => {
      turns++;
      if (isTurning) setImmediate(turn);
    };
    turn();
    const read = server.database.read.bind(server.database);
    const turnsAtRead: number[] = [];
    const reads = jest.spyOn(server.database, 'read').mockImplementation((work) => {
      turnsAtRead.push(turns);
      return read(work);
    });
    const writes = jest.spyOn(server.database, 'write');
    const { body } = await cancel({ target: '192.0.2.77:53' });
    isTurning = false;
    const wrote = writes.mock.calls.length;
    reads.mockRestore();
    writes.mockRestore();
    expect(body).toEqual({ matched: 1, changed: 1 });
    const counting = turnsAtRead.slice(-2);
    expect(counting[1]).toBeGreaterThan(counting[0] as number);
    // 600 rows from where the first one that matches was met, and not 5,600.
    expect(wrote).toBeLessThanOrEqual(3);
    expect(await statesOf([last as number])).toEqual(['cancelled']);
  });

  it('are cancelled by a filter, in more batches than one, and the same again changes nothing', async () => {
    const ids = await server.enqueue(...aimedAt('192.0.2.1', 700));
    const others = await server.enqueue(...aimedAt('192.0.2.2', 2), {
      kind: 'tcp',
      spec: { host: '192.0.2.1', port: 80 },
    });
    const target = await targetOf(ids[0] as number);
    const [known] = await entries('task.cancel-many');
    // In whatever spelling, and under every kind that can have it.
    for (const filter of [
      { kind: 'dns', target },
      { target },
      { kind: 'dns', target: target.replace(/:53$/, '') },
    ])
      expect((await cancel({ ...filter, dry_run: true })).body).toEqual({ matched: 700, changed: 0 });
    expect((await cancel({ kind: 'tcp', target: 'no port', dry_run: true })).body.details).toEqual({
      target: expect.stringContaining('host:port'),
    });
    expect(new Set(await statesOf(ids))).toEqual(new Set(['queued']));
    const answer = await cancel({ kind: 'dns', target });
    expect([answer.status, answer.body]).toEqual([200, { matched: 700, changed: 700 }]);
    expect(new Set(await statesOf(ids))).toEqual(new Set(['cancelled']));
    expect(await statesOf(others)).toEqual(['queued', 'queued', 'queued']);
    expect((await cancel({ kind: 'dns', target })).body).toEqual({ matched: 0, changed: 0 });
    // The first batch is recorded with it, the whole at the end; nothing for what changed nothing.
    const made = (await entries('task.cancel-many')).filter(({ id }) => id > (known?.id ?? 0));
    expect(made).toHaveLength(2);
    expect(made[0]).toMatchObject({
      operator_name: 'bootstrap',
      subject: 'tasks',
      after: { kind: 'dns', target, matched: 700, changed: 700 },
    });
    expect(made[1].after).toMatchObject({ matched: 700, changed: expect.any(Number) });
    await expectConsistent();
  });

  it('are cancelled in every state that is unfinished: the holder of a lease is told', async () => {
    const agent: Credentials = await server.register('bulk-cancel');
    const limits = [{ kind: 'dns', limit: 1 }];
    await server.operator('PUT', '/v1/concurrency/limits', { limits });
    const ids = await server.enqueue(
      ...aimedAt('192.0.2.3', 3),
      ...aimedAt('192.0.2.3', 1, { run_at: '2030-01-01T00:00:00Z' }),
    );
    const { leases } = (await server.agent(agent, '/claim', { capacities: { dns: 2 } })).body;
    expect(await statesOf(ids)).toEqual(['leased', 'queued', 'queued', 'scheduled']);
    expect((await cancel({ kind: 'dns', state: 'queued' })).body).toEqual({ matched: 2, changed: 2 });
    expect(await statesOf(ids)).toEqual(['leased', 'cancelled', 'cancelled', 'scheduled']);
    expect((await cancel({ kind: 'dns' })).body).toEqual({ matched: 2, changed: 2 });
    expect(new Set(await statesOf(ids))).toEqual(new Set(['cancelled']));
    const lease_ids = leases.map((lease: { lease_id: number }) => lease.lease_id);
    const extended = await server.agent(agent, '/extend', { lease_ids, extend_by_ms: 30_000 });
    expect(extended.body).toEqual({ outcomes: [], revoked: lease_ids });
    await expectConsistent();
  });

  it('are claimed in the slots that a cancel freed, if they do not match themselves', async () => {
    const agent = await server.register('bulk-slots');
    const claim = async () => (await server.agent(agent, '/claim', { capacities: { dns: 9 } })).body.leases;
    await server.operator('PUT', '/v1/concurrency/limits', { limits: [{ kind: 'dns', limit: 2 }] });
    const first = await server.enqueue(...aimedAt('192.0.2.4', 2));
    const second = await server.enqueue(...aimedAt('192.0.2.5', 3));
    expect(await claim()).toHaveLength(2);
    expect(await claim()).toEqual([]);
    expect((await cancel({ target: await targetOf(first[0] as number) })).body.changed).toBe(2);
    expect(await claim()).toMatchObject(second.slice(0, 2).map((id) => ({ task_id: id })));
    expect(await statesOf(second)).toEqual(['leased', 'leased', 'queued']);
    await expectConsistent();
  });

  it('are retried with all their attempts before them, under the limits', async () => {
    const ids = await server.enqueue(...aimedAt('192.0.2.6', 3, { max_attempts: 2 }));
    const target = await targetOf(ids[0] as number);
    await cancel({ target });
    await server.operator('PUT', '/v1/concurrency/limits', { limits: [{ kind: 'dns', limit: 2 }] });
    expect((await retry({ target, dry_run: true })).body).toEqual({ matched: 3, changed: 0 });
    expect((await retry({ target, state: 'dead' })).body).toEqual({ matched: 0, changed: 0 });
    expect((await retry({ target, state: 'cancelled' })).body).toEqual({ matched: 3, changed: 3 });
    expect(await statesOf(ids)).toEqual(['queued', 'queued', 'queued']);
    const agent = await server.register('bulk-retry');
    const { leases } = (await server.agent(agent, '/claim', { capacities: { dns: 9 } })).body;
    expect(leases).toMatchObject(ids.slice(0, 2).map((id) => ({ task_id: id })));
    expect((await retry({ target })).body).toEqual({ matched: 0, changed: 0 });
    expect((await entries('task.retry-many'))[0].after).toEqual({
      state: 'cancelled',
      target,
      matched: 3,
      changed: 3,
    });
    await expectConsistent();
  });

  it('keep to one unfinished task for a unique_key', async () => {
    const add = () => server.enqueue(...aimedAt('192.0.2.7', 1, { unique_key: 'bulk' }));
    const [first] = await add();
    await cancel({ all: true });
    const [second] = await add();
    await cancel({ all: true });
    const ids = [first, second] as number[];
    const target = await targetOf(ids[0] as number);
    // Of two that would both have it one is reopened; the other one stays, however often it is asked.
    expect((await retry({ target })).body).toEqual({ matched: 2, changed: 1 });
    expect((await retry({ target })).body).toEqual({ matched: 1, changed: 0 });
    expect((await statesOf(ids)).sort()).toEqual(['cancelled', 'queued']);
    await expectConsistent();
  });

  it('change while others claim and enqueue, and each keeps what was decided last', async () => {
    const agent = await server.register('bulk-race');
    const ids = await server.enqueue(...aimedAt('192.0.2.8', 600));
    const target = await targetOf(ids[0] as number);
    const [answer, ...rest] = await Promise.all([
      cancel({ target }),
      ...Array.from({ length: 4 }, () => server.agent(agent, '/claim', { capacities: { dns: 20 } })),
      server.operator('POST', '/v1/tasks', { tasks: aimedAt('192.0.2.8', 1) }),
    ]);
    for (const one of [answer as Answer, ...rest]) expect(one.status).toBeLessThan(300);
    // What was claimed in between is there for the next one.
    while ((await cancel({ target })).body.changed > 0);
    expect(new Set(await statesOf(ids))).toEqual(new Set(['cancelled']));
    expect(await server.rows(`SELECT id FROM leases WHERE state = 'active'`)).toEqual([]);
    await expectConsistent();
  });

  it.each([
    ['cancel', {}, ['all']],
    ['retry', { dry_run: true }, ['all']],
    ['cancel', { all: false }, ['all']],
    ['cancel', { all: true, kind: 'dns' }, ['all']],
    ['cancel', { state: 'completed' }, ['state']],
    ['retry', { state: 'queued' }, ['state']],
    ['cancel', { kind: 1 }, ['kind']],
    ['cancel', { all: 'yes' }, ['all']],
    ['cancel', { all: true, dry_run: 'no' }, ['dry_run']],
    ['retry', { agent: 1 }, ['agent']],
  ])('are not changed by %s of %j', async (name, body, fields) => {
    const answer = await server.operator('POST', `/v1/tasks/${name}`, body);
    expect([answer.status, Object.keys(answer.body.details ?? {})]).toEqual([400, fields]);
  });
});
