import { normalizeIp } from '@nestjs/throttler';
import { boundedCache } from '../bounded-cache';

/** The IPv6 prefix that counts as one caller: one host has a whole /64 (RFC 6177, end sites). */
const IPV6_PREFIX = 64;

/** A cache of parsed IPv6 addresses, because parsing one takes longer than all other steps of a charge. */
const PARSED = boundedCache<string, string>(10_000);

/** Returns the address that a caller is counted by: an IPv4 address, mapped into IPv6 or not, or the /64 of an IPv6 address. */
export function callerAddress(ip: string): string {
  if (!ip.includes(':')) return ip;
  let address = PARSED.get(ip);
  if (address === undefined) {
    address = normalizeIp(ip, IPV6_PREFIX);
    PARSED.set(ip, address);
  }
  return address;
}
