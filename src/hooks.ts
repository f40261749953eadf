import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { Admission } from './access/admission';
import { UnreadableBodies } from './access/unreadable-bodies';
import type { Database } from './database/database';
import type { AnswerLimits } from './http/answer-limits';
import { Bodies } from './http/bodies';
import { setConnectionHeader } from './http/connection-header';
import { isBulkWrite, isShedFirst } from './http/load.decorators';
import { checkProtocol } from './http/protocol-checks';
import { ReadTurns } from './http/read-turns';
import { RequestEnds } from './http/request-ends';
import { routeOf } from './http/route-declaration';
import { secureAnswers } from './http/security-headers';
import { ServerProof } from './http/server-proof';
import { answerUnknownRoutes } from './http/unknown-routes';
import { HEALTH_PATHS } from './telemetry/health.controller';
import { InFlight } from './telemetry/in-flight';
import type { Lifecycle } from './telemetry/lifecycle';
import type { Overload } from './telemetry/overload';
import type { RequestLog } from './telemetry/request-log';
import { RequestSpans } from './telemetry/request-spans';

/** The parts that the hooks belong to. */
interface HookParts {
  readonly lifecycle: Lifecycle;
  readonly requestLog: RequestLog;
  readonly answers: AnswerLimits;
}

/**
 * Adds the hooks that see every request, before Nest adds its own: what they do holds for refused requests too. The order
 * is the order in which they run.
 */
export function addOuterHooks(
  http: FastifyInstance,
  { lifecycle, requestLog, answers }: HookParts,
): { ends: RequestEnds; proof: ServerProof } {
  secureAnswers(http);
  const ends = new RequestEnds(http);
  requestLog.attach(http, ends);
  new RequestSpans().attach(http, ends);
  setConnectionHeader(http, () => lifecycle.draining);
  answers.account(http);
  const proof = new ServerProof(http);
  checkProtocol(http, answers);
  return { ends, proof };
}

/**
 * Adds the hooks that decide whether a request is served, cheapest first: a known route, the load, the disk, the caller and
 * the quotas, and only then the body. Call it before the routes are added.
 */
export function addAdmissionHooks(
  app: NestFastifyApplication,
  http: FastifyInstance,
  { overload, database }: { overload: Overload; database: Database },
): void {
  const admission = app.get(Admission);
  answerUnknownRoutes(http, (request, reply) => admission.chargeUnknown(request, reply));
  overload.guard(http, isShedFirst, isNeverShed);
  http.addHook('onRequest', (request, _reply, done) => {
    try {
      if (isBulkWrite(request)) database.requireSpace();
      done();
    } catch (error) {
      done(error as Error);
    }
  });
  app.get(InFlight).guard(http, isNeverShed);
  admission.guard(http);
  new ReadTurns().guard(http);
  app.get(Bodies).guard(http, app.get(UnreadableBodies));
}

/** Health and metrics, which an operator needs in an emergency: many scrapes cost as much as one. */
function isNeverShed(request: FastifyRequest): boolean {
  const { url = '' } = routeOf(request);
  return HEALTH_PATHS.has(url) || (url === '/metrics' && request.method === 'GET');
}
