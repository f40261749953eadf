// Measures the built server and prints one table: npm run bench [-- --quick] [--database postgres] [phase ...]. Every figure
// stands beside a baseline of the same run, for the machine's own speed changes from one minute to the next. What is
// measured: docs/benchmarks.md.
import { once } from 'node:events';
import { createServer } from 'node:http';
import { cpus } from 'node:os';
import { parseArgs } from 'node:util';
import autocannon from 'autocannon';
import {
  ADMIN_TOKEN,
  startBare,
  startReplicas,
  startServer,
  stopDatabase,
  usePostgres,
} from './processes.mjs';

const { values: OPTIONS, positionals: ASKED } = parseArgs({
  options: { quick: { type: 'boolean' }, database: { type: 'string', default: 'sqlite' } },
  allowPositionals: true,
});
const QUICK = OPTIONS.quick;
const POSTGRES = OPTIONS.database === 'postgres';
if (!POSTGRES && OPTIONS.database !== 'sqlite') throw new Error('--database: sqlite or postgres');
const CONNECTIONS = 64;
const SIZES = QUICK
  ? { rounds: 2, seconds: 2, agents: 1_000, worked: 20_000, deep: 100_000, claims: 150, fleet: 2_000 }
  : { rounds: 3, seconds: 5, agents: 1_000, worked: 60_000, deep: 1_000_000, claims: 300, fleet: 10_000 };
const SHALLOW = 1_000;
const ENQUEUED_AT_ONCE = 10_000;
const CLAIMED_AT_ONCE = 256;
const WORKERS = 4;
const REPLICAS = 3;
const FEW_AGENTS = 10;
const SAMPLES = 40;
const SAMPLE_SETS = 12;
const SCRAPES = 5;
const TIME_LIMIT_MS = 10 * 60_000;

const median = (values) => percentile(values, 50);

function percentile(values, percent) {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil((sorted.length * percent) / 100) - 1)];
}

async function secondsOf(work) {
  const startedAt = performance.now();
  await work();
  return (performance.now() - startedAt) / 1_000;
}

/** Does the work for each item, so many at a time. */
async function each(items, concurrency, work) {
  const rest = items.values();
  await Promise.all(
    Array.from({ length: concurrency }, async () => {
      for (const item of rest) await work(item);
    }),
  );
}

/** Registers agents. @returns each one's id with the headers that prove it. */
async function register(server, count) {
  const agents = [];
  await each(
    Array.from({ length: count }, (_, i) => `bench-${i}`),
    CONNECTIONS,
    async (hostname) => {
      const { agent_id: id, auth_token: token } = await server.post('/register', { hostname });
      agents.push({ id, headers: { 'x-agent-id': String(id), 'x-agent-token': token } });
    },
  );
  return agents;
}

/** Enqueues lookups spread over 200 targets. */
async function enqueue(server, count) {
  for (let done = 0; done < count; done += ENQUEUED_AT_ONCE) {
    const tasks = Array.from({ length: Math.min(ENQUEUED_AT_ONCE, count - done) }, (_, i) => ({
      kind: 'dns',
      spec: {
        query: `host-${done + i}.example.com`,
        server: `192.0.2.${(done + i) % 200}`,
        record_type: 'A',
      },
    }));
    const answer = await server.post('/v1/tasks', { tasks }, { authorization: `Bearer ${ADMIN_TOKEN}` });
    if (answer.tasks.length !== tasks.length) throw new Error('not every task was enqueued');
  }
}

/** Sends heartbeats for a time over all connections, each rotating through its share of the agents. */
async function beat(url, agents, seconds) {
  const requests = agents.map(({ id, headers }) => ({
    method: 'POST',
    path: '/heartbeat',
    headers: { 'content-type': 'application/json', ...headers },
    body: JSON.stringify({ agent_id: id }),
  }));
  let connection = 0;
  const times = [];
  const run = autocannon({
    url,
    connections: CONNECTIONS,
    duration: seconds,
    setupClient: (client) => {
      const mine = connection++;
      client.setRequests(requests.filter((_, i) => i % CONNECTIONS === mine));
    },
  });
  run.on('response', (_client, _status, _bytes, ms) => times.push(ms));
  const result = await run;
  if (result.non2xx + result.errors + result.timeouts > 0) {
    throw new Error(
      `${result.non2xx} heartbeats refused, ${result.errors} failed, ${result.timeouts} timed out`,
    );
  }
  return {
    rate: times.length / result.duration,
    p50: percentile(times, 50),
    p95: percentile(times, 95),
    p99: percentile(times, 99),
  };
}

