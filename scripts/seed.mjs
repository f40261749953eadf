// Fills a running server with a lively fleet: agents that claim, report and fail, tasks of every kind, a limit that is
// met, a configuration that rolls out. For looking at lists, metrics and the documentation with something in them.
//   npm run seed -- [--seconds 60] [--agents 8]
// Of this folder's server, whose command line makes a token for an hour; or CONTROL_PLANE_URL with CONTROL_PLANE_TOKEN.
import { execFileSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';

const { values: options } = parseArgs({
  options: {
    seconds: { type: 'string', default: '60' },
    agents: { type: 'string', default: '8' },
  },
});

const SECONDS = Number(options.seconds);
const AGENTS = Number(options.agents);
if (!(SECONDS >= 1 && SECONDS <= 86_400) || !(AGENTS >= 3 && AGENTS <= 200)) {
  console.error('--seconds must be from 1 to 86400, --agents from 3 to 200.');
  process.exit(2);
}

const REGIONS = ['fra', 'ams', 'nyc', 'sin'];
const ENQUEUED_EVERY_MS = 2_000;
const BEAT_EVERY_MS = 12_000;
const METRICS_EVERY_MS = 15_000;
const WAIT_MS = 5_000;
/** Of the checks, how many time out or fail. */
const TIMEOUTS = 0.06;
const ERRORS = 0.04;

const stopAt = performance.now() + SECONDS * 1_000;
const running = () => performance.now() < stopAt;
const pick = (list) => list[Math.floor(Math.random() * list.length)];

const server = findServer();
const counts = { enqueued: 0, completed: 0, cancelled: 0 };

/** The command line tells the server from another program on its port before it shows it anything. */
function findServer() {
  const { CONTROL_PLANE_URL: url, CONTROL_PLANE_TOKEN: token } = process.env;
  if (url && token) return { url: url.replace(/\/$/, ''), token };
  try {
    // First: without a server the command would make the token in the database, for nobody.
    const found = JSON.parse(readFileSync('control-plane.server.json', 'utf8')).url;
    const cli = new URL('../dist/cli.js', import.meta.url).pathname;
    const make = ['token', 'create', `seed-${Date.now()}`, '--role', 'admin', '--expires-in', '1h', '--json'];
    const made = JSON.parse(execFileSync(process.execPath, [cli, ...make], { encoding: 'utf8' }));
    return { url: found, token: made.token };
  } catch (error) {
    console.error(
      `No server of this folder took a token (${error.message}). Start one with make start, or set CONTROL_PLANE_URL ` +
        'and CONTROL_PLANE_TOKEN.',
    );
    process.exit(3);
  }
}

async function call(method, path, headers, body) {
  const response = await fetch(server.url + path, {
    method,
    headers: { 'content-type': 'application/json', ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
    signal: AbortSignal.timeout(WAIT_MS + 15_000),
  });
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  if (answer.retryable) {
    await sleep(1_000 * (Number(response.headers.get('retry-after')) || 1));
    return undefined;
  }
  throw new Error(
    `${method} ${path}: ${response.status} ${answer.message ?? ''} ${JSON.stringify(answer.details ?? {})}`,
  );
}

const operator = (method, path, body) =>
  call(method, path, { authorization: `Bearer ${server.token}` }, body);

/** A task of each kind, at targets that repeat, so that windows fill. */
function makeTasks() {
  const host = `host-${Math.floor(Math.random() * 12)}.example`;
  const priority = pick([0, 0, 0, 5, 10]);
  return [
    { kind: 'dns', spec: { query: host, server: '192.0.2.53', record_type: pick(['A', 'AAAA', 'TXT']) } },
    { kind: 'http', spec: { url: `https://${host}/`, method: 'GET' } },
    { kind: 'tcp', spec: { host, port: pick([22, 443, 8443]) } },
    { kind: 'ping', spec: { host, count: 4 } },
    { kind: 'trace', spec: { host, max_hops: 20 } },
    { kind: 'dns', spec: { query: 'busy.example', server: '192.0.2.54' } },
  ].map((task) => ({ ...task, priority }));
}

async function enqueue() {
  while (running()) {
    const tasks = [...makeTasks(), ...makeTasks(), ...makeTasks()];
    if (await operator('POST', '/v1/tasks', { tasks })) counts.enqueued += tasks.length;
    await sleep(ENQUEUED_EVERY_MS);
  }
}

/** What an agent of this kind would have seen. */
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
    /** Loses half of what it claims, so that leases expire. */
    this.careless = careless;
  }

  send(path, body, headers = {}) {
    return call('POST', `/v1/agents${path}`, { ...this.headers, ...headers }, { agent_id: this.id, ...body });
  }

  async beat() {
    while (running()) {
      const answer = await this.send('/heartbeat', this.revision ?? {});
      if (answer?.config_revision)
        this.revision = { config_revision: answer.config_revision, config_status: 'applied' };
      await sleep(BEAT_EVERY_MS);
    }
  }

  async measure() {
    while (running()) {
      await this.send('/metrics', {
        timestamp: new Date().toISOString(),
        counters: [{ name: 'checks', value: Math.floor(Math.random() * 50) }],
        gauges: [{ name: 'load', value: Math.round(Math.random() * 200) / 100 }],
      });
      await sleep(METRICS_EVERY_MS);
    }
  }

  async work() {
    while (running()) {
      const capacities = { dns: 4, http: 3, tcp: 3, ping: 2, trace: 1 };
      const answer = await this.send(
        '/claim',
        { capacities, wait_ms: WAIT_MS },
        { 'idempotency-key': randomUUID() },
      );
      const leases = (answer?.leases ?? []).filter(() => !this.careless || Math.random() < 0.5);
      await sleep(200 + Math.random() * 1_500);
      const completed = leases.slice(1).map(check);
      const cancelled = leases.slice(0, 1).map(({ lease_id }) => ({ lease_id }));
      // Most give nothing back.
      if (Math.random() < 0.8) completed.push(...cancelled.splice(0).map(check));
      if (completed.length + cancelled.length > 0 && (await this.send('/report', { completed, cancelled }))) {
        counts.completed += completed.length;
        counts.cancelled += cancelled.length;
      }
      // Within the default quota of 12 claims a minute.
      await sleep(4_000);
    }
  }

  live() {
    return Promise.all([this.beat(), this.measure(), this.work()]);
  }
}

