import './node-version';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { createServer } from 'node:net';
import type { Logger } from 'pino';
import { DatabaseError } from './database/database-error';
import { ExtensionError, loadExtensions } from './extensions';
import { adminTokenFile, isOpenToStrangers, readSettings, type Settings, SettingsError } from './settings';

/** The address can't be listened on. */
class ListenError extends Error {
  constructor({ host, port }: Settings, { code, message }: NodeJS.ErrnoException) {
    const why = code === 'EADDRINUSE' ? 'another process listens there' : message;
    super(`Can't listen on port ${port} of ${host}: ${why}. CONTROL_PLANE_BIND says where to listen.`);
  }
}

/** Exit codes: 0 stopped as asked, 1 failed, 2 wrong settings or arguments. */
const FAILED = 1;
const MISUSED = 2;

/** How long those who wait are given to read that the process ends, in milliseconds. */
const LAST_ANSWERS_MS = 500;
/** Signals this close to each other are one, in milliseconds: npm passes on what the terminal has sent to both. */
const SAME_SIGNAL_MS = 500;
/** How long a failed start may take to end by itself, in milliseconds. */
const GIVE_UP_MS = 1_000;
/** How long the collector of traces may take for the last ones, in milliseconds. */
const TRACES_FLUSH_MS = 1_000;

// Nobody else may read the database, its log and the files beside it.
process.umask(0o077);

async function main(args: readonly string[]): Promise<void> {
  const unknown = args.find((arg) => arg !== '--migrate-only');
  if (unknown !== undefined) {
    console.error(`${unknown} is not an argument of this program; there is only --migrate-only.`);
    process.exitCode = MISUSED;
    return;
  }
  const settings = readSettings();
  if (args.includes('--migrate-only')) console.log(await migrateOnly(settings));
  else await serve(settings);
}

/** Applies the migrations. @returns what to tell of it */
export async function migrateOnly(settings: Settings): Promise<string> {
  const { openDatabase } = await import('./database/open-database.js');
  const database = await openDatabase(
    { ...settings, migrateOnStart: true },
    [],
    loadExtensions(settings.extensions),
  );
  await database.close();
  return database.applied.length === 0
    ? 'The database is current.'
    : `Applied ${database.applied.join(', ')}.`;
}

/**
 * Serves until SIGTERM or SIGINT, then drains and stops in order, within the time that the settings give. A second signal
 * cuts the drain short; one after the drain ends the process at once.
 */
export async function serve(settings: Settings): Promise<void> {
  await checkAddress(settings);
  // Loaded now: it takes a second, and wrong settings are said before.
  const [{ createApp }, { createLogger, exitProcess }] = await Promise.all([
    import('./app.js'),
    import('./telemetry/logger.js'),
  ]);
  const logger = createLogger(settings);
  const stopTracing = await startTraces(settings, logger);
  // Nobody reads what a person is told: that must not end the service.
  process.stderr.on('error', () => undefined);
  const { app, database, announce, drain, stop } = await createApp(settings, { logger });
  if (settings.ignored.length > 0)
    logger.warn(
      { settings: settings.ignored },
      'settings of the original control plane are ignored; see docs/from-the-original.md',
    );
  const cut = new AbortController();
  let state: 'serving' | 'draining' | 'stopping' = 'serving';
  let signalledAt = Number.NEGATIVE_INFINITY;
  const stopInOrder = async (): Promise<void> => {
    state = 'draining';
    if (settings.drainMs > 0) {
      if (process.stderr.isTTY)
        console.error(`Stops in ${settings.drainMs / 1_000} s; at once by another Ctrl-C.`);
      await drain(cut.signal);
    }
    state = 'stopping';
    await stop();
    // What the service promised is done: traces take what time is left, and little of it.
    await stopTracing?.(Math.min(TRACES_FLUSH_MS, (settings.shutdownTimeoutMs - settings.drainMs) / 4));
  };
  const onSignal = (signal: NodeJS.Signals): void => {
    if (performance.now() - signalledAt < SAME_SIGNAL_MS) return;
    signalledAt = performance.now();
    if (state === 'draining') {
      cut.abort();
      return;
    }
    if (state === 'stopping') {
      logger.fatal({ signal }, 'told again to stop; what was not answered was not promised');
      exitProcess(logger, FAILED);
      return;
    }
    logger.info({ signal, drain_ms: settings.drainMs }, 'stopping');
    setTimeout(() => {
      logger.fatal('did not stop in time; what was not answered was not promised');
      exitProcess(logger, FAILED);
    }, settings.shutdownTimeoutMs);
    stopInOrder().then(
      () => {
        logger.info('stopped');
        exitProcess(logger, 0);
      },
      (error: unknown) => {
        logger.fatal({ err: error }, 'failed to stop');
        exitProcess(logger, FAILED);
      },
    );
  };
  database.onLost((reason) => {
    logger.fatal({ err: reason }, reason.message);
    setTimeout(() => exitProcess(logger, FAILED), LAST_ANSWERS_MS);
  });
  process.on('SIGTERM', onSignal).on('SIGINT', onSignal);
  try {
    await app.listen({ host: settings.host, port: settings.port });
  } catch (error) {
    await stop();
    throw new ListenError(settings, error as NodeJS.ErrnoException);
  }
  announce();
  logger.info({ url: await app.getUrl() }, 'listening');
  if (isOpenToStrangers(settings))
    logger.warn(
      { bind: settings.host },
      'open registration on a public address: anyone who reaches it can register agents; CONTROL_PLANE_REGISTRATION=token asks for a token',
    );
  if (settings.logLevel !== 'silent') console.error(whatNext(settings, await app.getUrl()));
}

