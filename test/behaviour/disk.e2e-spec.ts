import { existsSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { RESERVE_BYTES } from '../../src/database/disk-space';
import { type Credentials, dnsTask, TestServer } from '../helpers/harness';
import { until } from '../helpers/until';

const MIB = 1024 * 1024;
const LOW = { error: 'ERR_UNAVAILABLE', retryable: true, details: { reason: 'disk' } };

describe('a disk that is nearly full', () => {
  let server: TestServer;
  let agent: Credentials;
  let taskId: number;
  let free: number;

  /** Waits until the server has seen how much is free. */
  const seen = (low: boolean): Promise<boolean> =>
    until(
      `the server takes the space for ${low ? 'low' : 'enough'}`,
      () => server.database.isSpaceLow === low,
    );

  beforeAll(async () => {
    free = 10_000 * MIB;
    server = await TestServer.start({ MIN_FREE_DISK_MB: '100' }, { freeSpace: async () => free });
    agent = await server.register('probe');
    [taskId] = (await server.enqueue(dnsTask(), dnsTask(), dnsTask())) as [number];
  });
  afterAll(() => server.stop());

  it('has a reserve kept while there is room, of its size and for nobody else to read', async () => {
    const { size, mode, blocks } = statSync(join(server.folder, 'test.db-reserve'));
    expect([size, mode & 0o777]).toEqual([RESERVE_BYTES, 0o600]);
    expect(blocks * 512).toBeGreaterThanOrEqual(RESERVE_BYTES);
  });

  describe('keeps out what would fill it', () => {
    beforeAll(async () => {
      free = 99 * MIB;
      await seen(true);
    });

    const metrics = { timestamp: new Date().toISOString(), counters: [{ name: 'a', value: 1 }] };

    it.each([
      ['metrics', () => server.agent(agent, '/metrics', metrics)],
      ['metrics by their other path', () => server.agent(agent, '/v1/agents/metrics', metrics)],
      ['tasks', () => server.operator('POST', '/v1/tasks', { tasks: [dnsTask()] })],
      ['a configuration', () => server.operator('POST', '/v1/configs', { config: {} })],
      [
        'observations',
        () =>
          server.agent(agent, '/report', {
            completed: [{ lease_id: 1, observations: [{ name: 'a', value: 1 }] }],
            cancelled: [],
          }),
      ],
    ])('%s, and says when to come again', async (_, call) => {
      const { status, headers, body } = await call();
      expect([status, body]).toEqual([503, { ...LOW, message: expect.any(String) }]);
      expect(Number(headers.get('retry-after'))).toBeGreaterThan(0);
    });

    it('and is not ready', async () => {
      const { status, body } = await server.request('GET', '/readyz');
      expect([status, body]).toMatchObject([503, LOW]);
      expect((await server.request('GET', '/healthz')).status).toBe(200);
    });
  });

  it('takes what the fleet and an emergency need', async () => {
    free = 99 * MIB;
    await seen(true);
    const limits = [{ kind: 'dns', limit: 5 }];
    const other = await server.register();
    const claim = await server.agent(agent, '/claim', { capacities: { dns: 2 } });
    expect(claim.body.leases).toHaveLength(2);
    const [lease_id, second] = claim.body.leases.map((lease: { lease_id: number }) => lease.lease_id);
    const answers = [
      await server.agent(agent, '/heartbeat'),
      await server.agent(agent, '/extend', { lease_ids: [lease_id], extend_by_ms: 10_000 }),
      await server.agent(agent, '/report', {
        completed: [{ lease_id, observations: [] }],
        cancelled: [{ lease_id: second }],
      }),
      await server.operator('PUT', '/v1/concurrency/limits', { limits }),
      await server.operator('POST', `/v1/tasks/${taskId + 2}/cancel`),
      await server.operator('POST', `/v1/agents/${other.agent_id}/drain`),
      await server.operator('POST', `/v1/agents/${other.agent_id}/disable`),
      await server.operator('POST', `/v1/agents/${other.agent_id}/revoke`),
    ];
    expect(answers.map(({ status }) => status)).toEqual(answers.map(() => 200));
  });

  it('takes everything again when there is room, with a little to spare', async () => {
    free = 99 * MIB;
    await seen(true);
    free = 105 * MIB;
    await new Promise((resolve) => setTimeout(resolve, 1_200));
    expect(server.database.isSpaceLow).toBe(true);
    free = 10_000 * MIB;
    await seen(false);
    expect((await server.request('GET', '/readyz')).status).toBe(200);
    await server.enqueue(dnsTask());
  });
});

it('keeps no reserve if nothing is watched, and takes one away that is there', async () => {
  const server = await TestServer.start();
  const reserve = join(server.folder, 'test.db-reserve');
  try {
    expect(existsSync(reserve)).toBe(false);
    await server.stop({ keep: true });
    writeFileSync(reserve, 'of an earlier start');
    const again = await TestServer.start({}, { folder: server.folder });
    expect(existsSync(reserve)).toBe(false);
    await again.stop({ keep: true });
  } finally {
    rmSync(server.folder, { recursive: true });
  }
});
