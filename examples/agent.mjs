// A probe in some 300 lines: registers, heartbeats, claims tasks, does them and reports; with --keys it fetches and
// verifies configurations (config-bundle.mjs). It looks names up itself; --check adds other kinds.
import { randomUUID } from 'node:crypto';
import { promises as dns } from 'node:dns';
import { readFileSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { resolve as absolute } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { acceptBundle, readKeys, readLast } from './config-bundle.mjs';
import { lockIdentity } from './identity-lock.mjs';

const USAGE = `Usage: node examples/agent.mjs [options]
  --server URL     the control plane (default: http://127.0.0.1:8080)
  --hostname NAME  the agent's name; one that is alive elsewhere is refused (default: this machine's)
  --identity FILE  where id and token are kept, one file for each agent (default: agent-identity.json)
  --tasks N        end after N tasks; otherwise work until Ctrl-C, which gives back what is not done
  --check FILE     do further kinds: a module whose default export maps kinds to functions, may be repeated;
                   such as examples/whois-kind/check.mjs
  --keys FILE      fetch configurations, and accept those signed by these keys: $URL/.well-known/jwks.json, got by a
                   way that is trusted
  --help           this text`;

const options = readOptions();

const CAPACITY = 10;
const WAIT_MS = 20_000;
/** When a claim asks for some of the kinds only: 12 claims a minute are within the quota. */
const SHORT_WAIT_MS = 5_000;
// Longer than the server may hold a claim open.
const TIMEOUT_MS = WAIT_MS + 15_000;
/** How long it tries to give its leases back when it is stopped. */
const LEAVE_MS = 10_000;

let identity;

/** Aborts at Ctrl-C or SIGTERM; a second signal ends the process at once. */
const stop = new AbortController();
const stopped = new Promise((resolve) => stop.signal.addEventListener('abort', resolve));

/** For each kind what does it: a spec goes in, `{outcome, observations}` comes out. */
const checks = { dns: resolve };

function readOptions() {
  try {
    const { values } = parseArgs({
      options: {
        server: { type: 'string', default: 'http://127.0.0.1:8080' },
        hostname: { type: 'string', default: hostname() },
        identity: { type: 'string', default: 'agent-identity.json' },
        tasks: { type: 'string', default: 'Infinity' },
        check: { type: 'string', multiple: true, default: [] },
        keys: { type: 'string' },
        help: { type: 'boolean', short: 'h' },
      },
    });
    if (values.help) {
      console.log(USAGE);
      process.exit(0);
    }
    if (!/^(?:Infinity|0*[1-9]\d*)$/.test(values.tasks))
      throw new Error('--tasks must be a whole number from 1.');
    if (!/^https?:$/.test(URL.parse(values.server)?.protocol))
      throw new Error('--server must be a URL such as http://127.0.0.1:8080.');
    if (values.keys !== undefined) readKeys(values.keys);
    return values;
  } catch (error) {
    console.error(`${error.message}\n\n${USAGE}`);
    process.exit(2);
  }
}

/** What is printed may come from strangers: characters that change what a terminal shows are escaped. */
const printable = (text) =>
  text.replace(
    /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu,
    (character) => `\\u{${character.codePointAt(0).toString(16)}}`,
  );
const say = (line) => console.log(printable(line));
const warn = (line) => console.error(printable(line));

/**
 * Calls the control plane until it answers. Every call may be sent again after a failure: the server sees to that.
 * @param body what to POST; without it, GET
 * @param signal ends the call without an answer
 */
/** What operators see as this agent's version. */
const USER_AGENT = 'dns-agent-example/1';

async function call(path, body, { headers = {}, signal } = {}) {
  for (let attempt = 1; ; attempt++) {
    let waitMs = Math.min(30_000, 500 * 2 ** attempt) * (0.5 + Math.random() / 2);
    try {
      const response = await fetch(new URL(`/v1/agents${path}`, options.server), {
        method: body ? 'POST' : 'GET',
        headers: {
          'user-agent': USER_AGENT,
          ...(body && { 'content-type': 'application/json' }),
          ...credentials(),
          ...headers,
        },
        body: body && JSON.stringify(body),
        signal: AbortSignal.any([AbortSignal.timeout(TIMEOUT_MS), ...(signal ? [signal] : [])]),
      });
      const answer = await response.json();
      const retryAfter = Number(response.headers.get('retry-after'));
      if (response.ok) {
        // The server stops: until then another call would be of no use.
        if (retryAfter > 0) await sleep(retryAfter * 1_000, undefined, { signal });
        return answer;
      }
      const message = `${path}: ${answer.message}${hintAt(path, response.status)}`;
      if (!answer.retryable)
        throw Object.assign(new Error(message), { final: true, status: response.status });
      if (retryAfter > 0) waitMs = retryAfter * 1_000;
      warn(`${message} Again in ${Math.round(waitMs / 1_000)} s.`);
    } catch (error) {
      if (error.final || signal?.aborted) throw error;
      const why = error.cause?.code ?? error.message;
      warn(`${path}: no answer from ${options.server} (${why}). Again in ${Math.round(waitMs / 1_000)} s.`);
    }
    await sleep(waitMs, undefined, { signal });
  }
}

function credentials() {
  return identity ? { 'x-agent-id': String(identity.agent_id), 'x-agent-token': identity.auth_token } : {};
}

function hintAt(path, status) {
  if (path !== '/register' || status !== 409) return '';
  return ` An agent has the name ${options.hostname}: --hostname NAME takes another, --identity FILE keeps it apart.`;
}

/**
 * Goes on as who it was, or registers. A hostname may register once in ten minutes, and not while its agent counts as
 * alive, so a restarted agent needs the token that it had.
 * @returns how long until the next heartbeat is due
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
      const deadlineMs = await beat();
      say(`agent ${identity.agent_id}, as ${file} says`);
      return deadlineMs;
    } catch (error) {
      // The token has expired, somebody else was given the name, or the server has another database. If the name was
      // ours, the old token, which goes with the registration, gets it back.
      if (error.status !== 401) throw error;
      warn(`The server does not accept the token in ${file}; registering again.`);
    }
  }
  // An answer that is lost is asked for again, for the same agent.
  identity = await call('/register', { hostname }, { headers: { 'idempotency-key': randomUUID() } });
  writeFileSync(file, JSON.stringify({ server, hostname, ...identity }), { mode: 0o600 });
  say(`registered ${hostname} as agent ${identity.agent_id}`);
  return beat();
}

/** The bundle that was accepted last is kept beside the identity. */
const configFile = options.identity.replace(/(\.json)?$/, '.config.json');

/** The revision that was seen last, and what the next heartbeats say came of it. */
let seenRevision;
let configStatus = {};

/** Says that the agent lives, and hears which configuration is in force. @returns how long that is good for */
async function beat() {
  const answer = await call('/heartbeat', { agent_id: identity.agent_id, ...configStatus });
  const { next_deadline_ms, config_revision } = answer;
  if (config_revision && config_revision !== seenRevision) {
    seenRevision = config_revision;
    // Not awaited: heartbeats go on while it is fetched.
    if (options.keys) configure(config_revision).catch(giveUp);
    else say(`configuration ${config_revision} is in force; with --keys FILE it would be fetched`);
  }
  return next_deadline_ms;
}

/** Fetches the configuration in force, and uses it only if it is genuine and not older than the last. */
async function configure(revision) {
  if (readLast(configFile)?.revision !== revision) {
    try {
      const bundle = await call('/config');
      const config = acceptBundle(bundle, options.keys, configFile);
      // Here an agent puts it to use; if that fails, it says so in the same way.
      say(`configuration ${bundle.revision}: ${JSON.stringify(config)}`);
      revision = bundle.revision;
    } catch (error) {
      warn(`configuration ${revision} must not be used: ${error.message}`);
      const config_message = error.message.slice(0, 1_000);
      configStatus = { config_revision: revision, config_status: 'failed', config_message };
      return;
    }
  }
  configStatus = { config_revision: revision, config_status: 'applied' };
}

async function keepAlive(deadlineMs) {
  for (;;) {
    await sleep(deadlineMs / 2);
    deadlineMs = await beat();
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

/** How many claims there were. */
let claims = 0;

/**
 * Divides what is left among the kinds, since a claim is granted its capacity of each. If there are fewer tasks left than
 * kinds, each claim asks for the next kinds.
 */
function capacitiesFor(left) {
  const kinds = Object.keys(checks);
  const first = claims++ % kinds.length;
  const shares = kinds.map((_, i) => Math.min(CAPACITY, Math.ceil((left - i) / kinds.length)));
  return Object.fromEntries(
    shares.flatMap((share, i) => (share > 0 ? [[kinds[(first + i) % kinds.length], share]] : [])),
  );
}

/** Waits for work. @returns at most so many leases; none if there was nothing to do, or the agent is stopped */
async function claim(left) {
  const capacities = capacitiesFor(left);
  const kinds = Object.keys(checks).length;
  const isForAll = Object.keys(capacities).length === kinds;
  // The first round looks at each kind, to find what is there at once.
  const wait_ms = isForAll ? WAIT_MS : claims <= kinds ? 0 : SHORT_WAIT_MS;
  try {
    // The key makes a repeated claim give the same leases, so that none is lost with an answer that did not arrive.
    const { leases } = await call(
      '/claim',
      { agent_id: identity.agent_id, capacities, wait_ms },
      { headers: { 'idempotency-key': randomUUID() }, signal: stop.signal },
    );
    return leases;
  } catch (error) {
    // The server grants nothing to a caller that has hung up.
    if (stop.signal.aborted) return [];
    throw error;
  }
}

/** What a task is about, in a word: the first value of its spec. */
function targetOf({ kind: _, query, host, url, ...others }) {
  const value = query ?? host ?? url ?? Object.values(others)[0] ?? '';
  return typeof value === 'string' ? value : JSON.stringify(value);
}

/** Does what was claimed, until it is done or the agent is stopped, and reports: what is not done is given back. */
async function work(leases) {
  const completed = new Map();
  const done = leases.map(async ({ lease_id, kind, spec, traceparent }) => {
    const what = `lease ${lease_id}: ${kind} ${targetOf(spec)}`;
    try {
      const result = await checks[kind](spec);
      // An agent that sends traces itself names its own span here, which is below the lease's.
      completed.set(lease_id, { lease_id, traceparent, ...result });
      const seen = (result.observations ?? [])
        .map(({ name, value }) => `${name}=${JSON.stringify(value)}`)
        .join(' ');
      say(`${what} ${result.outcome} ${seen.length > 200 ? `${seen.slice(0, 200)}...` : seen}`);
    } catch (error) {
      warn(`${what} failed: ${error.message}`);
    }
  });
  await Promise.race([Promise.all(done), stopped]);
  const cancelled = leases
    .filter(({ lease_id }) => !completed.has(lease_id))
    .map(({ lease_id }) => ({ lease_id }));
  const report = { agent_id: identity.agent_id, completed: [...completed.values()], cancelled };
  if (cancelled.length > 0) say(`given back: ${cancelled.map(({ lease_id }) => lease_id).join(', ')}`);
  const { rejected = [] } = await call('/report', report);
  // One that is rejected does not end the agent: the others were taken, and its task is tried again when the lease ends.
  for (const { lease_id, reason, details } of rejected)
    warn(`lease ${lease_id} was rejected: ${reason} ${details ? JSON.stringify(details) : ''}`);
}

async function main() {
  const holder = lockIdentity(options.identity);
  if (holder !== undefined)
    throw new Error(
      `${options.identity} is in use by process ${holder}; give this one --identity FILE --hostname NAME.`,
    );
  for (const file of options.check) {
    Object.assign(checks, (await import(pathToFileURL(absolute(file)))).default);
  }
  keepAlive(await identify()).catch(giveUp);
  for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => stop.abort());
  stopped.then(() =>
    setTimeout(giveUp, LEAVE_MS, new Error('No answer: the leases end by themselves.')).unref(),
  );

  let left = Number(options.tasks);
  while (left > 0 && !stop.signal.aborted) {
    const leases = await claim(left);
    if (leases.length > 0) await work(leases);
    left -= leases.length;
  }
  if (stop.signal.aborted) say('stopped');
  process.exit(0);
}

function giveUp(error) {
  warn(error.message);
  process.exit(1);
}

main().catch(giveUp);
