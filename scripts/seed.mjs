// Fills a running server with sample data, to show lists, metrics and the documentation with content: agents that claim, report
// and fail, tasks of every kind, a limit that is reached, and a configuration that rolls out. At the end, also after Ctrl-C,
// it returns its leases, revokes its token, and puts the previous configuration in force again. Agents, tasks and the limit stay.
import { execFileSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';

const USAGE = `Usage: node scripts/seed.mjs [options]
  --seconds N  how long the agents work, from 1 to 86400 (default: 60)
  --agents N   how many agents to make, from 3 to 200 (default: 8)
  --help       this text

Fills the server that was started in this folder. To fill another one, set CONTROL_PLANE_URL to its address and
CONTROL_PLANE_TOKEN to an admin's token.`;

const { seconds: SECONDS, agents: AGENTS } = readOptions();

function readOptions() {
  try {
    const { values } = parseArgs({
      options: {
        seconds: { type: 'string', default: '60' },
        agents: { type: 'string', default: '8' },
        help: { type: 'boolean', short: 'h' },
      },
    });
    if (values.help) {
      console.log(USAGE);
      process.exit(0);
    }
    const [seconds, agents] = [Number(values.seconds), Number(values.agents)];
    if (!(seconds >= 1 && seconds <= 86_400)) throw new Error('--seconds must be from 1 to 86400.');
    if (!(Number.isInteger(agents) && agents >= 3 && agents <= 200))
      throw new Error('--agents must be a whole number from 3 to 200.');
    return { seconds, agents };
  } catch (error) {
    console.error(`${error.message}\n\n${USAGE}`);
    process.exit(2);
  }
}

const REGIONS = ['fra', 'ams', 'nyc', 'sin'];
const ENQUEUED_EVERY_MS = 2_000;
const BEAT_EVERY_MS = 12_000;
const METRICS_EVERY_MS = 15_000;
const WAIT_MS = 5_000;
const PROGRESS_EVERY_MS = 10_000;
/** How often a call is attempted if the server answers that it is retryable. */
const ATTEMPTS = 5;
/** Signals closer than this count as one: make and npm forward a signal that the terminal has sent to all. */
const ONE_SIGNAL_MS = 500;
/** The shares of checks that time out or fail. */
const TIMEOUTS = 0.06;
const ERRORS = 0.04;

/** A host whose tasks have one attempt, which every agent reports as cancelled, so that they become dead. */
const DOOMED = 'doomed.example';
const LIMIT = { kind: 'dns', target: '192.0.2.54:53' };

/** Aborts when the time is over, or on the first signal; a second signal ends the process at once. */
const end = new AbortController();
const running = () => !end.signal.aborted;
/** Waits; at most until the end. */
const pause = (ms) => sleep(ms, undefined, { signal: end.signal }).catch(() => undefined);

let exitCode = 0;
let signalledAt;
for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
]) {
  process.on(signal, () => {
    const now = performance.now();
    if (signalledAt !== undefined && now - signalledAt > ONE_SIGNAL_MS) process.exit(code);
    signalledAt ??= now;
    exitCode = code;
    end.abort();
  });
}

const pick = (list) => list[Math.floor(Math.random() * list.length)];

const server = await findServer();
const counts = { enqueued: 0, completed: 0, cancelled: 0 };

