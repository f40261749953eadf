// Closed loops: each caller sends its next call when the previous one was answered. They measure throughput;
// fleet.mjs measures latency at a given load.
import { Connection } from './connection.mjs';
import { OPERATOR } from './processes.mjs';
import { percentile } from './statistics.mjs';
import { agentHeaders, claimBody, dnsTasks, heartbeatBody, MAX_ENQUEUE, reportBody } from './wire.mjs';

/** The most empty claims in a row: concurrent claims can skip tasks that another one has locked. */
const MAX_EMPTY = 200;
const CONNECTIONS = 64;

/** Runs the work for each item, at most `concurrency` at a time. */
export async function each(items, concurrency, work) {
  const rest = items.values();
  await Promise.all(
    Array.from({ length: concurrency }, async (_, i) => {
      for (const item of rest) await work(item, i);
    }),
  );
}

/** Registers agents. @returns their ids and tokens, and how long each call took in ms */
export async function register(server, count, prefix = 'bench') {
  const agents = [];
  const times = [];
  const connections = connect(server, Math.min(CONNECTIONS, count));
  await each(
    Array.from({ length: count }, (_, i) => `${prefix}-${i}`),
    connections.length,
    async (hostname, i) => {
      const startedAt = performance.now();
      const { agent_id: id, auth_token: token } = await connections[i].post('/register', { hostname });
      times.push(performance.now() - startedAt);
      agents.push({ id, token });
    },
  );
  for (const connection of connections) connection.close();
  return { agents, times };
}

const connect = ({ port }, count) => Array.from({ length: count }, () => new Connection(port));

/** Enqueues tasks. @param options see dnsTasks; `atOnce`: tasks in one call */
export async function enqueue(server, count, { atOnce = MAX_ENQUEUE, ...options } = {}) {
  for (let done = 0; done < count; done += atOnce) {
    const tasks = dnsTasks(Math.min(atOnce, count - done), { from: done, ...options });
    const answer = await server.post('/v1/tasks', { tasks }, OPERATOR);
    if (answer.tasks.length !== tasks.length) throw new Error('not every task was enqueued');
  }
}

/** An agent with its own connection that claims and reports. */
export class Worker {
  constructor(server, agent) {
    this.agent = agent;
    this.headers = agentHeaders(agent);
    this.connection = new Connection(server.port);
  }

  /** @returns the ids of the granted leases */
  async claim(count) {
    const { leases } = await this.connection.post('/claim', claimBody(this.agent, count), this.headers);
    return leases.map(({ lease_id: id }) => id);
  }

  /** @throws a report is not acknowledged */
  async report(leaseIds) {
    const body = reportBody(this.agent, leaseIds);
    const { acknowledged } = await this.connection.post('/report', body, this.headers);
    if (acknowledged !== leaseIds.length)
      throw new Error(`${acknowledged} of ${leaseIds.length} acknowledged`);
  }

  close() {
    this.connection.close();
  }
}

/** The queued tasks for rounds: enqueued between rounds, as many as a round may need. */
export class Stock {
  #queued = 0;
  #most = 0;

  /** @param enqueue enqueues the number of tasks that it is given */
  constructor(enqueue) {
    this.enqueue = enqueue;
  }

  /** Enqueues up to `count` tasks, and up to three times the most that a round has used. */
  async require(count) {
    const missing = Math.max(count, 3 * this.#most) - this.#queued;
    if (missing <= 0) return;
    await this.enqueue(missing);
    this.#queued += missing;
  }

  took(count) {
    this.#queued -= count;
    this.#most = Math.max(this.#most, count);
  }
}

/** Registers agents, each at one of the servers. */
export async function workersAt(servers, count, prefix) {
  const { agents } = await register(servers[0], count, prefix);
  return agents.map((agent, i) => new Worker(servers[i % servers.length], agent));
}

/**
 * Lets workers claim and report.
 * @param options.size the number of tasks in a claim
 * @param options.count stops after this number of tasks
 * @param options.seconds or after this time
 * @returns tasks a second, the number of tasks, the durations of claims in ms, and the number of empty claims
 * @throws there are no tasks left
 */
export async function work(workers, { size, count = Number.POSITIVE_INFINITY, seconds = 3_600 }) {
  const startedAt = performance.now();
  const until = startedAt + seconds * 1_000;
  const claims = [];
  let done = 0;
  let empty = 0;
  await Promise.all(
    workers.map(async (worker) => {
      let inARow = 0;
      while (done < count && performance.now() < until) {
        const claimedAt = performance.now();
        const leases = await worker.claim(size);
        claims.push(performance.now() - claimedAt);
        if (leases.length === 0) {
          empty += 1;
          inARow += 1;
          if (inARow === MAX_EMPTY) throw new Error('there are no tasks left to claim');
          continue;
        }
        inARow = 0;
        await worker.report(leases);
        done += leases.length;
      }
    }),
  );
  return { rate: done / ((performance.now() - startedAt) / 1_000), done, claims, empty };
}

/**
 * Has the workers of each side claim and report under each load, in turns, so that other load on the machine affects all of them; then
 * stops the sides' servers.
 * @returns for each load the tasks a second of each side, one figure a round; the first round is for warming up
 */
export async function workInTurns(sides, loads, { rounds, seconds }) {
  const measured = loads.map(() => Object.fromEntries(Object.keys(sides).map((name) => [name, []])));
  for (let round = 0; round <= rounds; round++) {
    for (const [i, { callers, size, enough }] of loads.entries()) {
      for (const [name, { stock, workers }] of Object.entries(sides)) {
        await stock.require(enough * seconds);
        const { rate, done } = await work(workers.slice(0, callers), { size, seconds });
        stock.took(done);
        if (round > 0) measured[i][name].push(rate);
      }
    }
  }
  for (const { server, workers } of Object.values(sides)) {
    for (const worker of workers) worker.close();
    await server.stop();
  }
  return measured;
}

/** Sends heartbeats for a time, each connection in turns for its share of the agents. */
export async function beat(server, agents, seconds) {
  const connections = connect(server, CONNECTIONS);
  const startedAt = performance.now();
  const times = [];
  await Promise.all(
    connections.map(async (connection, i) => {
      const own = agents.filter((_, n) => n % CONNECTIONS === i);
      for (let n = 0; performance.now() - startedAt < seconds * 1_000; n = (n + 1) % own.length) {
        const sentAt = performance.now();
        await connection.post('/heartbeat', heartbeatBody(own[n]), agentHeaders(own[n]));
        times.push(performance.now() - sentAt);
      }
    }),
  );
  const rate = times.length / ((performance.now() - startedAt) / 1_000);
  for (const connection of connections) connection.close();
  return { rate, p50: percentile(times, 50), p95: percentile(times, 95), p99: percentile(times, 99) };
}
