import { setTimeout as sleep } from 'node:timers/promises';
import { ClaimWaiters } from '../../src/leases/claim-waiters';
import { dnsTask, TestServer } from '../helpers/harness';

const waiting = (server: TestServer) => server.app.get(ClaimWaiters).waiting;

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
      const answer = await server.agent(agents[i] as any, '/claim', {
        capacities: { dns: 1 },
        wait_ms: 30_000,
      });
      times.push(performance.now());
      return answer;
    };
    const early = [0, 1, 2, 3].map((i) => claim(i));
    while (waiting(server) < 4) await sleep(5);
    const drained = server.drain();
    const late = [4, 5, 6, 7].map((i) => claim(i));
    // A call to this process and not to another one would be of no use to its caller.
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

  it('hands out work to claims that wait, also while it drains', async () => {
    const server = await TestServer.start({ DRAIN_MS: '8000' });
    const agent = await server.register('probe-1');
    const claim = server.agent(agent, '/claim', { capacities: { dns: 1 }, wait_ms: 30_000 });
    while (waiting(server) < 1) await sleep(5);
    const cut = new AbortController();
    const drained = server.drain(cut.signal);
    await server.enqueue(dnsTask());
    expect((await claim).body.leases).toHaveLength(1);
    const idle = server.agent(agent, '/claim', { capacities: { dns: 2 }, wait_ms: 30_000 });
    while (waiting(server) < 1) await sleep(5);
    // Cut short: the rest is answered by the stop.
    cut.abort();
    await drained;
    const [answer] = await Promise.all([idle, server.stop()]);
    expect(answer.body).toEqual({ leases: [] });
  });
});
