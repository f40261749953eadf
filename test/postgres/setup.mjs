import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

/** Has a PostgreSQL ready for the tests, and tells them by the environment where it is. */
export default async function setup() {
  const server = spawn(process.execPath, [fileURLToPath(import.meta.resolve('./server.mjs'))], {
    stdio: ['pipe', 'pipe', 'inherit'],
    // What ends the tests, such as a keyboard's interrupt, must not end who cleans up after them.
    detached: true,
  });
  const exit = once(server, 'exit');
  const ready = once(createInterface(server.stdout), 'line');
  const line = await Promise.race([ready.then(([text]) => text), exit.then(() => undefined)]);
  if (line === undefined) throw new Error('The tests have no PostgreSQL, see above.');
  const { url, template } = JSON.parse(line);
  process.env.CONTROL_PLANE_TEST_POSTGRES_URL = url;
  process.env.CONTROL_PLANE_TEST_POSTGRES_TEMPLATE = template;
  globalThis.stopPostgres = async () => {
    server.stdin.end();
    await exit;
  };
}
