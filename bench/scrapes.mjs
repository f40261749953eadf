// The cost of a scrape of GET /metrics for the event loop, minus its load without scrapes, with few and with many
// agents.
import { setTimeout as sleep } from 'node:timers/promises';
import { Connection } from './connection.mjs';
import { each, enqueue, register } from './load.mjs';
import { startServer } from './processes.mjs';
import { comparison, count } from './report.mjs';
import { median } from './statistics.mjs';
import { agentHeaders, claimBody, heartbeatBody } from './wire.mjs';

const FEW = 10;
const CONNECTIONS = 64;
/** The number of different sets of names: together they have the most names that are shown. */
const SAMPLES = 40;
const SAMPLE_SETS = 12;
const SCRAPES = 5;

export async function scrapes({ database, quick }) {
  const agentCount = quick ? 2_000 : 10_000;
  const rounds = 3;
  const few = await costOf(database, FEW, rounds);
  const many = await costOf(database, agentCount, rounds);
  return [
    comparison(`A scrape with ${count(agentCount)} agents (${database})`, [
      {
        ...{ figure: 'event loop ms a scrape', ours: [many.ms], baseline: `${FEW} agents` },
        ...{ theirs: [Math.max(few.ms, 0.1)], aim: { max: 50 }, aimOf: 'value' },
      },
      {
        figure: `KiB of it, ${SAMPLES} of ${SAMPLES * SAMPLE_SETS} names an agent`,
        ...{ ours: [many.kib], baseline: `${FEW} agents`, theirs: [few.kib] },
      },
    ]),
  ];
}

async function costOf(database, agentCount, rounds) {
  const server = await startServer(database);
  const { agents } = await register(server, agentCount);
  const connections = Array.from({ length: CONNECTIONS }, () => new Connection(server.port));
  const eachAgent = (call) =>
    each([...agents.entries()], CONNECTIONS, ([i, agent], n) =>
      call((path, body) => connections[n].post(path, body, agentHeaders(agent)), agent, i),
    );
  const samples = (sort, i) =>
    Array.from({ length: SAMPLES / 2 }, (_, n) => ({
      name: `${sort}_${i % SAMPLE_SETS}_${n}`,
      value: i + n,
    }));
  const timestamp = new Date().toISOString();
  await eachAgent((post, { id }, i) =>
    post('/metrics', { agent_id: id, timestamp, counters: samples('c', i), gauges: samples('g', i) }),
  );
  // Each agent has a failed attempt, so that the query for failing agents reads all of them.
  await enqueue(server, agentCount);
  await eachAgent(async (post, agent) => {
    const { leases } = await post('/claim', claimBody(agent, 1));
    const completed = leases.map(({ lease_id }) => ({ lease_id, outcome: 'error' }));
    await post('/report', { agent_id: agent.id, completed, cancelled: [] });
  });
  // All agents are online during the measurement.
  await eachAgent((post, agent) => post('/heartbeat', heartbeatBody(agent)));
  const measured = { idle: [], scraping: [] };
  for (let round = 0; round < rounds; round++) {
    for (const [name, act] of [
      ['idle', () => undefined],
      ['scraping', () => server.get('/metrics')],
    ]) {
      const before = server.loopMs();
      for (let i = 0; i < SCRAPES; i++) {
        await act();
        // A text is cached for a second.
        await sleep(1_050);
      }
      measured[name].push(server.loopMs() - before);
    }
  }
  const text = await server.get('/metrics');
  for (const connection of connections) connection.close();
  await server.stop();
  return { ms: (median(measured.scraping) - median(measured.idle)) / SCRAPES, kib: text.length / 1024 };
}
