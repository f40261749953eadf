// A complete probe: it registers, sends heartbeats, claims tasks, runs them and reports. With --keys it
// fetches and verifies configurations (config-bundle.mjs). It does DNS lookups itself; --check adds other kinds.
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
  --hostname NAME  the agent's name; it waits while another agent of that name is alive (default: that of the
                   identity, or this machine's)
  --identity FILE  where id and token are stored, one file for each agent (default: agent-identity.json)
  --tasks N        end after N tasks; otherwise work until Ctrl-C, which gives unfinished leases back
  --check FILE     add kinds: a module whose default export maps kinds to functions, may be repeated;
                   such as examples/whois-kind/check.mjs
  --keys FILE      fetch configurations, and accept those signed by these keys: $URL/.well-known/jwks.json, fetched
                   over a trusted channel
  --help           this text`;

const options = readOptions();

const CAPACITY = 10;
const WAIT_MS = 20_000;
/** The wait of a claim for only some of the kinds, in ms: 12 claims a minute are within the quota. */
const SHORT_WAIT_MS = 5_000;
// Longer than the server can hold a claim open.
const TIMEOUT_MS = WAIT_MS + 15_000;
/** How long it tries to return its leases when it is stopped, in ms. */
const LEAVE_MS = 10_000;

let identity;

/** Aborts on Ctrl-C or SIGTERM; a second signal ends the process at once. */
const stop = new AbortController();
const stopped = new Promise((resolve) => stop.signal.addEventListener('abort', resolve));

/** The check of each kind: a function from the spec to `{outcome, observations}`. */
const checks = { dns: resolve };

function readOptions() {
  try {
    const { values } = parseArgs({
      options: {
        server: { type: 'string', default: 'http://127.0.0.1:8080' },
        hostname: { type: 'string' },
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
    return { ...values, hostname: values.hostname ?? hostname(), isNamed: values.hostname !== undefined };
  } catch (error) {
    console.error(`${error.message}\n\n${USAGE}`);
    process.exit(2);
  }
}

/** Escapes characters that change what a terminal shows: the text may come from other systems. */
const printable = (text) =>
  text.replace(
    /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu,
    (character) => `\\u{${character.codePointAt(0).toString(16)}}`,
  );
const say = (line) => console.log(printable(line));
const warn = (line) => console.error(printable(line));

/** The version that operators see for this agent. */
const USER_AGENT = 'dns-agent-example/1';

/**
 * Calls the control plane until it answers. A failed call can be repeated: the server ensures that it takes effect once.
 * @param body the body of a POST; without it, GET
 * @param signal ends the call without an answer
 */
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
        // The server is stopping: another call before that time would be useless.
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
      // Of some failures, such as a port that fetch never calls, the cause has a message and no code.
      const why = error.cause?.code ?? error.cause?.message ?? error.message;
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
 * Reads the stored identity. One that can't be used here is not replaced: its token can't be recovered.
 * @returns undefined if there is no file
 */
function readIdentity() {
  const { server, hostname, isNamed, identity: file } = options;
  let kept;
  try {
    kept = JSON.parse(readFileSync(file, 'utf8'));
  } catch (error) {
    if (error.code === 'ENOENT') return undefined;
    throw new Error(`${file} can't be read: ${error.message}. --identity FILE names another file.`);
  }
  const keptServer = URL.parse(kept?.server)?.href;
  if (keptServer === undefined || kept.auth_token === undefined)
    throw new Error(`${file} is not an agent's identity; --identity FILE names another file.`);
  if (keptServer !== new URL(server).href)
    throw new Error(
      `${file} has an identity for ${kept.server}, not for ${server}; --identity FILE names another file.`,
    );
  if (isNamed && kept.hostname !== hostname)
    throw new Error(
      `${file} is the identity of ${kept.hostname}, not of ${hostname}; --identity FILE names another file, ` +
        `--hostname ${kept.hostname} uses this one.`,
    );
  // A machine may get another name; the agent keeps the one that it registered with.
  options.hostname = kept.hostname;
  return kept;
}

/**
 * Uses the stored identity, or registers. A hostname can register once in ten minutes, and not while its agent counts as alive,
 * so a restarted agent needs its old token.
 * @returns how long until the next heartbeat is due
 */
