import { isIPv4, isIPv6 } from 'node:net';
import { domainToASCII } from 'node:url';
import { registerDecorator } from 'class-validator';
import { IPv6 } from 'ipaddr.js';

const MAX_NAME = 255;
const MAX_URL = 2_048;
/** The default port of a DNS server. */
const DNS_PORT = 53;

/** Invisible characters, and characters that parsers drop or stop at. */
const HIDDEN = /[\s\p{Cc}\p{Cf}\p{Cs}]/u;
/** The characters of a name. URL parsers treat all other ASCII as delimiters, decode it, or drop it. */
const NAME_CHARACTERS = /^[-_.a-z0-9\u0080-\u{10ffff}]+$/iu;
/** A canonical name. Underscores are accepted because they are in use; no leading hyphen, which tools read as an option. */
const NAME = /^(?!-)[-_a-z0-9]+(?:\.[-_a-z0-9]+)*$/;
/** A full stop, or a character that IDNA treats as one. */
const FINAL_DOT = /[.\u3002\uff0e\uff61]$/;
/** A name that is canonical for sure: its last label is no number, and no label is Punycode. */
const PLAIN_NAME = /^(?!-)(?:(?!xn--)[-_a-z0-9]+\.)*(?!xn--)[_a-z][-_a-z0-9]*$/;

/** The API's message for an invalid host. */
export const HOST_FORM = 'must be a host name or an address, such as probe.example.net or 2001:db8::7';
/** The API's message for an invalid target with a port. */
export const HOST_PORT_FORM = 'must be host:port, such as example.net:443 or [2001:db8::7]:443';
/** The API's message for an invalid DNS server. */
export const DNS_SERVER_FORM =
  'must be a host name or an address, with a port if it is not 53, such as 192.0.2.53 or [2001:db8::53]:5353';

/** A host with a port. */
export interface HostPort {
  host: string;
  port: number;
}

/**
 * Converts a host to its canonical spelling: a name in lower case, as A-labels, without a final dot; an IPv4 address as a dotted quad;
 * an IPv6 address compressed and without brackets, or as IPv4 if it maps one (both reach the same host).
 * @returns undefined for anything else: an IPv6 zone, which means something on one machine only, and numbers such as
 *   `127.1` or `0x7f.1`, which some programs read as an IPv4 address and some as a name
 */
export function canonicalHost(text: string): string | undefined {
  const bracketed = text.startsWith('[') && text.endsWith(']');
  if (bracketed || text.includes(':')) return canonicalIPv6(bracketed ? text.slice(1, -1) : text);
  if (text.length > MAX_NAME + 1 || HIDDEN.test(text) || !NAME_CHARACTERS.test(text)) return undefined;
  const name = text.replace(FINAL_DOT, '');
  // Most names are canonical already: skip the URL parser.
  if (PLAIN_NAME.test(name) && name.length <= MAX_NAME) return name;
  const ascii = domainToASCII(name);
  if (isIPv4(ascii)) return name === ascii ? ascii : undefined;
  // The URL parser refuses a name that it takes for a number, or reads it as an address.
  if (ascii.length > MAX_NAME || !NAME.test(ascii) || !URL.canParse(`http://${ascii}/`)) return undefined;
  return ascii;
}

function canonicalIPv6(text: string): string | undefined {
  if (!isIPv6(text) || text.includes('%')) return undefined;
  const address = IPv6.parse(text);
  return address.isIPv4MappedAddress() ? address.toIPv4Address().toString() : address.toString();
}

/**
 * Parses `host:port`, with the host in any spelling and IPv6 in brackets.
 * @param defaultPort the port of a host without one; undefined refuses such a host
 */
export function parseHostPort(text: string, defaultPort?: number): HostPort | undefined {
  const [, before, digits] = /^(\[[^\]]*\]|[^:]*):(\d{1,5})$/.exec(text) ?? [];
  const host = canonicalHost(before ?? text);
  const port = digits === undefined ? defaultPort : Number(digits);
  return host === undefined || port === undefined || port < 1 || port > 65_535 ? undefined : { host, port };
}

