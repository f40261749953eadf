import { normalizeIp } from '@nestjs/throttler';

/** One host has a whole /64 of IPv6 (RFC 6177, end sites), so that is one caller and not 2^64. */
const IPV6_PREFIX = 64;

/** What a caller's address counts as: an IPv4 address, mapped into IPv6 or not, or the /64 of an IPv6 address. */
export function callerAddress(ip: string): string {
  return normalizeIp(ip, IPV6_PREFIX);
}
