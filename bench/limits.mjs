// The cost of limits: for callers with tasks of other targets while some targets are full, for callers within limits,
// for claims on a deep queue, and for calls that set a limit, with the effect on all others.
import { setTimeout as sleep } from 'node:timers/promises';
import { Connection, requestText } from './connection.mjs';
import { enqueue, Stock, workersAt, workInTurns } from './load.mjs';
import { OPERATOR, startServer } from './processes.mjs';
import { comparison, count, figure, table } from './report.mjs';
import { percentile } from './statistics.mjs';
import { claimBody, limitOf, limitTarget, MAX_CLAIM, otherTarget, reportBody, workTarget } from './wire.mjs';

const TARGETS = 200;
/** The limit of each full target. */
const FULL_LIMIT = 10;
/**
 * The limit of each target with tasks for workers: together more than the workers hold, so that limits have a cost
 * but never hold back tasks.
 */
const WORKED_LIMIT = 20;
const SHALLOW = 1_000;
const LOADS = [
  { figure: `tasks/s, ${MAX_CLAIM} at a time, 4 callers`, size: MAX_CLAIM, callers: 4, enough: 60_000 },
  { figure: 'tasks/s, one at a time, 16 callers', size: 1, callers: 16, enough: 6_000 },
];
const CLAIM_BLOCKS = 6;
/** The number of leases that are claimed at once to fill targets. */
const HELD_AT_ONCE = 250;

/** The timeout of a call that sets a limit, in ms. */
const SET_TIMEOUT_MS = 120_000;
/** Health checks a second, each at its instant, independent of the others. */
const HEALTH_EVERY_MS = 10;
const SET_P95_MS = 100;
const HEALTH_P99_MS = 50;

export async function limits({ database, quick, queued }) {
  const backlog = quick ? 20_000 : 200_000;
  const deep = queued ?? (quick ? 100_000 : 1_000_000);
  return [
    await politeness(database, quick, backlog),
    await depth(database, quick, { deep, backlog }),
    ...(await setting(database, quick, deep)),
  ];
}

const setLimits = (server, limitsToSet) =>
  server
    .request('PUT', '/v1/concurrency/limits', {
      body: { limits: limitsToSet },
      headers: OPERATOR,
      timeoutMs: SET_TIMEOUT_MS,
    })
    .then(({ status, text }) => {
      if (status !== 200) throw new Error(`PUT /v1/concurrency/limits: ${status} ${text.slice(0, 300)}`);
    });

const targetsOf = (name, targets, limit) =>
  Array.from({ length: targets }, (_, i) => limitOf({ kind: 'dns', target: limitTarget(name(i)) }, limit));

/** Fills targets to their limit, with queued tasks: an agent holds every slot and does not report. */
async function fill(server, targets, tasks) {
  await setLimits(server, targetsOf(otherTarget, targets, FULL_LIMIT));
  await enqueue(server, tasks, { targetOf: (i) => otherTarget(i % targets) });
  const slots = targets * FULL_LIMIT;
  const holders = await workersAt([server], Math.ceil(slots / HELD_AT_ONCE) + 1, 'holder');
  let held = 0;
  for (const holder of holders) held += (await holder.claim(HELD_AT_ONCE)).length;
  for (const holder of holders) holder.close();
  if (held !== slots) throw new Error(`${held} leases are held of targets with ${slots} slots`);
}

