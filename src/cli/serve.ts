import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { createServer } from 'node:net';
import type { Command } from 'commander';
import type { Logger } from 'pino';
import type { ControlPlane } from '../app';
import { adminTokenFile, hasPublicRegistration, type Settings } from '../settings';
import { CommandError, EXIT } from './command-error';
import type { Terminal } from './terminal';

/** How long waiting requests may take to receive their answers after the database is lost, in ms. */
const LOST_DATABASE_GRACE_MS = 500;
/** Signals closer than this, in ms, count as one: npm forwards a signal that the terminal has already sent to both. */
const SAME_SIGNAL_MS = 500;
/** How long the collector may take for the last traces, in ms. */
const TRACES_FLUSH_MS = 1_000;

/** Adds the command that runs the server. */
export function addServe(program: Command, terminal: Terminal): void {
  program
    .command('serve')
    .description('migrate the database, then serve until SIGTERM or SIGINT; the default command')
    .addHelpText('after', '\nEvery setting is an environment variable; see docs/control-plane-deploy.md.')
    .action(async () => {
      const settings = terminal.settings();
      terminal.beginServing();
      await serve(settings);
    });
}

/**
 * Starts the server and returns when it listens. SIGTERM or SIGINT stop it: see {@link GracefulStop}.
 * @throws CommandError the address can't be listened on
 * @throws DatabaseError the database can't be used
 * @throws ExtensionError an extension keeps the server from starting
 */
async function serve(settings: Settings): Promise<void> {
  await checkAddress(settings);
  // Loaded here: the application takes a second to load, and wrong settings must be reported before that.
  const [{ createApp }, { createLogger, exitProcess }] = await Promise.all([
    import('../app.js'),
    import('../telemetry/logger.js'),
  ]);
  const logger = createLogger(settings);
  const flushTraces = await startTraces(settings, logger);
  const controlPlane = await createApp(settings, { logger });
  const { app, database, announce, stop } = controlPlane;
  if (settings.ignored.length > 0)
    logger.warn(
      { settings: settings.ignored },
      'settings of the original control plane are ignored; see docs/from-the-original.md',
    );
  const exit = (code: number) => exitProcess(logger, code);
  database.onLost((reason) => {
    logger.fatal({ err: reason }, reason.message);
    setTimeout(() => exit(EXIT.failed), LOST_DATABASE_GRACE_MS);
  });
  new GracefulStop(settings, controlPlane, flushTraces, exit).listen();
  try {
    await app.listen({ host: settings.host, port: settings.port });
  } catch (error) {
    await stop();
    throw listenError(settings, error as NodeJS.ErrnoException);
  }
  announce();
  const url = await app.getUrl();
  logger.info({ url }, 'listening');
  if (hasPublicRegistration(settings))
    logger.warn(
      { bind: settings.host },
      'open registration on a public address: anyone who reaches it can register agents; CONTROL_PLANE_REGISTRATION=token asks for a token',
    );
  if (settings.logLevel !== 'silent') console.error(nextSteps(settings, url));
}

/**
 * Stops the server on SIGTERM or SIGINT: drains, stops in order, and ends the process within
 * `CONTROL_PLANE_SHUTDOWN_TIMEOUT_MS`. A second signal ends the drain early; one after the drain ends the process at once.
 */
class GracefulStop {
  private readonly skipDrain = new AbortController();
  private phase: 'serving' | 'draining' | 'stopping' = 'serving';
  private signalledAt = Number.NEGATIVE_INFINITY;

  /**
   * @param flushTraces sends the waiting traces, within the given time in ms
   * @param exit ends the process with a code, after the log is written
   */
  constructor(
    private readonly settings: Settings,
    private readonly controlPlane: ControlPlane,
    private readonly flushTraces: FlushTraces | undefined,
    private readonly exit: (code: number) => void,
  ) {}

