// Starts PostgreSQL for the tests and the bench.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import pg from 'pg';

/**
 * Starts PostgreSQL; see postgres-server.mjs.
 * @param {'tests' | 'bench'} purpose
 * @returns its URL, the prefix of database names that are removed with it, and a function that stops it
 * @throws Error it did not start; the reason is on standard error
 */
export async function startPostgres(purpose) {
  const script = fileURLToPath(new URL('./postgres-server.mjs', import.meta.url));
  const server = spawn(process.execPath, [script, purpose], {
    stdio: ['pipe', 'pipe', 'inherit'],
    // A Ctrl-C that ends the caller must not end this process, which cleans up after it.
    detached: true,
  });
  const exit = once(server, 'exit');
  const ready = once(createInterface(server.stdout), 'line');
  const line = await Promise.race([ready.then(([text]) => text), exit.then(() => undefined)]);
  if (line === undefined) throw new Error('There is no PostgreSQL, see above.');
  const stop = async () => {
    server.stdin.end();
    await exit;
  };
  return { ...JSON.parse(line), stop };
}

/** Returns the URL of another database of the same server. */
export function databaseAt(url, name) {
  const address = new URL(url);
  address.pathname = `/${name}`;
  return address.href;
}

/** Creates an empty database. @returns its URL */
export async function createDatabase(url, name) {
  const client = new pg.Client(url);
  await client.connect();
  await client.query(`CREATE DATABASE "${name}"`).finally(() => client.end());
  return databaseAt(url, name);
}