async function politeness(database, quick, backlog) {
  const rounds = quick ? 3 : 5;
  const seconds = quick ? 1 : 3;
  const most = Math.max(...LOADS.map(({ callers }) => callers));
  const sideOf = async (prepare) => {
    const server = await startServer(database);
    await prepare(server);
    const stock = new Stock((number) => enqueue(server, number));
    return { server, stock, workers: await workersAt([server], most) };
  };
  const sides = {
    // As many tasks as with full targets, and also after the workers' tasks.
    none: await sideOf((server) => enqueue(server, backlog, { targetOf: otherTarget, priority: -1 })),
    behind: await sideOf((server) => fill(server, TARGETS, backlog)),
    inside: await sideOf(async (server) => {
      await setLimits(server, targetsOf(workTarget, TARGETS, WORKED_LIMIT));
      await enqueue(server, backlog, { targetOf: otherTarget, priority: -1 });
    }),
  };
  const measured = await workInTurns(sides, LOADS, { rounds, seconds });
  const rowsOf = (name, what, min) =>
    LOADS.map(({ figure: load }, i) => ({
      figure: `${what}: ${load}`,
      ...{ ours: measured[i][name], baseline: 'no limits', theirs: measured[i].none, aim: { min } },
    }));
  return comparison(`The cost of limits for claims and reports (${database})`, [
    ...rowsOf(
      'behind',
      `${count(backlog)} tasks of ${TARGETS} full targets queued, tasks of other targets claimed`,
      0.9,
    ),
    ...rowsOf('inside', `tasks of ${TARGETS} targets with limits claimed`, 0.7),
  ]);
}

async function depth(database, quick, { deep, backlog }) {
  const block = quick ? 30 : 100;
  const sideOf = async (prepare) => {
    const server = await startServer(database);
    await prepare(server);
    await enqueue(server, SHALLOW);
    const [worker] = await workersAt([server], 1);
    return { server, worker, p95: [] };
  };
  const sides = {
    shallow: await sideOf(() => undefined),
    deep: await sideOf((server) => enqueue(server, deep - SHALLOW)),
    behind: await sideOf((server) => fill(server, 1, backlog)),
  };
  // In turns, so that other load on the machine affects all of them; the first turn is for warming up.
  for (let turn = 0; turn <= CLAIM_BLOCKS; turn++) {
    for (const { server, worker, p95 } of Object.values(sides)) {
      const times = [];
      for (let i = 0; i < block; i++) {
        const startedAt = performance.now();
        const leases = await worker.claim(1);
        times.push(performance.now() - startedAt);
        if (leases.length !== 1) throw new Error(`${leases.length} leases for a claim of one`);
        await worker.report(leases);
      }
      if (turn > 0) p95.push(percentile(times, 95));
      // As deep as before the turn.
      await enqueue(server, block);
    }
  }
  for (const { server, worker } of Object.values(sides)) {
    worker.close();
    await server.stop();
  }
  const rowOf = (name, what) => ({
    figure: `claim p95, ms, ${what}`,
    ...{ ours: sides[name].p95, baseline: `${count(SHALLOW)} queued`, theirs: sides.shallow.p95 },
    aim: { max: 1.3 },
  });
  return comparison(`Claims by the depth of the queue (${database})`, [
    rowOf('deep', `${count(deep)} queued`),
    rowOf('behind', `${count(backlog)} more of one full target`),
  ]);
}