async function identify() {
  const { server, identity: file } = options;
  identity = readIdentity();
  const { hostname } = options;
  if (identity) {
    try {
      const deadlineMs = await beat();
      say(`agent ${identity.agent_id}, as ${file} says`);
      return deadlineMs;
    } catch (error) {
      // The token has expired, another agent got the name, or the server has another database. If the name was ours, the
      // registration gets it back, because it sends the old token.
      if (error.status !== 401) throw error;
      warn(`The server does not accept the token in ${file}; registering again.`);
    }
  }
  // With the key, a repeated call after a lost answer returns the same agent.
  identity = await call('/register', { hostname }, { headers: { 'idempotency-key': randomUUID() } });
  writeFileSync(file, JSON.stringify({ server, hostname, ...identity }), { mode: 0o600 });
  say(`registered ${hostname} as agent ${identity.agent_id}`);
  return beat();
}

/** The file of the last accepted bundle, beside the identity. */
const configFile = options.identity.replace(/(\.json)?$/, '.config.json');

/** The last revision that was announced, and its status for the next heartbeats. */
let seenRevision;
let configStatus = {};

/** Sends a heartbeat, and learns which configuration is in force. @returns when the next one is due at the latest, in ms */
async function beat() {
  const answer = await call('/heartbeat', { agent_id: identity.agent_id, ...configStatus });
  const { next_deadline_ms, config_revision } = answer;
  if (config_revision && config_revision !== seenRevision) {
    seenRevision = config_revision;
    // Not awaited, so that heartbeats continue meanwhile.
    if (options.keys) configure(config_revision).catch(giveUp);
    else say(`configuration ${config_revision} is in force; with --keys FILE it would be fetched`);
  }
  return next_deadline_ms;
}

/** Fetches the configuration in force, and uses it only if it is genuine and not older than the last one. */
async function configure(revision) {
  if (readLast(configFile)?.revision !== revision) {
    try {
      const bundle = await call('/config');
      const config = acceptBundle(bundle, options.keys, configFile);
      // An agent would apply it here, and report a failure in the same way.
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

/** Does a DNS lookup. A failed lookup is a result too: the task is completed. */
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

/** How many claims were sent. */
let claims = 0;

/**
 * Divides the remaining tasks among the kinds, because a claim is granted its capacity for each kind. If fewer tasks are left
 * than kinds, each claim asks for the next kinds.
 */
function capacitiesFor(left) {
  const kinds = Object.keys(checks);
  const first = claims++ % kinds.length;
  const shares = kinds.map((_, i) => Math.min(CAPACITY, Math.ceil((left - i) / kinds.length)));
  return Object.fromEntries(
    shares.flatMap((share, i) => (share > 0 ? [[kinds[(first + i) % kinds.length], share]] : [])),
  );
}

/** Waits for work. @returns at most `left` leases; none if there is no work, or the agent is stopped */
async function claim(left) {
  const capacities = capacitiesFor(left);
  const kinds = Object.keys(checks).length;
  const isForAll = Object.keys(capacities).length === kinds;
  // The first claims do not wait, so that each kind is asked for at once.
  const wait_ms = isForAll ? WAIT_MS : claims <= kinds ? 0 : SHORT_WAIT_MS;
  try {
    // With the key, a repeated claim returns the same leases, so that a lost answer loses none.
    const { leases } = await call(
      '/claim',
      { agent_id: identity.agent_id, capacities, wait_ms },
      { headers: { 'idempotency-key': randomUUID() }, signal: stop.signal },
    );
    return leases;
  } catch (error) {
    // The server grants nothing to a caller that has disconnected.
    if (stop.signal.aborted) return [];
    throw error;
  }
}

/** Returns the target of a task for messages: the first value of its spec. */
function targetOf({ kind: _, query, host, url, ...others }) {
  const value = query ?? host ?? url ?? Object.values(others)[0] ?? '';
  return typeof value === 'string' ? value : JSON.stringify(value);
}

/** Runs the claimed tasks until they are done or the agent is stopped, and reports; unfinished leases are reported as cancelled. */
async function work(leases) {
  const completed = new Map();
  const done = leases.map(async ({ lease_id, kind, spec, traceparent, start_in_ms }) => {
    const what = `lease ${lease_id}: ${kind} ${targetOf(spec)}`;
    // The server spaces the starts of all agents at a target that has a rate.
    if (start_in_ms > 0) await sleep(start_in_ms);
    try {
      const result = await checks[kind](spec);
      // An agent that sends traces puts its own span here, a child of the lease's.
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
  if (cancelled.length > 0) say(`cancelled: ${cancelled.map(({ lease_id }) => lease_id).join(', ')}`);
  const { rejected = [] } = await call('/report', report);
  // A rejected lease does not end the agent: the others were accepted, and its task is retried when the lease ends.
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