const run = randomUUID().slice(0, 8);
const probes = [];
for (let i = 0; i < AGENTS; i++) {
  const region = REGIONS[i % REGIONS.length];
  const made = await operator('POST', '/v1/agents', {
    hostname: `probe-${region}-${run}-${i}`,
    labels: { region, seed: run },
  });
  probes.push(new Probe(made, { careless: i === 1 }));
}
const [disabled, , ...rest] = probes;
await operator('POST', `/v1/agents/${disabled.id}/disable`);
await operator('POST', '/v1/configs', { config: { resolvers: ['192.0.2.53'], seed: run } });
await operator('PUT', '/v1/concurrency/limits', {
  limits: [{ kind: 'dns', target: '192.0.2.54:53', ceiling: 2 }],
});
// The last is never heard of: it goes offline.
const alive = [probes[1], ...rest.slice(0, -1)];
console.log(`${alive.length} agents work for ${SECONDS} s at ${server.url}; Ctrl-C ends them.`);
await Promise.all([enqueue(), ...alive.map((probe) => probe.live())]);
await operator('POST', `/v1/agents/${alive[0].id}/drain`);
console.log(
  `Enqueued ${counts.enqueued} tasks; ${counts.completed} were completed, ${counts.cancelled} given back. ` +
    `Look at them: npx --no-install control-plane agents list --label seed=${run}`,
);