async function setting(database, quick, queued) {
  const repeats = quick ? 1 : 3;
  const server = await startServer(database);
  await enqueue(server, queued);
  const others = await startOthers(server);
  await sleep(quick ? 2_000 : 5_000);
  const before = others.healthSoFar();
  const operator = new Connection(server.port);
  const scopes = {
    target: { kind: 'dns', target: limitTarget(workTarget(7)) },
    kind: { kind: 'dns' },
    everything: {},
  };
  const steps = { set: 50, lower: 5, lift: null };
  const rows = [];
  for (const [scope, window] of Object.entries(scopes)) {
    for (let i = 0; i < repeats; i++) {
      for (const [step, limit] of Object.entries(steps)) {
        const startedAt = performance.now();
        const failure = await setLimits(operator, [limitOf(window, limit)]).then(
          () => undefined,
          ({ message }) => message,
        );
        rows.push({ scope, step, ms: performance.now() - startedAt, failure });
        await sleep(200);
      }
    }
  }
  const meanwhile = others.healthSoFar();
  const statuses = await others.stop();
  operator.close();
  await server.stop();
  const serverErrors = Object.entries(statuses)
    .filter(([status]) => status === '0' || status >= '500')
    .reduce((sum, [, times]) => sum + times, rows.filter(({ failure }) => failure).length);
  const times = rows.map(({ ms }) => ms);
  const title = `Setting limits with ${count(queued)} queued`;
  const summary = [
    { what: 'PUT limits p95, ms', value: percentile(times, 95), most: SET_P95_MS },
    { what: 'GET /healthz p99 meanwhile, ms', value: percentile(meanwhile, 99), most: HEALTH_P99_MS },
    { what: 'the same before, without a call that sets limits', value: percentile(before, 99) },
    { what: 'answers 5xx, or none', value: serverErrors, most: 0 },
  ];
  const calls = Object.keys(scopes).flatMap((scope) => Object.keys(steps).map((step) => ({ scope, step })));
  return [
    table(
      `${title} (${database})`,
      {
        Figure: ({ what }) => what,
        Measured: ({ value }) => figure(value),
        Aim: ({ most }) => (most === undefined ? '' : `≤ ${most}`),
        Met: ({ value, most }) => (most === undefined ? '' : value <= most ? 'yes' : 'no'),
      },
      summary,
      [
        `Meanwhile 4 callers claim and report 8 at a time. Their answers by status: ${
          Object.entries(statuses)
            .map(([status, number]) => `${number} × ${status}`)
            .join(', ') || 'none'
        }.`,
      ],
    ),
    table(
      `${title}: each call (${database})`,
      {
        Window: ({ scope }) => scope,
        Step: ({ step }) => step,
        'Each, ms': (row) => own(rows, row).map(({ ms }) => figure(ms)),
        Failed: (row) =>
          own(rows, row)
            .flatMap(({ failure }) => failure ?? [])
            .join('; '),
      },
      calls,
    ),
  ];
}

const own = (rows, { scope, step }) => rows.filter((row) => row.scope === scope && row.step === step);

/** Callers that claim and report, and one that checks the server's health, until they are stopped. */
async function startOthers(server) {
  const workers = await workersAt([server], 4, 'other');
  const statuses = {};
  let isOver = false;
  const call = async ({ connection, headers }, path, body) => {
    const answer = await connection
      .request('POST', path, { body, headers, timeoutMs: SET_TIMEOUT_MS })
      .catch(() => ({ status: 0 }));
    statuses[answer.status] = (statuses[answer.status] ?? 0) + 1;
    return answer.status === 200 ? JSON.parse(answer.text) : undefined;
  };
  const working = workers.map(async (worker) => {
    while (!isOver) {
      const claimed = await call(worker, '/claim', claimBody(worker.agent, 8));
      const ids = claimed?.leases.map(({ lease_id: id }) => id) ?? [];
      if (ids.length > 0) await call(worker, '/report', reportBody(worker.agent, ids));
      await sleep(10);
    }
  });
  const health = [];
  // A connection takes 16 requests in a pipeline: this number of connections has room for the checks of 30 s without
  // an answer.
  const lookers = Array.from({ length: 200 }, () => new Connection(server.port));
  const text = requestText('GET', '/healthz');
  const startedAt = performance.now();
  let looks = 0;
  const timer = setInterval(() => {
    for (; startedAt + looks * HEALTH_EVERY_MS <= performance.now(); looks++) {
      const at = startedAt + looks * HEALTH_EVERY_MS;
      lookers[looks % lookers.length].send(text, (status) => {
        if (isOver) return;
        health.push(performance.now() - at);
        if (status !== 200) statuses[status] = (statuses[status] ?? 0) + 1;
      });
    }
  }, HEALTH_EVERY_MS);
  return {
    /** The durations of health checks since the last call, in ms. */
    healthSoFar: () => health.splice(0),
    stop: async () => {
      isOver = true;
      clearInterval(timer);
      await Promise.all(working);
      for (const looker of lookers) looker.close();
      for (const worker of workers) worker.close();
      return statuses;
    },
  };
}
