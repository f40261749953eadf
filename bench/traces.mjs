// The cost of traces: the same server with every trace sent to a collector in this process, and without, in turns.
import { once } from 'node:events';
import { createServer } from 'node:http';
import { beat, enqueue, register, Worker, work } from './load.mjs';
import { startServer, UNTHROTTLED } from './processes.mjs';
import { comparison } from './report.mjs';
import { MAX_CLAIM } from './wire.mjs';

const AGENTS = 1_000;
const WORKERS = 4;

export async function traces({ database, quick }) {
  const rounds = 3;
  const seconds = quick ? 2 : 5;
  const share = quick ? 6_000 : 15_000;
  const collector = createServer((request, response) => {
    request.resume().once('end', () => response.end());
  }).listen(0, '127.0.0.1');
  await once(collector, 'listening');
  const endpoint = `http://127.0.0.1:${collector.address().port}`;
  const sides = [];
  for (const settings of [{ OTEL_EXPORTER_OTLP_ENDPOINT: endpoint }, {}]) {
    const server = await startServer(database, { settings: { ...UNTHROTTLED, ...settings } });
    const { agents } = await register(server, AGENTS);
    const workers = agents.slice(0, WORKERS).map((agent) => new Worker(server, agent));
    await enqueue(server, (rounds + 1) * (share + WORKERS * MAX_CLAIM));
    sides.push({ server, agents, workers, beats: [], works: [] });
  }
  // The first round is for warming up.
  for (let round = 0; round <= rounds; round++) {
    for (const { server, agents, workers, beats, works } of sides) {
      const { rate } = await beat(server, agents, seconds);
      const worked = await work(workers, { size: MAX_CLAIM, count: share });
      if (round === 0) continue;
      beats.push(rate);
      works.push(worked.rate);
    }
  }
  for (const { server, workers } of sides) {
    for (const worker of workers) worker.close();
    await server.stop();
  }
  collector.close();
  collector.closeAllConnections();
  const [on, off] = sides;
  return [
    comparison(`With every trace sent (${database})`, [
      { figure: 'heartbeats/s', ours: on.beats, baseline: 'no traces', theirs: off.beats },
      {
        ...{ figure: 'tasks/s claimed and reported, 256 at a time', ours: on.works },
        ...{ baseline: 'no traces', theirs: off.works },
      },
    ]),
  ];
}