/**
 * Begins to send traces, if the environment says where to; what does it is not loaded otherwise.
 * @returns what sends those that wait, within so many milliseconds, and ends it
 */
async function startTraces(
  { traces, tracesProblems }: Settings,
  logger: Logger,
): Promise<((withinMs: number) => Promise<void>) | undefined> {
  for (const problem of tracesProblems) logger.warn(problem);
  if (!traces) return undefined;
  try {
    const { startTracing } = await import('./telemetry/otlp.js');
    const stop = startTracing(traces, logger);
    logger.info({ sampler: traces.sampler }, 'traces are sent by OTLP');
    return stop;
  } catch (error) {
    // Whatever is wrong with it, the service must not miss it.
    logger.error({ err: error }, 'traces are off: what sends them failed to start');
    return undefined;
  }
}

/** Listens for a moment, before anything is made: a second server must not leave a database where it was started. */
async function checkAddress(settings: Settings): Promise<void> {
  const probe = createServer();
  try {
    await once(probe.listen({ host: settings.host, port: settings.port }), 'listening');
  } catch (error) {
    throw new ListenError(settings, error as NodeJS.ErrnoException);
  }
  await once(probe.close(), 'close');
}

/** For the person who started it; on standard error, so that the log stays one of JSON lines. */
function whatNext(settings: Settings, listening: string): string {
  const url = listening.replace(/\/\/(0\.0\.0\.0|\[::\])/, '//127.0.0.1');
  return [
    '',
    `The control plane answers at ${url}`,
    `  try the API in a browser    ${url}/docs`,
    `  the operator's token        ${whereTokenIs(settings)}`,
    `  start an example agent      scripts/with-node.sh node examples/agent.mjs --server ${url}`,
    '  enqueue a first task        see README.md',
    ...(isOpenToStrangers(settings)
      ? [
          '',
          `Open registration on a public address: anyone who reaches ${settings.host} can register agents.`,
          'CONTROL_PLANE_REGISTRATION=token asks each for an enrollment token.',
        ]
      : []),
    '',
  ].join('\n');
}

/** Where the admin's token is: no file is made where there was an admin already. */
function whereTokenIs({ adminToken, database }: Settings): string {
  if (adminToken !== undefined) return 'as CONTROL_PLANE_ADMIN_TOKEN says';
  const file = adminTokenFile(database);
  return existsSync(file)
    ? `cat ${file}`
    : 'an admin has one from before; to make another, set CONTROL_PLANE_ADMIN_TOKEN and start again';
}

/** Says why it ends, and with which exit code. */
export function giveUp(error: unknown): void {
  const expected = [SettingsError, DatabaseError, ExtensionError, ListenError].some(
    (kind) => error instanceof kind,
  );
  console.error(expected ? (error as Error).message : error);
  process.exitCode = error instanceof SettingsError ? MISUSED : FAILED;
  // What is still under way, such as a write to a log that hangs, must not keep the process.
  setTimeout(() => process.exit(), GIVE_UP_MS).unref();
}

if (require.main === module) main(process.argv.slice(2)).catch(giveUp);
