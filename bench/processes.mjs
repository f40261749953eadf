// The processes that a bench measures, and how to talk to them.
import { spawn } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { Agent, request } from 'node:http';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { createDatabase, startPostgres } from '../scripts/postgres.mjs';

const HOST = '127.0.0.1';
const START_MS = 20_000;
const STOP_MS = 10_000;

export const ADMIN_TOKEN = 'bench-admin-token-of-no-value';

const pathOf = (relative) => fileURLToPath(new URL(relative, import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'control-plane-bench-'));
const running = new Set();

// However the bench ends, what it started ends with it.
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL');
  rmSync(folder, { recursive: true, force: true });
});
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => process.exit(1));

/** Has the servers that are started from now on keep their data in PostgreSQL; it ends with {@link stopDatabase}. */
export async function usePostgres() {
  postgres = await startPostgres('bench');
}

let postgres;

export async function stopDatabase() {
  await postgres?.stop();
}

/** Makes an empty database. @returns its address */
async function newDatabase(name) {
  return postgres
    ? createDatabase(postgres.url, postgres.prefix + name)
    : `sqlite://${join(folder, `${name}.db`)}`;
}

/**
 * Starts the built server on an empty database. Its quotas are enforced and so high that none is met.
 * @param settings what is to be set otherwise; undefined is the program's own default
 */
export async function startServer(name, settings = {}) {
  return startOn(await newDatabase(name), settings);
}

/** Starts servers on one empty database. */
export async function startReplicas(name, count) {
  const database = await newDatabase(name);
  return Promise.all(Array.from({ length: count }, () => startOn(database)));
}

function startOn(database, settings = {}) {
  return start(
    '../dist/main.js',
    () => [],
    (port) => ({
      CONTROL_PLANE_BIND: `${HOST}:${port}`,
      CONTROL_PLANE_DATABASE_URL: database,
      CONTROL_PLANE_SIGNING_KEY_FILE: join(folder, 'signing-key.pem'),
      CONTROL_PLANE_ADMIN_TOKEN: ADMIN_TOKEN,
      CONTROL_PLANE_LOG_LEVEL: 'info',
      CONTROL_PLANE_QUOTA_REGISTER: 'off',
      CONTROL_PLANE_REGISTER_PER_IP: 'off',
      CONTROL_PLANE_REGISTER_TOTAL: 'off',
      CONTROL_PLANE_QUOTA_OPERATOR: 'off',
      CONTROL_PLANE_QUOTA_HEARTBEAT: '1000000/1s,1000000',
      CONTROL_PLANE_QUOTA_CLAIM: '1000000/1s,1000000',
      CONTROL_PLANE_QUOTA_REPORT: '1000000/1s,1000000',
      // A lease must not run out between its claim and its report on a slow machine.
      CONTROL_PLANE_LEASE_DURATION_MS: '600000',
      ...settings,
    }),
  );
}

/** Starts the bare Fastify process. */
export function startBare() {
  return start(
    './bare.mjs',
    (port) => [String(port)],
    () => ({}),
  );
}

async function start(script, args, settings) {
  const port = await freePort();
  // Only what a process needs: a CONTROL_PLANE_ variable of the caller would change what is measured.
  const { PATH, HOME, TMPDIR } = process.env;
  const env = { PATH, HOME, TMPDIR, NODE_ENV: 'production', ...settings(port) };
  const log = openSync('/dev/null', 'w');
  const argv = [pathOf(script), ...args(port)];
  const child = spawn(process.execPath, argv, { env, cwd: folder, stdio: ['ignore', log, 'inherit'] });
  closeSync(log);
  running.add(child);
  let over;
  const exited = new Promise((resolve) => {
    child.once('exit', (code, signal) => {
      running.delete(child);
      over = `${script} ended by ${signal ?? `code ${code}`}`;
      resolve();
    });
  });
  const agent = new Agent({ keepAlive: true });
  for (const until = Date.now() + START_MS; ; await new Promise((resolve) => setTimeout(resolve, 20))) {
    if (over) throw new Error(over);
    if (await answers(agent, port)) break;
    if (Date.now() > until) throw new Error(`${script} did not start within ${START_MS} ms`);
  }
  return {
    url: `http://${HOST}:${port}`,
    /** Resident memory in MiB. */
    memory: () => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${child.pid}/status`, 'utf8'))[1]) / 1024,
    /** What the thread of the event loop has used of the processor, in ms: to 10 ms. */
    loopMs: () => {
      const fields = readFileSync(`/proc/${child.pid}/task/${child.pid}/stat`, 'utf8')
        .split(') ')[1]
        .split(' ');
      return (Number(fields[11]) + Number(fields[12])) * 10;
    },
    /** Reads an answer as text, as the admin. @throws where the status is not 2xx */
    get: async (path) => {
      const { status, text } = await send(agent, port, 'GET', path, '', {
        authorization: `Bearer ${ADMIN_TOKEN}`,
      });
      if (status < 200 || status > 299) throw new Error(`GET ${path}: ${status} ${text.slice(0, 300)}`);
      return text;
    },
    /** Sends a JSON body. @returns the parsed answer @throws where the status is not 2xx */
    post: async (path, body, headers = {}) => {
      const { status, text } = await send(agent, port, 'POST', path, JSON.stringify(body), headers);
      if (status < 200 || status > 299) throw new Error(`POST ${path}: ${status} ${text.slice(0, 300)}`);
      return JSON.parse(text);
    },
    stop: async () => {
      agent.destroy();
      child.kill('SIGTERM');
      const overdue = setTimeout(() => child.kill('SIGKILL'), STOP_MS);
      await exited;
      clearTimeout(overdue);
    },
  };
}

function answers(agent, port) {
  return send(agent, port, 'GET', '/healthz').then(
    () => true,
    () => false,
  );
}

function send(agent, port, method, path, body = '', headers = {}) {
  return new Promise((resolve, reject) => {
    const length = Buffer.byteLength(body);
    const outgoing = request(
      {
        host: HOST,
        port,
        path,
        method,
        agent,
        headers: { 'content-type': 'application/json', 'content-length': length, ...headers },
      },
      (response) => {
        const chunks = [];
        response.on('data', (chunk) => chunks.push(chunk));
        response.on('error', reject);
        response.on('end', () =>
          resolve({ status: response.statusCode, text: Buffer.concat(chunks).toString() }),
        );
      },
    );
    outgoing.on('error', reject);
    outgoing.end(body);
  });
}

function freePort() {
  return new Promise((resolve, reject) => {
    const probe = createServer();
    probe.once('error', reject);
    probe.listen(0, HOST, () => {
      const { port } = probe.address();
      probe.close(() => resolve(port));
    });
  });
}
