// A fleet at its full default quotas, as an open loop: the instants of all calls are fixed in advance, and no call
// waits for an answer. How and why: fleet-load.mjs.
import { setTimeout as sleep } from 'node:timers/promises';
import { enqueue, register } from './load.mjs';
import {
  machineBusyMs,
  maxOpenFiles,
  pinnableCores,
  ROLL_OUT,
  startBare,
  startScript,
  startServer,
} from './processes.mjs';
import { count, figure, table } from './report.mjs';
import { bisect } from './statistics.mjs';

/**
 * The routes, with the calls a minute that the default quotas allow each agent, and the service level: p50 and p95 in
 * ms.
 */
const ROUTES = {
  heartbeat: { perMinute: 6, p50: 100, p95: 300 },
  claim: { perMinute: 12, p50: 150, p95: 400 },
  extend: { perMinute: 30, p50: 120, p95: 350 },
  report: { perMinute: 12, p50: 200, p95: 500 },
  metrics: { perMinute: 60, p50: 250, p95: 600 },
};
const RATES = Object.values(ROUTES).map(({ perMinute }) => perMinute);
/** The number of leases in a report. */
const REPORTED_AT_ONCE = 2;
const FOUND_WITHIN = 0.03;
/** The pause between two runs, until all buckets of quotas are full again. */
const PAUSE_MS = 12_000;
/** If the generator's own calls are later than this, in ms, it measures itself. */
const MAX_LATE_MS = 25;

export async function fleet({ database, quick, agents: asked, seconds, find, seed }) {
  const warmupMs = quick ? 4_000 : 10_000;
  const steadyMs = (seconds ?? (quick ? 10 : 30)) * 1_000;
  const sizes = asked ?? (quick ? [1_000, 2_000] : [2_000, 3_500, 5_000]);
  const largest = Math.max(...sizes);
  if (largest > maxOpenFiles() - 100)
    throw new Error(`--agents: at most ${maxOpenFiles() - 100}, as many as sockets may be open`);
  const [serverCore, loadCore] = pinnableCores();
  const isPinned = loadCore !== undefined;
  const cores = { server: isPinned ? serverCore : undefined, load: isPinned ? loadCore : undefined };
  const durations = { warmupMs, steadyMs };
  const bare = await Target.start(await startBare({ core: cores.server }), cores, largest);
  const runs = [{ server: 'bare Fastify', ...(await bare.run(largest, { ...durations, seed })) }];
  await bare.stop();

  const server = await startServer(database, { settings: ROLL_OUT, core: cores.server });
  const target = await Target.start(server, cores, largest);
  const runOf = async (size) => {
    if (runs.length > 1) await sleep(PAUSE_MS);
    const reports = (size * ROUTES.report.perMinute * (warmupMs + steadyMs)) / 60_000;
    await enqueue(server, Math.ceil(reports * REPORTED_AT_ONCE + 4 * size));
    const run = await target.run(size, { ...durations, seed: seed + runs.length });
    const outcome = run.failures.join('; ') || 'within the service levels';
    console.error(`  ${size} agents: ${outcome}; server ${figure(run.cpu)} cores, loop ${figure(run.loop)}`);
    runs.push({ server: 'control plane', ...run });
    return run.failures.length === 0;
  };
  let found;
  if (find) {
    const bounds = { low: Math.min(...sizes), high: largest, within: FOUND_WITHIN };
    found = await bisect(bounds, runOf);
  } else {
    for (const size of sizes) await runOf(size);
  }
  await target.stop();

  const notes = notesOn(database, isPinned, warmupMs, steadyMs);
  const title = `A fleet at its full default quotas, open loop (${database})`;
  const tables = [tableOfRuns(title, runs, notes), tableOfRoutes(`${title}: each route`, runs)];
  if (found) tables.push(tableOfFound(found));
  return tables;
}

/** A server with a load generator and a registered fleet. */
class Target {
  #marks = [];
  #marking = Promise.resolve();

  static async start(server, cores, agentCount) {
    const target = new Target();
    const { agents } = await register(server, agentCount, 'fleet');
    // The generator reports the start and end of the measured time.
    const onEvent = () => target.#mark();
    const load = startScript('./fleet-load.mjs', { core: cores.load, onEvent });
    await load.ask({ op: 'know', port: server.port, agents });
    return Object.assign(target, { server, load });
  }