async function heartbeats() {
  const bare = await startBare();
  const server = await startServer('heartbeats');
  const agents = await register(server, SIZES.agents);
  const rounds = { bare: [], server: [] };
  await beat(bare.url, agents, SIZES.seconds / 2);
  await beat(server.url, agents, SIZES.seconds / 2);
  for (let i = 0; i < SIZES.rounds; i++) {
    rounds.bare.push(await beat(bare.url, agents, SIZES.seconds));
    rounds.server.push(await beat(server.url, agents, SIZES.seconds));
  }
  await Promise.all([bare.stop(), server.stop()]);
  return ['rate', 'p50', 'p95', 'p99'].map((name) => {
    const [ours, theirs] = [rounds.server, rounds.bare].map((list) =>
      median(list.map((round) => round[name])),
    );
    return name === 'rate'
      ? row(`heartbeats/s, ${CONNECTIONS} connections`, ours, 'bare Fastify', theirs, '≥ 0.5')
      : row(`heartbeat ${name}, ms`, ours, 'bare Fastify', theirs, '');
  });
}

/** Claims and reports until so many tasks are done, each agent at one of the servers. */
async function work(servers, agents, count) {
  let done = 0;
  await each([...agents.entries()], agents.length, async ([i, { id, headers }]) => {
    const server = servers[i % servers.length];
    while (done < count) {
      const claim = { agent_id: id, capacities: { dns: CLAIMED_AT_ONCE } };
      const { leases } = await server.post('/claim', claim, headers);
      if (leases.length === 0) return;
      const completed = leases.map(({ lease_id }) => ({
        lease_id,
        outcome: 'success',
        observations: [
          { name: 'rtt', value: 12.5, unit: 'ms' },
          { name: 'answers', value: ['192.0.2.1', '192.0.2.2'] },
        ],
      }));
      const report = { agent_id: id, completed, cancelled: [] };
      const { acknowledged } = await server.post('/report', report, headers);
      if (acknowledged !== leases.length) throw new Error(`${acknowledged} of ${leases.length} acknowledged`);
      done += acknowledged;
    }
  });
  return done;
}

async function claimsAndReports() {
  const bare = await startBare();
  const server = await startServer('work');
  const agents = await register(server, WORKERS);
  const share = SIZES.worked / (SIZES.rounds + 1);
  await enqueue(server, SIZES.worked + SIZES.rounds * WORKERS * CLAIMED_AT_ONCE);
  const rates = { bare: [], server: [] };
  for (let i = 0; i <= SIZES.rounds; i++) {
    for (const [name, target] of Object.entries({ bare, server })) {
      let done = 0;
      const seconds = await secondsOf(async () => {
        done = await work([target], agents, share);
      });
      // The first round is for warming up.
      if (i > 0) rates[name].push(done / seconds);
    }
  }
  await Promise.all([bare.stop(), server.stop()]);
  return [
    row(
      `tasks/s claimed and reported, ${CLAIMED_AT_ONCE} at a time`,
      median(rates.server),
      'bare Fastify',
      median(rates.bare),
      POSTGRES ? '20,000/s' : '',
    ),
  ];
}

/** The same with traces sent to a collector in this process, and without, in turns. */
async function traces() {
  const collector = createServer((request, response) => {
    request.resume().once('end', () => response.end());
  }).listen(0, '127.0.0.1');
  await once(collector, 'listening');
  const endpoint = `http://127.0.0.1:${collector.address().port}`;
  const sides = [];
  for (const [name, settings] of [
    ['traced', { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint }],
    ['untraced', {}],
  ]) {
    const server = await startServer(name, settings);
    const agents = await register(server, SIZES.agents);
    await enqueue(server, SIZES.worked + SIZES.rounds * WORKERS * CLAIMED_AT_ONCE);
    sides.push({ server, agents, beats: [], works: [] });
  }
  const share = SIZES.worked / (SIZES.rounds + 1);
  for (let i = 0; i <= SIZES.rounds; i++) {
    for (const { server, agents, beats, works } of sides) {
      const { rate } = await beat(server.url, agents, SIZES.seconds);
      let done = 0;
      const seconds = await secondsOf(async () => {
        done = await work([server], agents.slice(0, WORKERS), share);
      });
      // The first round is for warming up.
      if (i > 0) beats.push(rate) && works.push(done / seconds);
    }
  }
  await Promise.all(sides.map(({ server }) => server.stop()));
  collector.close();
  collector.closeAllConnections();
  const [on, off] = sides;
  return [
    row('heartbeats/s with traces', median(on.beats), 'without', median(off.beats), ''),
    row('tasks/s claimed and reported with traces', median(on.works), 'without', median(off.works), ''),
  ];
}