/** Finds the server and gets a token. The command line verifies the server before it sends a token. */
async function findServer() {
  const { CONTROL_PLANE_URL: url, CONTROL_PLANE_TOKEN: token } = process.env;
  if (url && token) return { url: url.replace(/\/$/, ''), token };
  try {
    // The server of the settings' database: no other server may get the token. With the URL set, the command makes it prove that it
    // has the database, and creates no token otherwise.
    const { readServerFile } = await import('../dist/cli/local-server.js');
    const { readSettings } = await import('../dist/settings.js');
    const file = readServerFile(readSettings(process.env));
    if (typeof file !== 'object') throw new Error('none of its database is known');
    const cli = new URL('../dist/main.js', import.meta.url).pathname;
    const make = ['token', 'create', `seed-${Date.now()}`, '--role', 'admin', '--expires-in', '1h', '--json'];
    const made = JSON.parse(
      execFileSync(process.execPath, [cli, ...make], {
        encoding: 'utf8',
        env: { ...process.env, CONTROL_PLANE_URL: file.url },
      }),
    );
    return { url: file.url, token: made.token, tokenId: made.id };
  } catch (error) {
    console.error(
      `No server of this folder took a token (${error.message}). Start one with make start, or set CONTROL_PLANE_URL ` +
        'and CONTROL_PLANE_TOKEN.',
    );
    process.exit(3);
  }
}

/** Calls the API. @returns the answer; undefined if the server was unavailable in every attempt */
async function call(method, path, headers, body, signal) {
  for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
    const timeout = AbortSignal.timeout(WAIT_MS + 15_000);
    const response = await fetch(server.url + path, {
      method,
      headers: { ...(body && { 'content-type': 'application/json' }), ...headers },
      body: body && JSON.stringify(body),
      signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
    });
    const answer = await response.json().catch(() => ({}));
    if (response.ok) return answer;
    if (!answer.retryable)
      throw new Error(
        `${method} ${path}: ${response.status} ${answer.message ?? ''} ${JSON.stringify(answer.details ?? {})}`,
      );
    await sleep(1_000 * (Number(response.headers.get('retry-after')) || 1), undefined, { signal });
  }
  return undefined;
}

const operator = (method, path, body) =>
  call(method, path, { authorization: `Bearer ${server.token}` }, body);

/** Creates a task of each kind, with few targets, so that windows fill. */
function makeTasks() {
  const host = `host-${Math.floor(Math.random() * 12)}.example`;
  const priority = pick([0, 0, 0, 5, 10]);
  return [
    { kind: 'dns', spec: { query: host, server: '192.0.2.53', record_type: pick(['A', 'AAAA', 'TXT']) } },
    { kind: 'http', spec: { url: `https://${host}/`, method: 'GET' } },
    { kind: 'tcp', spec: { host, port: pick([22, 443, 8443]) } },
    { kind: 'ping', spec: { host, count: 4 } },
    { kind: 'trace', spec: { host, max_hops: 20 } },
    { kind: 'dns', spec: { query: 'busy.example', server: LIMIT.target } },
  ].map((task) => ({ ...task, priority }));
}

async function enqueue() {
  while (running()) {
    const doomed = { kind: 'tcp', spec: { host: DOOMED, port: 443 }, max_attempts: 1, priority: 10 };
    const tasks = [...makeTasks(), ...makeTasks(), ...makeTasks(), doomed];
    if (await operator('POST', '/v1/tasks', { tasks })) counts.enqueued += tasks.length;
    await pause(ENQUEUED_EVERY_MS);
  }
}

/** Invents the report of a lease. */
function check({ lease_id }) {
  const dice = Math.random();
  const rtt = Math.round((5 + Math.random() ** 3 * 200) * 100) / 100;
  if (dice < TIMEOUTS)
    return { lease_id, outcome: 'timeout', observations: [{ name: 'rtt_ms', value: 2_000, unit: 'ms' }] };
  if (dice < TIMEOUTS + ERRORS)
    return { lease_id, outcome: 'error', observations: [{ name: 'error', value: 'ECONNREFUSED' }] };
  return { lease_id, outcome: 'success', observations: [{ name: 'rtt_ms', value: rtt, unit: 'ms' }] };
}

class Probe {
  constructor({ agent_id, auth_token }, { careless }) {
    this.id = agent_id;
    this.headers = { 'x-agent-id': String(agent_id), 'x-agent-token': auth_token };
    /** If true, it drops half of its leases, so that they expire. */
    this.careless = careless;
    /** The leases that it has not reported. */
    this.held = new Set();
  }

