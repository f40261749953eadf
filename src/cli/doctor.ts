import { accessSync, constants, existsSync, statfsSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import type { Command } from 'commander';
import { Clock } from '../clock';
import { DatabaseError, DatabaseInUse, ForeignDatabase } from '../database/database-error';
import type { Statements } from '../database/statements';
import {
  adminTokenFile,
  type PostgresTarget,
  type Settings,
  type SqliteTarget,
  serverFile,
  signingKeysFile,
} from '../settings';
import { callApi } from './client';
import { CommandError, EXIT } from './command-error';
import { identifyServer } from './connection';
import { readServerFile } from './local-server';
import { escapeControls } from './print';
import type { Terminal } from './terminal';

type Verdict = 'ok' | 'warn' | 'FAIL';
type Finding = readonly [Verdict, subject: string, finding: string];

const MIB = 1024 * 1024;
/** Free space below which the check warns or fails, in bytes. */
const LOW_SPACE = 1024 * MIB;
const NO_SPACE = 64 * MIB;
/** How much clocks may differ, in ms. */
const CLOCK_TOLERANCE_MS = 60_000;
/** A clock before this instant is wrong: the program did not exist. */
const EARLIEST = Date.UTC(2026, 0, 1);

/** Adds the command that checks an installation. */
export function addDoctor(program: Command, terminal: Terminal): void {
  program
    .command('doctor')
    .description('check settings, files, database, clock, disk and server; changes nothing')
    .addHelpText(
      'after',
      '\nEach line is ok, warn or FAIL, with what to do. The exit code is 1 if one is FAIL.',
    )
    .action(async () => {
      for await (const [verdict, subject, finding] of checkAll(terminal)) {
        terminal.print(`${verdict.padEnd(4)}  ${subject.padEnd(10)}  ${escapeControls(finding)}`);
        if (verdict === 'FAIL') terminal.exitCode = EXIT.failed;
      }
    });
}

async function* checkAll(terminal: Terminal): AsyncGenerator<Finding> {
  let settings: Settings;
  try {
    settings = terminal.settings();
  } catch (error) {
    yield ['FAIL', 'settings', `${(error as Error).message}. Nothing else was checked.`];
    return;
  }
  yield settings.ignored.length > 0
    ? [
        'warn',
        'settings',
        `${settings.ignored.join(', ')} is the original control plane's, and means nothing here`,
      ]
    : ['ok', 'settings', 'every CONTROL_PLANE_* variable is known and in range'];
  const target = settings.database;
  if (target.type === 'postgres') {
    yield* checkPostgres(target, settings);
    yield await checkControlPlane(terminal, settings, false);
    return;
  }
  const { path } = target;
  let served = false;
  if (path === ':memory:') {
    yield ['warn', 'database', 'is in memory: it ends with the process'];
  } else if (!existsSync(dirname(path))) {
    yield [
      'FAIL',
      'folder',
      `${dirname(path)} does not exist; create it, with mode 700, for the server's user`,
    ];
  } else {
    yield checkFolder(dirname(path));
    yield* checkFiles(settings, path);
    yield checkSpace(dirname(path), settings.minFreeDisk);
    const lock = await probeLock(target);
    served = lock === 'served';
    if (existsSync(path)) yield* checkSqlite(settings, target, lock);
    else yield ['warn', 'database', `${path} does not exist; the first start makes it`];
  }
  yield checkClock(path);
  yield await checkControlPlane(terminal, settings, served);
}

function checkFolder(path: string): Finding {
  try {
    accessSync(path, constants.W_OK | constants.X_OK);
  } catch {
    return ['FAIL', 'folder', `${path} is not writable for this user; run as the server's user, or chown it`];
  }
  const open = (statSync(path).mode & 0o022) !== 0;
  return open
    ? ['warn', 'folder', `others may replace files in ${path}: chmod 700 ${path}`]
    : ['ok', 'folder', `${path} is writable for this user alone`];
}

function* checkFiles(settings: Settings, path: string): Generator<Finding> {
  const key = signingKeysFile(settings);
  const secrets = [adminTokenFile(settings.database), serverFile(settings.database), key];
  const there = [path, `${path}-wal`, `${path}-shm`, ...secrets].filter(isFile);
  let well = true;
  for (const file of there) {
    if ((statSync(file).mode & 0o077) === 0) continue;
    well = false;
    yield [secrets.includes(file) ? 'FAIL' : 'warn', 'files', `others may read ${file}: chmod 600 ${file}`];
  }
  if (well) yield ['ok', 'files', `${there.length} files, none open to others`];
}

function checkSpace(path: string, minFree: number): Finding {
  const { bavail, bsize } = statfsSync(path);
  const free = bavail * bsize;
  const finding = `${Math.floor(free / MIB)} MiB are free in ${path}`;
  if (free < Math.max(NO_SPACE, minFree))
    return ['FAIL', 'disk', `${finding}; make room: bulk writes are refused`];
  return free < LOW_SPACE ? ['warn', 'disk', `${finding}; make room soon`] : ['ok', 'disk', finding];
}

const isFile = (path: string): boolean => statSync(path, { throwIfNoEntry: false })?.isFile() === true;

type LockState = 'free' | 'served' | DatabaseError;

/** Finds out whether a process serves the database. */
async function probeLock(target: SqliteTarget): Promise<LockState> {
  const { lockDatabase } = await import('../database/sqlite.js');
  try {
    // A missing lock file is not created: no process holds it.
    if (existsSync(`${target.path}-lock`)) lockDatabase(target)();
    return 'free';
  } catch (error) {
    return error instanceof DatabaseInUse ? 'served' : (error as DatabaseError);
  }
}

async function* checkSqlite(
  settings: Settings,
  target: SqliteTarget,
  lock: LockState,
): AsyncGenerator<Finding> {
  const { path } = target;
  if (lock instanceof DatabaseError) yield ['FAIL', 'lock', lock.message];
  else yield ['ok', 'lock', lock === 'served' ? `a process serves ${path}` : `no process has ${path}`];
  const { inspectDatabase } = await import('../database/open-database.js');
  try {
    yield* await inspectDatabase(target, (statements) => checkContents(statements, settings));
  } catch (error) {
    const { message } = error as Error;
    if (error instanceof ForeignDatabase) yield ['FAIL', 'database', message];
    else {
      const reason = error instanceof DatabaseError ? message : `${path} can't be read: ${message}.`;
      yield ['FAIL', 'database', isFile(path) ? `${reason} If it is damaged, restore a backup` : reason];
    }
  }
}

async function checkContents(statements: Statements, { migrateOnStart }: Settings): Promise<Finding[]> {
  const findings: Finding[] = [];
  const rows = await statements.rows<{ integrity_check: string }>('PRAGMA integrity_check(1)');
  const verdict = rows[0]?.integrity_check;
  const orphans = await statements.rows('PRAGMA foreign_key_check');
  if (verdict !== 'ok') findings.push(['FAIL', 'integrity', `${verdict}; restore a backup`]);
  else if (orphans.length > 0)
    findings.push([
      'FAIL',
      'integrity',
      `${orphans.length} rows name others that are not there; restore a backup`,
    ]);
  else findings.push(['ok', 'integrity', 'the database is whole']);
  findings.push(await checkMigrations(statements, migrateOnStart));
  const { isBackup } = await import('../database/backup.js');
  if (await isBackup(statements))
    findings.push([
      'warn',
      'restore',
      'the database is a backup; its ids go on with a gap when it is started',
    ]);
  return findings;
}

async function checkMigrations(statements: Statements, migrateOnStart: boolean): Promise<Finding> {
  const { pendingMigrations } = await import('../database/migrations.js');
  try {
    const pending = await pendingMigrations(statements.manager.dataSource);
    if (pending.length === 0) return ['ok', 'migrations', 'all are applied'];
    return migrateOnStart
      ? ['warn', 'migrations', `${pending.length} are not applied; the next start applies them`]
      : ['FAIL', 'migrations', `${pending.length} are not applied: control-plane migrate`];
  } catch (error) {
    return ['FAIL', 'migrations', (error as Error).message];
  }
}

async function* checkPostgres(target: PostgresTarget, { migrateOnStart }: Settings): AsyncGenerator<Finding> {
  const { inspectDatabase } = await import('../database/open-database.js');
  const { checkServer, NOW } = await import('../database/postgres.js');
  try {
    yield* await inspectDatabase(target, async (statements) => {
      await checkServer(statements);
      const row = await statements.first<{ now: number; version: string }>(
        `SELECT ${NOW} AS now, current_setting('server_version') AS version`,
      );
      const apartMs = Math.abs((row?.now ?? 0) - new Clock().now());
      return [
        ['ok', 'database', `PostgreSQL ${row?.version} answers`],
        await checkMigrations(statements, migrateOnStart),
        apartMs > CLOCK_TOLERANCE_MS
          ? [
              'warn',
              'clock',
              `${Math.round(apartMs / 1_000)} s from the database's, which is the one that counts`,
            ]
          : ['ok', 'clock', "agrees with the database's"],
      ] satisfies Finding[];
    });
  } catch (error) {
    if (error instanceof DatabaseError) {
      yield ['FAIL', 'database', error.message];
      return;
    }
    yield [
      'FAIL',
      'database',
      `can't be reached or read (${(error as Error).message}); check CONTROL_PLANE_DATABASE_URL`,
    ];
  }
}

function checkClock(path: string): Finding {
  const now = new Clock().now();
  if (now < EARLIEST) return ['FAIL', 'clock', `it is ${new Date(now).toISOString()} here; set the clock`];
  // A modification time in the future shows that the clock was set back.
  const aheadMs = existsSync(path) ? statSync(path).mtimeMs - now : 0;
  return aheadMs > CLOCK_TOLERANCE_MS
    ? ['FAIL', 'clock', `${path} was changed ${Math.round(aheadMs / 1_000)} s in the future; set the clock`]
    : ['ok', 'clock', `it is ${new Date(now).toISOString()}`];
}

/**
 * Checks that the server is ready and accepts the token. It is `ok` only if it has proven to have this database: any
 * program can answer on a port.
 */
async function checkControlPlane(terminal: Terminal, settings: Settings, served: boolean): Promise<Finding> {
  const expected = served || settings.url !== undefined ? 'FAIL' : 'warn';
  try {
    const known = readServerFile(settings);
    const file = typeof known === 'object' ? known : undefined;
    const url = settings.url ?? file?.url;
    const identity = file && url !== undefined ? await identifyServer(url, file) : undefined;
    if (identity === 'stranger' && (settings.url === undefined || settings.token === undefined))
      return [
        expected,
        'server',
        `what answers at ${url} is not the server of this database; no token was sent to it`,
      ];
    const options = { timeout: 5, allowInProcess: false };
    const call = { method: 'GET', path: '/v1/tasks/stats', repeatable: true } as const;
    try {
      // Called once, without retries: a load balancer gets the same answer now.
      await callApi(terminal, settings, options, { ...call, path: '/readyz', repeatable: false });
    } catch (error) {
      if (!(error instanceof CommandError) || error.envelope === undefined) throw error;
      return ['FAIL', 'server', `it answers, but is not ready: ${inOneLine(error)}`];
    }
    await callApi(terminal, settings, options, call);
    return identity === 'proven'
      ? ['ok', 'server', `it answers at ${url}, is ready, has this database, and the token is good`]
      : [
          'warn',
          'server',
          `${url} is ready and answers to the token, but has not proven to be the server of this database`,
        ];
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    return [expected, 'server', inOneLine(error)];
  }
}

const inOneLine = ({ message }: CommandError): string => message.replaceAll(/\s*\n\s*/g, ' ');
