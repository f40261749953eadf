import 'reflect-metadata';
import { randomUUID } from 'node:crypto';
import { createServer, type IncomingMessage, type RequestListener, type Server } from 'node:http';
import type { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { NestFactory } from '@nestjs/core';
import { FastifyAdapter, type NestFastifyApplication } from '@nestjs/platform-fastify';
import type { FastifyInstance, FastifyReply, FastifyRequest, FastifyServerOptions } from 'fastify';
import type { Logger } from 'pino';
import { Admission } from './access/admission';
import { DeclaredRoutes } from './access/declared-routes';
import { UnreadableBodies } from './access/unreadable-bodies';
import { AppModule, ENTITIES } from './app.module';
import type { Database } from './database/database';
import { openDatabase } from './database/open-database';
import type { DatabaseReplacements } from './database/sqlite-database';
import { blame, loadExtensions } from './extensions';
import { AnswerLimits } from './http/answer-limits';
import { Bodies } from './http/bodies';
import { MAX_BODY } from './http/body-limit.decorators';
import { mountDocumentation } from './http/documentation';
import { ErrorFilter } from './http/error-filter';
import { isBulkWrite, isShedFirst } from './http/load.decorators';
import { VERSION } from './http/openapi';
import { answerUnreadable, checkProtocol } from './http/protocol-checks';
import { ReadTurns } from './http/read-turns';
import { RequestEnds } from './http/request-ends';
import { routeOf } from './http/route-declaration';
import { API_HEADERS, secureAnswers } from './http/security-headers';
import { PROOF_HEADER, ServerProof } from './http/server-proof';
import { answerUnknownRoutes } from './http/unknown-routes';
import { settleRestore } from './operators/restore';
import { JobRunner } from './scheduling/job-runner';
import { databaseIdentity, type Settings, SettingsError, serverFile } from './settings';
import { HEALTH_PATHS } from './telemetry/health.controller';
import { InFlight } from './telemetry/in-flight';
import { Lifecycle } from './telemetry/lifecycle';
import { createLogger, NestLogger, outputOf, requestIdOf } from './telemetry/logger';
import { Meter } from './telemetry/meter';
import { Overload } from './telemetry/overload';
import { RequestLog } from './telemetry/request-log';
import { RequestSpans } from './telemetry/request-spans';
import { observeProcess } from './telemetry/server-metrics';

/** How large a request's headers may be, in bytes: they are kept as they come, before anybody can be asked who he is. */
const MAX_HEADERS = 8 * 1024;
/** How long a request's headers may take; its body has the rest of the setting's time. */
const HEADERS_TIMEOUT_MS = 10_000;
/** How late it may be noticed that one of these times is up. */
const CHECKING_INTERVAL_MS = 5_000;
/** How long a connection is kept for its next request: longer than proxies keep theirs, so that they close first. */
const KEEP_ALIVE_MS = 75_000;
const CONNECTION_TIMEOUT_MS = 120_000;
/** How long a request that is on its way may still arrive when the process stops. */
const HANG_UP_MS = 1_000;

/** The application, ready to listen, and how to end it. */
export interface ControlPlane {
  readonly app: NestFastifyApplication;
  readonly database: Database;
  readonly logger: Logger;
  /** What answers cost that are being sent. */
  readonly answers: AnswerLimits;
  /**
   * Goes on serving for the time of the setting, so that nobody is sent here any more when it stops: readiness fails,
   * connections close with their next answer, and waiting claims are answered.
   * @param cut ends it early
   */
  drain(cut?: AbortSignal): Promise<void>;
  /** Leaves the file by which the command line of this machine finds this server; once it listens. */
  announce(): void;
  /** Answers long polls, finishes what is in flight, writes what waits and closes the database. */
  stop(): Promise<void>;
}

/** What a test or the command line may replace. */
export interface Replacements extends DatabaseReplacements {
  logger?: Logger;
  /** False for a command that works on the database while no server does: it makes no admin, no keys, and runs no jobs. */
  serves?: boolean;
}

/**
 * Opens the database and builds the application; it does not listen yet.
 * @throws DatabaseError where the database can't be used
 * @throws ExtensionError where an extension keeps it from starting
 */
export async function createApp(settings: Settings, replacements: Replacements = {}): Promise<ControlPlane> {
  const logger = replacements.logger ?? createLogger(settings);
  const lifecycle = new Lifecycle(replacements.serves);
  const meter = new Meter();
  const extensions = loadExtensions(settings.extensions);
  const database = await openDatabase(settings, ENTITIES, extensions, replacements);
  const { clock } = database;
  const overload = new Overload(settings, database);
  const requestLog = new RequestLog(logger, settings.logRequests);
  const answers = new AnswerLimits(settings, logger);
  try {
    if (await settleRestore(database))
      logger.warn('started on a backup; its ids go on beyond all given since');
    const adapter = new FastifyAdapter({
      bodyLimit: MAX_BODY,
      trustProxy: settings.trustProxy,
      genReqId: (raw: IncomingMessage) => requestIdOf(raw.headers, randomUUID),
      requestIdHeader: false,
      return503OnClosing: false,
      forceCloseConnections: 'idle',
      // Longer than any wait for an answer: only a caller that takes no answer, or is gone, is silent for so long.
      connectionTimeout: CONNECTION_TIMEOUT_MS,
      keepAliveTimeout: KEEP_ALIVE_MS,
      requestTimeout: settings.requestTimeoutMs,
      clientErrorHandler: (error: NodeJS.ErrnoException, socket: Socket) =>
        answerUnreadable(error, socket, answers),
      serverFactory: (handler: RequestListener, options: FastifyServerOptions) =>
        createHttpServer(answers.guard(handler), options),
      // Node would refuse a request without a host in a body of its own; see checkProtocol.
      http: {
        requireHostHeader: false,
        maxHeaderSize: MAX_HEADERS,
        headersTimeout: Math.min(HEADERS_TIMEOUT_MS, settings.requestTimeoutMs),
        connectionsCheckingInterval: Math.min(CHECKING_INTERVAL_MS, settings.requestTimeoutMs / 2),
      },
      frameworkErrors: (error: Error, request: FastifyRequest, reply: FastifyReply) =>
        new ErrorFilter().answer(error, request, reply.headers(API_HEADERS)),
    } as ConstructorParameters<typeof FastifyAdapter>[0]);
    const http = adapter.getInstance() as unknown as FastifyInstance;
    http.server.maxConnections = settings.maxConnections;
    secureAnswers(http);
    const ends = new RequestEnds(http);
    requestLog.attach(http, ends);
    new RequestSpans().attach(http, ends);
    sayWhetherKept(http, lifecycle);
    answers.account(http);
    const proof = new ServerProof(http);
    checkProtocol(http, answers);
    const app = await NestFactory.create<NestFastifyApplication>(
      AppModule.forRoot({ settings, database, clock, lifecycle, meter, overload, extensions }),
      adapter,
      { bodyParser: false, abortOnError: false, logger: new NestLogger(logger) },
    );
    const inFlight = app.get(InFlight);
    const admission = app.get(Admission);
    const bodies = app.get(Bodies);
    observeProcess(meter, http, {
      ...{ settings, version: VERSION, database, lifecycle, overload, answers, inFlight, ends },
      log: outputOf(logger),
    });
    answerUnknownRoutes(http, (request, reply) => admission.chargeUnknown(request, reply));
    // What an operator needs in an emergency: many scrapes cost as much as one.
    const isExempt = (request: FastifyRequest) => {
      const { url = '' } = routeOf(request);
      return HEALTH_PATHS.has(url) || (url === '/metrics' && request.method === 'GET');
    };
    overload.guard(http, isShedFirst, isExempt);
    http.addHook('onRequest', (request, _reply, done) => {
      try {
        if (isBulkWrite(request)) database.requireSpace();
        done();
      } catch (error) {
        done(error as Error);
      }
    });
    inFlight.guard(http, isExempt);
    admission.guard(http);
    new ReadTurns().guard(http);
    bodies.guard(http, app.get(UnreadableBodies));
    if (!lifecycle.serves) await app.get(JobRunner).stop();
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
    overload.start();
    const announce = (): void => {
      const path = serverFile(settings.database);
      try {
        proof.publish(path, databaseIdentity(settings.database));
      } catch (error) {
        logger.warn({ err: error, path }, 'the command line will not find this server by itself');
      }
    };
    const drain = async (cut?: AbortSignal): Promise<void> => {
      lifecycle.beginDrain(settings.drainMs);
      // Cut short, it is over: not an error.
      await sleep(settings.drainMs, undefined, { signal: cut }).catch(() => undefined);
    };
    const stop = async (): Promise<void> => {
      lifecycle.beginStop();
      proof.withdraw();
      // Node does not close a connection that has sent half a request or none yet, and no longer times it out.
      const grace = setTimeout(() => inFlight.hangUp(), HANG_UP_MS);
      await app.close();
      clearTimeout(grace);
      bodies.close();
      overload.close();
      answers.close();
      requestLog.close();
      await database.close();
    };
    return { app, database, logger, answers, announce, drain, stop };
  } catch (error) {
    overload.close();
    answers.close();
    requestLog.close();
    await database.close();
    throw error instanceof SettingsError ? error : blame(error, extensions);
  }
}

/** Makes the one HTTP server. Fastify by itself binds a second one to the other addresses of `localhost`, without our limits. */
function createHttpServer(handler: RequestListener, options: FastifyServerOptions): Server {
  const { http, keepAliveTimeout, requestTimeout, connectionTimeout } = options as FastifyServerOptions & {
    http: object;
  };
  const server = createServer(http, handler);
  server.keepAliveTimeout = keepAliveTimeout as number;
  server.requestTimeout = requestTimeout as number;
  return server.setTimeout(connectionTimeout);
}

/** Says on each answer whether the connection is kept, and for HTTP/1.0 in words: its clients wait for the end otherwise. */
function sayWhetherKept(http: FastifyInstance, lifecycle: Lifecycle): void {
  http.addHook('onSend', ({ raw }, reply, _payload, done) => {
    // Its caller's next request belongs to another process, and the stop would wait for a connection kept alive. But what was
    // proven is that this connection leads here: the command line asks on it what it came for.
    const closes = lifecycle.draining && !reply.hasHeader(PROOF_HEADER);
    if (closes || !reply.raw.shouldKeepAlive) reply.header('connection', 'close');
    // Fastify would close on a body that it refuses, and who is still sending it would not get to read the answer.
    else if (raw.httpVersion === '1.0' || reply.hasHeader('connection'))
      reply.header('connection', 'keep-alive');
    done();
  });
}
