import { setTimeout as sleep } from 'node:timers/promises';
import { ClaimWaiters } from '../../src/queue/claim-waiters';
import type { Json } from '../helpers/api';
import { ApiDocument } from '../helpers/api-document';
import { dnsTask, TestServer } from '../helpers/harness';
import { until } from '../helpers/until';

/** Waits until that many claims wait. */
const asleep = (server: TestServer, count: number): Promise<boolean> =>
  until(`${count} claims wait`, () => server.app.get(ClaimWaiters).waiting >= count);

describe('a server that was told to stop', () => {
  it('serves everything until the drain is over, but is not ready and keeps no connection', async () => {
    const server = await TestServer.start();
    const agent = await server.register('probe-1');
    expect((await server.request('GET', '/readyz')).status).toBe(200);
    const cut = new AbortController();
    const drained = server.drain(cut.signal);
    const ready = await server.request('GET', '/readyz');
    expect([ready.status, ready.body.error, ready.body.details]).toEqual([
      503,
      'ERR_UNAVAILABLE',
      { reason: 'stopping' },
    ]);
    expect(ready.headers.get('retry-after')).not.toBeNull();
    expect((await server.request('GET', '/healthz')).status).toBe(200);
    await server.enqueue(dnsTask());
    const claimed = await server.agent(agent, '/claim', { capacities: { dns: 1 } });
    expect([claimed.body.leases.length, claimed.headers.get('connection')]).toEqual([1, 'close']);
    const [{ lease_id }] = claimed.body.leases;
    const reported = await server.agent(agent, '/report', { completed: [{ lease_id }], cancelled: [] });
    expect(reported.body).toEqual({ acknowledged: 1 });
    expect((await server.register('probe-2')).agent_id).not.toBe(agent.agent_id);
    cut.abort();
    await drained;
    await server.stop();
  });

  it('answers claims that wait one after the other while it drains; those that come meanwhile, too', async () => {
    const server = await TestServer.start({ DRAIN_MS: '1500' });
    const agents = await Promise.all(Array.from({ length: 8 }, (_, i) => server.register(`probe-${i}`)));
    const times: number[] = [];
    const claim = async (i: number) => {
      const answer = await server.agent(agents[i] as Json, '/claim', {
        capacities: { dns: 1 },
        wait_ms: 30_000,
      });
      times.push(performance.now());
      return answer;
    };
    const early = [0, 1, 2, 3].map((i) => claim(i));
    await asleep(server, 4);
    const drained = server.drain();
    const late = [4, 5, 6, 7].map((i) => claim(i));
    // A call to this process and not to another one would not help its caller.
    const answers = await Promise.all([...early, ...late]);
    expect(answers.map(({ status, body }) => [status, body])).toEqual(
      answers.map(() => [200, { leases: [] }]),
    );
    // Answered before the drain was over, and not all at one moment.
    expect(await Promise.race([drained.then(() => 'over'), Promise.resolve('goes on')])).toBe('goes on');
    expect(new Set(times.map((time) => Math.round(time / 20))).size).toBeGreaterThan(1);
    await drained;
    await server.stop();
  });

  it('answers each agent empty once, and has it come back after the drain', async () => {
    const server = await TestServer.start({ DRAIN_MS: '1500', QUOTA_CLAIM: '12/1m,6' });
    const agents = await Promise.all(Array.from({ length: 8 }, (_, i) => server.register(`probe-${i}`)));
    const events: string[] = [];
    const answers: unknown[] = [];
    const agent = async (i: number) => {
      const { status, body, headers } = await server.agent(agents[i] as Json, '/claim', {
        capacities: { dns: 1 },
        wait_ms: 30_000,
      });
      events.push('answer');
      answers.push([status, body]);
      expect(headers.get('retry-after')).toMatch(/^[1-4]$/);
      await sleep(Number(headers.get('retry-after')) * 1_000);
      events.push('comes back');
    };
    const early = [0, 1, 2, 3].map(agent);
    await asleep(server, 4);
    const drained = server.drain().then(() => events.push('drain is over'));
    // These have been answered by another process, or have just started.
    const late = [4, 5, 6, 7].map(agent);
    await drained;
    await server.stop();
    await Promise.all([...early, ...late]);
    expect(answers).toEqual(agents.map(() => [200, { leases: [] }]));
    // A late caller may be answered by the stop.
    expect(events.indexOf('comes back')).toBeGreaterThan(events.indexOf('drain is over'));
    expect(events.slice(0, 4)).toEqual(Array(4).fill('answer'));
  });

  it('leaves agents that come again at once their quota', async () => {
    const server = await TestServer.start({ DRAIN_MS: '1500', QUOTA_CLAIM: '12/1m,6' });
    const agents = await Promise.all([1, 2, 3, 4].map((i) => server.register(`probe-${i}`)));
    let over = false;
    const loops = agents.map(async (agent) => {
      const statuses: number[] = [];
      while (!over) {
        const call = { capacities: { dns: 1 }, wait_ms: 30_000 };
        const answer = await server.agent(agent, '/claim', call).catch(() => undefined);
        // Nobody listens any more.
        if (answer === undefined) break;
        statuses.push(answer.status);
      }
      return statuses;
    });
    await asleep(server, 4);
    await server.drain();
    over = true;
    await server.stop();
    for (const statuses of await Promise.all(loops)) {
      expect(new Set(statuses)).toEqual(new Set([200]));
      // Once as it waited, once in the last tenth, once by the stop.
      expect(statuses.length).toBeLessThanOrEqual(3);
    }
  });

  it('tells a claim that does not wait when to come back, and only while it drains', async () => {
    const server = await TestServer.start({ DRAIN_MS: '8000' });
    const agent = await server.register('probe-1');
    const claim = (capacity = 1) => server.agent(agent, '/claim', { capacities: { dns: capacity } });
    const api = new ApiDocument((await server.request('GET', '/docs-json')).body);
    expect((await claim()).headers.get('retry-after')).toBeNull();
    const cut = new AbortController();
    const drained = server.drain(cut.signal);
    for (const capacity of [1, 0]) {
      const empty = await claim(capacity);
      expect([empty.status, empty.body]).toEqual([200, { leases: [] }]);
      expect(api.problemsOfAnswer('POST /claim', empty)).toEqual([]);
      // The rest of the drain, 5 s at least, and up to two more.
      expect(Number(empty.headers.get('retry-after'))).toBeGreaterThanOrEqual(5);
    }
    await server.enqueue(dnsTask());
    const granted = await claim();
    expect([granted.body.leases.length, granted.headers.get('retry-after')]).toEqual([1, null]);
    cut.abort();
    await drained;
    await server.stop();
  });

  it('hands out work to claims that wait, also while it drains', async () => {
    const server = await TestServer.start({ DRAIN_MS: '8000' });
    const agent = await server.register('probe-1');
    const claim = server.agent(agent, '/claim', { capacities: { dns: 1 }, wait_ms: 30_000 });
    await asleep(server, 1);
    const cut = new AbortController();
    const drained = server.drain(cut.signal);
    await server.enqueue(dnsTask());
    expect((await claim).body.leases).toHaveLength(1);
    const idle = server.agent(agent, '/claim', { capacities: { dns: 2 }, wait_ms: 30_000 });
    await asleep(server, 1);
    // Cut short: the rest is answered by the stop.
    cut.abort();
    await drained;
    const [answer] = await Promise.all([idle, server.stop()]);
    expect(answer.body).toEqual({ leases: [] });
  });
});
