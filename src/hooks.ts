import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { Admission } from './access/admission';
import { Quotas } from './access/quotas';
import type { Database } from './database/database';
import type { AnswerLimits } from './http/answer-limits';
import { Bodies } from './http/bodies';
import { setConnectionHeader } from './http/connection-header';
import { isBulkWrite, isShedFirst } from './http/decorators';
import { checkProtocol } from './http/protocol-checks';
import { ReadTurns } from './http/read-turns';
import { RequestEnds } from './http/request-ends';
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
  const quotas = app.get(Quotas);
  answerUnknownRoutes(http, (request, reply) => admission.chargeUnknown(request, reply));
  overload.guard(http, isShedFirst, isNeverShed);
  http.addHook('onRequest', async (request) => {
    if (isBulkWrite(request)) database.requireSpace();
  });
  app.get(InFlight).guard(http, isNeverShed);
  admission.guard(http, ({ routeOptions: { url = '' } }) => HEALTH_PATHS.has(url));
  new ReadTurns().guard(http);
  app.get(Bodies).guard(http, {
    check: (caller) => quotas.checkReadable(caller),
    charge: (caller) => quotas.chargeUnreadable(caller),
  });
}

/** Health and metrics, which an operator needs in an emergency: many scrapes cost as much as one. */
function isNeverShed({ routeOptions, method }: FastifyRequest): boolean {
  // Read once: Fastify builds the options again at each access, and several hooks ask here for every request.
  const { url = '' } = routeOptions;
  return HEALTH_PATHS.has(url) || (url === '/metrics' && method === 'GET');
}