  #mark() {
    this.#marking = this.#marking.then(async () => {
      // Commits first, so that the cost of reading them is in both marks or in neither.
      const commits = await this.server.commits();
      this.#marks.push({ ...(await this.server.usage()), commits, machineMs: machineBusyMs() });
    });
  }

  /** Runs a part of the fleet for a time. @returns the figures, and the failures */
  async run(size, { warmupMs, steadyMs, seed }) {
    this.#marks = [];
    const load = await this.load.ask({
      ...{ op: 'run', agents: size, rates: RATES, routes: Object.keys(ROUTES) },
      ...{ warmupMs, steadyMs, seed, reportedAtOnce: REPORTED_AT_ONCE },
    });
    await this.#marking;
    const [from, to] = this.#marks;
    return { size, failures: failuresOf(load), ...usedBetween(from, to), load };
  }

  async stop() {
    await this.load.stop();
    await this.server.stop();
  }
}

function usedBetween(from, to) {
  const ms = to.atMs - from.atMs;
  return {
    cpu: (to.cpuMs - from.cpuMs) / ms,
    loop: (to.activeMs - from.activeMs) / ms,
    commits: to.commits === undefined ? undefined : ((to.commits - from.commits) / ms) * 1_000,
    rssMib: to.rss / 2 ** 20,
    machine: (to.machineMs - from.machineMs) / ms,
  };
}

/** Lists the missed service levels and other failures. */
function failuresOf({ routes, lateP95, unanswered, lost }) {
  const failures = [];
  const all = Object.entries(routes);
  const slow = all.filter(([name, { p50, p95 }]) => !(p50 <= ROUTES[name].p50 && p95 <= ROUTES[name].p95));
  if (slow.length > 0) failures.push(`slow: ${slow.map(([name]) => name).join(', ')}`);
  const errors = {};
  for (const [status, times] of all.flatMap(([, route]) => Object.entries(route.errors)))
    errors[status] = (errors[status] ?? 0) + times;
  for (const [status, times] of Object.entries(errors)) failures.push(`${count(times)} × ${status}`);
  if (unanswered > 0) failures.push(`${count(unanswered)} unanswered in time`);
  if (lost > 0) failures.push(`${count(lost)} leases lost`);
  if (lateP95 > MAX_LATE_MS) failures.push(`load generator late: p95 ${figure(lateP95)} ms`);
  return failures;
}

const passed = ({ failures }) => (failures.length === 0 ? 'yes' : `no: ${failures.join('; ')}`);

const tableOfRuns = (title, runs, notes) =>
  table(
    title,
    {
      Server: ({ server }) => server,
      Agents: ({ size }) => count(size),
      'Calls/s': ({ load }) => figure(load.rate),
      'Tasks/s': ({ load }) => figure(load.tasks),
      'Server, cores': ({ cpu }) => figure(cpu),
      'Machine, cores': ({ machine }) => figure(machine),
      'Loop busy': ({ loop }) => figure(loop),
      'Commits/s': ({ commits }) => figure(commits),
      'RSS, MiB': ({ rssMib }) => figure(rssMib),
      'Generator, cores': ({ load }) => figure(load.cpu),
      'Generator late p50, p95, ms': ({ load }) => `${figure(load.lateP50)}, ${figure(load.lateP95)}`,
      'Within the levels': passed,
    },
    runs,
    notes,
  );

const tableOfRoutes = (title, runs) =>
  table(
    title,
    {
      Server: ({ server }) => server,
      Agents: ({ size }) => count(size),
      Route: ({ route }) => route,
      Calls: ({ count: calls }) => count(calls),
      'p50, ms': ({ p50 }) => figure(p50),
      'p95, ms': ({ p95 }) => figure(p95),
      'p99, ms': ({ p99 }) => figure(p99),
      'Level p50 / p95': ({ route }) => `${ROUTES[route].p50} / ${ROUTES[route].p95}`,
      'Not 2xx': ({ errors }) =>
        Object.entries(errors)
          .map(([status, times]) => `${times} × ${status}`)
          .join(', ') || '0',
    },
    runs.flatMap(({ server, size, load }) =>
      Object.entries(load.routes).map(([route, figures]) => ({ server, size, route, ...figures })),
    ),
  );

const tableOfFound = (found) =>
  table(
    'The largest fleet within the service levels',
    {
      'All met': ({ passed: most }) => (most === undefined ? 'none tried' : count(most)),
      'Not met': ({ failed }) => (failed === undefined ? 'none tried' : count(failed)),
    },
    [found],
  );

function notesOn(database, isPinned, warmupMs, steadyMs) {
  const cores = isPinned
    ? `The server has one core to itself, the load generator the other${database === 'postgres' ? '; PostgreSQL runs on both' : ''}.`
    : 'Neither the server nor the load generator is pinned to a core.';
  return [
    `${cores} ${warmupMs / 1_000} s to warm up, then ${steadyMs / 1_000} s measured. Latency counts from the scheduled instant of the call, not from when it was sent.`,
    'Machine: the cores that all programs used. If it is far above the server and its generator, other programs used their cores, and a failure does not count against the server.',
  ];
}
