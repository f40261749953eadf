import { isIP } from 'node:net';
import type { FastifyRequest } from 'fastify';

/**
 * The address of a request's client: the peer's or, if that is a trusted proxy, the address that it forwards, and so on to
 * the first that is not trusted. If a proxy forwards something that is no address, the proxy's own address counts.
 */
export function clientAddress(request: FastifyRequest): string {
  const { ip } = request;
  if (isIP(ip) !== 0) return ip;
  // If there is no address at all, the client has disconnected.
  return request.ips?.findLast((hop) => isIP(hop) !== 0) ?? '';
}