/** The same through one replica and through several, in turns, each on a database of their own. */
async function replicas() {
  if (!POSTGRES) return [];
  const share = SIZES.worked / (SIZES.rounds + 1);
  const groups = [];
  for (const count of [1, REPLICAS]) {
    const servers = await startReplicas(`replicas_${count}`, count);
    const agents = await register(servers[0], REPLICAS * 2);
    await enqueue(servers[0], SIZES.worked + SIZES.rounds * agents.length * CLAIMED_AT_ONCE);
    groups.push({ servers, agents, rates: [] });
  }
  for (let i = 0; i <= SIZES.rounds; i++) {
    for (const { servers, agents, rates } of groups) {
      let done = 0;
      const seconds = await secondsOf(async () => {
        done = await work(servers, agents, share);
      });
      // The first round is for warming up.
      if (i > 0) rates.push(done / seconds);
    }
  }
  await Promise.all(groups.flatMap(({ servers }) => servers.map((server) => server.stop())));
  const [one, several] = groups.map(({ rates }) => median(rates));
  return [row(`tasks/s claimed and reported, ${REPLICAS} replicas`, several, '1 replica', one, '')];
}

async function claimsByDepth() {
  const bare = await startBare();
  const shallow = await startServer('shallow');
  const deep = await startServer('deep');
  await enqueue(bare, 5 * ENQUEUED_AT_ONCE);
  const calls = 10 * ENQUEUED_AT_ONCE;
  const bareRate = calls / (await secondsOf(() => enqueue(bare, calls)));
  await bare.stop();
  const deepRate = SIZES.deep / (await secondsOf(() => enqueue(deep, SIZES.deep)));
  await enqueue(shallow, SHALLOW);
  const queues = [];
  for (const server of [shallow, deep]) {
    const [agent] = await register(server, 1);
    queues.push({ server, agent, times: [] });
  }
  const block = SIZES.claims / 6;
  // In turns, so that what else the machine does meets both; the first turn is for warming up.
  for (let turn = 0; turn <= 6; turn++) {
    for (const { server, agent, times } of queues) {
      for (let i = 0; i < block; i++) {
        const claim = { agent_id: agent.id, capacities: { dns: 1 } };
        const startedAt = performance.now();
        const { leases } = await server.post('/claim', claim, agent.headers);
        if (turn > 0) times.push(performance.now() - startedAt);
        if (leases.length !== 1) throw new Error(`${leases.length} leases for a claim of one`);
      }
      // As deep as before the turn.
      await enqueue(server, block);
    }
  }
  await Promise.all([shallow.stop(), deep.stop()]);
  const [few, many] = queues.map(({ times }) => percentile(times, 95));
  return [
    row(
      `claim p95 with ${count(SIZES.deep)} queued, ms`,
      many,
      `with ${count(SHALLOW)} queued`,
      few,
      '≤ 1.3',
    ),
    row(`tasks/s enqueued, ${count(ENQUEUED_AT_ONCE)} a call`, deepRate, 'bare Fastify', bareRate, ''),
  ];
}

async function memory() {
  const server = await startServer('fleet');
  const before = server.memory();
  const agents = await register(server, SIZES.fleet);
  await each(agents, CONNECTIONS, ({ id, headers }) => server.post('/heartbeat', { agent_id: id }, headers));
  const after = server.memory();
  await server.stop();
  return [row(`resident MiB with ${count(SIZES.fleet)} agents`, after, 'just started', before, '')];
}

