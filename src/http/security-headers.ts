import type { IncomingMessage, ServerResponse } from 'node:http';
import type { FastifyInstance } from 'fastify';
import helmet, { type HelmetOptions } from 'helmet';
import { routeOf } from './route-declaration';

/** What helmet sets under these options, worked out once: it is the same for every request. */
function headersOf(options: Readonly<HelmetOptions>): Readonly<Record<string, string>> {
  const headers: Record<string, string> = {};
  const recorder = {
    setHeader: (name: string, value: string) => {
      headers[name.toLowerCase()] = value;
    },
    removeHeader: () => undefined,
  };
  helmet(options)({} as IncomingMessage, recorder as unknown as ServerResponse, (error) => {
    if (error) throw error;
  });
  return Object.freeze(headers);
}

// Whoever ends TLS says so (Strict-Transport-Security): a deployment without it must work.
const strictTransportSecurity = false;

/**
 * The headers of an answer that is data: nothing in it may be run, framed, guessed at, read by other sites or kept. The
 * headers that concern only documents are left out. A route may replace `cache-control` by its own.
 */
export const API_HEADERS: Readonly<Record<string, string>> = Object.freeze({
  ...headersOf({
    strictTransportSecurity,
    contentSecurityPolicy: {
      useDefaults: false,
      directives: { defaultSrc: ["'none'"], frameAncestors: ["'none'"] },
    },
    xFrameOptions: { action: 'deny' },
    crossOriginOpenerPolicy: false,
    originAgentCluster: false,
    xDnsPrefetchControl: false,
    xDownloadOptions: false,
    xPermittedCrossDomainPolicies: false,
    xXssProtection: false,
  }),
  'cache-control': 'no-store',
});

/** The headers of the documentation's page and its files, under which Swagger UI runs. */
const PAGE_HEADERS = headersOf({
  strictTransportSecurity,
  contentSecurityPolicy: {
    useDefaults: false,
    directives: {
      defaultSrc: ["'self'"],
      styleSrc: ["'self'", "'unsafe-inline'"],
      imgSrc: ["'self'", 'data:'],
      frameAncestors: ["'none'"],
      objectSrc: ["'none'"],
    },
  },
});

/** Puts its headers on every answer, errors and unknown paths included. Call it before other hooks: they may refuse. */
export function secureAnswers(http: FastifyInstance): void {
  http.addHook('onRequest', (request, reply, done) => {
    reply.headers(routeOf(request).url?.startsWith('/docs') ? PAGE_HEADERS : API_HEADERS);
    done();
  });
}
