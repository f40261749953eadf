// Starts PostgreSQL for the tests and the bench.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import pg from 'pg';

/**
 * Starts it; what it is and how it is set: postgres-server.mjs.
 * @param {'tests' | 'bench'} purpose
 * @returns its address, how the names of databases must begin that go with it, and what ends it
 * @throws it does not start, and has said why
 */
export async function startPostgres(purpose) {
  const script = fileURLToPath(new URL('./postgres-server.mjs', import.meta.url));
  const server = spawn(process.execPath, [script, purpose], {
    stdio: ['pipe', 'pipe', 'inherit'],
    // What ends the caller, such as a keyboard's interrupt, must not end who cleans up after it.
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

/** The address of another database of the same server. */
export function databaseAt(url, name) {
  const address = new URL(url);
  address.pathname = `/${name}`;
  return address.href;
}

/** Makes an empty database. @returns its address */
export async function createDatabase(url, name) {
  const client = new pg.Client(url);
  await client.connect();
  await client.query(`CREATE DATABASE "${name}"`).finally(() => client.end());
  return databaseAt(url, name);
}
