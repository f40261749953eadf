import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { getStorageToken } from '@nestjs/throttler';
import { QuotaRetention } from '../../src/access/quota-retention';
import type { QuotaStorage } from '../../src/access/quota-storage';
import { type Answer, type Credentials, credentialsOf, TestClock, TestServer } from '../helpers/harness';
import { holdLocks, untilBlocked } from '../helpers/locks';
import { until } from '../helpers/until';

const POSTGRES = process.env.CONTROL_PLANE_TEST_POSTGRES_URL;

// On SQLite one process has the database for itself: access.e2e-spec.ts covers its quotas.
const describeShared = POSTGRES ? describe : describe.skip;

const QUOTAS = { QUOTA_HEARTBEAT: 'default', QUOTA_CLAIM: 'default', QUOTA_REGISTER: 'default' };

/** A way to the server of the database that can be cut, and repaired at the same address. */
class Cable {
  private readonly server = createServer((near) => {
    const far = connect({ host: this.target.hostname, port: Number(this.target.port || 5432) });
    for (const socket of [near, far]) {
      this.sockets.add(socket);
      socket.on('error', () => undefined);
      socket.on('close', () => {
        near.destroy();
        far.destroy();
        this.sockets.delete(socket);
      });
    }
    near.pipe(far).pipe(near);
  });
  private readonly sockets = new Set<Socket>();
  private port = 0;

  constructor(private readonly target: URL) {}

  /** @returns the port that leads to the database */
  async repair(): Promise<number> {
    this.server.listen(this.port, '127.0.0.1');
    await once(this.server, 'listening');
    this.port = (this.server.address() as AddressInfo).port;
    return this.port;
  }

  async cut(): Promise<void> {
    if (!this.server.listening) return;
    this.server.close();
    for (const socket of this.sockets) socket.destroy();
    await once(this.server, 'close');
  }
}

