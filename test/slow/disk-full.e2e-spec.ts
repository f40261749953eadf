import { execFileSync } from 'node:child_process';
import { closeSync, existsSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Credentials, dnsTask, TestServer } from '../helpers/harness';
import { until } from '../helpers/until';

/** A small disk of memory; undefined if this user may not mount one. */
function mountDisk(): string | undefined {
  const folder = mkdtempSync(join(tmpdir(), 'control-plane-disk-'));
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64m', 'tmpfs', folder], { stdio: 'ignore' });
    return folder;
  } catch {
    rmSync(folder, { recursive: true });
    return undefined;
  }
}

const disk = mountDisk();
if (!disk) console.warn('Skipped, because it needs the right to mount a file system: a disk that is full.');

(disk ? describe : describe.skip)('a disk that is full', () => {
  const folder = disk as string;
  const filler = join(folder, 'filler');
  let server: TestServer;
  let agent: Credentials;

  beforeAll(async () => {
    server = await TestServer.start({ MIN_FREE_DISK_MB: '8' }, { folder });
    agent = await server.register('probe');
  });
  afterAll(async () => {
    await server.stop({ keep: true });
    execFileSync('umount', [folder]);
    rmSync(folder, { recursive: true });
  });

  const metrics = () =>
    server.agent(agent, '/metrics', {
      timestamp: new Date().toISOString(),
      counters: [{ name: 'a', value: 1 }],
    });
  const ready = async () => (await server.request('GET', '/readyz')).status;

  /** Takes all that is left, as the log of another program does. */
  function fill(): void {
    const file = openSync(filler, 'w');
    const part = Buffer.alloc(64 * 1024, 1);
    try {
      for (;;) writeSync(file, part);
    } catch (error) {
      expect(error).toMatchObject({ code: 'ENOSPC' });
    } finally {
      closeSync(file);
    }
  }

  it('takes what an emergency needs by its reserve, keeps the rest out, and is well again when there is room', async () => {
    const reserve = join(folder, 'test.db-reserve');
    expect(existsSync(reserve)).toBe(true);
    await server.enqueue(...Array.from({ length: 50 }, () => dnsTask()));
    const other = await server.register('other');
    const { leases } = (await server.agent(agent, '/claim', { capacities: { dns: 50 } })).body;
    fill();
    // More than what is left in the pages that the log has already.
    const statuses = new Set<number>();
    for (let i = 0; i < 200; i++) {
      const lease_ids = leases.map(({ lease_id }: { lease_id: number }) => lease_id);
      statuses.add((await server.agent(agent, '/extend', { lease_ids, extend_by_ms: 60_000 })).status);
      statuses.add((await server.agent(agent, '/heartbeat')).status);
    }
    statuses.add((await server.operator('POST', `/v1/agents/${other.agent_id}/revoke`)).status);
    const limits = [{ kind: 'dns', limit: 1 }];
    statuses.add((await server.operator('PUT', '/v1/concurrency/limits', { limits })).status);
    statuses.add((await server.operator('POST', `/v1/tasks/${leases[0].task_id}/cancel`)).status);
    expect([...statuses]).toEqual([200]);
    expect(existsSync(reserve)).toBe(false);
    expect(await metrics()).toMatchObject({ status: 503, body: { details: { reason: 'disk' } } });
    expect(await ready()).toBe(503);
    rmSync(filler);
    await until('the server is ready, with its reserve', async () => {
      return (await ready()) === 200 && existsSync(reserve);
    });
    expect((await metrics()).status).toBe(202);
    expect((await server.rows('PRAGMA integrity_check'))[0]).toEqual({ integrity_check: 'ok' });
  }, 60_000);
});
