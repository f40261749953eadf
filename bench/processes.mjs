// The processes that a bench measures, and their databases. All of them end with the bench, however that ends.
import { execFileSync, fork, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { createDatabase, startPostgres } from '../scripts/postgres.mjs';
import { Connection } from './connection.mjs';
import { COMMITS } from './wire.mjs';

const HOST = '127.0.0.1';
const START_MS = 60_000;
const STOP_MS = 20_000;

export const ADMIN_TOKEN = 'bench-admin-token-of-no-value';
export const OPERATOR = { authorization: `Bearer ${ADMIN_TOKEN}` };

/**
 * Settings for rolling a fleet out from one address and enqueueing with one token. Quotas of agents are the defaults.
 */
export const ROLL_OUT = {
  CONTROL_PLANE_REGISTER_PER_IP: '1000000/1m,1000000',
  CONTROL_PLANE_REGISTER_TOTAL: '1000000/1h,1000000',
  CONTROL_PLANE_QUOTA_OPERATOR: '1000000/1m,1000000',
};

/**
 * Quotas that are enforced but never reached, and leases that do not expire between claim and report on a slow
 * machine.
 */
export const UNTHROTTLED = {
  ...ROLL_OUT,
  CONTROL_PLANE_QUOTA_HEARTBEAT: '1000000/1s,1000000',
  CONTROL_PLANE_QUOTA_CLAIM: '1000000/1s,1000000',
  CONTROL_PLANE_QUOTA_REPORT: '1000000/1s,1000000',
  CONTROL_PLANE_QUOTA_METRICS: '1000000/1s,1000000',
  CONTROL_PLANE_QUOTA_PUBLIC: '1000000/1s,1000000',
  CONTROL_PLANE_LEASE_DURATION_MS: '3600000',
};

const pathOf = (relative) => fileURLToPath(new URL(relative, import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'control-plane-bench-'));
const running = new Set();

process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL');
  rmSync(folder, { recursive: true, force: true });
});
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => process.exit(1));

let postgres;

/** Returns the address of this run's PostgreSQL server, for an administrator; starts it at the first call. */
export async function postgresUrl() {
  postgres ??= startPostgres('bench');
  return (await postgres).url;
}

/** Ends the PostgreSQL of this run, if there is one. */
export async function stopPostgres() {
  if (postgres) await (await postgres).stop();
}

let databases = 0;

/** Creates an empty database. @param {'sqlite' | 'postgres'} kind @returns its address */
export async function newDatabase(kind) {
  databases += 1;
  if (kind === 'sqlite') return `sqlite://${join(folder, `${databases}.db`)}`;
  const url = await postgresUrl();
  return createDatabase(url, `${(await postgres).prefix}${databases}`);
}

/** Creates the settings of a measured server. */
export const settingsOf = (database, port) => ({
  CONTROL_PLANE_BIND: `${HOST}:${port}`,
  CONTROL_PLANE_DATABASE_URL: database,
  CONTROL_PLANE_SIGNING_KEY_FILE: join(folder, 'signing-key.pem'),
  CONTROL_PLANE_ADMIN_TOKEN: ADMIN_TOKEN,
  CONTROL_PLANE_DRAIN_MS: '0',
});

/**
 * Starts the built server on an empty database.
 * @param kind of the database
 * @param options.settings other settings: by default, quotas that are never reached
 * @param options.core the core that it is pinned to
 */
export async function startServer(kind, { settings = UNTHROTTLED, core } = {}) {
  return startOn(await newDatabase(kind), settings, core);
}

/** Starts servers on one empty database in PostgreSQL. @returns them, and the database's address */
export async function startReplicas(count, { settings = UNTHROTTLED } = {}) {
  const database = await newDatabase('postgres');
  // The first migrates the database, and makes the signing key that all use.
  const first = await startOn(database, settings);
  const others = await Promise.all(Array.from({ length: count - 1 }, () => startOn(database, settings)));
  return { servers: [first, ...others], database };
}

const startOn = (database, settings, core) =>
  start('../dist/main.js', (port) => ({ env: { ...settingsOf(database, port), ...settings }, core }));

/** Starts the bare HTTP server that never answers a claim. */
export const startBareWait = () => start('./bare-wait.mjs', (port) => ({ args: [String(port)] }));

/** Starts the bare Fastify process. */
export const startBare = ({ core } = {}) => start('./bare.mjs', (port) => ({ args: [String(port)], core }));

// Only the variables that a process needs: a CONTROL_PLANE_ variable of the caller would change the measurement.
const { PATH, HOME, TMPDIR } = process.env;
const ENVIRONMENT = { PATH, HOME, TMPDIR, NODE_ENV: 'production' };

async function start(script, options) {
  const port = await freePort();
  const { args = [], env = {}, core } = options(port);
  const log = openSync('/dev/null', 'w');
  const argv = [
    ...(core === undefined ? [] : ['taskset', '-c', String(core)]),
    ...[process.execPath, '--expose-gc', '--import', pathOf('./probe.mjs'), pathOf(script), ...args],
  ];
  const child = spawn(argv[0], argv.slice(1), {
    env: { ...ENVIRONMENT, ...env },
    cwd: folder,
    stdio: ['ignore', log, 'pipe', 'ipc'],
  });
  closeSync(log);
  const server = new ServerProcess(child, port, script);
  await server.listening();
  return server;
}

/** A measured server. */
class ServerProcess {
  #child;
  #exit;
  #over;
  /** The end of its standard error. */
  #said = '';
  #connection;

