// Heartbeats through the whole path, against a route that only parses and answers.
import { beat, register } from './load.mjs';
import { startBare, startServer } from './processes.mjs';
import { comparison } from './report.mjs';

const AGENTS = 1_000;

export async function heartbeats({ database, quick }) {
  const rounds = quick ? 3 : 5;
  const seconds = quick ? 2 : 5;
  const bare = await startBare();
  const server = await startServer(database);
  const { agents } = await register(server, AGENTS);
  const measured = { bare: [], server: [] };
  // The first round is for warming up.
  for (let round = 0; round <= rounds; round++) {
    for (const [name, target] of Object.entries({ bare, server })) {
      const figures = await beat(target, agents, seconds);
      if (round > 0) measured[name].push(figures);
    }
  }
  await Promise.all([bare.stop(), server.stop()]);
  const of = (name) => ({
    ours: measured.server.map((figures) => figures[name]),
    baseline: 'bare Fastify',
    theirs: measured.bare.map((figures) => figures[name]),
  });
  const aim = { min: database === 'sqlite' ? 0.6 : 0.5 };
  return [
    comparison(`Heartbeats, 64 connections, closed loop (${database})`, [
      { figure: 'heartbeats/s', ...of('rate'), aim },
      { figure: 'p50, ms', ...of('p50') },
      { figure: 'p95, ms', ...of('p95') },
      { figure: 'p99, ms', ...of('p99') },
    ]),
  ];
}
