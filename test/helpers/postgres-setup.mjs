import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { createDatabase, startPostgres } from '../../scripts/postgres.mjs';

/**
 * Has a PostgreSQL ready for the tests, with a migrated database of which each test's server gets a copy, and tells them by
 * the environment where they are.
 */
export default async function setup() {
  const { url, prefix, stop } = await startPostgres('tests');
  // Ended by postgres-teardown.mjs.
  globalThis.stopPostgres = stop;
  const template = `${prefix}template`;
  const migrated = await createDatabase(url, template);
  const program = fileURLToPath(new URL('../../dist/main.js', import.meta.url));
  execFileSync(process.execPath, [program, 'migrate'], {
    env: { CONTROL_PLANE_DATABASE_URL: migrated, CONTROL_PLANE_LOG_LEVEL: 'error' },
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  process.env.CONTROL_PLANE_TEST_POSTGRES_URL = url;
  process.env.CONTROL_PLANE_TEST_POSTGRES_TEMPLATE = template;
  process.env.CONTROL_PLANE_TEST_POSTGRES_PREFIX = prefix;
}
