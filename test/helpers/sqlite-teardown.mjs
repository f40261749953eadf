import { rmSync } from 'node:fs';

/** Deletes what sqlite-setup.mjs made. */
export default function teardown() {
  for (const folder of globalThis.sqliteTemplates?.splice(0) ?? [])
    rmSync(folder, { recursive: true, force: true });
}
