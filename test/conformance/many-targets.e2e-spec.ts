import { ConcurrencyService } from '../../src/concurrency/concurrency.service';
import { Lanes } from '../../src/queue/lanes';
import { QueueMaintainer } from '../../src/queue/maintenance';
import { Continuity } from '../../src/scheduling/continuity';
import type { Json, Lease } from '../helpers/api';
import {
  type Answer,
  type Credentials,
  dnsTask,
  onPostgres,
  TestClock,
  TestServer,
} from '../helpers/harness';
import { brokenPromises } from '../helpers/queue-tables';

let server: TestServer;
let clock: TestClock;
let agent: Credentials;

const limit = (...limits: object[]): Promise<Answer> =>
  server.operator('PUT', '/v1/concurrency/limits', { limits });
const at = (target: string, fields: object = {}) => dnsTask(fields, { server: target });
const many = <T>(count: number, make: (i: number) => T): T[] =>
  Array.from({ length: count }, (_, i) => make(i));

async function claim(who = agent, capacity = 1_000): Promise<Lease[]> {
  const { status, body } = await server.agent(who, '/claim', { capacities: { dns: capacity } });
  expect(status).toBe(200);
  return body.leases;
}

const report = (who: Credentials, completed: readonly Lease[], fields: object = {}): Promise<Answer> =>
  server.agent(who, '/report', {
    completed: completed.map(({ lease_id }) => ({ lease_id, outcome: 'success', ...fields })),
    cancelled: [],
  });

const targetsOf = (leases: readonly Lease[]): Json[] => leases.map(({ spec }) => (spec as Json).server);

beforeEach(async () => {
  clock = new TestClock();
  server = await TestServer.start({}, { clock });
  agent = await server.register('probe-1');
});
afterEach(async () => {
  expect(await brokenPromises(server)).toEqual([]);
  await server.stop();
});

it('the job that moves tasks ends if the bounds of every target are lifted meanwhile', async () => {
  await server.enqueue(...many(1_500, (i) => at(`t${i % 50}`)));
  await limit({ kind: 'dns', target: '*', limit: 2 });
  const moving = server.app.get(QueueMaintainer).moveTasks();
  await limit({ kind: 'dns', target: '*', limit: null });
  const ended = await Promise.race([
    moving.then(() => true),
    new Promise((r) => setTimeout(r, 5_000, false)),
  ]);
  // So that it ends here.
  if (!ended) await limit({ kind: 'dns', target: '*', limit: 2 });
  await moving;
  expect(ended).toBe(true);
});

it('a limit of 0 for every target holds up no target with a limit of its own', async () => {
  await limit({ kind: 'dns', target: '*', limit: 0 }, { kind: 'dns', target: 'own', limit: 5 });
  await server.enqueue(...many(600, (i) => at(`t${i}`, { priority: 5 })));
  await server.enqueue(at('own'));
  expect(targetsOf(await claim(agent, 1))).toEqual(['own']);
});

it('after an interruption lanes without room hold up no others', async () => {
  await limit({ kind: 'dns', target: '*', rate: 0.001 });
  await server.enqueue(...many(600, (i) => at(`t${i % 600}`, { priority: 5 })));
  await server.enqueue(...many(600, (i) => at(`t${i % 600}`, { priority: 5 })));
  for (let leases = await claim(); leases.length > 0; leases = await claim()) await report(agent, leases);
  clock.advance(10_000);
  await server.app.get(Continuity).refresh();
  await server.app.get(QueueMaintainer).reap();
  await server.enqueue(at('other'));
  expect(targetsOf(await claim(agent, 1))).toEqual(['other']);
  expect(
    await server.rows('SELECT count(*) AS open FROM lanes WHERE is_open = 1 AND head_id IS NOT NULL'),
  ).toEqual([{ open: 0 }]);
});

it('a claim under a key that is asked for again is told no burst', async () => {
  await limit({ kind: 'dns', target: 'a', rate: 20 });
  await server.enqueue(...many(100, () => at('a')));
  const call = () =>
    server.agent(agent, '/claim', { capacities: { dns: 50 } }, { 'idempotency-key': 'k'.repeat(20) });
  expect((await call()).body.leases).toHaveLength(21);
  clock.advance(5_000);
  const again = (await call()).body.leases as Lease[];
  expect(again.filter(({ start_in_ms: ms }) => (ms as number) < 500).length).toBeLessThanOrEqual(11);
});

it('tasks that a rate holds back do not have a waiting claim look again and again', async () => {
  await limit({ kind: 'dns', target: '*', rate: 1 });
  await server.enqueue(...many(20, (i) => at(`t${i}`)));
  const held = await claim();
  expect(held).toHaveLength(20);
  await limit({ kind: 'dns', rate: 60 });
  await server.enqueue(...many(20, (i) => at(`t${i}`)));
  // All of them could start in exactly a second, but the rate of the kind lets only a few start in the same instant.
  const some = await claim();
  expect(some.length).toBeGreaterThan(0);
  expect(some.length).toBeLessThan(20);
  const before = server.database.writes;
  const waiting = server.agent(agent, '/claim', { capacities: { dns: 1_000 }, wait_ms: 300 });
  expect((await waiting).body.leases).toEqual([]);
  expect(server.database.writes - before).toBeLessThan(10);
});

it('a change for every target wakes no claim for idle targets', async () => {
  await limit({ kind: 'dns', target: '*', limit: 2 });
  await server.enqueue(...many(600, (i) => at(`t${i}`)));
  for (let leases = await claim(); leases.length > 0; leases = await claim()) await report(agent, leases);
  await limit({ kind: 'dns', target: '*', limit: 3 });
  const announced: string[] = [];
  server.database.onAnnouncement('ready', (message) => announced.push(message));
  await server.app.get(QueueMaintainer).moveTasks();
  expect(announced).toEqual([]);
});

// Units run one at a time on SQLite.
(onPostgres ? it : it.skip)(
  'tasks are queued for a target whose idle window and lane are deleted at that moment',
  async () => {
    await limit({ kind: 'dns', target: '*', limit: 2 });
    await server.enqueue(at('a'));
    await report(agent, await claim());
    clock.advance(2 * 86_400_000);
    const lanes = server.app.get(Lanes);
    const add = lanes.add.bind(lanes);
    const added = Promise.withResolvers<void>();
    const purged = Promise.withResolvers<void>();
    lanes.add = async (tx, tasks) => {
      const rows = await add(tx, tasks);
      added.resolve();
      await purged.promise;
      return rows;
    };
    const queued = server.enqueue(at('a'));
    await added.promise;
    await server.app.get(ConcurrencyService).purge();
    await server.app.get(QueueMaintainer).purge();
    expect(await server.rows("SELECT 1 AS one FROM lanes WHERE target <> ''")).toEqual([]);
    purged.resolve();
    await queued;
    expect(targetsOf(await claim())).toEqual(['a']);
  },
);
