// A probe in about 150 lines: registers, heartbeats, claims dns tasks, resolves them and reports. --check adds a
// kind: a module whose default export maps kinds to functions, as examples/whois-kind/check.mjs.
//   node examples/agent.mjs [--server http://127.0.0.1:8080] [--hostname NAME] [--identity FILE] [--tasks N] [--check FILE]
// With --tasks it ends after that many; without, it goes on until it is interrupted.
import { randomUUID } from 'node:crypto';
import { promises as dns } from 'node:dns';
import { readFileSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { resolve as absolute } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';

const { values: options } = parseArgs({
  options: {
    server: { type: 'string', default: 'http://127.0.0.1:8080' },
    hostname: { type: 'string', default: hostname() },
    identity: { type: 'string', default: 'agent-identity.json' },
    tasks: { type: 'string', default: 'Infinity' },
    check: { type: 'string', multiple: true, default: [] },
  },
});

const CAPACITY = 10;
const WAIT_MS = 20_000;
// Longer than the server may hold a claim open.
const TIMEOUT_MS = WAIT_MS + 15_000;

let identity;

/** For each kind what does it: a spec goes in, `{outcome, observations}` comes out. */
const checks = { dns: resolve };

/** Calls the control plane until it answers. Every call may be sent again after a failure: the server sees to that. */
async function call(path, body, headers = {}) {
  for (let attempt = 1; ; attempt++) {
    let waitMs = Math.min(30_000, 500 * 2 ** attempt) * (0.5 + Math.random() / 2);
    try {
      const response = await fetch(new URL(path, options.server), {
        method: 'POST',
        headers: { 'content-type': 'application/json', ...credentials(), ...headers },
        body: JSON.stringify(body),
        signal: AbortSignal.timeout(TIMEOUT_MS),
      });
      const answer = await response.json();
      if (response.ok) return answer;
      if (!answer.retryable)
        throw Object.assign(new Error(`${path}: ${answer.message}`), {
          final: true,
          status: response.status,
        });
      const retryAfter = Number(response.headers.get('retry-after'));
      if (retryAfter > 0) waitMs = retryAfter * 1_000;
      console.error(`${path}: ${answer.message} Again in ${Math.round(waitMs / 1_000)} s.`);
    } catch (error) {
      if (error.final) throw error;
      const why = error.cause?.code ?? error.message;
      console.error(
        `${path}: no answer from ${options.server} (${why}). Again in ${Math.round(waitMs / 1_000)} s.`,
      );
    }
    await sleep(waitMs);
  }
}

function credentials() {
  return identity ? { 'x-agent-id': String(identity.agent_id), 'x-agent-token': identity.auth_token } : {};
}

/**
 * Goes on as who it was, or registers. A hostname may register once in ten minutes, and not while its agent counts as
 * alive, so a restarted agent needs the token that it had.
 */
async function identify() {
  const { server, hostname, identity: file } = options;
  try {
    const kept = JSON.parse(readFileSync(file, 'utf8'));
    if (kept.server === server && kept.hostname === hostname) identity = kept;
  } catch {
    // The first start.
  }
  if (identity) {
    try {
      const { next_deadline_ms } = await call('/v1/agents/heartbeat', { agent_id: identity.agent_id });
      identity.heartbeat_timeout_ms = next_deadline_ms;
      console.log(`agent ${identity.agent_id}, as ${file} says`);
      return;
    } catch (error) {
      // The token has expired, somebody else was given the name, or the server has another database. If the name was
      // ours, the old token, which goes with the registration, gets it back.
      if (error.status !== 401) throw error;
    }
  }
  // An answer that is lost is asked for again, for the same agent.
  identity = await call('/v1/agents/register', { hostname }, { 'idempotency-key': randomUUID() });
  writeFileSync(file, JSON.stringify({ server, hostname, ...identity }), { mode: 0o600 });
  console.log(`registered ${hostname} as agent ${identity.agent_id}`);
}

/** Says that we live, well before the deadline each time. Who registered, or came back, has just said so. */
async function keepAlive() {
  let deadlineMs = identity.heartbeat_timeout_ms;
  for (;;) {
    await sleep(deadlineMs / 2, undefined, { ref: false });
    const answer = await call('/v1/agents/heartbeat', { agent_id: identity.agent_id });
    deadlineMs = answer.next_deadline_ms;
  }
}

/** Looks a name up. What goes wrong with the lookup is a finding like any other: the task is done. */
async function resolve(spec) {
  const resolver = new dns.Resolver({ timeout: 2_000, tries: 2 });
  const startedAt = performance.now();
  const rtt = () => ({
    name: 'rtt_ms',
    value: Math.round((performance.now() - startedAt) * 100) / 100,
    unit: 'ms',
  });
  try {
    if (spec.server) resolver.setServers([spec.server]);
    const records = await resolver.resolve(spec.query, spec.record_type ?? 'A');
    return { outcome: 'success', observations: [rtt(), { name: 'records', value: records }] };
  } catch (error) {
    const outcome = error.code === 'ETIMEOUT' ? 'timeout' : 'error';
    return { outcome, observations: [rtt(), { name: 'error', value: error.code ?? error.message }] };
  }
}

async function main() {
  for (const file of options.check) {
    Object.assign(checks, (await import(pathToFileURL(absolute(file)))).default);
  }
  await identify();
  const { agent_id } = identity;
  keepAlive().catch(giveUp);

  let left = Number(options.tasks);
  while (left > 0) {
    const capacity = Math.min(left, CAPACITY);
    const capacities = Object.fromEntries(Object.keys(checks).map((kind) => [kind, capacity]));
    // The key makes a repeated claim give the same leases, so that none is lost with an answer that did not arrive.
    const { leases } = await call(
      '/v1/agents/claim',
      { agent_id, capacities, wait_ms: WAIT_MS },
      { 'idempotency-key': randomUUID() },
    );
    if (leases.length === 0) continue;
    const completed = await Promise.all(
      leases.map(async ({ lease_id, kind, spec }) => ({ lease_id, ...(await checks[kind](spec)) })),
    );
    const { acknowledged, rejected = [] } = await call('/v1/agents/report', {
      agent_id,
      completed,
      cancelled: [],
    });
    // One that is rejected does not end the agent: the others were taken, and its task is tried again when the lease ends.
    for (const { lease_id, reason, details } of rejected)
      console.error(`lease ${lease_id} was rejected: ${reason} ${details ? JSON.stringify(details) : ''}`);
    console.log(`reported ${acknowledged} of ${leases.length}`);
    left -= leases.length;
  }
  process.exit(0);
}

function giveUp(error) {
  console.error(error.message);
  process.exit(1);
}

main().catch(giveUp);
