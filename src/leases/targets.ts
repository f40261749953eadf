import { isIPv4, isIPv6 } from 'node:net';
import { domainToASCII } from 'node:url';
import { registerDecorator } from 'class-validator';
import { IPv6 } from 'ipaddr.js';

const MAX_NAME = 255;
const MAX_URL = 2_048;
/** The port of a DNS server that names none. */
const DNS_PORT = 53;

/** Invisible characters, and those that a parser drops or cuts at. */
const HIDDEN = /[\s\p{Cc}\p{Cf}\p{Cs}]/u;
/** Everything else in ASCII would be read as a delimiter, decoded, or dropped. */
const NAME_CHARACTERS = /^[-_.a-z0-9\u0080-\u{10ffff}]+$/iu;
/** Underscores are no part of a host name, but are in use. A leading hyphen would be an option of the agent's tools. */
const NAME = /^(?!-)[-_a-z0-9]+(?:\.[-_a-z0-9]+)*$/;
/** A full stop, or a character that is read as one. */
const FINAL_DOT = /[.\u3002\uff0e\uff61]$/;
/** The last label begins with no digit, so that it is no number, and no label claims to be Punycode. */
const PLAIN_NAME = /^(?!-)(?:(?!xn--)[-_a-z0-9]+\.)*(?!xn--)[_a-z][-_a-z0-9]*$/;

/** What a host must be, in the words of the API. */
export const HOST_FORM = 'must be a host name or an address, such as probe.example.net or 2001:db8::7';
/** What a target with a port must be. */
export const HOST_PORT_FORM = 'must be host:port, such as example.net:443 or [2001:db8::7]:443';
/** What a DNS server must be. */
export const DNS_SERVER_FORM =
  'must be a host name or an address, with a port if it is not 53, such as 192.0.2.53 or [2001:db8::53]:5353';

/** A host with a port. */
export interface HostPort {
  host: string;
  port: number;
}

/**
 * The one spelling of a host: a name in lower case, as A-labels, without a final dot; an IPv4 address as a dotted quad;
 * an IPv6 address compressed and without brackets, or as IPv4 if it maps one (both reach the same host).
 * @returns undefined for anything else: an IPv6 zone, which means something on one machine only, and numbers such as
 *   `127.1` or `0x7f.1`, which some programs read as an IPv4 address and some as a name
 */
export function canonicalHost(text: string): string | undefined {
  const bracketed = text.startsWith('[') && text.endsWith(']');
  if (bracketed || text.includes(':')) return canonicalIPv6(bracketed ? text.slice(1, -1) : text);
  if (text.length > MAX_NAME + 1 || HIDDEN.test(text) || !NAME_CHARACTERS.test(text)) return undefined;
  const name = text.replace(FINAL_DOT, '');
  // Most names are canonical already, and the URL parser has nothing to find in them.
  if (PLAIN_NAME.test(name) && name.length <= MAX_NAME) return name;
  const ascii = domainToASCII(name);
  if (isIPv4(ascii)) return name === ascii ? ascii : undefined;
  // What the URL parser takes for a number it would refuse or read as an address.
  if (ascii.length > MAX_NAME || !NAME.test(ascii) || !URL.canParse(`http://${ascii}/`)) return undefined;
  return ascii;
}

function canonicalIPv6(text: string): string | undefined {
  if (!isIPv6(text) || text.includes('%')) return undefined;
  const address = IPv6.parse(text);
  return address.isIPv4MappedAddress() ? address.toIPv4Address().toString() : address.toString();
}

/**
 * Reads `host:port`, the host in any spelling; IPv6 is in brackets.
 * @param defaultPort for a host without a port, which is refused if there is no default
 */
export function parseHostPort(text: string, defaultPort?: number): HostPort | undefined {
  const [, before, digits] = /^(\[[^\]]*\]|[^:]*):(\d{1,5})$/.exec(text) ?? [];
  const host = canonicalHost(before ?? text);
  const port = digits === undefined ? defaultPort : Number(digits);
  return host === undefined || port === undefined || port < 1 || port > 65_535 ? undefined : { host, port };
}

/** A host with its port as one text, IPv6 in brackets. */
export function joinHostPort({ host, port }: HostPort): string {
  return `${host.includes(':') ? `[${host}]` : host}:${port}`;
}

/** Reads a DNS server: a host, or `host:port`. */
export function parseDnsServer(text: string): HostPort | undefined {
  return parseHostPort(text, DNS_PORT);
}

/**
 * A host as it is stored for the agents: as it was written, if a resolver takes that. It does not take Unicode, which
 * becomes A-labels, nor brackets. A final dot stays: it tells a resolver not to try its search list.
 */
export function storedHost(text: string): string {
  if (text.startsWith('[')) return text.slice(1, -1);
  if (!/[^\0-\x7f]/.test(text)) return text;
  const host = canonicalHost(text) ?? text;
  return FINAL_DOT.test(text) ? `${host}.` : host;
}

/** The same for a DNS server, with its port if that was sent. */
export function storedDnsServer(text: string): string {
  const [, host, port] = /^([^[\]:]+)(:\d+)$/.exec(text) ?? [];
  if (host !== undefined) return storedHost(host) + port;
  return /^\[.*\]:\d+$/.test(text) ? text : storedHost(text);
}

/**
 * Reads an absolute http or https URL as the URL standard does, if every other common parser reads it the same way.
 * @returns the URL, or what is wrong with the text
 */
export function parseWebUrl(text: string): URL | string {
  if (HIDDEN.test(text)) return 'must not hold spaces, control characters or invisible characters';
  if (text.includes('\\')) return 'must not hold a backslash; write it as %5C';
  const authority = /^https?:\/\/([^/?#]+)/i.exec(text)?.[1];
  if (authority === undefined) return 'must be an http or https URL such as https://example.net/health';
  // They would be stored in clear and shown to every viewer.
  if (authority.includes('@')) return 'must not hold credentials';
  const url = URL.parse(text);
  const host = url && canonicalHost(url.hostname);
  const written = authority.replace(/:\d*$/, '').replace(/\.$/, '');
  if (!url || host === undefined || url.port === '0' || authority.includes('%')) {
    return 'must name a host, and a port from 1 to 65535 if any, such as https://example.net:8443/health';
  }
  // Parsers differ on `127.1`, `0x7f.1` and `0177.0.0.1`: some read an address, some another one, some a name.
  if (isIPv4(url.hostname) && url.hostname !== written) return 'must write an IPv4 address as 192.0.2.1';
  return url.href.length > MAX_URL ? `must be at most ${MAX_URL} characters, percent-encoded` : url;
}

/** The host and port that a URL of {@link parseWebUrl} leads to. */
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

/** The value is a host name or an address, see {@link canonicalHost}. */
export const IsHost = TextCheck('isHost', HOST_FORM, (text) => canonicalHost(text) !== undefined);

/** The value is a DNS server: a host, or `host:port`. */
export const IsDnsServer = TextCheck(
  'isDnsServer',
  DNS_SERVER_FORM,
  (text) => parseDnsServer(text) !== undefined,
);

/** The value is a text without spaces, control characters and invisible characters. */
export const IsDnsName = TextCheck(
  'isDnsName',
  'must not hold spaces, control characters or invisible characters',
  (text) => !HIDDEN.test(text),
);
