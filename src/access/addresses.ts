import { normalizeIp } from '@nestjs/throttler';
import { LRUCache } from 'lru-cache';

/** One host has a whole /64 of IPv6 (RFC 6177, end sites), so that is one caller and not 2^64. */
const IPV6_PREFIX = 64;

/** Callers' IPv6 addresses that were seen lately: to parse one takes longer than all else that is charged for it. */
const PARSED = new LRUCache<string, string>({ maxSize: 10_000, sizeCalculation: () => 1 });

/** What a caller's address counts as: an IPv4 address, mapped into IPv6 or not, or the /64 of an IPv6 address. */
export function callerAddress(ip: string): string {
  if (!ip.includes(':')) return ip;
  let address = PARSED.get(ip);
  if (address === undefined) {
    address = normalizeIp(ip, IPV6_PREFIX);
    PARSED.set(ip, address);
  }
  return address;
}
