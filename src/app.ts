import 'reflect-metadata';
import { randomUUID } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { NestFactory } from '@nestjs/core';
import { FastifyAdapter, type NestFastifyApplication } from '@nestjs/platform-fastify';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { Logger } from 'pino';
import { AppModule, ENTITIES } from './app.module';
import { Clock } from './clock';
import { Database } from './database/database';
import { blame, loadExtensions } from './extensions';
import { isShedFirst } from './http/decorators';
import { answerUnreadable, ErrorFilter } from './http/error-filter';
import { parseJsonBody } from './http/json-body';
import { mountDocs } from './http/openapi';
import { refuseUnfit } from './http/unfit-requests';
import { answerUnknownRoutes } from './http/unknown-routes';
import { settleRestore } from './operators/restore';
import { type Settings, SettingsError } from './settings';
import { Lifecycle } from './telemetry/lifecycle';
import { createLogger, logRequests, NestLogger, requestIdOf } from './telemetry/logger';
import { Overload } from './telemetry/overload';

/** Bodies larger than this are refused with 413, in bytes. */
const BODY_LIMIT = 4 * 1024 * 1024;

/** A request that has not arrived whole after this time is given up, in milliseconds. */
const ARRIVAL_TIMEOUT_MS = 30_000;

/** The application, ready to listen, and how to end it. */
export interface ControlPlane {
  readonly app: NestFastifyApplication;
  readonly database: Database;
  readonly logger: Logger;
  /** Answers long polls, finishes what is in flight, writes what waits and closes the database. */
  stop(): Promise<void>;
}

/** What a test may replace. */
export interface Replacements {
  clock?: Clock;
  logger?: Logger;
}

/**
 * Opens the database and builds the application; it does not listen yet.
 * @throws DatabaseError where the database can't be used
 * @throws ExtensionError where an extension keeps it from starting
 */
export async function createApp(settings: Settings, replacements: Replacements = {}): Promise<ControlPlane> {
  const logger = replacements.logger ?? createLogger(settings);
  const clock = replacements.clock ?? new Clock();
  const lifecycle = new Lifecycle();
  const extensions = loadExtensions(settings.extensions);
  const database = await Database.open(settings, ENTITIES, extensions);
  const overload = new Overload(settings, database);
  try {
    if (await settleRestore(database, clock))
      logger.warn('started on a backup; its ids go on beyond all given since');
    const adapter = new FastifyAdapter({
      bodyLimit: BODY_LIMIT,
      trustProxy: settings.trustProxy,
      genReqId: (raw: IncomingMessage) => requestIdOf(raw.headers, randomUUID),
      requestIdHeader: false,
      return503OnClosing: false,
      forceCloseConnections: 'idle',
      connectionTimeout: 0,
      requestTimeout: ARRIVAL_TIMEOUT_MS,
      clientErrorHandler: answerUnreadable,
      http: {
        // Node would refuse a request without a host in a body of its own; see refuseUnfit.
        requireHostHeader: false,
        // Node swaps the two times where the one for headers is longer, as its default would be, and looks every 30 s.
        headersTimeout: ARRIVAL_TIMEOUT_MS,
        connectionsCheckingInterval: 1_000,
      },
      frameworkErrors: (error: Error, request: FastifyRequest, reply: FastifyReply) =>
        new ErrorFilter().answer(error, request, reply),
    } as ConstructorParameters<typeof FastifyAdapter>[0]);
    const http = adapter.getInstance() as unknown as FastifyInstance;
    logRequests(http, logger);
    http.addHook('onSend', (_request, reply, _payload, done) => {
      reply.header('x-content-type-options', 'nosniff');
      // A connection that was busy when the server closed would be kept alive, and the stop would wait for it.
      if (lifecycle.stopping) reply.header('connection', 'close');
      // Fastify would close on a body that it refuses, and who is still sending it would not get to read the answer.
      else reply.removeHeader('connection');
      done();
    });
    refuseUnfit(http);
    answerUnknownRoutes(http);
    overload.guard(http, isShedFirst, (request) =>
      /^\/(healthz|readyz)$/.test(request.routeOptions.url ?? ''),
    );
    const app = await NestFactory.create<NestFastifyApplication>(
      AppModule.forRoot({ settings, database, clock, lifecycle, extensions }),
      adapter,
      { bodyParser: false, abortOnError: false, logger: new NestLogger(logger) },
    );
    http.removeAllContentTypeParsers();
    http.addContentTypeParser('application/json', { parseAs: 'buffer' }, (_request, body, done) => {
      try {
        // Many clients name the type of a body that they do not send; a route that needs one will say so.
        done(null, body.length === 0 ? undefined : parseJsonBody(body as Buffer));
      } catch (error) {
        done(error as Error);
      }
    });
    try {
      await mountDocs(app);
      await app.init();
      await http.ready();
    } catch (error) {
      // Jobs may run already, and would keep the process alive.
      await app.close().catch(() => undefined);
      throw error;
    }
    overload.start();
    const stop = async (): Promise<void> => {
      lifecycle.beginStop();
      await app.close();
      overload.close();
      await database.close();
    };
    return { app, database, logger, stop };
  } catch (error) {
    overload.close();
    await database.close();
    throw error instanceof SettingsError ? error : blame(error, extensions);
  }
}
