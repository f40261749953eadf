import { Overload } from '../src/telemetry/overload';
import { dnsTask, TestServer } from './harness';

describe('overload', () => {
  it('turns away what takes on work first, then everything but health', async () => {
    const server = await TestServer.start({ MAX_WRITE_QUEUE: '2' });
    const agent = await server.register('probe-1');
    // A unit of work that does not end holds the writer; what comes after waits in its queue.
    let release = (): void => undefined;
    const gate = new Promise<void>((resolve) => {
      release = resolve;
    });
    let held = (): void => undefined;
    const holding = new Promise<void>((resolve) => {
      held = resolve;
    });
    const units: Promise<unknown>[] = [];
    units.push(
      server.database.write(() => {
        held();
        return gate;
      }),
    );
    await holding;
    const queue = () => units.push(server.database.write(() => Promise.resolve()));
    const refused = { status: 503, body: { error: 'ERR_UNAVAILABLE', retryable: true } };
    try {
      queue();
      queue();
      for (const answer of [
        await server.agent(agent, '/claim', { capacities: { dns: 1 } }),
        await server.operator('POST', '/v1/tasks', { tasks: [dnsTask()] }),
      ]) {
        expect(answer).toMatchObject(refused);
        expect(Number(answer.headers.get('retry-after'))).toBeGreaterThanOrEqual(1);
      }
      // Still taken in: they finish work. It is bad input, so it is answered without the writer.
      expect((await server.agent(agent, '/report', { completed: 1 })).status).toBe(400);
      expect((await server.agent(agent, '/extend', { lease_ids: 1 })).status).toBe(400);
      queue();
      queue();
      expect(await server.agent(agent, '/report', { completed: [], cancelled: [] })).toMatchObject(refused);
      expect(await server.agent(agent, '/heartbeat')).toMatchObject(refused);
      expect((await server.request('GET', '/healthz')).status).toBe(200);
      expect((await server.request('GET', '/readyz')).status).toBe(200);
    } finally {
      release();
      await Promise.all(units);
    }
    expect((await server.agent(agent, '/claim', { capacities: { dns: 1 } })).status).toBe(200);
    await server.stop();
  });

  it('counts a late event loop too', () => {
    const overload = new Overload({ maxEventLoopDelayMs: 500, maxWriteQueue: 10 }, { writeQueueDepth: 0 });
    expect(overload.level).toBe(0);
    overload.observe(5_000);
    // A single late window is no overload.
    expect(overload.level).toBe(0);
    overload.observe(499);
    expect(() => overload.check(true)).not.toThrow();
    overload.observe(500);
    overload.observe(500);
    expect(() => overload.check(true)).toThrow();
    expect(() => overload.check(false)).not.toThrow();
    overload.observe(1_000);
    overload.observe(1_000);
    expect(() => overload.check(false)).toThrow();
    overload.close();
  });
});
