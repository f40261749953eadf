import { connect } from 'node:net';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { pino } from 'pino';
import { ClaimWaiters } from '../../src/queue/claim-waiters';
import { Overload } from '../../src/telemetry/overload';
import { type Credentials, credentialsOf, dnsTask, onPostgres, TestServer } from '../helpers/harness';
import { until } from '../helpers/until';

describe('overload', () => {
  it('turns away what takes on work first, then everything but health', async () => {
    const lines: string[] = [];
    const logger = pino({ level: 'error' }, { write: (line: string) => lines.push(line) });
    const server = await TestServer.start({ MAX_WRITE_QUEUE: '2' }, { logger });
    const agent = await server.register('probe-1');
    // What comes after the unit of work that holds the writer waits in its queue.
    const release = await server.holdWriter();
    const units: Promise<unknown>[] = [];
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
      if (!onPostgres) {
        expect((await server.agent(agent, '/report', { completed: 1 })).status).toBe(400);
        expect((await server.agent(agent, '/extend', { lease_ids: 1 })).status).toBe(400);
      }
      queue();
      queue();
      expect(await server.agent(agent, '/report', { completed: [], cancelled: [] })).toMatchObject(refused);
      expect(await server.agent(agent, '/heartbeat')).toMatchObject(refused);
      expect((await server.request('GET', '/healthz')).status).toBe(200);
      if (!onPostgres) expect((await server.request('GET', '/readyz')).status).toBe(200);
    } finally {
      await release();
      await Promise.all(units);
    }
    expect((await server.agent(agent, '/claim', { capacities: { dns: 1 } })).status).toBe(200);
    // A flood must not become one of errors in the log.
    expect(lines).toEqual([]);
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

describe('requests in flight', () => {
  // They know no database; the tests hold them back, and tell that they sleep, by the one writer of SQLite.
  const itOnSqlite = onPostgres ? it.skip : it;
  const REFUSED = {
    status: 503,
    body: { error: 'ERR_UNAVAILABLE', retryable: true, details: { reason: 'in_flight' } },
  };

  /** Waits until that many claims sleep. */
  async function asleep(server: TestServer, count: number): Promise<void> {
    await until(
      `${count} claims wait, and nothing is to be written`,
      () => server.app.get(ClaimWaiters).waiting === count && server.database.writeQueueDepth === 0,
    );
    // One look at an empty queue each, and they are.
    await server.database.write(() => Promise.resolve());
    await nextTurn();
  }

  itOnSqlite('are bounded; health is not among them, and what was refused had no effect', async () => {
    const server = await TestServer.start({ MAX_IN_FLIGHT: '2' });
    const agent = await server.register('probe-1');
    const release = await server.holdWriter();
    const running = [1, 2].map(() => server.enqueue(dnsTask()));
    // Another request meanwhile could be one of the two.
    await until('both wait for the writer', () => server.database.writeQueueDepth >= 2);
    const refused = await server.operator('GET', '/v1/tasks');
    expect(refused).toMatchObject(REFUSED);
    expect(Number(refused.headers.get('retry-after'))).toBeGreaterThanOrEqual(1);
    for (const path of ['/heartbeat', '/report', '/extend', '/claim'])
      expect(await server.agent(agent, path)).toMatchObject(REFUSED);
    expect(await server.operator('POST', '/v1/tasks', { tasks: [dnsTask()] })).toMatchObject(REFUSED);
    expect((await server.request('GET', '/healthz')).status).toBe(200);
    expect((await server.request('GET', '/readyz')).status).toBe(200);
    await release();
    await Promise.all(running);
    expect((await server.operator('GET', '/v1/tasks')).body.items).toHaveLength(2);
    await server.stop();
  });

  itOnSqlite(
    'are not the claims that wait, nor those whose caller hung up, nor bodies on their way',
    async () => {
      const server = await TestServer.start({ MAX_IN_FLIGHT: '2', MAX_WAITING_CLAIMS: '10' });
      const agents: Credentials[] = [];
      // One after the other: more than two at once would be too many.
      for (let i = 0; i < 11; i++) agents.push(await server.register(`probe-${i}`));
      const agent = agents[10] as Credentials;
      const claim = (by = agent, wait_ms = 30_000) =>
        server.agent(by, '/claim', { capacities: { dns: 1 }, wait_ms });
      const waiting: Promise<unknown>[] = [];
      for (let i = 1; i <= 10; i++) {
        waiting.push(claim(agents[i - 1]));
        await asleep(server, i);
      }
      const { hostname, port } = new URL(server.url);
      const slow = Array.from({ length: 5 }, () =>
        connect(Number(port), hostname).write(
          'POST /register HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{',
        ),
      );
      expect(slow).toHaveLength(5);
      expect((await server.agent(agent, '/heartbeat')).status).toBe(200);
      // The eleventh claim that finds nothing is told so, and one that finds something is served.
      const refused = await claim();
      expect(refused).toMatchObject(REFUSED);
      expect(Number(refused.headers.get('retry-after'))).toBeGreaterThanOrEqual(1);
      expect((await claim(agent, 0)).body).toEqual({ leases: [] });
      await server.enqueue(...Array.from({ length: 10 }, () => dnsTask()));
      await Promise.all(waiting);

      // A caller that hangs up leaves nothing behind, asleep or at work.
      for (let i = 0; i < 20; i++) {
        const caller = new AbortController();
        const hungUp = server
          .request('POST', '/claim', {
            signal: caller.signal,
            headers: credentialsOf(agent),
            body: { agent_id: agent.agent_id, capacities: { dns: 1 }, wait_ms: 30_000 },
          })
          .catch(() => undefined);
        if (i % 2 === 0) await asleep(server, 1);
        caller.abort();
        await hungUp;
      }
      await asleep(server, 0);
      const both = await Promise.all([server.agent(agent, '/heartbeat'), server.agent(agent, '/heartbeat')]);
      expect(both.map(({ status }) => status)).toEqual([200, 200]);
      await server.stop();
    },
  );
});