  /** Subscribes to the signals. */
  listen(): void {
    for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => this.onSignal(signal));
  }

  private onSignal(signal: NodeJS.Signals): void {
    const { settings, exit } = this;
    const { logger } = this.controlPlane;
    if (performance.now() - this.signalledAt < SAME_SIGNAL_MS) return;
    this.signalledAt = performance.now();
    if (this.phase === 'draining') {
      this.skipDrain.abort();
      return;
    }
    if (this.phase === 'stopping') {
      logger.fatal({ signal }, 'told again to stop; what was not answered was not promised');
      exit(EXIT.failed);
      return;
    }
    logger.info({ signal, drain_ms: settings.drainMs }, 'stopping');
    setTimeout(() => {
      logger.fatal('did not stop in time; what was not answered was not promised');
      exit(EXIT.failed);
    }, settings.shutdownTimeoutMs);
    this.stop().then(
      () => {
        logger.info('stopped');
        exit(EXIT.ok);
      },
      (error: unknown) => {
        logger.fatal({ err: error }, 'failed to stop');
        exit(EXIT.failed);
      },
    );
  }

  private async stop(): Promise<void> {
    const { drainMs, shutdownTimeoutMs } = this.settings;
    this.phase = 'draining';
    if (drainMs > 0) {
      if (process.stderr.isTTY) console.error(`Stops in ${drainMs / 1_000} s; at once by another Ctrl-C.`);
      await this.controlPlane.drain(this.skipDrain.signal);
    }
    this.phase = 'stopping';
    await this.controlPlane.stop();
    // The service has stopped cleanly by now: traces get a share of the remaining time.
    await this.flushTraces?.(Math.min(TRACES_FLUSH_MS, (shutdownTimeoutMs - drainMs) / 4));
  }
}

type FlushTraces = (withinMs: number) => Promise<void>;

/**
 * Starts sending traces if the environment names a collector. OpenTelemetry is not loaded otherwise.
 * @returns a function that sends the waiting traces and ends tracing; undefined if traces are off
 */
async function startTraces(
  { traces, tracesProblems }: Settings,
  logger: Logger,
): Promise<FlushTraces | undefined> {
  for (const problem of tracesProblems) logger.warn(problem);
  if (!traces) return undefined;
  try {
    const { startTracing } = await import('../telemetry/otlp.js');
    const flush = startTracing(traces, logger);
    logger.info({ sampler: traces.sampler }, 'traces are sent by OTLP');
    return flush;
  } catch (error) {
    // A failure of traces must not stop the start.
    logger.error({ err: error }, 'traces are off: what sends them failed to start');
    return undefined;
  }
}

/** Listens for a moment before anything is created: a second server must not leave a database in its folder. */
async function checkAddress(settings: Settings): Promise<void> {
  const probe = createServer();
  try {
    await once(probe.listen({ host: settings.host, port: settings.port }), 'listening');
  } catch (error) {
    throw listenError(settings, error as NodeJS.ErrnoException);
  }
  await once(probe.close(), 'close');
}

function listenError({ host, port }: Settings, { code, message }: NodeJS.ErrnoException): CommandError {
  const reason = code === 'EADDRINUSE' ? 'another process listens there' : message;
  return new CommandError(
    `Can't listen on port ${port} of ${host}: ${reason}. CONTROL_PLANE_BIND says where to listen.`,
    EXIT.failed,
  );
}

/** Describes what to do after the start. It goes to standard error, so that the log stays JSON lines. */
function nextSteps(settings: Settings, listening: string): string {
  const url = listening.replace(/\/\/(0\.0\.0\.0|\[::\])/, '//127.0.0.1');
  return [
    '',
    `The control plane answers at ${url}`,
    `  try the API in a browser    ${url}/docs`,
    `  the operator's token        ${describeAdminToken(settings)}`,
    `  start an example agent      scripts/with-node.sh node examples/agent.mjs --server ${url}`,
    '  enqueue a first task        see README.md',
    ...(hasPublicRegistration(settings)
      ? [
          '',
          `Open registration on a public address: anyone who reaches ${settings.host} can register agents.`,
          'CONTROL_PLANE_REGISTRATION=token asks each for an enrollment token.',
        ]
      : []),
    '',
  ].join('\n');
}

/** Describes where to find the admin's token. There is no file if the database had an admin before. */
function describeAdminToken({ adminToken, database }: Settings): string {
  if (adminToken !== undefined) return 'as CONTROL_PLANE_ADMIN_TOKEN says';
  const file = adminTokenFile(database);
  return existsSync(file)
    ? `cat ${file}`
    : 'an admin has one from before; to make another, set CONTROL_PLANE_ADMIN_TOKEN and start again';
}
