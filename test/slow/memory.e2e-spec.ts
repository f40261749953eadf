import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { endAll, ServerProcess } from '../helpers/processes';

/** What the process may take. It needs about 150 MiB; a thousand answers of 1.5 MB for each of three sockets are 4 GiB. */
const MAX_MIB = 500;
const SOCKETS = 30;

// The system tells the largest size that a process had.
const onLinux = process.platform === 'linux' ? describe : describe.skip;

onLinux('the memory of the process', () => {
  let folder: string;
  let server: ServerProcess;
  const sockets: Socket[] = [];

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
    server = await ServerProcess.start(folder, { env: { QUOTA_PUBLIC: 'default' } });
  });
  afterAll(async () => {
    for (const socket of sockets) socket.destroy();
    await endAll();
    rmSync(folder, { recursive: true, force: true });
  });

  const peakMib = () =>
    Number(
      /^VmHWM:\s+(\d+) kB/m.exec(readFileSync(`/proc/${server.program.child.pid}/status`, 'utf8'))?.[1],
    ) / 1024;

  it('stays small under pipelines of a thousand large answers that nobody reads, or reads by the byte', async () => {
    const { hostname, port } = new URL(server.url);
    const paths = ['/docs/swagger-ui-bundle.js', '/docs-json', '/docs-yaml'];
    for (let i = 0; i < SOCKETS; i++) {
      const socket = connect(Number(port), hostname).on('error', () => undefined);
      sockets.push(socket);
      await once(socket, 'connect');
      socket.pause();
      socket.write(`GET ${paths[i % 3]} HTTP/1.1\r\nHost: a\r\n\r\n`.repeat(1_100));
    }
    for (let i = 0; i < 20; i++) {
      for (const socket of sockets) socket.read(1);
      expect(await server.status('/healthz')).toBe(200);
      await sleep(50);
    }
    expect(server.runs).toBe(true);
    expect(peakMib()).toBeLessThan(MAX_MIB);
  });
});