  send(path, body, { headers, signal } = {}) {
    const named = { agent_id: this.id, ...body };
    return call('POST', `/v1/agents${path}`, { ...this.headers, ...headers }, named, signal);
  }

  async beat() {
    while (running()) {
      const answer = await this.send('/heartbeat', this.revision ?? {});
      if (answer?.config_revision)
        this.revision = { config_revision: answer.config_revision, config_status: 'applied' };
      await pause(BEAT_EVERY_MS);
    }
  }

  async measure() {
    while (running()) {
      await this.send('/metrics', {
        timestamp: new Date().toISOString(),
        counters: [{ name: 'checks', value: Math.floor(Math.random() * 50) }],
        gauges: [{ name: 'load', value: Math.round(Math.random() * 200) / 100 }],
      });
      await pause(METRICS_EVERY_MS);
    }
  }

  async work() {
    while (running()) {
      const leases = await this.claim();
      for (const { lease_id } of leases) this.held.add(lease_id);
      await pause(200 + Math.random() * 1_500);
      if (!running()) return;
      const isDoomed = ({ spec }) => spec.host === DOOMED;
      const others = leases.filter((lease) => !isDoomed(lease) && !(this.careless && Math.random() < 0.5));
      // Usually no other lease is cancelled.
      const returned = Math.random() < 0.8 ? [] : others.splice(0, 1);
      await this.report(others.map(check), [...leases.filter(isDoomed), ...returned]);
      // Within the default quota of 12 claims a minute.
      await pause(4_000);
    }
  }

  async claim() {
    const capacities = { dns: 4, http: 3, tcp: 3, ping: 2, trace: 1 };
    const options = { headers: { 'idempotency-key': randomUUID() }, signal: end.signal };
    try {
      return (await this.send('/claim', { capacities, wait_ms: WAIT_MS }, options))?.leases ?? [];
    } catch (error) {
      if (!running()) return [];
      throw error;
    }
  }

  async report(completed, returned) {
    const cancelled = returned.map(({ lease_id }) => ({ lease_id }));
    if (completed.length + cancelled.length === 0) return;
    const answer = await this.send('/report', { completed, cancelled });
    if (!answer) return;
    // Rejected leases have expired, because the agent is careless.
    const rejected = new Set(answer.rejected?.map(({ lease_id }) => lease_id));
    const taken = (list) => list.filter(({ lease_id }) => !rejected.has(lease_id)).length;
    counts.completed += taken(completed);
    counts.cancelled += taken(cancelled);
    for (const { lease_id } of [...completed, ...cancelled]) this.held.delete(lease_id);
  }

  /** Gives all its leases back. */
  async leave() {
    await this.report(
      [],
      [...this.held].map((lease_id) => ({ lease_id })),
    );
  }

  live() {
    return Promise.all([this.beat(), this.measure(), this.work()]);
  }
}

const summary = () =>
  `${counts.enqueued} tasks enqueued, ${counts.completed} completed, ${counts.cancelled} cancelled`;

async function printProgress() {
  const startedAt = performance.now();
  for (let dueMs = PROGRESS_EVERY_MS; ; dueMs += PROGRESS_EVERY_MS) {
    await pause(startedAt + dueMs - performance.now());
    if (!running()) return;
    console.log(`${dueMs / 1_000} s: ${summary()}`);
  }
}

const run = randomUUID().slice(0, 8);
const probes = [];
let published;
let before;