/** Formats a host with its port, IPv6 in brackets. */
export function joinHostPort({ host, port }: HostPort): string {
  return `${host.includes(':') ? `[${host}]` : host}:${port}`;
}

/** Parses a DNS server: a host, or `host:port`. */
export function parseDnsServer(text: string): HostPort | undefined {
  return parseHostPort(text, DNS_PORT);
}

/**
 * Converts a host to the form that is stored for agents: unchanged, if a resolver accepts it. Unicode becomes A-labels, and
 * brackets are removed. A final dot is kept, because it stops a resolver from trying its search list.
 */
export function storedHost(text: string): string {
  if (text.startsWith('[')) return text.slice(1, -1);
  if (!/[^\0-\x7f]/.test(text)) return text;
  const host = canonicalHost(text) ?? text;
  return FINAL_DOT.test(text) ? `${host}.` : host;
}

/** Converts a DNS server to the form that is stored for agents, with its port if it was given. */
export function storedDnsServer(text: string): string {
  const [, host, port] = /^([^[\]:]+)(:\d+)$/.exec(text) ?? [];
  if (host !== undefined) return storedHost(host) + port;
  return /^\[.*\]:\d+$/.test(text) ? text : storedHost(text);
}

/**
 * Parses an absolute http or https URL by the URL standard. Refuses URLs that other common parsers read differently.
 * @returns the URL, or what is wrong with the text
 */
export function parseWebUrl(text: string): URL | string {
  if (HIDDEN.test(text)) return 'must not hold spaces, control characters or invisible characters';
  if (text.includes('\\')) return 'must not hold a backslash; write it as %5C';
  const authority = /^https?:\/\/([^/?#]+)/i.exec(text)?.[1];
  if (authority === undefined) return 'must be an http or https URL such as https://example.net/health';
  // Credentials would be stored in plain text and shown to every viewer.
  if (authority.includes('@')) return 'must not hold credentials';
  const url = URL.parse(text);
  const host = url && canonicalHost(url.hostname);
  const written = authority.replace(/:\d*$/, '').replace(/\.$/, '');
  if (!url || host === undefined || url.port === '0' || authority.includes('%')) {
    return 'must name a host, and a port from 1 to 65535 if any, such as https://example.net:8443/health';
  }
  // Parsers disagree on `127.1`, `0x7f.1` and `0177.0.0.1`: they read different addresses, or a name.
  if (isIPv4(url.hostname) && url.hostname !== written) return 'must write an IPv4 address as 192.0.2.1';
  return url.href.length > MAX_URL ? `must be at most ${MAX_URL} characters, percent-encoded` : url;
}

/** Returns the host and port of a URL of {@link parseWebUrl}. */
export function hostPortOf(url: URL): HostPort {
  const port = url.port === '' ? (url.protocol === 'https:' ? 443 : 80) : Number(url.port);
  return { host: canonicalHost(url.hostname) ?? url.hostname, port };
}

const TextCheck =
  (name: string, message: string, passes: (text: string) => boolean) =>
  (): PropertyDecorator =>
  (target, property) =>
    registerDecorator({
      name,
      target: target.constructor,
      propertyName: property as string,
      validator: {
        validate: (value: unknown) => typeof value === 'string' && passes(value),
        defaultMessage: () => message,
      },
    });

/** Checks that the value is a host name or an address, see {@link canonicalHost}. */
export const IsHost = TextCheck('isHost', HOST_FORM, (text) => canonicalHost(text) !== undefined);

/** Checks that the value is a DNS server: a host, or `host:port`. */
export const IsDnsServer = TextCheck(
  'isDnsServer',
  DNS_SERVER_FORM,
  (text) => parseDnsServer(text) !== undefined,
);

/** Checks that the value is a text without spaces, control characters and invisible characters. */
export const IsDnsName = TextCheck(
  'isDnsName',
  'must not hold spaces, control characters or invisible characters',
  (text) => !HIDDEN.test(text),
);
