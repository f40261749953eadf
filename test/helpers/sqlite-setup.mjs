import { execFileSync } from 'node:child_process';
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** Makes a migrated SQLite file, of which each test's server gets a copy: a third of what a start costs is the migration. */
export default function setup() {
  const folder = mkdtempSync(join(tmpdir(), 'control-plane-template-'));
  const template = join(folder, 'template.db');
  const program = fileURLToPath(new URL('../../dist/main.js', import.meta.url));
  execFileSync(process.execPath, [program, 'migrate'], {
    env: { CONTROL_PLANE_DATABASE_URL: `sqlite://${template}`, CONTROL_PLANE_LOG_LEVEL: 'error' },
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  // Read by harness.ts; the folder goes in sqlite-teardown.mjs.
  process.env.CONTROL_PLANE_TEST_SQLITE_TEMPLATE = template;
  globalThis.sqliteTemplates = [...(globalThis.sqliteTemplates ?? []), folder];
}
