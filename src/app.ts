import 'reflect-metadata';
import { setTimeout as sleep } from 'node:timers/promises';
import { NestFactory } from '@nestjs/core';
import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import type { FastifyInstance } from 'fastify';
import type { Logger } from 'pino';
import { DeclaredRoutes } from './access/declared-routes';
import { AppModule, ENTITIES } from './app.module';
import type { Database } from './database/database';
import { tablesOfMissingExtensions } from './database/migrations';
import { openDatabase } from './database/open-database';
import type { DatabaseReplacements } from './database/sqlite-database';
import { blameExtension, loadExtensions } from './extension-loader';
import { addAdmissionHooks, addOuterHooks } from './hooks';
import { AnswerLimits } from './http/answer-limits';
import { Bodies } from './http/bodies';
import { mountDocumentation } from './http/documentation';
import { VERSION } from './http/openapi';
import { createAdapter } from './http/server';
import { settleRestore } from './operators/restore';
import { JobRunner } from './scheduling/job-runner';
import { databaseIdentity, type Settings, SettingsError, serverFile } from './settings';
import { InFlight } from './telemetry/in-flight';
import { Lifecycle } from './telemetry/lifecycle';
import { createLogger, NestLogger, outputOf } from './telemetry/logger';
import { Meter } from './telemetry/meter';
import { Overload } from './telemetry/overload';
import { RequestLog } from './telemetry/request-log';
import { observeProcess } from './telemetry/server-metrics';

/** How long a request that is still arriving may take when the process stops, in ms. */
const ARRIVAL_GRACE_MS = 1_000;

/** The application, ready to listen, and the means to end it. */
export interface ControlPlane {
  readonly app: NestFastifyApplication;
  readonly database: Database;
  readonly logger: Logger;
  /** The limits on answers that are being sent. */
  readonly answers: AnswerLimits;
  /**
   * Prepares for the stop while it still serves, for `CONTROL_PLANE_DRAIN_MS`: readiness fails, connections close after
   * their next answer, and waiting claims are answered.
   * @param cut ends the drain early
   */
  drain(cut?: AbortSignal): Promise<void>;
  /** Writes the file by which the command line of this machine finds this server. Call it once the server listens. */
  announce(): void;
  /** Answers long polls, finishes what is in flight, writes what waits and closes the database. */
  stop(): Promise<void>;
}

/** Parts that a test or the command line replaces. */
export interface Replacements extends DatabaseReplacements {
  logger?: Logger;
  /** False for a command that works on the database without a server: no admin and no keys are created, no jobs run. */
  serves?: boolean;
}

/**
 * Opens the database and builds the application; it does not listen yet.
 * @throws DatabaseError the database can't be used
 * @throws ExtensionError an extension keeps it from starting
 * @throws SettingsError a setting does not fit the database or the files beside it
 */
export async function createApp(settings: Settings, replacements: Replacements = {}): Promise<ControlPlane> {
  const logger = replacements.logger ?? createLogger(settings);
  const extensions = loadExtensions(settings.extensions);
  const database = await openDatabase(settings, ENTITIES, extensions, replacements);
  const lifecycle = new Lifecycle(replacements.serves);
  const overload = new Overload(settings, database);
  const requestLog = new RequestLog(logger, settings.logRequests);
  const answers = new AnswerLimits(settings, logger);
  const closeParts = async (): Promise<void> => {
    overload.close();
    answers.close();
    requestLog.close();
    await database.close();
  };
  try {
    if (await settleRestore(database))
      logger.warn('started on a backup; its ids go on beyond all given since');
    const tables = await tablesOfMissingExtensions(database, extensions);
    if (tables.length > 0)
      logger.warn(
        { tables },
        'the database has tables of extensions that CONTROL_PLANE_EXTENSIONS does not name',
      );
    const meter = new Meter();
    const adapter = createAdapter(settings, answers);
    const http = adapter.getInstance() as unknown as FastifyInstance;
    const { ends, proof } = addOuterHooks(http, { lifecycle, requestLog, answers });
    const app = await NestFactory.create<NestFastifyApplication>(
      AppModule.forRoot({
        ...{ settings, database, lifecycle, meter, overload, extensions },
        clock: database.clock,
      }),
      adapter,
      { bodyParser: false, abortOnError: false, logger: new NestLogger(logger) },
    );
    const inFlight = app.get(InFlight);
    const bodies = app.get(Bodies);
    observeProcess(meter, http, {
      ...{ settings, version: VERSION, database, lifecycle, overload, answers, inFlight, ends },
      log: outputOf(logger),
    });
    addAdmissionHooks(app, http, { overload, database });
    await start(app, http, settings, lifecycle);
    overload.start();
    return {
      ...{ app, database, logger, answers },
      async drain(cut) {
        lifecycle.beginDrain(settings.drainMs);
        // A drain that is cut short rejects the sleep; that is not an error.
        await sleep(settings.drainMs, undefined, { signal: cut }).catch(() => undefined);
      },
      announce() {
        const path = serverFile(settings.database);
        try {
          proof.publish(path, databaseIdentity(settings.database));
        } catch (error) {
          logger.warn({ err: error, path }, 'the command line will not find this server by itself');
        }
      },
      async stop() {
        lifecycle.beginStop();
        proof.unpublish();
        // Node keeps connections that have sent half a request or none yet, and no longer times them out.
        const grace = setTimeout(() => inFlight.hangUp(), ARRIVAL_GRACE_MS);
        await app.close();
        clearTimeout(grace);
        bodies.close();
        await closeParts();
      },
    };
  } catch (error) {
    await closeParts();
    throw error instanceof SettingsError ? error : blameExtension(error, extensions);
  }
}

/** Initializes the modules and adds the routes. */
async function start(
  app: NestFastifyApplication,
  http: FastifyInstance,
  settings: Settings,
  { serves }: Lifecycle,
): Promise<void> {
  if (!serves) await app.get(JobRunner).stop();
  try {
    app.get(DeclaredRoutes).publish();
    if (settings.docs) mountDocumentation(app);
    await app.init();
    await http.ready();
  } catch (error) {
    // Jobs may run already, and would keep the process alive.
    await app.close().catch(() => undefined);
    throw error;
  }
}