describeShared('quotas of three replicas on one PostgreSQL database', () => {
  let clock: TestClock;
  let replicas: TestServer[];
  let cable: Cable | undefined;
  let agent: Credentials;

  const replica = (i: number): TestServer => replicas[i % replicas.length] as TestServer;
  const heartbeat = (i: number, who = agent): Promise<Answer> => replica(i).agent(who, '/heartbeat');
  const statusesOf = async (answers: Promise<Answer>[]): Promise<number[]> =>
    (await Promise.all(answers)).map(({ status }) => status);
  const admittedOf = (statuses: number[]): number => statuses.filter((status) => status === 200).length;
  /** Which statement wrote the bucket last. */
  const versionOf = async (key: string): Promise<string | undefined> =>
    (
      await replica(0).rows<{ version: string }>(
        'SELECT xmin::text AS version FROM quota_buckets WHERE key = $1',
        key,
      )
    )[0]?.version;

  beforeEach(async () => {
    clock = new TestClock();
    const first = await TestServer.start(QUOTAS, { clock });
    replicas = [first];
    for (let i = 0; i < 2; i++)
      replicas.push(await TestServer.start(QUOTAS, { clock, folder: first.folder }));
    agent = await first.register('a');
  });

  afterEach(async () => {
    for (const server of replicas.slice(1)) await server.stop({ keep: true });
    await replica(0).stop();
    await cable?.cut();
    cable = undefined;
  });

  it('admit exactly the burst of a flood over all of them, and then exactly the rate', async () => {
    const flood = () => statusesOf(Array.from({ length: 90 }, (_, i) => heartbeat(i)));
    const statuses = await flood();
    expect(admittedOf(statuses)).toBe(3);
    expect(statuses.filter((status) => status === 429)).toHaveLength(87);
    clock.advance(9_999);
    expect(admittedOf(await flood())).toBe(0);
    clock.advance(1);
    expect(admittedOf(await flood())).toBe(1);
    // Half an interval twice: what a refusal took, or what one replica counted twice, would show here.
    clock.advance(5_000);
    expect(admittedOf(await flood())).toBe(0);
    clock.advance(15_000);
    expect(admittedOf(await flood())).toBe(2);
    clock.advance(3_600_000);
    expect(admittedOf(await flood())).toBe(3);
  });

  it('stay exact when the row of a bucket has been used up and the next begins', async () => {
    const generations = () =>
      replica(0).rows(
        `SELECT generation, uses FROM quota_buckets WHERE key LIKE 'agent:%' ORDER BY generation`,
      );
    for (let i = 0; i < 31; i++) {
      clock.advance(10_000);
      expect((await heartbeat(i)).status).toBe(200);
    }
    expect(await generations()).toEqual([{ generation: 0, uses: 31 }]);
    // The bucket held three tokens, and one was taken a moment ago.
    expect(admittedOf(await statusesOf(Array.from({ length: 90 }, (_, i) => heartbeat(i))))).toBe(2);
    expect((await generations())[0]).toEqual({ generation: 0, uses: 32 });
    clock.advance(10_000);
    expect(admittedOf(await statusesOf(Array.from({ length: 90 }, (_, i) => heartbeat(i))))).toBe(1);
    expect(await generations()).toHaveLength(2);
    clock.advance(15_000);
    expect(admittedOf(await statusesOf(Array.from({ length: 90 }, (_, i) => heartbeat(i))))).toBe(1);
    clock.advance(5_000);
    expect(admittedOf(await statusesOf(Array.from({ length: 90 }, (_, i) => heartbeat(i))))).toBe(1);
  });

  it('have three rows for each bucket at most', async () => {
    for (let i = 0; i < 130; i++) {
      clock.advance(10_000);
      expect((await heartbeat(i)).status).toBe(200);
    }
    expect(
      await replica(0).rows(
        `SELECT generation, uses FROM quota_buckets WHERE key LIKE 'agent:%' ORDER BY generation`,
      ),
    ).toEqual([
      { generation: 2, uses: 32 },
      { generation: 3, uses: 32 },
      { generation: 4, uses: 2 },
    ]);
  });

  it('count every token of units of work that wait for each other, also of those that are rolled back', async () => {
    const undone = new Error('rolled back');
    let admitted = 0;
    const take = async (i: number): Promise<void> => {
      const { database } = replica(i);
      const request = { key: 'all:test', asked: 1, rate: 1, periodMs: 10_000_000, burst: 1_000_000 };
      await database
        .write(async (tx) => {
          const taken = await database.buckets?.take([request], clock.now(), tx);
          if (i % 5 === 0) throw undone;
          return taken;
        })
        .then(
          (taken) => {
            admitted += taken?.[0]?.admitted ?? 0;
          },
          (error) => expect(error).toBe(undone),
        );
    };
    for (let round = 0; round < 40; round++) await Promise.all(Array.from({ length: 30 }, (_, i) => take(i)));
    expect(admitted).toBe(40 * 24);
    const [last] = await replica(0).rows(
      `SELECT debt FROM quota_buckets WHERE key = 'all:test' ORDER BY generation DESC LIMIT 1`,
    );
    expect(Number(last.debt) / 10_000_000).toBe(admitted);
  });

  it('charge a bucket that was used up twice while a statement waited for another', async () => {
    const requestsOf = (...keys: string[]) =>
      keys.map((key) => ({ key, asked: 1, rate: 1, periodMs: 10_000_000, burst: 1_000 }));
    const take = async (...keys: string[]): Promise<number> => {
      const taken = await replica(0).database.buckets?.take(requestsOf(...keys), clock.now());
      return taken?.find(({ key }) => key === 'b')?.admitted ?? 0;
    };
    let admitted = await take('a', 'b');
    const release = await holdLocks(replica(1), (tx) =>
      tx.run(`UPDATE quota_buckets SET uses = uses WHERE key = 'a'`),
    );
    // It has read the last row of each, and has only begun to lock them.
    const waits = take('a', 'b');
    await untilBlocked(replica(0));
    for (let i = 0; i < 100; i++) admitted += await take('b');
    await release();
    admitted += await waits;
    const [last] = await replica(0).rows(
      `SELECT debt FROM quota_buckets WHERE key = 'b' ORDER BY generation DESC LIMIT 1`,
    );
    expect([admitted, Number(last.debt) / 10_000_000]).toEqual([102, 102]);
  });

  it('do not forget what a used-up row owes, if the clock was set back', async () => {
    const day = 86_400_000;
    clock.advance(day);
    for (let i = 0; i < 33; i++) {
      clock.advance(10_000);
      expect((await heartbeat(i)).status).toBe(200);
    }
    const rows = () =>
      replica(0).rows(`SELECT generation FROM quota_buckets WHERE key LIKE 'agent:%' ORDER BY 1`);
    expect(await rows()).toHaveLength(2);
    await replica(0).rows(
      `UPDATE quota_buckets SET settled_at = settled_at + 3 * ${day} WHERE generation = 0 AND key LIKE 'agent:%'`,
    );
    clock.advance(2 * day);
    await replica(1).app.get(QuotaRetention, { strict: false }).purge();
    // Without the newer row, the older one would count again.
    expect(await rows()).toHaveLength(2);
    expect(admittedOf(await statusesOf(Array.from({ length: 9 }, (_, i) => heartbeat(i))))).toBe(3);
  });

  it('keep agents and routes apart in one burst', async () => {
    const others: Credentials[] = [];
    for (const hostname of ['b', 'c', 'd']) others.push(await replica(0).register(hostname));
    const calls = others.flatMap((who) =>
      Array.from({ length: 15 }, (_, i) => [
        { who, route: '/heartbeat', answer: heartbeat(i, who) },
        { who, route: '/claim', answer: replica(i).agent(who, '/claim', { capacities: {} }) },
      ]).flat(),
    );
    const statuses = await statusesOf(calls.map(({ answer }) => answer));
    for (const who of others) {
      const admitted = (route: string) =>
        admittedOf(statuses.filter((_, i) => calls[i]?.who === who && calls[i]?.route === route));
      expect([admitted('/heartbeat'), admitted('/claim')]).toEqual([3, 6]);
    }
  });

  it('say at each what is left of all, and when to come again', async () => {
    for (let i = 0; i < 3; i++) {
      const { status, headers } = await heartbeat(i);
      expect([status, headers.get('ratelimit')]).toEqual([200, `"heartbeat";r=${2 - i};t=10`]);
    }
    clock.advance(1_500);
    for (let i = 0; i < 6; i++) {
      const { status, headers, body } = await heartbeat(i);
      expect([status, headers.get('ratelimit'), headers.get('retry-after')]).toEqual([
        429,
        '"heartbeat";r=0;t=9',
        '9',
      ]);
      expect(headers.get('ratelimit-policy')).toBe('"heartbeat";q=3;w=30');
      expect(body).toMatchObject({ error: 'ERR_RATE_LIMITED', details: { quota: 'heartbeat' } });
    }
    clock.advance(9_000);
    expect((await heartbeat(1)).status).toBe(200);
  });

  it('number what is let in together', async () => {
    const answers = await Promise.all(Array.from({ length: 20 }, () => heartbeat(0)));
    const left = answers
      .filter(({ status }) => status === 200)
      .map(({ headers }) => headers.get('ratelimit'));
    expect(left.sort()).toEqual([0, 1, 2].map((r) => `"heartbeat";r=${r};t=10`));
  });

  it('refuse a flood from memory', async () => {
    const key = `agent:${agent.agent_id}:heartbeat`;
    // The last that is let in tells that replica; each other one has to ask once.
    for (let i = 0; i < 3; i++) expect((await heartbeat(0)).status).toBe(200);
    const emptied = await versionOf(key);
    expect((await heartbeat(0)).status).toBe(429);
    expect(await versionOf(key)).toBe(emptied);
    expect([(await heartbeat(1)).status, (await heartbeat(2)).status]).toEqual([429, 429]);
    const known = await versionOf(key);
    expect(known).not.toBe(emptied);
    expect(admittedOf(await statusesOf(Array.from({ length: 60 }, (_, i) => heartbeat(i))))).toBe(0);
    expect(await versionOf(key)).toBe(known);
    clock.advance(10_000);
    expect((await heartbeat(2)).status).toBe(200);
  });

  it('do not make an agent wait for a clock that was set back, and give it nothing for it', async () => {
    for (let i = 0; i < 3; i++) expect((await heartbeat(i)).status).toBe(200);
    clock.advance(-3_600_000);
    for (let i = 0; i < 3; i++) expect((await heartbeat(i)).status).toBe(429);
    const { headers } = await heartbeat(0);
    expect(Number(headers.get('retry-after'))).toBeLessThanOrEqual(20);
    clock.advance(Number(headers.get('retry-after')) * 1_000);
    expect(admittedOf(await statusesOf(Array.from({ length: 9 }, (_, i) => heartbeat(i))))).toBe(1);
  });

  it('count no time twice where their clocks differ a little', async () => {
    const { folder } = replica(0);
    const env = { QUOTA_HEARTBEAT: '6/1m,60' };
    const behind = new TestClock(clock.now() - 5_000);
    replicas.push(await TestServer.start(env, { clock, folder }));
    replicas.push(await TestServer.start(env, { clock: behind, folder }));
    // Were the instant of the one behind taken for the bucket's, the other would fill it by 5 s each time.
    const statuses: number[] = [];
    for (let i = 0; i < 80; i++) statuses.push((await heartbeat(3 + (i % 2))).status);
    expect(admittedOf(statuses)).toBe(60);
  });

  it('keep what an agent owes if its quota is changed, also to one of no whole number of milliseconds', async () => {
    const { folder } = replica(0);
    replicas.push(await TestServer.start({ ...QUOTAS, QUOTA_HEARTBEAT: '7/1m,3' }, { clock, folder }));
    for (let i = 0; i < 2; i++) expect((await heartbeat(0)).status).toBe(200);
    // 20 s of the 25.7 s that its bucket holds now: 2.86 s short of the 8.57 s that one more takes.
    const changed = async () => {
      const { status, headers } = await heartbeat(3);
      return [status, headers.get('ratelimit'), headers.get('retry-after')];
    };
    expect(await changed()).toEqual([429, '"heartbeat";r=0;t=3', '3']);
    clock.advance(2_857);
    expect(await changed()).toEqual([429, '"heartbeat";r=0;t=1', '1']);
    clock.advance(1);
    expect(await changed()).toEqual([200, '"heartbeat";r=0;t=9', null]);
    // And back: 25.7 s of 30 s are owed.
    expect((await heartbeat(0)).headers.get('retry-after')).toBe('6');
    clock.advance(5_713);
    expect((await heartbeat(0)).status).toBe(429);
    clock.advance(1);
    expect((await heartbeat(0)).status).toBe(200);
  });

  it('give a hostname one registration, whichever of them it comes to, and one that is undone costs nothing', async () => {
    const register = (i: number, body: object, headers = {}) =>
      replica(i).request('POST', '/register', { body, headers });
    const proof = credentialsOf(agent);
    const refused = await statusesOf([0, 1, 2].map((i) => register(i, { hostname: 'a' }, proof)));
    expect(refused).toEqual([429, 429, 429]);
    clock.advance(600_000);
    expect((await heartbeat(0)).status).toBe(200);
    // Nobody can use up what is another's.
    const stranger = await register(1, { hostname: 'a' });
    expect([stranger.status, stranger.headers.get('ratelimit')]).toEqual([409, '"register";r=1;t=0']);
    const statuses = await statusesOf(
      Array.from({ length: 9 }, (_, i) => register(i, { hostname: 'a' }, proof)),
    );
    expect(admittedOf(statuses)).toBe(1);
    expect(statuses.filter((status) => status === 429)).toHaveLength(8);
    // Without a hostname it is the address that has one.
    expect(admittedOf(await statusesOf(Array.from({ length: 9 }, (_, i) => register(i, {}))))).toBe(1);
  });

  it('let a registration elsewhere wait for one that is on its way, and in where that is undone', async () => {
    const register = (i: number) => replica(i).request('POST', '/register', { body: { hostname: 'b' } });
    const taken = Promise.withResolvers<void>();
    const gate = Promise.withResolvers<void>();
    const undone = replica(0).database.write(async (tx) => {
      const storage: QuotaStorage = replica(0).app.get(getStorageToken(), { strict: false });
      const record = await storage.increment('host:b:register', 600_000, 1, 0, 'register', tx);
      expect(record).toMatchObject({ isBlocked: false });
      taken.resolve();
      await gate.promise;
      throw new Error('undone');
    });
    await taken.promise;
    let answered = false;
    const waiting = register(1).finally(() => {
      answered = true;
    });
    const isBlocked = `SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`;
    await until('a registration waits for a lock, or is answered', async () => {
      return (await replica(2).rows(isBlocked)).length > 0 || answered;
    });
    expect(answered).toBe(false);
    gate.resolve();
    await expect(undone).rejects.toThrow('undone');
    expect((await waiting).status).toBe(200);
    expect((await register(0)).status).not.toBe(200);
  });

  it('answer 503 while the database is away, and are exact after', async () => {
    const target = new URL(POSTGRES as string);
    cable = new Cable(target);
    const there = new URL(target);
    there.hostname = '127.0.0.1';
    there.port = String(await cable.repair());
    const [{ name }] = (await replica(0).rows<{ name: string }>('SELECT current_database() AS name')) as [
      { name: string },
    ];
    there.pathname = `/${name}`;
    const far = await TestServer.start(
      { ...QUOTAS, DATABASE_URL: there.href },
      { clock, folder: replica(0).folder },
    );
    replicas.push(far);
    const empty = await far.register('empty');
    for (let i = 0; i < 3; i++) expect((await far.agent(empty, '/heartbeat')).status).toBe(200);
    expect((await far.agent(agent, '/heartbeat')).status).toBe(200);

    await cable.cut();
    const away = await Promise.all(Array.from({ length: 10 }, () => far.agent(agent, '/heartbeat')));
    for (const { status, body, headers } of away) {
      expect([status, body.error, body.retryable]).toEqual([503, 'ERR_UNAVAILABLE', true]);
      expect(Number(headers.get('retry-after'))).toBeGreaterThan(0);
    }
    expect((await far.request('POST', '/register', { body: { hostname: 'b' } })).status).toBe(503);
    // Its bucket is known to be empty; but nobody can say whether it is in service still.
    expect((await far.agent(empty, '/heartbeat')).status).toBe(503);

    await cable.repair();
    const statuses = await statusesOf(Array.from({ length: 30 }, (_, i) => heartbeat(i)));
    expect(admittedOf(statuses)).toBe(2);
    expect(statuses).not.toContain(503);
  });

  it('forget buckets that have long been full, and no others', async () => {
    const keys = async () =>
      (await replica(0).rows<{ key: string }>('SELECT key FROM quota_buckets ORDER BY key')).map(
        ({ key }) => key,
      );
    await heartbeat(0);
    const [register, beat] = ['host:a:register', `agent:${agent.agent_id}:heartbeat`];
    expect(await keys()).toEqual([beat, register]);
    const purge = () => replica(1).app.get(QuotaRetention, { strict: false }).purge();
    clock.advance(3_610_001);
    expect(await purge()).toBe(1);
    expect(await keys()).toEqual([register]);
    clock.advance(600_000);
    expect(await purge()).toBe(1);
    expect(admittedOf(await statusesOf(Array.from({ length: 9 }, (_, i) => heartbeat(i))))).toBe(3);
  });

  it('are in the only table that is not in the log', async () => {
    const unlogged = await replica(0).rows(
      `SELECT relname FROM pg_class WHERE relkind = 'r' AND relpersistence <> 'p'`,
    );
    expect(unlogged).toEqual([{ relname: 'quota_buckets' }]);
  });
});