async function begin() {
  for (let i = 0; i < AGENTS && running(); i++) {
    const region = REGIONS[i % REGIONS.length];
    const made = await operator('POST', '/v1/agents', {
      hostname: `probe-${region}-${run}-${i}`,
      labels: { region, seed: run },
    });
    if (!made) throw new Error('The server is too busy to make agents.');
    probes.push(new Probe(made, { careless: i === 1 }));
  }
  if (!running()) return [];
  const [disabled, careless, ...others] = probes;
  await operator('POST', `/v1/agents/${disabled.id}/disable`);
  [before] = (await operator('GET', '/v1/configs?limit=1'))?.items.filter(({ in_force }) => in_force) ?? [];
  published = await operator('POST', '/v1/configs', { config: { resolvers: ['192.0.2.53'], seed: run } });
  await operator('PUT', '/v1/concurrency/limits', { limits: [{ ...LIMIT, limit: 2 }] });
  // The last agent never sends a heartbeat.
  const alive = [careless, ...others.slice(0, -1)];
  console.log(
    `${server.url}: ${alive.length} agent${alive.length === 1 ? ' works' : 's work'} for ${SECONDS} s ` +
      '(one is drained at the end), 1 is disabled, 1 was made and never sends a heartbeat. ' +
      `Configuration ${published?.revision} is in force meanwhile. Ctrl-C ends it.`,
  );
  return alive;
}

async function giveLeasesBack() {
  await Promise.all(probes.map((probe) => probe.leave()));
  // Disabling an agent revokes leases of a claim whose answer did not arrive.
  const page = await operator('GET', `/v1/agents?label=seed:${run}&limit=500`);
  for (const { id, live_leases } of page?.items ?? []) {
    if (live_leases === 0) continue;
    await operator('POST', `/v1/agents/${id}/disable`);
    await operator('POST', `/v1/agents/${id}/enable`);
  }
}

/** Puts the previous configuration in force again. @returns a sentence about the result */
async function rollBack() {
  if (!published) return 'No configuration was published.';
  const newest = (await operator('GET', '/v1/configs?limit=1'))?.items[0];
  if (newest?.revision !== published.revision)
    return 'Another configuration was published meanwhile: it stays in force.';
  if (!before)
    return `Configuration ${published.revision} stays in force, since there was none before; config publish replaces it.`;
  await operator('POST', `/v1/configs/${before.revision}/rollback`, {});
  return `The content of ${before.revision}, which was in force before, is published again.`;
}

async function countsByState() {
  const states = {};
  for (const { state, count } of (await operator('GET', '/v1/tasks/stats'))?.depths ?? [])
    states[state] = (states[state] ?? 0) + count;
  return Object.entries(states)
    .map(([state, count]) => `${count} ${state}`)
    .join(', ');
}

/** Runs a step; prints its error, so that the other steps are run too. */
async function attempt(step) {
  try {
    return await step();
  } catch (error) {
    console.error(explain(error));
    exitCode ||= 1;
    return undefined;
  }
}

const explain = (error) =>
  error.cause ? `${error.message}: ${error.cause.code ?? error.cause.message}` : error.message;

await attempt(async () => {
  const alive = await begin();
  const timer = setTimeout(() => end.abort(), SECONDS * 1_000);
  await Promise.all([printProgress(), enqueue(), ...alive.map((probe) => probe.live())]).finally(() =>
    clearTimeout(timer),
  );
  if (alive.length > 0) await operator('POST', `/v1/agents/${alive[0].id}/drain`);
});
// Stops everything after a failure too.
end.abort();
await attempt(giveLeasesBack);
const configuration = await attempt(rollBack);
const states = await attempt(countsByState);
if (server.tokenId !== undefined)
  await attempt(() => operator('DELETE', `/v1/operator-tokens/${server.tokenId}`));
console.log(
  [
    `${exitCode >= 128 ? 'Interrupted' : 'Ended'}: ${summary()}.`,
    ...(states ? [`The server has ${states} tasks.`] : []),
    ...(configuration ? [configuration] : []),
    `The agents, the tasks and a limit of ${LIMIT.kind} at ${LIMIT.target} stay. Look at them:`,
    `  scripts/with-node.sh npx --no-install control-plane agents list --label seed=${run}`,
  ].join('\n'),
);
process.exit(exitCode);
