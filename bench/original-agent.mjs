// Runs a simulation of the original control plane's agent against the built server, in real time, and prints its
// throughput: node bench/original-agent.mjs [seconds [default | raised]]. The agent's behaviour, and the results:
// docs/from-the-original.md.
import { setTimeout as sleep } from 'node:timers/promises';
import { OPERATOR, ROLL_OUT, startServer } from './processes.mjs';

const SECONDS = Number(process.argv[2] ?? 300);
const ASKED = process.argv[3];
/** The settings that docs/from-the-original.md recommends. */
const RAISED = {
  ...ROLL_OUT,
  CONTROL_PLANE_QUOTA_HEARTBEAT: '30/1m,10',
  CONTROL_PLANE_QUOTA_CLAIM: '300/1m,60',
  CONTROL_PLANE_QUOTA_EXTEND: '60/1m,20',
  CONTROL_PLANE_QUOTA_REPORT: '600/1m,100',
};
/** Runs with the same settings run at the same time, each on its own server. */
const RUNS = [
  // The agents' quotas are the program's own defaults.
  ['default', ROLL_OUT, [34, 100]],
  ['raised', RAISED, [34, 100, 600]],
];

const SPECS = {
  dns: (i) => ({ query: `host-${i}.example.com` }),
  http: (i) => ({ url: `https://host-${i}.example.com/` }),
  tcp: (i) => ({ host: `host-${i}.example.com`, port: 443 }),
  ping: (i) => ({ host: `host-${i}.example.com` }),
  trace: (i) => ({ host: `host-${i}.example.com` }),
};
const KINDS = Object.keys(SPECS);
/** The number of checks of each kind at once. */
const CAPACITY = 4;
const CHECK_MS = 50;
const HEARTBEAT_MS = 5_000;
const EXTEND_MS = 2_000;
const EXTEND_BY_MS = 500;
const EMPTY_MS = 250;
const FIRST_RETRY_MS = 100;
const MAX_RETRY_MS = 5_000;

/** A simulated agent of the original. */
class OriginalAgent {
  held = new Set();
  refused = 0;
  rejected = 0;
  ended = false;
  /** Resolves when the previous report was answered, if reports are sent one after the other. */
  reports = Promise.resolve();

  /** @param together whether each check reports separately, or reports are sent one after the other */
  constructor(url, { agent_id, auth_token }, together) {
    this.url = url;
    this.id = agent_id;
    this.headers = {
      'content-type': 'application/json',
      'x-agent-id': String(agent_id),
      'x-agent-token': auth_token,
    };
    this.together = together;
  }

  async run() {
    await Promise.all([this.beat(), this.claim(), this.extend()]);
  }

  /**
   * Sends a call until it is not refused: retries after 100 ms, then doubles the wait up to 5 s. It ignores
   * `Retry-After`.
   */
  async call(path, body) {
    for (let waitMs = FIRST_RETRY_MS; !this.ended; waitMs = Math.min(waitMs * 2, MAX_RETRY_MS)) {
      const answer = await fetch(this.url + path, {
        method: 'POST',
        headers: this.headers,
        body: JSON.stringify({ agent_id: this.id, ...body }),
      });
      const text = await answer.text();
      if (answer.ok) return JSON.parse(text);
      if (answer.status !== 429) throw new Error(`POST ${path}: ${answer.status} ${text.slice(0, 300)}`);
      this.refused++;
      await sleep(waitMs);
    }
    return undefined;
  }

  async beat() {
    while (!this.ended) {
      await this.call('/heartbeat', {});
      await sleep(HEARTBEAT_MS);
    }
  }

  async claim() {
    const capacities = Object.fromEntries(KINDS.map((kind) => [kind, CAPACITY]));
    while (!this.ended) {
      const leases = (await this.call('/claim', { capacities }))?.leases ?? [];
      for (const { lease_id } of leases) void this.work(lease_id);
      if (leases.length === 0) await sleep(EMPTY_MS);
    }
  }

  async extend() {
    while (!this.ended) {
      await sleep(EXTEND_MS);
      if (this.held.size > 0)
        await this.call('/extend', { lease_ids: [...this.held], extend_by_ms: EXTEND_BY_MS });
    }
  }

  async work(lease) {
    this.held.add(lease);
    await sleep(CHECK_MS);
    const report = async () => {
      const answer = await this.call('/report', {
        completed: [{ lease_id: lease, outcome: 'success' }],
        cancelled: [],
      });
      this.rejected += answer?.rejected?.length ?? 0;
      this.held.delete(lease);
    };
    if (this.together) return report();
    this.reports = this.reports.then(report);
    return this.reports;
  }
}

async function measure(server, name, tasks, together) {
  try {
    const list = Array.from({ length: tasks }, (_, i) => {
      const kind = KINDS[i % KINDS.length];
      return { kind, spec: SPECS[kind](i) };
    });
    await server.post('/v1/tasks', { tasks: list }, OPERATOR);
    const agent = new OriginalAgent(
      server.url,
      await server.post('/register', { hostname: 'original' }),
      together,
    );
    const read = async (path) => (await fetch(server.url + path, { headers: OPERATOR })).json();
    const startedAt = performance.now();
    const running = agent.run();
    const seconds = () => (performance.now() - startedAt) / 1_000;
    const byMinute = [];
    let done = 0;
    while (done < tasks && seconds() < SECONDS) {
      await sleep(500);
      const { depths } = await read('/v1/tasks/stats');
      done = depths.reduce((sum, { state, count }) => sum + (state === 'completed' ? count : 0), 0);
      if (seconds() >= 60 * (byMinute.length + 1)) byMinute.push(done);
    }
    const tookSeconds = Math.round(seconds());
    // Each lease counts as an attempt, and the agent cancels none: leases that are neither completed nor held have
    // expired.
    let expired = -done;
    let cursor = '';
    do {
      const page = await read(`/v1/tasks?limit=500${cursor}`);
      for (const { attempts, state } of page.items) expired += attempts - (state === 'leased' ? 1 : 0);
      cursor = page.next_cursor === null ? '' : `&cursor=${page.next_cursor}`;
    } while (cursor !== '');
    agent.ended = true;
    await running;
    const reports = together ? 'together' : 'one by one';
    const { refused, rejected } = agent;
    return {
      quotas: name,
      tasks,
      reports,
      done,
      tookSeconds,
      expired,
      rejected,
      refused,
      byMinute: byMinute.join(' '),
    };
  } finally {
    await server.stop();
  }
}

for (const [name, settings, sizes] of RUNS.filter(([quotas]) => ASKED === undefined || quotas === ASKED)) {
  const cases = sizes.flatMap((tasks) => [
    [tasks, false],
    [tasks, true],
  ]);
  // One after the other: each takes a processor for a second when it starts.
  const servers = [];
  for (const _ of cases) servers.push(await startServer('sqlite', { settings }));
  console.table(
    await Promise.all(cases.map(([tasks, together], i) => measure(servers[i], name, tasks, together))),
  );
}
process.exit(0);
