import { ClaimWaiters } from '../../src/queue/claim-waiters';
import { QueueMaintainer } from '../../src/queue/maintenance';
import { TaskTransitions } from '../../src/queue/transitions';
import { type Credentials, dnsTask, TestClock, TestServer } from '../helpers/harness';
import { until } from '../helpers/until';

const LEASE_MS = 60_000;

describe('tasks and leases', () => {
  let server: TestServer;
  let clock: TestClock;
  let agent: Credentials;

  beforeEach(async () => {
    clock = new TestClock();
    server = await TestServer.start({}, { clock });
    agent = await server.register('probe-1');
  });
  afterEach(() => server.stop());

  const claim = (who: Credentials, capacity = 10, more: object = {}, headers = {}) =>
    server.agent(who, '/claim', { capacities: { dns: capacity }, ...more }, headers);
  const report = (who: Credentials, completed: object[], cancelled: object[] = []) =>
    server.agent(who, '/report', { completed, cancelled });
  /** Waits until a claim waits. */
  const asleep = () => until('a claim waits', () => server.app.get(ClaimWaiters).waiting > 0);
  const task = async (id: number) => (await server.operator('GET', `/v1/tasks/${id}`)).body;

  describe('claim', () => {
    it('gives the best first: by priority, then by age', async () => {
      const ids = await server.enqueue(
        dnsTask(),
        dnsTask({ priority: 5 }),
        dnsTask({ priority: 5 }),
        dnsTask({ priority: -1 }),
      );
      const { status, body } = await claim(agent, 3);
      expect(status).toBe(200);
      expect(body.leases.map((lease) => lease.task_id)).toEqual([ids[1], ids[2], ids[0]]);
      expect(body.leases[0]).toEqual({
        lease_id: expect.any(Number),
        task_id: ids[1],
        kind: 'dns',
        lease_until_ms: LEASE_MS,
        spec: { kind: 'dns', query: 'example.com' },
      });
    });

    it('gives the best first to a claim that comes together with the enqueue, too', async () => {
      await server.enqueue(dnsTask());
      expect((await claim(agent, 1)).body.leases).toHaveLength(1);
      for (let capacity = 2; capacity < 20; capacity++) {
        const [[best], { body }] = await Promise.all([
          server.enqueue(dnsTask({ priority: 5 }), dnsTask()),
          claim(agent, capacity),
        ]);
        const leases = body.leases.length > 0 ? body.leases : (await claim(agent, capacity)).body.leases;
        expect(leases[0].task_id).toBe(best);
        await report(
          agent,
          leases.map(({ lease_id }) => ({ lease_id })),
        );
        const rest = (await claim(agent, 100)).body.leases;
        await report(
          agent,
          rest.map(({ lease_id }) => ({ lease_id })),
        );
      }
    });

    it('respects the capacity of each kind and 256 in all', async () => {
      const tcp = { kind: 'tcp', spec: { host: 'example.com', port: 443 } };
      await server.enqueue(
        ...Array.from({ length: 200 }, () => dnsTask()),
        ...Array.from({ length: 200 }, () => tcp),
      );
      const some = await server.agent(agent, '/claim', { capacities: { dns: 2, tcp: 1, http: 5, ping: 0 } });
      expect(some.body.leases.map((lease) => lease.kind)).toEqual(['dns', 'dns', 'tcp']);
      const most = await server.agent(agent, '/claim', { capacities: { dns: 1_000, tcp: 1_000 } });
      expect(most.body.leases).toHaveLength(256);
    });

    it('never gives one task to two, however many ask at once', async () => {
      const agents = await Promise.all(Array.from({ length: 8 }, (_, i) => server.register(`racer-${i}`)));
      const ids = await server.enqueue(...Array.from({ length: 20 }, () => dnsTask()));
      const answers = await Promise.all(agents.map((who) => claim(who, 5)));
      const granted = answers.flatMap(({ body }) => body.leases.map((lease) => lease.task_id));
      expect(granted.sort((a: number, b: number) => a - b)).toEqual(ids);
    });

    it('waits for work, and is woken by an enqueue', async () => {
      const waiting = claim(agent, 1, { wait_ms: 30_000 });
      await asleep();
      await server.enqueue(dnsTask());
      expect((await waiting).body.leases).toHaveLength(1);
    });

    it('is woken when a scheduled task comes due', async () => {
      await server.enqueue(dnsTask({ run_at: new Date(clock.now() + 5_000).toISOString() }));
      expect((await claim(agent)).body.leases).toEqual([]);
      const waiting = claim(agent, 1, { wait_ms: 30_000 });
      await server.pass(5_000);
      expect((await waiting).body.leases).toHaveLength(1);
    });

    it('answers with nothing when the time is up', async () => {
      expect((await claim(agent, 1, { wait_ms: 20 })).body).toEqual({ leases: [] });
    });

    it('is answered when the server stops', async () => {
      const waiting = claim(agent, 1, { wait_ms: 30_000 });
      await asleep();
      await server.stop({ keep: true });
      expect((await waiting).body).toEqual({ leases: [] });
      server = await TestServer.start({}, { clock, folder: server.folder });
    });

    it('gives a waiting wake-up to the next in line when the first is draining', async () => {
      const second = await server.register('probe-2');
      const first = claim(agent, 1, { wait_ms: 300 });
      await asleep();
      await server.operator('POST', `/v1/agents/${agent.agent_id}/drain`);
      const other = claim(second, 1, { wait_ms: 30_000 });
      const [id] = await server.enqueue(dnsTask());
      expect((await other).body.leases).toMatchObject([{ task_id: id }]);
      expect((await first).body.leases).toEqual([]);
    });

    it('gives the same live leases under the same key', async () => {
      await server.enqueue(dnsTask(), dnsTask(), dnsTask());
      const key = { 'idempotency-key': 'claim-1' };
      const first = await claim(agent, 2, {}, key);
      clock.advance(1_000);
      const again = await claim(agent, 2, {}, key);
      expect(again.body.leases.map((lease) => lease.lease_id)).toEqual(
        first.body.leases.map((lease) => lease.lease_id),
      );
      expect(again.body.leases[0].lease_until_ms).toBe(LEASE_MS - 1_000);

      await report(agent, [{ lease_id: first.body.leases[0].lease_id }]);
      expect((await claim(agent, 2, {}, key)).body.leases).toMatchObject([
        { lease_id: first.body.leases[1].lease_id },
      ]);

      // Not even where the other body asks for nothing.
      for (const capacity of [1, 0]) {
        expect(await claim(agent, capacity, {}, key)).toMatchObject({
          status: 409,
          body: { error: 'ERR_CONFLICT', retryable: false },
        });
      }
      // Another agent's keys are its own.
      const other = await server.register('probe-2');
      expect((await claim(other, 2, {}, key)).body.leases).toHaveLength(1);
    });

    it('does not remember an empty answer, and refuses a key that is in use', async () => {
      const key = { 'idempotency-key': 'claim-2' };
      expect((await claim(agent, 1, {}, key)).body.leases).toEqual([]);
      const both = await Promise.all([
        claim(agent, 1, { wait_ms: 1_000 }, key),
        claim(agent, 1, { wait_ms: 1_000 }, key),
        server.enqueue(dnsTask()),
      ]);
      const [ok, refused] = [both[0], both[1]].sort((a, b) => a.status - b.status);
      expect(ok).toMatchObject({ status: 200, body: { leases: [{ lease_id: expect.any(Number) }] } });
      expect(refused).toMatchObject({ status: 409, body: { error: 'ERR_CONFLICT', retryable: true } });
      expect(Number(refused?.headers.get('retry-after'))).toBeGreaterThanOrEqual(1);
    });
  });

  describe('extend', () => {
    it('moves the deadline on, never back, and never past the lifetime', async () => {
      await server.enqueue(dnsTask());
      const [{ lease_id }] = (await claim(agent)).body.leases;
      const extend = async (extend_by_ms: number) =>
        (await server.agent(agent, '/extend', { lease_ids: [lease_id], extend_by_ms })).body.outcomes[0]
          .new_deadline_ms;
      clock.advance(1_000);
      expect(await extend(0)).toBe(LEASE_MS - 1_000);
      expect(await extend(1e9)).toBe(LEASE_MS);
      for (let minute = 0; minute < 59; minute++) {
        await server.pass(59_000);
        await extend(LEASE_MS);
      }
      await server.pass(58_000);
      expect(await extend(LEASE_MS)).toBe(60_000 * 60 - 1_000 - 59 * 59_000 - 58_000);
    });

    it('lists as revoked what is not a live lease of the caller, foreign and unknown alike', async () => {
      await server.enqueue(dnsTask(), dnsTask());
      const other = await server.register('probe-2');
      const [mine, ended] = (await claim(agent)).body.leases.map((lease) => lease.lease_id);
      await report(agent, [{ lease_id: ended }]);
      const answer = await server.agent(agent, '/v1/agents/extend', {
        lease_ids: [ended, mine, 999],
        extend_by_ms: 5_000,
      });
      expect(answer.body).toEqual({
        outcomes: [{ lease_id: mine, new_deadline_ms: LEASE_MS }],
        revoked: [ended, 999],
      });
      const foreign = await server.agent(other, '/extend', { lease_ids: [mine], extend_by_ms: 5_000 });
      expect(foreign.body).toEqual({ outcomes: [], revoked: [mine] });
    });

    it('answers each of several callers for itself, if they name the same lease at once', async () => {
      await server.enqueue(dnsTask());
      const others = await Promise.all(Array.from({ length: 6 }, (_, i) => server.register(`other-${i}`)));
      const [{ lease_id: mine }] = (await claim(agent)).body.leases;
      const extend = (who: Credentials) =>
        server.agent(who, '/extend', { lease_ids: [mine], extend_by_ms: 5_000 });
      const [own, ...foreign] = await Promise.all([agent, ...others].map(extend));
      expect(own?.body).toEqual({ outcomes: [{ lease_id: mine, new_deadline_ms: LEASE_MS }], revoked: [] });
      for (const { body } of foreign) expect(body).toEqual({ outcomes: [], revoked: [mine] });
    });
  });

  describe('report', () => {
    it('completes a task once, acknowledges the same again and rejects another outcome', async () => {
      const [id] = await server.enqueue(dnsTask());
      const [{ lease_id }] = (await claim(agent)).body.leases;
      const done = {
        lease_id,
        outcome: 'success',
        observations: [
          { name: 'rtt', value: 12.5, unit: 'ms' },
          { name: 'raw', value: { a: [1, null] } },
        ],
      };
      expect((await report(agent, [done])).body).toEqual({ acknowledged: 1 });
      expect((await report(agent, [done])).body).toEqual({ acknowledged: 1 });
      expect((await report(agent, [{ ...done, outcome: 'error' }])).body).toEqual({
        acknowledged: 0,
        rejected: [{ lease_id, reason: 'conflict' }],
      });
      expect((await report(agent, [], [done])).body.rejected).toEqual([{ lease_id, reason: 'conflict' }]);
      expect(await task(id as number)).toMatchObject({
        state: 'completed',
        finished_at: expect.any(String),
        leases: [
          {
            lease_id,
            state: 'completed',
            result: { standing: 'final', outcome: 'success', observations: done.observations },
          },
        ],
      });
      expect(await server.rows(`SELECT id, outcome FROM leases WHERE report IS NOT NULL`)).toEqual([
        { id: lease_id, outcome: 'success' },
      ]);
    });

    it('is the same again by its outcome, whatever failure and duration it says', async () => {
      await server.enqueue(dnsTask());
      const [{ lease_id }] = (await claim(agent)).body.leases as [{ lease_id: number }];
      const first = { lease_id, outcome: 'error', failure: 'refused', rtt_ms: 12.5 };
      const repeats = [first, { ...first, failure: 'local' }, { lease_id, outcome: 'error', rtt_ms: null }];
      for (const one of repeats) expect((await report(agent, [one])).body).toEqual({ acknowledged: 1 });
      expect((await report(agent, [{ ...first, outcome: 'timeout' }])).body).toEqual({
        acknowledged: 0,
        rejected: [{ lease_id, reason: 'conflict' }],
      });
    });

    it('gives a cancelled task back with backoff, and ends it after its last attempt', async () => {
      const [id] = await server.enqueue(dnsTask({ max_attempts: 2 }));
      const [first] = (await claim(agent)).body.leases;
      const given = { lease_id: first.lease_id, outcome: 'timeout', observations: [] };
      expect((await report(agent, [], [given])).body).toEqual({ acknowledged: 1 });
      const waiting = await task(id as number);
      expect(waiting).toMatchObject({ state: 'scheduled', attempts: 1 });
      const backoff = Date.parse(waiting.run_at) - clock.now();
      expect(backoff).toBeGreaterThanOrEqual(500);
      expect(backoff).toBeLessThanOrEqual(1_000);
      expect((await claim(agent)).body.leases).toEqual([]);
      await server.pass(1_000);
      const [second] = (await claim(agent)).body.leases;
      expect(second.lease_id).toBeGreaterThan(first.lease_id);
      await report(agent, [], [{ lease_id: second.lease_id }]);
      expect(await task(id as number)).toMatchObject({ state: 'dead', reason: 'max_attempts', attempts: 2 });
    });

    it('treats a foreign lease as an unknown one, and touches nothing', async () => {
      const [id] = await server.enqueue(dnsTask());
      const [{ lease_id }] = (await claim(agent)).body.leases;
      const other = await server.register('probe-2');
      const answer = await report(other, [{ lease_id }, { lease_id: 999 }]);
      expect(answer.body).toEqual({
        acknowledged: 0,
        rejected: [
          { lease_id, reason: 'unknown' },
          { lease_id: 999, reason: 'unknown' },
        ],
      });
      expect(await task(id as number)).toMatchObject({
        state: 'leased',
        leases: [{ state: 'active', result: null }],
      });
    });

    it('counts after the deadline as long as the lease was not expired', async () => {
      const [id] = await server.enqueue(dnsTask());
      const [{ lease_id }] = (await claim(agent)).body.leases;
      // Only the clock moves; nobody has looked at it yet.
      clock.advance(LEASE_MS + 1);
      expect((await report(agent, [{ lease_id }])).body.acknowledged).toBe(1);
      expect((await task(id as number)).state).toBe('completed');
    });

    it('keeps what came too late as evidence, once, without effect on the task', async () => {
      const [id] = await server.enqueue(dnsTask());
      const [late] = (await claim(agent)).body.leases;
      await server.pass(LEASE_MS + 2_000);
      const other = await server.register('probe-2');
      const [now] = (await claim(other)).body.leases;
      const evidence = { lease_id: late.lease_id, observations: [{ name: 'late', value: true }] };
      for (let i = 0; i < 2; i++) {
        expect((await report(agent, [evidence])).body).toEqual({
          acknowledged: 0,
          rejected: [{ lease_id: late.lease_id, reason: 'expired' }],
        });
      }
      expect((await report(other, [{ lease_id: now.lease_id }])).body.acknowledged).toBe(1);
      expect(await task(id as number)).toMatchObject({
        state: 'completed',
        attempts: 2,
        leases: [
          {
            lease_id: late.lease_id,
            state: 'expired',
            result: { standing: 'late', observations: evidence.observations },
          },
          { lease_id: now.lease_id, state: 'completed', result: { standing: 'final' } },
        ],
      });
    });
  });

  describe('time', () => {
    it('expires a lease at its deadline and not before', async () => {
      const [id] = await server.enqueue(dnsTask());
      await claim(agent);
      await server.pass(LEASE_MS - 1_000);
      expect((await task(id as number)).state).toBe('leased');
      await server.pass(1_000);
      expect(await task(id as number)).toMatchObject({
        state: 'scheduled',
        attempts: 1,
        leases: [{ state: 'expired' }],
      });
    });

    it('gives every live lease one more duration after an outage', async () => {
      const [id] = await server.enqueue(dnsTask());
      const [{ lease_id }] = (await claim(agent)).body.leases;
      await server.stop({ keep: true });
      clock.advance(LEASE_MS * 10);
      server = await TestServer.start({}, { clock, folder: server.folder });
      await server.pass(LEASE_MS - 1_000);
      expect((await task(id as number)).state).toBe('leased');
      const extended = await server.agent(agent, '/extend', { lease_ids: [lease_id], extend_by_ms: 10_000 });
      expect(extended.body.outcomes).toEqual([{ lease_id, new_deadline_ms: 10_000 }]);
      await server.pass(10_000);
      expect((await task(id as number)).state).toBe('scheduled');
    });

    it('counts a clock that jumps as an outage', async () => {
      const [id] = await server.enqueue(dnsTask());
      await claim(agent);
      await server.pass(1_000);
      clock.advance(3_600_000);
      await server.pass(LEASE_MS - 1_000);
      expect((await task(id as number)).state).toBe('leased');
    });

    it('ends a task at its not_after, unless somebody holds it', async () => {
      const not_after = new Date(clock.now() + 5_000).toISOString();
      const [held, idle] = await server.enqueue(dnsTask({ not_after, priority: 1 }), dnsTask({ not_after }));
      const [{ lease_id }] = (await claim(agent, 1)).body.leases;
      await server.pass(6_000);
      expect(await task(idle as number)).toMatchObject({ state: 'dead', reason: 'not_after' });
      expect((await task(held as number)).state).toBe('leased');
      await report(agent, [], [{ lease_id }]);
      expect(await task(held as number)).toMatchObject({ state: 'dead', reason: 'not_after' });
    });

    it('forgets finished tasks, what was reported of them and old keys after their time', async () => {
      const [id] = await server.enqueue(dnsTask(), dnsTask({ run_at: '2030-01-01T00:00:00Z' }));
      const [{ lease_id }] = (await claim(agent, 1, {}, { 'idempotency-key': 'old' })).body.leases;
      await report(agent, [{ lease_id }]);
      clock.advance(30 * 86_400_000 - 1);
      await server.app.get(QueueMaintainer).purge();
      expect((await task(id as number)).state).toBe('completed');
      clock.advance(2);
      await server.app.get(QueueMaintainer).purge();
      expect(await server.operator('GET', `/v1/tasks/${id}`)).toMatchObject({ status: 404 });
      expect(
        await server.rows(
          'SELECT (SELECT count(*) FROM finished_tasks) AS f, (SELECT count(*) FROM leases) AS l, (SELECT count(*) FROM idempotency_keys) AS k',
        ),
      ).toEqual([{ f: 0, l: 0, k: 0 }]);
      const { depths } = (await server.operator('GET', '/v1/tasks/stats')).body;
      expect(depths).toMatchObject([{ kind: 'dns', state: 'scheduled', count: 1 }]);
      expect((await report(agent, [{ lease_id }])).body.rejected).toEqual([{ lease_id, reason: 'unknown' }]);
    });
  });

  describe('an agent that goes out', () => {
    it.each(['disable', 'revoke', 'delete'])(
      '%s revokes its leases and requeues their tasks without costing an attempt',
      async (how) => {
        const [id] = await server.enqueue(dnsTask());
        const [{ lease_id }] = (await claim(agent)).body.leases;
        const path = `/v1/agents/${agent.agent_id}`;
        const answer =
          how === 'delete'
            ? await server.operator('DELETE', path)
            : await server.operator('POST', `${path}/${how}`);
        expect(answer.status).toBe(how === 'delete' ? 204 : 200);
        expect(await task(id as number)).toMatchObject({
          state: 'queued',
          attempts: 0,
          leases: [{ lease_id, state: 'revoked' }],
        });
        expect((await report(agent, [{ lease_id }])).status).toBe(how === 'delete' ? 401 : 403);
      },
    );

    it('drain lets it finish what it holds and gives it nothing new', async () => {
      const [held, next] = await server.enqueue(dnsTask(), dnsTask());
      const [{ lease_id }] = (await claim(agent, 1)).body.leases;
      const drained = await server.operator('POST', `/v1/agents/${agent.agent_id}/drain`);
      expect(drained.body).toMatchObject({ status: 'draining', live_leases: 1 });
      expect((await claim(agent)).body.leases).toEqual([]);
      expect((await report(agent, [{ lease_id }])).body.acknowledged).toBe(1);
      expect((await task(held as number)).state).toBe('completed');
      expect((await task(next as number)).state).toBe('queued');
      await server.operator('POST', `/v1/agents/${agent.agent_id}/enable`);
      expect((await claim(agent)).body.leases).toHaveLength(1);
    });

    it('a hand-over without proof revokes what the old holder had, one with proof does not', async () => {
      await server.enqueue(dnsTask());
      const [{ lease_id }] = (await claim(agent)).body.leases;
      const proven = await server.request('POST', '/register', {
        headers: { 'x-agent-id': String(agent.agent_id), 'x-agent-token': agent.auth_token },
        body: { hostname: 'probe-1' },
      });
      expect(proven.body.agent_id).toBe(agent.agent_id);
      expect(
        (await server.agent(proven.body, '/extend', { lease_ids: [lease_id], extend_by_ms: 1 })).body
          .outcomes,
      ).toHaveLength(1);
      await server.pass(45_000);
      const taken = await server.register('probe-1');
      expect(taken.agent_id).toBe(agent.agent_id);
      expect(
        (await server.agent(taken, '/extend', { lease_ids: [lease_id], extend_by_ms: 1 })).body.revoked,
      ).toEqual([lease_id]);
      expect((await server.agent(proven.body, '/heartbeat')).status).toBe(401);
    });
  });

  describe('cancel and retry', () => {
    it('cancel takes a live lease away; what its holder reports is late', async () => {
      const [id] = await server.enqueue(dnsTask());
      const [{ lease_id }] = (await claim(agent)).body.leases;
      expect((await server.operator('POST', `/v1/tasks/${id}/cancel`)).body).toMatchObject({
        state: 'cancelled',
        reason: 'operator',
      });
      expect((await server.operator('POST', `/v1/tasks/${id}/cancel`)).status).toBe(200);
      expect(
        (await server.agent(agent, '/extend', { lease_ids: [lease_id], extend_by_ms: 1_000 })).body.revoked,
      ).toEqual([lease_id]);
      expect((await report(agent, [{ lease_id }])).body.rejected).toEqual([{ lease_id, reason: 'revoked' }]);
      expect((await task(id as number)).state).toBe('cancelled');

      expect((await server.operator('POST', `/v1/tasks/${id}/retry`)).body).toMatchObject({
        state: 'queued',
        attempts: 0,
        reason: null,
      });
      expect(await server.operator('POST', `/v1/tasks/${id}/retry`)).toMatchObject({
        status: 409,
        body: { error: 'ERR_CONFLICT', details: { state: 'queued' } },
      });
      const [again] = (await claim(agent)).body.leases;
      await report(agent, [{ lease_id: again.lease_id }]);
      for (const verb of ['cancel', 'retry']) {
        expect((await server.operator('POST', `/v1/tasks/${id}/${verb}`)).status).toBe(409);
      }
    });

    it.each<[string, (id: number) => Promise<unknown>]>([
      ['cancel', (id) => server.operator('POST', `/v1/tasks/${id}/cancel`)],
      ['not_after', () => server.pass(60_000)],
    ])('%s of a task that waits leaves the attempts that were made meanwhile', async (_, end) => {
      const [id] = await server.enqueue(dnsTask({ not_after: new Date(clock.now() + 60_000).toISOString() }));
      const [{ lease_id }] = (await claim(agent)).body.leases;
      await report(agent, [], [{ lease_id }]);
      const transitions = server.app.get(TaskTransitions);
      const takeOut = transitions.takeOut.bind(transitions);
      const spy = jest.spyOn(transitions, 'takeOut').mockImplementation(async (tx, tasks) => {
        // Another unit ends an attempt after this one has read the task.
        if (tasks.length > 0) await tx.run('UPDATE tasks SET attempts = 2 WHERE id = $1', id as number);
        return takeOut(tx, tasks);
      });
      await end(id as number);
      spy.mockRestore();
      expect(await task(id as number)).toMatchObject({
        state: expect.stringMatching(/cancelled|dead/),
        attempts: 2,
      });
    });

    it('an unknown task is not found', async () => {
      for (const [method, path] of [
        ['GET', ''],
        ['POST', '/cancel'],
        ['POST', '/retry'],
      ] as const) {
        expect(await server.operator(method, `/v1/tasks/999${path}`)).toMatchObject({
          status: 404,
          body: { error: 'ERR_NOT_FOUND' },
        });
      }
    });
  });
});
