// The roll-out of a fleet: all agents register from one address. Also measures its memory.
import { register } from './load.mjs';
import { ROLL_OUT, startBare, startServer } from './processes.mjs';
import { comparison, count } from './report.mjs';
import { percentile } from './statistics.mjs';

const ROUNDS = 5;

export async function registration({ database, quick }) {
  const agents = quick ? 10_000 : 50_000;
  const bare = await startBare();
  const server = await startServer(database, { settings: ROLL_OUT });
  const before = await server.usage({ collect: true });
  const measured = { bare: [], server: [] };
  for (let round = 0; round < ROUNDS; round++) {
    for (const [name, target] of Object.entries({ bare, server })) {
      const startedAt = performance.now();
      const { times } = await register(target, agents / ROUNDS, `roll-out-${round}`);
      const seconds = (performance.now() - startedAt) / 1_000;
      const percentiles = { p50: percentile(times, 50), p95: percentile(times, 95) };
      measured[name].push({ rate: times.length / seconds, seconds, ...percentiles });
    }
  }
  const after = await server.usage({ collect: true });
  await Promise.all([bare.stop(), server.stop()]);
  const of = (name) => ({
    ours: measured.server.map((round) => round[name]),
    baseline: 'bare Fastify',
    theirs: measured.bare.map((round) => round[name]),
  });
  const total = (name) => measured[name].reduce((sum, { seconds }) => sum + seconds, 0);
  return [
    comparison(
      `Registration of ${count(agents)} agents, 64 connections (${database})`,
      [
        {
          ...{ figure: 'seconds for all', ours: [total('server')] },
          ...{ baseline: 'bare Fastify', theirs: [total('bare')] },
        },
        { figure: 'registrations/s', ...of('rate') },
        { figure: 'p50, ms', ...of('p50'), aim: { max: 200 }, aimOf: 'value' },
        { figure: 'p95, ms', ...of('p95'), aim: { max: 500 }, aimOf: 'value' },
        {
          ...{ figure: 'RSS after, MiB', ours: [after.rss / 2 ** 20] },
          ...{ baseline: 'just started', theirs: [before.rss / 2 ** 20] },
        },
      ],
      [
        `Raised, as for a roll-out from one address: ${Object.entries(ROLL_OUT)
          .map(([name, value]) => `\`${name}=${value}\``)
          .join(', ')}.`,
      ],
    ),
  ];
}