  constructor(child, port, script) {
    this.#child = child;
    this.script = script;
    this.port = port;
    this.url = `http://${HOST}:${port}`;
    this.#connection = new Connection(port);
    running.add(child);
    child.stderr.setEncoding('utf8').on('data', (text) => {
      this.#said = (this.#said + text).slice(-4_000);
    });
    this.#exit = once(child, 'close').then(([code, signal]) => {
      running.delete(child);
      this.#over = `${script} ended by ${signal ?? `code ${code}`}\n${this.#said}`;
    });
  }

  /** Waits until it serves. @throws the process ended, or does not serve in time */
  async listening() {
    for (const until = Date.now() + START_MS; ; await new Promise((resolve) => setTimeout(resolve, 20))) {
      if (this.#over) throw new Error(this.#over);
      const answer = await this.#connection.request('GET', '/healthz').catch(() => undefined);
      if (answer) return;
      if (Date.now() > until) throw new Error(`${this.script} did not start within ${START_MS} ms`);
    }
  }

  /** Sends a JSON body. @returns the parsed answer @throws its status is not 2xx */
  post(path, body, headers) {
    return this.#connection.post(path, body, headers);
  }

  /** Sends a request; see Connection. */
  request(method, path, options) {
    return this.#connection.request(method, path, options);
  }

  /** Reads an answer as text, as the admin. @throws its status is not 200 */
  async get(path) {
    const { status, text } = await this.#connection.request('GET', path, { headers: OPERATOR });
    if (status !== 200) throw new Error(`GET ${path}: ${status} ${text.slice(0, 300)}`);
    return text;
  }

  /**
   * Reads the resources that the process has used so far; see probe.mjs. @param collect whether to collect garbage
   * first
   */
  async usage({ collect = false } = {}) {
    const answer = once(this.#child, 'message');
    this.#child.send({ collect });
    return (await Promise.race([answer, this.#ended()]))[0];
  }

  /** Reads the number of its commits; undefined if it does not count them. */
  async commits() {
    const { text } = await this.request('GET', '/metrics', { headers: OPERATOR });
    const value = new RegExp(`^${COMMITS} (\\d+)`, 'm').exec(text)?.[1];
    return value === undefined ? undefined : Number(value);
  }

  /** Reads the processor time of the event loop's thread, in ms, exact to 10 ms. */
  loopMs() {
    const { pid } = this.#child;
    const fields = readFileSync(`/proc/${pid}/task/${pid}/stat`, 'utf8').split(') ')[1].split(' ');
    return (Number(fields[11]) + Number(fields[12])) * 10;
  }

  async stop() {
    this.#connection.close();
    this.#child.kill('SIGTERM');
    const overdue = setTimeout(() => this.#child.kill('SIGKILL'), STOP_MS);
    await this.#exit;
    clearTimeout(overdue);
  }

  async #ended() {
    await this.#exit;
    throw new Error(this.#over);
  }
}

/**
 * Starts a script of the bench as a separate process.
 * @param options.core the core that it is pinned to
 * @param options.onEvent called with the messages that it sends without a request: those with an `event`
 * @returns `ask` sends a message and returns the answer; `stop` ends it
 */
export function startScript(script, { args = [], env = {}, core, onEvent = () => undefined } = {}) {
  const log = openSync('/dev/null', 'w');
  const child = fork(pathOf(script), args, {
    env: { ...ENVIRONMENT, ...env },
    cwd: folder,
    stdio: ['ignore', log, 'inherit', 'ipc'],
  });
  closeSync(log);
  // Its threads are created after this, and inherit it.
  if (core !== undefined) execFileSync('taskset', ['-a', '-c', '-p', String(core), String(child.pid)]);
  running.add(child);
  const exit = once(child, 'exit').then(() => running.delete(child));
  let answered;
  child.on('message', (message) => (message.event ? onEvent(message) : answered.resolve(message)));
  exit.then(() => answered?.reject(new Error(`${script} ended`)));
  return {
    ask: (message) => {
      answered = Promise.withResolvers();
      child.send(message);
      return answered.promise.then(({ error, ...answer }) => {
        if (error) throw new Error(`${script}: ${error}`);
        return answer;
      });
    },
    stop: async () => {
      child.disconnect();
      const overdue = setTimeout(() => child.kill('SIGKILL'), STOP_MS);
      await exit;
      clearTimeout(overdue);
    },
  };
}

/** Lists the cores that this process may use; none if processes can't be pinned. */
export function pinnableCores() {
  try {
    execFileSync('taskset', ['-V'], { stdio: 'ignore' });
  } catch {
    return [];
  }
  const list = /^Cpus_allowed_list:\s*(\S+)/m.exec(readFileSync('/proc/self/status', 'utf8'))[1];
  return list.split(',').flatMap((range) => {
    const [first, last = first] = range.split('-').map(Number);
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  });
}

/** Reads how long all cores of the machine together were busy since it started, in ms. */
export function machineBusyMs() {
  const [user, nice, system, , , irq, softirq] = readFileSync('/proc/stat', 'utf8')
    .split('\n', 1)[0]
    .split(/ +/)
    .slice(1)
    .map(Number);
  return (user + nice + system + irq + softirq) * 10;
}

/** Reads the limit of open files, and so of sockets, of this process. */
export const maxOpenFiles = () =>
  Number(/^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))[1]);

/** Finds a free port below the ephemeral ones: a connection from an ephemeral port could connect to itself. */
async function freePort() {
  for (let i = 0; i < 100; i++) {
    const port = 10_000 + Math.floor(Math.random() * 20_000);
    const probe = createServer();
    const isFree = await new Promise((resolve) => {
      probe.once('error', () => resolve(false));
      probe.listen(port, HOST, () => resolve(true));
    });
    if (!isFree) continue;
    await once(probe.close(), 'close');
    return port;
  }
  throw new Error('no port is free');
}
