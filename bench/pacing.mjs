// The cost of pacing: claims and reports of tasks of 1,000 targets that have a rate besides a limit, and that adapt it,
// against the same with a limit alone, and with neither. No rate holds tasks back.
import { enqueue, Stock, workersAt, workInTurns } from './load.mjs';
import { OPERATOR, startServer } from './processes.mjs';
import { comparison } from './report.mjs';
import { limitTarget, MAX_CLAIM } from './wire.mjs';

const TARGETS = 1_000;
const targetOf = (i) => `203.0.113.${i % 250}.${Math.floor(i / 250) % 4}.example`;
/** Together far more than the workers claim. */
const LIMIT = 200;
const RATE = 1_000;
const LOADS = [
  { figure: `tasks/s, ${MAX_CLAIM} at a time, 4 callers`, size: MAX_CLAIM, callers: 4, enough: 60_000 },
  { figure: 'tasks/s, one at a time, 16 callers', size: 1, callers: 16, enough: 6_000 },
];
const SIDES = {
  none: undefined,
  limit: { limit: LIMIT },
  paced: { limit: LIMIT, rate: RATE },
  adaptive: { limit: LIMIT, rate: RATE, adaptive: true },
};

export async function pacing({ database, quick }) {
  const rounds = quick ? 3 : 5;
  const seconds = quick ? 1 : 3;
  const most = Math.max(...LOADS.map(({ callers }) => callers));
  const sides = {};
  for (const [name, bounds] of Object.entries(SIDES)) {
    const server = await startServer(database);
    if (bounds) await setBounds(server, bounds);
    const stock = new Stock((number) => enqueue(server, number, { targetOf }));
    sides[name] = { server, stock, workers: await workersAt([server], most) };
  }
  // In the first round, for warming up, adaptive targets learn that they answer.
  const measured = await workInTurns(sides, LOADS, { rounds, seconds });
  const rowsOf = (name, what, against, baseline, aim) =>
    LOADS.map(({ figure: load }, i) => ({
      figure: `${what}: ${load}`,
      ...{ ours: measured[i][name], baseline, theirs: measured[i][against] },
      ...(aim && { aim }),
    }));
  return [
    comparison(`The cost of pacing ${TARGETS} targets (${database})`, [
      ...rowsOf('paced', 'with a rate', 'limit', 'a limit alone', { min: 0.9 }),
      ...rowsOf('paced', 'with a rate', 'none', 'neither'),
      ...rowsOf('adaptive', 'adaptive', 'limit', 'a limit alone'),
    ]),
  ];
}

async function setBounds(server, bounds) {
  const limits = Array.from({ length: TARGETS }, (_, i) => ({
    ...{ kind: 'dns', target: limitTarget(targetOf(i)) },
    ...bounds,
  }));
  const { status, text } = await server.request('PUT', '/v1/concurrency/limits', {
    body: { limits },
    headers: OPERATOR,
  });
  if (status !== 200) throw new Error(`PUT /v1/concurrency/limits: ${status} ${text.slice(0, 300)}`);
}
