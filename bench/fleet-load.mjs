// The load generator of fleet.mjs, in a separate process, so that the server does not share a core with it. It is an
// open loop. Agents do not wait for each other, so a slow answer must not delay the next call: a generator that waits
// sends less when the server is slow, and leaves out the calls that would have waited longest (coordinated omission).
// So a seed fixes all instants in advance. Each call is sent at its instant, on its agent's connection after earlier
// calls, answered or not, and its latency counts from that instant, including the generator's own delay. The server
// handles the requests of one connection one after the other, so a call also waits for those of its own agent.
import { performance } from 'node:perf_hooks';
import { Connection, requestText } from './connection.mjs';
import { each } from './load.mjs';
import { percentile, schedule } from './statistics.mjs';
import { agentHeaders, claimBody, extendBody, heartbeatBody, metricsBody, reportBody } from './wire.mjs';

/**
 * The agents' capacity: with reports of 2 as often as claims, each claim has room for 2, and the other two leases are
 * in progress.
 */
const CAPACITY = 4;
/** How long to wait for answers after the last call, in ms. */
const LAST_ANSWERS_MS = 10_000;
/** The number of connections that are opened at once. */
const OPENED_AT_ONCE = 200;
const GIVEN_BACK_AT_ONCE = 64;

/** An agent: its connection, the leases it holds, and the texts of calls that never change. */
class Agent {
  held = [];

  constructor(port, agent) {
    this.agent = agent;
    this.connection = new Connection(port);
    this.headers = agentHeaders(agent);
    this.heartbeat = this.textOf('/heartbeat', heartbeatBody(agent));
    this.claim = this.textOf('/claim', claimBody(agent, CAPACITY));
  }

  textOf(path, body) {
    return requestText('POST', path, this.headers, JSON.stringify(body));
  }
}

/** By route: creates the request of a call, and handles its answer's body. */
const CALLS = {
  heartbeat: (agent) => ({ text: agent.heartbeat }),
  claim: (agent, run) => ({
    text: agent.claim,
    answered: (body) => {
      const { leases } = JSON.parse(body);
      if (leases.length === 0) run.empty += 1;
      for (const { lease_id: id } of leases) agent.held.push(id);
    },
  }),
  extend: (agent, run) => {
    const asked = agent.held.slice();
    return {
      text: agent.textOf('/extend', extendBody(agent.agent, asked)),
      answered: (body) => {
        // Leases that were reported meanwhile are not live either: only those that are still held are lost.
        const lost = JSON.parse(body).revoked.filter((id) => agent.held.includes(id));
        agent.held = agent.held.filter((id) => !lost.includes(id));
        run.lost += lost.length;
      },
    };
  },
  report: (agent, run) => {
    const reported = agent.held.splice(0, run.reportedAtOnce);
    return {
      text: agent.textOf('/report', reportBody(agent.agent, reported)),
      answered: (body) => {
        const { acknowledged } = JSON.parse(body);
        run.done += acknowledged;
        run.lost += reported.length - acknowledged;
      },
    };
  },
  metrics: (agent) => ({ text: agent.textOf('/metrics', metricsBody(agent.agent, Date.now())) }),
};

let agents = [];

function know({ port, agents: credentials }) {
  agents = credentials.map((agent) => new Agent(port, agent));
  return {};
}

/** Reports the leases that agents still hold, so that none expires before the next run. */
async function giveBack(used) {
  await each(used, GIVEN_BACK_AT_ONCE, async (agent) => {
    const held = agent.held.splice(0);
    if (held.length === 0) return;
    const body = reportBody(agent.agent, held);
    // If the server can't answer now, these leases expire.
    await agent.connection
      .request('POST', '/report', { body, headers: agent.headers, timeoutMs: LAST_ANSWERS_MS })
      .catch(() => undefined);
  });
}

async function run({ agents: size, rates, routes, warmupMs, steadyMs, seed, reportedAtOnce }) {
  const arrivals = schedule({ agents: size, rates, durationMs: warmupMs + steadyMs, seed });
  const figures = routes.map(() => ({ times: [], errors: {} }));
  const state = { reportedAtOnce, empty: 0, lost: 0, done: 0 };
  const late = [];
  let unanswered = 0;
  const used = agents.slice(0, size);
  // Each sends within a second, long before the server closes a connection without a request.
  await each(used, OPENED_AT_ONCE, ({ connection }) => connection.open());
  const opened = used.map(({ connection }) => connection.opened);
  const startedAt = performance.now() + 100;
  const elapsed = () => performance.now() - startedAt;

  const fire = ({ at, agent: index, route }) => {
    const agent = agents[index];
    const { text, answered } = CALLS[routes[route]](agent, state);
    const isMeasured = at >= warmupMs;
    unanswered += 1;
    if (isMeasured) late.push(elapsed() - at);
    agent.connection.send(text, (status, body) => {
      unanswered -= 1;
      const { times, errors } = figures[route];
      const isOk = status >= 200 && status <= 299;
      if (isMeasured) {
        if (isOk) times.push(elapsed() - at);
        else {
          const name = status || 'no answer';
          errors[name] = (errors[name] ?? 0) + 1;
        }
      }
      if (isOk) answered?.(body);
    });
  };

  let next = 0;
  let marked;
  await new Promise((resolve) => {
    const tick = () => {
      const now = elapsed();
      if (marked === undefined && now >= warmupMs) {
        marked = { cpu: process.cpuUsage(), done: state.done };
        process.send({ event: 'steady' });
      }
      while (next < arrivals.length && arrivals[next].at <= now) fire(arrivals[next++]);
      if (next < arrivals.length) setTimeout(tick, 1);
      else resolve();
    };
    tick();
  });
  process.send({ event: 'over' });
  const { user, system } = process.cpuUsage(marked.cpu);
  const seconds = (elapsed() - warmupMs) / 1_000;
  const tasks = (state.done - marked.done) / seconds;
  for (const until = elapsed() + LAST_ANSWERS_MS; unanswered > 0 && elapsed() < until; )
    await new Promise((resolve) => setTimeout(resolve, 10));
  await giveBack(used);
  return {
    routes: Object.fromEntries(
      routes.map((name, i) => {
        const { times, errors } = figures[i];
        const percentiles = {
          ...{ p50: percentile(times, 50), p95: percentile(times, 95), p99: percentile(times, 99) },
          max: percentile(times, 100),
        };
        return [name, { count: times.length, ...percentiles, errors }];
      }),
    ),
    rate: late.length / seconds,
    ...{ tasks, unanswered, empty: state.empty, lost: state.lost },
    lateP50: percentile(late, 50),
    lateP95: percentile(late, 95),
    cpu: (user + system) / 1e6 / seconds,
    reopened: used.reduce((sum, { connection }, i) => sum + connection.opened - opened[i], 0),
  };
}

process.on('message', async ({ op, ...message }) => {
  try {
    process.send(await { know, run }[op](message));
  } catch (error) {
    process.send({ error: error.stack });
  }
});
process.on('disconnect', () => process.exit());
