import { once } from 'node:events';
import { connect } from 'node:net';
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Transaction } from '../../src/database/statements';
import { LeaseCounter } from '../../src/leases/lease-counter';
import { QueueMaintainer } from '../../src/queue/maintenance';
import { InFlight } from '../../src/telemetry/in-flight';
import type { Lease } from '../helpers/api';
import { type Credentials, credentialsOf, dnsTask, TestClock, TestServer } from '../helpers/harness';
import { emptyQueue } from '../helpers/queue-tables';
import { until } from '../helpers/until';

const tcpTask = () => ({ kind: 'tcp', spec: { host: 'example.com', port: 443 } });
const many = <T>(count: number, make: () => T): T[] => Array.from({ length: count }, make);

describe('what an agent holds', () => {
  const clock = new TestClock();
  let server: TestServer;
  let agent: Credentials;

  beforeAll(async () => {
    server = await TestServer.start({ MAX_LEASES_PER_AGENT: '300', LEASE_DURATION_MS: '10000' }, { clock });
  });
  afterAll(() => server.stop());
  beforeEach(async () => {
    agent = await server.register();
  });
  afterEach(async () => {
    // Nothing is left for the next one.
    await server.operator('DELETE', `/v1/agents/${agent.agent_id}`);
    await server.database.write(emptyQueue);
  });

  const claim = async (capacities: object, more: object = {}): Promise<Lease[]> =>
    (await server.agent(agent, '/claim', { capacities, ...more })).body.leases;
  const report = (leases: readonly Pick<Lease, 'lease_id'>[], as: 'completed' | 'cancelled' = 'completed') =>
    server.agent(agent, '/report', {
      completed: [],
      cancelled: [],
      [as]: leases.map(({ lease_id }) => ({ lease_id })),
    });
  const asleep = async () => {
    await until('the claim waits', () => server.app.get(InFlight).waitingClaims > 0);
    // It may have been roused once more by what came before.
    for (let i = 0; i < 5; i++) await nextTurn();
  };

  it('is never more of a kind than its capacity', async () => {
    await server.enqueue(...many(10, dnsTask), ...many(10, tcpTask));
    const first = await claim({ dns: 4, tcp: 1 });
    expect(first.map(({ kind }) => kind).sort()).toEqual(['dns', 'dns', 'dns', 'dns', 'tcp']);
    expect(await claim({ dns: 4, tcp: 1 })).toEqual([]);
    expect(await claim({ dns: 2, tcp: 3 })).toHaveLength(2);
    await report(first.slice(0, 3));
    const held = await server.rows(
      `SELECT kind, count(*) AS count FROM leases WHERE state = 'active' GROUP BY kind ORDER BY kind`,
    );
    expect(held.reduce((sum: number, { count }) => sum + count, 0)).toBe(4);
    await claim({ dns: 4, tcp: 4 });
    const [row] = await server.rows(`SELECT count(*) AS count FROM leases WHERE state = 'active'`);
    expect(row.count).toBe(8);
  });

  it('is counted from the oldest that is live, whichever ended before', async () => {
    await server.enqueue(...many(10, dnsTask));
    const [first, second, third] = await claim({ dns: 3 });
    await report([second as Lease]);
    expect(await claim({ dns: 3 })).toHaveLength(1);
    expect(await claim({ dns: 3 })).toEqual([]);
    await report([first as Lease]);
    expect(await claim({ dns: 4 })).toHaveLength(2);
    await report([third as Lease]);
    expect(await claim({ dns: 4 })).toHaveLength(1);
    expect(await claim({ dns: 4 })).toEqual([]);
  });

  describe('is counted from where leases can be live', () => {
    const MAX = Number.MAX_SAFE_INTEGER;
    /** Has the next count leave everything out, once the unit is committed. */
    const forgetIn = async (tx: Transaction): Promise<void> => {
      const counted = await server.app.get(LeaseCounter).count(tx, [agent.agent_id]);
      jest.spyOn(Math, 'min').mockReturnValueOnce(MAX);
      counted.remember(agent.agent_id, [MAX]);
    };
    const gap = () => (server.database as unknown as { gap(): void }).gap();

    beforeEach(async () => {
      await server.enqueue(...many(10, dnsTask));
      expect(await claim({ dns: 1 })).toHaveLength(1);
    });
    afterEach(() => jest.restoreAllMocks());

    it('which no unit changes that is rolled back', async () => {
      const rolledBack = server.database.write(async (tx) => {
        await forgetIn(tx);
        throw new Error('rolled back');
      });
      await expect(rolledBack).rejects.toThrow('rolled back');
      expect(await claim({ dns: 3 })).toHaveLength(2);
    });

    it('again from the first one after a gap, as after a failover, also by a unit that began before it', async () => {
      await server.database.write(async (tx) => {
        await forgetIn(tx);
        gap();
      });
      expect(await claim({ dns: 3 })).toHaveLength(2);
      await server.database.write(forgetIn);
      // So this is what a stale bound does.
      expect(await claim({ dns: 3 })).toHaveLength(3);
      gap();
      expect(await claim({ dns: 6 })).toEqual([]);
    });
  });

  it('is not more for claims at once', async () => {
    await server.enqueue(...many(40, dnsTask));
    const answers = await Promise.all(many(8, () => claim({ dns: 5 })));
    expect(answers.flat()).toHaveLength(5);
  });

  it('is no more than the setting allows, whatever the capacities', async () => {
    await server.enqueue(...many(400, dnsTask));
    expect(await claim({ dns: 10_000 })).toHaveLength(256);
    expect(await claim({ dns: 10_000 })).toHaveLength(44);
    expect(await claim({ dns: 10_000 })).toEqual([]);
  });

  it('is shared by the kinds in proportion to what was asked, and no share is lost', async () => {
    await server.enqueue(...many(300, () => dnsTask({ priority: 5 })), ...many(300, tcpTask));
    const kinds = (leases: Lease[]) => Map.groupBy(leases, ({ kind }) => kind);
    const shared = kinds(await claim({ dns: 600, tcp: 200, http: 200 }));
    // Of 256: http has none, so its part goes to the others.
    expect([shared.get('dns')?.length, shared.get('tcp')?.length]).toEqual([192, 64]);
  });

  it('counts leases again that ended otherwise', async () => {
    await server.enqueue(...many(3, dnsTask));
    const [first] = await claim({ dns: 1 });
    await server.operator('POST', `/v1/tasks/${first.task_id}/cancel`);
    const [second] = await claim({ dns: 1 });
    await report([second], 'cancelled');
    expect(await claim({ dns: 1 })).toHaveLength(1);
  });

  it('is waited for to be less: a report lets a waiting claim go on', async () => {
    await server.enqueue(...many(3, dnsTask));
    const held = await claim({ dns: 2 });
    const waiting = claim({ dns: 2 }, { wait_ms: 30_000 });
    await asleep();
    await report(held.slice(0, 1));
    expect(await waiting).toHaveLength(1);
  });

  it('does not keep a wake-up from others while it is full', async () => {
    await server.enqueue(dnsTask());
    await claim({ dns: 1 });
    const full = claim({ dns: 1, tcp: 1 }, { wait_ms: 30_000 });
    await asleep();
    const other = await server.register();
    const got = server.agent(other, '/claim', { capacities: { dns: 1 }, wait_ms: 30_000 });
    await until('both claims wait', () => server.app.get(InFlight).waitingClaims >= 2);
    const [task] = await server.enqueue(dnsTask());
    expect((await got).body.leases).toMatchObject([{ task_id: task }]);
    const [tcp] = await server.enqueue(tcpTask());
    expect(await full).toMatchObject([{ task_id: tcp }]);
    await server.operator('DELETE', `/v1/agents/${other.agent_id}`);
  });

  it('is kept by extends of 500 ms every 2 s for a check of 25 s on leases of 10 s', async () => {
    const [id] = await server.enqueue(dnsTask());
    const [{ lease_id }] = await claim({ dns: 1 });
    for (let second = 1; second <= 25; second++) {
      clock.advance(1_000);
      await server.app.get(QueueMaintainer).reap();
      if (second % 2 > 0) continue;
      const answer = await server.agent(agent, '/extend', { lease_ids: [lease_id], extend_by_ms: 500 });
      expect(answer.body).toEqual({ outcomes: [{ lease_id, new_deadline_ms: 10_000 }], revoked: [] });
    }
    expect((await report([{ lease_id }])).body).toEqual({ acknowledged: 1 });
    expect((await server.operator('GET', `/v1/tasks/${id}`)).body).toMatchObject({
      state: 'completed',
      attempts: 1,
    });
  });

  describe('after its caller has hung up', () => {
    // The kernel tells the server when it has time to: on a busy machine later than the claim is granted.
    jest.retryTimes(3);

    /** By an end of its connection, or by a reset, as of a process or a proxy that drops it. */
    const abandon = async (body: object, how: 'destroy' | 'resetAndDestroy' = 'destroy'): Promise<void> => {
      const { hostname, port } = new URL(server.url);
      const text = JSON.stringify({ agent_id: agent.agent_id, ...body });
      const headers = Object.entries({
        host: 'a',
        'content-type': 'application/json',
        ...credentialsOf(agent),
      });
      const socket = connect(Number(port), hostname);
      await once(socket, 'connect');
      socket.write(
        `POST /claim HTTP/1.1\r\n${headers.map(([name, value]) => `${name}: ${value}\r\n`).join('')}content-length: ${text.length}\r\n\r\n${text}`,
      );
      socket[how]();
    };
    const connections = () =>
      new Promise<number>((resolve) =>
        server.app.getHttpServer().getConnections((_: unknown, count: number) => resolve(count)),
      );
    const leases = async () =>
      (await server.rows(`SELECT count(*) AS count FROM leases WHERE agent_id = $1`, agent.agent_id))[0]
        .count;

    it.each([0, 30_000])('is nothing: claims that wait for their turn, then up to %d ms', async (wait_ms) => {
      await server.enqueue(...many(100, dnsTask));
      // So that the agent's credentials are in memory.
      await server.agent(agent, '/heartbeat');
      const before = await connections();
      const release = await server.holdWriter();
      await Promise.all(many(20, () => abandon({ capacities: { dns: 5 }, wait_ms })));
      await until('the connections are closed', connections, { isDone: (count) => count <= before });
      await release();
      // Behind all of them.
      await server.agent(agent, '/heartbeat');
      expect(await leases()).toBe(0);
    });

    it.each(['destroy', 'resetAndDestroy'] as const)(
      'is nothing for claims that are sent and abandoned at once: %s',
      async (how) => {
        await server.enqueue(...many(100, dnsTask));
        await server.agent(agent, '/heartbeat');
        const before = await connections();
        for (let i = 0; i < 20; i++) await abandon({ capacities: { dns: 50 } }, how);
        await until('the connections are closed', connections, { isDone: (count) => count <= before });
        await server.agent(agent, '/heartbeat');
        expect(await leases()).toBe(0);
      },
    );
  });
});
