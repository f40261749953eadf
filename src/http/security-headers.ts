import type { IncomingMessage, ServerResponse } from 'node:http';
import type { FastifyInstance } from 'fastify';
import helmet, { type HelmetOptions } from 'helmet';
import { routeOf } from './route-declaration';

/** The headers that helmet sets with these options, computed once: they are the same for every request. */
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

// Strict-Transport-Security is for the proxy that terminates TLS: a deployment without TLS must work.
const strictTransportSecurity = false;

/**
 * The headers of data: it must not be executed, framed, sniffed, read by other sites or cached. Headers that concern only
 * documents are left out. A route may set its own `cache-control`.
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

/** The headers of the documentation's page and files; Swagger UI works with them. */
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

/** Sets the headers of every answer, errors and unknown paths included. Call it before other hooks, which may refuse. */
export function secureAnswers(http: FastifyInstance): void {
  http.addHook('onRequest', (request, reply, done) => {
    reply.headers(routeOf(request).url?.startsWith('/docs') ? PAGE_HEADERS : API_HEADERS);
    done();
  });
}