/** What a scrape costs the event loop, beyond what the process does by itself, with few agents and with many. */
async function scrapes() {
  const costOf = async (agentCount) => {
    const server = await startServer(`scrapes-${agentCount}`, { CONTROL_PLANE_QUOTA_METRICS: 'off' });
    const agents = await register(server, agentCount);
    // As many names as are shown, each agent with some of them.
    const samples = (sort, i) =>
      Array.from({ length: SAMPLES / 2 }, (_, n) => ({
        name: `${sort}_${i % SAMPLE_SETS}_${n}`,
        value: i + n,
      }));
    const timestamp = new Date().toISOString();
    await each([...agents.entries()], CONNECTIONS, ([i, { id, headers }]) =>
      server.post(
        '/metrics',
        { agent_id: id, timestamp, counters: samples('c', i), gauges: samples('g', i) },
        headers,
      ),
    );
    // Of each agent an attempt has failed: they all are looked at for whether they fail.
    await enqueue(server, agentCount);
    await each(agents, CONNECTIONS, async ({ id, headers }) => {
      const { leases } = await server.post('/claim', { agent_id: id, capacities: { dns: 1 } }, headers);
      const completed = leases.map(({ lease_id }) => ({ lease_id, outcome: 'error' }));
      await server.post('/report', { agent_id: id, completed, cancelled: [] }, headers);
    });
    // All are heard of while it is measured.
    await each(agents, CONNECTIONS, ({ id, headers }) =>
      server.post('/heartbeat', { agent_id: id }, headers),
    );
    const rounds = { idle: [], scraping: [] };
    for (let round = 0; round < SIZES.rounds; round++) {
      for (const [name, work] of [
        ['idle', () => undefined],
        ['scraping', () => server.get('/metrics')],
      ]) {
        const before = server.loopMs();
        for (let i = 0; i < SCRAPES; i++) {
          await work();
          // A text is used again for a second.
          await new Promise((resolve) => setTimeout(resolve, 1_050));
        }
        rounds[name].push(server.loopMs() - before);
      }
    }
    const text = await server.get('/metrics');
    await server.stop();
    return {
      ms: (median(rounds.scraping) - median(rounds.idle)) / SCRAPES,
      kib: text.length / 1024,
    };
  };
  const few = await costOf(FEW_AGENTS);
  const many = await costOf(SIZES.fleet);
  return [
    row(
      `event loop ms a scrape, ${count(SIZES.fleet)} agents`,
      many.ms,
      `${count(FEW_AGENTS)} agents`,
      Math.max(few.ms, 0.1),
      '≤ 50 ms',
    ),
    row(
      `KiB of it, ${SAMPLES} of ${SAMPLES * SAMPLE_SETS} names an agent`,
      many.kib,
      `${count(FEW_AGENTS)} agents`,
      few.kib,
      '',
    ),
  ];
}

const count = (value) => value.toLocaleString('en-US');
const figure = (value) => (value >= 100 ? count(Math.round(value)) : value.toFixed(value >= 10 ? 1 : 2));

function row(name, ours, baseline, theirs, aim) {
  return [name, figure(ours), baseline, figure(theirs), (ours / theirs).toFixed(2), aim];
}

const PHASES = [heartbeats, claimsAndReports, traces, replicas, claimsByDepth, memory, scrapes];

const overdue = setTimeout(() => {
  console.error(`The bench did not end within ${TIME_LIMIT_MS / 60_000} minutes.`);
  process.exit(1);
}, TIME_LIMIT_MS);
try {
  if (POSTGRES) await usePostgres();
  const rows = [];
  for (const phase of PHASES.filter(({ name }) => ASKED.length === 0 || ASKED.includes(name))) {
    console.error(`${phase.name} ...`);
    rows.push(...(await phase()));
  }
  const lines = [
    ['Figure', 'Control plane', 'Baseline', 'Measured', 'Ratio', 'Aim'],
    ['---', '--:', '---', '--:', '--:', '---'],
    ...rows,
  ];
  console.log(
    `${cpus().length} × ${cpus()[0]?.model.trim()}, Node ${process.versions.node}, ${OPTIONS.database}\n`,
  );
  for (const cells of lines) console.log(`| ${cells.join(' | ')} |`);
  process.exitCode = 0;
} catch (error) {
  console.error(error);
  process.exitCode = 1;
} finally {
  clearTimeout(overdue);
  await stopDatabase();
}
process.exit();
