import { isIP } from 'node:net';
import type { FastifyRequest } from 'fastify';

/**
 * The address that a request comes from: the peer's or, where that is a trusted proxy, the one that it names, and so on
 * to the first that is not trusted. What a proxy names that is no address stands for nobody: then it is the proxy's.
 */
export function clientAddress(request: FastifyRequest): string {
  const { ip } = request;
  if (isIP(ip) !== 0) return ip;
  // Without an address at all the caller has hung up already.
  return request.ips?.findLast((hop) => isIP(hop) !== 0) ?? '';
}
