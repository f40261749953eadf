import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { type ApiError, fail } from '../errors';

/**
 * Answers unknown paths with 404, and other methods of known paths with 405 and `Allow`, before the body is read. Call it
 * before the routes are added: a hook collects them.
 * @param charge counts such a request against its client; if it rejects, its error is the answer
 */
export function answerUnknownRoutes(
  http: FastifyInstance,
  charge: (request: FastifyRequest, reply: FastifyReply) => Promise<void>,
): void {
  const methodsByPath = new Map<string, { pattern: RegExp; methods: Set<string> }>();
  http.addHook('onRoute', (route) => {
    let entry = methodsByPath.get(route.url);
    if (!entry) {
      entry = { pattern: patternOf(route.url), methods: new Set() };
      methodsByPath.set(route.url, entry);
    }
    for (const method of [route.method].flat()) entry.methods.add(method);
  });
  http.addHook('onRequest', (request, reply, done) => {
    const path = request.url.split('?', 1)[0] as string;
    // `/v1/agents/claim` is a route: a GET of it must not be routed to the agent with the id "claim".
    const exact = methodsByPath.get(path);
    if (!request.is404 && (!exact || exact.methods.has(request.method))) return done();
    charge(request, reply).then(() => done(refusalOf(path, exact?.methods, reply)), done);
  });

  function refusalOf(path: string, exact: ReadonlySet<string> | undefined, reply: FastifyReply): ApiError {
    const allowed = new Set<string>(exact);
    if (!exact) {
      for (const { pattern, methods } of methodsByPath.values()) {
        if (pattern.test(path)) for (const method of methods) allowed.add(method);
      }
    }
    if (allowed.size === 0) return fail('ERR_NOT_FOUND');
    reply.header('allow', [...allowed].sort().join(', '));
    return fail('ERR_METHOD_NOT_ALLOWED', { allowed: [...allowed].sort() });
  }
}

/** Converts a route's path to a pattern. */
function patternOf(url: string): RegExp {
  const text = url
    .split('/')
    .map((part) => (part.startsWith(':') ? '[^/]+' : part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')))
    .join('/');
  return new RegExp(`^${text}$`);
}
